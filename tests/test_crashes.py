"""What x when: every way in which a step can end badly, at every moment of its life, and what must come of it.

The outcome is always that of one step: it is named, with its arguments, its worker and the reason; its siblings finish
and the run goes on. A step that ends its process is lost, whatever the exit code was, zero included; one that raises
fails with what it raised. Each moment is one run of a protocol with all faults in it, two workers and `keepGoing`.
"""

from __future__ import annotations

import os
import select
import signal
import time
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import pytest
from engine_steps import (
    FAULTS,
    MOMENTS,
    SECONDS,
    Attribute,
    Counting,
    Guilty,
    HeldAttributes,
    JustInTime,
    LastWords,
    Limited,
    Stubborn,
    fault,
)  # fmt: skip

import mpsteps
from mpsteps._journal import read_journal
from mpsteps.engines.processes import ProcessEngine
from mpsteps.errors import SerializationError, StepError, StepLost, StepTimeout
from mpsteps.listeners import Listener
from mpsteps.run import run


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


def test_a_worker_that_takes_a_dead_ones_place_has_the_newest_state(tmp_path: Path) -> None:
    """Changes of all steps that finished, none of those that died with their worker."""
    protocol = Counting(numberOfThreads=2, workingDir=str(tmp_path / "run"))
    report = run(protocol)
    assert len(report.failed) == 12
    assert protocol.done == list(range(12))
    assert protocol.total == sum(range(12))
    assert protocol.getSteps()[-1].result == (list(range(12)), sum(range(12)))


def test_a_death_while_changes_of_self_are_packed_is_the_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are packed before the step has finished."""
    monkeypatch.setenv("MPSTEPS_TEST_PARENT", str(os.getppid()))
    protocol = Attribute(numberOfThreads=1, workingDir=str(tmp_path / "run"))
    report = run(protocol)
    assert sorted(f.step for f in report.failed) == [1]
    assert "exit code 5" in protocol.getSteps()[0].getErrorMessage()
    assert protocol.getSteps()[1].isFinished()


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


def test_a_step_that_runs_out_of_time_is_ended_also_if_deaf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM, then SIGKILL; both fail with StepTimeout, and nobody else."""
    monkeypatch.setattr("mpsteps._deadlines.TERM_SECONDS", 0.2)
    protocol = Limited(numberOfThreads=2, workingDir=str(tmp_path / "run"))
    report = run(protocol)
    assert sorted(f.step for f in report.failed) == [1, 2]
    for step in protocol.getSteps()[:2]:
        assert isinstance(step._error, StepTimeout)
        assert "timeout of 0.2 s" in step.getErrorMessage()
    assert report.finished == 10


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


def test_a_lost_step_is_tried_again_where_its_author_said_so(tmp_path: Path) -> None:
    """Each time on a new worker, and never more often than declared."""
    protocol = Stubborn(numberOfThreads=2, workingDir=str(tmp_path / "run"))
    assert run(protocol).ok
    assert protocol.getSteps()[0].result == [3]


def test_an_attribute_that_cannot_travel_costs_only_the_steps_that_use_it(tmp_path: Path) -> None:
    """It cannot be packed, cannot be loaded, or exits when it is packed: the error names it and says what to do."""
    protocol = HeldAttributes(numberOfThreads=2, workingDir=str(tmp_path / "run"))
    report = run(protocol)
    assert sorted(f.step for f in report.failed) == [1, 2, 3]
    for step, name in zip(protocol.getSteps(), ("guard", "odd", "evil")):
        message = step.getErrorMessage()
        assert f"attribute '{name}' of the protocol cannot travel" in message
        assert "make it inside the step" in message
    assert protocol.getSteps()[3].result == [5]


@pytest.mark.versions
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
