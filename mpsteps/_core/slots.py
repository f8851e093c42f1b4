"""Slots: what steps hold while they run, counted so that free + held == total, always."""

from __future__ import annotations

import math
from typing import Dict, Iterable, List, Mapping, Optional, Sequence, Set, Tuple

from mpsteps._core.steps import LOCAL, PLAIN, Demand, Node
from mpsteps.errors import InternalError

_Amounts = Tuple[Tuple[str, int], ...]


class SlotPool:
    """CPU, memory and named slots by amount, graphics cards one by one.

    Worker slots are not counted here by worker: an ordinary lane holds one CPU slot because it occupies one worker;
    this pool counts the sum, so that a step of several CPUs leaves other workers idle while it runs.
    `others`: bytes of memory in use by what holds no slots here.
    Invariant: for every kind, `free[kind] + sum(held) == total[kind]`, with `others` among what is held of memory.
    Memory alone may be overdrawn (`free` below zero): by steps that turn out to need more than was known when they
    began, and by others.
    """

    def __init__(
        self, cpus: int, memory: int = 0, gpus: Sequence[int] = (), tokens: Optional[Mapping[str, int]] = None
    ) -> None:
        self.total: Dict[str, int] = {"cpus": cpus, "memory": memory, **(tokens or {})}
        self.free: Dict[str, int] = dict(self.total)
        self.free_gpus: List[int] = list(gpus)
        self.all_gpus: Tuple[int, ...] = tuple(gpus)
        self.others = 0
        self._held: Dict[int, Tuple[_Amounts, Tuple[int, ...]]] = {}
        self._plain_amounts = self._work_out(PLAIN)

    def _amounts(self, demand: Demand) -> _Amounts:
        return self._plain_amounts if demand is PLAIN else self._work_out(demand)

    def _work_out(self, demand: Demand) -> _Amounts:
        """What `demand` holds here: never more than there is in all, so that a large step runs alone, not never."""
        wanted: Dict[str, int] = {}
        for kind, n in (("cpus", 0 if demand.local else demand.cpus), ("memory", demand.memory), *demand.tokens):
            wanted[kind] = wanted.get(kind, 0) + n
        return tuple((kind, min(n, self.total[kind])) for kind, n in wanted.items() if n and self.total.get(kind))

    def _cards(self, demand: Demand) -> int:
        return min(demand.gpus, len(self.all_gpus))

    def fits(self, demand: Demand) -> bool:
        """Whether a step with this demand could start now."""
        return self.lacks(demand) == ""

    def lacks(self, demand: Demand) -> str:
        """The first kind of slot that is short for this demand: 'cpus', 'gpus', ... ('': it fits)."""
        if self._cards(demand) > len(self.free_gpus):
            return "gpus"
        for kind, n in self._amounts(demand):
            if n > self.free[kind] and (kind != "memory" or self._memory_is_held):
                return kind
        return ""

    @property
    def _memory_is_held(self) -> bool:
        """Whether any step holds some. If none does, the next one may begin, however much others use: to wait would be
        to wait for ever."""
        return self.total["memory"] - self.free["memory"] > self.others

    def lacks_memory(self, need: int) -> bool:
        """Whether a step that needs so many bytes has to wait."""
        return min(need, self.total["memory"]) > self.free["memory"] and self._memory_is_held

    def share(self) -> float:
        """Bytes that each worker's step may have if one runs on every worker."""
        if not self.total["memory"]:
            return math.inf  # it is not counted
        return max(0, self.total["memory"] - self.others) / max(1, self.total["cpus"])

    def hold_memory(self, holder: int, need: int) -> None:
        """From now on so many bytes count for `holder`, which has slots already."""
        amounts, cards = self._held[holder]
        need = min(need, self.total["memory"])
        before = dict(amounts).get("memory", 0)
        if need != before:
            self.free["memory"] += before - need
            rest = tuple((kind, n) for kind, n in amounts if kind != "memory")
            self._held[holder] = ((*rest, ("memory", need)) if need else rest, cards)

    def count_others(self, n: int) -> None:
        """So many bytes are in use by what holds no slots here."""
        n = min(n, self.total["memory"])
        self.free["memory"] += self.others - n
        self.others = n

    def join(self, worker: int, node: Optional[Node]) -> None:
        """A worker is there. (Here all are on one node, whose slots these are.)"""

    def leave(self, worker: int) -> None:
        """A worker is gone, and what it held was given back."""

    def node_of(self, worker: int) -> Optional[Node]:
        """Where a worker is; None: there is one node only."""
        return None

    def is_full(self, worker: int) -> bool:
        """Whether no ordinary step can begin on an idle worker for want of a CPU slot."""
        return self.free["cpus"] < 1

    def choose(self, step: int, demand: Demand, idle: Iterable[int]) -> Tuple[Optional[int], bool]:
        """The worker that can run a step with this demand now, LOCAL if it is local; whether younger steps must leave
        room for it."""
        worker = LOCAL if demand.local else next(iter(idle), None)
        if worker is None:
            return None, True
        lack = self.lacks(demand)
        return (None, lack in ("cpus", "memory")) if lack else (worker, False)

    def has_place_for(self, demand: Demand) -> bool:
        """Whether a step with this demand could run if all others had ended: here, always."""
        return True

    def forget(self, step: int) -> None:
        """A step does not wait for slots any more."""

    def take(self, holder: int, demand: Demand, worker: int = LOCAL) -> None:
        """`holder` (a step, or minus a worker) has what fits until `give(holder)`."""
        if holder in self._held:
            raise InternalError(f"holder {holder} is given slots twice")
        amounts = self._amounts(demand)
        for kind, n in amounts:
            self.free[kind] -= n
        cards: Tuple[int, ...] = ()
        if demand.gpus:
            n_cards = self._cards(demand)
            cards = tuple(self.free_gpus[:n_cards])
            del self.free_gpus[:n_cards]
        self._held[holder] = (amounts, cards)

    def give(self, holder: int) -> None:
        """`holder` has nothing any more."""
        amounts, cards = self._held.pop(holder)
        for kind, n in amounts:
            self.free[kind] += n
        if cards:
            self.free_gpus.extend(cards)
            self.free_gpus.sort(key=self.all_gpus.index)

    def gpus_of(self, step: int) -> Tuple[int, ...]:
        """The graphics cards that `step` holds."""
        held = self._held.get(step)
        return held[1] if held else ()

    def holders(self) -> Set[int]:
        """Who holds slots: steps, and minus the ids of workers with an ordinary lane."""
        return set(self._held)

    def check_invariants(self) -> None:
        """Raise AssertionError if slots were lost or made up."""
        held: Dict[str, int] = {"memory": self.others}
        cards: List[int] = []
        for amounts, taken in self._held.values():
            cards.extend(taken)
            for kind, n in amounts:
                held[kind] = held.get(kind, 0) + n
        for kind, total in self.total.items():
            assert self.free[kind] <= total, f"{kind}: {self.free[kind]} free of {total}"
            assert self.free[kind] >= 0 or kind == "memory", f"{kind}: {self.free[kind]} free of {total}"
            assert self.free[kind] + held.get(kind, 0) == total, f"{kind}: free + held != total"
        assert sorted(cards + self.free_gpus) == sorted(self.all_gpus), "a graphics card was lost or made up"
