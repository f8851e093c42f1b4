"""A lane: all that the coordinator and one worker share, in one block of shared memory.

Two rings (requests to the worker, replies from it) and six words, each stored by one side only. There is no lock that
a worker could die holding, and a worker that runs wild damages its own lane only. The coordinator sleeps once for all
lanes, so its `asleep` word and its bell are on a `Board` that all workers see and none can write.

A lane belongs to one worker for that worker's life. When it dies the coordinator drains the reply ring, then closes the
lane; it is never used again.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from typing import Sequence

from mpsteps._ipc import shm
from mpsteps._ipc.bell import LONGEST_SLEEP, SPIN, Bell, Sleeper, Waker
from mpsteps._ipc.ring import Payload, Ring, RingReader, RingWriter
from mpsteps._ipc.standing import IDLE, PAGE, PAGES, Peers, Standing

#: Bytes of each of a lane's two rings, unless told otherwise: some thousand short step messages.
CAPACITY = 1 << 18
#: What `revoked` holds while no message is taken back: no message has this number.
NEVER = 2**64 - 1

_WORDS = 256  # bytes of the lane's own words, each on a 64-byte line
_ASLEEP, _BEGUN, _DONE, _REVOKED = 0, 8, 16, 24  # where they are, in words
_CALLED = 9  # on the line of `begun`: both are the worker's
_REFUSED = 25  # on the line of `revoked`: both are the coordinator's

_yield = getattr(os, "sched_yield", lambda: time.sleep(0))


class CoordinatorEnd:
    """The coordinator's side of a lane; its thread only. `send` and `receive` are the rings, `wake` wakes the worker.
    `_heard`: what the word `called` held before the replies were last taken.

    The coordinator never blocks on a lane: it puts (`send.begin`) what there is room for, wakes the worker, and sends
    the rest (`pump`) when its own bell rings. It stores two words of its own: `revoked` and `refused`.
    """

    def __init__(self, lane: Lane, ordered: bool) -> None:
        request, reply = lane.regions()
        self._words = lane.words()
        self._ordered = ordered
        self._fence = shm.fence
        self._heard = 0
        self.send = RingWriter(request, ordered)
        self.receive = RingReader(reply, lane.bell.ring, ordered)
        self.wake = Waker(self._words, _ASLEEP, lane.bell, ordered)

    def pump(self) -> bool:
        """Send more of what waits to be sent, and wake the worker; whether nothing is left.

        The wake-up is due also when something is left: the part that went out is for the worker to take, which makes
        the room for the rest.
        """
        done = self.send.pump()
        self.wake.wake()
        return done

    def has_work(self) -> bool:
        """Whether the worker has called, or there is room for more of what waits to be sent.

        This is the last look between `Sleeper.prepare` and the sleep, at every lane: rings that came before `prepare`
        may have been cleared by it.
        """
        return self.is_called() or self.send.can_pump()

    def is_called(self) -> bool:
        """Whether the worker wants what it has put to be taken; what it put without a call is not urgent."""
        return self._words[_CALLED] != self._heard if self._ordered else self.receive.pending()

    def drain(self) -> list[bytes]:
        """Take all replies that are there: those that were put before the calls until now, and perhaps more."""
        self._heard = self._words[_CALLED]  # before the ring is looked at: see README.md
        return self.receive.drain()

    def begun(self) -> int:
        """The highest message number that the worker has announced (0: none). Exact once the worker is known dead."""
        return int(self._words[_BEGUN])

    def done(self) -> int:
        """The highest message number that the worker says it has finished, with nothing to tell but that (0: none)."""
        return int(self._words[_DONE])

    def revoke(self, number: int) -> int:
        """Take back messages with this number or a higher one; returns the first that is certainly taken back.

        The worker has not begun that one or any after it, and will not, until `restore`. Messages from `number` up to
        it (excluded) may run: the worker's answers will tell. NEVER, and nothing changed, where the machine has no
        fence.
        """
        if not self._ordered:
            return NEVER
        self._words[_REVOKED] = min(number, self._words[_REVOKED])
        self._fence()
        return max(number, self.begun() + 1)

    def restore(self) -> None:
        """Let the worker begin messages again.

        Only once it has *answered* every number sent, run or passed over. Its announcement (`begun`) does not do: it
        comes before the worker has looked whether the message is revoked.
        """
        self._words[_REVOKED] = NEVER

    def refuse(self) -> None:
        """Count a step message that gets no number, since it cannot be sent. Before anything behind it is sent."""
        self._words[_REFUSED] += 1

    def release(self) -> None:
        """Let go of the memory; see `Lane.close`."""
        self.send.release()
        self.receive.release()
        self._words.release()


class WorkerEnd:
    """The worker's side of a lane; one thread only. `sleeper` is this worker's sleep.

    It stores the words `asleep`, `begun`, `called` and `done`, and those of its `standing`. `number`: of this worker,
    from 1; 0: it has no page of the board.
    """

    def __init__(self, lane: Lane, board: Board, ordered: bool, number: int) -> None:
        request, reply = lane.regions()
        self._words = lane.words()
        self._ordered = ordered
        self._fence = shm.fence
        self.send = RingWriter(reply, ordered)
        self.receive = RingReader(request, board.bell.ring, ordered)
        self.sleeper = Sleeper(self._words, _ASLEEP, lane.bell, ordered)
        self._wake = board.waker(ordered)
        self._calls = 0
        self._seen_put = 0  # bytes that had been put when `call_if_late` was asked last
        self.standing = board.standing(number)
        self.peers = board.peers()

    def begin(self, number: int) -> bool:
        """Announce that message `number` is about to be run; False: it was taken back, answer so and do not run it.

        Numbers start at 1 and rise. One that is passed over need not be announced.
        """
        self._words[_BEGUN] = number
        self._fence()
        return bool(number < self._words[_REVOKED])

    def finish(self, number: int) -> None:
        """Announce that message `number` was run to its end and that its reply, which may be kept back, says no more.

        Stored before the next `begin`: after a death, `begun` above `done` names the one message that was running.
        """
        self._words[_DONE] = number
        self.standing.finish(number)

    def call(self) -> bool:
        """Have the coordinator take what was put, soon: wake it if it sleeps. Whether the bell was rung."""
        self._calls += 1
        self._words[_CALLED] = self._calls
        return self._wake.wake()

    def call_if_left(self) -> None:
        """Call the coordinator, unless it has taken all that was put."""
        if not self._ordered or self.send.taken() < self.send.head:
            self.call()

    def call_if_late(self) -> None:
        """Call the coordinator if it has not yet taken all that had been put when this was asked the last time."""
        if not self._ordered or self.send.taken() < self._seen_put:
            self.call()
        self._seen_put = self.send.head

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until a request, or a part of one, is there; whether it is. At most `timeout` seconds (None: for ever).

        Whoever starts workers must see to it that they are killed when the coordinator is gone: it will not ring.
        """
        return self.sleeper.wait(self.receive.pending, timeout)

    def send_all(self, payload: Payload, timeout: float | None = None) -> bool:
        """Send a message of any size and wake the coordinator, waiting for room as long as it takes.

        False: `timeout` seconds have passed; the rest is kept, and goes out with the next call.
        """
        done = self.send.begin(payload)
        self.call()
        return done or self._send_rest(timeout)

    def put(self, payload: Payload) -> None:
        """Send a message of any size. The coordinator is called only if there is no room; else it finds it when it is
        called the next time, or, should this process die, then. Call it soon."""
        if not self.send.begin(payload):
            self.call()
            self._send_rest(None)

    def _send_rest(self, timeout: float | None) -> bool:
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while time.monotonic() < deadline:
            if not self._spin_for_room():
                self.sleeper.nap(min(deadline - time.monotonic(), LONGEST_SLEEP))
            done = self.send.pump()
            self.call()
            if done:
                return True
        return False

    def release(self) -> None:
        """Let go of the memory; see `Lane.close`."""
        self.send.release()
        self.receive.release()
        self._words.release()

    def _spin_for_room(self) -> bool:
        """Look for half a ring of room for as long as it pays; whether it is there."""
        half = self.send.capacity // 2
        stop = time.monotonic() + SPIN
        while self._ordered and time.monotonic() < stop:
            if self.send.room() >= half:
                return True
            _yield()
        return False


