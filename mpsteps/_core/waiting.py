"""The steps that are READY, in the order in which they are to be handed out.

Ordinary ones stand in a `ReadyQueue`: by rank, if ranks were worked out, and by id. Those with the same demand of their
own wait in one queue each, in the order in which they became ready: if the first does not fit, none does, so that a
thousand steps that wait for one graphics card cost as much as one.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import Callable, Deque, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple

from mpsteps._core.register import Register
from mpsteps._core.steps import Demand, Status

_READY = int(Status.READY)


class ReadyQueue:
    """Steps by rank, the highest first, and of equal rank by id, the smallest first. As long as nobody has given ranks,
    all are equal.

    Those of one rank are a bucket: mostly they come with rising ids, and stand in a deque; what comes late is in a heap
    beside it. Invariant: no bucket is empty, and `_ranks` has minus the rank of each.
    """

    def __init__(self) -> None:
        self._rank: Optional[Callable[[int], float]] = None
        self._buckets: Dict[float, Tuple[Deque[int], List[int]]] = {}
        self._ranks: List[float] = []  # heap
        self._top: Tuple[Deque[int], List[int]] = (deque(), [])

    def __bool__(self) -> bool:
        return bool(self._ranks)

    def __iter__(self) -> Iterator[int]:
        """All, in no order."""
        return (s for bucket in self._buckets.values() for part in bucket for s in part)

    def place(self, step: int) -> Tuple[float, int]:
        """The smaller, the earlier it goes."""
        return (-self._rank(step) if self._rank is not None else 0.0), step

    def add(self, step: int) -> None:
        """One more."""
        rank = -self._rank(step) if self._rank is not None else 0.0
        bucket = self._buckets.get(rank)
        if bucket is None:
            bucket = self._open(rank)
        fifo, late = bucket
        if fifo and step < fifo[-1]:
            heapq.heappush(late, step)
        else:
            fifo.append(step)

    def extend(self, steps: Sequence[int]) -> None:
        """Several, with rising ids."""
        if self._rank is None and steps:
            fifo, _ = self._buckets.get(0.0) or self._open(0.0)
            if not fifo or fifo[-1] < steps[0]:
                fifo.extend(steps)
                return
        for step in steps:
            self.add(step)

    def first(self) -> int:
        """The next. There must be one."""
        fifo, late = self._top
        if not late:
            return fifo[0]
        return late[0] if not fifo else min(fifo[0], late[0])

    def pop(self) -> int:
        """The next, which is taken out."""
        fifo, late = self._top
        step = fifo.popleft() if not late or (fifo and fifo[0] < late[0]) else heapq.heappop(late)
        if not fifo and not late:
            del self._buckets[heapq.heappop(self._ranks)]
            if self._ranks:
                self._top = self._buckets[self._ranks[0]]
        return step

    def reorder(self, rank: Callable[[int], float], steps: Iterable[int]) -> None:
        """From now on by these ranks; `steps` are those of the queue that stay in it."""
        self._rank = rank
        self._buckets, self._ranks, old = {}, [], sorted(steps)
        for step in old:
            self.add(step)

    def _open(self, rank: float) -> Tuple[Deque[int], List[int]]:
        bucket = self._buckets[rank] = (deque(), [])
        heapq.heappush(self._ranks, rank)
        self._top = self._buckets[self._ranks[0]]
        return bucket


class Head(NamedTuple):
    """The first of those that wait with one demand; the smaller its turn, the longer it has waited."""

    turn: int
    demand: Demand
    step: int


class Waiting:
    """The queues.

    Invariant: a READY step stands once in the queue of its demand; any other step in a queue is `withdrawn`: it is
    passed over when it is met. (Taking it out of the middle would cost a walk.)
    """

    def __init__(self, register: Register) -> None:
        self._register = register
        self.plain = ReadyQueue()  # PLAIN steps
        self.withdrawn: Set[int] = set()
        self._special: Dict[Demand, Deque[Tuple[int, int]]] = {}  # all others: demand -> (turn, step), oldest first
        self._heads: List[Tuple[int, Demand]] = []  # heap; has the turn of the first step of each queue in `_special`
        self._last_turn = 0
        self._first_turn = 0  # steps that come back get turns below those of all others

    # -------------------------------------------------------------- coming and going

    def join(self, step: int) -> None:
        """A step has become READY. (Once withdrawn, it waits where it still stands.)"""
        if step in self.withdrawn:
            self.withdrawn.remove(step)
            return
        demand = self._register.demands.get(step)
        if demand is None:
            self.plain.add(step)
            return
        self._last_turn += 1
        queue = self._special.get(demand)
        if queue is None:
            queue = self._special[demand] = deque()
            heapq.heappush(self._heads, (self._last_turn, demand))
        queue.append((self._last_turn, step))

    def rejoin(self, step: int) -> None:
        """A step is READY again, where it was; one with a demand of its own is the next of them all, since it has
        waited long enough. (One that was withdrawn, then sent ahead of its prerequisites, and is back now that they
        have finished, may still stand in its queue: once is enough.)"""
        if step in self.withdrawn:
            self.withdrawn.remove(step)
            return
        demand = self._register.demands.get(step)
        if demand is None:
            self.plain.add(step)
            return
        self._first_turn -= 1
        self._special.setdefault(demand, deque()).appendleft((self._first_turn, step))
        heapq.heappush(self._heads, (self._first_turn, demand))

    def withdraw(self, step: int) -> None:
        """A step that was READY is not, though nobody has run it."""
        self.withdrawn.add(step)

    def first_plain(self) -> Optional[int]:
        """The first ordinary step."""
        plain, statuses = self.plain, self._register.statuses
        while plain:
            step = plain.first()
            if statuses[step] == _READY:
                return step
            self.withdrawn.discard(plain.pop())
        return None

    def reorder_plain(self, rank: Callable[[int], float]) -> None:
        """Ordinary steps wait in the order of these ranks, the highest first."""
        statuses = self._register.statuses
        gone = {s for s in self.plain if statuses[s] != _READY}
        self.withdrawn -= gone
        self.plain.reorder(rank, [s for s in self.plain if s not in gone])

    # ---------------------------------------------------------------- special demands

    @property
    def has_special(self) -> bool:
        """Whether a step with a demand of its own may be waiting."""
        return bool(self._heads)

    def oldest_special(self) -> Optional[Head]:
        """The step that has waited longest of the first ones of all queues."""
        heads, statuses = self._heads, self._register.statuses
        while heads:
            turn, demand = heads[0]
            queue = self._special.get(demand)
            if not queue or queue[0][0] != turn:
                heapq.heappop(heads)  # another entry stands for this queue
            elif statuses[queue[0][1]] != _READY:
                self.withdrawn.discard(queue[0][1])
                self.take(demand)
            else:
                return Head(turn, demand, queue[0][1])
        return None

    def special_demands(self) -> Iterator[Demand]:
        """The demands with which steps wait. (A queue whose first step is withdrawn is left out.)"""
        statuses = self._register.statuses
        return (demand for demand, queue in self._special.items() if statuses[queue[0][1]] == _READY)

    def take(self, demand: Demand) -> None:
        """What `oldest_special` gave has been handed out."""
        queue = self._special[demand]
        queue.popleft()
        if queue:
            heapq.heapreplace(self._heads, (queue[0][0], demand))
        else:
            heapq.heappop(self._heads)
            del self._special[demand]

    def pass_over(self) -> Tuple[int, Demand]:
        """What `oldest_special` gave, and all that want the same, are left out of account until `look_again`."""
        return heapq.heappop(self._heads)

    def look_again(self, passed: List[Tuple[int, Demand]]) -> None:
        """Take into account what was passed over."""
        for entry in passed:
            heapq.heappush(self._heads, entry)

    # -------------------------------------------------------------------- checking

    def in_order(self) -> Iterator[Tuple[int, Demand]]:
        """All steps with a demand of their own, oldest first, found without the shortcuts."""
        everything = sorted((turn, s, demand) for demand, queue in self._special.items() for turn, s in queue)
        return ((s, demand) for _, s, demand in everything if self._register.statuses[s] == _READY)

    def check_invariants(self) -> None:
        """Raise AssertionError if a step waits twice, or would never be met."""
        statuses = self._register.statuses
        waiting = [*self.plain, *(s for queue in self._special.values() for _, s in queue)]
        ready = {s for s in range(1, len(statuses)) if statuses[s] == _READY}
        assert len(waiting) == len(set(waiting)), "a step waits twice"
        assert ready <= set(waiting), f"steps {ready - set(waiting)} are ready and nobody will hand them out"
        assert self.withdrawn == set(waiting) - ready, f"withdrawn: {self.withdrawn}, not {set(waiting) - ready}"
        assert {(q[0][0], d) for d, q in self._special.items()} <= set(self._heads), "a queue will never be looked at"
