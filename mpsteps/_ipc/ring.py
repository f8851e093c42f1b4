"""A byte ring in shared memory: one process puts messages in, one other process gets them out, no lock in between.

Each shared word has one writing side: `head` and `blocked` are stored by the writer only, `tail` by the reader only,
which is why the two sides are two classes. Words are 8-byte aligned, each on a cache line of its own, and loaded and
stored only as items of a `memoryview` cast to 'Q', which is one 8-byte move. (`struct.pack_into` clears its target
first: the other process would see false zeros.)

A message becomes visible by the single store of `head`, after all its bytes: a writer killed anywhere leaves a prefix
of whole messages. Each frame carries its length, a CRC and a sequence number, so that a ring damaged by a wild pointer
is an error and never a wrong message. README.md numbers the steps and argues their order.
"""

from __future__ import annotations

import collections
import io
import os
import struct
import time
import zlib
from typing import Callable, Union

from mpsteps._ipc import shm
from mpsteps.errors import EngineError, InternalError

Payload = Union[bytes, bytearray, memoryview]

HEADER = 192  # bytes before the data: three words, each on a 64-byte line
HEAD, TAIL, BLOCKED = 0, 8, 16  # where the words are, in words
_FRAME = struct.Struct("=IIQ")  # length word, CRC, sequence. Frames are padded to 16 bytes: this never wraps around
_MORE = 1 << 31  # in the length word: the message goes on in the next frame
_WHOLE = 4096  # bytes up to which copying header and payload together is cheaper than writing them one by one
_RETRIES = 200  # on machines that reorder stores: how often a frame that looks damaged is read again

_yield: Callable[[], None] = getattr(os, "sched_yield", lambda: time.sleep(0))


class RingCorrupt(EngineError):
    """What stands in the ring was not put there by `RingWriter`; the message says what was found."""


class Ring:
    """What the two sides have in common: the layout. `view` is the region, of `Ring.bytes_needed(capacity)` bytes.

    `capacity` (bytes of data) is a power of two of at least 128. `max_payload` is the longest payload of one frame, a
    quarter of the ring: a longer message travels as several frames, so that both sides copy at the same time.
    """

    __slots__ = ("_data", "_fence", "_mask", "_ordered", "_words", "capacity", "max_payload")

    def __init__(self, view: memoryview, ordered: bool = shm.ORDERED) -> None:
        capacity = len(view) - HEADER
        if capacity < 128 or capacity & (capacity - 1) or capacity > _MORE:
            raise InternalError(
                f"A ring of {capacity} bytes cannot be made: its capacity must be a power of two from 128 to 2**31."
            )
        self._words = view[:HEADER].cast("Q")
        self._data = view[HEADER:]
        self._mask = capacity - 1
        self._ordered = ordered
        self._fence = shm.fence
        self.capacity = capacity
        self.max_payload = capacity // 4 - _FRAME.size

    @staticmethod
    def bytes_needed(capacity: int) -> int:
        """Bytes of shared memory for a ring of `capacity` bytes of data: a multiple of 64."""
        return HEADER + capacity

    def release(self) -> None:
        """Let go of the memory, so that its mapping can be closed; this object is of no use afterwards."""
        self._words.release()
        self._data.release()


