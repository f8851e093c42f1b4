"""Handing out: which ready step goes into which worker's lane, and when.

Ready steps wait in the order of their ranks (`ranks`), and of equal ones the first inserted goes first. A step goes to
the worker with the shortest lane. Behind another one it goes only when its function is known to be short: the lane's
expected work stays under `LANE_SECONDS`, its length under `LANE_DEPTH` and under an even share of what is ready, so
that nothing queues behind a long step while another worker is idle. If a step takes much longer than its like did, its
lane is `stalled`: nothing more goes there until it has ended, and what is behind it is taken back.

A step with a demand of its own (several CPUs, memory, tokens, a timeout) always has its lane to itself. One that lacks
CPU or memory slots keeps what is freed from younger steps (otherwise it would starve); one that lacks a graphics card
or a token does not.

What steps need of the memory that declare none of it is learned while they run: see `admission`.
"""

from __future__ import annotations

from typing import Deque, Dict, Hashable, Iterator, List, Optional, Sequence, Tuple

from mpsteps._core.admission import Admission
from mpsteps._core.ahead import Ahead
from mpsteps._core.events import Command, Dispatch, Running
from mpsteps._core.lane import LANE_DEPTH, LANE_SECONDS, Lane
from mpsteps._core.ranks import Ranks
from mpsteps._core.register import Register
from mpsteps._core.sending_ahead import SendingAhead
from mpsteps._core.slots import SlotPool
from mpsteps._core.steps import IN_FLIGHT, LOCAL, PLAIN, Cause, Demand, Node, Status
from mpsteps._core.waiting import Waiting
from mpsteps.errors import InternalError

LEARNING_RATE = 0.25
"""Weight of the newest duration in a function's running mean."""

_READY, _DISPATCHED, _RUNNING = int(Status.READY), int(Status.DISPATCHED), int(Status.RUNNING)
_NEVER = 1 << 62


