"""What x when: every way in which a step can end badly, at every moment of its life, and what must come of it.

The outcome is always that of one step: it is named, with its arguments, its worker and the reason; its siblings finish
and the run goes on. A step that ends its process is lost, whatever the exit code was, zero included; one that raises
fails with what it raised. Each moment is one run of a protocol with all faults in it, two workers and `keepGoing`.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import select
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, NoReturn, Optional, Sequence, Tuple

import pytest
from engine_driver import SECONDS, wait_for_file

import mpsteps
from mpsteps import STEPS_PARALLEL, Protocol
from mpsteps._journal import read_journal
from mpsteps.engines.processes import ProcessEngine
from mpsteps.errors import SerializationError, StepError, StepLost, StepTimeout
from mpsteps.listeners import Listener
from mpsteps.run import run

# ------------------------------------------------------------------------------------------------------------- faults


class OddError(Exception):
    """Its __init__ wants other arguments than `args` has."""

    def __init__(self, code: int, *, path: str) -> None:
        super().__init__(f"{code} at {path}")
        self.code = code


def no_memory() -> NoReturn:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()  # noqa: SIM115
    resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), hard))
    try:
        bytearray(1 << 30)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    raise AssertionError("there was memory")


def recursion(n: int = 0) -> int:
    return recursion(n + 1) + 1


def fault(name: str) -> Any:
    """End badly."""
    if name in SIGNALS:
        os.kill(os.getpid(), getattr(signal, name))
    elif name == "segfault":
        ctypes.string_at(0)
    elif name == "abort":
        os.abort()
    elif name.startswith("os._exit"):
        os._exit(int(name.split()[1]))
    elif name.startswith("sys.exit"):
        sys.exit({"None": None, "0": 0, "3": 3, "text": "text"}[name.split()[1]])
    elif name == "KeyboardInterrupt":
        raise KeyboardInterrupt
    elif name == "odd exception":
        raise OddError(7, path="/x")
    elif name == "recursion":
        recursion()
    else:
        assert name == "no memory"
        no_memory()


SIGNALS = ("SIGKILL", "SIGTERM", "SIGBUS", "SIGILL")


class Ends(NamedTuple):
    """What a fault does to the process (`exitcode`) or raises (`error`, `message`)."""

    exitcode: Optional[int] = None
    text: str = ""
    error: str = ""


FAULTS: Dict[str, Ends] = {
    "SIGKILL": Ends(-9, "killed by SIGKILL"),
    "SIGTERM": Ends(-15, "killed by SIGTERM"),
    "SIGBUS": Ends(-7, "killed by SIGBUS"),
    "SIGILL": Ends(-4, "killed by SIGILL"),
    "segfault": Ends(-11, "killed by SIGSEGV"),
    "abort": Ends(-6, "killed by SIGABRT"),
    "os._exit 0": Ends(0, "exit code 0"),
    "os._exit 3": Ends(3, "exit code 3"),
    "os._exit 255": Ends(255, "exit code 255"),
    "sys.exit None": Ends(error="SystemExit"),
    "sys.exit 0": Ends(error="SystemExit", text="0"),
    "sys.exit 3": Ends(error="SystemExit", text="3"),
    "sys.exit text": Ends(error="SystemExit", text="text"),
    "KeyboardInterrupt": Ends(error="KeyboardInterrupt"),
    "odd exception": Ends(error="OddError", text="7 at /x"),
    "recursion": Ends(error="RecursionError", text="recursion"),
    "no memory": Ends(error="MemoryError"),
}
MOMENTS = ("opening the arguments", "in the step", "packing the result", "collecting garbage")

if not sys.platform.startswith("linux"):
    del FAULTS["no memory"]


class Opened:
    """An argument that ends badly when the worker opens it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> Tuple[Any, ...]:
        return fault, (self.name,)

    def __repr__(self) -> str:
        return f"Opened({self.name!r})"


class Packed:
    """A result that ends badly when the worker packs it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> Tuple[Any, ...]:
        fault(self.name)
        return str, ("it survived",)


class Collected:
    """Ends badly when the garbage collector finds it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.myself = self

    def __del__(self) -> None:
        fault(self.name)


