"""The processes engine by itself: workers up, messages through, deaths told exactly, nothing left behind.

`Driver` stands for the coordinator. Faults are put where they hurt: in the new processes by a `sitecustomize` that
breaks what the zygote will call, in the coordinator's process by limits.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable, Iterator, List, Tuple

import psutil
import pytest
from conftest import has_token
from engine_driver import Driver, alive, at_start, step_message, with_path
from engine_steps import Guide, LoadsForever, Loud, add, blob, my_pid, touch_and_wait, touch_until, wait_for_file

import mpsteps._spawn
from mpsteps._ipc import shm, wire
from mpsteps._ipc.lane import Board, WorkerEnd
from mpsteps._machine import THREAD_VARIABLES, blas_share, usable_cores
from mpsteps._worker_replies import WorkerReplies
from mpsteps.engines.base import Replies, WorkerGone, WorkerUp
from mpsteps.engines.handle import WorkerHandle
from mpsteps.engines.processes import BOOT_DEATHS, STOP_SECONDS, ProcessEngine, describe_exit
from mpsteps.errors import EngineError

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc and what hangs on it")


# --------------------------------------------------------------------------------------------- steps of these tests


def own_end() -> WorkerEnd:
    return next(o for o in gc.get_objects() if type(o) is WorkerEnd)


# ------------------------------------------------------------------------------------------------------- ordinary life


def test_steps_run_in_workers_that_are_other_processes() -> None:
    """Values come back; both workers work."""
    with Driver(2) as d:
        a, b = d.up()
        pids = {d.call(a, my_pid), d.call(b, my_pid)}
        assert len(pids) == 2
        assert os.getpid() not in pids
        assert pids == {d.pid(a), d.pid(b)}
        assert d.call(a, add, 1, 2) == 3


def test_workers_come_up_and_leave_quickly() -> None:
    """A few tens of milliseconds each way, with room for a busy machine; a stop that waits for nobody is as quick."""
    start = time.perf_counter()
    with Driver(2) as d:
        d.up()
        up = time.perf_counter() - start
        start = time.perf_counter()
        d.engine.stop()
        assert time.perf_counter() - start < STOP_SECONDS
    assert up < 5


@pytest.mark.parametrize("size", [0, 1000, 300_000, 5_000_000])
def test_messages_larger_than_the_ring_travel_both_ways_without_a_pause(size: int) -> None:
    """A part that was sent wakes the receiver at once: were it left to find out by itself, this would take 5 s."""
    with Driver(1) as d:
        (w,) = d.up()
        start = time.perf_counter()
        assert d.call(w, len, b"x" * size) == size
        assert len(d.call(w, blob, size)) == size
        assert time.perf_counter() - start < 4


def test_many_large_messages_queue_up_without_blocking_the_coordinator() -> None:
    """`send` takes what there is no room for, and keeps its order."""
    with Driver(1) as d:
        (w,) = d.up()
        data = b"x" * 100_000
        start = time.perf_counter()
        for step in range(1, 41):
            d.send(w, (step, len, data + b"y" * step))
        assert time.perf_counter() - start < 2
        assert [d.value(step) for step in range(1, 41)] == [100_000 + step for step in range(1, 41)]


def test_a_message_that_marshal_cannot_write_fails_that_step_alone() -> None:
    """2 GiB in one argument; the steps sent with it run."""
    with Driver(1) as d:
        (w,) = d.up()
        huge = (2, 1, wire.pack(len), (bytes(2**31),), None, None)
        d.engine.send(w, [step_message(1, add, 1, 1), huge, step_message(3, add, 2, 2)])
        assert d.value(1) == 2
        assert d.value(3) == 4
        failure = d.failure(2)
        assert failure.kind == "serialization"
        assert "write it to a file" in failure.message


def test_wake_makes_a_wait_return() -> None:
    """From another thread, long before the timeout."""
    with Driver(1) as d:
        d.up()
        start = time.monotonic()
        thread = threading.Thread(target=d.engine.wake)
        thread.start()
        for _ in range(2):  # one may be a late bell of the worker's
            d.engine.wait(10)
            if not thread.is_alive():
                break
        thread.join()
        assert time.monotonic() - start < 9


def test_waking_an_engine_that_has_stopped_does_nothing() -> None:
    """A future of somebody else may be done at any time."""
    d = Driver(1)
    with d:
        d.up()
    d.engine.wake()
    d.engine.stop()
    ProcessEngine(1, lambda n: {}).wake()
    ProcessEngine(1, lambda n: {}).stop()


def test_sending_to_a_worker_that_is_no_more_does_nothing() -> None:
    """Its death has been told, or will be."""
    with Driver(1) as d:
        (w,) = d.up()
        d.engine.kill(w, signal.SIGKILL)
        d.gone(w)
        d.send(w, (1, add, 1, 1))
        d.engine.kill(w, signal.SIGKILL)
        d.engine.revoke(w)
        assert d.engine.pid(w) == 0


def test_the_example_of_the_guide_runs_in_parallel(tmp_path: Path) -> None:
    """In two processes, at the same time, and the output after all of them."""
    protocol = Guide(workingDir=str(tmp_path / "run"))
    protocol.run()
    assert protocol.isFinished(), protocol.getErrorMessage()
    assert len({pid for pid, _, _ in protocol.intervals} - {os.getpid()}) == 2
    overlapping = [
        (a, b)
        for a, b in itertools.combinations(protocol.intervals, 2)
        if a[0] != b[0] and max(a[1], b[1]) < min(a[2], b[2])
    ]
    assert overlapping, protocol.intervals


def test_everything_in_a_run_directory_is_private_whatever_the_umask_is(tmp_path: Path) -> None:
    """Files 0600, folders 0700; what steps write themselves has their own umask."""

    before = os.umask(0)
    try:
        Loud(workingDir=str(tmp_path / "run")).run()
    finally:
        os.umask(before)
    found = {}
    for folder, _, files in os.walk(tmp_path / "run"):
        found[os.path.relpath(folder, tmp_path)] = stat.S_IMODE(os.stat(folder).st_mode)
        for name in files:
            path = os.path.join(folder, name)
            found[os.path.relpath(path, tmp_path)] = stat.S_IMODE(os.stat(path).st_mode)
    folders = {name: mode for name, mode in found.items() if (tmp_path / name).is_dir()}
    assert set(folders.values()) == {0o700}, folders
    logs = {os.path.basename(name) for name in found if os.sep + "logs" + os.sep in name}
    assert {"run.stdout", "run.stderr", "step-000001.log", "step-000002.log", "step-000003.log"} <= logs
    assert {name: oct(m) for name, m in found.items() if name not in folders and m != 0o600} == {}


# --------------------------------------------------------------------------------------------------------- revocation


def test_what_is_not_begun_comes_back_and_what_is_sent_meanwhile_runs_later(tmp_path: Path) -> None:
    """Steps sent while others are being taken back are neither lost nor returned at once again."""
    running, release = str(tmp_path / "running"), str(tmp_path / "release")
    with Driver(1) as d:
        (w,) = d.up()
        d.send(w, (1, touch_until, running, release), (2, add, 1, 1), (3, add, 2, 2))
        wait_for_file(running)
        d.engine.revoke(w)
        d.send(w, (4, add, 4, 4))
        open(release, "w").close()
        assert d.value(4) == 8
        returned = [m[1] for r in d.all(Replies) for m in r.messages if m[0] == -wire.RETURNED]
        assert returned == [2, 3]
        assert d.value(1) == d.pid(w)
        d.send(w, (2, add, 1, 1))
        assert d.value(2) == 2


def test_a_worker_killed_while_steps_are_taken_back_has_one_victim(tmp_path: Path) -> None:
    """The step that ran; those that were being taken back, and those held, were never begun."""
    running = str(tmp_path / "running")
    with Driver(1) as d:
        (w,) = d.up()
        d.send(w, (1, touch_and_wait, running), (2, add, 1, 1))
        wait_for_file(running)
        d.engine.revoke(w)
        d.send(w, (3, add, 1, 1))
        d.engine.kill(w, signal.SIGKILL)
        gone = d.gone(w)
        assert (gone.done, gone.began) == ((), 1)
        (again,) = d.up(1)
        assert d.call(again, add, 1, 1) == 2


def test_where_stores_may_be_reordered_nothing_is_told_before_its_time() -> None:
    """The word `done` might be seen before a reply that was put into the ring earlier: its result would be lost."""
    board, w = Board.create(), WorkerHandle(1, None)
    try:
        end = w.lane.worker_side(board, ordered=False)
        w.end = w.lane.coordinator_side(ordered=False)
        w.send([step_message(number, add, 1, 1) for number in (1, 2, 3)])
        for number in (1, 2):
            assert end.begin(number)
        end.finish(1)
        told: List[Any] = []
        w.revoke(told)
        assert told == []
        assert list(w.in_lane) == [1, 2, 3]
        w.send([step_message(4, add, 1, 1)])
        assert list(w.in_lane) == [1, 2, 3, 4]
    finally:
        w.close()
        board.close()


class Interrupted:
    """The coordinator's end of a lane; `other` is called before its access number `at`."""

    def __init__(self, end: Any, at: int, other: Callable[[], None]) -> None:
        self._end, self._left, self._other = end, at, other
        end._fence = self._passes(end._fence)

    def _passes(self, do: Any) -> Any:
        def passed(*args: Any) -> Any:
            self._left -= 1
            if self._left == 0:
                self._other()
            return do(*args)

        return passed

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._end, name)
        return self._passes(found) if name in ("begun", "done", "drain", "revoke") else found


