"""What happened (events) and what to do (commands).

========================  ====================================================================
event                     commands that may answer it
========================  ====================================================================
StepAdded, StepsAdded     Dispatch, Closed (skipped at once: a prerequisite has failed)
PrerequisitesAdded        Closed (skipped at once), Dispatch (all of them have finished; what it kept back)
StepReleased              Dispatch
StepHeld                  Dispatch (what it kept back)
StepRestored              Dispatch
StepRested                Dispatch
WorkerReady               Dispatch
StepsFinished             Closed, Dispatch
StepFailed                Closed, Retry, Dispatch, Revoke (the run stops)
StepInteractive           Closed, Revoke
StepsReturned             Dispatch
WorkerLost                Closed, Retry, Dispatch, Revoke
LaneStalled               Revoke, Dispatch
MemoryLearned             Dispatch
StopRequested             Revoke
========================  ====================================================================

Every `Dispatch` to an empty lane is followed by `Running`; so is, first of all, every answer that leaves steps in a
lane. Releasing or holding a step that was skipped, or adding prerequisites to it, changes nothing: who does so need not
know that a prerequisite has failed.
Each `Dispatch(worker, steps)` is answered, for each of its steps, by exactly one of StepsFinished, StepFailed,
StepInteractive, StepsReturned or WorkerLost.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Hashable, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

from mpsteps._core.steps import PLAIN, Demand, Node, Status

_NOTHING: Mapping[int, Mapping[int, int]] = MappingProxyType({})


class StepAdded(NamedTuple):
    """A step exists: its 1-based id, the ids it waits for, and the key under which its duration is learned. `takes`: of
    those that it waits for, the ones whose values it needs."""

    step: int
    prerequisites: Tuple[int, ...] = ()
    held: bool = False
    demand: Demand = PLAIN
    function: Hashable = None
    takes: Tuple[int, ...] = ()


class StepsAdded(NamedTuple):
    """Many ordinary steps of one function exist: nobody holds them, they demand nothing but a turn, and take no values.

    Their ids are `first` and those that follow, and were never used; `prerequisites` has, for each, the smaller ids it
    waits for. The same as a StepAdded for each, at a third of the cost.
    """

    first: int
    prerequisites: Sequence[Tuple[int, ...]]
    function: Hashable = None


class PrerequisitesAdded(NamedTuple):
    """A step that has not been dispatched waits for more steps."""

    step: int
    prerequisites: Tuple[int, ...]


class StepReleased(NamedTuple):
    """A held step may run when its prerequisites have finished."""

    step: int


class StepHeld(NamedTuple):
    """A step that has not been dispatched is to wait until it is released."""

    step: int


class StepRestored(NamedTuple):
    """The journal of an earlier session says that this step has finished."""

    step: int


class StepRested(NamedTuple):
    """It is time for the next attempt of a step: whoever was told to `Retry` it says so, once, when he likes."""

    step: int


class WorkerReady(NamedTuple):
    """A worker can take steps. `node`: the machine that it is on, where there are several."""

    worker: int
    node: Optional[Node] = None


class StepsFinished(NamedTuple):
    """Steps of one lane finished, in lane order; `seconds` has the duration of each; `plain`: they left nothing.

    Where steps are sent across lanes, their prerequisites in other lanes may be told of later, before anything else is.
    """

    worker: int
    steps: Tuple[int, ...]
    seconds: Tuple[float, ...] = ()
    plain: bool = True


class StepFailed(NamedTuple):
    """One attempt of a step failed; `final` forbids a retry (the user stopped it, it can never travel, ...)."""

    worker: int
    step: int
    final: bool = False


class StepInteractive(NamedTuple):
    """A step finished and waits for a person."""

    worker: int
    step: int


class StepsReturned(NamedTuple):
    """A worker gives back steps of its lane that it has not begun and will not begin."""

    worker: int
    steps: Tuple[int, ...]


class WorkerLost(NamedTuple):
    """A worker is gone. `began` is the step it was running (None: it was between steps): that attempt failed; the
    other steps of its lane were never begun and go back. `final` as in StepFailed."""

    worker: int
    began: Optional[int] = None
    final: bool = False


class LaneStalled(NamedTuple):
    """A worker runs this step much longer than was expected when others were put behind it."""

    worker: int
    step: int


class MemoryLearned(NamedTuple):
    """So many bytes each step of these functions needs, as far as is known by now; nobody has declared it. `others`:
    bytes that are in use by what is not counted here: other programs, the coordinator, steps of which little is
    expected."""

    needs: Mapping[Hashable, int]
    others: int = 0


class StopRequested(NamedTuple):
    """No new step may start; those that run go on."""


Event = Union[
    StepAdded, StepsAdded, PrerequisitesAdded, StepReleased, StepHeld, StepRestored, StepRested, WorkerReady,
    StepsFinished, StepFailed, StepInteractive, StepsReturned, WorkerLost, LaneStalled, MemoryLearned, StopRequested,
]  # fmt: skip


class Dispatch(NamedTuple):
    """Send these steps, in this order, to this worker's lane (LOCAL: run it in the coordinator process).

    `ahead`: empty, or for each step its prerequisites that have not finished: they stand before it in that lane, but
    for those that `across` names, by step, with the workers in whose lanes they are. The worker runs the step if they
    have all finished (those in other lanes so that they left nothing), and gives it back otherwise.
    """

    worker: int
    steps: Tuple[int, ...]
    ahead: Tuple[Tuple[int, ...], ...] = ()
    across: Mapping[int, Mapping[int, int]] = _NOTHING


class Running(NamedTuple):
    """This step is at the head of its worker's lane: the worker begins it as soon as it looks."""

    worker: int
    step: int


class Closed(NamedTuple):
    """The fate of these steps in this run is sealed."""

    steps: Tuple[int, ...]
    status: Status
    because: Optional[int] = None


class Retry(NamedTuple):
    """An attempt of this step failed and another one will be made, after `StepRested`; `attempt` is the number of the
    one that failed."""

    step: int
    attempt: int


class Revoke(NamedTuple):
    """Ask this worker to give back what it has not begun."""

    worker: int


Command = Union[Dispatch, Running, Closed, Retry, Revoke]