class Guilty(Protocol):
    stepsExecutionMode = STEPS_PARALLEL
    keepGoing = True

    def _insertAllSteps(self) -> None:
        self.ids: Dict[str, int] = {}
        for name in FAULTS:
            self._insertFunctionStep(self.siblingStep, name, prerequisites=[])
            if self.moment == MOMENTS[0]:
                step = self._insertFunctionStep(self.openingStep, Opened(name), prerequisites=[])
            else:
                method = {MOMENTS[1]: self.runningStep, MOMENTS[2]: self.packingStep, MOMENTS[3]: self.gcStep}
                step = self._insertFunctionStep(method[self.moment], name, prerequisites=[])
            self.ids[name] = step
            self._insertFunctionStep(self.afterStep, name, prerequisites=[step])
        self._insertFunctionStep(self.lastStep, prerequisites=list(range(1, 3 * len(FAULTS), 3)))

    def siblingStep(self, name: str) -> List[int]:
        return [len(name)]

    def openingStep(self, argument: Any) -> None:
        raise AssertionError("it could be opened")

    def runningStep(self, name: str) -> None:
        print(f"about to end by {name}", flush=True)
        fault(name)

    def packingStep(self, name: str) -> Any:
        return [Packed(name)]

    def gcStep(self, name: str) -> None:
        Collected(name)
        gc.collect()

    def afterStep(self, name: str) -> None:
        """Depends on the guilty one."""

    def lastStep(self) -> List[int]:
        return [os.getpid()]


class Outcome(NamedTuple):
    protocol: Guilty
    workers: int  # processes that ran steps


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Dict[str, Guilty]:
    """The protocol after its run, for each moment."""
    found: Dict[str, Guilty] = {}
    for moment in MOMENTS:
        protocol = Guilty(numberOfThreads=2, workingDir=str(tmp_path_factory.mktemp("runs") / "run"))
        protocol.moment = moment
        run(protocol)
        found[moment] = protocol
    return found


def case(outcomes: Dict[str, Guilty], moment: str, name: str) -> Tuple[Any, str]:
    """The guilty step, and its error message."""
    protocol = outcomes[moment]
    step = protocol.getSteps()[protocol.ids[name] - 1]
    return step, str(step.getErrorMessage())


@pytest.mark.versions
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("name", FAULTS)
def test_what_when(moment: str, name: str, outcomes: Dict[str, Guilty]) -> None:
    """The table: the victim, its worker and the reason."""
    step, message = case(outcomes, moment, name)
    ends = FAULTS[name]
    if ends.error and moment == "collecting garbage":  # what __del__ raises, Python ignores
        assert step.isFinished(), message
        return
    assert step.isFailed(), "it passed for finished"
    error = step._error
    assert isinstance(error, StepError)
    assert error.step == step.getObjId()
    if ends.exitcode is not None:
        assert isinstance(error, StepLost)
        assert error.exitcode == ends.exitcode
        assert error.pid
        assert f"in worker {error.pid}" in message
    elif moment == "in the step":
        assert type(error) is StepError
        assert type(error.__cause__).__name__ == ends.error
        assert ends.error in error.traceback
    else:
        assert isinstance(error, SerializationError)
        assert error.part == ("arguments" if moment == "opening the arguments" else "result")
        assert ends.error in message or "recursion" in message  # which cloudpickle tells in its own words
    assert ends.text in message
    assert f"step {step.getObjId()} {step.funcName}(" in message
    assert name in message.split("failed in worker")[0]  # its arguments


@pytest.mark.parametrize("moment", MOMENTS)
def test_siblings_finish_and_what_depends_on_the_victim_does_not_run(moment: str, outcomes: Dict[str, Guilty]) -> None:
    """And the run's last step still runs, on a worker that took a dead one's place."""
    protocol = outcomes[moment]
    for step in protocol.getSteps():
        if step.funcName in ("siblingStep", "lastStep"):
            assert step.isFinished(), step.getErrorMessage()
        elif step.funcName == "afterStep":
            assert step.isFinished() == protocol.getSteps()[step.getObjId() - 2].isFinished()
    assert protocol.isFailed()
    lost = sum(isinstance(s._error, StepLost) for s in protocol.getSteps())
    assert lost == sum(e.exitcode is not None for e in FAULTS.values())


def test_the_last_words_of_a_lost_step_are_in_its_error(outcomes: Dict[str, Guilty]) -> None:
    """What it printed; of a segmentation fault also where it was in Python."""
    _, message = case(outcomes, "in the step", "SIGKILL")
    assert "about to end by SIGKILL" in message
    _, message = case(outcomes, "in the step", "segfault")
    assert "about to end by segfault" in message
    assert "Segmentation fault" in message
    assert "runningStep" in message


def test_every_failure_is_in_the_protocols_own_message(outcomes: Dict[str, Guilty]) -> None:
    """Not only the first."""
    message = outcomes["in the step"].getErrorMessage()
    assert f"{len(FAULTS)} steps failed" in message
    for name in FAULTS:
        assert f"runningStep('{name}'" in message


