"""Scipion's list of steps, read into the scheduler: again and again, since it grows and changes while it is worked off.

Steps are appended by a generator's thread, by `_stepsCheck` and by steps; waiting ones gain prerequisites and are
released. A step's id is its place in the list, from 1.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Tuple

from pyworkflow.protocol import constants as cts

from mpsteps._core.events import Event, PrerequisitesAdded, StepAdded, StepHeld, StepReleased, StepRestored
from mpsteps._core.steps import Demand

_RUNNABLE = (cts.STATUS_NEW, cts.STATUS_WAITING)


class Listing:
    """What of the list the scheduler has heard. `demand(step)`: what a step needs."""

    def __init__(self, steps: List[Any], demand: Callable[[Any], Demand]) -> None:
        self.steps = steps
        self._demand = demand
        self._known = 0
        self._open: Dict[int, Tuple[str, int]] = {}  # not begun: the status and number of prerequisites heard of

    def look(self) -> List[Event]:
        """What has changed since the last look."""
        events: List[Event] = []
        late: List[Event] = []
        first = not self._known
        for number in range(self._known + 1, len(self.steps) + 1):
            step = self.steps[number - 1]
            if not first and step.getIndex() is None:
                break  # another thread is inserting it at this very moment
            self._known = number
            self._add(number, step, events, late)
        for number, (status, count) in list(self._open.items()):
            self._compare(number, status, count, late)
        return events + late

    def begun(self, number: int) -> None:
        """A step has been given to somebody: nothing that is done to it counts any more."""
        self._open.pop(number, None)

    def waiting(self) -> bool:
        """Whether a step waits to be released, by `_stepsCheck` or whoever."""
        return any(status == cts.STATUS_WAITING for status, _ in self._open.values())

    def stuck(self) -> List[int]:
        """Steps that have not begun."""
        return list(self._open)

    def _add(self, number: int, step: Any, events: List[Event], late: List[Event]) -> None:
        status = step.getStatus()
        needs = _prerequisites(step)
        demand = self._demand(step)
        function = name_of(step)
        if status == cts.STATUS_FINISHED:  # by an earlier run
            events.append(StepAdded(number, (), True, demand, function))
            late.append(StepRestored(number))
        elif status not in _RUNNABLE:
            events.append(StepAdded(number, (), True, demand, function))  # nobody runs it; what needs it waits
        else:
            known = tuple(p for p in needs if 0 < p < number)
            held = status == cts.STATUS_WAITING or len(known) < len(needs)
            events.append(StepAdded(number, known, held, demand, function))
            self._open[number] = (status, len(step.getPrerequisites()))
            if len(known) < len(needs):
                late.append(PrerequisitesAdded(number, tuple(p for p in needs if p not in known)))
                if status == cts.STATUS_NEW:
                    late.append(StepReleased(number))

    def _compare(self, number: int, status: str, count: int, events: List[Event]) -> None:
        step = self.steps[number - 1]
        now, needs = step.getStatus(), step.getPrerequisites()
        if now == status and len(needs) == count:
            return
        if now == cts.STATUS_FINISHED:
            del self._open[number]
            events.append(StepRestored(number))
            return
        if len(needs) > count:
            fresh = _prerequisites(step, count)
            if fresh:
                events.append(PrerequisitesAdded(number, fresh))
        if now != status and {now, status} <= set(_RUNNABLE):
            events.append(StepReleased(number) if now == cts.STATUS_NEW else StepHeld(number))
        self._open[number] = (now, len(needs))


def name_of(step: Any) -> str:
    """How a step is called in messages: by its function."""
    return str(step.funcName.get()) if hasattr(step, "funcName") else type(step).__name__


def _prerequisites(step: Any, start: int = 0) -> Tuple[int, ...]:
    """As ids, each once. (Scipion keeps them as texts where a step comes from its database.)"""
    return tuple(dict.fromkeys(int(p) for p in list(step.getPrerequisites())[start:]))


def store_new(protocol: Any, steps: List[Any]) -> None:
    """Append to steps.sqlite the steps at the end of the list that are not in it, so that what becomes of them is
    recorded when it happens. Scipion writes them at its next `updateSteps`, all anew."""
    items = getattr(protocol, "_stepsSet", None)
    if items is None:
        return
    with protocol._lock:
        start = len(steps)
        while start and not steps[start - 1].hasObjId():
            start -= 1
        for step in steps[start:]:
            items.append(step)
        items.write()
        protocol._numberOfSteps.set(len(steps))
    protocol._store(protocol._numberOfSteps)
