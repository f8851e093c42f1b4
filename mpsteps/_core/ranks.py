"""Which ready step goes first: the one with the longest remaining path.

A step's rank is its own expected duration and that of the longest chain of steps that wait for it, in seconds. Whoever
starts the head of the longest chain last waits for it at the end, while the other workers have nothing to do. Durations
are means by function, learned in this run and taken over from earlier ones; as long as nothing is known of a function,
it counts as the average of the others, so that at first the number of steps decides.

Working ranks out costs a walk over all steps and edges. It is done when it can matter (more is ready than there are
lanes), and again only when the graph has grown by a quarter, or when what was learned has changed much and four times
as many steps have finished as the last time. Steps added since have the rank of their own duration alone.
"""

from __future__ import annotations

from array import array
from typing import Dict, Hashable, Iterable, List

from mpsteps._core.graph import Graph
from mpsteps._core.register import Register
from mpsteps._core.steps import Status

_READY, _FINISHED = int(Status.READY), int(Status.FINISHED)
_UNKNOWN_SECONDS = 1.0
MUCH = 2.0
"""Learned durations that have changed by this factor change the order."""


class Ranks:
    """Ranks by step id. `mean`: the learned duration of each function, seconds; kept up to date by who learns."""

    def __init__(self, register: Register, graph: Graph, mean: Dict[Hashable, float]) -> None:
        self._register = register
        self._graph = graph
        self._mean = mean
        self._ranks = array("d")
        self._used: Dict[Hashable, float] = {}  # durations by which they were worked out
        self._average = _UNKNOWN_SECONDS
        self._learned = False  # a duration has changed much since
        self._finished = 0  # how many steps had finished then

    def of(self, step: int) -> float:
        """The rank of a step, seconds."""
        ranks = self._ranks
        return ranks[step] if step < len(ranks) else self._seconds(self._register.functions[step])

    def learned(self, function: Hashable, seconds: float) -> None:
        """The mean of a function is `seconds` now."""
        if not self._learned:
            used = self._used.get(function, self._average)
            self._learned = not used / MUCH <= seconds <= used * MUCH

    def due(self, lanes: int) -> bool:
        """Whether they should be worked out (again) before steps are handed out to so many lanes."""
        counts, total = self._register.counts, len(self._register.statuses)
        if counts[_READY] <= lanes or not (self._graph.has_edges or self._register.several_functions):
            return False
        if total > len(self._ranks) * 1.25 + 16:
            return True
        if not self._register.several_functions:
            return False  # whatever its steps take, their order is the same
        return self._learned and counts[_FINISHED] >= 4 * self._finished + 8

    def work_out(self) -> None:
        """Of all steps, from the ends of the graph to its beginnings."""
        self._used = dict(self._mean)
        self._average = sum(self._used.values()) / len(self._used) if self._used else _UNKNOWN_SECONDS
        self._learned = False
        self._finished = self._register.counts[_FINISHED]
        functions, seconds = self._register.functions, self._seconds
        ranks = array("d", bytes(8 * len(functions)))
        dependants = self._graph.dependants
        for step in self._from_the_ends(len(functions) - 1):
            longest = 0.0
            for d in dependants(step):
                longest = max(longest, ranks[d])
            ranks[step] = longest + seconds(functions[step])
        self._ranks = ranks

    def _seconds(self, function: Hashable) -> float:
        return self._used.get(function, self._average)

    def _from_the_ends(self, last: int) -> Iterable[int]:
        """All steps, each after those that wait for it. Mostly these have larger ids."""
        if not self._graph.has_forward_edges:
            return range(last, 0, -1)
        order: List[int] = []
        seen = bytearray(last + 1)
        for root in range(last, 0, -1):
            todo = [root]
            while todo:
                step = todo[-1]
                if not seen[step]:
                    seen[step] = 1
                    todo.extend(d for d in self._graph.dependants(step) if not seen[d])
                else:
                    todo.pop()
                    if seen[step] == 1:
                        seen[step] = 2
                        order.append(step)
        return order