class RingWriter(Ring):
    """The side that puts. One thread of one process uses it.

    `_head` is what the word `head` holds; `_limit` is a head that certainly does not overrun the reader (tail, as last
    loaded, plus capacity); `_backlog` holds what was begun and is not yet in the ring, first the rest of the message
    under way. `_epoch` is what the word `blocked` holds: odd while this side waits for room.
    """

    __slots__ = ("_backlog", "_epoch", "_head", "_limit", "_pack", "_sequence")

    def __init__(self, view: memoryview, ordered: bool = shm.ORDERED) -> None:
        super().__init__(view, ordered)
        self._head = 0
        self._limit = self.capacity
        self._sequence = 1  # not 0: cleared memory must not pass for an empty message
        self._epoch = 0
        self._backlog: collections.deque[memoryview] = collections.deque()
        self._pack = _FRAME.pack

    def put(self, payload: Payload) -> bool:
        """Put a message of at most `max_payload` bytes. False: there is no room now (or a backlog), nothing changed.

        After False nobody promises to ring when there is room; `begin` does.
        """
        if type(payload) is not bytes:
            payload = memoryview(payload).cast("B")
        length = len(payload)
        if length > self.max_payload:
            raise InternalError(
                f"A message of {length} bytes does not fit a frame of {self.max_payload}: send it with begin()."
            )
        return not self._backlog and self._frame(payload, length)

    def begin(self, payload: Payload) -> bool:
        """Accept a message of any size, to be put behind what waits already. True: all is in the ring.

        False: the rest waits (by reference: do not change it) for `pump`, and the reader rings for room.
        """
        view = memoryview(payload).cast("B")
        if not self._backlog and len(view) <= self.max_payload and self._frame(view, len(view)):
            return True
        self._backlog.append(view)
        return self.pump()

    def pump(self) -> bool:
        """Put as much of the backlog as there is room for; never blocks. True: nothing is left.

        After False the reader rings this side's bell when half of the ring is free or more; pump again then.
        """
        if not self._flush():
            self._epoch += 1 + (self._epoch & 1)  # a new odd number, also if the last one was rung for already
            self._words[BLOCKED] = self._epoch
            self._fence()
            if not self._flush():
                return False
        if self._epoch & 1:
            self._epoch += 1
            self._words[BLOCKED] = self._epoch
        return True

    def can_pump(self) -> bool:
        """Whether `pump` would put something now: to be looked at before sleeping, by a side with a backlog."""
        if not self._backlog:
            return False
        return self.room() >= (min(len(self._backlog[0]), self.max_payload) + 31) & -16

    @property
    def head(self) -> int:
        """Bytes that were ever put, frame headers and padding included."""
        return self._head

    def taken(self) -> int:
        """As many of these as the reader has taken."""
        return self._look() - self.capacity

    def room(self) -> int:
        """Bytes that are free now, frame headers and padding included."""
        return self._look() - self._head

    @property
    def unsent(self) -> int:
        """Bytes of payload in the backlog."""
        return sum(len(view) for view in self._backlog)

    def _flush(self) -> bool:
        backlog, most = self._backlog, self.max_payload
        while backlog:
            message = backlog[0]
            if len(message) <= most:
                if not self._frame(message, len(message)):
                    return False
                backlog.popleft()
            else:
                if not self._frame(message[:most], most | _MORE):
                    return False
                backlog[0] = message[most:]
        return True

    def _frame(self, payload: bytes | memoryview, word: int) -> bool:
        """Write one frame and publish it; `word` is the payload's length, with the flag. False: no room."""
        length = word & ~_MORE
        head = self._head
        after = head + ((length + 31) & -16)
        if after > self._limit and after > self._look():
            return False
        start = head & self._mask
        stop = start + 16 + length
        # The length word seeds the CRC, so that a flipped flag is found as surely as a flipped bit of the payload.
        frame = self._pack(word, zlib.crc32(payload, word), self._sequence)
        if stop > self.capacity:
            self._wrap(start, frame, payload)
        elif length <= _WHOLE:
            self._data[start:stop] = frame + payload
        else:
            self._data[start : start + 16] = frame
            self._data[start + 16 : stop] = payload
        self._sequence += 1
        self._head = after
        self._words[HEAD] = after  # published, by this one store
        return True

    def _wrap(self, start: int, frame: bytes, payload: bytes | memoryview) -> None:
        """Write a frame whose payload goes on at the beginning of the ring."""
        split = self.capacity - start - 16
        self._data[start : start + 16] = frame
        self._data[start + 16 : self.capacity] = payload[:split]
        self._data[: len(payload) - split] = payload[split:]

    def _look(self) -> int:
        """Load `tail`; how far `head` may go."""
        tail = self._words[TAIL]
        if not 0 <= self._head - tail <= self.capacity:
            raise RingCorrupt(
                f"The ring's tail is {tail} with its head at {self._head} and {self.capacity} bytes of room: the "
                "reading process has overwritten it."
            )
        self._limit = limit = tail + self.capacity
        return limit


