"""Slots on several nodes: a step holds CPUs, memory and cards of the node that its worker is on, and of no other.

A step that needs several CPUs, or much memory, must find them on one node. Where none has them free, one node is
reserved for it: nothing else begins there until it fits. All other nodes go on. For a graphics card no node is kept.
"""

from __future__ import annotations

import math
from typing import Dict, Iterable, List, Mapping, Optional, Sequence, Set, Tuple

from mpsteps._core.slots import SlotPool
from mpsteps._core.steps import LOCAL, Cards, Demand, Node
from mpsteps.errors import InternalError


def named_cards(groups: Iterable[Sequence[int]], names: Mapping[int, str]) -> Tuple[Cards, ...]:
    """Numbers of cards in groups, with the names of the cards. A number that comes twice is a card that two steps may
    have at a time."""
    times: Dict[int, int] = {}
    found: List[Cards] = []
    for group in groups:
        its: List[str] = []
        for number in group:
            times[number] = n = times.get(number, 0) + 1
            its.append(names[number] if n == 1 else f"{names[number]} ({n})")
        found.append(Cards(tuple(group), tuple(its)))
    return tuple(found)


class NodeSlots(SlotPool):
    """Slots by node. Nodes are there as long as workers are on them. `here`: cards for steps that run in the
    coordinator.

    Invariants: the pool of each node keeps those of SlotPool; a holder has all that it has on one node; no card has two
    holders, also where it is a card of several nodes.
    """

    def __init__(self, here: Sequence[Cards] = ()) -> None:
        super().__init__(0, 0)
        self._nodes: Dict[int, Node] = {}
        self._here = tuple(here)
        self._cards_of: Dict[int, Tuple[Cards, ...]] = {}  # holder -> its cards
        self._taken: Set[str] = set()  # names of cards that somebody holds
        self._pools: Dict[int, SlotPool] = {}
        self._node_of: Dict[int, int] = {}  # worker -> node
        self._where: Dict[int, int] = {}  # holder -> node
        self._reserved: Optional[Tuple[int, int]] = None  # step, node that is kept for it

    def join(self, worker: int, node: Optional[Node]) -> None:
        """A worker is on that node."""
        assert node is not None
        self._node_of[worker] = node.number
        if node.number not in self._pools:
            self._pools[node.number] = SlotPool(node.cpus, node.memory)
            self._nodes[node.number] = node

    def leave(self, worker: int) -> None:
        """A worker is gone, and with the last one its node."""
        node = self._node_of.pop(worker)
        if node not in self._node_of.values():
            del self._pools[node], self._nodes[node]
            if self._reserved is not None and self._reserved[1] == node:
                self._reserved = None

    def node_of(self, worker: int) -> Optional[Node]:
        """Where a worker is."""
        return self._nodes[self._node_of[worker]]

    def is_full(self, worker: int) -> bool:
        """Whether no ordinary step can begin there."""
        node = self._node_of[worker]
        return self._pools[node].free["cpus"] < 1 or (self._reserved is not None and self._reserved[1] == node)

    def choose(self, step: int, demand: Demand, idle: Iterable[int]) -> Tuple[Optional[int], bool]:
        """A worker for a step with a demand of its own; None: it must wait, and so must nobody else."""
        if demand.local:
            return (None if self._free_cards(self._here, demand) is None else LOCAL), False
        able = [n for n in self._large_enough(demand) if self._free_cards(self._nodes[n].cards, demand) is not None]
        if not able:
            return None, False
        seen: Set[int] = set()
        for worker in idle:
            node = self._node_of[worker]
            if node in seen:
                continue
            seen.add(node)
            if node in able and self._fits_on(node, step, demand):
                if self._reserved is not None and self._reserved[0] == step:
                    self._reserved = None
                return worker, False
        if self._reserved is None:
            self._reserved = (step, max(able, key=lambda node: self._pools[node].free["cpus"]))
        return None, False

    def _fits_on(self, node: int, step: int, demand: Demand) -> bool:
        if self._reserved is not None and self._reserved[1] == node and self._reserved[0] < step:
            return False  # an older one may have it: whoever the node is kept for is looked at after that
        return self._pools[node].fits(demand._replace(gpus=0))

    def _free_cards(self, cards: Sequence[Cards], demand: Demand) -> Optional[Tuple[Cards, ...]]:
        """Those that a step gets, of the cards of a node; None: too few are free."""
        wanted = min(demand.gpus, len(cards))
        free = tuple(c for c in cards if self._taken.isdisjoint(c.names))[:wanted] if wanted else ()
        return free if len(free) == wanted else None

    def _large_enough(self, demand: Demand) -> List[int]:
        """The nodes that have what is demanded, if all of it is free; where none has, the largest. But a step that
        needs a card does not run where there is none."""
        nodes = list(self._nodes.values())
        if demand.gpus:
            most = max((len(n.cards) for n in nodes), default=0)
            nodes = [n for n in nodes if len(n.cards) >= max(1, min(demand.gpus, most))]
        found = [n.number for n in nodes if n.cpus >= demand.cpus and n.memory >= demand.memory]
        largest = max(((n.cpus, n.memory) for n in nodes), default=(0, 0))
        return found or [n.number for n in nodes if (n.cpus, n.memory) == largest]

    def take(self, holder: int, demand: Demand, worker: int = LOCAL) -> None:
        """`holder` has what fits on the worker's node until `give(holder)`."""
        node = LOCAL if worker == LOCAL else self._node_of[worker]
        if demand.gpus:
            cards = self._free_cards(self._here if worker == LOCAL else self._nodes[node].cards, demand)
            if cards is None:
                raise InternalError(f"holder {holder} is given cards that others hold")
            if cards:
                self._cards_of[holder] = cards
                self._taken.update(name for c in cards for name in c.names)
            demand = demand._replace(gpus=0)
        if worker == LOCAL:
            super().take(holder, demand, worker)
        else:
            self._where[holder] = node
            self._pools[node].take(holder, demand)

    def give(self, holder: int) -> None:
        """`holder` has nothing any more."""
        if holder in self._held:
            super().give(holder)
        node = self._where.pop(holder, None)
        if node is not None:
            self._pools[node].give(holder)
        for cards in self._cards_of.pop(holder, ()):
            self._taken.difference_update(cards.names)

    def gpus_of(self, step: int) -> Tuple[int, ...]:
        """The numbers of the graphics cards that `step` holds, on its node."""
        return tuple(number for cards in self._cards_of.get(step, ()) for number in cards.numbers)

    def has_place_for(self, demand: Demand) -> bool:
        """Whether a step with this demand could run if all others had ended: not if it needs a card, and no node has
        any."""
        return demand.local or bool(self._large_enough(demand))

    def lacks_memory(self, need: int) -> bool:
        """Nobody waits here before anything is known of his function."""
        return False

    def share(self) -> float:
        """That of the node where it is least."""
        return min((pool.share() for pool in self._pools.values()), default=math.inf)

    def hold_memory(self, holder: int, need: int) -> None:
        """From now on so many bytes of its node count for `holder`."""
        node = self._where.get(holder)
        if node is not None:
            self._pools[node].hold_memory(holder, need)

    def forget(self, step: int) -> None:
        """A step does not wait any more: no node need be kept for it."""
        if self._reserved is not None and self._reserved[0] == step:
            self._reserved = None

    def holders(self) -> Set[int]:
        """Who holds slots."""
        return super().holders() | set(self._where)

    def check_invariants(self) -> None:
        """Raise AssertionError if slots were lost or made up."""
        super().check_invariants()
        for node, pool in self._pools.items():
            pool.check_invariants()
            assert pool.holders() == {holder for holder, its in self._where.items() if its == node}
        held = [name for its in self._cards_of.values() for cards in its for name in cards.names]
        assert len(held) == len(set(held)), "a graphics card has two holders"
        assert set(held) == self._taken, "a graphics card was lost or made up"
        assert set(self._cards_of) <= self.holders(), "cards are held by nobody"
