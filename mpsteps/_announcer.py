"""How the scheduler hears of a protocol's steps: each after its prerequisites, with what it demands, and runs of
ordinary ones together."""

from __future__ import annotations

from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Set, Tuple

from mpsteps._core.events import Event, StepAdded, StepRestored, StepsAdded
from mpsteps._core.graph import find_cycle, in_order
from mpsteps._core.scheduler import cycle_message
from mpsteps._demands import Demands
from mpsteps._result_of import results_taken
from mpsteps.constants import STATUS_NEW, STATUS_WAITING
from mpsteps.errors import PrerequisiteError
from mpsteps.protocol import check_prerequisites
from mpsteps.steps import Step


class Announcer:
    """Tells of steps. `timeouts` and `interactive` have what the scheduler need not know, by step id."""

    def __init__(self, demands: Demands) -> None:
        self.timeouts: Dict[int, float] = {}
        self.interactive: Set[int] = set()
        self._demands = demands

    def tell_all(self, steps: List[Step], finished: Mapping[int, Any], handle: Callable[[Event], None]) -> None:
        """Of all steps; those in `finished` did so in an earlier session."""
        order, demands = ordered(steps), self._demands
        together = order is steps  # else some prerequisites point forward
        first, function = 0, ""
        needs: List[Tuple[int, ...]] = []
        for step in order:
            number = step._id
            if (
                together and step._status == STATUS_NEW and not step._interactive and number not in finished
                and demands.is_plain(step) and not (step._prerequisites and results_taken(step._args))
            ):  # fmt: skip
                if step._funcName != function:
                    _tell_run(first, needs, function, handle)
                    first, function, needs = number, step._funcName, []
                elif not needs:
                    first = number
                needs.append(step._prerequisites)
            else:
                _tell_run(first, needs, function, handle)
                needs = []
                self.tell(step, number in finished, handle)
        _tell_run(first, needs, function, handle)

    def tell(self, step: Step, finished: bool, handle: Callable[[Event], None]) -> None:
        """Of one step; `finished`: in an earlier session."""
        added = self._added(step)
        if finished:
            handle(added._replace(held=True))  # so that nobody hands it out before the next line
            handle(StepRestored(step._id))
        else:
            handle(added)

    def _added(self, step: Step) -> StepAdded:
        options = self._demands.options(step) if not isinstance(step._func, str) else None
        demand = self._demands.of(step)
        if demand.alone:
            timeout: Optional[float] = (options or self._demands.options(step)).timeout
            if timeout is not None:
                self.timeouts[step._id] = timeout
        if step._interactive:
            self.interactive.add(step._id)
            demand = demand._replace(alone=True)  # nothing may be behind it in its lane: the run ends with it
        held = step._status == STATUS_WAITING
        takes = results_taken(step._args) if step._prerequisites else ()
        return StepAdded(step._id, step._prerequisites, held, demand, step._funcName, takes)


def _tell_run(first: int, needs: List[Tuple[int, ...]], function: str, handle: Callable[[Event], None]) -> None:
    if needs:
        handle(StepsAdded(first, needs, function))


def ordered(steps: List[Step]) -> Iterable[Step]:
    """The steps so that each comes after its prerequisites: as they are, by id, unless some point forward."""
    if not any(p > s._id for s in steps for p in s._prerequisites):
        return steps
    return [steps[i - 1] for i in in_order({s._id: s._prerequisites for s in steps})]


def check_graph(steps: List[Step]) -> None:
    """PrerequisiteError for ids that do not exist and for circles, naming the steps."""
    known = len(steps)
    forward = False
    for step in steps:
        for p in step._prerequisites:
            if p >= step._id:
                check_prerequisites(step, known)
                forward = True
    if not forward:
        return
    cycle = find_cycle({s._id: s._prerequisites for s in steps})
    if cycle:
        names = ", ".join(str(steps[i - 1]) for i in sorted(set(cycle)))
        raise PrerequisiteError(f"{cycle_message(cycle)} (steps {names})")
