"""Steps sent ahead: a blocked step may follow its prerequisites into their lane, so that a chain of short steps costs
no round trips.

A worker runs its lane in order, so a step may be sent before its prerequisites have finished if all that are missing
stand before it in the same lane. The message names them; the worker runs the step if it knows that they have finished
there, and gives it back otherwise. Then the scheduler blocks it again, or skips it.

Of the dependants that one step enables, its lane takes an even share: the others become ready when it finishes, and
go wherever there is room. Only steps whose function is known to be short are followed.
"""

from __future__ import annotations

from collections import deque
from typing import Deque, Dict, Optional, Sequence, Set, Tuple

from mpsteps._core.graph import Graph
from mpsteps._core.register import Register
from mpsteps._core.steps import Status

_BLOCKED = int(Status.BLOCKED)
_MIXED = -1


class _Flying:
    """Where the missing prerequisites of a step are."""

    __slots__ = ("prerequisites", "where")

    def __init__(self, where: int) -> None:
        self.where = where
        self.prerequisites: Set[int] = set()


class Ahead:
    """Which blocked steps could be sent ahead, and where.

    Invariant: `_flying[d]` is (where, prerequisites): those of d's missing prerequisites that are followed, all in that
    worker's lane (`_MIXED`: in several, and then d has to wait).
    """

    def __init__(self, register: Register, graph: Graph) -> None:
        self._register = register
        self._graph = graph
        self._followed: Dict[int, int] = {}  # step in flight -> worker
        self._flying: Dict[int, _Flying] = {}
        self._next: Dict[int, Deque[int]] = {}  # worker -> steps that may be sent ahead to it, to be checked again

    def follow(self, worker: int, steps: Sequence[int], lanes: int) -> None:
        """Short steps were sent to `worker`, one of `lanes` lanes: look whom they enable."""
        self._followed.update(dict.fromkeys(steps, worker))
        for p in self._graph.with_dependants(steps):
            enabled = [d for d in self._graph.dependants(p) if self._flies(d, p, worker)]
            if enabled:
                share = -(-len(enabled) // lanes)
                self._next.setdefault(worker, deque()).extend(enabled[:share])

    def _flies(self, step: int, prerequisite: int, worker: int) -> bool:
        """One more missing prerequisite of `step` is in a lane: whether all of them are in this one now."""
        entry = self._flying.get(step)
        if entry is None:
            entry = self._flying[step] = _Flying(worker)
        elif entry.where != worker:
            entry.where = _MIXED
        entry.prerequisites.add(prerequisite)
        return entry.where == worker and len(entry.prerequisites) == self._graph.missing(step)

    def missing(self, step: int) -> Tuple[int, ...]:
        """The prerequisites of a step that `take` gave which have not finished."""
        return tuple(sorted(self._flying[step].prerequisites))

    def linked(self, step: int, prerequisites: Sequence[int]) -> None:
        """`step` waits for these from now on; some may be in a lane already."""
        for p in prerequisites:
            worker = self._followed.get(p)
            if worker is not None and self._flies(step, p, worker):
                self._next.setdefault(worker, deque()).append(step)

    def answered(self, steps: Sequence[int]) -> None:
        """These have left their lane, for whatever reason. Before the graph hears of it."""
        followed, flying = self._followed, self._flying
        for p in self._graph.with_dependants(steps):
            if p in followed:
                for d in self._graph.dependants(p):
                    entry = flying.get(d)
                    if entry is not None:  # None: `d` names `p` twice
                        entry.prerequisites.discard(p)
                        if not entry.prerequisites:
                            del flying[d]
        for p in steps:
            followed.pop(p, None)

    def take(self, worker: int) -> Optional[int]:
        """The next step that can be sent ahead to `worker`."""
        waiting = self._next.get(worker)
        statuses, demands = self._register.statuses, self._register.demands
        while waiting:
            step = waiting.popleft()
            entry = self._flying.get(step)
            if (
                statuses[step] == _BLOCKED
                and step not in demands
                and entry is not None
                and entry.where == worker
                and len(entry.prerequisites) == self._graph.missing(step)
            ):
                return step
        return None

    def put_back(self, worker: int, step: int) -> None:
        """There is no room for what `take` gave: it stays the next."""
        self._next.setdefault(worker, deque()).appendleft(step)

    def gone(self, worker: int) -> None:
        """The worker's lane is no more."""
        self._next.pop(worker, None)

    def check_invariants(self, lanes: Dict[int, Sequence[int]]) -> None:
        """Raise AssertionError if the counts are not those of the lanes."""
        where = {s: w for w, steps in lanes.items() for s in steps}
        for p, w in self._followed.items():
            assert where.get(p) == w, f"step {p} is followed in lane {w} and is in {where.get(p)}"
        real: Dict[int, Set[int]] = {}
        for p in self._followed:
            for d in self._graph.dependants(p):
                real.setdefault(d, set()).add(p)
        assert real == {d: entry.prerequisites for d, entry in self._flying.items()}, "flying"
        for d, prerequisites in real.items():
            real_lanes = {self._followed[p] for p in prerequisites}
            lane = self._flying[d].where
            assert lane == _MIXED or {lane} == real_lanes, f"step {d} flies in lane {lane}, not in {real_lanes}"
