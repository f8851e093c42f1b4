"""Which steps wait for which: a graph that accepts steps and edges while it is being run.

Each edge is looked at a constant number of times: once when it is added, once when its prerequisite closes. Counting
unfinished prerequisites, as `graphlib` does, but without a `prepare()` that would freeze the graph.
"""

from __future__ import annotations

from typing import Dict, Iterable, List, Mapping, Optional, Sequence, Set, Union

# A step has mostly none or one dependant: a list is made only for the second.
_Dependants = Union[None, int, List[int]]


class Graph:
    """Counts, for every step, the prerequisites that have not finished.

    `missing[s]` is that count. Invariant: it is the number of edges p -> s whose p has not been `finish()`ed. Others
    only read it.
    """

    def __init__(self) -> None:
        self.missing: List[int] = [0]  # by step id; id 0 is nobody
        self._dependants: List[_Dependants] = [None]
        self.has_edges = False
        self.has_forward_edges = False  # an edge p -> s with p > s exists; only then can there be a cycle

    def __len__(self) -> int:
        return len(self.missing) - 1

    def grow(self, step: int) -> None:
        """Make room for ids up to `step`."""
        short = step + 1 - len(self.missing)
        if short == 1:
            self.missing.append(0)
            self._dependants.append(None)
        elif short > 0:
            self.missing.extend([0] * short)
            self._dependants.extend([None] * short)

    def link(self, step: int, prerequisites: Iterable[int]) -> None:
        """`step` waits for each of `prerequisites`, none of which has closed. The caller has excluded cycles."""
        dependants = self._dependants
        count = 0
        for p in prerequisites:
            count += 1
            if p > step:
                self.has_forward_edges = True
            others = dependants[p]
            if others is None:
                dependants[p] = step
            elif type(others) is int:
                dependants[p] = [others, step]
            else:
                others.append(step)  # type: ignore[union-attr]  # a list: the two other cases are above
        self.missing[step] += count
        if count:
            self.has_edges = True

    def dependants(self, step: int) -> Sequence[int]:
        """The steps that wait for `step`."""
        found = self._dependants[step]
        if found is None:
            return ()
        return (found,) if isinstance(found, int) else found

    def with_dependants(self, steps: Sequence[int]) -> List[int]:
        """Those of `steps` for which others wait."""
        dependants = self._dependants
        return [s for s in steps if dependants[s] is not None]

    def close(self, step: int) -> Sequence[int]:
        """`step` will never finish: forget it and return those that waited for it. They go on missing it."""
        found = self.dependants(step)
        self._dependants[step] = None
        return found

    def finish(self, steps: Sequence[int]) -> List[int]:
        """`steps` have finished; returns those for which they were the last that was missing, in order."""
        missing, dependants = self.missing, self._dependants
        free: List[int] = []
        for step in steps:
            found = dependants[step]
            if found is None:
                continue
            dependants[step] = None
            for d in (found,) if isinstance(found, int) else found:
                left = missing[d] - 1
                missing[d] = left
                if not left:
                    free.append(d)
        return free

    def find_cycle_through(self, step: int, prerequisites: Sequence[int]) -> Optional[List[int]]:
        """A cycle that an edge from one of `prerequisites` to `step` would close, or None; one walk for all of them.

        As ids from `step` back to `step`, each waits for the next. Steps inserted in order can only point back, so
        that the walk is needed for edges that point forward, and once there are such edges.
        """
        if step in prerequisites:
            return [step, step]
        if not self.has_forward_edges and all(p < step for p in prerequisites):
            return None
        wanted = set(prerequisites)
        came_from: Dict[int, int] = {step: step}
        todo = [step]
        while todo:
            here = todo.pop()
            for d in self.dependants(here):
                if d in came_from:
                    continue
                came_from[d] = here
                if d in wanted:
                    path = [step, d]
                    while path[-1] != step:
                        path.append(came_from[path[-1]])
                    return path
                todo.append(d)
        return None


def find_cycle(prerequisites: Mapping[int, Sequence[int]]) -> Optional[List[int]]:
    """A cycle in step -> prerequisites as ids (first == last, each waits for the next), or None.

    Iterative depth-first search; cost O(steps + edges).
    """
    done: Set[int] = set()
    for root in prerequisites:
        if root in done:
            continue
        path: List[int] = [root]
        on_path: Set[int] = {root}
        branches = [iter(prerequisites[root])]
        while path:
            for p in branches[-1]:
                if p in on_path:
                    return [*path[path.index(p) :], p]
                if p not in done and p in prerequisites:
                    path.append(p)
                    on_path.add(p)
                    branches.append(iter(prerequisites[p]))
                    break
            else:
                branches.pop()
                on_path.discard(path[-1])
                done.add(path.pop())
    return None


def in_order(prerequisites: Mapping[int, Sequence[int]]) -> List[int]:
    """The ids of an acyclic graph so that each comes after its prerequisites; smallest ids first where free."""
    import heapq

    dependants: Dict[int, List[int]] = {}
    missing = {}
    for step, needs in prerequisites.items():
        missing[step] = len(needs)
        for p in needs:
            dependants.setdefault(p, []).append(step)
    ready = [s for s, n in missing.items() if n == 0]
    heapq.heapify(ready)
    order = []
    while ready:
        step = heapq.heappop(ready)
        order.append(step)
        for d in dependants.get(step, ()):
            missing[d] -= 1
            if missing[d] == 0:
                heapq.heappush(ready, d)
    return order
