"""Workers on other machines, as the coordinator sees them: an agent on each node, and something that carries bytes.

::

    coordinator's thread                    | carrier's thread    | node
                                            |                     |
    RemoteEngine -- frames, once a turn ----> bus (Dask) ---------> agent == lanes ==> worker, worker, ...
         ^                                  |                     |   |
         +--------- inbox (a queue) <-------+ <-------------------+---+  replies, deaths, ...

To the coordinator a worker there is a worker: it has a number, a lane and one victim when it dies. What differs is the
loss of a node. Then nobody can say which steps of its lanes had begun: those that were there and are not answered for
are lost, unless they may be repeated (`rerun_on_loss`); those that were not sent yet go elsewhere.
"""

from __future__ import annotations

import logging
import math
import queue
import time
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from mpsteps._core.steps import Node
from mpsteps._ipc import wire
from mpsteps._ipc.bell import LONGEST_SLEEP
from mpsteps._ipc.blocks import Attachments
from mpsteps._ipc.wire import Failure
from mpsteps._large_values import SHARE
from mpsteps._machine import usable_memory
from mpsteps.engines.base import EngineFailed, Happening, Message, Replies, WorkerGone, WorkerUp
from mpsteps.engines.bus import Broken, Bus, Drain, Event, Joined, Left, Said, Unfit
from mpsteps.engines.carried import FromNode, ToNode
from mpsteps.engines.frames import FrameReader, FrameWriter
from mpsteps.errors import EngineError, InternalError

OTHERS_SECONDS = 2.0
"""When a node cannot run steps of this run, and there is no other, another one is waited for so long."""
STOP_SECONDS = 8.0
"""Agents that were told to leave are given up after this; they end by themselves when their connection is closed."""
AGENT_TRIES = 3
"""When so many agents of a node in a row have ended without a word of their workers, no other is asked for there."""
SCALE_SECONDS = 1.0
"""How often it is looked whether more or fewer nodes are wanted."""

logger = logging.getLogger("mpsteps.engine")


class _Node:
    """An agent. `ready`: steps of this run can run there; `draining`: it takes no new ones; `answered`: its workers
    have said something."""

    def __init__(self, event: Joined, attachments: Attachments, limit: int, folder: str) -> None:
        self.agent = event.agent
        self.address = self.name = event.name
        self.size = Node(event.agent, event.slots)
        self.ready = False
        self.draining = False
        self.answered = False
        self.workers: Dict[int, int] = {}  # its worker -> ours
        self.reader = FrameReader()
        self._writer = FrameWriter()
        self._out: List[bytes] = []
        self.blocks = ToNode(self.send, attachments)
        self.results = FromNode(limit, folder)

    def send(self, message: Message) -> None:
        """Keep a message to be posted. ValueError: it holds 2 GiB or more in one piece."""
        self._out.append(self._writer.frame(message))

    def take_out(self) -> bytes:
        """All that is to be posted."""
        data = b"".join(self._out)
        self._out.clear()
        return data


class _Worker:
    """One worker. `in_lane`: the steps it was sent and has not answered for, in order."""

    __slots__ = ("in_lane", "local", "node", "pid", "runs", "up")

    def __init__(self, node: _Node, local: int) -> None:
        self.node = node
        self.local = local
        self.pid = 0
        self.up = False
        self.in_lane: Dict[int, None] = {}
        self.runs: Optional[int] = None  # the step that the agent said it is running, when it was last asked