def left_words(fd: int) -> tuple[int, int] | None:
    """What the lane `fd` says when both its sides are dead: the words `begun` and `refused`; None if it is nonsense.

    Read through the descriptor: whoever asks, once, need not map it.
    """
    words = memoryview(os.pread(fd, _WORDS, 0)).cast("Q")
    return (words[_BEGUN], words[_REFUSED]) if words[_DONE] <= words[_BEGUN] else None


class Board:
    """Pages that all workers see. The first has the coordinator's words `asleep`, with which goes its bell, and `idle`;
    only it writes there. Each worker has one of its own, for its `Standing`."""

    def __init__(self, fd: int, bell: Bell, readonly: bool) -> None:
        self.bell = bell
        self._fd = fd
        self._memory = shm.attach(fd, readonly=readonly)
        self._views: list[memoryview] = []
        self._standing: Standing | None = None
        self._own: memoryview | None = None

    @classmethod
    def create(cls) -> Board:
        """A new board, made by the coordinator."""
        with contextlib.ExitStack() as undo:
            fd = shm.create(PAGES * PAGE, reserved=PAGE)
            undo.callback(os.close, fd)
            bell = Bell.create()
            undo.callback(bell.close)
            board = cls(fd, bell, readonly=False)
            undo.pop_all()
        return board

    @classmethod
    def from_fds(cls, fds: Sequence[int]) -> Board:
        """The board whose `fds()` were passed to this worker; it owns them from now on and cannot write the page."""
        return cls(fds[0], Bell.from_fds(fds[1:]), readonly=True)

    def fds(self) -> tuple[int, ...]:
        """The descriptors (two or three) to pass to a worker."""
        return (self._fd, *self.bell.fds())

    def sleeper(self, ordered: bool = shm.ORDERED) -> Sleeper:
        """The coordinator's sleep: made once."""
        return Sleeper(self._word(), 0, self.bell, ordered)

    def waker(self, ordered: bool = shm.ORDERED) -> Waker:
        """What wakes the coordinator: one for each lane's worker."""
        return Waker(self._word(), 0, self.bell, ordered)

    def admit(self, number: int) -> None:
        """Reserve the page of a worker that is about to be started. Raises EngineError where there is no memory."""
        if number < PAGES:
            shm.reserve(self._fd, number * PAGE, PAGE)

    def say_idle(self, idle: bool) -> None:
        """Tell all workers whether one of them has nothing to do. The coordinator's only."""
        if self._own is None:
            self._own = self._word()
        self._own[IDLE] = idle

    def standing(self, number: int) -> Standing:
        """The words that worker `number`, which this process is, stores: made once."""
        self._standing = Standing(self._fd, number)
        return self._standing

    def peers(self) -> Peers:
        """The words of all workers, for one of them to read."""
        return Peers(self._word())

    def close(self) -> None:
        """Close the mapping and the descriptors; a second call does nothing."""
        if self._fd < 0:
            return
        if self._standing is not None:
            self._standing.release()
        for view in self._views:
            view.release()
        self._memory.close()
        self.bell.close()
        os.close(self._fd)
        self._fd = -1

    def _word(self) -> memoryview:
        view = memoryview(self._memory).cast("Q")
        self._views.append(view)
        return view


