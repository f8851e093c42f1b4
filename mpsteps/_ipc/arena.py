"""The arena: where a process puts the large values that others read. One writer; memory that is used again.

Memory that nobody has touched yet costs a page fault per page: it is filled at 1.5 GB/s, memory that was used before at
10 and more. So the arena keeps what it has: segments of shared memory whose pages are reserved and mapped when they are
made, cut into blocks; a freed block leaves a hole, neighbouring holes join, and the first hole that fits is used, so
that the same few pages come around again. Segments that have been empty for `PATIENCE` blocks go back to the system.

A block is written once, before anybody hears of it, and never changed while it has users. Who uses it is not known
here: the coordinator counts (`mpsteps._ipc.users`) and has the owner free it.

Never more than the limit: what has no room goes to a file without a name, with one warning, and if there is no room for
that either, `put` says None and the value travels through the rings. Reserved memory cannot run out later, so that
there is no SIGBUS.
"""

from __future__ import annotations

import bisect
import contextlib
import logging
import mmap
import os
import threading
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

from mpsteps._ipc import blocks, room, shm
from mpsteps._ipc.blocks import RETIRED, SEGMENT_HEADER, Reference
from mpsteps.errors import EngineError, InternalError

SEGMENT = 16 << 20
"""Room for blocks in a segment, at least. Later ones are up to four times as large, as the arena grows."""
PATIENCE = 128
"""A segment that has been empty while so many blocks were put is given back; memory that was refused is asked for again
after as many."""

_LARGEST_WRITE = 1 << 30  # the kernel writes at most 2 GiB at once

_log = logging.getLogger("mpsteps.arena")

Buffer = Union[bytes, bytearray, memoryview]


class _Segment:
    """Shared memory with `blocks` blocks in it. `holes`: (offset, size) of what is free, by offset, never adjacent."""

    def __init__(self, size: int) -> None:
        why = room.refusal(size)
        if why:
            raise EngineError(why)
        self.key = blocks.random_word()
        self.size = size
        self.fd = shm.create(size)
        try:
            blocks.write_header(self.fd, self.key, size)
            self._mapping = shm.attach(self.fd, touch=True)
        except BaseException:
            os.close(self.fd)
            raise
        self.memory = memoryview(self._mapping)
        self.words = self.memory.cast("Q")
        self.holes: List[Tuple[int, int]] = [(SEGMENT_HEADER, size - SEGMENT_HEADER)]
        self.blocks = 0
        self.empty_since = 0

    def take(self, size: int) -> int:
        """The offset of the first hole of `size` bytes, now taken; 0: there is none."""
        for i, (offset, free) in enumerate(self.holes):
            if free >= size:
                if free == size:
                    del self.holes[i]
                else:
                    self.holes[i] = (offset + size, free - size)
                self.blocks += 1
                return offset
        return 0

    def give(self, offset: int, size: int) -> None:
        """Make a block a hole again."""
        holes = self.holes
        i = bisect.bisect(holes, (offset, 0))
        if i < len(holes) and holes[i][0] == offset + size:
            size += holes.pop(i)[1]
        if i and sum(holes[i - 1]) == offset:
            i -= 1
            before = holes.pop(i)
            offset, size = before[0], before[1] + size
        holes.insert(i, (offset, size))
        self.blocks -= 1

    def close(self, discard: bool) -> None:
        """Let go of it; readers' views stay valid. `discard`: nobody reads it: its memory is gone at once, even where
        it is still mapped."""
        if discard and hasattr(mmap, "MADV_REMOVE"):
            # Where there is no memfd this may be a file system that cannot do it: then the last mapping keeps it.
            with contextlib.suppress(OSError):
                self._mapping.madvise(mmap.MADV_REMOVE, SEGMENT_HEADER, self.size - SEGMENT_HEADER)
        self.words.release()
        self.memory.release()
        self._mapping.close()
        os.close(self.fd)


class _Slot(NamedTuple):
    """Where a block is: in a segment, or (`segment` None) in the file `fd`."""

    segment: Optional[_Segment]
    fd: int
    offset: int
    size: int


