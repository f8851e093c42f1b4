"""`self._lock`: one lock for all steps, wherever they run.

What is done under it is exact, as with threads; who comes first has it first; it is free again whatever becomes of who
had it. Workers are real processes here; `test_lock_state` has the orders in which messages may arrive.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Any, Callable, List

import pytest
from lock_protocols import Checks, LeavesCheckLocked, Shares
from protocols import notes, wait_until

from mpsteps import STATUS_FAILED, STATUS_FINISHED, Listener

ENGINES = pytest.mark.parametrize("engine", ["inline", "processes"])


def run(
    tmp_path: Any, insert: Callable[[Shares], None], threads: int = 2, cls: type = Shares, **options: Any
) -> Shares:  # fmt: skip
    """A run that has ended; `keepGoing`, so that one failure does not hide what others do."""
    protocol = cls(insert, workingDir=str(tmp_path / "run"), numberOfThreads=threads, notes=str(tmp_path / "notes"))
    protocol.keepGoing = True
    protocol.run(**{"engine": "processes", **options})
    return protocol


def finished(protocol: Shares) -> Shares:
    assert protocol.isFinished(), protocol.getErrorMessage()
    return protocol


def log_of(protocol: Shares) -> str:
    with open(protocol._getLogsPath("run.stdout")) as f:
        return f.read()


def parallel(*steps: Any) -> Callable[[Shares], None]:
    """Inserts steps that do not wait for each other: (method, arguments ...) each."""

    def insert(protocol: Shares) -> None:
        for name, *args in steps:
            protocol._insertFunctionStep(name, *args, prerequisites=[])

    return insert


# --------------------------------------------------------------------------------------------------------------- exa
@pytest.mark.parametrize("threads", [2, 8])
def test_what_is_done_under_the_lock_is_what_threads_do(tmp_path, threads):
    """Sums that read first, maxima, cells of a list, a dict that is made from itself, beside free changes."""
    insert = parallel(*[("work", i, 5) for i in range(40)])
    expected = run(tmp_path / "inline", insert, engine="inline").plain()

    assert finished(run(tmp_path / "processes", insert, threads)).plain() == expected


def test_local_steps_and_steps_in_workers_share_it(tmp_path):
    """The coordinator's own process stands in the same queue."""
    steps = [("work" if i % 3 else "workHere", i, 5) for i in range(24)]
    expected = run(tmp_path / "inline", parallel(*steps), engine="inline").plain()
    found = finished(run(tmp_path / "processes", parallel(*steps), 3)).plain()

    del expected["sum"], found["sum"]  # without the lock, sums of local steps are not added up with others
    assert found == expected


def test_threads_of_a_step_exclude_each_other(tmp_path):
    """And what they change without the lock, while one of them waits for it, is not lost."""
    protocol = finished(run(tmp_path, parallel(*[("manyThreads", i, 10) for i in range(4)]), 2))

    assert protocol.counter == 120
    assert len(protocol.chain) == 121
    assert sorted(protocol.free) == [(i, n, j) for i in range(4) for n in range(3) for j in range(10)]


@ENGINES
def test_steps_check_takes_it_too(tmp_path, engine):
    """It waits for steps that have it, while the run goes on."""
    protocol = finished(run(tmp_path, parallel(*[("work", i, 20) for i in range(8)]), 2, Checks, engine=engine))

    assert protocol.checks > 0
    assert protocol.counter == 160 + protocol.checks
    assert len(protocol.chain) == protocol.counter + 1


def test_what_a_step_computed_before_it_waited_counts_as_its_time(tmp_path):
    """CPU seconds, told by the report. The other one has the lock until this one asks for it."""
    held, asks = str(tmp_path / "held"), str(tmp_path / "asks")
    protocol = finished(run(tmp_path, parallel(("holdUntil", held, asks), ("burn", 0.5, held, asks))))

    assert protocol.cpuTime > 0.4


