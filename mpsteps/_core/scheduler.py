"""The scheduler: a pure state machine. Events in, commands out.

`handle(event)`, and for several at once `handle_finished(events)`, are the only ways to change it. They are total: an
event either moves steps along edges of `steps.TRANSITIONS` or raises InternalError with the step's story, and then it
has changed nothing: every handler checks before it acts. What a step may do is told by `register`, which is next by
`waiting`, where it is sent by `lanes`; here is what an event means for the other steps.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Hashable, List, Mapping, Optional, Sequence, Set, Tuple

from mpsteps._core.ahead import Ahead
from mpsteps._core.events import (
    Closed,
    Command,
    Event,
    LaneStalled,
    MemoryLearned,
    PrerequisitesAdded,
    Retry,
    Revoke,
    StepAdded,
    StepFailed,
    StepHeld,
    StepInteractive,
    StepReleased,
    StepRested,
    StepRestored,
    StepsAdded,
    StepsFinished,
    StepsReturned,
    StopRequested,
    WorkerLost,
    WorkerReady,
)
from mpsteps._core.graph import Graph
from mpsteps._core.lanes import Lanes
from mpsteps._core.ranks import Ranks
from mpsteps._core.register import Register
from mpsteps._core.slots import SlotPool
from mpsteps._core.steps import FINAL, IN_FLIGHT, LOCAL, PLAIN, Cause, Demand, Node, Status
from mpsteps._core.waiting import Waiting
from mpsteps.errors import InternalError, PrerequisiteError, UsageError

_BLOCKED, _READY, _FINISHED = int(Status.BLOCKED), int(Status.READY), int(Status.FINISHED)
_RESTING = int(Status.RESTING)
_LOST_CAUSE = (int(Status.FAILED), int(Status.SKIPPED))
_IN_LANE = (int(Status.DISPATCHED), int(Status.RUNNING))
_CAN_BE_SKIPPED = (int(Status.BLOCKED), int(Status.HELD))


class Scheduler:
    """Decides which step runs where, and what a failure means for the others.

    `keep_going`: after a failure everything that does not depend on it still runs; otherwise no new step starts.
    `ahead`: short steps may follow their prerequisites into the same lane; `across`: also into other lanes, if those
    leave nothing. `ranked`: the ready step with the longest remaining path goes first; otherwise, the one that was
    inserted first. `seconds`: what is known of the durations of functions already. `assumed`: bytes of memory that
    count for each step of which nothing is known.
    """

    def __init__(
        self, slots: SlotPool, keep_going: bool = False, ahead: bool = False, ranked: bool = True,
        seconds: Optional[Mapping[Any, float]] = None, across: bool = False, assumed: int = 0,
    ) -> None:  # fmt: skip
        self.slots = slots
        self.keep_going = keep_going
        self.stopping = False
        self._register = Register()
        self._graph = Graph()
        self._waiting = Waiting(self._register)
        self._lanes = Lanes(self._register, self._waiting, slots, assumed)
        for function, known in (seconds or {}).items():
            self._lanes.mean[function] = known
        if ahead:
            self._lanes.ahead = Ahead(self._register, self._graph, across)
        if ranked:
            self._lanes.ranks = Ranks(self._register, self._graph, self._lanes.mean)
        self._doomed: Dict[int, int] = {}  # step in a lane, sent ahead -> the failed step it depends on
        self._attempts: Dict[int, int] = {}  # failed attempts, only of steps that had any
        self._blame: Dict[int, int] = {}  # skipped step -> the failed step it depends on

    # ------------------------------------------------------------------ asking

    @property
    def counts(self) -> List[int]:
        """How many steps are in each status, by status."""
        return self._register.counts

    def status(self, step: int) -> Status:
        """Where `step` is; UNKNOWN if it was never added."""
        return self._register.status(step)

    def has_finished(self, step: int) -> bool:
        """Whether a step, which was added, is FINISHED; quicker than to ask for its `status`."""
        return self._register.statuses[step] == _FINISHED

    def is_in_flight(self, step: int) -> bool:
        """Whether a step, which was added, is dispatched or running; quicker than to ask for its `status`."""
        return self._register.statuses[step] in _IN_LANE

    def story(self, step: int) -> str:
        """The remembered moves of a step, for error messages."""
        return self._register.story(step)

    def in_flight(self) -> int:
        """How many steps are dispatched or running."""
        return self.counts[Status.DISPATCHED] + self.counts[Status.RUNNING]

    @property
    def open_steps(self) -> int:
        """How many steps are ready, dispatched or running."""
        return self.counts[_READY] + self.in_flight()

    @property
    def active(self) -> bool:
        """Whether anything runs, or will run without further events from outside (but for the time that passes)."""
        waiting = self.counts[_READY] + self.counts[_RESTING]
        return self.in_flight() > 0 or (waiting > 0 and not self.stopping)

    def lane(self, worker: int) -> Tuple[int, ...]:
        """The steps that `worker` was sent and has not answered."""
        return self._lanes.steps(worker)

    def lanes(self) -> List[Tuple[int, Tuple[int, ...]]]:
        """All places where steps run, with what each was sent and has not answered."""
        return list(self._lanes.items())

    def knows(self, worker: int) -> bool:
        """Whether `worker` is ready and not lost."""
        return worker in self._lanes

    def node_of(self, worker: int) -> Optional[Node]:
        """The machine that a worker is on, where there are several."""
        return self.slots.node_of(worker)

    def is_crowded(self, worker: int) -> bool:
        """Whether steps wait behind the one that `worker` runs, and may still be taken back should it stall."""
        return not self.stopping and self._lanes.is_crowded(worker)

    def attempt(self, step: int) -> int:
        """The number of the attempt that runs now or would run next, from 1."""
        return self._attempts.get(step, 0) + 1

    def memory_of(self, step: int) -> int:
        """Bytes that a step may use, as far as somebody has said; 0: nobody has."""
        demand = self._register.demands.get(step)
        return 0 if demand is None else demand.memory

    def demand(self, step: int) -> Demand:
        """What a step holds while it runs, but for what is learned."""
        return self._register.demands.get(step, PLAIN)

    def watches_memory(self, step: int) -> bool:
        """Whether it matters how much memory a step that runs uses, since nobody has declared it, and it is not known
        yet, or known to be much."""
        return self._lanes.memory.watches(step)

    def function(self, step: int) -> Hashable:
        """The key under which durations and memory of its like are learned."""
        return self._register.functions[step]

    def blame(self, step: int) -> Optional[int]:
        """The failed step because of which `step` was skipped."""
        return self._blame.get(step)

    def to_be_blamed(self) -> Set[int]:
        """Failed steps because of which others will yet be skipped: those that were sent ahead and are to come back."""
        return set(self._doomed.values())

    def mean_seconds(self, function: Hashable) -> Optional[float]:
        """The learned duration of a function's steps, seconds."""
        return self._lanes.mean_seconds(function)

    # ---------------------------------------------------------------- handling

    def handle(self, event: Event) -> List[Command]:
        """Take in one event; what must be done about it, in this order."""
        commands: List[Command] = []
        kind = type(event)
        handler = _HANDLERS.get(kind)
        if handler is None:
            raise InternalError(f"not an event: {event!r}")
        handler(self, event, commands)
        self._hand_out(commands, kind is not StepAdded and kind is not StepsAdded)
        return commands

    def handle_finished(self, events: Sequence[StepsFinished]) -> List[Command]:
        """Take in what several workers have finished, one event of each, and hand out more when all of them have been
        heard: to look at all lanes once for each of them would cost their square."""
        commands: List[Command] = []
        for event in events:
            self._steps_finished(event, commands)
        self._hand_out(commands, True)
        return commands

    def _hand_out(self, commands: List[Command], stirred: bool) -> None:
        if not self.stopping:
            self._lanes.assign(commands, stirred)

    # ------------------------------------------------------------ the graph grows

    def _step_added(self, event: StepAdded, commands: List[Command]) -> None:
        step = event.step
        if step < 1 or (step < len(self._register.statuses) and self._register.statuses[step]):
            raise InternalError(f"step {step} is added twice: {self.story(step)}")
        if event.prerequisites:
            self._check_prerequisites(step, event.prerequisites)
        self._register.add(step, event.held, event.function, event.demand)
        self._graph.grow(step)
        ahead = self._lanes.ahead
        if event.takes and ahead is not None:
            ahead.takes(step, event.takes)
        if event.prerequisites:
            self._link(step, event.prerequisites, commands)
        if event.takes and ahead is not None and not self._graph.missing[step]:
            ahead.released((step,))
        self._unblock(step)

    def _steps_added(self, event: StepsAdded, commands: List[Command]) -> None:
        first, prerequisites = event.first, event.prerequisites
        statuses, missing = self._register.statuses, self._graph.missing
        if first != len(statuses) or not prerequisites:
            raise InternalError(f"{len(prerequisites)} steps are added from {first}: the next id is {len(statuses)}")
        self._check_all_prerequisites(first, prerequisites)
        steps = self._register.add_all(first, len(prerequisites), event.function)
        self._graph.grow(steps[-1])
        ready: List[int] = []
        for step, needs in zip(steps, prerequisites):
            if needs:
                self._link(step, needs, commands)
                if missing[step] or statuses[step] != _BLOCKED:
                    continue
            ready.append(step)
        self._register.move_all(ready, Cause.PREREQUISITES_MET)
        self._waiting.plain.extend(ready)

    def _check_all_prerequisites(self, first: int, prerequisites: Sequence[Tuple[int, ...]]) -> None:
        """Those of new steps: each of them must exist, or be new and have a smaller id."""
        statuses = self._register.statuses
        for step, needs in enumerate(prerequisites, first):
            for p in needs:
                if not 0 < p < step or (p < first and not statuses[p]):
                    self._check_prerequisites(step, needs)
                    raise PrerequisiteError(f"step {step} cannot wait for step {p}, which comes after it")

    def _check_prerequisites(self, step: int, prerequisites: Tuple[int, ...]) -> None:
        statuses = self._register.statuses
        for p in prerequisites:
            if p == step or not 0 < p < len(statuses) or not statuses[p]:
                what = "itself" if p == step else f"step {p}, which does not exist"
                raise PrerequisiteError(f"step {step} cannot wait for {what}")

    def _link(self, step: int, prerequisites: Tuple[int, ...], commands: List[Command]) -> None:
        statuses = self._register.statuses
        waits = []
        for p in prerequisites:
            if statuses[p] in _LOST_CAUSE:
                self._skip((step,), self._blame.get(p, p), commands)
                return
            if statuses[p] != _FINISHED:
                waits.append(p)
        self._graph.link(step, waits)
        if self._lanes.ahead is not None:
            self._lanes.ahead.linked(step, waits)

    def _unblock(self, step: int) -> None:
        if self._register.statuses[step] == _BLOCKED and not self._graph.missing[step]:
            self._register.move(step, Cause.PREREQUISITES_MET)
            self._waiting.join(step)

    def _prerequisites_added(self, event: PrerequisitesAdded, commands: List[Command]) -> None:
        step, status = event.step, self.status(event.step)
        self._check_prerequisites(step, event.prerequisites)
        if status is Status.SKIPPED:
            return  # one of its prerequisites has failed: more of them change nothing
        if status in FINAL or status in IN_FLIGHT or status in (Status.UNKNOWN, Status.RESTING):
            raise PrerequisiteError(
                f"step {step} is {status.name.lower()} already: it cannot wait for steps {list(event.prerequisites)}; "
                "insert it with wait=True and release it when all its prerequisites are known"
            )
        waits = [p for p in event.prerequisites if self.status(p) not in FINAL]  # only those can be in a circle with it
        cycle = self._graph.find_cycle_through(step, waits)
        if cycle:
            raise PrerequisiteError(cycle_message(cycle))
        if status is Status.READY:
            self._move_from_ready(step, Cause.PREREQUISITE_ADDED)
        self._link(step, event.prerequisites, commands)
        self._unblock(step)

    def _step_released(self, event: StepReleased, commands: List[Command]) -> None:
        self._register.move(event.step, Cause.RELEASED)
        self._unblock(event.step)

    def _step_held(self, event: StepHeld, commands: List[Command]) -> None:
        status = self.status(event.step)
        if status in IN_FLIGHT or status is Status.RESTING:
            where = "being tried" if status is Status.RESTING else "on its way to a worker"
            raise UsageError(f"step {event.step} is {where} already: it cannot be made to wait")
        self._move_from_ready(event.step, Cause.HELD_AGAIN)

    def _step_restored(self, event: StepRestored, commands: List[Command]) -> None:
        self._move_from_ready(event.step, Cause.RESTORED)
        self._release_dependants((event.step,))

    def _step_rested(self, event: StepRested, commands: List[Command]) -> None:
        self._back(event.step, Cause.RESTED)

    def _move_from_ready(self, step: int, cause: Cause) -> None:
        """Move a step that may be waiting for a worker, but is not to be run."""
        was_ready = self.status(step) is Status.READY
        self._register.move(step, cause)
        if was_ready:
            self._waiting.withdraw(step)
            self.slots.forget(step)

    # ------------------------------------------------------------ workers report

    def _worker_ready(self, event: WorkerReady, commands: List[Command]) -> None:
        if event.worker in self._lanes or event.worker < 1:
            raise InternalError(f"worker {event.worker} is ready twice, or is not a worker")
        self._lanes.open(event.worker, event.node)

    def _steps_finished(self, event: StepsFinished, commands: List[Command]) -> None:
        steps, seconds = event.steps, event.seconds
        if not steps or (seconds and len(seconds) != len(steps)):
            raise InternalError(f"worker {event.worker} says that {len(steps)} steps took {len(seconds)} times")
        self._lanes.leave(event.worker, steps, commands)
        self._register.move_all(steps, Cause.SUCCEEDED)
        if seconds:
            self._lanes.learn(steps, seconds, event.plain)
        for step in steps if self._doomed else ():  # it ran all the same: its worker did not know of the failure
            self._doomed.pop(step, None)
        commands.append(Closed(steps, Status.FINISHED))
        self._release_dependants(steps)

    def _step_interactive(self, event: StepInteractive, commands: List[Command]) -> None:
        self._lanes.leave(event.worker, (event.step,), commands)
        self._register.move(event.step, Cause.AWAITS_USER)
        commands.append(Closed((event.step,), Status.INTERACTIVE))
        self._stop(commands)

    def _steps_returned(self, event: StepsReturned, commands: List[Command]) -> None:
        if not event.steps:
            raise InternalError(f"worker {event.worker} gives back no steps")
        self._lanes.leave(event.worker, event.steps, commands)
        for step in reversed(event.steps):
            self._give_back(step, commands)

    def _step_failed(self, event: StepFailed, commands: List[Command]) -> None:
        self._lanes.leave(event.worker, (event.step,), commands)
        self._attempt_failed(event.step, event.final, commands)

    def _worker_lost(self, event: WorkerLost, commands: List[Command]) -> None:
        worker, began = event.worker, event.began
        if worker == LOCAL or worker not in self._lanes:
            raise InternalError(f"worker {worker} is lost but was never ready")
        if began is not None and began not in self._lanes.steps(worker):
            raise InternalError(f"worker {worker} died with what it was not sent: {self.story(began)}")
        for step in reversed(self._lanes.close(worker, commands)):
            if step == began:
                self._attempt_failed(step, event.final, commands)
            else:
                self._give_back(step, commands)

    def _lane_stalled(self, event: LaneStalled, commands: List[Command]) -> None:
        if self._lanes.stall(event.worker, event.step) and not self.stopping:
            commands.append(Revoke(event.worker))

    def _memory_learned(self, event: MemoryLearned, commands: List[Command]) -> None:
        self._lanes.memory.learn(event.needs, event.others)

    def _stop_requested(self, event: StopRequested, commands: List[Command]) -> None:
        self._stop(commands)

    # ------------------------------------------------------------------- fates

    def _attempt_failed(self, step: int, final: bool, commands: List[Command]) -> None:
        failed = self._attempts[step] = self._attempts.get(step, 0) + 1
        if not final and not self.stopping and failed <= self._register.demands.get(step, PLAIN).retries:
            self._register.move(step, Cause.RETRIED)
            commands.append(Retry(step, failed))
            return
        self._doomed.pop(step, None)
        self._register.move(step, Cause.FAILED)
        commands.append(Closed((step,), Status.FAILED))
        self._skip(self._graph.close(step), step, commands)
        if not self.keep_going:
            self._stop(commands)

    def _give_back(self, step: int, commands: List[Command]) -> None:
        """A step was sent and not begun. One that was sent ahead waits for its prerequisites again, or for ever."""
        if not self._graph.missing[step]:
            self._back(step, Cause.RETURNED)
            return
        self._register.move(step, Cause.RETURNED_EARLY)
        because = self._doomed.pop(step, None)
        if because is not None:
            self._skip((step,), because, commands)

    def _back(self, step: int, cause: Cause) -> None:
        self._register.move(step, cause)
        self._waiting.rejoin(step)

    def _skip(self, steps: Sequence[int], because: int, commands: List[Command]) -> None:
        """`steps` and everything downstream can never run. A worklist: chains can be 10^5 long."""
        statuses = self._register.statuses
        skipped = []
        todo = list(steps)
        for s in todo:  # grows while it is walked
            if statuses[s] in _CAN_BE_SKIPPED:  # otherwise: skipped already through another prerequisite, or restored
                self._register.move(s, Cause.PREREQUISITE_FAILED)
                self._blame[s] = because
                skipped.append(s)
                todo.extend(self._graph.close(s))
            elif statuses[s] in _IN_LANE and self._graph.missing[s]:
                self._doomed[s] = because  # sent ahead: its worker is about to give it back
        if skipped:
            commands.append(Closed(tuple(skipped), Status.SKIPPED, because))

    def _release_dependants(self, steps: Sequence[int]) -> None:
        free = self._graph.finish(steps)
        if self._lanes.ahead is not None:
            self._lanes.ahead.released(free)
        for step in free:
            self._unblock(step)

    def _stop(self, commands: List[Command]) -> None:
        """No new step starts. Also the first step of a lane may not have begun: every lane is asked."""
        if not self.stopping:
            self.stopping = True
            commands.extend(Revoke(worker) for worker, steps in self._lanes.items() if worker != LOCAL and steps)

    # ------------------------------------------------------------------- checking

    def check_invariants(self) -> None:
        """Raise AssertionError if the state contradicts itself; tests call it after every event."""
        self._register.check_invariants()
        self._waiting.check_invariants()
        self._lanes.check_invariants(self.stopping)
        statuses, missing = self._register.statuses, self._graph.missing
        for step in range(1, len(statuses)):
            status = statuses[step]
            if status == _READY:
                assert missing[step] == 0, f"step {step} is ready before its prerequisites"
            elif status == _BLOCKED:
                assert missing[step] > 0, f"step {step} waits for nothing"
            assert (status == Status.SKIPPED) == (step in self._blame), f"step {step}: blamed for its own skipping"
        assert all(statuses[s] in _IN_LANE for s in self._doomed), f"doomed: {self._doomed}"
        for step, failed in self._attempts.items():
            retries = self._register.demands.get(step, PLAIN).retries
            assert failed <= retries + 1, f"step {step} had {failed} attempts, {retries} retries"
            assert failed <= retries or statuses[step] == Status.FAILED, f"step {step} is tried too often"
        resting = [s for s in range(1, len(statuses)) if statuses[s] == _RESTING]
        assert all(self._attempts.get(s) and not missing[s] for s in resting), f"resting: {resting}"
        busy = any(steps for _, steps in self._lanes.items())
        if not self.stopping and not busy and len(self.lanes()) > 1:
            demands = self._register.demands
            ready = [s for s in range(1, len(statuses)) if statuses[s] == _READY]
            possible = [s for s in ready if self.slots.has_place_for(demands.get(s, PLAIN))]
            assert not possible, f"all workers idle while steps {possible} are ready"


def cycle_message(cycle: List[int]) -> str:
    """The sentence for a cycle of step ids (first == last)."""
    path = " -> ".join(str(s) for s in cycle)
    return f"prerequisites go in a circle: {path} (each waits for the next); none of these steps could ever run"


_HANDLERS: Dict[type, Callable[..., None]] = {
    StepAdded: Scheduler._step_added,
    StepsAdded: Scheduler._steps_added,
    PrerequisitesAdded: Scheduler._prerequisites_added,
    StepReleased: Scheduler._step_released,
    StepHeld: Scheduler._step_held,
    StepRestored: Scheduler._step_restored,
    StepRested: Scheduler._step_rested,
    WorkerReady: Scheduler._worker_ready,
    StepsFinished: Scheduler._steps_finished,
    StepFailed: Scheduler._step_failed,
    StepInteractive: Scheduler._step_interactive,
    StepsReturned: Scheduler._steps_returned,
    WorkerLost: Scheduler._worker_lost,
    LaneStalled: Scheduler._lane_stalled,
    MemoryLearned: Scheduler._memory_learned,
    StopRequested: Scheduler._stop_requested,
}