class Lanes:
    """The lanes and the slots.

    Invariants: a step is in flight if and only if it is in exactly one lane. A lane that is not empty holds one CPU
    slot (under minus the worker's id), or its only step holds what it demands.
    """

    def __init__(self, register: Register, waiting: Waiting, slots: SlotPool, assumed: int = 0) -> None:
        self.slots = slots
        self._register = register
        self._waiting = waiting
        self._lanes: Dict[int, Lane] = {LOCAL: Lane()}
        self.ahead: Optional[Ahead] = None  # who may follow whom into a lane; None: nobody
        self.ranks: Optional[Ranks] = None  # which ready step goes first; None: the first inserted
        self.mean: Dict[Hashable, float] = {}  # function -> running mean of its duration, seconds
        self.memory = Admission(register, waiting, slots, self._lanes, self.mean, assumed)
        self._look_again = False  # at those with a demand: an ordinary step has joined them, or some let others explore
        # A step that joins the queue behind its first one changes nothing, unless it raises the even share so far that
        # a lane takes more. These words make that test cheap: it is made for every step added.
        self._stirred = True  # something else has happened since the lanes were last filled
        self._head: Optional[int] = None  # the first of the queue then
        self._enough = 0  # from this many open steps on, a lane would take more

    # -------------------------------------------------------------------- asking

    def steps(self, worker: int) -> Tuple[int, ...]:
        """The steps that `worker` was sent and has not answered."""
        lane = self._lanes.get(worker)
        return tuple(lane.steps) if lane else ()

    def items(self) -> Iterator[Tuple[int, Tuple[int, ...]]]:
        """All places where steps run, with what each was sent and has not answered."""
        return ((worker, tuple(lane.steps)) for worker, lane in self._lanes.items())

    def __contains__(self, worker: object) -> bool:
        return worker in self._lanes

    def mean_seconds(self, function: Hashable) -> Optional[float]:
        """The learned duration of a function's steps, seconds."""
        return self.mean.get(function)

    # ------------------------------------------------------------- workers and steps

    def open(self, worker: int, node: Optional[Node] = None) -> None:
        """`worker`, on that node, can take steps."""
        self._lanes[worker] = Lane()
        self.slots.join(worker, node)
        self.memory.weigh()  # where there are several nodes, this one may have less

    def close(self, worker: int, commands: List[Command]) -> Tuple[int, ...]:
        """`worker` is gone; the steps that it leaves behind, in lane order."""
        left = tuple(self._lanes[worker].steps)
        if left:
            self.leave(worker, left, commands)
        del self._lanes[worker]
        self.slots.leave(worker)
        if self.ahead is not None:
            self.ahead.gone(worker)
        return left

    def leave(self, worker: int, steps: Sequence[int], commands: List[Command]) -> None:
        """`worker` has answered for `steps` (at least one).

        InternalError, and nothing changed, if it was not sent one of them.
        """
        lane = self._lanes.get(worker)
        if lane is None:
            raise InternalError(f"no worker {worker}: {self._register.story(steps[0])}")
        queue = lane.steps
        before = len(queue)
        self._take_out(worker, queue, steps)
        if lane.stalled_by and lane.stalled_by in steps:
            lane.stalled_by = 0
        if self.ahead is not None:
            self.ahead.answered(steps)
        if worker == LOCAL or lane.alone:
            for step in steps:
                self.slots.give(step)
            lane.alone = False
        elif not queue:
            self.slots.give(-worker)
        else:
            lane.expected *= len(queue) / before
            if self.memory.heavy:  # they were sent before that was known
                self.memory.count(worker, lane)
            if self._register.statuses[queue[0]] == _DISPATCHED:
                self._begin(worker, queue[0], commands)

    def stall(self, worker: int, step: int) -> bool:
        """A step of a lane runs longer than expected; whether there is anything behind it to be taken back."""
        lane = self._lanes.get(worker)
        if lane is None or worker == LOCAL or step not in lane.steps:
            raise InternalError(f"worker {worker} runs long what it was not sent: {self._register.story(step)}")
        lane.stalled_by = step
        return len(lane.steps) > 1

    def is_crowded(self, worker: int) -> bool:
        """Whether steps wait in a lane behind its first one, and nobody has said that it stalls."""
        lane = self._lanes.get(worker)
        return lane is not None and len(lane.steps) > 1 and not lane.stalled_by

    def _take_out(self, worker: int, queue: Deque[int], steps: Sequence[int]) -> None:
        n = 0
        for step in steps:  # mostly they are the first ones
            if not queue or queue[0] != step:
                break
            queue.popleft()
            n += 1
        rest = steps[n:]
        if rest:
            if len(set(rest)) < len(rest) or not set(rest).issubset(queue):
                queue.extendleft(reversed(steps[:n]))
                wrong = next((s for s in rest if s not in queue), rest[-1])
                raise InternalError(
                    f"worker {worker} answers for what it was not sent: {self._register.story(wrong)}"
                )
            for step in rest:
                queue.remove(step)

    def learn(self, steps: Sequence[int], seconds: Sequence[float], plain: bool) -> None:
        """How long steps took, and whether they left nothing."""
        functions, mean = self._register.functions, self.mean
        first = 0
        while first < len(steps):  # mostly once: those of a lane have one function
            f = functions[steps[first]]
            end = first + 1
            while end < len(steps) and functions[steps[end]] == f:
                end += 1
            now = sum(seconds[first:end]) / (end - first)
            old = mean.get(f)
            mean[f] = new = now if old is None else now + (old - now) * (1 - LEARNING_RATE) ** (end - first)
            if old is None and self.memory.assumed:
                self.memory.count_all()
            if self.ranks is not None:
                self.ranks.learned(f, new)
            if self.ahead is not None:
                self.ahead.learn(f, end - first, plain)
            first = end

    # ------------------------------------------------------------------ handing out

    def assign(self, commands: List[Command], stirred: bool) -> None:
        """Hand out what can be. `stirred`: more has happened since the last call than that steps were added."""
        if stirred or self._waiting.first_plain() != self._head:
            self._stirred = True
        if self._waiting.has_special and self._assign_special(commands):
            return
        if self._waiting.plain and (self._stirred or self._open_steps() >= self._enough):
            self._assign_plain(commands)
            if self._look_again:
                self._assign_special(commands)
        if self.ahead is not None and stirred and self.ahead.look(self._open_steps(), len(self._lanes) - 1):
            self._assign_ahead(self.ahead, commands)

    def _begin(self, worker: int, step: int, commands: List[Command]) -> None:
        self._register.move(step, Cause.BEGAN)
        commands.append(Running(worker, step))

    def _assign_special(self, commands: List[Command]) -> bool:
        """Hand out steps with a demand of their own; True: one of them must have what is freed next."""
        while True:
            turn = self._walk_special(commands)
            if not turn.yielded or self.memory.explores():
                break  # else those that yielded can go on
        self._look_again = turn.yielded
        return turn.reserved

    def _walk_special(self, commands: List[Command]) -> _Turn:
        waiting = self._waiting
        passed: List[Tuple[int, Demand]] = []
        turn = _Turn(self.slots, self.memory)
        head = waiting.oldest_special()
        while head is not None and not turn.reserved:
            demand = self.memory.resolve(head.demand)
            worker = turn.choose(head.step, demand, self._idle_workers())
            if worker is None:
                passed.append(waiting.pass_over())
            else:
                self._send(worker, head.step, demand, commands)
                waiting.take(head.demand)
            head = waiting.oldest_special()
        waiting.look_again(passed)
        return turn

    def _idle_workers(self) -> Iterator[int]:
        return (worker for worker, lane in self._lanes.items() if worker != LOCAL and not lane.steps)

    def _send(self, worker: int, step: int, demand: Demand, commands: List[Command]) -> None:
        self._register.move(step, Cause.ASSIGNED)
        self.slots.take(step, demand, worker)
        lane = self._lanes[worker]
        lane.steps.append(step)
        lane.alone = worker != LOCAL
        commands.append(Dispatch(worker, (step,)))
        self._begin(worker, step, commands)

    def _assign_plain(self, commands: List[Command]) -> None:
        lanes = [(len(lane.steps), w, lane) for w, lane in self._lanes.items() if w != LOCAL and lane.open]
        if len(lanes) > 1:
            lanes.sort(key=_by_length)
        if self.ranks is not None and self.ranks.due(len(lanes)):
            self.ranks.work_out()
            self._waiting.reorder_plain(self.ranks.of)
        depth = self._depth(len(lanes))
        for length, worker, lane in lanes:
            if not self._waiting.plain or length * 2 > depth:
                break  # more than half full: a larger batch later is cheaper than a small one now
            if not length and self.slots.is_full(worker):
                continue
            sent = self._fill(lane, depth)
            if sent:
                commands.append(Dispatch(worker, sent))
                if not length:
                    self.slots.take(-worker, PLAIN, worker)
                    if self.memory.assumed:
                        self.memory.count(worker, lane)
                    self._begin(worker, sent[0], commands)
                if self.ahead is not None and lane.expected < LANE_SECONDS:
                    self.ahead.follow_all(worker, sent, len(lanes), lane.sent)
        self._remember_room(lanes)

    def _assign_ahead(self, ahead: Ahead, commands: List[Command]) -> None:
        """Send blocked steps behind what they wait for, as far as lanes of short steps have room."""
        lanes = {w: lane for w, lane in self._lanes.items() if w != LOCAL and lane.open}
        mean, heavy = self.mean, self.memory.heavy
        if heavy:  # their steps do not follow anybody
            mean = {function: seconds for function, seconds in mean.items() if function not in heavy}
        for worker, step in SendingAhead(ahead, self._register, self.slots, mean, lanes).run(commands):
            self._begin(worker, step, commands)

    def _open_steps(self) -> int:
        counts = self._register.counts
        return counts[_READY] + counts[_DISPATCHED] + counts[_RUNNING]

    def _depth(self, workers: int) -> int:
        """How long a lane may become: an even share of the open steps."""
        return min(-(-self._open_steps() // workers), LANE_DEPTH) if workers else 0

    def _fill(self, lane: Lane, depth: int) -> Tuple[int, ...]:
        """Move ready steps to `lane` while they are known to be short; at least one if it is empty."""
        ready, mean = self._waiting.plain, self.mean
        statuses, functions = self._register.statuses, self._register.functions
        heavy, assumed = self.memory.heavy, self.memory.assumed
        sent: List[int] = []
        length, work = len(lane.steps), lane.expected
        while ready and length < depth:
            step = ready.first()
            if statuses[step] == _READY:
                expected = mean.get(functions[step])
                if heavy and functions[step] in heavy:
                    self.memory.divert(ready.pop())
                    self._look_again = True
                    continue
                if not length:
                    if assumed and expected is None and self.memory.must_wait(step):
                        break
                    work = LANE_SECONDS if expected is None else expected  # unknown: nothing goes behind it
                elif expected is None or work + expected > LANE_SECONDS:
                    break
                else:
                    work += expected
                length += 1
                sent.append(step)
            else:
                self._waiting.withdrawn.discard(step)
            ready.pop()
        lane.sent += work - (lane.expected if lane.steps else 0.0)
        lane.expected = work
        self._register.move_all(sent, Cause.ASSIGNED)
        lane.steps.extend(sent)
        return tuple(sent)

    def _remember_room(self, lanes: Sequence[Tuple[int, int, Lane]]) -> None:
        """Work out when it will be worth while to look at the lanes again."""
        self._head = head = self._waiting.first_plain()
        self._stirred = head is None
        if head is None:
            return
        self._enough = _NEVER
        expected = self.mean.get(self._register.functions[head])
        if expected is not None:
            room = [len(lane.steps) for _, _, lane in lanes if lane.steps and lane.expected + expected <= LANE_SECONDS]
            if room and 2 * min(room) <= LANE_DEPTH:
                self._enough = (2 * min(room) - 1) * len(lanes) + 1  # then twice the shortest fits in the even share

    # -------------------------------------------------------------------- checking

    def check_invariants(self, stopping: bool) -> None:
        """Raise AssertionError if the state contradicts itself."""
        if self.ahead is not None:
            self.ahead.check_invariants({w: tuple(lane.steps) for w, lane in self._lanes.items()})
        statuses = self._register.statuses
        in_lanes = [s for lane in self._lanes.values() for s in lane.steps]
        assert len(in_lanes) == len(set(in_lanes)), "a step is in two lanes"
        assert set(in_lanes) == {s for s in range(1, len(statuses)) if statuses[s] in IN_FLIGHT}
        holders = set(self._lanes[LOCAL].steps)
        for worker, lane in self._lanes.items():
            running = [s for s in lane.steps if statuses[s] == _RUNNING]
            assert running == list(lane.steps if worker == LOCAL else list(lane.steps)[:1]), f"lane {worker}: {running}"
            assert not lane.alone or len(lane.steps) == 1, f"something is behind a step that must be alone: {worker}"
            assert not lane.stalled_by or lane.stalled_by in lane.steps, f"lane {worker} is held up by what it has not"
            if worker != LOCAL and lane.steps:
                holders.add(lane.steps[0] if lane.alone else -worker)
        assert self.slots.holders() == holders, f"slots are held by {self.slots.holders()}, not by {holders}"
        self.slots.check_invariants()
        self.memory.check_invariants()
        if not stopping and not self._is_reserved():
            ready = [s for s in self._waiting.plain if statuses[s] == _READY]
            head = min(ready, key=self._waiting.plain.place, default=None)
            assert head == self._waiting.first_plain(), f"step {head} goes first, not {self._waiting.first_plain()}"
            lanes = [lane for worker, lane in self._lanes.items() if worker != LOCAL and lane.open]
            if head is not None:
                head_function = self._register.functions[head]
                idle = any(not self.slots.is_full(worker) for worker in self._idle_workers())
                waits = head_function in self.memory.heavy or self.memory.must_wait(head)
                assert not idle or waits, f"step {head} could be handed out and is not"
                room = any(self._has_room(lane, head, len(lanes)) for lane in lanes)
                assert not room or self._stirred or self._open_steps() >= self._enough, "room would be overlooked"

    def _is_reserved(self) -> bool:
        """Whether a step with a demand of its own waits for what is freed next; that it can have nothing is checked."""
        turn = _Turn(self.slots, self.memory)
        for step, demand in self._waiting.in_order():
            worker = turn.choose(step, self.memory.resolve(demand), self._idle_workers())
            assert worker is None, f"step {step} could be handed out and is not"
            if turn.reserved:
                return True
        return False

    def _has_room(self, lane: Lane, step: int, workers: int) -> bool:
        """Whether `step` may go behind the others in a lane that is not empty."""
        expected, depth = self.mean.get(self._register.functions[step]), self._depth(workers)
        short = expected is not None and lane.expected + expected <= LANE_SECONDS
        return bool(lane.steps) and short and 2 * len(lane.steps) <= depth


class _Turn:
    """One walk over those that wait with a demand of their own. `reserved`: the last one must have what is freed next.
    `yielded`: heavy ones did not begin, since others explore."""

    def __init__(self, slots: SlotPool, memory: Admission) -> None:
        self.reserved = self.yielded = False
        self._slots = slots
        self._memory = memory
        self._explores = memory.explores()
        self._kept = False  # one that is older than those to come waits for memory only

    def choose(self, step: int, demand: Demand, idle: Iterator[int]) -> Optional[int]:
        """The worker that runs a step with this demand now; None: it waits."""
        if self._explores and demand.learned in self._memory.heavy:
            self.yielded = True
            return None
        if self._kept and demand.memory:
            return None
        worker, reserved = self._slots.choose(step, demand, idle)
        if reserved and self._memory.lets_pass(demand):
            self._kept = True
        else:
            self.reserved = reserved
        return worker


def _by_length(entry: Tuple[int, int, Lane]) -> int:
    return entry[0]