@pytest.mark.skipif(not shm.ORDERED, reason="nothing is taken back on such a machine")
@pytest.mark.parametrize("with_value", [False, True], ids=["plain", "with a value"])
@pytest.mark.parametrize("at", range(1, 8))
def test_the_end_of_a_step_is_told_though_a_long_one_begins_while_its_lane_is_relieved(
    at: int, with_value: bool
) -> None:
    """Whenever it begins: a lane is relieved once, and its worker says nothing until the long one has ended."""
    board, w = Board.create(), WorkerHandle(1, None)
    board.admit(1)
    began: List[bool] = []
    try:
        end = w.lane.worker_side(board, number=1)
        replies = WorkerReplies(end)
        replies.since = time.perf_counter() + 60

        def goes_on() -> None:
            if with_value:
                replies.left(2, (2, 0.01, 0.0, {"value": b"mx"}), replies.since)
            else:
                replies.finished(2, 2, 0.01, 0.0, replies.since)
            began.append(end.begin(3))

        w.send([step_message(number, add, 1, 1) for number in (1, 2, 3, 4)])
        end.begin(1)
        replies.finished(1, 1, 0.01, 0.0, replies.since)
        end.begin(2)
        w.end = Interrupted(w.end, at, goes_on)  # type: ignore[assignment]
        told: List[Any] = []
        w.revoke(told)
        back = {m[1] for r in told for m in r.messages if m[0] == -wire.RETURNED}
        assert 4 in back
        if began == [True]:
            assert list(w.in_lane) == [3], "step 2 has ended, and nobody knows"
        else:  # it was taken back, or its worker has been told so and is about to say it
            assert 3 in back or (began == [False] and list(w.in_lane) == [3])
        assert 1 not in w.in_lane
    finally:
        w.close()
        board.close()