# --------------------------------------------------------------------------------------------------- what is offered
@pytest.mark.versions
@pytest.mark.parametrize("place", ["inline", "worker"])
def test_it_offers_what_an_rlock_offers(tmp_path, place):
    """Compared with a `threading.RLock`, which is what a protocol has while it does not run."""
    reference = Shares()
    reference.useAsRLock()
    engine = "inline" if place == "inline" else "processes"
    protocol = finished(run(tmp_path, parallel(("useAsRLock",)), engine=engine))

    assert protocol.seen == reference.seen
    assert protocol.counter == reference.counter == 2


@ENGINES
def test_conditions_can_be_made_of_it(tmp_path, engine):
    """For threads of one step."""
    assert finished(run(tmp_path, parallel(("condition",)), engine=engine)).seen is True


def test_after_the_run_the_protocol_has_its_own_lock_again(tmp_path):
    """The one that it had before."""
    protocol = Shares(parallel(("work", 1)), workingDir=str(tmp_path / "run"))
    before = protocol._lock
    protocol.run(engine="processes")

    assert protocol._lock is before
    with protocol._lock:
        assert protocol.counter == 1


def test_who_will_not_wait_is_told_at_once(tmp_path):
    """Without blocking, and with a time-out; the state is not heard of then."""
    held, release = str(tmp_path / "held"), str(tmp_path / "release")
    protocol = finished(run(tmp_path, parallel(("holdUntil", held, release), ("tryWhileHeld", held, release))))

    assert protocol.seen == [False, False, 0, 1]


# ------------------------------------------------------------------------------------------------------ what is seen
def test_others_see_under_the_lock_what_a_step_that_still_runs_has_done(tmp_path):
    """All that it changed before it left the lock."""
    told, release = str(tmp_path / "told"), str(tmp_path / "release")
    protocol = finished(run(tmp_path, parallel(("changeAndGoOn", told, release), ("seeAndRelease", told, release))))

    assert protocol.seen == (1, ["before"])
    assert protocol.free == ["before", "after"]


def test_under_the_lock_a_step_sees_what_has_ended_since_it_began(tmp_path):
    """Also what was changed without the lock."""
    done = str(tmp_path / "done")

    def insert(protocol: Shares) -> None:
        protocol._insertFunctionStep("readUnderLock", done, prerequisites=[])
        work = protocol._insertFunctionStep("work", 3, prerequisites=[])
        protocol._insertFunctionStep("makeFile", done, prerequisites=[work])

    assert finished(run(tmp_path, insert)).seen == (0, 1, [(3, 0)])


def test_a_local_step_that_has_it_keeps_workers_waiting(tmp_path):
    """And what it changed is there when they get it."""
    here, asks = str(tmp_path / "here"), str(tmp_path / "asks")
    insert = parallel(("holdHereUntil", here, asks), ("seeAndRelease", here, asks), ("waitAndNote", asks, "later"))
    protocol = finished(run(tmp_path, insert, 2))

    assert protocol.seen[0] == 1
    assert protocol.log == ["later"]


# ---------------------------------------------------------------------------------------------------------- failures
@pytest.mark.parametrize("how", ["holdAndFail", "failAfterwards"])
@ENGINES
def test_a_failure_keeps_what_was_done_and_frees_the_lock(tmp_path, engine, how):
    """As with threads."""
    insert = parallel((how,), *[("work", i) for i in range(4)])
    protocol = run(tmp_path, insert, engine=engine)

    assert protocol.getSteps()[0].getStatus() == STATUS_FAILED
    assert [s.getStatus() for s in protocol.getSteps()[1:]] == [STATUS_FINISHED] * 4
    assert protocol.counter == 5
    assert len(protocol.chain) == 6


def test_the_death_of_who_has_it_frees_it_and_takes_back_what_it_did_there(tmp_path):
    """What was not published was never there. Who waits for it gets it."""
    here, release = str(tmp_path / "here"), str(tmp_path / "release")

    def insert(protocol: Shares) -> None:
        protocol._insertFunctionStep("holdAndDie", here, release, prerequisites=[])
        protocol._insertFunctionStep("waitForFile", here, prerequisites=[])
        protocol._insertFunctionStep("waitAndNote", release, "got it", prerequisites=[2])
        protocol._insertFunctionStep("work", 3, prerequisites=[3])

    protocol = run(tmp_path, insert)

    assert [s.getStatus() for s in protocol.getSteps()] == [STATUS_FAILED, *[STATUS_FINISHED] * 3]
    assert "SIGKILL" in protocol.getSteps()[0].getErrorMessage()
    assert protocol.log == ["got it"]
    assert protocol.counter == 1


