"""A node and its workers, as the coordinator's engine keeps them in its books."""

from __future__ import annotations

import time
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from mpsteps._core.nodes import named_cards
from mpsteps._core.steps import Node
from mpsteps._ipc.blocks import Attachments
from mpsteps._large_values import SHARE
from mpsteps._machine import usable_memory
from mpsteps.engines.base import Message
from mpsteps.engines.bus import Joined
from mpsteps.engines.carried import FromNode, ToNode
from mpsteps.engines.frames import FrameReader, FrameWriter

ShareCards = Callable[[Sequence[int], int], Sequence[Tuple[int, ...]]]
"""From the cards of a node, and how many steps it runs at a time, to the groups that one step gets together."""


def one_each(cards: Sequence[int], _slots: int) -> Sequence[Tuple[int, ...]]:
    """No groups."""
    return [(card,) for card in cards]


class RemoteNode:
    """An agent. `ready`: steps of this run can run there; `draining`: it takes no new ones; `answered`: its workers
    have said something; `has_cards`: of those that the run names, if it names any."""

    def __init__(self, event: Joined, attachments: Attachments, folder: str) -> None:
        self.agent = event.agent
        self.address = self.name = event.name
        self.size = Node(event.agent, event.slots)
        self.has_cards = True
        self.joined = time.monotonic()
        self.ready = False
        self.draining = False
        self.answered = False
        self.workers: Dict[int, int] = {}  # its worker -> ours
        self.reader = FrameReader()
        self._writer = FrameWriter()
        self._out: List[bytes] = []
        self.blocks = ToNode(self.send, attachments)
        self.results = FromNode(int(usable_memory() * SHARE), folder)

    def begin(self, told: Dict[str, Any], cards: Sequence[int], share: ShareCards) -> None:
        """Steps can run there: what it has told of itself; `cards`: those that the run names."""
        self.ready = True
        self.name = f"{told['host']} ({self.name})"
        names: Dict[int, str] = told["cards"]
        there = [card for card in cards if card in names]
        its = named_cards(share(there, self.size.cpus), names)
        self.has_cards = bool(its) or not cards
        self.size = self.size._replace(memory=told["memory"], cards=its)

    def send(self, message: Message) -> None:
        """Keep a message to be posted. ValueError: it holds 2 GiB or more in one piece."""
        self._out.append(self._writer.frame(message))

    def take_out(self) -> bytes:
        """All that is to be posted."""
        data = b"".join(self._out)
        self._out.clear()
        return data


class RemoteWorker:
    """One worker. `in_lane`: the steps it was sent and has not answered for, in order; `runs`: the step that the agent
    said it is running, when it was last asked."""

    __slots__ = ("in_lane", "local", "node", "pid", "runs")

    def __init__(self, node: RemoteNode, local: int) -> None:
        self.node = node
        self.local = local
        self.pid = 0
        self.in_lane: Dict[int, None] = {}
        self.runs: Optional[int] = None