@pytest.mark.skipif(not shm.ORDERED, reason="nothing is taken back on such a machine")
def test_a_lane_whose_last_answer_is_there_already_goes_on() -> None:
    """All was answered when it was to be taken back: nobody will answer any more, and nothing may wait for that."""
    board, w = Board.create(), WorkerHandle(1, None)
    try:
        end = w.lane.worker_side(board)
        w.send([step_message(1, add, 1, 1), step_message(2, add, 1, 1)])
        for number in (1, 2):
            assert end.begin(number)
        end.send_all(wire.encode([(1, 0.5, 0.5, {"value": b"mx"}), (2, 0.5, 0.5, {"value": b"mx"})]))
        told: List[Any] = []
        w.revoke(told)
        assert [m[0] for m in told[0].messages] == [1, 2]
        w.send([step_message(3, add, 1, 1)])
        assert w.held == []
        assert list(w.in_lane) == [3]
    finally:
        w.close()
        board.close()


@pytest.mark.skipif(not shm.ORDERED, reason="nothing is taken back on such a machine")
def test_a_step_that_was_announced_and_passed_over_is_not_the_victim() -> None:
    """Between the announcement and the answer the worker dies: it had not run the step, and would not have."""
    board, w = Board.create(), WorkerHandle(1, None)
    try:
        end = w.lane.worker_side(board)
        w.send([step_message(1, add, 1, 1), step_message(2, add, 1, 1), step_message(3, add, 1, 1)])
        assert end.begin(1)
        end.finish(1)
        told: List[Any] = []
        w.revoke(told)
        assert [m[:2] for m in told[0].messages] == [(-wire.FINISHED, [1]), (-wire.RETURNED, 2), (-wire.RETURNED, 3)]
        assert not end.begin(2)
        gone = w.bury(None, -9, 0, [])
        assert (gone.done, gone.began) == ((), None)
    finally:
        w.close()
        board.close()


# -------------------------------------------------------------------------------------------------------------- deaths


def test_an_idle_worker_that_dies_is_replaced_and_nobody_is_blamed() -> None:
    """By whatever signal."""
    with Driver(2) as d:
        a, b = d.up()
        os.kill(d.pid(a), signal.SIGKILL)
        gone = d.gone(a)
        assert (gone.exitcode, gone.done, gone.began) == (-9, (), None)
        assert gone.peak_kib > 1000
        assert b in d.up(2)


def test_a_death_in_a_step_names_that_step_and_what_finished_before_it_counts(tmp_path: Path) -> None:
    """Also when the replies of those before it were still kept back in the worker."""
    running = str(tmp_path / "running")
    with Driver(1) as d:
        (w,) = d.up()
        steps = [step_message(i, gc.isenabled) for i in (1, 2)] + [step_message(3, touch_and_wait, running)]
        steps += [step_message(4, add, 1, 1)]
        d.engine.send(w, steps)
        wait_for_file(running)
        os.kill(d.pid(w), signal.SIGKILL)
        gone = d.gone(w)
        finished = {s for s in (1, 2) if s in d.replies} | set(gone.done)
        assert finished == {1, 2}
        assert gone.began == 3
        assert 4 not in d.replies


def test_a_step_that_was_passed_over_is_not_counted_as_finished_after_a_death() -> None:
    """The worker gave it back, ran the one behind it, and died before it had sent either reply: the word that says how
    far it has finished counts messages, and must not count what was never run."""
    with Driver(1) as d:
        (w,) = d.up()
        for turn in range(20):
            first = 100 * turn
            passed_over = (first + 2, 1, wire.pack(gc.isenabled), (), None, {"ahead": (77777,)})
            steps = [step_message(first + 1, gc.enable), passed_over, step_message(first + 3, gc.enable)]
            d.engine.send(w, [*steps, step_message(first + 4, os._exit, 1)])
            gone = d.gone(w)
            returned = [m[1] for r in d.all(Replies) for m in r.messages if m[0] == -wire.RETURNED]
            assert first + 2 not in gone.done
            assert first + 2 not in d.replies
            assert gone.began == first + 4
            assert {s for s in (first + 1, first + 3) if s in d.replies} | set(gone.done) == {first + 1, first + 3}
            assert first + 2 in returned
            (w,) = d.up(1)


