"""The nodes of a run: who has joined, what their workers have in hand, how they are left, and what becomes of steps.

A node joins, is ready, and leaves in one of three ways. It is *drained*: nothing new goes there, what has not begun
comes back, and it goes when the rest has ended. It is *lost*: then nobody can say which steps of its lanes had begun,
so those that were there and are not answered for are lost, unless they may be repeated. Or it is *done without*: it
cannot run steps of this run, and if there is no other, the run ends.
"""

from __future__ import annotations

import logging
import math
import time
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from mpsteps._core.nodes import named_cards
from mpsteps._core.steps import Node
from mpsteps._ipc import wire
from mpsteps._ipc.blocks import Attachments
from mpsteps._ipc.wire import Failure
from mpsteps._large_values import SHARE
from mpsteps._machine import usable_memory
from mpsteps.engines.base import EngineFailed, Happening, Message, Replies, WorkerGone, WorkerUp
from mpsteps.engines.bus import Bus, Joined
from mpsteps.engines.carried import FromNode, ToNode
from mpsteps.engines.frames import FrameReader, FrameWriter

OTHERS_SECONDS = 2.0
"""When a node cannot run steps of this run, and there is no other, another one is waited for so long."""
READY_SECONDS = 120.0
"""An agent that has not said by then whether it can run steps (a file system hangs, say) is done without."""
CARD_SECONDS = 60.0
"""When steps wait for cards and no node has any, another node is waited for so long."""
AGAIN_SECONDS = 60.0
"""A node that was drained, and is still there so long after, may be used again."""
AGENT_TRIES = 3
"""When so many agents of a node in a row have ended without a word of their workers, no other is asked for there."""
LOSS_TRIES = 3
"""A step that may be repeated, and that was running on so many nodes when they were lost, has lost them, it seems."""

logger = logging.getLogger("mpsteps.engine")

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


