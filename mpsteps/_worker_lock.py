"""`self._lock` in a worker: asked for at the coordinator, which also tells what the step must see under it.

To enter: what the step has changed so far is told (CHANGED), then the lock is asked for (LOCK). The answer (GRANT)
comes when it is this step's turn, and brings the latest state. To leave: what was changed meanwhile is told, and that
the lock is free (UNLOCK); nothing is waited for, since the coordinator takes in both before it lets anybody else in.

Threads of one step exclude each other here, by an ordinary lock, before one of them asks.
"""

from __future__ import annotations

import contextlib
import threading
import time
import typing
from typing import Any, Dict, List, Optional, Tuple, Union

from mpsteps._ipc import wire
from mpsteps._reentrant import ReentrantLock
from mpsteps._turns import Turns
from mpsteps.errors import SerializationError, UsageError

_FORKED = (
    "a process that a step has forked cannot take self._lock: what it changes on self is lost when it ends, with the "
    "lock or without; take it in the step itself"
)
_OUTLIVED = "this thread has outlived its step: it cannot have self._lock any more"


class Speaks(typing.Protocol):
    """What the lock needs of its worker."""

    turns: Turns

    @property
    def running(self) -> int:
        """The step that runs."""

    def tell_changes(self) -> None:
        """Tell what the step has changed so far. Raises what it raises if that cannot travel."""

    def tell(self, message: Tuple[Any, ...]) -> None:
        """Send this, after all that is to be said before."""

    def listen(self, seconds: Optional[float]) -> None:
        """Take in what comes, waiting for it at most so long."""

    def hear_now(self) -> None:
        """Make `self` what it truly is, by all news that there are."""

    def hear_later(self, news: List[Any]) -> None:
        """There are news, to be heard at the next occasion, at the latest before the next step."""

    def unpack(self, parcel: bytes) -> Any:
        """Open a parcel."""


class WorkerLock(ReentrantLock):
    """`self._lock` of the protocol in this worker. `used`: by the step that runs."""

    def __init__(self, worker: Speaks) -> None:
        super().__init__()
        self._worker = worker
        self._threads = threading.Lock()  # held by the thread that has it or asks for it
        self._ticket = 0  # of the last claim
        self._answers: Dict[int, Union[None, bool, bytes]] = {}  # ticket of a claim that waits -> what it got
        self.used = False
        self.lost_changes: Optional[wire.Failure] = None  # of the step that runs: some of its changes cannot travel

    def take_lost(self) -> Optional[wire.Failure]:
        """What has made changes of the step that has just ended unheard of, if anything has."""
        lost, self.lost_changes = self.lost_changes, None
        return lost

    def end_step(self) -> None:
        """The step is over, and with it all its claims. Only if it was `used`."""
        self.used = False
        threads, self._threads = self._threads, threading.Lock()
        self._owner, self._count = None, 0
        if threads.locked():
            threads.release()  # for a thread that has outlived the step and waits: it will find that out

    def answered(self, ticket: int, outcome: Union[bool, bytes], news: List[Any]) -> None:
        """The coordinator has answered. `outcome`: whether it is granted, or the parcel of an error."""
        self._worker.hear_later(news)  # it is told only once: also if nobody waits any more
        if ticket in self._answers:
            self._answers[ticket] = outcome

    def _check(self) -> None:
        if self._worker.turns.forked:
            raise UsageError(_FORKED)  # also where the step had it when it forked

    def _take(self, seconds: Optional[float]) -> bool:
        until = None if seconds is None else time.monotonic() + seconds
        threads = self._threads
        if not threads.acquire(seconds != 0.0, -1 if not seconds else min(seconds, threading.TIMEOUT_MAX)):
            return False
        taken = False
        try:
            if threads is not self._threads:
                raise UsageError(_OUTLIVED)
            with self._worker.turns:
                taken = self._ask(seconds != 0.0, until, threads)
        finally:
            if not taken:
                self._let_go(threads)
        return taken

    def _let_go(self, threads: Any) -> None:
        """Let another thread of the step ask. After the step's end `end_step` has done so already."""
        if threads is self._threads:
            threads.release()
        else:
            with contextlib.suppress(RuntimeError):
                threads.release()

    def _ask(self, wait: bool, until: Optional[float], threads: Any) -> bool:
        worker = self._worker
        self.used = True
        worker.tell_changes()
        self._ticket = ticket = self._ticket + 1
        self._answers[ticket] = None
        worker.tell((-wire.LOCK, worker.running, ticket, wait))
        try:
            while self._answers[ticket] is None:
                left = None if until is None or not wait else until - time.monotonic()
                if left is not None and left <= 0:
                    wait = False  # it is asked for once more, and this will be answered at once
                    worker.tell((-wire.LOCK, worker.running, ticket, wait))
                    continue
                worker.listen(left)
                if threads is not self._threads:
                    raise UsageError(_OUTLIVED)
            worker.hear_now()
            outcome = self._answers[ticket]
        except BaseException:
            if threads is self._threads:  # else the coordinator knows that the step is over
                self._refuse(ticket)
            raise
        finally:
            del self._answers[ticket]
        if isinstance(outcome, bytes):
            parcel, message = worker.unpack(outcome)
            raise worker.unpack(parcel) if parcel else SerializationError(message)
        return bool(outcome)

    def _refuse(self, ticket: int) -> None:
        """It is not wanted any more; but the news that come with it must be heard, since they count as heard."""
        worker = self._worker
        try:
            if self._answers[ticket] is None:
                worker.tell((-wire.LOCK, worker.running, ticket, False))
                while self._answers[ticket] is None:
                    worker.listen(None)
                worker.hear_now()
        finally:
            if self._answers[ticket] is True:
                worker.tell((-wire.UNLOCK, worker.running, ticket))

    def _give(self) -> None:
        worker, threads = self._worker, self._threads
        if worker.turns.forked:
            return  # it is the step that has it, and not this copy of it
        try:
            with worker.turns:
                try:
                    worker.tell_changes()
                finally:
                    worker.tell((-wire.UNLOCK, worker.running, self._ticket))
        finally:
            self._let_go(threads)
