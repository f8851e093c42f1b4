"""Replies in an order in which no step finishes before its prerequisites.

A step that was sent behind one of another lane runs as soon as that one has finished, of which its worker knows from
shared memory (`_ipc.standing`). So its reply may be here while the reply of the other is still kept back by the other
worker, to be told with more. Then it waits here, and all that its lane says after it. It need not wait long: a worker
keeps replies for 2 or 3 ms, unless a long step comes, and then its lane is relieved (`LaneStalled`). Only ends are
held: what a step tells while it runs (a change, a request) may come before the end of what it follows, which left
nothing.

What is told in one turn is one: it is written down in one frame, and nothing is sent before. So within a turn lanes are
taken one after another, as they come, also where steps of both follow each other in turns.

No two lanes wait for each other here: what a reply waits for has ended before that step began.
"""

from __future__ import annotations

from collections import deque
from typing import Callable, Deque, Dict, List, Sequence, Set, Tuple, Union

from mpsteps._ipc import wire
from mpsteps.engines.base import Happening, Message, Replies, WorkerGone


class InOrder:
    """What the lanes have said, held back where it is too early. `in_flight`: whether the scheduler takes a step for
    dispatched or running.

    `ended`: the steps that were run to their end, well or badly, of which the scheduler has not heard, since they are
    in what is kept: `_kept`, of each lane that waits, what it said, one message after another, or that its worker is
    dead.
    """

    def __init__(self, in_flight: Callable[[int], bool]) -> None:
        self._in_flight = in_flight
        self._follows: Dict[int, Sequence[int]] = {}  # step sent behind steps of other lanes -> these
        self._kept: Dict[int, Deque[Union[Replies, WorkerGone]]] = {}
        self.ended: Set[int] = set()

    def sent(self, step: int, behind: Sequence[int]) -> None:
        """`step` goes into a lane now, and `behind` are in others."""
        self._follows[step] = behind

    def sort(self, happenings: List[Happening]) -> List[Happening]:
        """What may be taken now, of these and of what was kept."""
        if not self._follows and not self._kept:
            return happenings
        free: List[Happening] = []
        lanes, self._kept = self._kept, {}
        for h in happenings:
            if isinstance(h, (Replies, WorkerGone)):
                lanes.setdefault(h.worker, deque()).append(h)
            else:
                free.append(h)
        for worker, room in self._steps_in_order(lanes).items():
            self._take(worker, lanes[worker], room, free)
        for h in free:
            for step in _told(h):
                self._follows.pop(abs(step), None)
        self.ended = {step for lane in self._kept.values() for h in lane for step in _run_to_an_end(h)}
        return free

    def _steps_in_order(self, lanes: Dict[int, Deque[Union[Replies, WorkerGone]]]) -> Dict[int, int]:
        """How many of the ends that each lane tells may be taken: as many as possible, and no step without those that
        it follows. Begins with all; where a lane has to stop, another may have to stop sooner, until none has."""
        told = {worker: [step for h in lane for step in _told(h)] for worker, lane in lanes.items()}
        ended: Set[int] = {step for steps in told.values() for step in steps}
        changed = True
        while changed:
            changed = False
            for steps in told.values():
                room = next((i for i, step in enumerate(steps) if self._too_early(step, ended)), None)
                if room is not None:
                    ended.difference_update(steps[room:])
                    del steps[room:]
                    changed = True
        return {worker: len(steps) for worker, steps in told.items()}

    def _too_early(self, step: int, ended: Set[int]) -> bool:
        for p in self._follows.get(step, ()):  # noqa: SIM110  # a generator would cost as much again, for every step
            if p not in ended and self._in_flight(p):
                return True
        return False

    def _take(self, worker: int, lane: Deque[Union[Replies, WorkerGone]], room: int, free: List[Happening]) -> None:
        """Move what tells of the first `room` ends from a lane to `free`, and keep the rest."""
        while lane:
            count = len(_told(lane[0]))
            if count > room:
                break
            free.append(lane.popleft())
            room -= count
        if lane and room and isinstance(lane[0], Replies):
            before, after = _split(lane[0].messages, room)
            free.append(Replies(worker, before))
            lane[0] = lane[0]._replace(messages=after)
        if lane:
            self._kept[worker] = lane


def _split(messages: List[Message], room: int) -> Tuple[List[Message], List[Message]]:
    """Messages that tell of the first `room` ends, and those of the rest."""
    for i, m in enumerate(messages):
        count = len(m[1]) if m[0] == -wire.FINISHED else int(m[0] > 0 or m[0] == -wire.RETURNED)
        if count > room:
            if not room:
                return messages[:i], messages[i:]
            first, rest = (m[0], *(part[:room] for part in m[1:])), (m[0], *(part[room:] for part in m[1:]))
            return [*messages[:i], first], [rest, *messages[i + 1 :]]
        room -= count
    return messages, []


def _told(h: Happening) -> List[int]:
    """The steps of whose end this tells, in order; minus those that come back, who need not wait for anybody."""
    if isinstance(h, WorkerGone):
        return [*h.done] if h.began is None else [*h.done, h.began]
    found: List[int] = []
    for m in h.messages if isinstance(h, Replies) else ():
        if m[0] > 0:
            found.append(m[0])
        elif m[0] == -wire.FINISHED:
            found.extend(m[1])
        elif m[0] == -wire.RETURNED:
            found.append(-m[1])
    return found


def _run_to_an_end(h: Happening) -> List[int]:
    """Of these, those whose function has returned or raised: neither given back nor killed."""
    return [*h.done] if isinstance(h, WorkerGone) else [step for step in _told(h) if step > 0]
