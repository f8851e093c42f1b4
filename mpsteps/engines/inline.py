"""The inline engine: steps run one at a time in the coordinator's own process. For serial mode and for debuggers.

It is the reference for what a protocol means: nothing travels, `self` is `self`. A step cannot be killed here, so
that timeouts are not enforced, and a crash is a crash of the whole run.
"""

from __future__ import annotations

import os
import queue
from collections import deque
from typing import Callable, Container, Deque, List, Mapping, Optional, Sequence, Tuple

from mpsteps.engines.base import Happening, Message, Replies, WorkerUp

_WORKER = 1


class InlineEngine:
    """One "worker": this process. `run_step(message)` runs a step and returns its reply."""

    by_value = False
    across = False
    elsewhere = False

    def __init__(self, run_step: Callable[[Message], Message]) -> None:
        self._run_step = run_step
        self._queue: Deque[Message] = deque()
        self._happened: List[Happening] = []
        self._woken: queue.SimpleQueue[None] = queue.SimpleQueue()  # safe in signal handlers, as Event is not

    def start(self) -> None:
        """Nothing to start."""
        self._happened.append(WorkerUp(_WORKER, os.getpid()))

    def send(self, worker: int, messages: List[Message]) -> None:
        """Queue steps."""
        self._queue.extend(m for m in messages if m[0] > 0)

    def revoke(self, worker: int) -> None:
        """Give back what is queued."""
        from mpsteps._ipc import wire

        if self._queue:
            self._happened.append(Replies(_WORKER, [(-wire.RETURNED, m[0]) for m in self._queue]))
            self._queue.clear()

    def running(self, worker: int) -> Optional[int]:
        """None: while a step runs here, nobody can ask."""
        return None

    def log(self, worker: int) -> Optional[str]:
        """None: steps write where this process writes."""
        return None

    def number_peers(
        self, outgoing: Sequence[Tuple[int, List[Message]]], apart: Mapping[int, int], ended: Container[int]
    ) -> None:
        """There is one lane."""

    def limit_memory(self, worker: int, step: int, limit: int) -> None:
        """There is one process."""

    def kill(self, worker: int, signal: int) -> None:
        """A step in this process cannot be killed; a second Ctrl-C interrupts it instead."""

    def wait(self, timeout: Optional[float]) -> List[Happening]:
        """Run the next step, if there is one; else sleep."""
        if self._happened:
            happened, self._happened = self._happened, []
            return happened
        if self._queue:
            return [Replies(_WORKER, [self._run_step(self._queue.popleft())])]
        try:
            self._woken.get(timeout=timeout)
        except queue.Empty:
            pass  # the time is up
        return []

    def wake(self) -> None:
        """Make a `wait` that sleeps return."""
        self._woken.put(None)

    def pid(self, worker: int) -> int:
        """This process."""
        return os.getpid()

    def stop(self, at_once: bool = False) -> None:
        """Nothing to stop."""
        self._queue.clear()
