"""How a StepPool begins and ends, and what it survives: shutdown, steps that kill their worker, deaths from outside.

Every test has a pool of its own. That processes, threads and descriptors are gone afterwards is checked after each.
"""

from __future__ import annotations

import errno
import gc
import operator
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from concurrent import futures
from pathlib import Path
from typing import Any, Callable, Iterator, List

import bad_objects
import psutil
import pytest
from pool_steps import (
    SOON,
    Gate,
    capture,
    open_all,
    until,
)

from mpsteps import EngineError, SerializationError, StepLost, StepPool


@pytest.fixture
def pool() -> Iterator[StepPool]:
    with StepPool(2) as pool:
        yield pool


def is_collected(reference: Callable[[], Any]) -> None:
    """The coordinator's thread may let go a moment after it has set the result."""
    until(lambda: (gc.collect(), reference() is None)[1])


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path)
    yield gate
    gate.open()


# ----------------------------------------------------------------------------------- beginning


@pytest.mark.parametrize("number", [0, -1, -(10**30)])
def test_fewer_than_one_worker_is_refused(number: int) -> None:
    """With the message of the standard library."""
    with pytest.raises(ValueError, match="max_workers must be greater than 0"):
        StepPool(number)


@pytest.mark.parametrize("number", ["2", 2.0, True, [2]])
def test_max_workers_must_be_an_integer(number: Any) -> None:
    """2.0 and True would work by accident."""
    with pytest.raises(TypeError, match="max_workers must be an integer"):
        StepPool(number)


def test_a_pool_has_as_many_workers_as_it_was_told(gate: Gate) -> None:
    """Three steps that wait for each other run on three workers, and the default is at least one."""
    with StepPool(max_workers=3) as pool:
        held = [gate.hold(pool) for _ in range(3)]
        gate.open()
        assert len({f.result(SOON) for f in held}) == 3
    with StepPool() as pool:
        assert pool.submit(abs, -1).result(SOON) == 1


def test_a_pool_may_be_made_and_used_in_a_thread() -> None:
    """Nothing in it needs the main thread."""
    found: List[int] = []

    def work() -> None:
        with StepPool(1) as pool:
            found.extend(pool.map(abs, [-1, -2]))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(SOON)
    assert found == [1, 2]


def test_two_pools_know_nothing_of_each_other() -> None:
    """Each has its own workers; a future of one may be an argument in the other."""
    with StepPool(1) as one, StepPool(1) as two:
        assert one.submit(os.getpid).result(SOON) != two.submit(os.getpid).result(SOON)
        assert two.submit(abs, one.submit(operator.neg, 5)).result(SOON) == 5


def test_workers_that_cannot_be_started_are_an_error_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing is left of the attempt."""
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(EngineError, match="cannot be started"):
        StepPool(1)


def test_a_thread_that_cannot_be_started_leaves_no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python refuses new threads while it shuts down."""

    def refuse(_: Any) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="interpreter shutdown"):
        StepPool(1)


# ------------------------------------------------------------------------------------ shutdown


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt])
def test_a_done_callback_that_raises_harms_nobody_else(
    pool: StepPool, caplog: pytest.LogCaptureFixture, kind: Any
) -> None:
    """It is logged, and the pool goes on."""
    pool.submit(abs, 1).add_done_callback(lambda _: bad_objects.raise_it(kind, "in a callback"))
    assert pool.submit(abs, -2).result(SOON) == 2
    pool.shutdown()
    assert "in a callback" in caplog.text


def test_map_with_a_buffer_ends_when_the_pool_is_gone() -> None:
    """It keeps no pool alive: what was submitted is handed out, and no more."""
    results = StepPool(1).map(abs, range(0, -10, -1), buffersize=2)
    gc.collect()
    assert list(results) == [0, 1]


def test_a_pool_that_nobody_holds_ends_by_itself() -> None:
    """Its steps are run to their end first. (That processes and threads are gone is checked after every test.)"""
    pool = StepPool(2)
    reference = weakref.ref(pool)
    results = pool.map(abs, range(-5, 5))
    del pool
    assert reference() is None
    assert list(results) == [5, 4, 3, 2, 1, 0, 1, 2, 3, 4]