# ------------------------------------------------------------------------------------------- state, and other moments


class Counting(Protocol):
    """Its steps change attributes; some of its workers die."""

    stepsExecutionMode = STEPS_PARALLEL
    keepGoing = True

    def _insertAllSteps(self) -> None:
        self.done: List[int] = []
        self.total = 0
        last = []
        for i in range(12):
            step = self._insertFunctionStep(self.countStep, i, prerequisites=last)
            self._insertFunctionStep(self.dieStep, i, prerequisites=[step])
            last = [step]
        self._insertFunctionStep(self.lookStep, prerequisites=last)

    def countStep(self, i: int) -> None:
        assert self.done == list(range(i)), self.done
        self.done.append(i)
        self.total += i

    def dieStep(self, i: int) -> None:
        self.done.append(-1)  # goes with it
        os.kill(os.getpid(), signal.SIGKILL)

    def lookStep(self) -> Tuple[List[int], int]:
        return self.done, self.total


def test_a_worker_that_takes_a_dead_ones_place_has_the_newest_state(tmp_path: Path) -> None:
    """Changes of all steps that finished, none of those that died with their worker."""
    protocol = Counting(numberOfThreads=2, workingDir=str(tmp_path / "run"))
    report = run(protocol)
    assert len(report.failed) == 12
    assert protocol.done == list(range(12))
    assert protocol.total == sum(range(12))
    assert protocol.getSteps()[-1].result == (list(range(12)), sum(range(12)))


class Hidden:
    """Lets the process die when it is loaded, or packed, as an attribute of the protocol."""

    def __init__(self, when: str) -> None:
        self.when = when

    def __getstate__(self) -> Dict[str, Any]:
        if self.when == "packed" and os.getppid() != int(os.environ["MPSTEPS_TEST_PARENT"]):
            os._exit(5)
        return {"when": self.when}


class Attribute(Protocol):
    stepsExecutionMode = STEPS_PARALLEL
    keepGoing = True

    def _insertAllSteps(self) -> None:
        self.kept = None
        self._insertFunctionStep(self.changeStep, prerequisites=[])
        self._insertFunctionStep(self.otherStep, prerequisites=[])

    def changeStep(self) -> None:
        self.kept = Hidden("packed")

    def otherStep(self) -> List[int]:
        return [1]


def test_a_death_while_changes_of_self_are_packed_is_the_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are packed before the step has finished."""
    monkeypatch.setenv("MPSTEPS_TEST_PARENT", str(os.getppid()))
    protocol = Attribute(numberOfThreads=1, workingDir=str(tmp_path / "run"))
    report = run(protocol)
    assert [f.step for f in report.failed] == [1]
    assert "exit code 5" in protocol.getSteps()[0].getErrorMessage()
    assert protocol.getSteps()[1].isFinished()


class LastWords(Protocol):
    """Its first worker answers, then dies, while the coordinator looks away."""

    stepsExecutionMode = STEPS_PARALLEL

    def _insertAllSteps(self) -> None:
        self._insertFunctionStep(self.answerAndDieStep, prerequisites=[])
        self._insertFunctionStep(self.otherStep, prerequisites=[])
        for _ in range(6):
            self._insertFunctionStep(self.laterStep, prerequisites=[1])

    def answerAndDieStep(self) -> List[int]:
        wait_for_file(self._getExtraPath("go"))

        def die() -> None:
            time.sleep(0.03)
            os._exit(4)

        threading.Thread(target=die).start()
        return [os.getpid()]

    def otherStep(self) -> None:
        """Its end is what the coordinator is busy with."""

    def laterStep(self) -> None:
        """For which the dead worker would be the next in line."""


class LooksAway(Listener):
    def steps_finished(self, run: Any, steps: Sequence[int]) -> None:
        if 2 in steps:
            open(run.protocol._getExtraPath("go"), "w").close()
            zygote = run.coordinator.engine._zygote
            assert select.select([zygote], [], [], SECONDS)[0], "no news of a death"


def test_steps_that_a_worker_earned_with_its_last_words_go_to_another(tmp_path: Path) -> None:
    """Its reply and its death come in one and the same turn of the loop: it is given new steps, which nobody sends."""
    protocol = LastWords(numberOfThreads=2, workingDir=str(tmp_path / "run"))
    report = run(protocol, listeners=[LooksAway()])
    assert report.ok, report.message
    records = read_journal(os.path.join(protocol.getWorkingDir(), "journal.log")).records
    sent = [step for record in records if record[0] == "started" for step in record[-1]]
    assert sorted(sent) == list(range(1, 9)), "a step was recorded as sent to a worker that was dead"


class Limited(Protocol):
    stepsExecutionMode = STEPS_PARALLEL
    keepGoing = True

    def _insertAllSteps(self) -> None:
        self._insertFunctionStep(self.hangStep, prerequisites=[])
        self._insertFunctionStep(self.deafStep, prerequisites=[])
        for _ in range(10):
            self._insertFunctionStep(self.quickStep, prerequisites=[])

    @mpsteps.step(timeout=0.2)
    def hangStep(self) -> None:
        signal.pause()

    @mpsteps.step(timeout=0.2)
    def deafStep(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.pause()

    def quickStep(self) -> None:
        """Not concerned."""


def test_a_step_that_runs_out_of_time_is_ended_also_if_deaf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM, then SIGKILL; both fail with StepTimeout, and nobody else."""
    monkeypatch.setattr("mpsteps._coordinator.TERM_SECONDS", 0.2)
    protocol = Limited(numberOfThreads=2, workingDir=str(tmp_path / "run"))
    report = run(protocol)
    assert [f.step for f in report.failed] == [1, 2]
    for step in protocol.getSteps()[:2]:
        assert isinstance(step._error, StepTimeout)
        assert "timeout of 0.2 s" in step.getErrorMessage()
    assert report.finished == 10


