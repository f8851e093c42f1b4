"""What a step changes around itself is not there for the next one in its worker: it is put back, or the worker is
replaced."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from fault_steps import CHANGES, REPLACED, ForksAndReturns, SetByImport, Tidy
from oracle import survive

import mpsteps
from mpsteps import _surroundings
from mpsteps._output import step_log

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /proc")
SOON = 20.0


@pytest.mark.parametrize("change", [f.__name__ for f in CHANGES])
def test_the_next_step_in_that_worker_finds_all_as_it_was(change: str, tmp_path: Path) -> None:
    """Three times, with short steps of three functions in one worker; what was printed is in each step's log."""
    protocol = Tidy(numberOfThreads=1, workingDir=str(tmp_path / "run"))
    protocol.change = change
    survive(protocol, {})
    steps = protocol.getSteps()
    pids = [steps[0].result["pid"]]
    for first, changed, again in zip(steps[0:9:3], steps[1:9:3], steps[2:9:3]):
        before, after = dict(first.result), dict(again.result)
        assert changed.result == [before.pop("pid")]
        pids.append(after.pop("pid"))
        if change in REPLACED:  # another worker writes to another file
            del before["output"], after["output"]
        assert after == before
        for step in (first, again):
            assert _log(protocol, step) == "I can speak\n"
        assert _log(protocol, changed).startswith("before\n")
        assert ("is replaced after this step" in _log(protocol, changed)) == (change in REPLACED)
    assert len(set(pids)) == (4 if change in REPLACED else 1), pids


def _log(protocol: Any, step: Any) -> str:
    with open(step_log(protocol._getLogsPath(), step.getObjId())) as f:
        return f.read()


def test_a_step_that_fails_leaves_nothing_either() -> None:
    """What a pool's step has changed before it raised."""
    with mpsteps.StepPool(1) as pool:
        before = pool.submit(os.getcwd).result(SOON)
        for _ in range(30):  # also when the function is trusted
            with pytest.raises(ZeroDivisionError):
                pool.submit(change_and_raise).result(SOON)
            assert pool.submit(os.getcwd).result(SOON) == before


def change_and_raise() -> None:
    os.chdir("/")
    raise ZeroDivisionError


def test_a_function_that_was_trusted_and_changes_something_is_looked_after() -> None:
    """From the first look that finds it, which is at most a millisecond of steps later."""
    with mpsteps.StepPool(1) as pool:
        before = pool.submit(os.getcwd).result(SOON)
        for i in range(200):
            pool.submit(changes_late, i, 100).result(SOON)
        places = [pool.submit(changes_late, i, 0) for i in range(50)]
        assert [f.result(SOON) for f in places[5:]] == [before] * 45


def changes_late(i: int, limit: int) -> str:
    place = os.getcwd()
    if i >= limit:
        os.chdir("/")
    return place


def test_steps_may_fork_and_return(tmp_path: Path) -> None:
    """A child that comes back from the step ends there, as Python would end it: it is no second worker."""
    protocol = ForksAndReturns(numberOfThreads=1, workingDir=str(tmp_path / "run"))
    survive(protocol, {})
    assert [s.result for s in protocol.getSteps()[:4]] == [[0], [3], [1], [1]]
    assert len(protocol.getSteps()) == 5, "a child has inserted a step"
    assert "in the child" in _log(protocol, protocol.getSteps()[2])
    assert "forked cannot insert steps" in _log(protocol, protocol.getSteps()[3])


def test_a_variable_that_a_module_sets_when_it_is_imported_stays(tmp_path: Path) -> None:
    """It is imported once: nothing would set the variable again."""
    (tmp_path / "sets_a_variable.py").write_text("import os\nos.environ['MPSTEPS_TEST_SET_BY_IMPORT'] = 'yes'\n")
    protocol = SetByImport(numberOfThreads=1, workingDir=str(tmp_path / "run"))
    protocol.folder = str(tmp_path)
    survive(protocol, {})
    found = [s.result for s in protocol.getSteps()[:3]]
    assert [f[0] for f in found] == ["yes"] * 3
    assert len({f[1] for f in found}) == 1


def test_a_look_at_what_is_unchanged_finds_nothing() -> None:
    """In a process of its own: pytest may have set timers in this one."""
    with mpsteps.StepPool(1) as pool:
        assert pool.submit(look).result(SOON) == [([], "")] * 3


def look() -> Any:
    here = _surroundings.Surroundings()
    return [here.put_back() for _ in range(3)]


def test_a_function_is_trusted_after_some_calls_and_never_again_after_a_change() -> None:
    """By its name or number; what is sent anew each time cannot be recognised."""
    here = _surroundings.Surroundings()
    try:
        for _ in range(_surroundings.TRIALS):
            assert "f" not in here.trusted
            here.clean("f")
        assert "f" in here.trusted
        here.suspect("f")
        for _ in range(1000):
            here.clean("f")
        assert "f" not in here.trusted, "once is enough"
        here.clean(b"a parcel")
        assert not here.trusted
    finally:
        for fd in here._spare:
            os.close(fd)