def test_nothing_is_accepted_after_shutdown(pool: StepPool) -> None:
    """With the words of the standard library; a second shutdown does nothing."""
    pool.shutdown()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        pool.submit(pow, 2, 5)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        pool.map(abs, [1])
    pool.shutdown()


def test_shutdown_waits_for_all_that_was_submitted(pool: StepPool) -> None:
    """Also for what has not begun."""
    fs = [pool.submit(time.sleep, 0.005) for _ in range(50)]
    pool.shutdown()
    assert all(f.done() for f in fs)
    assert [f.result() for f in fs] == [None] * 50


def test_shutdown_right_after_submitting_does_not_hang() -> None:
    """Before any worker is up."""
    for _ in range(3):
        pool = StepPool(2)
        pool.map(str, [2] * 3)
        pool.shutdown()


def test_shutdown_right_after_a_cancel_does_not_hang() -> None:
    """The last thing that is left may be a cancelled step."""
    pool = StepPool(1)
    pool.submit(int).result(SOON)
    pool.submit(int).cancel()
    pool.shutdown()


def test_shutdown_without_waiting_returns_at_once(gate: Gate) -> None:
    """What was submitted runs nevertheless."""
    pool = StepPool(1)
    held, behind = gate.hold(pool), pool.submit(abs, -1)
    pool.shutdown(wait=False)
    assert not held.done()
    gate.open()
    assert behind.result(SOON) == 1
    pool.shutdown()


def test_shutdown_can_cancel_what_has_not_begun(gate: Gate) -> None:
    """Those who wait learn it at once, while the running step runs on to its end."""
    pool = StepPool(1)
    held = gate.hold(pool)
    behind = [pool.submit(abs, -1) for _ in range(50)]
    last = pool.submit_step(operator.neg, behind[0], after=behind)
    foreign: futures.Future[int] = futures.Future()
    outside = pool.submit(abs, foreign)
    pool.shutdown(wait=False, cancel_futures=True)
    assert futures.wait([*behind, last, outside], SOON).not_done == set()
    assert all(f.cancelled() for f in [*behind, last, outside])
    assert not held.done()
    gate.open()
    pool.shutdown()
    assert held.result(0) > 0


def test_the_with_statement_waits(gate: Gate) -> None:
    """At its end everything is done, and an exception inside comes through."""
    with pytest.raises(LookupError), StepPool(2) as pool:  # noqa: PT012
        future = pool.submit(abs, -1)
        raise LookupError
    assert future.result(0) == 1


def test_shutdown_in_a_done_callback_does_not_wait_for_itself() -> None:
    """It runs in the thread that would have to end."""
    pool = StepPool(1)
    future = pool.submit(abs, -1)
    future.add_done_callback(lambda _: pool.shutdown(wait=True))
    assert future.result(SOON) == 1
    with pytest.raises(RuntimeError, match="after shutdown"):
        until(lambda: pool.submit(abs, 1) is None)
    pool.shutdown()