def test_all_workers_killed_at_once_have_one_victim_each(tmp_path: Path) -> None:
    """And as many new ones come."""
    with Driver(3) as d:
        workers = d.up()
        for w in workers:
            d.send(w, (w, touch_and_wait, str(tmp_path / str(w))), (w + 100, add, 1, 1))
        for w in workers:
            wait_for_file(tmp_path / str(w))
        for w in workers:
            os.kill(d.pid(w), signal.SIGKILL)
        for w in workers:
            gone = d.gone(w)
            assert (gone.done, gone.began) == ((), w)
        assert len(d.up(3)) == 3


def test_a_worker_killed_while_it_writes_a_large_reply(tmp_path: Path) -> None:
    """Nobody reads, so it is stuck with half of its reply in the ring; other workers are not concerned."""
    with Driver(2) as d:
        a, b = d.up()
        d.send(a, (1, blob, 3_000_000))
        head = d.engine._workers[a].end.receive
        deadline = time.monotonic() + 20
        while not head.pending() and time.monotonic() < deadline:
            time.sleep(0.001)
        os.kill(d.pid(a), signal.SIGKILL)
        gone = d.gone(a)
        assert gone.began == 1
        assert 1 not in d.replies
        assert d.call(b, add, 1, 1) == 2


def test_a_worker_killed_while_it_is_sent_a_large_message() -> None:
    """It was stopped, so that half of the message is in the ring and half waits here."""
    with Driver(1) as d:
        (w,) = d.up()
        os.kill(d.pid(w), signal.SIGSTOP)
        d.send(w, (1, len, b"x" * 3_000_000), (2, add, 1, 1))
        d.turn(0)
        os.kill(d.pid(w), signal.SIGKILL)
        gone = d.gone(w)
        assert (gone.done, gone.began) == ((), None)
        (again,) = d.up(1)
        assert d.call(again, add, 1, 1) == 2


def test_workers_that_die_before_they_are_ready_are_not_started_for_ever(tmp_path: Path) -> None:
    """After three in a row the engine gives up and says how they died and what they wrote."""
    log = "import os, sys; os.write(2, b'cannot find the key'); os._exit(7)"
    image = {"class": b"p" + b"cbuiltins\nexec\n(V%s\ntR." % log.encode(), "state": b""}
    with Driver(1, {"image": image, "ignored": []}, logs=str(tmp_path)) as d:
        reason = d.failed()
        assert f"{BOOT_DEATHS} worker processes in a row died before they were ready (exit code 7)" in reason
        assert "cannot find the key" in reason
        assert len(d.all(WorkerGone)) == BOOT_DEATHS
        assert d.all(WorkerUp) == []


def test_a_worker_that_gets_ready_ends_the_count_of_those_that_did_not() -> None:
    """Two die, the third lives; when it has died, two die again, and the sixth lives: not three in a row."""
    dies = {"image": {"class": b"pcbuiltins\nexec\n(Vimport os; os._exit(7)\ntR.", "state": b""}}
    d = Driver(1)
    d.engine._setup = lambda number: {**dies, "ignored": []} if number % 3 else {}
    with d:
        assert sorted(d.up(1)) == [3]
        d.engine.kill(3, signal.SIGKILL)
        d.gone(3)
        assert sorted(d.up(1)) == [6]
        assert [g.worker for g in d.all(WorkerGone)] == [1, 2, 3, 4, 5]


def test_a_protocol_that_cannot_be_loaded_is_an_error_with_the_reason() -> None:
    """Once, from the first worker: the others could not load it either."""
    image = {"class": b"p" + b"cno_such_module\nName\n.", "state": b""}
    with Driver(2, {"image": image, "ignored": []}) as d:
        reason = d.failed()
        assert "cannot be loaded in a worker process" in reason
        assert "no_such_module" in reason


def test_a_worker_that_writes_over_its_lane_is_ended_and_its_steps_are_lost(tmp_path: Path) -> None:
    """Nothing that it said about them is believed; the other worker goes on."""

    def run_wild() -> None:
        end = own_end()
        end._words[8] = 77  # "I have begun message 77"
        end._words[16] = 77  # "and finished it"
        os.kill(os.getpid(), signal.SIGKILL)

    with Driver(2) as d:
        a, b = d.up()
        d.send(a, (1, run_wild), (2, add, 1, 1))
        gone = d.gone(a)
        assert (gone.done, gone.began) == ((), None)
        for step in (1, 2):
            failure = d.failure(step)
            assert failure.kind == "lost"
            assert "shared memory" in failure.message
            assert failure.exitcode == -9
        assert d.call(b, add, 1, 1) == 2


@pytest.mark.parametrize("what", ["garbage", "an answer for a step it was not sent", "an unknown order", "a bad frame"])
def test_a_worker_that_says_nonsense_is_ended(what: str, caplog: pytest.LogCaptureFixture) -> None:
    """It may not confuse the coordinator, let alone end the run."""

    def nonsense(what: str) -> None:
        end = own_end()
        if what == "garbage":
            end.send_all(b"\xff\xfe")
        elif what == "an unknown order":
            end.send_all(wire.encode([(-99, 1)]))
        elif what == "a bad frame":
            end.send._data[:64] = b"\x55" * 64
            end.send._words[0] += 64
            end.call()
        else:
            end.send_all(wire.encode([(12345, 0.0, 0.0)]))
        time.sleep(100)

    with Driver(2) as d:
        a, b = d.up()
        d.send(a, (1, nonsense, what))
        gone = d.gone(a)
        assert gone.exitcode == -9
        assert d.failure(1).kind == "lost"
        assert d.call(b, add, 1, 1) == 2
        assert a not in d.up(2)
        assert "lane is damaged" in caplog.text


