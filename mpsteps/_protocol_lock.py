"""`self._lock` in the coordinator's process: who has it, in whichever process he is.

Workers claim it by messages, which the coordinator's loop hands on here. The code of this process (local steps,
`_stepsCheck`, all steps of the inline engine, the user's threads) has `HomeLock`, and stands in the same queue.

The loop itself must not wait, or nobody could tell it that the lock is free. Where `_stepsCheck` has to wait, which
runs in the loop's thread, it turns the loop meanwhile.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Callable, Dict, List, Optional, Tuple, Union

from mpsteps import _context
from mpsteps._lock_queue import Claim, LockQueue
from mpsteps._reentrant import ReentrantLock
from mpsteps.errors import UsageError

HOME = 0
"""Stands for this process where there is a worker's number."""

Outcome = Union[bool, bytes]


class ProtocolLock:
    """The one lock of a run, made in the loop's thread. `wake`: makes the loop look at `take_answers`; any thread calls
    it. `turn(until)`: turns the loop once, waiting at most until then (monotonic seconds); None: there are no workers,
    so that the loop's thread may wait like any other."""

    def __init__(self, wake: Callable[[], None], turn: Optional[Callable[[Optional[float]], None]]) -> None:
        self._wake = wake
        self._turn = turn
        self._queue = LockQueue()
        self._mutex = threading.Lock()  # held for moments only: whoever stands in the queue, it is changed under this
        self._answers: List[Tuple[Claim, Outcome]] = []  # for workers, not sent yet
        self._here: Dict[Claim, threading.Event] = {}  # claims of this process that wait
        self._tickets = 0
        self._loop_thread = threading.get_ident()
        self.may_turn = False  # the loop's thread is where it may turn the loop
        self._closed = False
        self.home = HomeLock(self)

    # ------------------------------------------------------------- workers, by the loop

    def ask(self, claim: Claim, wait: bool) -> None:
        """A worker wants to have it; without `wait`, at once or not at all, also if it has waited until now. The answer
        comes by `take_answers`."""
        with self._mutex:
            if claim == self._queue.holder:
                return  # that has been answered
            if self._queue.ask(claim, wait):
                self._answers.append((claim, True))
            elif not wait:
                self._queue.give_back(claim)
                self._answers.append((claim, False))

    def deny(self, claim: Claim, error: bytes) -> None:
        """It gets an error instead."""
        with self._mutex:
            self._answers.append((claim, error))

    def give_back(self, claim: Claim) -> None:
        """It is not wanted any more."""
        with self._mutex:
            self._grant(self._queue.give_back(claim))

    def end_step(self, step: int) -> bool:
        """A step is over, or its worker is dead; whether it still had the lock."""
        with self._mutex:
            held = self._queue.holder is not None and self._queue.holder.step == step
            self._answers = [(c, outcome) for c, outcome in self._answers if c.step != step]
            self._grant(self._queue.end(step))
            for claim in [c for c in self._here if c.step == step]:
                self._here.pop(claim).set()
            return held

    def take_answers(self) -> List[Tuple[Claim, Outcome]]:
        """What workers are to be told."""
        if not self._answers:
            return []
        with self._mutex:
            answers, self._answers = self._answers, []
        return answers

    def _grant(self, claim: Optional[Claim]) -> None:
        if claim is None:
            return
        if claim.worker == HOME:
            self._here.pop(claim).set()
        else:
            self._answers.append((claim, True))

    @property
    def is_held(self) -> bool:
        """Whether anybody has it."""
        return self._queue.holder is not None

    # --------------------------------------------------------------------- this process

    def take_here(self, seconds: Optional[float]) -> Optional[Claim]:
        """A claim of this thread that has the lock; None: it could not be had in that time."""
        until = None if seconds is None else time.monotonic() + seconds
        context = _context.current()
        with self._mutex:
            self._tickets += 1
            claim = Claim(context.step if context is not None else 0, HOME, self._tickets)
            if self._queue.ask(claim, seconds != 0.0):
                return claim
            if seconds == 0.0:
                return None
            event = self._here[claim] = threading.Event()
        try:
            self._wait(event, until)
        except BaseException:
            self._leave(claim)
            raise
        with self._mutex:
            if claim == self._queue.holder:
                return claim
            outlived = claim not in self._here
            self._here.pop(claim, None)
            self._queue.give_back(claim)
        if outlived:
            raise UsageError("this thread has outlived its step: it cannot have self._lock any more")
        return None

    def _wait(self, event: threading.Event, until: Optional[float]) -> None:
        if threading.get_ident() != self._loop_thread or self._turn is None:
            event.wait(None if until is None else min(max(0.0, until - time.monotonic()), threading.TIMEOUT_MAX))
        elif not self.may_turn:
            raise UsageError(
                "self._lock is held by a step, and here, where the run itself would stand still, it cannot be waited "
                "for: take it in a step or in _stepsCheck"
            )
        else:
            while not event.is_set() and (until is None or time.monotonic() < until):
                self._turn(until)
        if self._closed:
            raise UsageError("the run has ended, and self._lock with it")

    def leave_here(self, claim: Claim) -> None:
        """The thread that had it has left it."""
        self._leave(claim)
        if self._answers:
            self._wake()

    def _leave(self, claim: Claim) -> None:
        with self._mutex:
            self._here.pop(claim, None)
            self._grant(self._queue.give_back(claim))

    def close(self) -> None:
        """The run is over. Threads of steps that nobody could end are not kept waiting."""
        self._closed = True
        with self._mutex:
            for event in self._here.values():
                event.set()


class HomeLock(ReentrantLock):
    """`self._lock` for the code of the coordinator's process."""

    def __init__(self, lock: ProtocolLock) -> None:
        super().__init__()
        self._lock = lock
        self._claim: Optional[Claim] = None
        self._pid = os.getpid()

    def _check(self) -> None:
        if os.getpid() != self._pid:
            raise UsageError(
                "a forked process cannot take self._lock: what it changes on self is lost when it ends, with the lock "
                "or without; take it in the step itself"
            )

    def _take(self, seconds: Optional[float]) -> bool:
        claim = self._lock.take_here(seconds)
        if claim is not None:
            self._claim = claim
        return claim is not None

    def _give(self) -> None:
        claim, self._claim = self._claim, None
        if claim is not None and os.getpid() == self._pid:
            self._lock.leave_here(claim)

    def forget(self, step: int) -> None:
        """That step is over. Before the lock is passed on."""
        if self._claim is not None and self._claim.step == step:
            self._owner, self._count, self._claim = None, 0, None

    def leave_entirely(self) -> bool:
        """As if this thread had left it as often as it entered; whether it had it."""
        if not self._is_owned():
            return False
        self._release_save()
        return True