class RingReader(Ring):
    """The side that gets. One thread of one process uses it.

    `_cursor` is up to where frames were taken, `_freed` what the word `tail` holds, `_head` the head last loaded:
    `_freed <= _cursor <= _head`. `_partial` is a message of which more frames are to come; if its writer dies it goes
    with this object. `on_room` rings the writer's bell.
    """

    __slots__ = ("_cursor", "_freed", "_head", "_on_room", "_partial", "_rung", "_sequence", "_settle", "_unpack")

    def __init__(
        self, view: memoryview, on_room: Callable[[], object] | None = None, ordered: bool = shm.ORDERED
    ) -> None:
        super().__init__(view, ordered)
        self._cursor = self._head = self._freed = 0
        self._sequence = 1
        self._rung = 0
        self._on_room = on_room
        self._partial: io.BytesIO | None = None
        self._unpack = _FRAME.unpack_from
        self._settle = _yield

    def pending(self) -> bool:
        """Whether there is something to take: one load, fit for a spin. It may be a part of a message only."""
        return bool(self._words[HEAD] != self._cursor)

    def get(self) -> bytes | None:
        """The next message; None: there is no whole one now. Raises RingCorrupt, and goes on raising it."""
        if self._cursor == self._head and not self._look():
            return None
        try:
            return self._next()
        finally:
            self._free()

    def drain(self) -> list[bytes]:
        """All whole messages that are there now. RingCorrupt comes after the good messages in front of the damage."""
        messages: list[bytes] = []
        if not self._look():
            return messages
        try:
            message = self._next()
            while message is not None:
                messages.append(message)
                message = self._next()
        except RingCorrupt:
            if not messages:
                raise
        finally:
            self._free()
        return messages

    @property
    def unfinished(self) -> int:
        """Bytes received of a message whose rest is still to come."""
        return 0 if self._partial is None else self._partial.tell()

    def _look(self) -> bool:
        """Load `head`; whether there is anything before it."""
        head = self._words[HEAD]
        if head == self._cursor:
            return False
        if not 0 < head - self._cursor <= self.capacity or head & 15:
            raise RingCorrupt(
                f"The ring's head is {head} after {self._cursor} with {self.capacity} bytes of room: the writing "
                "process has overwritten it."
            )
        self._head = head
        return True

    def _next(self) -> bytes | None:
        """The next whole message before the head last seen, or None."""
        while self._cursor != self._head:
            word, payload = self._load() or self._load_again()
            if word & _MORE or self._partial is not None:
                if self._partial is None:
                    self._partial = io.BytesIO()
                self._partial.write(payload)
            self._cursor += (len(payload) + 31) & -16
            self._sequence += 1
            if self._cursor - self._freed > self.max_payload:
                self._free()
            if not word & _MORE:
                if self._partial is not None:
                    payload = self._partial.getvalue()  # not a copy: BytesIO hands out the bytes it has
                    self._partial = None
                return payload
        return None

    def _load(self) -> tuple[int, bytes] | None:
        """The length word and a private copy of the payload at the cursor; None: it does not hold together.

        The copy is what is checked, and only then is the frame freed: nobody can change it in between.
        """
        cursor = self._cursor
        start = cursor & self._mask
        word, crc, sequence = self._unpack(self._data, start)
        length = word & ~_MORE
        if sequence != self._sequence or cursor + 16 + length > self._head:
            return None
        stop = start + 16 + length
        if stop <= self.capacity:
            payload = self._data[start + 16 : stop].tobytes()
        else:
            payload = self._data[start + 16 :].tobytes() + self._data[: stop - self.capacity].tobytes()
        if zlib.crc32(payload, word) != crc:
            return None
        return word, payload

    def _load_again(self) -> tuple[int, bytes]:
        """`_load` where stores may arrive out of order: the frame may be complete a moment later. Else RingCorrupt."""
        for _ in range(0 if self._ordered else _RETRIES):
            self._fence()
            self._settle()
            frame = self._load()
            if frame is not None:
                return frame
        word, crc, sequence = self._unpack(self._data, self._cursor & self._mask)
        raise RingCorrupt(
            f"The ring's frame {self._sequence} at byte {self._cursor} is damaged: it says sequence {sequence}, length "
            f"{word & ~_MORE}, CRC {crc:08x}, with {self._head - self._cursor} bytes published. Its writing process "
            "has overwritten shared memory it does not own."
        )

    def _free(self) -> None:
        """Give the room of all frames taken back to the writer, and ring if it waits for it."""
        if self._freed == self._cursor:
            return
        self._freed = self._cursor
        self._words[TAIL] = self._cursor
        if self._on_room is None:
            return
        if self._ordered:
            if (self._head - self._cursor) * 2 > self.capacity:
                return  # ring at half empty: a writer in need of room is not woken for every frame
            self._fence()
            blocked = self._words[BLOCKED]
            if not blocked & 1 or blocked == self._rung:
                return
            self._rung = blocked
        self._on_room()
