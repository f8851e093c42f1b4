"""Which steps may be sent before their prerequisite has finished: right behind it, into the same lane.

A chain of short steps costs a round trip each, if every step waits until the coordinator has heard of the one before
it. So a blocked step may be sent as soon as the one prerequisite that it still misses is in a lane, into that lane. The
message names it; the worker runs the step if it knows that this one has finished there, and gives it back otherwise.
Then the scheduler blocks it again, or skips it.

Steps that miss several prerequisites are never sent ahead: what they wait for could run side by side, and a lane that
drew them in would draw in the whole graph while other workers have nothing to do. Of the steps that one step enables,
its lane takes an even share: the others become ready when it finishes, and go wherever there is room. Only steps whose
function is known to be short are followed.
"""

from __future__ import annotations

from collections import deque
from typing import Deque, Dict, Optional, Sequence, Tuple

from mpsteps._core.graph import Graph
from mpsteps._core.register import Register
from mpsteps._core.steps import Status

_BLOCKED = int(Status.BLOCKED)


class Ahead:
    """Which blocked steps could be sent ahead, and where.

    Invariant: `_followed` has, of the short steps in lanes, the worker of each.
    """

    def __init__(self, register: Register, graph: Graph) -> None:
        self._register = register
        self._graph = graph
        self._followed: Dict[int, int] = {}
        # worker -> (step, its missing prerequisite) that may be sent ahead to it; looked at again before it is sent
        self._next: Dict[int, Deque[Tuple[int, int]]] = {}

    def follow(self, worker: int, steps: Sequence[int], lanes: int) -> None:
        """Short steps were sent to `worker`, one of `lanes` lanes: look whom they enable."""
        self._followed.update(dict.fromkeys(steps, worker))
        missing = self._graph.missing
        for p in self._graph.with_dependants(steps):
            enabled = [(d, p) for d in self._graph.dependants(p) if missing(d) == 1]
            if enabled:
                share = -(-len(enabled) // lanes)
                self._next.setdefault(worker, deque()).extend(enabled[:share])

    def linked(self, step: int, prerequisites: Sequence[int]) -> None:
        """`step` waits for these from now on; the one that it misses may be in a lane already."""
        if len(prerequisites) == 1 and self._graph.missing(step) == 1:
            worker = self._followed.get(prerequisites[0])
            if worker is not None:
                self._next.setdefault(worker, deque()).append((step, prerequisites[0]))

    def answered(self, steps: Sequence[int]) -> None:
        """These have left their lane, for whatever reason."""
        followed = self._followed
        for p in steps:
            followed.pop(p, None)

    def take(self, worker: int) -> Optional[Tuple[int, int]]:
        """The next step that can be sent ahead to `worker`, and the prerequisite that it misses."""
        waiting = self._next.get(worker)
        statuses, demands = self._register.statuses, self._register.demands
        while waiting:
            step, p = waiting.popleft()
            if (
                statuses[step] == _BLOCKED
                and step not in demands
                and self._followed.get(p) == worker
                and self._graph.missing(step) == 1
            ):
                return step, p
        return None

    def put_back(self, worker: int, taken: Tuple[int, int]) -> None:
        """There is no room for what `take` gave: it stays the next."""
        self._next.setdefault(worker, deque()).appendleft(taken)

    def gone(self, worker: int) -> None:
        """The worker's lane is no more."""
        self._next.pop(worker, None)

    def check_invariants(self, lanes: Dict[int, Sequence[int]]) -> None:
        """Raise AssertionError if what is followed is not in the lanes."""
        where = {s: w for w, steps in lanes.items() for s in steps}
        for p, w in self._followed.items():
            assert where.get(p) == w, f"step {p} is followed in lane {w} and is in {where.get(p)}"
