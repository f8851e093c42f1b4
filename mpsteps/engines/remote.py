"""Workers on other machines, as the coordinator sees them: an agent on each node, and something that carries bytes.

::

    coordinator's thread                    | carrier's thread    | node
                                            |                     |
    RemoteEngine -- frames, once a turn ----> bus (Dask) ---------> agent == lanes ==> worker, worker, ...
         ^                                  |                     |   |
         +--------- inbox (a queue) <-------+ <-------------------+---+  replies, deaths, ...

To the coordinator a worker there is a worker: it has a number, a lane and one victim when it dies. What differs is the
loss of a node, and what else becomes of nodes: `engines.nodes` has that. Here is what is said to workers and by them.
"""

from __future__ import annotations

import logging
import queue
import time
from typing import Any, Callable, Container, Dict, List, Mapping, Optional, Sequence, Tuple

from mpsteps._ipc import wire
from mpsteps._ipc.bell import LONGEST_SLEEP
from mpsteps._ipc.wire import Failure
from mpsteps.engines.base import EngineFailed, Happening, Message, Replies, WorkerGone
from mpsteps.engines.bus import Broken, Bus, Drain, Event, Joined, Left, Said, Unfit
from mpsteps.engines.node import RemoteNode, RemoteWorker, ShareCards, one_each
from mpsteps.engines.nodes import Nodes
from mpsteps.errors import EngineError, InternalError

STOP_SECONDS = 8.0
"""Agents that were told to leave are given up after this; they end by themselves when their connection is closed."""
SCALE_SECONDS = 1.0
"""How often it is looked whether more or fewer nodes are wanted, and whether one has been waited for long enough."""