class Lane:
    """The block of one lane and the worker's bell. The coordinator creates it; the worker takes it `from_fds`.

    Each side is asked for once per process, and is of no use after `close`.
    """

    def __init__(self, fd: int, bell: Bell, touch: bool) -> None:
        self.bell = bell
        self._fd = fd
        self._memory = shm.attach(fd, touch=touch)
        self._ends: list[CoordinatorEnd | WorkerEnd] = []

    @classmethod
    def create(cls, capacity: int = CAPACITY) -> Lane:
        """A new lane with two rings of `capacity` bytes (a power of two)."""
        with contextlib.ExitStack() as undo:
            fd = shm.create(_WORDS + 2 * Ring.bytes_needed(capacity))
            undo.callback(os.close, fd)
            bell = Bell.create()
            undo.callback(bell.close)
            lane = cls(fd, bell, touch=True)
            undo.pop_all()
        with lane.words() as words:
            words[_REVOKED] = NEVER
        return lane

    @classmethod
    def from_fds(cls, fds: Sequence[int]) -> Lane:
        """The lane whose `fds()` were passed here; it owns these descriptors from now on."""
        return cls(fds[0], Bell.from_fds(fds[1:]), touch=True)

    def fds(self) -> tuple[int, ...]:
        """The descriptors (two or three) to pass to the worker."""
        return (self._fd, *self.bell.fds())

    def coordinator_side(self, ordered: bool = shm.ORDERED) -> CoordinatorEnd:
        """The coordinator's end."""
        end = CoordinatorEnd(self, ordered)
        self._ends.append(end)
        return end

    def worker_side(self, board: Board, ordered: bool = shm.ORDERED, number: int = 0) -> WorkerEnd:
        """The end of worker `number`; `board` is the coordinator's."""
        end = WorkerEnd(self, board, ordered, number)
        self._ends.append(end)
        return end

    def close(self) -> None:
        """Release the ends, then the mapping (which must not have views), then the descriptors. Twice is once."""
        if self._fd < 0:
            return
        for end in self._ends:
            end.release()
        self._memory.close()
        self.bell.close()
        os.close(self._fd)
        self._fd = -1

    def words(self) -> memoryview:
        """The lane's own words."""
        return memoryview(self._memory)[:_WORDS].cast("Q")

    def regions(self) -> tuple[memoryview, memoryview]:
        """The request ring's memory and the reply ring's."""
        whole = memoryview(self._memory)
        size = (len(whole) - _WORDS) // 2
        return whole[_WORDS : _WORDS + size], whole[_WORDS + size :]
