"""The scheduler: a pure state machine. Events in, commands out.

`handle(event)` is the only way to change it. It is total: an event either moves steps along edges of
`steps.TRANSITIONS` or raises InternalError with the step's story and leaves the step where it was.

How steps are handed out
    Ready steps wait in the order in which they became ready. Each worker has a lane of steps sent to it. A step goes
    to the worker with the shortest lane. Behind another one it goes only when its function is known to be short: the
    lane's expected work stays under `LANE_SECONDS`, its length under `LANE_DEPTH` and under an even share of what is
    ready, so that nothing queues behind a long step while another worker is idle. A step with a demand of its own
    (several CPUs, memory, tokens, a timeout) always has its lane to itself.
    A step that lacks CPU or memory slots keeps what is freed from younger steps (otherwise it would starve); one that
    lacks a graphics card or a token does not.
"""

from __future__ import annotations

from collections import deque
from typing import Callable, Deque, Dict, Hashable, List, Optional, Set, Tuple

from mpsteps._core.events import (
    Closed,
    Command,
    Dispatch,
    Event,
    PrerequisitesAdded,
    Retry,
    Revoke,
    Running,
    StepAdded,
    StepFailed,
    StepHeld,
    StepInteractive,
    StepReleased,
    StepRestored,
    StepsFinished,
    StepsReturned,
    StopRequested,
    WorkerLost,
    WorkerReady,
)
from mpsteps._core.graph import Graph
from mpsteps._core.slots import SlotPool
from mpsteps._core.steps import FINAL, IN_FLIGHT, LOCAL, PLAIN, TRANSITIONS, Cause, Demand, Status
from mpsteps.errors import InternalError, PrerequisiteError

LANE_SECONDS = 0.002
"""A lane is given no more work than this ahead of time."""
LANE_DEPTH = 256
"""... and no more steps than this."""
LEARNING_RATE = 0.25
"""Weight of the newest duration in a function's running mean."""
STORY_LENGTH = 4096
"""How many moves are remembered for error messages."""


class _Lane:
    """What one worker has been sent and has not answered, in the order in which it will run."""

    __slots__ = ("alone", "expected", "steps")

    def __init__(self) -> None:
        self.steps: Deque[int] = deque()
        self.expected = 0.0  # seconds of work in `steps`, by the means known when they were sent
        self.alone = False  # its only step has a demand of its own: nothing may follow