class RemoteEngine:
    """Runs steps on the nodes of a bus. `setup(worker)` gives what a new worker is set up with; `about`: what agents
    must know of the run (see `Agent._begin`); `folder`: where results go for which there is no shared memory;
    `rerun_on_loss`: steps that were on a node that is lost may be run again. All methods are for one thread, `wake` for
    any. `open_steps`: set by whoever knows how many steps wait or run."""

    by_value = True
    across = False
    elsewhere = True

    def __init__(
        self, bus: Bus, setup: Callable[[int], Dict[str, Any]], about: Dict[str, Any], folder: str = "",
        rerun_on_loss: bool = False,
    ) -> None:  # fmt: skip
        self._bus = bus
        self._setup = setup
        self._about = about
        self._folder = folder
        self._rerun = rerun_on_loss
        self.open_steps: Callable[[], int] = lambda: 0
        self._inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._nodes: Dict[int, _Node] = {}
        self._workers: Dict[int, _Worker] = {}
        self._last = 0
        self.most = 0  # as many workers there have been at a time
        self._first_log = int(about.get("first_log") or 0)
        self._attachments = Attachments()
        self._happened: List[Happening] = []
        self._held: List[Tuple[_Node, int]] = []  # workers that wait for `start`
        self._started = False
        self._opened = False
        self._stopping = False
        self._cut_off = False  # nobody can be reached any more: agents notice, and end by themselves
        self._failed: Dict[str, int] = {}  # node's address -> agents in a row that have come to nothing
        self._refused = ""
        self._give_up_at = math.inf  # unless there is another node by then
        self._scale_at = 0.0

    # ------------------------------------------------------------------------ beginning

    def prepare(self) -> None:
        """Begin to bring nodes up. Raises EngineError, with nothing left behind, if that cannot be done."""
        self._bus.open(self._inbox)
        self._opened = True

    def start(self) -> None:
        """From now on workers are set up."""
        if not self._opened:
            self.prepare()
        self._started = True
        held, self._held = self._held, []
        for node, local in held:
            self._want(node, local)

    def _joined(self, event: Joined) -> None:
        if self._stopping:
            return  # when the bus is closed, it ends
        node = _Node(event, self._attachments, int(usable_memory() * SHARE), self._folder)
        self._nodes[event.agent] = node
        first_log = self._first_log + 1_000_000 * event.agent
        node.send(("begin", {**self._about, "workers": event.slots, "first_log": first_log}))

    def _want(self, node: _Node, local: int) -> None:
        """A worker there waits to be set up."""
        if node.draining:
            return  # it would be the replacement of one that has died
        if not self._started:
            self._held.append((node, local))
            return
        self._last = number = self._last + 1
        self._workers[number] = _Worker(node, local)
        node.workers[local] = number
        self.most = max(self.most, len(self._workers))
        node.send(("setup", local, node.blocks.setup(self._setup(number))))

    # ------------------------------------------------------------------- while it runs

    def send(self, worker: int, messages: List[Message]) -> None:
        """Put step messages and orders on their way to a worker."""
        w = self._workers.get(worker)
        if w is None:
            return  # it is gone: `wait` has told so, or will, and these steps were never begun
        steps = [m for m in messages if m[0] > 0]
        for m in messages:
            if m[0] == -wire.FREE:
                w.node.results.free(m[1])
                for node in self._nodes.values():
                    for key in m[1]:
                        node.blocks.freed(key)
        if w.node.draining and steps:
            self._happened.append(Replies(worker, [(-wire.RETURNED, m[0]) for m in steps]))
            self._leave_if_idle(worker, w)
            return
        outgoing = [w.node.blocks.step(m) if m[0] > 0 else m for m in messages if m[0] != -wire.FREE]
        if not outgoing:
            return
        try:
            w.node.send(("send", w.local, outgoing))
        except ValueError:  # one of them holds more than marshal's 2 GiB
            self._send_one_by_one(worker, w, outgoing)
            return
        for m in steps:
            w.in_lane[m[0]] = None

    def _send_one_by_one(self, worker: int, w: _Worker, messages: List[Message]) -> None:
        for m in messages:
            try:
                w.node.send(("send", w.local, [m]))
            except ValueError:
                if m[0] < 0:
                    raise InternalError(f"worker {worker} cannot be sent order {m[0]}: it is too large") from None
                failure = Failure(
                    "serialization", "ValueError", "an argument cannot travel to a worker process: it holds 2 GiB or "
                    "more; write it to a file and pass the path", part="an argument",
                )  # fmt: skip
                self._happened.append(Replies(worker, [(m[0], 0.0, 0.0, None, tuple(failure))]))
            else:
                if m[0] > 0:
                    w.in_lane[m[0]] = None

    def number_peers(self, outgoing: Sequence[Tuple[int, List[Message]]]) -> None:
        """Steps follow steps of their own lane only."""

    def revoke(self, worker: int) -> None:
        """Take back what is not begun; `wait` tells which steps are back."""
        self._tell(worker, "revoke")

    def log(self, worker: int) -> Optional[str]:
        """None: what a worker of another node writes is seen here when its step has ended."""
        return None

    def running(self, worker: int) -> Optional[int]:
        """The step that a worker has begun, as its agent said when it was asked last; it is asked again."""
        w = self._workers.get(worker)
        if w is None:
            return None
        step, w.runs = w.runs, None
        if step is not None and step in w.in_lane:
            return step
        self._tell(worker, "running")
        return None

    def limit_memory(self, worker: int, step: int, limit: int) -> None:
        """Have the agent look."""
        self._tell(worker, "limit", step, limit)

    def kill(self, worker: int, signal: int) -> None:
        """Have the agent send a signal."""
        self._tell(worker, "kill", int(signal))

    def _tell(self, worker: int, what: str, *rest: Any) -> None:
        w = self._workers.get(worker)
        if w is not None:
            w.node.send((what, w.local, *rest))

    def pid(self, worker: int) -> int:
        """The worker's process id on its node; 0 while it is not known."""
        w = self._workers.get(worker)
        return w.pid if w else 0

    def wake(self) -> None:
        """Make `wait` return."""
        self._inbox.put(None)

    def wait(self, timeout: Optional[float]) -> List[Happening]:
        """Send what is to be sent, then sleep until something comes."""
        self._flush()
        if self._happened:
            return self._take_happened()
        now = time.monotonic()
        end = min(now + (LONGEST_SLEEP if timeout is None else min(timeout, LONGEST_SLEEP)), self._give_up_at)
        if self._opened and not self._stopping and self._scale_at <= time.monotonic():
            self._scale_at = time.monotonic() + SCALE_SECONDS
            busy = {w.node.agent for w in self._workers.values() if w.in_lane}
            self._bus.scale(self.open_steps(), sorted(busy))
        try:
            event = self._inbox.get(timeout=max(0.0, end - time.monotonic()))
            while True:
                self._hear(event)
                event = self._inbox.get_nowait()
        except queue.Empty:
            pass  # the time is up, or all is heard
        if self._give_up_at <= time.monotonic():
            self._give_up_at = math.inf
            if all(node.draining for node in self._nodes.values()):
                self._happened.append(EngineFailed(self._refused))
        self._flush()
        return self._take_happened()

    def _flush(self) -> None:
        for node in self._nodes.values():
            data = node.take_out()
            if data:
                self._bus.post(node.agent, data)

    def _take_happened(self) -> List[Happening]:
        happened, self._happened = self._happened, []
        return happened

    # ------------------------------------------------------------------------- hearing

    def _hear(self, event: Event) -> None:
        if event is None:
            return
        if isinstance(event, Said):
            node = self._nodes.get(event.agent)
            if node is None:
                return  # it was given up
            try:
                for message in node.reader.feed(event.data):
                    self._hear_agent(node, message)
            except (EngineError, KeyError, ValueError, TypeError, EOFError) as error:
                self._lose(node, f"what it says makes no sense ({type(error).__name__}: {error})")
        elif isinstance(event, Joined):
            self._joined(event)
        elif isinstance(event, Left):
            node = self._nodes.get(event.agent)
            if node is not None:
                self._lose(node, event.why)
        elif isinstance(event, Unfit):
            self._do_without(f"node {event.name} cannot be used: {event.why}")
        elif isinstance(event, Drain):
            node = self._nodes.get(event.agent)
            if node is not None:
                self._drain(node)
        elif isinstance(event, Broken):
            self._cut_off = True
            if not self._stopping:
                self._happened.append(EngineFailed(event.why))
        else:
            logger.warning("%s", event.text)

    def _hear_agent(self, node: _Node, message: Message) -> None:
        what = message[0]
        if what == "replies":
            self._replies(node, *message[1:])
        elif node.results.hear(message):
            pass
        elif what == "want":
            self._want(node, message[1])
        elif what == "unused":
            node.blocks.unused(*message[1:])
        elif what == "ready":
            node.ready = True
            node.name = f"{message[1]['host']} ({node.name})"
            node.size = node.size._replace(memory=message[1]["memory"])
        elif what == "refused":
            self._refuse(node, message[1])
        elif what == "failed":
            self._give_up(node, message[1])
        elif what == "draining":
            self._drain(node)
        elif what == "log":
            logger.log(message[1], "%s: %s", node.name, message[2])
        else:
            number = node.workers.get(message[1])
            if number is not None:
                self._hear_worker(number, self._workers[number], message)

    def _hear_worker(self, number: int, w: _Worker, message: Message) -> None:
        what = message[0]
        if what == "up":
            w.up, w.pid = True, message[2]
            if w.node.draining:
                self._leave_if_idle(number, w)
            else:
                self._happened.append(WorkerUp(number, w.pid, w.node.size))
        elif what == "running":
            w.runs = message[2]
        elif what == "gone":
            _, _, pid, exitcode, done, began, peak_kib, log, why = message
            self._forget(number, w)
            self._happened.append(
                WorkerGone(number, pid, exitcode, tuple(done), began, peak_kib, log, Failure(*why))
            )
            self._let_go_if_empty(w.node)
        else:
            raise EngineError(f"an agent said {what!r}")

    def _replies(self, node: _Node, local: int, messages: List[Message], apart: int) -> None:
        number = node.workers.get(local)
        if number is None:
            return
        w = self._workers[number]
        node.answered = True
        replies: List[Message] = []
        for m in messages:
            if m[0] > 0:
                w.in_lane.pop(m[0], None)
                reply = node.results.reply(m)
                if reply is None:
                    reply = _no_room(m)
                replies.append(reply)
                continue
            if m[0] == -wire.FINISHED:
                for step in m[1]:
                    w.in_lane.pop(step, None)
            elif m[0] == -wire.RETURNED:
                w.in_lane.pop(m[1], None)
            replies.append(m)
        self._happened.append(Replies(number, replies, apart))
        if node.draining:
            self._leave_if_idle(number, w)

    # -------------------------------------------------------------------------- leaving

    def _refuse(self, node: _Node, why: str) -> None:
        """A node cannot run steps of this run: do without, if there is another."""
        self._nodes.pop(node.agent)
        node.results.close()
        self._do_without(f"node {node.name} cannot run steps of this run: {why}")

    def _do_without(self, why: str) -> None:
        self._refused = why
        logger.warning("%s", why)
        self._give_up_at = time.monotonic() + OTHERS_SECONDS

    def _give_up(self, node: _Node, why: str) -> None:
        """No more workers can be had there."""
        self._refused = f"on {node.name}: {why}"
        self._give_up_at = time.monotonic() + OTHERS_SECONDS
        self._drain(node)

    def _drain(self, node: _Node) -> None:
        """It is to be left: what it has not begun comes back, what runs there may end."""
        if node.draining:
            return
        node.draining = True
        logger.warning("node %s is about to leave: it is given no new steps", node.name)
        for number, w in [(n, w) for n, w in self._workers.items() if w.node is node]:
            if w.in_lane:
                node.send(("revoke", w.local))
            else:
                self._leave_if_idle(number, w)
        self._let_go_if_empty(node)

    def _leave_if_idle(self, number: int, w: _Worker) -> None:
        """On a node that is to be left, a worker whose lane is empty is no more."""
        if not w.in_lane and number in self._workers:
            self._forget(number, w)
            self._happened.append(WorkerGone(number, w.pid, None, (), None, 0, ""))
            self._let_go_if_empty(w.node)

    def _let_go_if_empty(self, node: _Node) -> None:
        """Nothing runs any more on a node that is to be left."""
        if node.draining and not node.workers and not self._stopping:
            node.send(("stop", False))

    def _forget(self, number: int, w: _Worker) -> None:
        del self._workers[number]
        w.node.workers.pop(w.local, None)

    def _lose(self, node: _Node, why: str) -> None:
        """An agent is gone, and its workers with it."""
        del self._nodes[node.agent]
        mine = [(number, w) for number, w in self._workers.items() if w.node is node]
        lost = [step for _, w in mine for step in w.in_lane]
        if not self._stopping:
            if lost:
                fate = "run again elsewhere" if self._rerun else "are lost"
                logger.warning("node %s was lost (%s): %d steps that were there %s", node.name, why, len(lost), fate)
            elif node.ready and not node.draining:
                logger.warning("node %s was lost (%s); no step was there", node.name, why)
        for number, w in mine:
            if w.in_lane:
                self._happened.append(Replies(number, self._fates(node, w, why)))
            self._forget(number, w)
            self._happened.append(WorkerGone(number, w.pid, None, (), None, 0, ""))
        node.results.close()
        if not node.draining and not self._stopping:
            self._replace(node, why)

    def _replace(self, node: _Node, why: str) -> None:
        """Another agent for a node, if that is still there: its Dask worker may have outlived the agent."""
        failed = 0 if node.answered else self._failed.get(node.address, 0) + 1
        self._failed[node.address] = failed
        if failed < AGENT_TRIES:
            self._bus.again(node.agent)
        else:
            self._do_without(f"node {node.name} cannot be used: {failed} agents in a row have come to nothing ({why})")

    def _fates(self, node: _Node, w: _Worker, why: str) -> List[Message]:
        if self._rerun:
            return [(-wire.RETURNED, step) for step in w.in_lane]
        failure = Failure(
            "lost", "StepLost", f"its node {node.name} was lost ({why}); whether it has run is not known. Steps that "
            "may be repeated can be declared so: retries=, or rerunOnLoss on the protocol", pid=w.pid,
        )  # fmt: skip
        return [(step, 0.0, 0.0, None, tuple(failure)) for step in w.in_lane]

    # --------------------------------------------------------------------------- the end

    def stop(self, at_once: bool = False) -> None:
        """End all workers, all agents, and the nodes that were brought up for this."""
        self._stopping = True
        if not self._opened:
            return
        self._opened = False
        try:
            for node in self._nodes.values():
                node.send(("stop", at_once))
            self._flush()
            end = time.monotonic() + STOP_SECONDS
            while self._nodes and not self._cut_off and time.monotonic() < end:
                try:
                    self._hear(self._inbox.get(timeout=max(0.0, end - time.monotonic())))
                except queue.Empty:
                    break
        finally:
            self._bus.close()
            for node in self._nodes.values():
                node.results.close()
            self._nodes.clear()
            self._workers.clear()
            self._happened.clear()
            self._attachments.close()


def _no_room(reply: Message) -> Message:
    failure = Failure(
        "lost", "StepLost", "it finished, and there is no room here for what it returned, neither in shared memory nor "
        "in files: return less, or write it to a file and return the path",
    )  # fmt: skip
    return (*reply[:3], None, tuple(failure))
