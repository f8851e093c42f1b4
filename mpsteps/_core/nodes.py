"""Slots on several nodes: a step holds CPUs and memory of the node that its worker is on, and of no other.

A step that needs several CPUs, or much memory, must find them on one node. Where none has them free, one node is
reserved for it: nothing else begins there until it fits. All other nodes go on.
"""

from __future__ import annotations

import math
from typing import Dict, Iterable, List, Optional, Sequence, Set, Tuple

from mpsteps._core.slots import SlotPool
from mpsteps._core.steps import LOCAL, Demand, Node


class NodeSlots(SlotPool):
    """Slots by node. Nodes are there as long as workers are on them; graphics cards are counted for all nodes together.

    Invariants: the pool of each node keeps those of SlotPool; a holder has its CPUs and memory on one node.
    """

    def __init__(self, gpus: Sequence[int] = ()) -> None:
        super().__init__(0, 0, gpus)
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

    def leave(self, worker: int) -> None:
        """A worker is gone, and with the last one its node."""
        node = self._node_of.pop(worker)
        if node not in self._node_of.values():
            del self._pools[node]
            if self._reserved is not None and self._reserved[1] == node:
                self._reserved = None

    def node_of(self, worker: int) -> Optional[Node]:
        """Where a worker is."""
        number = self._node_of[worker]
        pool = self._pools[number]
        return Node(number, pool.total["cpus"], pool.total["memory"])

    def is_full(self, worker: int) -> bool:
        """Whether no ordinary step can begin there."""
        node = self._node_of[worker]
        return self._pools[node].free["cpus"] < 1 or (self._reserved is not None and self._reserved[1] == node)

    def choose(self, step: int, demand: Demand, idle: Iterable[int]) -> Tuple[Optional[int], bool]:
        """A worker for a step with a demand of its own; None: it must wait, and so must nobody else."""
        if self._cards(demand) > len(self.free_gpus):
            return None, False
        if demand.local:
            return LOCAL, False
        seen: Set[int] = set()
        for worker in idle:
            node = self._node_of[worker]
            if node in seen:
                continue
            seen.add(node)
            if self._fits_on(node, step, demand):
                if self._reserved is not None and self._reserved[0] == step:
                    self._reserved = None
                return worker, False
        if self._reserved is None:
            large = self._large_enough(demand)
            if large:
                self._reserved = (step, max(large, key=lambda node: self._pools[node].free["cpus"]))
        return None, False

    def _fits_on(self, node: int, step: int, demand: Demand) -> bool:
        if self._reserved is not None and self._reserved[1] == node and self._reserved[0] < step:
            return False  # an older one may have it: whoever the node is kept for is looked at after that
        return node in self._large_enough(demand) and self._pools[node].fits(demand._replace(gpus=0))

    def _large_enough(self, demand: Demand) -> List[int]:
        """The nodes that have what is demanded, if all of it is free; where none has, the largest."""
        wanted = (demand.cpus, demand.memory)
        sizes = {n: (pool.total["cpus"], pool.total["memory"]) for n, pool in self._pools.items()}
        found = [n for n, size in sizes.items() if size[0] >= wanted[0] and size[1] >= wanted[1]]
        return found or [n for n, size in sizes.items() if size == max(sizes.values())]

    def take(self, holder: int, demand: Demand, worker: int = LOCAL) -> None:
        """`holder` has what fits on the worker's node until `give(holder)`."""
        if demand.gpus or worker == LOCAL:
            super().take(holder, demand, worker)
        if worker != LOCAL:
            node = self._where[holder] = self._node_of[worker]
            self._pools[node].take(holder, demand._replace(gpus=0) if demand.gpus else demand)

    def give(self, holder: int) -> None:
        """`holder` has nothing any more."""
        if holder in self._held:
            super().give(holder)
        node = self._where.pop(holder, None)
        if node is not None:
            self._pools[node].give(holder)

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