def test_deaths_at_any_spot_never_leave_half_of_what_was_done_under_the_lock(tmp_path):
    """All of it, once the lock was left; else nothing. The second attempt does it again."""
    spots = ["before", "entered", "half", "all", "left"]
    steps = [("dieOnce", i, spots[i % 5]) for i in range(15)] + [("work", i, 3) for i in range(5)]
    protocol = finished(run(tmp_path, parallel(*steps), 3))

    changes = 15 + 3 + 5 * 3  # three of those that died had left it
    assert len(protocol.chain) == changes + 1
    assert len(protocol.text) == changes
    assert protocol.counter == changes + 18
    assert sorted(i for i in protocol.free if isinstance(i, int)) == list(range(15))


def test_the_death_of_who_waits_costs_nobody_else_a_turn(tmp_path):
    """Its time is up while it waits: waiting is time, too."""
    here, waits, release = (str(tmp_path / name) for name in ("here", "waits", "release"))

    class Releases(Listener):
        """Lets the holder go once the one that waits has failed."""

        def step_failed(self, run: Any, step: int, message: str) -> None:
            open(release, "w").close()

    def insert(protocol: Shares) -> None:
        protocol._insertFunctionStep("holdUntil", here, release, prerequisites=[])
        protocol._insertFunctionStep("waitForFile", here, prerequisites=[])
        protocol._insertFunctionStep("waitTooLong", waits, prerequisites=[2])
        protocol._insertFunctionStep("waitForFile", waits, prerequisites=[])
        protocol._insertFunctionStep("waitAndNote", str(tmp_path / "last"), "last", prerequisites=[4])

    protocol = run(tmp_path, insert, 3, listeners=[Releases()])

    assert [s.isFailed() for s in protocol.getSteps()] == [False, False, True, False, False]
    assert "timeout of 1 s" in protocol.getSteps()[2].getErrorMessage()
    assert protocol.log == ["last"]


@pytest.mark.parametrize(
    ("engine", "step"), [("inline", "forget"), ("processes", "forget"), ("processes", "forgetHere")]
)
def test_who_never_leaves_it_loses_it_with_the_end_of_the_step(tmp_path, engine, step):
    """And a warning names the step."""
    protocol = finished(run(tmp_path, parallel((step,), *[("work", i) for i in range(4)]), engine=engine))

    assert protocol.counter == 5
    assert f"step 1 - {step} has ended and still had self._lock: it is free again" in log_of(protocol)


def test_steps_check_that_never_leaves_it_loses_it(tmp_path):
    """With a warning as well."""
    protocol = finished(run(tmp_path, parallel(*[("work", i, 20) for i in range(4)]), cls=LeavesCheckLocked))

    assert protocol.counter == 80
    assert "_stepsCheck has ended and still had self._lock" in log_of(protocol)


def test_both_ctrl_c_end_steps_that_hold_and_wait(tmp_path):
    """Nobody hangs in a queue."""
    here, waits, never = (str(tmp_path / name) for name in ("here", "waits", "never"))

    class Again(Listener):
        def run_stopping(self, run: Any, why: str) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    def interrupt() -> None:
        wait_until(lambda: os.path.exists(here) and os.path.exists(waits), "for both steps")
        os.kill(os.getpid(), signal.SIGINT)

    def insert(protocol: Shares) -> None:
        protocol._insertFunctionStep("holdUntil", here, never, prerequisites=[])
        protocol._insertFunctionStep("waitForFile", here, prerequisites=[])
        protocol._insertFunctionStep("waitAndNote", waits, "got it", prerequisites=[2])

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, insert, listeners=[Again()])
    thread.join(20)


