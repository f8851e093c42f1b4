"""Waking a process that sleeps, and only a process that sleeps: a wake-up costs a hundred times what a load costs.

A `Bell` is a descriptor that becomes readable when it is rung. `Sleeper` and `Waker` are the two sides of one shared
word, `asleep`, that says whether ringing is worth while: an epoch counter stored by the sleeper only, odd while it
sleeps. The sleeper makes it odd, *then* looks once more for work; the waker publishes work, *then* looks whether it is
odd. With a fence between the two accesses on each side, at least one of them sees the other: no wake-up is lost.

Where a fence cannot be had (`ordered=False`: anything but x86) the waker always rings, and the sleeper never spins and
clears the bell before each last look: kernel locks inside the descriptor then order what the hardware does not.
"""

from __future__ import annotations

import math
import os
import select
import sys
import time
from typing import Callable, Sequence

from mpsteps._ipc import shm
from mpsteps._machine import usable_cores
from mpsteps.errors import EngineError

#: Seconds of looking before sleeping: about what a sleep and a wake-up across cores cost. Longer ones gained nothing.
SPIN = 30e-6
#: Seconds of looking when the wait before was as short: the other side is in the middle of answering. Twice a turn of
#: the coordinator; sleeping and being woken would cost more than the answer takes.
LONG_SPIN = 200e-6
#: The same where there is no core left for who only looks. (Measured with two workers on two cores.)
CROWDED_SPIN = 80e-6
#: Seconds: no sleep is longer without a look at the rings. No wake-up is lost; if one were, this is what it costs.
LONGEST_SLEEP = 5.0

_yield: Callable[[], None] = getattr(os, "sched_yield", lambda: time.sleep(0))
_clock = time.monotonic


def next_spin(waited: float, longest: float = LONG_SPIN) -> float:
    """How long to look before sleeping next time, after a wait of `waited` seconds. `longest`: see `longest_spin`."""
    return longest if waited < longest else SPIN


def longest_spin(workers: int) -> float:
    """How long a process of an engine with so many workers may look. Where it takes the core that another one needs for
    its step, a long look costs more than the wake-up that it saves."""
    return LONG_SPIN if usable_cores() > workers else CROWDED_SPIN


class Bell:
    """A descriptor to wait on, rung by other processes: an eventfd, or a pipe where Python or the system has none.

    Ringing never blocks, and ringing twice before the sleeper clears it is the same as ringing once.
    """

    __slots__ = ("_fds", "_ring_fd")

    def __init__(self, fds: Sequence[int]) -> None:
        self._fds = tuple(fds)
        self._ring_fd = self._fds[-1]

    @classmethod
    def create(cls, portable: bool = False) -> Bell:
        """A new bell; `portable` takes a pipe even where there is an eventfd."""
        if sys.platform == "win32":
            raise EngineError("mpsteps cannot start worker processes on Windows: use Linux or macOS.")
        try:
            if sys.platform == "linux" and sys.version_info >= (3, 10) and not portable:
                return cls((shm.above_stdio(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)),))
            receive, send = (shm.above_stdio(fd) for fd in os.pipe())
        except OSError as error:
            raise EngineError(
                f"The descriptor that wakes a process cannot be created: {error.strerror}; raise the limit on open "
                "files (ulimit -n) or use fewer workers."
            ) from error
        os.set_blocking(receive, False)
        os.set_blocking(send, False)
        return cls((receive, send))

    @classmethod
    def from_fds(cls, fds: Sequence[int]) -> Bell:
        """The bell whose `fds()` were passed here; it owns these descriptors from now on."""
        return cls(fds)

    def fds(self) -> tuple[int, ...]:
        """The descriptors (one or two) to pass to the other process."""
        return self._fds

    def fileno(self) -> int:
        """The descriptor that is readable once the bell was rung."""
        return self._fds[0]

    def ring(self) -> None:
        """Make the bell readable; returns at once in any case."""
        try:
            # Eight bytes are what an eventfd takes: the number 1 to add, in this machine's byte order.
            os.write(self._ring_fd, _ONE if len(self._fds) == 1 else b"\0")
        except BlockingIOError:
            pass  # as full as it gets: it was rung already
        except BrokenPipeError:
            pass  # the sleeper is gone and has closed its side; its death is reported by other means

    def clear(self) -> None:
        """Make the bell unreadable until it is rung again. Look for work after this, before sleeping."""
        try:
            while len(os.read(self._fds[0], 4096)) == 4096:
                continue
        except BlockingIOError:
            pass  # not rung

    def close(self) -> None:
        """Close the descriptors; a second call does nothing."""
        fds, self._fds, self._ring_fd = self._fds, (), -1
        for fd in fds:
            os.close(fd)