def test_the_log_of_a_dead_worker_goes_to_the_step_it_was_running(tmp_path: Path) -> None:
    """Its last part travels with the news; the file of the worker is gone."""

    def shout() -> None:
        print("about to die")
        os.write(2, b"by my own hand\n")
        os._exit(3)

    with Driver(1, logs=str(tmp_path)) as d:
        (w,) = d.up()
        d.send(w, (5, shout))
        gone = d.gone(w)
        assert gone.exitcode == 3
        assert "about to die" in gone.log
        assert "by my own hand" in gone.log
        assert (tmp_path / "step-000005.log").read_text() == gone.log
        assert not (tmp_path / f"worker-{w}.log").exists()


def test_logs_that_a_killed_run_has_left_are_not_touched(tmp_path: Path) -> None:
    """They hold what the steps wrote that were cut in the middle; new workers write elsewhere."""
    (tmp_path / "worker-3.log").write_text("of the run before")
    with Driver(2, logs=str(tmp_path)) as d:
        a, _ = d.up()
        d.send(a, (1, print, "hello"))
        d.value(1)
        assert (tmp_path / "step-000001.log").read_text() == "hello\n"
    assert (tmp_path / "worker-3.log").read_text() == "of the run before"
    assert sorted(os.listdir(tmp_path)) == ["step-000001.log", "worker-3.log"]


def test_a_log_that_cannot_be_moved_stays_and_is_named(tmp_path: Path) -> None:
    """A directory stands where the step's log should be; the death is told all the same."""
    (tmp_path / "step-000005.log").mkdir()

    def shout() -> None:
        print("last words")
        sys.stdout.flush()
        os._exit(3)

    with Driver(1, logs=str(tmp_path)) as d:
        (w,) = d.up()
        d.send(w, (5, shout))
        assert f"worker-{w}.log" in d.gone(w).log


def test_exit_codes_are_told_in_words() -> None:
    """As the messages have them."""
    assert describe_exit(3) == "exit code 3"
    assert describe_exit(-11) == "killed by SIGSEGV"
    assert describe_exit(-64 - 30) == "killed by signal 94"


# ------------------------------------------------------------------------------------------------ the zygote's troubles


def zygote_of(d: Driver) -> psutil.Process:
    assert d.engine._zygote is not None
    return psutil.Process(d.engine._zygote.pid)


def test_a_zygote_killed_while_idle_is_replaced() -> None:
    """With all its workers, which die with it."""
    with Driver(2) as d:
        before = d.up()
        zygote_of(d).kill()
        for w in before:
            assert d.gone(w).exitcode is None
        assert not set(d.up(2)) & set(before)


def test_a_zygote_killed_while_steps_run_costs_these_steps_and_leaves_no_program(tmp_path: Path) -> None:
    """Their programs die, too: they are found by their session, which is the zygote's."""

    def run_program(path: str) -> None:
        child = subprocess.Popen(["sleep", "1000"])
        with open(path, "w") as f:
            f.write(str(child.pid))
        os.rename(path, path + ".ok")
        child.wait()

    with Driver(2) as d:
        workers = d.up()
        for w in workers:
            d.send(w, (w, run_program, str(tmp_path / str(w))))
        for w in workers:
            wait_for_file(tmp_path / f"{w}.ok")
        programs = [int((tmp_path / f"{w}.ok").read_text()) for w in workers]
        zygote_of(d).kill()
        for w in workers:
            gone = d.gone(w)
            assert (gone.began, gone.exitcode) == (w, None)
        assert not any(alive(p) for p in programs)
        assert len(d.up(2)) == 2


def test_a_zygote_killed_during_its_start_is_an_error_and_no_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """It had not said that it is up: another one would fare no better."""
    at_start(monkeypatch, tmp_path, "import time; time.sleep(1000)")  # else it may be up before it is killed
    with Driver(2) as d:
        zygote_of(d).kill()
        assert "did not come up: killed by SIGKILL" in d.failed()


def test_a_zygote_that_keeps_dying_is_given_up() -> None:
    """Killed again and again while no worker has got ready in between; a worker that is ready resets the count."""
    image = {"class": wire.pack(LoadsForever()), "state": b""}
    with Driver(1, {"image": image, "ignored": []}) as d:
        for _ in range(BOOT_DEATHS):
            before = len(d.all(WorkerGone))
            d.until(lambda: d.engine._zygote is not None and d.engine._zygote.up, "the zygote")
            zygote_of(d).kill()
            d.until(lambda before=before: len(d.all(WorkerGone)) > before, "the end of its worker")
        assert "keeps dying: killed by SIGKILL" in d.failed()


def test_a_zygote_that_was_stopped_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGSTOP, as a debugger or an operator may send it: it is killed, and its workers and programs with it."""
    monkeypatch.setattr(mpsteps._spawn, "END_SECONDS", 0.3)
    with Driver(1) as d:
        (w,) = d.up()
        pid = d.pid(w)
        zygote_of(d).suspend()
        start = time.monotonic()
        d.engine.stop(at_once=True)
        assert time.monotonic() - start < 2
        deadline = time.monotonic() + 2
        while alive(pid):
            assert time.monotonic() < deadline


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("exit 3", "exit code 3"),
        ("echo this is no Python >&2; exit 1", "this is no Python"),
        ("kill -SEGV $$", "killed by SIGSEGV"),
    ],
)
def test_a_python_that_does_not_start_is_an_error_with_what_it_said(
    script: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sys.executable of a program that embeds Python may be anything."""
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(fake))
    with Driver(2) as d:
        reason = d.failed()
        assert "did not come up" in reason
        assert str(fake) in reason
        assert expected in reason