def test_a_fork_of_the_process_cannot_use_the_pool_and_ends_well(pool: StepPool) -> None:
    """It has neither the thread nor the workers: an error, not a wait for ever; and the pool here is not disturbed."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            pool.submit(abs, 1)
        except RuntimeError as error:
            os.write(write, str(error).encode())
        finally:
            pool.shutdown()
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as f:
        assert "after a fork" in f.read()
    assert os.waitpid(pid, 0)[1] == 0
    assert pool.submit(abs, -1).result(SOON) == 1


# ----------------------------------------------------------------------------- steps that kill


def test_an_exception_that_kills_when_it_is_opened_kills_its_worker_only(pool: StepPool) -> None:
    """The worker tries it first."""
    with pytest.raises(StepLost, match="SIGSEGV"):
        pool.submit(bad_objects.raise_it, bad_objects.CrashAtExceptionUnpickle).result(SOON)
    assert pool.submit(abs, -1).result(SOON) == 1


def test_an_argument_that_kills_when_it_is_opened_is_a_lost_step(pool: StepPool) -> None:
    """Its worker had begun the step."""
    with pytest.raises(StepLost, match="SIGSEGV"):
        pool.submit(capture, bad_objects.CrashAtUnpickle()).result(SOON)
    assert pool.submit(abs, -1).result(SOON) == 1


@pytest.mark.parametrize("bad", [bad_objects.CrashAtPickle, bad_objects.CrashAtUnpickle], ids=lambda k: k.__name__)
def test_a_result_that_kills_is_a_lost_step(pool: StepPool, bad: Any) -> None:
    """The worker opens what it packed before this process does: it is the one to die."""
    with pytest.raises(StepLost, match="SIGSEGV"):
        pool.submit(bad_objects.make, bad).result(SOON)
    assert pool.submit(abs, -1).result(SOON) == 1


def test_an_argument_that_kills_when_it_is_collected_costs_one_worker(pool: StepPool) -> None:
    """It does so before the step is reported, and so has one victim."""
    with pytest.raises(StepLost, match="SIGSEGV"):
        pool.submit(id, bad_objects.CrashAtGC()).result(SOON)
    assert pool.submit(abs, -1).result(SOON) == 1


def test_an_argument_whose_repr_fails_can_be_told_of(pool: StepPool) -> None:
    """Messages show arguments, and must not fail over them."""
    error = pool.submit(bad_objects.vanish, bad_objects.ErrorAtRepr()).exception(SOON)
    assert error is not None
    error = pool.submit(capture, bad_objects.ErrorAtRepr(), bad_objects.ErrorAtPickle()).exception(SOON)
    assert isinstance(error, SerializationError)


# --------------------------------------------------------------------------- deaths of workers


def test_a_killed_worker_fails_the_step_it_ran_and_no_other(gate: Gate) -> None:
    """StepLost says which process, and the signal by name. The pool goes on with as many workers as before."""
    with StepPool(2) as pool:
        held = [gate.hold(pool), gate.hold(pool)]
        behind = [pool.submit(abs, -i) for i in range(100)]
        victim, other = (p for p in workers())
        victim.kill()
        done, _ = futures.wait(held, SOON, futures.FIRST_COMPLETED)
        error = done.pop().exception()
        assert isinstance(error, StepLost)
        assert (error.pid, error.exitcode) == (victim.pid, -signal.SIGKILL)
        assert f"worker {victim.pid}" in str(error)
        assert "SIGKILL" in str(error)
        assert [f.result(SOON) for f in behind] == list(range(100))
        gate.open()
        assert [f.result(SOON) for f in held if not isinstance(f.exception(SOON), StepLost)] == [other.pid]
        until(lambda: len(workers()) == 2)


def workers() -> List[psutil.Process]:
    """The workers of the one pool of this process: children of its zygote."""
    return [w for zygote in psutil.Process().children() for w in zygote.children()]


def test_a_step_that_exits_its_process_is_lost_with_its_exit_code(pool: StepPool) -> None:
    """os._exit, as a library's abort handler may do."""
    error = pool.submit(bad_objects.vanish, 7).exception(SOON)
    assert isinstance(error, StepLost)
    assert error.exitcode == 7
    assert "exit code 7" in str(error)
    assert "vanish(7,)" in str(error)


def test_a_pool_survives_any_number_of_deaths(pool: StepPool) -> None:
    """Every other step kills its worker; the others all finish."""
    fs = [pool.submit(bad_objects.vanish if i % 2 else abs, i) for i in range(20)]
    for i, f in enumerate(fs):
        if i % 2:
            assert isinstance(f.exception(SOON), StepLost)
        else:
            assert f.result(SOON) == i


def test_all_workers_killed_at_once_are_replaced(gate: Gate) -> None:
    """Between steps, and while all of them run."""
    with StepPool(3) as pool:
        list(pool.map(abs, range(10)))
        for p in workers():
            p.kill()
        assert list(pool.map(abs, range(-100, 0))) == list(range(100, 0, -1))
        held = [gate.hold(pool) for _ in range(3)]
        behind = [pool.submit(abs, i) for i in range(100)]
        for p in workers():
            p.kill()
        assert all(isinstance(f.exception(SOON), StepLost) for f in held)
        assert [f.result(SOON) for f in behind] == list(range(100))


