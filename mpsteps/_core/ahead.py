"""Which steps may be sent before their prerequisites have finished: right behind them.

Short steps that depend on each other cost a round trip each, if every step waits until the coordinator has heard of
those before it. So a blocked step may be sent as soon as all that it still misses is in lanes of short steps. The
message names what it follows; the worker runs the step if it knows that this has finished, and gives it back otherwise.
Then the scheduler blocks it again, or skips it.

*In one lane.* A step that misses one only goes right behind it. Of the steps that one step enables, its lane takes an
even share: the others become ready when it finishes, and go wherever there is room.

*Across lanes.* A step that misses several goes to the lane that will come to it first, and its worker waits for the
other lanes: their workers tell how far they have come in memory that all see. They tell no more than that. So only
those are followed so whose function's steps leave nothing (no change of `self`), and only by steps that do not take
their values: what a step leaves, its dependants must hear of from the coordinator.
"""

from __future__ import annotations

from collections import deque
from typing import Deque, Dict, Hashable, List, Optional, Sequence, Set, Tuple

from mpsteps._core.graph import Graph
from mpsteps._core.register import Register
from mpsteps._core.steps import FINAL, Status

MOST_FOLLOWED = 8
"""A step that misses more than this is not sent across lanes: to wait for so many lanes is not worth it."""
BROAD = 8
"""With more steps a lane that miss nothing, no more are sent across lanes: there is enough to do until the coordinator
has heard of those that are missing, and then their dependants cost it half as much."""
WARY_STEPS = 64
"""After a step that left something, its function is not followed across lanes until so many have left nothing."""

_BLOCKED = int(Status.BLOCKED)


