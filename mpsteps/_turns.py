"""Who of a worker's threads may speak with the coordinator.

Between steps that is the worker's own loop alone. While a step runs, it is whichever thread of the step wants to insert
a step or to have `self._lock`, one at a time. A thread that has outlived its step is told so: what it would say has no
step any more that it could belong to. So is a process that a step has forked: it is no worker.

Several may wait for an answer. One of them sleeps on the lane's bell and takes in whatever comes, for all; the others
wait for it. A thread that need not wait takes in what has come before the sleeper gets to it: it must `disturb` then,
or the sleeper would find nothing and sleep on with its answer at hand.
"""

from __future__ import annotations

import threading
from typing import Callable, Dict, Optional

from mpsteps.errors import UsageError


class Turns:
    """A lock that the worker's loop holds, but while the code of a step runs (`is_open`). `forked`: this process is a
    fork of the worker, made by a step."""

    def __init__(self, forked: bool = False) -> None:
        self.forked = forked
        self._mutex = threading.Lock()
        self._changed = threading.Condition(self._mutex)
        self.is_open = False
        self._sleeps = False  # some thread is asleep in `sleep`
        self.disturbed = False  # it is to wake up, whatever it waits for
        self._asked = self._answered = 0
        self._answers: Dict[int, bytes] = {}  # number of the question -> answer
        self._mutex.acquire()

    def open(self) -> None:
        """The loop lets the code of a step run."""
        self.is_open = True
        self._mutex.release()

    def close(self) -> None:
        """The code of the step has come to its end."""
        self._mutex.acquire()
        self.is_open = False

    def __enter__(self) -> None:
        """For a thread of the step: nobody else speaks until it is left, except in `sleep`."""
        if self.forked:
            raise UsageError("a process that a step has forked cannot insert steps or ask for them: do it in the step")
        self._mutex.acquire()
        if not self.is_open:
            self._mutex.release()
            raise UsageError("this thread has outlived its step: it can neither insert steps nor take self._lock")

    def __exit__(self, *_error: object) -> None:
        self._mutex.release()

    def enter_if_free(self) -> bool:
        """The same where nothing is worth waiting for; to be followed by `leave` if it is true."""
        return self.is_open and self._mutex.acquire(blocking=False)

    def leave(self) -> None:
        """After `enter_if_free`."""
        self._mutex.release()

    def ask(self) -> int:
        """The number of a question that is about to be asked. They are answered in their order."""
        self._asked += 1
        return self._asked

    def answered(self, answer: bytes) -> None:
        """The next answer has come."""
        self._answered += 1
        self._answers[self._answered] = answer

    def take_answer(self, number: int) -> Optional[bytes]:
        """The answer to that question, once; None: it has not come yet."""
        return self._answers.pop(number, None)

    def disturb(self, ring: Callable[[], object]) -> None:
        """Wake who sleeps, if anybody does; `ring` makes his `wait()` look at `disturbed`."""
        if self._sleeps:
            self.disturbed = True
            ring()
        self._changed.notify_all()

    def sleep(self, wait: Callable[[], object], seconds: Optional[float]) -> None:
        """Let others speak until `wait()` returns, or until somebody else has slept, or `seconds` have passed. By who
        has the turn; afterwards he has it again."""
        if self._sleeps:
            self._changed.wait(seconds)
            return
        self._sleeps = True
        self._mutex.release()
        try:
            wait()
        finally:
            self._mutex.acquire()
            self._sleeps = self.disturbed = False
            self._changed.notify_all()
