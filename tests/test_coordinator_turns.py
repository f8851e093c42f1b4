"""In which order a turn of the coordinator tells things: a real scheduler, an engine and a work that are scripts."""

from __future__ import annotations

from collections import deque
from typing import Any, Deque, List, Tuple

import pytest

from mpsteps._coordinator import Coordinator
from mpsteps._core.events import StepsAdded
from mpsteps._core.scheduler import Scheduler
from mpsteps._core.slots import SlotPool
from mpsteps._ipc import wire
from mpsteps.engines.base import Happening, Replies, WorkerGone, WorkerUp
from mpsteps.errors import InternalError


class ScriptedEngine:
    """`wait` tells what the script has for the next turn; what is sent is written down."""

    by_value, across, elsewhere = True, False, False

    def __init__(self, said: List[Any]) -> None:
        self.turns: Deque[List[Happening]] = deque()
        self.said = said

    def wait(self, timeout: Any) -> List[Happening]:
        return self.turns.popleft()

    def send(self, worker: int, messages: List[Any]) -> None:
        self.said.append(("send", worker, tuple(m[0] for m in messages)))

    def pid(self, worker: int) -> int:
        return 1000 + worker

    def running(self, worker: int) -> Any:
        return None

    def revoke(self, worker: int) -> None:
        self.said.append(("revoke", worker))

    def kill(self, worker: int, number: int) -> None:
        self.said.append(("kill", worker))

    def wake(self) -> None:
        """Nobody sleeps."""


class ScriptedWork:
    """Writes down what it is told."""

    def __init__(self, said: List[Any]) -> None:
        self._said = said

    def __getattr__(self, name: str) -> Any:
        def told(*args: Any) -> Any:
            if name in ("running", "finished", "finished_all", "closed", "returned", "failed", "worker_gone"):
                self._said.append((name, *(a for a in args if type(a) in (int, tuple))))

        return told

    def messages(self, worker: int, steps: Tuple[int, ...]) -> List[Any]:
        return [(step, 1, "f", (), None, None) for step in steps]

    def message(self, worker: int, step: int, attempt: int, gpus: Any) -> Any:
        return (step, attempt, "f", (), None, None)

    def take_orders(self) -> List[Any]:
        return []

    def errands(self) -> List[Any]:
        return []

    def is_interactive(self, step: int) -> bool:
        return False


class Run:
    """A coordinator with so many steps, of one function; `said`: all that it has told since it was last asked."""

    def __init__(self, steps: int) -> None:
        self.said: List[Any] = []
        self.engine = ScriptedEngine(self.said)
        self.coordinator = Coordinator(
            Scheduler(SlotPool(2), False, True), self.engine, ScriptedWork(self.said)  # type: ignore[arg-type]
        )
        self.coordinator.handle(StepsAdded(1, [()] * steps, "f"))

    def turn(self, *happenings: Happening) -> List[Any]:
        self.engine.turns.append(list(happenings))
        self.said.clear()
        self.coordinator.turn()
        self.coordinator.settle()
        return list(self.said)


def finished(worker: int, *steps: int) -> Replies:
    return Replies(worker, [(-wire.FINISHED, list(steps), [1e-4] * len(steps), [0.0] * len(steps))])


def test_all_workers_are_heard_before_more_is_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lanes are looked at once in a turn, not once for each worker."""
    run = Run(20)
    assert run.turn(WorkerUp(1, 1001), WorkerUp(2, 1002))[-2:] == [("send", 1, (1,)), ("send", 2, (2,))]
    lanes = run.coordinator.scheduler._lanes
    assign, looked = lanes.assign, []
    monkeypatch.setattr(lanes, "assign", lambda *args: (looked.append(1), assign(*args)))
    said = run.turn(finished(1, 1), finished(2, 2))
    assert len(looked) == 1
    assert said[:4] == [
        ("finished_all", 1, 1001, (1,)), ("finished_all", 2, 1002, (2,)), ("closed", (1,)), ("closed", (2,)),
    ]  # fmt: skip
    assert [s[:2] for s in said if s[0] == "send"] == [("send", 1), ("send", 2)]


def test_a_lane_that_speaks_twice_is_heard_in_between() -> None:
    """Else the step that is its first one now would be said to begin when it has ended, or is back."""
    run = Run(40)
    run.turn(WorkerUp(1, 1001))
    run.turn(finished(1, 1))
    lane = run.coordinator.scheduler.lane(1)
    assert len(lane) > 5
    first, second, third = lane[:3]
    said = run.turn(finished(1, first), Replies(1, [(-wire.RETURNED, second)]), finished(1, third))
    order = [s for s in said if s[0] in ("running", "finished_all", "returned")]
    assert order[:5] == [
        ("finished_all", 1, 1001, (first,)), ("running", second), ("returned", (second,)), ("running", third),
        ("finished_all", 1, 1001, (third,)),
    ]  # fmt: skip


def test_a_death_comes_after_what_the_dead_had_finished() -> None:
    """In the same turn: what its last words have earned it goes back."""
    run = Run(40)
    run.turn(WorkerUp(1, 1001))
    run.turn(finished(1, 1))
    first, second, *rest = run.coordinator.scheduler.lane(1)
    gone = WorkerGone(1, 1001, -9, (), second, 0, "")
    said = run.turn(finished(1, first), gone)
    names = [s[0] for s in said]
    assert names.index("closed") < names.index("failed") < names.index("worker_gone")
    assert "send" not in names
    assert ("returned", tuple(rest)) in said
    run.coordinator.scheduler.check_invariants()


def test_a_step_that_has_ended_just_in_time_does_not_go_back_with_its_worker() -> None:
    """The signal is on its way to the worker, which is given up; the step that it was for has finished."""
    run = Run(20)
    run.turn(WorkerUp(1, 1001))
    run.coordinator._condemned[1] = wire.Failure("timeout", "StepTimeout", "too late")
    said = run.turn(finished(1, 1))
    assert [s for s in said if s[0] in ("kill", "closed")] == [("closed", (1,)), ("kill", 1)]
    assert not [s for s in said if s[0] == "returned" and 1 in s[1]]
    assert not [s for s in said if s[0] == "send"]


def test_what_a_step_asks_is_answered_when_all_that_has_finished_is_known() -> None:
    """It may be about a step that another worker has finished in the same turn."""
    run = Run(20)
    run.turn(WorkerUp(1, 1001), WorkerUp(2, 1002))
    work: Any = run.coordinator.work
    work.answer = lambda *args: run.said.append(("answer", args[1])) or b"x"
    said = run.turn(finished(1, 1), Replies(2, [(-wire.REQUEST, 2, "step", b"")]))
    assert [s[0] for s in said if s[0] in ("finished_all", "closed", "answer")] == ["finished_all", "closed", "answer"]


def test_a_new_scheduler_takes_over_only_where_nothing_is_open() -> None:
    """Else there would be replies for steps that it does not know."""
    run = Run(20)
    run.turn(WorkerUp(1, 1001))
    with pytest.raises(InternalError):
        run.coordinator.renew(Scheduler(SlotPool(2), False, True))