logger = logging.getLogger("mpsteps.engine")


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
        rerun_on_loss: bool = False, share_cards: ShareCards = one_each,
    ) -> None:  # fmt: skip
        self._bus = bus
        self._nodes = Nodes(bus, setup, about, folder, rerun_on_loss, share_cards)
        self.open_steps: Callable[[], int] = lambda: 0
        self._inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._opened = False
        self._cut_off = False  # nobody can be reached any more: agents notice, and end by themselves
        self._look_at = 0.0

    @property
    def most(self) -> int:
        """As many workers there have been at a time."""
        return self._nodes.most

    # ------------------------------------------------------------------------ beginning

    def prepare(self) -> None:
        """Begin to bring nodes up. Raises EngineError, with nothing left behind, if that cannot be done."""
        self._bus.open(self._inbox)
        self._opened = True

    def start(self) -> None:
        """From now on workers are set up."""
        if not self._opened:
            self.prepare()
        self._nodes.start()

    # ------------------------------------------------------------------- while it runs

    def send(self, worker: int, messages: List[Message]) -> None:
        """Put step messages and orders on their way to a worker."""
        w = self._nodes.workers.get(worker)
        if w is None:
            return  # it is gone: `wait` has told so, or will, and these steps were never begun
        steps = [m for m in messages if m[0] > 0]
        for m in messages:
            if m[0] == -wire.FREE:
                w.node.results.free(m[1])
                for node in self._nodes.by_agent.values():
                    for key in m[1]:
                        node.blocks.freed(key)
        if w.node.draining and steps:
            self._nodes.happened.append(Replies(worker, [(-wire.RETURNED, m[0]) for m in steps]))
            self._nodes.leave_if_idle(worker)
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

    def _send_one_by_one(self, worker: int, w: RemoteWorker, messages: List[Message]) -> None:
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
                self._nodes.happened.append(Replies(worker, [(m[0], 0.0, 0.0, None, tuple(failure))]))
            else:
                if m[0] > 0:
                    w.in_lane[m[0]] = None

    def number_peers(
        self, outgoing: Sequence[Tuple[int, List[Message]]], apart: Mapping[int, int], ended: Container[int]
    ) -> None:
        """Steps follow steps of their own lane only."""

    def revoke(self, worker: int) -> None:
        """Take back what is not begun; `wait` tells which steps are back."""
        self._tell(worker, "revoke")

    def log(self, worker: int) -> Optional[str]:
        """None: what a worker of another node writes is seen here when its step has ended."""
        return None

    def running(self, worker: int) -> Optional[int]:
        """The step that a worker has begun, as its agent said when it was asked last; it is asked again."""
        w = self._nodes.workers.get(worker)
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
        w = self._nodes.workers.get(worker)
        if w is not None:
            w.node.send((what, w.local, *rest))

    def pid(self, worker: int) -> int:
        """The worker's process id on its node; 0 while it is not known."""
        w = self._nodes.workers.get(worker)
        return w.pid if w else 0

    def wake(self) -> None:
        """Make `wait` return."""
        self._inbox.put(None)

    def wait(self, timeout: Optional[float]) -> List[Happening]:
        """Send what is to be sent, then sleep until something comes."""
        self._flush()
        nodes = self._nodes
        if nodes.happened:
            return self._take_happened()
        now = time.monotonic()
        if self._opened and not nodes.stopping and self._look_at <= now:
            self._look_at = now + SCALE_SECONDS
            busy = {w.node.agent for w in nodes.workers.values() if w.in_lane}
            self._bus.scale(self.open_steps(), sorted(busy))
            nodes.look(now, self.open_steps())
        end = min(now + (LONGEST_SLEEP if timeout is None else min(timeout, LONGEST_SLEEP)), nodes.give_up_at)
        try:
            event = self._inbox.get(timeout=0.0 if nodes.happened else max(0.0, end - time.monotonic()))
            while True:
                self._hear(event)
                event = self._inbox.get_nowait()
        except queue.Empty:
            pass  # the time is up, or all is heard
        if nodes.give_up_at <= time.monotonic():
            nodes.look(time.monotonic(), self.open_steps())
        self._flush()
        return self._take_happened()

    def _flush(self) -> None:
        for node in self._nodes.by_agent.values():
            data = node.take_out()
            if data:
                self._bus.post(node.agent, data)

    def _take_happened(self) -> List[Happening]:
        happened, self._nodes.happened = self._nodes.happened, []
        return happened

    # ------------------------------------------------------------------------- hearing

    def _hear(self, event: Event) -> None:
        if event is None:
            return
        nodes = self._nodes
        if isinstance(event, (Said, Left, Drain)):
            node = nodes.by_agent.get(event.agent)
            if node is None:
                return  # it was given up
            if isinstance(event, Said):
                self._hear_said(node, event.data)
            elif isinstance(event, Left):
                nodes.lose(node, event.why)
            else:
                nodes.drain(node)
        elif isinstance(event, Joined):
            nodes.join(event)
        elif isinstance(event, Unfit):
            nodes.do_without(f"node {event.name} cannot be used: {event.why}")
        elif isinstance(event, Broken):
            self._cut_off = True
            if not nodes.stopping:
                nodes.happened.append(EngineFailed(event.why))
        else:
            logger.warning("%s", event.text)

    def _hear_said(self, node: RemoteNode, data: bytes) -> None:
        try:
            for message in node.reader.feed(data):
                self._hear_agent(node, message)
                if node.agent not in self._nodes.by_agent:
                    return  # it has just said that it cannot be used
        except (EngineError, KeyError, ValueError, TypeError, EOFError) as error:
            self._nodes.misunderstood(node, f"what it says makes no sense ({type(error).__name__}: {error})")

    def _hear_agent(self, node: RemoteNode, message: Message) -> None:
        what = message[0]
        if what == "replies":
            self._replies(node, *message[1:])
        elif node.results.hear(message):
            pass
        elif what == "want":
            self._nodes.want(node, message[1])
        elif what == "unused":
            node.blocks.unused(*message[1:])
        elif what == "ready":
            self._nodes.ready(node, message[1])
        elif what == "refused":
            self._nodes.refuse(node, message[1])
        elif what == "failed":
            self._nodes.give_up(node, message[1])
        elif what == "draining":
            self._nodes.drain(node)
        elif what == "log":
            logger.log(message[1], "%s: %s", node.name, message[2])
        else:
            number = node.workers.get(message[1])
            if number is not None:
                self._hear_worker(number, message)

    def _hear_worker(self, number: int, message: Message) -> None:
        what = message[0]
        if what == "up":
            self._nodes.up(number, message[2])
        elif what == "running":
            self._nodes.workers[number].runs = message[2]
        elif what == "gone":
            _, _, pid, exitcode, done, began, peak_kib, log, why = message
            self._nodes.forget(number)
            self._nodes.happened.append(
                WorkerGone(number, pid, exitcode, tuple(done), began, peak_kib, log, Failure(*why))
            )
        else:
            raise EngineError(f"an agent said {what!r}")

    def _replies(self, node: RemoteNode, local: int, messages: List[Message], apart: int) -> None:
        number = node.workers.get(local)
        if number is None:
            return
        w = self._nodes.workers[number]
        node.answered = True
        replies: List[Message] = []
        for m in messages:
            if m[0] > 0:
                w.in_lane.pop(m[0], None)
                self._nodes.answered(m[0])
                reply = node.results.reply(m)
                if reply is None:
                    reply = _no_room(m)
                replies.append(reply)
                continue
            if m[0] == -wire.FINISHED:
                for step in m[1]:
                    w.in_lane.pop(step, None)
                    self._nodes.answered(step)
            elif m[0] == -wire.RETURNED:
                w.in_lane.pop(m[1], None)
            replies.append(m)
        self._nodes.happened.append(Replies(number, replies, apart))
        self._nodes.leave_if_idle(number)

    # --------------------------------------------------------------------------- the end

    def stop(self, at_once: bool = False) -> None:
        """End all workers, all agents, and the nodes that were brought up for this."""
        nodes = self._nodes
        nodes.stopping = True
        if not self._opened:
            return
        self._opened = False
        try:
            for node in nodes.by_agent.values():
                node.send(("stop", at_once))
            self._flush()
            end = time.monotonic() + STOP_SECONDS
            while nodes.by_agent and not self._cut_off and time.monotonic() < end:
                try:
                    self._hear(self._inbox.get(timeout=max(0.0, end - time.monotonic())))
                except queue.Empty:
                    break
        finally:
            self._bus.close()
            nodes.close()


def _no_room(reply: Message) -> Message:
    failure = Failure(
        "lost", "StepLost", "it finished, and there is no room here for what it returned, neither in shared memory nor "
        "in files: return less, or write it to a file and return the path",
    )  # fmt: skip
    return (*reply[:3], None, tuple(failure))