# ----------------------------------------------------------------------------------------------------- odd processes
@pytest.mark.parametrize("held", [False, True])
@ENGINES
def test_a_process_that_a_step_forks_is_told_that_it_cannot_have_it(tmp_path, engine, held):
    """Also where the step had it at that moment: and there the step keeps it."""
    protocol = finished(run(tmp_path, parallel(("forkAndAsk", held), ("work", 1)), engine=engine))

    assert protocol.seen.startswith("UsageError: a")
    assert "forked cannot take self._lock" in protocol.seen or "forked process cannot take self._lock" in protocol.seen
    assert protocol.counter == 2


def test_a_thread_that_has_outlived_its_step_cannot_have_it(tmp_path):
    """What it changed would be nobody's."""
    path = str(tmp_path / "now")

    def insert(protocol: Shares) -> None:
        protocol._insertFunctionStep("outlive", path, prerequisites=[])
        protocol._insertFunctionStep("makeFile", path)
        protocol._insertFunctionStep("waitForFile", f"{path}.told", prerequisites=[2])

    # One worker: the thread asks while another step runs there, or between two steps.
    protocol = finished(run(tmp_path, insert, 1))
    with open(f"{path}.told") as f:
        told = f.read()

    assert told == "got it" or "outlived its step" in told
    assert protocol.counter == 0


def test_a_thread_that_waits_when_its_step_ends_is_told(tmp_path):
    """The step is not kept from ending, nor the worker from working."""
    held, told = str(tmp_path / "held"), str(tmp_path / "told")

    def insert(protocol: Shares) -> None:
        protocol._insertFunctionStep("holdUntil", held, told, prerequisites=[])
        end = protocol._insertFunctionStep("waitBeyondEnd", held, told, prerequisites=[])
        for _ in range(4):
            protocol._insertFunctionStep("pids", prerequisites=[end])

    protocol = finished(run(tmp_path, insert, 2))
    with open(told) as f:
        assert "outlived its step" in f.read()
    assert "ended" in protocol.log
    assert protocol.counter == 1


# --------------------------------------------------------------------------------------------------------- conflicts
@pytest.mark.parametrize("catch", [False, True])
def test_what_was_changed_before_is_a_conflict_there_and_then(tmp_path, catch):
    """Of what they set without the lock, one cannot be true: that step fails, even if its code goes on."""
    folder = str(tmp_path / "meet")
    protocol = run(tmp_path, parallel(("setBefore", folder, 1, catch), ("setBefore", folder, 2, catch)))
    failed = [s for s in protocol.getSteps() if s.isFailed()]

    assert len(failed) == 1
    assert "'value'" in failed[0].getErrorMessage()
    assert "StateConflict" in failed[0].getErrorMessage()
    assert protocol.value == 3 - failed[0].getObjId()
    assert protocol.counter == 1


@pytest.mark.parametrize("catch", [False, True])
def test_what_cannot_travel_is_an_error_there_and_then(tmp_path, catch):
    """With the attribute's name; the step fails, even if its code goes on."""
    protocol = run(tmp_path, parallel(("publishSocket", catch), ("work", 1)))

    assert protocol.getSteps()[0].isFailed()
    assert "attribute 'bad'" in protocol.getSteps()[0].getErrorMessage()
    assert protocol.counter == 1


# ------------------------------------------------------------------------------------------------------------- lanes
def test_what_is_behind_a_step_that_waits_is_run_elsewhere(tmp_path):
    """The holder goes on only once all the others have run, one of three workers waits, and its lane was full."""
    here, waits = str(tmp_path / "here"), str(tmp_path / "waits")
    names: List[str] = [str(i) for i in range(60)]

    def insert(protocol: Shares) -> None:
        warm = [protocol._insertFunctionStep("noteUnderLock", "", "", prerequisites=[]) for _ in range(20)]
        hold = protocol._insertFunctionStep("holdUntilNoted", here, len(names), prerequisites=warm)
        held = protocol._insertFunctionStep("waitForFile", here, prerequisites=warm)
        assert hold
        for i, name in enumerate(names):
            protocol._insertFunctionStep("noteUnderLock", name, waits if i == 5 else "", prerequisites=[held])

    protocol = finished(run(tmp_path, insert, 3))

    assert sorted(notes(tmp_path / "notes")) == sorted(names)
    assert protocol.log == ["5"]