def test_a_worker_that_dies_with_large_data_on_its_way_hangs_nobody(pool: StepPool) -> None:
    """Megabytes for each of three steps, of which every one kills its worker."""
    data = "a" * 3_000_000
    fs = [pool.submit(bad_objects.crash, data) for _ in range(3)]
    assert all(isinstance(f.exception(SOON), StepLost) for f in fs)


def test_a_death_after_shutdown_hangs_nobody() -> None:
    """The last step of a pool may be the one that kills."""
    pool = StepPool(2)
    future = pool.submit(bad_objects.crash)
    unpackable = pool.submit(id, bad_objects.ErrorAtPickle())
    pool.shutdown()
    assert isinstance(future.exception(0), StepLost)
    assert isinstance(unpackable.exception(0), SerializationError)


def test_the_process_that_starts_workers_may_be_killed(gate: Gate) -> None:
    """Everything below it goes with it; a new one is started, and what had not begun is run."""
    with StepPool(1) as pool:
        held, behind = gate.hold(pool), pool.submit(abs, -1)
        (zygote,) = psutil.Process().children()
        zygote.kill()
        with pytest.raises(StepLost, match="the process that starts workers was killed"):
            held.result(SOON)
        assert behind.result(SOON) == 1


def test_a_pool_that_cannot_have_workers_any_more_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """To all futures, and to who submits afterwards; nobody waits for ever."""
    from mpsteps import _pool_work

    def give_up(*_: Any) -> Any:
        raise EngineError("no worker process can be started: the machine is full")

    with StepPool(1) as pool:
        assert pool.submit(abs, -1).result(SOON) == 1
        foreign: futures.Future[int] = futures.Future()
        waiting = pool.submit(abs, foreign)
        monkeypatch.setattr(_pool_work.PoolWork, "message", give_up)
        pending = pool.submit(abs, 1)
        for f in (pending, waiting):
            with pytest.raises(EngineError, match="the machine is full"):
                f.result(SOON)
        with pytest.raises(EngineError, match="the machine is full"):
            pool.submit(abs, 1)
        foreign.set_result(1)


def test_a_pool_that_cannot_be_made_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that starts workers is there before the rest of the pool is."""

    def broken(*args: object) -> None:
        raise MemoryError("no pool today")

    monkeypatch.setattr("mpsteps._pool_work.PoolWork", broken)
    with pytest.raises(MemoryError, match="no pool today"):
        StepPool(2)
    assert not psutil.Process().children(recursive=True)


def test_an_error_that_leaves_nothing_to_load_modules_with_comes_back_as_it_was() -> None:
    """The first step of its worker uses up all descriptors: what it takes to send its error is there already."""
    with StepPool(1) as pool:
        error = pool.submit(open_all).exception(SOON)
        assert type(error) is OSError
        assert error.errno == errno.EMFILE
        assert pool.submit(abs, -3).result(SOON) == 3


EARLY = """
import subprocess, sys
popen = subprocess.Popen
def watched(*args, **kwargs):
    print(sorted(m for m in sys.modules if m.split(".")[0] in ("cloudpickle", "tblib", "psutil", "numpy", "json")
                 or m.startswith(("mpsteps._core", "mpsteps._worker", "mpsteps._coordinator", "mpsteps._pool_work"))))
    return popen(*args, **kwargs)
subprocess.Popen = watched
from mpsteps import StepPool
with StepPool(1) as pool:
    print(pool.submit(abs, -3).result())
"""


def test_the_first_new_process_is_started_before_most_modules_are_loaded() -> None:
    """It loads modules itself, for as long as this process does: one after the other, a pool took twice as long."""
    run = subprocess.run([sys.executable, "-c", EARLY], capture_output=True, text=True, timeout=60, check=True)
    lines = run.stdout.splitlines()  # the platform module of old Pythons starts a program as well, later
    assert (lines[0], lines[-1]) == ("[]", "3"), run.stdout + run.stderr