class Ahead:
    """Which blocked steps could be sent ahead, and where. `across`: workers see how far the others have come.

    Invariants: `_followed` has, of the short steps in lanes, the worker and the `end` of each. `_covered` has steps
    that were blocked and missed several when one of these was sent, with those that were; some of them may have left
    their lanes again.
    """

    def __init__(self, register: Register, graph: Graph, across: bool = False) -> None:
        self._register = register
        self._graph = graph
        self._across = across
        self._followed: Dict[int, Tuple[int, float]] = {}
        # worker -> (step, its missing prerequisite) that may be sent ahead to it; looked at again before it is sent
        self._next: Dict[int, Deque[Tuple[int, int]]] = {}
        self._covered: Dict[int, List[int]] = {}
        self._joint: Deque[int] = deque()  # of these, those that miss nothing else; looked at again before one is sent
        self._wary: Dict[Hashable, int] = {}  # function -> so many of its steps must still leave nothing
        self._takes: Dict[int, Sequence[int]] = {}  # step -> those whose values it needs
        self._early: Set[int] = set()  # in lanes, and still missing something
        self._broad = False

    def follow_all(self, worker: int, steps: Sequence[int], lanes: int, end: float) -> None:
        """Short steps were sent to `worker`, one of `lanes` lanes: look whom they enable. `end`: seconds of work that
        its lane has ever been sent, these steps included."""
        self._followed.update(dict.fromkeys(steps, (worker, end)))
        for p in self._graph.with_dependants(steps):
            self.follow(worker, p, lanes, end)

    def follow(self, worker: int, p: int, lanes: int, end: float) -> None:
        """`follow_all` for one step."""
        self._followed[p] = (worker, end)
        dependants = self._graph.dependants(p)
        if not dependants:
            return
        missing = self._graph.missing
        plain = self._across and not self._broad and self._register.functions[p] not in self._wary
        enabled: List[Tuple[int, int]] = []
        for d in dependants:
            count = missing[d]
            if count == 1:
                enabled.append((d, p))
            elif plain and count <= MOST_FOLLOWED:
                self._cover(d, p, count)
        if enabled:
            share = -(-len(enabled) // lanes)
            self._next.setdefault(worker, deque()).extend(enabled[:share])

    def takes(self, step: int, of: Sequence[int]) -> None:
        """`step`, which is new, needs the values of these."""
        if self._across:
            self._takes[step] = of

    def linked(self, step: int, prerequisites: Sequence[int]) -> None:
        """`step` waits for these from now on; what it misses may be in lanes already."""
        count = self._graph.missing[step]
        if count == 1 and len(prerequisites) == 1:
            followed = self._followed.get(prerequisites[0])
            if followed is not None:
                self._next.setdefault(followed[0], deque()).append((step, prerequisites[0]))
        elif self._across and not self._broad and 1 < count <= MOST_FOLLOWED:
            functions = self._register.functions
            for p in prerequisites:
                if p in self._followed and functions[p] not in self._wary:
                    self._cover(step, p, count)

    def _cover(self, step: int, p: int, count: int) -> None:
        """Of the `count` that `step` misses, `p` is in a lane now."""
        if self._takes and p in self._takes.get(step, ()):
            return  # it has to wait for the value, and so do the others that it misses
        covered = self._covered.get(step)
        if covered is None:
            self._covered[step] = [p]  # and `count` is more than 1
            return
        if p not in covered:
            covered.append(p)
        if len(covered) > count:
            covered[:] = [q for q in covered if q in self._followed]
        if len(covered) == count:
            self._joint.append(step)

    def answered(self, steps: Sequence[int]) -> None:
        """These have left their lane, for whatever reason."""
        followed = self._followed
        for p in steps:
            followed.pop(p, None)
        if self._early:
            self._early.difference_update(steps)

    def released(self, steps: Sequence[int]) -> None:
        """These miss nothing any more."""
        if self._takes:
            for step in steps:
                self._takes.pop(step, None)
        if self._covered:
            for step in steps:
                self._covered.pop(step, None)
        if self._early:
            self._early.difference_update(steps)

    def learn(self, function: Hashable, count: int, plain: bool) -> None:
        """So many steps of a function have finished, one after another. `plain`: they left nothing."""
        if not plain:
            self._wary[function] = WARY_STEPS
        elif function in self._wary:
            self._wary[function] -= count
            if self._wary[function] <= 0:
                del self._wary[function]

    def look(self, open_steps: int, lanes: int) -> bool:
        """See how much there is to do, with so many steps that are ready or in one of `lanes` lanes; whether anything
        may be sent ahead."""
        self._broad = open_steps - len(self._early) > BROAD * lanes
        return bool(self._joint and not self._broad) or any(self._next.values())

    def take(self, worker: int) -> Optional[Tuple[int, int]]:
        """The next step that can be sent ahead to `worker`, and the prerequisite that it misses."""
        waiting = self._next.get(worker)
        statuses, demands = self._register.statuses, self._register.demands
        while waiting:
            step, p = waiting.popleft()
            if (
                statuses[step] == _BLOCKED
                and step not in self._early  # it is sent in this round
                and step not in demands
                and self._followed.get(p, (0,))[0] == worker
                and self._graph.missing[step] == 1
            ):
                return step, p
        return None

    def put_back(self, worker: int, taken: Tuple[int, int]) -> None:
        """There is no room for what `take` gave: it stays the next."""
        self._next.setdefault(worker, deque()).appendleft(taken)

    def take_joint(self) -> Optional[Tuple[int, Sequence[int], List[Tuple[int, float]]]]:
        """The next step that can be sent across lanes, what it misses, and of each of these the worker and the `end`
        that were told when it was sent there."""
        statuses, demands, followed = self._register.statuses, self._register.demands, self._followed
        joint, missing = self._joint, self._graph.missing
        while joint and not self._broad:
            step = joint.popleft()
            covered = self._covered.get(step)
            if not covered or statuses[step] != _BLOCKED or step in demands:
                continue
            places = [followed[p] for p in covered if p in followed]
            if len(places) < len(covered):
                covered = [p for p in covered if p in followed]
            if len(places) == missing[step]:
                return step, covered, places
        return None

    def put_joint_back(self, step: int) -> None:
        """There is no room for what `take_joint` gave: it stays the next."""
        self._joint.appendleft(step)

    def sent(self, step: int, worker: int, lanes: int, end: float) -> bool:
        """What `take` or `take_joint` gave is in the lane of `worker`; the rest as in `follow`. Whether `take` may have
        something for that worker now."""
        self._covered.pop(step, None)
        self._early.add(step)
        self.follow(worker, step, lanes, end)
        return bool(self._next.get(worker))

    def gone(self, worker: int) -> None:
        """The worker's lane is no more."""
        self._next.pop(worker, None)

    def check_invariants(self, lanes: Dict[int, Sequence[int]]) -> None:
        """Raise AssertionError if what is followed is not in the lanes."""
        where = {s: w for w, steps in lanes.items() for s in steps}
        for p, (w, _) in self._followed.items():
            assert where.get(p) == w, f"step {p} is followed in lane {w} and is in {where.get(p)}"
        for step in self._takes:
            assert self._graph.missing[step] or self._register.statuses[step] in FINAL, f"step {step} has all it takes"
        for step, covered in self._covered.items():
            assert self._graph.missing[step], f"step {step} waits for nobody"
            assert len(covered) == len(set(covered))
        early = {s for s in where if self._graph.missing[s]}
        assert self._early == early, f"early in lanes are {sorted(early)}, not {sorted(self._early)}"