_ONE = (1).to_bytes(8, sys.byteorder)


class Sleeper:
    """The side that sleeps, the only one to store `words[index]`; `_epoch` is what that word holds: after
    `prepare` it is odd, after `awake` even, also where the handler of a signal has raised out of a sleep."""

    __slots__ = ("_bell", "_epoch", "_fence", "_index", "_ordered", "_poll", "_words")

    def __init__(self, words: memoryview, index: int, bell: Bell, ordered: bool = shm.ORDERED) -> None:
        self._words = words
        self._index = index
        self._bell = bell
        self._ordered = ordered
        self._epoch = 0
        self._fence = shm.fence
        self._poll = select.poll()
        self._poll.register(bell.fileno(), select.POLLIN)

    def prepare(self) -> None:
        """Announce sleep. The caller looks once more for all it is rung for (messages *and* room) and only then waits.

        To be followed by `awake`, whether it slept or not.
        """
        self._epoch += 1 + (self._epoch & 1)
        self._words[self._index] = self._epoch
        self._fence()
        if not self._ordered:
            self._bell.clear()

    def awake(self, rung: bool = True) -> None:
        """Take the announcement back and clear the bell. The caller looks for work after this, before it sleeps again.

        `rung=False` spares the clearing where the bell was not seen readable: at worst the next sleep is a short one.
        """
        self._epoch += 2 - (self._epoch & 1)
        self._words[self._index] = self._epoch
        if rung:
            self._bell.clear()

    def wait(self, ready: Callable[[], bool], timeout: float | None = None, spin_seconds: float = SPIN) -> bool:
        """Wait until `ready()`, at most `timeout` seconds (None: for ever); whether it is ready.

        Looks for `spin_seconds` before it sleeps, letting others run in between. While asleep it is woken by the bell
        only, and looks again by itself every `LONGEST_SLEEP` seconds.
        """
        if self._ordered:
            if ready():
                return True
            stop = _clock() + (spin_seconds if timeout is None else min(spin_seconds, timeout))
            while _clock() < stop:
                _yield()
                if ready():
                    return True
        deadline = math.inf if timeout is None else _clock() + timeout
        while True:
            self.prepare()
            rung = True
            try:
                rung = not ready() and self.sleep(min(deadline - _clock(), LONGEST_SLEEP))
            finally:
                self.awake(rung)
            if ready():
                return True
            if _clock() >= deadline:
                return False

    def sleep(self, seconds: float) -> bool:
        """Wait for the bell alone, at most so long; whether it was rung. Does not clear it."""
        return bool(self._poll.poll(max(0, math.ceil(seconds * 1000))))

    def disturb(self) -> None:
        """Make a `wait` of another thread of this process look again. It must have something else to look at."""
        self._bell.ring()

    def nap(self, seconds: float) -> None:
        """Wait for the bell, at most so long, and clear it: for the reader of a full ring to ring for room."""
        if self.sleep(seconds):
            self._bell.clear()


class Waker:
    """The side that wakes. `_rung` is the epoch it rang for last: it rings once for each sleep."""

    __slots__ = ("_bell", "_fence", "_index", "_ordered", "_rung", "_words")

    def __init__(self, words: memoryview, index: int, bell: Bell, ordered: bool = shm.ORDERED) -> None:
        self._words = words
        self._index = index
        self._bell = bell
        self._ordered = ordered
        self._rung = 0
        self._fence = shm.fence

    def wake(self) -> bool:
        """Wake the sleeper if it sleeps; call it after publishing. Whether the bell was rung."""
        if self._ordered:
            self._fence()
            epoch = self._words[self._index]
            if not epoch & 1 or epoch == self._rung:
                return False
            self._rung = epoch
        self._bell.ring()
        return True
