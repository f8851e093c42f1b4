"""One round of sending blocked steps into lanes, behind what they wait for: `Ahead` knows which, here is decided where.

A step whose last missing prerequisite is in a lane goes behind it. One that misses several goes to the lane that will
come to it first. That is a lane of one of those several, or else the one with the least work: no other can be sooner.
So what a step costs here does not depend on how many workers there are.
"""

from __future__ import annotations

import math
from typing import Dict, Hashable, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from mpsteps._core.ahead import Ahead
from mpsteps._core.events import Command, Dispatch
from mpsteps._core.lane import LANE_DEPTH, LANE_SECONDS, Lane
from mpsteps._core.register import Register
from mpsteps._core.slots import SlotPool
from mpsteps._core.steps import PLAIN, Cause

NEARER = 0.25
"""A prerequisite in the lane itself is worth so much of a step: more, and lanes of layers become unequal."""


class _Sent(NamedTuple):
    """What is about to be sent to one worker, as in a `Dispatch`."""

    steps: List[int]
    missing: List[Tuple[int, ...]]
    across: Dict[int, Dict[int, int]]


class SendingAhead:
    """One round. `lanes`: those that may take more; `mean`: the learned duration of each function's steps, seconds."""

    def __init__(
        self, ahead: Ahead, register: Register, slots: SlotPool, mean: Mapping[Hashable, float], lanes: Dict[int, Lane]
    ) -> None:
        self._ahead = ahead
        self._register = register
        self._slots = slots
        self._mean = mean
        self._lanes = lanes
        self._sent = {worker: _Sent([], [], {}) for worker in lanes}
        self._order: List[int] = []  # all of them, as they were sent
        self._begun: List[Tuple[int, int]] = []
        # What is added to the `end` of a step (see `Ahead`) to have it in seconds from now. Whatever is sent adds as
        # much to a lane's `expected` as to its `sent`, so that this stays.
        self._from_now = {worker: lane.expected - lane.sent for worker, lane in lanes.items()}
        self._emptiest: Optional[int] = None  # worker of the lane with the least work; None: not known

    def run(self, commands: List[Command]) -> List[Tuple[int, int]]:
        """Send what can be sent; (worker, step) of those that are the first in their lane."""
        for worker, lane in self._lanes.items():
            if lane.steps:
                self._fill_in_lane(worker)
        self._fill_across()
        self._register.move_all(self._order, Cause.SENT_AHEAD)
        for worker, sent in self._sent.items():
            if sent.steps:
                commands.append(Dispatch(worker, tuple(sent.steps), tuple(sent.missing), sent.across))
        return self._begun

    def _fill_in_lane(self, worker: int) -> None:
        """Those that miss one step only, which is in this lane."""
        ahead, lane, sent = self._ahead, self._lanes[worker], self._sent[worker]
        functions, mean, count = self._register.functions, self._mean, len(self._lanes)
        length = len(lane.steps)
        while length * 2 <= LANE_DEPTH or (sent.steps and length < LANE_DEPTH):
            taken = ahead.take(worker)
            if taken is None:
                break
            step, prerequisite = taken
            expected = mean.get(functions[step])
            if expected is None or lane.expected + expected > LANE_SECONDS:
                if expected is not None:
                    ahead.put_back(worker, taken)
                break
            self._send(step, (prerequisite,), lane, sent)
            lane.expected += expected
            lane.sent += expected
            length += 1
            ahead.sent(step, worker, count, lane.sent)
        if worker == self._emptiest:
            self._emptiest = None

    def _fill_across(self) -> None:
        """Those that miss several, each of which is in some lane."""
        ahead, lanes, mean, functions = self._ahead, self._lanes, self._mean, self._register.functions
        count = len(lanes)
        while True:
            taken = ahead.take_joint()
            if taken is None:
                return
            step, missing, places = taken
            expected = mean.get(functions[step])
            if expected is None:
                continue
            worker, start = self._soonest(places, expected)
            if not worker:
                continue
            lane, end = lanes[worker], start + expected
            if end > LANE_SECONDS or len(lane.steps) >= LANE_DEPTH:
                ahead.put_joint_back(step)
                return
            if not lane.steps:
                self._begin(worker, step, lane)
            sent = self._sent[worker]
            self._send(step, tuple(missing), lane, sent)
            elsewhere = {p: place[0] for p, place in zip(missing, places) if place[0] != worker}
            if elsewhere:
                sent.across[step] = elsewhere
            lane.sent += end - lane.expected
            lane.expected = end
            if worker == self._emptiest:
                self._emptiest = None
            if ahead.sent(step, worker, count, lane.sent):
                self._fill_in_lane(worker)

    def _begin(self, worker: int, step: int, lane: Lane) -> None:
        lane.expected = 0.0
        self._from_now[worker] = -lane.sent
        self._slots.take(-worker, PLAIN, worker)
        self._begun.append((worker, step))

    def _send(self, step: int, missing: Tuple[int, ...], lane: Lane, sent: _Sent) -> None:
        lane.steps.append(step)
        sent.steps.append(step)
        sent.missing.append(missing)
        self._order.append(step)

    def _soonest(self, places: Sequence[Tuple[int, float]], expected: float) -> Tuple[int, float]:
        """The lane that comes first to a step behind those at `places`, and when, in seconds from now; 0: none, as one
        of those lanes takes no more. Those that are in the lane itself count for it, as its worker knows of them
        without looking at others."""
        lanes, from_now = self._lanes, self._from_now
        last = but_one = -math.inf  # when the last of them ends, and the last of those that are not in `its` lane
        its = 0
        mine: Dict[int, int] = {}  # worker -> how many of them are in its lane
        for worker, lane_end in places:
            if worker not in lanes:
                return 0, 0.0
            end = lane_end + from_now[worker]
            if worker in mine:
                mine[worker] += 1
            else:
                mine[worker] = 1
            if worker == its:
                last = max(last, end)
            elif end > last:
                but_one, last, its = last, end, worker
            elif end > but_one:
                but_one = end
        least = (math.inf, 0.0, 0)
        starts = 0.0
        nearer = expected * NEARER
        for worker, count in mine.items():
            work = start = lanes[worker].expected
            behind = but_one if worker == its else last
            start = max(start, behind)
            cost = (start - count * nearer, work, worker)
            if cost < least:
                least, starts = cost, start
        if len(mine) == len(lanes):
            return least[2], starts
        other = self._emptiest or self._find_emptiest()
        if other and other not in mine:
            work = lanes[other].expected if lanes[other].steps else 0.0
            start = max(work, last)
            if (start, work, other) < least:
                return other, start
        return least[2], starts

    def _find_emptiest(self) -> int:
        """0: there is none."""
        found, least = 0, math.inf
        for worker, lane in self._lanes.items():
            if lane.steps:
                work = lane.expected
            elif self._slots.is_full(worker):
                continue  # one that is empty needs a slot
            else:
                work = 0.0
            if work < least:
                found, least = worker, work
        self._emptiest = found
        return found