class JustInTime(Protocol):
    """Its first step ends when its time is up already and the signal is on its way."""

    stepsExecutionMode = STEPS_PARALLEL

    def _insertAllSteps(self) -> None:
        self._insertFunctionStep(self.lateStep, prerequisites=[])
        self._insertFunctionStep(self.nextStep)

    @mpsteps.step(timeout=0.05)
    def lateStep(self) -> None:
        wait_for_file(self._getExtraPath("expired"))

    def nextStep(self) -> List[int]:
        time.sleep(0.3)  # long enough for the signal to hit it, were it on the same worker
        return [os.getpid()]


def test_a_signal_that_comes_too_late_hits_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step has answered, and the next one is sent, before the zygote delivers: one outcome each, both good."""
    late: List[Tuple[int, int]] = []
    kill, send = ProcessEngine.kill, ProcessEngine.send

    def slow_kill(engine: ProcessEngine, worker: int, number: int) -> None:
        if number != signal.SIGTERM:
            kill(engine, worker, number)
            return
        open(protocol._getExtraPath("expired"), "w").close()
        deadline = time.monotonic() + SECONDS
        while not engine._workers[worker].end.receive.pending():
            assert time.monotonic() < deadline
        late.append((worker, number))

    def send_then_kill(engine: ProcessEngine, worker: int, messages: Any) -> None:
        send(engine, worker, messages)
        for victim in late:
            kill(engine, *victim)

    monkeypatch.setattr(ProcessEngine, "kill", slow_kill)
    monkeypatch.setattr(ProcessEngine, "send", send_then_kill)
    protocol = JustInTime(numberOfThreads=1, workingDir=str(tmp_path / "run"))
    report = run(protocol)
    assert late
    assert report.ok, report.message


class Stubborn(Protocol):
    stepsExecutionMode = STEPS_PARALLEL

    def _insertAllSteps(self) -> None:
        self._insertFunctionStep(self.dieTwiceStep, prerequisites=[])

    @mpsteps.step(retries=2)
    def dieTwiceStep(self) -> List[int]:
        path = self._getExtraPath("attempts")
        with open(path, "ab") as f:
            f.write(b"x")
        attempts = os.path.getsize(path)
        if attempts < 3:
            os._exit(9)
        return [attempts]


def test_a_lost_step_is_tried_again_where_its_author_said_so(tmp_path: Path) -> None:
    """Each time on a new worker, and never more often than declared."""
    protocol = Stubborn(numberOfThreads=2, workingDir=str(tmp_path / "run"))
    assert run(protocol).ok
    assert protocol.getSteps()[0].result == [3]


def test_a_pool_survives_what_a_protocol_survives() -> None:
    """The victim's future fails with StepLost, all others have their results."""
    with mpsteps.StepPool(2) as pool:
        guilty = [pool.submit(fault, name) for name, ends in FAULTS.items() if ends.exitcode is not None]
        good = [pool.submit(abs, -i) for i in range(20)]
        assert [f.result(30) for f in good] == list(range(20))
        codes = [ends.exitcode for ends in FAULTS.values() if ends.exitcode is not None]
        for future, code in zip(guilty, codes):
            error = future.exception(30)
            assert isinstance(error, StepLost)
            assert error.exitcode == code