class Arena:
    """The blocks that this process writes. Any thread may call, but no finalizer (there is a lock).

    `limit` is the most shared memory in bytes; `folder`: where blocks go for which there is none (None: nowhere; '':
    where temporary files go). Without `share` every `put` is refused. A process that was forked off this one cannot
    put or free anything: memory has one writer.
    """

    def __init__(
        self,
        limit: int,
        folder: Optional[str] = None,
        share: Optional[bool] = None,
        ordered: bool = shm.ORDERED,
    ) -> None:
        self.limit = limit
        self._folder = folder
        self._share = blocks.CAN_SHARE if share is None else share
        self._ordered = ordered
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._segments: List[_Segment] = []
        self._slots: Dict[int, _Slot] = {}  # key of a block -> where it is
        self._stamp = blocks.random_word()  # of the last block
        self._puts = 0
        self._grow_at = 0  # memory was refused: not to be asked for before so many puts
        self._why = ""  # it was refused
        self._warned = False
        self._spilled = 0

    def put(self, buffers: Sequence[Buffer]) -> Optional[Reference]:
        """Copy contiguous buffers, together, into a new block. None: it cannot be shared, send it by value.

        Only its owner may `free` it, when nobody needs it any more.
        """
        if not self._share or os.getpid() != self._pid:
            return None
        views = [memoryview(b).cast("B") if memoryview(b).nbytes else memoryview(b"") for b in buffers]
        sizes = tuple(len(view) for view in views)
        starts, total = blocks.layout(sizes)
        with self._lock:
            self._puts += 1
            self._stamp += 1
            stamp = self._stamp
            slot = self._take(blocks.slot_size(total)) or self._spill(blocks.slot_size(total))
            if slot is None:
                return None
            self._slots[stamp] = slot
        try:
            key, size = self._write(slot, views, starts, stamp, total)
        except OSError as error:  # only a file can fail here
            self.free(stamp)
            self._warn(f"a file in {self._where()!r} cannot be written ({error.strerror})")
            return None
        return (self._pid, slot.fd, key, size, slot.offset, stamp, sizes)

    def free(self, key: int) -> None:
        """Nobody uses this block any more (see `blocks.key_of`). InternalError if there is no such block."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            slot = self._slots.pop(key, None)
            if slot is None:
                raise InternalError(f"block {key} was freed twice, or is not of this process")
            segment = slot.segment
            if segment is None:
                with contextlib.suppress(OSError):  # readers let go of it later then; and the disk is in trouble
                    _store_words(slot.fd, slot.offset, 0)
                    _store_words(slot.fd, 8 * RETIRED, 1)
                os.close(slot.fd)
                return
            segment.words[slot.offset // 8] = 0
            segment.give(slot.offset, slot.size)
            if not segment.blocks:
                segment.empty_since = self._puts

    def trim(self) -> None:
        """Give all memory back in which there is no block."""
        with self._lock:
            self._trim(0)

    def close(self) -> None:
        """Let go of everything. Who has opened a block keeps it; nobody can open one any more. Twice is once."""
        with self._lock:
            self._share = False
            for segment in self._segments:
                if os.getpid() == self._pid:
                    segment.words[RETIRED] = 1
                segment.close(discard=False)
            for slot in self._slots.values():
                if slot.segment is None:
                    os.close(slot.fd)
            self._segments.clear()
            self._slots.clear()

    def statistics(self) -> Dict[str, int]:
        """Numbers of `segments` and `blocks`, bytes of both (`bytes`, `used`); blocks ever `put`, ever `spilled`."""
        with self._lock:
            return {
                "segments": len(self._segments),
                "bytes": self._reserved(),
                "blocks": len(self._slots),
                "used": sum(slot.size for slot in self._slots.values()),
                "put": self._puts,
                "spilled": self._spilled,
            }

    # ------------------------------------------------------------------ shared memory

    def _reserved(self) -> int:
        return sum(segment.size for segment in self._segments)

    def _take(self, size: int) -> Optional[_Slot]:
        """A hole for a block of `size` bytes in a segment, a new one if need be."""
        self._trim(PATIENCE)
        for segment in self._segments:
            offset = segment.take(size)
            if offset:
                return _Slot(segment, segment.fd, offset, size)
        if self._puts < self._grow_at:
            return None  # asking costs much where there is little
        for whole in self._segment_sizes(size):
            try:
                segment = _Segment(whole)
            except EngineError as error:
                self._why = str(error)
                self._grow_at = self._puts + PATIENCE
                continue
            self._grow_at = 0
            self._segments.append(segment)
            return _Slot(segment, segment.fd, segment.take(size), size)
        return None

    def _segment_sizes(self, size: int) -> Iterator[int]:
        """Sizes of a new segment to be tried for a block of `size`: one for several blocks, then one for just this."""
        wanted = max(SEGMENT, min(self._reserved() // 4, 4 * SEGMENT))
        generous = SEGMENT_HEADER + (wanted + size - 1) // size * size
        frugal = SEGMENT_HEADER + size
        if self._reserved() + generous > self.limit:
            self._trim(0)
        for whole in (generous, frugal):
            if self._reserved() + whole <= self.limit:
                yield whole
            else:
                self._why = f"its limit is {self.limit} bytes, {self._reserved()} are in use"

    def _trim(self, patience: int) -> None:
        """Give back segments that have been empty while `patience` blocks were put."""
        if os.getpid() != self._pid:
            return
        for segment in [s for s in self._segments if not s.blocks and self._puts - s.empty_since >= patience]:
            self._segments.remove(segment)
            segment.words[RETIRED] = 1
            segment.close(discard=True)

    def _write(
        self, slot: _Slot, views: List[memoryview], starts: List[int], stamp: int, total: int
    ) -> Tuple[int, int]:
        """Fill a block, the stamp last; key and size of its segment. OSError if a file cannot be written."""
        segment, offset = slot.segment, slot.offset
        if segment is None:
            return _write_file(slot, views, starts, stamp, total)
        if not self._ordered:
            blocks.certify(segment.fd)  # readers of what was here before have read it
        for view, start in zip(views, starts):
            segment.memory[offset + start : offset + start + len(view)] = view
        segment.words[offset // 8 + 1] = total
        segment.words[offset // 8] = stamp
        if not self._ordered:
            blocks.certify(segment.fd)
        return segment.key, segment.size

    # -------------------------------------------------------------------------- files

    def _where(self) -> str:
        import tempfile  # seldom needed, and it loads a dozen modules, in every worker

        return self._folder or tempfile.gettempdir()

    def _spill(self, size: int) -> Optional[_Slot]:
        """A file for one block; None if there is no room for it either."""
        if self._folder is None:
            self._warn("they go through the lanes from now on, which is slower")
            return None
        try:
            fd = _nameless_file(self._where(), SEGMENT_HEADER + size)
        except OSError as error:
            self._warn(f"nor is there room in {self._where()!r} ({error.strerror}): they go through the lanes")
            return None
        self._warn(f"they go through files in {self._where()!r} from now on, which is slower")
        self._spilled += 1
        return _Slot(None, fd, SEGMENT_HEADER, size)

    def _warn(self, what: str) -> None:
        """Once for each arena."""
        if not self._warned:
            self._warned = True
            _log.warning("no shared memory is left for large values (%s); %s", self._why.rstrip("."), what)


def _nameless_file(folder: str, size: int) -> int:
    """A file of `size` bytes that is really there and has no name; OSError if it cannot be had."""
    import tempfile

    fd, path = tempfile.mkstemp(prefix="mpsteps-", dir=folder)
    os.unlink(path)
    fd = shm.above_stdio(fd)
    try:
        os.ftruncate(fd, size)
        shm._reserve(fd, size)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _write_file(slot: _Slot, views: List[memoryview], starts: List[int], stamp: int, total: int) -> Tuple[int, int]:
    key, size = blocks.random_word(), SEGMENT_HEADER + slot.size
    blocks.write_header(slot.fd, key, size)
    for view, start in zip(views, starts):
        done = 0
        while done < len(view):
            done += os.pwrite(slot.fd, view[done : done + _LARGEST_WRITE], slot.offset + start + done)
    _store_words(slot.fd, slot.offset, stamp, total)
    return key, size


def _store_words(fd: int, offset: int, *words: int) -> None:
    os.pwrite(fd, b"".join(word.to_bytes(8, "little") for word in words), offset)