class Scheduler:
    """Decides which step runs where, and what a failure means for the others.

    `keep_going`: after a failure everything that does not depend on it still runs; otherwise no new step starts.
    """

    def __init__(self, slots: SlotPool, keep_going: bool = False) -> None:
        self.slots = slots
        self.keep_going = keep_going
        self.stopping = False
        self.counts = [0] * len(Status)  # how many steps are in each status
        self._status = bytearray(1)  # by step id
        self._function: List[Hashable] = [None]  # by step id: the key under which its duration is learned
        self._demand: Dict[int, Demand] = {}  # only of steps that are not PLAIN
        self._attempts: Dict[int, int] = {}  # failed attempts, only of steps that had any
        self._blame: Dict[int, int] = {}  # skipped step -> the failed step it depends on
        self._graph = Graph()
        self._ready: Deque[int] = deque()  # may hold steps that have left READY since: skipped when met
        self._special: Deque[int] = deque()  # ready steps that are not PLAIN, likewise
        self._lanes: Dict[int, _Lane] = {LOCAL: _Lane()}
        self._mean: Dict[Hashable, float] = {}  # function -> running mean of its duration, seconds
        self._moves: Deque[Tuple[int, Cause]] = deque(maxlen=STORY_LENGTH)

    # ------------------------------------------------------------------ asking

    def status(self, step: int) -> Status:
        """Where `step` is; UNKNOWN if it was never added."""
        return Status(self._status[step]) if 0 < step < len(self._status) else Status.UNKNOWN

    def in_flight(self) -> int:
        """How many steps are dispatched or running."""
        return self.counts[Status.DISPATCHED] + self.counts[Status.RUNNING]

    @property
    def active(self) -> bool:
        """Whether anything runs, or will run without further events from outside."""
        return self.in_flight() > 0 or (self.counts[Status.READY] > 0 and not self.stopping)

    def lane(self, worker: int) -> Tuple[int, ...]:
        """The steps that `worker` was sent and has not answered."""
        lane = self._lanes.get(worker)
        return tuple(lane.steps) if lane else ()

    def lanes(self) -> List[Tuple[int, Tuple[int, ...]]]:
        """All places where steps run, with what each was sent and has not answered."""
        return [(worker, tuple(lane.steps)) for worker, lane in self._lanes.items()]

    def knows(self, worker: int) -> bool:
        """Whether `worker` is ready and not lost."""
        return worker in self._lanes

    def attempt(self, step: int) -> int:
        """The number of the attempt that runs now or would run next, from 1."""
        return self._attempts.get(step, 0) + 1

    def blame(self, step: int) -> Optional[int]:
        """The failed step because of which `step` was skipped."""
        return self._blame.get(step)

    def mean_seconds(self, function: Hashable) -> Optional[float]:
        """The learned duration of a function's steps, seconds."""
        return self._mean.get(function)

    def story(self, step: int) -> str:
        """The remembered moves of a step, for error messages."""
        moves = [cause.name.lower() for s, cause in self._moves if s == step]
        return f"step {step} is {self.status(step).name}; its story: {' -> '.join(moves) or 'nothing remembered'}"

    # ---------------------------------------------------------------- handling

    def handle(self, event: Event) -> List[Command]:
        """Take in one event; what must be done about it, in this order."""
        commands: List[Command] = []
        try:
            handler = _HANDLERS[type(event)]
        except KeyError:
            raise InternalError(f"not an event: {event!r}") from None
        handler(self, event, commands)
        if not self.stopping:
            self._assign(commands)
        return commands

    def _move(self, step: int, cause: Cause) -> Status:
        before = self._status[step] if step < len(self._status) else 0
        after = _NEXT.get(before << 8 | cause)
        if after is None:
            raise InternalError(f"{cause.name} cannot happen now: {self.story(step)}")
        self._status[step] = after
        counts = self.counts
        counts[before] -= 1
        counts[after] += 1
        self._moves.append((step, cause))
        return after

    # ------------------------------------------------------------ the graph grows

    def _step_added(self, event: StepAdded, commands: List[Command]) -> None:
        step = event.step
        short = step + 1 - len(self._status)
        if short > 0:
            self._status.extend(bytes(short))
            self._function.extend([None] * short)
            self._graph.grow(step)
        elif step < 1 or self._status[step]:
            raise InternalError(f"step {step} is added twice: {self.story(step)}")
        if event.prerequisites:
            self._check_prerequisites(step, event.prerequisites)
        self.counts[Status.UNKNOWN] += 1  # `_move` takes it out again: only known steps are counted
        self._move(step, Cause.ADDED_HELD if event.held else Cause.ADDED)
        self._function[step] = event.function
        if event.demand is not PLAIN and event.demand != PLAIN:
            self._demand[step] = event.demand
        self._link(step, event.prerequisites, commands)
        if not event.held:
            self._unblock(step)

    def _check_prerequisites(self, step: int, prerequisites: Tuple[int, ...]) -> None:
        for p in prerequisites:
            if self.status(p) is Status.UNKNOWN or p == step:
                what = "itself" if p == step else f"step {p}, which does not exist"
                raise PrerequisiteError(f"step {step} cannot wait for {what}")

    def _link(self, step: int, prerequisites: Tuple[int, ...], commands: List[Command]) -> None:
        status = self._status
        waits = []
        for p in prerequisites:
            if status[p] == Status.FINISHED:
                continue
            if status[p] in (Status.FAILED, Status.SKIPPED):
                self._skip(step, self._blame.get(p, p), commands)
                return
            waits.append(p)
        self._graph.link(step, waits)

    def _unblock(self, step: int) -> None:
        if self._status[step] == Status.BLOCKED and self._graph.missing(step) == 0:
            self._move(step, Cause.PREREQUISITES_MET)
            (self._special if step in self._demand else self._ready).append(step)

    def _prerequisites_added(self, event: PrerequisitesAdded, commands: List[Command]) -> None:
        step = event.step
        status = self.status(step)
        if status in FINAL or status in IN_FLIGHT or status is Status.UNKNOWN:
            raise PrerequisiteError(
                f"step {step} is {status.name.lower()} already: it cannot wait for steps {list(event.prerequisites)}; "
                "insert it with wait=True and release it when all its prerequisites are known"
            )
        self._check_prerequisites(step, event.prerequisites)
        for p in event.prerequisites:
            cycle = self._graph.would_close_cycle(step, p)
            if cycle:
                raise PrerequisiteError(cycle_message(cycle))
        if status is Status.READY:
            self._move(step, Cause.PREREQUISITE_ADDED)
        self._link(step, event.prerequisites, commands)
        self._unblock(step)

    def _step_released(self, event: StepReleased, commands: List[Command]) -> None:
        self._move(event.step, Cause.RELEASED)
        self._unblock(event.step)

    def _step_held(self, event: StepHeld, commands: List[Command]) -> None:
        self._move(event.step, Cause.HELD_AGAIN)

    def _step_restored(self, event: StepRestored, commands: List[Command]) -> None:
        self._move(event.step, Cause.RESTORED)
        self._release_dependants((event.step,))

    # ------------------------------------------------------------ workers report

    def _worker_ready(self, event: WorkerReady, commands: List[Command]) -> None:
        if event.worker in self._lanes:
            raise InternalError(f"worker {event.worker} is ready twice")
        self._lanes[event.worker] = _Lane()

    def _steps_finished(self, event: StepsFinished, commands: List[Command]) -> None:
        worker, steps = event.worker, event.steps
        move = self._move
        for step in steps:
            move(step, Cause.SUCCEEDED)
        self._leave_lane(worker, steps, commands)
        if event.seconds:
            self._learn(steps, event.seconds)
        commands.append(Closed(steps, Status.FINISHED))
        self._release_dependants(steps)

    def _step_interactive(self, event: StepInteractive, commands: List[Command]) -> None:
        self._leave_lane(event.worker, (event.step,), commands)
        self._move(event.step, Cause.AWAITS_USER)
        commands.append(Closed((event.step,), Status.INTERACTIVE))
        self._stop(commands)

    def _steps_returned(self, event: StepsReturned, commands: List[Command]) -> None:
        self._leave_lane(event.worker, event.steps, commands)
        for step in reversed(event.steps):
            self._back(step, Cause.RETURNED)

    def _step_failed(self, event: StepFailed, commands: List[Command]) -> None:
        self._leave_lane(event.worker, (event.step,), commands)
        self._attempt_failed(event.step, event.final, commands)

    def _worker_lost(self, event: WorkerLost, commands: List[Command]) -> None:
        if event.worker == LOCAL or event.worker not in self._lanes:
            raise InternalError(f"worker {event.worker} is lost but was never ready")
        lane = self._lanes[event.worker]
        if event.began is not None and event.began not in lane.steps:
            raise InternalError(f"worker {event.worker} died with what it was not sent: {self.story(event.began)}")
        left = tuple(lane.steps)
        self._leave_lane(event.worker, left, commands)
        del self._lanes[event.worker]
        for step in reversed(left):
            if step == event.began:
                self._attempt_failed(step, event.final, commands)
            else:
                self._back(step, Cause.RETURNED)

    def _stop_requested(self, event: StopRequested, commands: List[Command]) -> None:
        self._stop(commands)

    # ------------------------------------------------------------------- fates

    def _attempt_failed(self, step: int, final: bool, commands: List[Command]) -> None:
        failed = self._attempts[step] = self._attempts.get(step, 0) + 1
        if not final and not self.stopping and failed <= self._demand.get(step, PLAIN).retries:
            self._back(step, Cause.RETRIED)
            commands.append(Retry(step, failed))
            return
        self._move(step, Cause.FAILED)
        commands.append(Closed((step,), Status.FAILED))
        for d in self._graph.close(step):
            self._skip(d, step, commands)
        if not self.keep_going:
            self._stop(commands)

    def _back(self, step: int, cause: Cause) -> None:
        """The step is the next to be handed out again: it has waited long enough."""
        self._move(step, cause)
        (self._special if step in self._demand else self._ready).appendleft(step)

    def _skip(self, step: int, because: int, commands: List[Command]) -> None:
        """`step` and everything downstream can never run. A worklist: chains can be 10^5 long."""
        skipped = []
        todo = [step]
        while todo:
            s = todo.pop()
            if self._status[s] not in (Status.BLOCKED, Status.HELD, Status.READY):
                continue  # skipped already through another prerequisite
            self._move(s, Cause.PREREQUISITE_FAILED)
            self._blame[s] = because
            skipped.append(s)
            todo.extend(self._graph.close(s))
        if skipped:
            commands.append(Closed(tuple(skipped), Status.SKIPPED, because))

    def _release_dependants(self, steps: Tuple[int, ...]) -> None:
        graph = self._graph
        for step in steps:
            for d in graph.close(step):
                if graph.met(d):
                    self._unblock(d)

    def _stop(self, commands: List[Command]) -> None:
        if not self.stopping:
            self.stopping = True
            commands.extend(Revoke(w) for w, lane in self._lanes.items() if w != LOCAL and len(lane.steps) > 1)

    def _learn(self, steps: Tuple[int, ...], seconds: Tuple[float, ...]) -> None:
        function, mean = self._function, self._mean
        for step, s in zip(steps, seconds):
            f = function[step]
            old = mean.get(f)
            mean[f] = s if old is None else old + (s - old) * LEARNING_RATE

    # --------------------------------------------------------------- handing out

    def _lane_of(self, worker: int, step: int) -> _Lane:
        try:
            return self._lanes[worker]
        except KeyError:
            raise InternalError(f"no worker {worker}: {self.story(step)}") from None

    def _leave_lane(self, worker: int, steps: Tuple[int, ...], commands: List[Command]) -> None:
        if not steps:
            return
        lane = self._lane_of(worker, steps[0])
        queue = lane.steps
        before = len(queue)
        for step in steps:
            if queue and queue[0] == step:
                queue.popleft()
            elif step in queue:
                queue.remove(step)
            else:
                raise InternalError(f"worker {worker} answers for what it was not sent: {self.story(step)}")
        lane.expected *= len(queue) / before
        if worker == LOCAL or lane.alone:
            for step in steps:
                self.slots.give(step)
            lane.alone = False
        elif not queue:
            self.slots.give(-worker)
        elif self._status[queue[0]] == Status.DISPATCHED:
            self._begin(worker, queue[0], commands)

    def _begin(self, worker: int, step: int, commands: List[Command]) -> None:
        self._move(step, Cause.BEGAN)
        commands.append(Running(worker, step))

    def _assign(self, commands: List[Command]) -> None:
        if self._special:
            reserved = self._assign_special(commands)
            if reserved:
                return
        if self._ready:
            self._assign_plain(commands)

    def _assign_special(self, commands: List[Command]) -> bool:
        """Hand out steps with a demand of their own; True: one of them must have what is freed next."""
        waiting: List[int] = []
        seen: Set[int] = set()
        reserve = False
        while self._special and not reserve:
            step = self._special.popleft()
            if self._status[step] != Status.READY or step in seen:
                continue
            seen.add(step)
            demand = self._demand[step]
            lack = self.slots.lacks(demand)
            worker = LOCAL if demand.local else self._idle_worker()
            if not lack and worker is not None:
                self._send(worker, step, demand, commands)
            else:
                waiting.append(step)
                reserve = lack in ("cpus", "memory") or worker is None
        self._special.extendleft(reversed(waiting))
        return reserve

    def _idle_worker(self) -> Optional[int]:
        for worker, lane in self._lanes.items():
            if worker != LOCAL and not lane.steps:
                return worker
        return None

    def _send(self, worker: int, step: int, demand: Demand, commands: List[Command]) -> None:
        self._move(step, Cause.ASSIGNED)
        self.slots.take(step, demand)
        lane = self._lanes[worker]
        lane.steps.append(step)
        if worker != LOCAL:
            lane.alone = True
            lane.expected = self._mean.get(self._function[step], 0.0)
        commands.append(Dispatch(worker, (step,)))
        self._begin(worker, step, commands)

    def _assign_plain(self, commands: List[Command]) -> None:
        lanes = [(len(lane.steps), w, lane) for w, lane in self._lanes.items() if w != LOCAL and not lane.alone]
        lanes.sort(key=_by_length)
        share = self._even_share(len(lanes))
        for length, worker, lane in lanes:
            if not self._ready:
                return
            if length * 2 > min(share, LANE_DEPTH):
                continue  # more than half full: a larger batch later is cheaper than a small one now
            if not lane.steps and self.slots.free["cpus"] < 1:
                continue
            sent = self._fill(lane, min(share, LANE_DEPTH))
            if sent:
                if length == 0:
                    self.slots.take(-worker, PLAIN)
                commands.append(Dispatch(worker, tuple(sent)))
                if length == 0:
                    self._begin(worker, sent[0], commands)

    def _even_share(self, workers: int) -> int:
        if not workers:
            return 0
        ready = self.counts[Status.READY] + self.counts[Status.DISPATCHED] + self.counts[Status.RUNNING]
        return -(-ready // workers)

    def _fill(self, lane: _Lane, depth: int) -> List[int]:
        """Move ready steps to `lane` while they are known to be short; at least one if it is empty."""
        ready, status, function, mean = self._ready, self._status, self._function, self._mean
        move = self._move
        sent: List[int] = []
        length = len(lane.steps)
        while ready and length < depth:
            step = ready[0]
            if status[step] != 3:  # Status.READY, spelt out: this line runs once a step
                ready.popleft()
                continue
            expected = mean.get(function[step])
            if length:
                if expected is None or lane.expected + expected > LANE_SECONDS:
                    break
            elif expected is None:
                expected = LANE_SECONDS  # unknown: nothing goes behind it
            ready.popleft()
            move(step, Cause.ASSIGNED)
            lane.expected = expected if not length else lane.expected + expected
            length += 1
            sent.append(step)
        lane.steps.extend(sent)
        return sent

    # ------------------------------------------------------------------- checking

    def check_invariants(self) -> None:
        """Raise AssertionError if the state contradicts itself; tests call it after every event."""
        real = [0] * len(Status)
        for step in range(1, len(self._status)):
            real[self._status[step]] += 1
        real[0] = self.counts[0]
        assert real == self.counts, f"counts {self.counts} != {real}"
        in_lanes = [s for lane in self._lanes.values() for s in lane.steps]
        assert len(in_lanes) == len(set(in_lanes)), "a step is in two lanes"
        assert set(in_lanes) == {s for s in range(1, len(self._status)) if self._status[s] in IN_FLIGHT}
        waiting = set(self._ready) | set(self._special)
        for step in range(1, len(self._status)):
            status = self._status[step]
            if status == Status.READY:
                assert step in waiting, f"step {step} is ready and nobody will hand it out"
                assert self._graph.missing(step) == 0
            elif status == Status.BLOCKED:
                assert self._graph.missing(step) > 0, f"step {step} waits for nothing"
        self.slots.check_invariants()
        busy = any(lane.steps for lane in self._lanes.values())
        if not self.stopping and not busy and len(self._lanes) > 1:
            assert not self.counts[Status.READY], "all workers idle while a step is ready"


def cycle_message(cycle: List[int]) -> str:
    """The sentence for a cycle of step ids (first == last)."""
    path = " -> ".join(str(s) for s in cycle)
    return f"prerequisites go in a circle: {path} (each waits for the next); none of these steps could ever run"


def _by_length(entry: Tuple[int, int, _Lane]) -> int:
    return entry[0]


_NEXT: Dict[int, Status] = {before << 8 | cause: after for (before, cause), after in TRANSITIONS.items()}

_HANDLERS: Dict[type, Callable[..., None]] = {
    StepAdded: Scheduler._step_added,
    PrerequisitesAdded: Scheduler._prerequisites_added,
    StepReleased: Scheduler._step_released,
    StepHeld: Scheduler._step_held,
    StepRestored: Scheduler._step_restored,
    WorkerReady: Scheduler._worker_ready,
    StepsFinished: Scheduler._steps_finished,
    StepFailed: Scheduler._step_failed,
    StepInteractive: Scheduler._step_interactive,
    StepsReturned: Scheduler._steps_returned,
    WorkerLost: Scheduler._worker_lost,
    StopRequested: Scheduler._stop_requested,
}