class Nodes:
    """All nodes and their workers. What the coordinator must hear of them is put into `happened`.

    Invariant: a worker is in `workers` if and only if it is among the workers of its node, and that is in `by_agent`.
    """

    def __init__(
        self, bus: Bus, setup: Callable[[int], Dict[str, Any]], about: Dict[str, Any], folder: str,
        rerun_on_loss: bool, share_cards: ShareCards,
    ) -> None:  # fmt: skip
        self._share_cards = share_cards
        self._no_cards_since = math.inf
        self._bus = bus
        self._setup = setup
        self._about = about
        self._folder = folder
        self._rerun = rerun_on_loss
        self._first_log = int(about.get("first_log") or 0)
        self.by_agent: Dict[int, RemoteNode] = {}
        self.workers: Dict[int, RemoteWorker] = {}
        self.most = 0  # as many workers there have been at a time
        self.happened: List[Happening] = []
        self.stopping = False
        self._last = 0
        self._started = False
        self._held: List[Tuple[RemoteNode, int]] = []  # workers that wait for `start`
        self._attachments = Attachments()
        self._failed: Dict[str, int] = {}  # node's address -> agents in a row that have come to nothing
        self._losses: Dict[int, int] = {}  # step that is to run again -> how many nodes were lost while it ran there
        self._drained: List[Tuple[float, int]] = []  # agents that have left in order, and when they may be had again
        self._refused = ""
        self.give_up_at = math.inf  # unless there is another node by then

    # ------------------------------------------------------------------------- joining

    def start(self) -> None:
        """From now on workers are set up."""
        self._started = True
        held, self._held = self._held, []
        for node, local in held:
            self.want(node, local)

    def join(self, event: Joined) -> None:
        """There is an agent: it is told what it must know."""
        if self.stopping:
            return  # when the bus is closed, it ends
        node = self.by_agent[event.agent] = RemoteNode(event, self._attachments, self._folder)
        first_log = self._first_log + 1_000_000 * event.agent
        node.send(("begin", {**self._about, "workers": event.slots, "first_log": first_log}))

    def ready(self, node: RemoteNode, told: Dict[str, Any]) -> None:
        """Steps of this run can run there."""
        node.ready = True
        node.name = f"{told['host']} ({node.name})"
        names: Dict[int, str] = told["cards"]
        there = [card for card in self._about.get("cards", ()) if card in names]
        cards = named_cards(self._share_cards(there, node.size.cpus), names)
        node.size = node.size._replace(memory=told["memory"], cards=cards)
        if self._about.get("cards") and not cards:
            node.has_cards = False
            logger.warning("node %s has none of the run's graphics cards: steps that need one run elsewhere", node.name)

    def want(self, node: RemoteNode, local: int) -> None:
        """A worker there waits to be set up."""
        if node.draining or node.agent not in self.by_agent:
            return  # it would be the replacement of one that has died, or of a node that is gone
        if not self._started:
            self._held.append((node, local))
            return
        self._last = number = self._last + 1
        self.workers[number] = RemoteWorker(node, local)
        node.workers[local] = number
        self.most = max(self.most, len(self.workers))
        node.send(("setup", local, node.blocks.setup(self._setup(number))))

    def up(self, number: int, pid: int) -> None:
        """A worker is set up."""
        w = self.workers[number]
        w.pid = pid
        if w.node.draining:
            self.leave_if_idle(number)
        else:
            self.happened.append(WorkerUp(number, pid, w.node.size))

    # ------------------------------------------------------------------------ in order

    def drain(self, node: RemoteNode) -> None:
        """It is to be left: what it has not begun comes back, what runs there may end."""
        if node.draining:
            return
        node.draining = True
        logger.warning("node %s is about to leave: it is given no new steps", node.name)
        for number, w in self._workers_of(node):
            if w.in_lane:
                node.send(("revoke", w.local))
            else:
                self.leave_if_idle(number)
        self._let_go_if_empty(node)

    def leave_if_idle(self, number: int) -> None:
        """On a node that is to be left, a worker whose lane is empty is no more."""
        w = self.workers.get(number)
        if w is not None and w.node.draining and not w.in_lane:
            self.forget(number)
            self.happened.append(WorkerGone(number, w.pid, None, (), None, 0, ""))

    def forget(self, number: int) -> None:
        """A worker is no more."""
        w = self.workers.pop(number)
        w.node.workers.pop(w.local, None)
        self._let_go_if_empty(w.node)

    def _let_go_if_empty(self, node: RemoteNode) -> None:
        """Nothing runs any more on a node that is to be left."""
        if node.draining and not node.workers and not self.stopping:
            node.send(("stop", False))

    def _workers_of(self, node: RemoteNode) -> List[Tuple[int, RemoteWorker]]:
        return [(number, self.workers[number]) for number in node.workers.values()]

    # ----------------------------------------------------------------------- not at all

    def refuse(self, node: RemoteNode, why: str) -> None:
        """A node cannot run steps of this run."""
        self._drop(node, why)
        self.do_without(f"node {node.name} cannot run steps of this run: {why}")

    def do_without(self, why: str) -> None:
        """A node cannot be used; unless there is another one soon, that is the end of the run."""
        self._refused = why
        logger.warning("%s", why)
        self.give_up_at = time.monotonic() + OTHERS_SECONDS

    def give_up(self, node: RemoteNode, why: str) -> None:
        """No more workers can be had there."""
        self._refused = f"on {node.name}: {why}"
        self.give_up_at = time.monotonic() + OTHERS_SECONDS
        self._failed[node.address] = AGENT_TRIES
        self.drain(node)

    def look(self, now: float, open_steps: int) -> None:
        """Whether the time for something is up. `open_steps`: so many wait or run."""
        if self._nobody_can(open_steps):
            self._no_cards_since = min(self._no_cards_since, now)
            if self._no_cards_since + CARD_SECONDS <= now:
                self.happened.append(EngineFailed(
                    f"{open_steps} steps need graphics cards, and no node has any of {list(self._about['cards'])}: "
                    "look at CUDA_VISIBLE_DEVICES and /dev/nvidia* there"
                ))  # fmt: skip
        else:
            self._no_cards_since = math.inf
        for node in [n for n in self.by_agent.values() if not n.ready and n.joined + READY_SECONDS <= now]:
            self.refuse(node, f"its agent has not answered for {READY_SECONDS:g} s")
        while self._drained and self._drained[0][0] <= now:
            self._bus.again(self._drained.pop(0)[1])
        if self.give_up_at <= now:
            self.give_up_at = math.inf
            if all(node.draining for node in self.by_agent.values()):
                self.happened.append(EngineFailed(self._refused))

    def _nobody_can(self, open_steps: int) -> bool:
        """Whether all workers are there and have nothing to do, though steps wait: then these need cards."""
        nodes, workers = self.by_agent.values(), self.workers.values()
        return (
            open_steps > 0 and bool(workers) and not any(n.has_cards or not n.workers for n in nodes)
            and all(w.pid and not w.in_lane for w in workers)
        )  # fmt: skip

    # ----------------------------------------------------------------------------- lost

    def lose(self, node: RemoteNode, why: str) -> None:
        """An agent is gone, and its workers with it. If its Dask worker has outlived it, another agent is wanted."""
        self._take_out(node, why)
        if self.stopping:
            return
        if node.draining:
            if self._failed.get(node.address, 0) < AGENT_TRIES:
                self._drained.append((time.monotonic() + AGAIN_SECONDS, node.agent))
            return
        failed = 0 if node.answered else self._failed.get(node.address, 0) + 1
        self._failed[node.address] = failed
        if failed < AGENT_TRIES:
            self._bus.again(node.agent)
        else:
            self.do_without(f"node {node.name} cannot be used: {failed} agents in a row have come to nothing ({why})")

    def misunderstood(self, node: RemoteNode, why: str) -> None:
        """What an agent says makes no sense: nothing more is wanted of it."""
        self._drop(node, why)
        self.do_without(f"node {node.name} cannot be used: {why}")

    def _drop(self, node: RemoteNode, why: str) -> None:
        self._bus.drop(node.agent)
        self._take_out(node, why)

    def _take_out(self, node: RemoteNode, why: str) -> None:
        del self.by_agent[node.agent]
        mine = self._workers_of(node)
        lost = sum(len(w.in_lane) for _, w in mine)
        if lost and not self.stopping:
            fate = "run again elsewhere" if self._rerun else "are lost"
            logger.warning("node %s was lost (%s): %d steps that were there %s", node.name, why, lost, fate)
        elif node.ready and not node.draining and not self.stopping:
            logger.warning("node %s was lost (%s); no step was there", node.name, why)
        for number, w in mine:
            if w.in_lane:
                self.happened.append(Replies(number, self._fates(w, why)))
            del self.workers[number]
            self.happened.append(WorkerGone(number, w.pid, None, (), None, 0, ""))
        node.workers.clear()
        node.results.close()

    def _fates(self, w: RemoteWorker, why: str) -> List[Message]:
        """What the coordinator is told of steps that were in a lane."""
        why = f"its node {w.node.name} was lost ({why})"
        if not self._rerun:
            why += (
                "; whether it has run is not known. Steps that may be repeated can be declared so: retries=, or "
                "rerunOnLoss on the protocol"
            )
            return [_lost(step, w, why) for step in w.in_lane]
        first = next(iter(w.in_lane))  # the others had not begun, as far as anybody knows
        losses = self._losses[first] = self._losses.get(first, 0) + 1
        fates: List[Message] = [(-wire.RETURNED, step) for step in w.in_lane]
        if losses >= LOSS_TRIES:
            del self._losses[first]
            fates[0] = _lost(first, w, f"{why}; {losses} nodes have been lost while it ran there")
        return fates

    def answered(self, step: int) -> None:
        """A step has come to its end."""
        if self._losses:
            self._losses.pop(step, None)

    # -------------------------------------------------------------------------- the end

    def close(self) -> None:
        """Nothing is wanted of any node any more."""
        for node in self.by_agent.values():
            node.results.close()
        self.by_agent.clear()
        self.workers.clear()
        self.happened.clear()
        self._attachments.close()


def _lost(step: int, w: RemoteWorker, why: str) -> Message:
    return (step, 0.0, 0.0, None, tuple(Failure("lost", "StepLost", why, pid=w.pid)))