@pytest.mark.parametrize("executable", ["", "/no/such/python", "/dev/null"])
def test_a_python_that_cannot_even_be_started_is_an_error_at_once(
    executable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left behind by `start`."""
    monkeypatch.setattr(sys, "executable", executable)
    with pytest.raises(EngineError, match=r"cannot be started|executable is not set"):
        ProcessEngine(2, lambda n: {}).start()


def test_a_python_that_never_comes_up_is_given_up_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It hangs before it has said a word; the wait is bounded."""
    monkeypatch.setattr(mpsteps._spawn, "START_SECONDS", 0.3)
    monkeypatch.setattr(mpsteps._spawn, "END_SECONDS", 0.1)
    at_start(monkeypatch, tmp_path, "import time; time.sleep(1000)")
    with Driver(1) as d:
        assert "did not come up in time" in d.failed()


def test_a_broken_import_path_is_an_error_with_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers could not import what the coordinator has imported."""
    monkeypatch.setattr(sys, "path", [])
    with Driver(1) as d:
        assert "No module named" in d.failed()


def test_warnings_of_a_start_that_succeeds_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Standard error was a file until the zygote was up; what stood there is passed on."""
    at_start(monkeypatch, tmp_path, "import sys; print('mind the gap', file=sys.stderr)")
    with Driver(1) as d:
        d.up()
        assert "mind the gap" in capfd.readouterr().err


def test_a_deleted_current_directory_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sys.path has '' in it, which then means nothing."""
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    monkeypatch.syspath_prepend("")
    with Driver(1) as d:
        (w,) = d.up()
        assert d.call(w, add, 1, 1) == 2


def test_blocked_signals_of_the_coordinator_do_not_deafen_the_zygote() -> None:
    """A mask is inherited by exec: with SIGCHLD blocked no death would ever be heard of."""
    blocked = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        with Driver(1) as d:
            (w,) = d.up()
            os.kill(d.pid(w), signal.SIGTERM)
            assert d.gone(w).exitcode == -signal.SIGTERM
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# ------------------------------------------------------------------------------------------------- not enough of things


@contextlib.contextmanager
def few_descriptors(spare: int) -> Iterator[None]:
    """At most `spare` more files may be open in this process."""
    highest = max(int(fd) for fd in os.listdir("/proc/self/fd"))
    taken = [os.open(os.devnull, os.O_RDONLY)]
    while taken[-1] <= highest:  # fill the gaps
        taken.append(os.open(os.devnull, os.O_RDONLY))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken[-1] + 1 + spare, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in taken:
            os.close(fd)


@contextlib.contextmanager
def no_new_descriptors() -> Iterator[None]:
    """Not even one that was just closed can be opened again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@linux
@pytest.mark.parametrize("spare", range(0, 40, 3))
def test_too_few_descriptors_are_one_clear_error_and_leave_nothing_open(spare: int) -> None:
    """At every point of the start: board, socket, pipe of the new process, first lane, fourth lane."""
    engine = ProcessEngine(20, lambda n: {})
    with few_descriptors(spare), pytest.raises(EngineError, match=r"open files|files are open"):
        engine.start()
    assert engine._workers == {}


@linux
def test_a_replacement_that_cannot_be_had_is_done_without(caplog: pytest.LogCaptureFixture) -> None:
    """The descriptors ran out meanwhile; the other worker goes on, and later a death brings both back."""
    with Driver(2) as d:
        a, b = d.up()
        with no_new_descriptors():
            d.engine.kill(a, signal.SIGKILL)
            d.gone(a)
            assert d.live() == [b]
            assert "going on with 1" in caplog.text
            assert d.call(b, add, 1, 1) == 2
        d.engine.kill(b, signal.SIGKILL)
        d.gone(b)
        assert len(d.up(2)) == 2


REFUSE_FORK = """
import os
fork, count = os.fork, [0]

def refused():
    count[0] += 1
    if count[0] in {numbers}:
        raise BlockingIOError(11, "Resource temporarily unavailable")
    return fork()

os.fork = refused
"""


def test_a_fork_that_is_refused_leaves_fewer_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two of three; the one that did not come is told of as gone, so that nobody keeps anything for it."""
    at_start(monkeypatch, tmp_path, REFUSE_FORK.replace("{numbers}", "{2}"))
    with Driver(3) as d:
        assert sorted(d.up(2)) == [1, 3]
        gone = d.gone(2)
        assert (gone.pid, gone.began) == (0, None)
        assert "Resource temporarily unavailable" in caplog.text
        assert "ulimit -u" in caplog.text


def test_forks_that_are_all_refused_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything was started."""
    at_start(monkeypatch, tmp_path, REFUSE_FORK.replace("{numbers}", "range(100)"))
    with Driver(3) as d:
        assert "no worker process can be started: Resource temporarily unavailable" in d.failed()
        assert d.all(WorkerUp) == []


def test_many_workers_are_asked_for_a_few_at_a_time() -> None:
    """More than there may be forks under way; all come."""
    with Driver(40) as d:
        assert len(d.up()) == 40


def test_setup_that_raises_leaves_nothing() -> None:
    """What it raised comes out of `start`."""

    def setup(number: int) -> Any:
        if number == 2:
            raise KeyError("no image")
        return {}

    with pytest.raises(KeyError, match="no image"):
        ProcessEngine(3, setup).start()


# ------------------------------------------------------------------------------------------------------------ the end


def test_a_worker_that_will_not_leave_is_killed_after_a_while(tmp_path: Path) -> None:
    """It runs a step for ever and is deaf to SIGTERM; the stop is bounded, also while it pours out output."""

    def deaf(path: str) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        touch_and_wait(path)

    with Driver(2) as d:
        a, b = d.up()
        d.send(a, (1, deaf, str(tmp_path / "a")))
        d.send(b, (2, blob, 3_000_000))
        wait_for_file(tmp_path / "a")
        pid = d.pid(a)
        start, cpu = time.monotonic(), time.process_time()
        d.engine.stop()
        assert STOP_SECONDS * 0.9 < time.monotonic() - start < STOP_SECONDS + 3
        assert time.process_time() - cpu < STOP_SECONDS / 2  # it slept
        assert not alive(pid)


def test_stop_in_a_child_that_somebody_forked_leaves_the_workers_alone() -> None:
    """And the child does not keep the zygote alive: its end of the socket is closed."""
    with Driver(1) as d:
        (w,) = d.up()
        assert d.engine._zygote is not None
        fd = d.engine._zygote.fileno()
        code = f"""
import os, socket
try:
    os.fstat({fd})
    os._exit(1)
except OSError:
    os._exit(0)
"""
        pid = os.fork()
        if pid == 0:
            try:
                d.engine.stop()
                exec(code)
            finally:
                os._exit(2)
        _, status = os.waitpid(pid, 0)
        assert os.WEXITSTATUS(status) == 0
        assert d.call(w, add, 1, 1) == 2


# ---------------------------------------------------------------------------------------- what a worker's world is like


@linux
def test_a_program_of_a_step_inherits_none_of_our_descriptors(tmp_path: Path) -> None:
    """However it is started: by fork and exec without closing anything, the shell, or subprocess."""

    def descriptors(start: str) -> List[str]:
        script = "import os; print(' '.join(f for f in os.listdir('/proc/self/fd') if int(f) > 2))"
        out = os.path.join(folder, "out")
        line = f"{sys.executable} -c \"{script}\" > {out}"
        if start == "system":
            os.system(line)
        elif start == "spawn":
            os.spawnv(os.P_WAIT, "/bin/sh", ["sh", "-c", line])
        else:
            subprocess.run(line, shell=True, check=True, close_fds=False)
        with open(out) as f:
            return f.read().split()

    folder = str(tmp_path)
    fence = os.open(tmp_path / "fence", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
    try:
        with Driver(1, keep_open=(fence,)) as d:
            (w,) = d.up()
            held = os.listdir(f"/proc/{d.pid(w)}/fd")
            assert any(os.readlink(f"/proc/{d.pid(w)}/fd/{f}") == str(tmp_path / "fence") for f in held)
            for start in ("system", "spawn", "subprocess"):
                assert d.call(w, descriptors, start) == ["3"], start  # the folder that it lists
    finally:
        os.close(fence)


def test_blas_gets_the_workers_share_of_the_cores_and_the_users_setting_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the environment of a step has it."""
    for name in THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "7")
    with Driver(2) as d:
        w, _ = d.up()
        found = d.call(w, lambda: {n: os.environ.get(n) for n in THREAD_VARIABLES})
    share = str(max(1, usable_cores() // 2))
    assert found == {**dict.fromkeys(THREAD_VARIABLES, share), "MKL_NUM_THREADS": "7"}
    assert blas_share(10**6, {}) == dict.fromkeys(THREAD_VARIABLES, "1")


def square(x: int) -> int:
    return x * x


def test_a_step_may_start_pools_of_its_own() -> None:
    """Workers are not daemonic: multiprocessing refuses children to daemons."""

    def pools() -> Any:
        import concurrent.futures
        import multiprocessing

        with multiprocessing.get_context("fork").Pool(2) as pool:
            first = pool.map(len, ["a", "bb", "ccc"])
        with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as executor:
            return first, list(executor.map(abs, [-1, -2]))

    with Driver(1) as d:
        (w,) = d.up()
        assert d.call(w, pools) == ([1, 2, 3], [1, 2])


def test_ctrl_c_does_not_reach_workers_but_their_programs_can_be_interrupted(tmp_path: Path) -> None:
    """They live in a session of their own, without a terminal, and take SIGINT without dying; it is a handler and not
    SIG_IGN, which programs would inherit."""
    running, release = str(tmp_path / "running"), str(tmp_path / "release")

    def program_dies() -> int:
        child = subprocess.Popen(["sleep", "1000"])
        child.send_signal(signal.SIGINT)
        return child.wait()

    with Driver(1) as d:
        (w,) = d.up()
        pid = d.pid(w)
        assert os.getsid(pid) != os.getsid(0)
        assert os.getpgid(pid) == pid
        d.send(w, (1, touch_until, running, release))
        wait_for_file(running)
        os.kill(pid, signal.SIGINT)
        open(release, "w").close()
        assert d.value(1) == pid
        assert d.call(w, program_dies) == -signal.SIGINT


@linux
def test_the_kernel_will_take_a_worker_and_not_the_coordinator_when_memory_runs_out() -> None:
    """oom_score_adj is higher in workers, and only there."""

    def score(pid: Any = "self") -> int:
        with open(f"/proc/{pid}/oom_score_adj") as f:
            return int(f.read())

    with Driver(1) as d:
        (w,) = d.up()
        assert score(d.pid(w)) == min(1000, score() + 500)
        assert score(zygote_of(d).pid) == score()


@linux
def test_nobody_listens_on_any_socket() -> None:
    """Not on the network, not on a path, not on an abstract name: the processes' sockets are one nameless pair."""

    def listening() -> set[str]:
        found = set()
        for name in ("tcp", "tcp6", "udp", "udp6"):
            with contextlib.suppress(FileNotFoundError), open(f"/proc/net/{name}") as f:
                found |= {line.split()[9] for line in f.readlines()[1:]}
        with open("/proc/net/unix") as f:
            for line in f.readlines()[1:]:
                fields = line.split()
                if int(fields[3], 16) & 0x10000 or len(fields) > 7:  # __SO_ACCEPTCON, or it has a name
                    found.add(fields[6])
        return found

    def sockets(pid: int) -> set[str]:
        links = []
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):  # the one that lists them
                links.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
        return {link[8:-1] for link in links if link.startswith("socket:")}

    before = sockets(os.getpid())
    with Driver(2) as d:
        a, b = d.up()
        ours = sockets(os.getpid()) - before
        assert len(ours) == 1
        for pid in (zygote_of(d).pid, d.pid(a), d.pid(b)):
            ours |= sockets(pid)
        assert not ours & listening()
        assert sockets(d.pid(a)) == set()


@linux
@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 1, 2)])
def test_a_coordinator_whose_standard_streams_are_closed(closed: Tuple[int, ...], tmp_path: Path) -> None:
    """As under a daemon: no ring or socket takes the place of a stream, neither here nor in a worker."""
    result = tmp_path / "result"
    script = f"""
import json, os, sys
for fd in {closed}:
    os.close(fd)
import mpsteps

def streams():
    os.write(1, b"to standard output")
    os.system("echo from a program; echo and another >&2")
    return {{fd: os.readlink("/proc/self/fd/%d" % fd) for fd in (0, 1, 2)}}

with mpsteps.StepPool(2) as pool:
    found = [pool.submit(streams).result(20) for _ in range(20)]
    here = streams()
with open({str(result)!r}, "w") as f:
    json.dump([here, *found], f)
"""
    subprocess.run(
        [sys.executable, "-c", script], check=True, timeout=60, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, cwd=os.getcwd(), env=with_path(),
    )  # fmt: skip
    for streams in json.loads(result.read_text()):
        for target in streams.values():
            assert target == os.devnull


def test_files_of_workers_are_private_whatever_the_umask_is(tmp_path: Path) -> None:
    """Logs may hold anything that a step prints."""
    before = os.umask(0)
    try:
        with Driver(1, logs=str(tmp_path)) as d:
            (w,) = d.up()
            d.send(w, (1, print, "hello"))
            d.value(1)
            modes = {f.name: stat.S_IMODE(f.stat().st_mode) for f in tmp_path.iterdir()}
            d.send(w, (2, os.abort))
            d.gone(w)
            modes.update({f.name: stat.S_IMODE(f.stat().st_mode) for f in tmp_path.iterdir()})
    finally:
        os.umask(before)
    assert modes == {"step-000001.log": 0o600, "step-000002.log": 0o600, **{k: 0o600 for k in modes if "worker" in k}}


@linux
def test_memory_of_lanes_is_private() -> None:
    """Nameless, of mode 0600, and of no use to other users."""
    with Driver(1) as d:
        (w,) = d.up()
        fds = [fd for fd in d.engine._workers[w].lane.fds() if "memfd" in os.readlink(f"/proc/self/fd/{fd}")]
        assert fds
        assert all(stat.S_IMODE(os.fstat(fd).st_mode) == 0o600 for fd in fds)


@linux
def test_the_token_of_the_leak_check_reaches_workers() -> None:
    """Else the check that nothing is left behind could not fail."""
    with Driver(1) as d:
        (w,) = d.up()
        assert has_token(d.pid(w), os.environ["MPSTEPS_TESTS"])


def test_a_socket_that_a_step_leaves_open_is_its_own(tmp_path: Path) -> None:
    """A listening socket opened by a step in a worker does not outlive the worker."""

    def listen() -> int:
        global kept
        kept = socket.socket()  # type: ignore[name-defined]
        kept.bind(("127.0.0.1", 0))  # type: ignore[name-defined]
        kept.listen()  # type: ignore[name-defined]
        return int(kept.getsockname()[1])  # type: ignore[name-defined]

    with Driver(1) as d:
        (w,) = d.up()
        port = d.call(w, listen)
    with socket.socket() as s, pytest.raises(ConnectionRefusedError):
        s.connect(("127.0.0.1", port))
