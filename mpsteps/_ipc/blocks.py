"""Blocks of the arena as other processes see them: how a block is named, how it is opened, and when it may go.

A large value is written once, by its owner (`mpsteps._ipc.arena`), into a *block* of a *segment*. What travels is a
`Reference`: a tuple of numbers. A reader opens the segment through /proc/<pid>/fd/<fd>, so that it has no name that
could be left behind or guessed, maps it for reading only, and keeps the mapping for the blocks to come.

Numbers of processes and descriptors are used again. A segment therefore begins with a random key, and a block with a
stamp that is never used twice: a reference finds exactly what it was made for, or an error, never another value.

The mapping of a segment lives as long as any array that lies in it: nobody closes it, the last view to die unmaps it.
Which blocks are in use here is known by weak references to the object that exports each block's memory (a ctypes array,
since no other object of the standard library can be both a weakly referenced owner of memory and a view of a piece of
somebody else's). Where there is no /proc or no ctypes, `CAN_SHARE` is False and large values travel as all others do.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import stat
import struct
import sys
import threading
import weakref
from typing import Any, Dict, Iterable, List, NamedTuple, Tuple

from mpsteps._ipc import shm
from mpsteps.errors import EngineError, InternalError

try:
    import ctypes
except ImportError:  # a Python that was built without it
    ctypes = None  # type: ignore[assignment]

if sys.platform != "win32":
    import fcntl

Reference = Tuple[int, int, int, int, int, int, Tuple[int, ...]]
"""pid and descriptor by which the segment is opened, its key and size; the block's offset, its stamp (which is its key
everywhere) and the sizes of the buffers in it. All sizes and offsets are in bytes."""

CAN_SHARE: bool = (
    ctypes is not None
    and hasattr(ctypes, "pythonapi")
    and sys.implementation.name == "cpython"
    and os.path.isdir("/proc/self/fd")
)

PAGE = 4096
SEGMENT_HEADER = PAGE
"""Bytes before the first block: the words MAGIC, key, size, retired (1: the owner has closed the segment)."""
BLOCK_HEADER = 64
"""Bytes before a block's first buffer: its stamp (0: the block is free), its size. Stored by the owner only."""
RETIRED = 3
told_kept = 0
"""The memory of so many shared arrays that this process was given, or told others about, is kept, even if it forgets
them itself. Set in workers: an array that a step made and returned has no user there when the step is over."""
IDLE_GETS = 256
"""A segment without live views that none of the last so many blocks lay in is let go of."""

_MAGIC = int.from_bytes(b"mpsArena", "little")
_HEADER = struct.Struct("=QQQ")


class BlockError(EngineError):
    """A reference that does not lead to the block it was made for."""


class Parts(NamedTuple):
    """A reference with names."""

    pid: int
    fd: int
    key: int
    size: int
    offset: int
    stamp: int
    sizes: Tuple[int, ...]


def key_of(reference: Reference) -> int:
    """What a block is called by those who count its users: unique among all blocks of all processes."""
    return reference[5]


def size_of(reference: Reference) -> int:
    """The bytes of all buffers in the block."""
    return sum(reference[6])


def layout(sizes: Iterable[int]) -> Tuple[List[int], int]:
    """Where in its block each buffer begins, aligned to 64 bytes, and the size of the whole block."""
    starts = []
    end = BLOCK_HEADER
    for size in sizes:
        starts.append(end)
        end += (size + 63) & ~63
    return starts, end


def slot_size(size: int) -> int:
    """The bytes set aside for a block of `size`: whole pages, and above 16 pages one of eight sizes per power of two,
    so that blocks of nearly one size take each other's place; at most an eighth of it is lost."""
    step = max(PAGE, 1 << max(0, size.bit_length() - 4))
    return (size + step - 1) // step * step


def random_word() -> int:
    """62 random bits, not 0: as a key, or to begin counting stamps from."""
    return (int.from_bytes(os.urandom(8), "little") >> 2) | 1


def write_header(fd: int, key: int, size: int) -> None:
    """Make the file `fd` a segment. Through the kernel: it need not be mapped."""
    os.pwrite(fd, _HEADER.pack(_MAGIC, key, size), 0)


def open_segment(pid: int, fd: int, key: int, size: int, writable: bool = False) -> int:
    """A descriptor of this process for the segment that `pid` has open as `fd`; BlockError if it is not that one."""
    # Not blocking: by now the descriptor may be that of a FIFO without a writer.
    flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    return check_segment(f"/proc/{pid}/fd/{fd}", flags, pid, key, size)


def check_segment(path: str, flags: int, pid: int, key: int, size: int) -> int:
    """Open `path` and look whether it is the segment of that key; its descriptor. `pid` is for the message."""
    try:
        found = shm.above_stdio(os.open(path, flags))
    except OSError as error:
        raise BlockError(_gone(pid, size, error.strerror or str(error))) from error
    try:
        status = os.fstat(found)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_size != size:
            raise BlockError(_gone(pid, size, "its descriptor now leads elsewhere"))
        if os.pread(found, _HEADER.size, 0) != _HEADER.pack(_MAGIC, key, size):
            raise BlockError(_gone(pid, size, "its descriptor now leads to other memory"))
    except BaseException:
        os.close(found)
        raise
    return found


def certify(fd: int) -> None:
    """Between two processes that both call this on one segment: what the first stored before, the second sees after.

    For machines that reorder loads and stores (`shm.ORDERED` is False). Both take the same lock in the kernel, that of
    the file's own locks; README.md argues it.
    """
    with contextlib.suppress(BlockingIOError):  # somebody else has it locked: the kernel's own lock was taken
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    fcntl.flock(fd, fcntl.LOCK_UN)


class _Segment:
    """A segment mapped for reading. Dropping the object closes nothing but `fd`: views keep the mapping."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.memory = shm.attach(fd, readonly=True)
        self.words = memoryview(self.memory).cast("Q")
        self.address = _address(self.memory)
        self.used_at = 0

    def private(self, offset: int, size: int) -> mmap.mmap:
        """A mapping of its own for `size` bytes at `offset`, to read and to write: what is written there stays here,
        page by page. So the block is not changed, and nobody else sees it."""
        return mmap.mmap(
            self.fd, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE, offset=offset
        )

    def export(self, offset: int, size: int) -> Any:
        """An object that exports `size` bytes at `offset` and keeps the mapping alive."""
        exporter: Any = (ctypes.c_ubyte * size).from_address(self.address + offset)
        exporter.mapping = memoryview(self.memory)  # also keeps anybody from closing the mapping
        return exporter


class Attachments:
    """The blocks of other processes that this one reads. Any thread may call.

    `get` opens a block, `live_keys` tells which blocks something here still reads, `forward` re-tells a reference so
    that it leads through this process. `ordered`: see `shm.ORDERED`.
    """

    def __init__(self, ordered: bool = shm.ORDERED) -> None:
        self._ordered = ordered
        self._lock = threading.Lock()
        self._segments: Dict[int, _Segment] = {}
        self._gets = 0
        # Both are changed by weak references' callbacks at any moment: single operations on dicts only, and no lock.
        self._live: Dict[int, Tuple[int, int, _Segment]] = {}  # number of an exporter -> stamp, word, segment
        self._exporters: Dict[Tuple[int, bool], weakref.ref[Any]] = {}  # stamp, private -> its exporter, if it lives

    def get(self, reference: Reference, private: bool = False) -> List[memoryview]:
        """The buffers of a block, contiguous bytes; they stay valid as long as anything made of them.

        They are read-only; `private`: they can be written, and then are this process's own copy, page by page.
        BlockError: it was freed, its owner has ended, or this is no reference. Nothing that does not belong to the
        block is ever returned.
        """
        parts = _parse(reference)
        starts, total = layout(parts.sizes)
        with self._lock:
            self._gets += 1
            segment = self._segment(parts)
            segment.used_at = self._gets
            if not self._ordered:
                certify(segment.fd)
            word = parts.offset // 8
            if segment.words[word] != parts.stamp or segment.words[word + 1] != total:
                raise BlockError(_gone(parts.pid, total, "it was freed while it was still needed"))
            known = self._exporters.get((parts.stamp, private))
            exporter = known() if known is not None else None
            if exporter is None:
                make = segment.private if private else segment.export
                exporter = make(parts.offset, slot_size(total))
                self._watch(exporter, (parts.stamp, private), word, segment)
        whole = memoryview(exporter).cast("B")
        if not private:
            whole = whole.toreadonly()
        return [whole[start : start + size] for start, size in zip(starts, parts.sizes)]

    def forward(self, reference: Reference) -> Reference:
        """The same block by a descriptor of this process, for others to open: the owner's death then does not matter.

        Good as long as a view of the block is kept here. BlockError if there is none.
        """
        parts = _parse(reference)
        segment = self._segments.get(parts.key)
        if segment is None or not {(parts.stamp, False), (parts.stamp, True)} & self._exporters.keys():
            raise BlockError(_gone(parts.pid, size_of(reference), "this process does not hold it"))
        return (os.getpid(), segment.fd, *parts[2:])

    def live_keys(self) -> List[int]:
        """The keys of the blocks that something in this process can still read: they must not be freed.

        Call it when a step has ended and its own variables are gone. It also lets go of segments of no more use.
        InternalError if a block in use was freed or written again: whoever counts its users has miscounted, and what
        was read may be wrong.
        """
        live = list(self._live.values())
        for stamp, word, segment in live:
            if segment.words[word] != stamp:
                raise InternalError("memory of a large value was used again while a step was still reading it")
        if not self._ordered:
            with self._lock:
                for segment in self._segments.values():
                    certify(segment.fd)
        self.sweep()
        return sorted({stamp for stamp, _, _ in live})

    def sweep(self) -> None:
        """Let go of segments without live views that their owner has closed, or that nothing was read in for long."""
        with self._lock:
            used = {id(segment) for _, _, segment in list(self._live.values())}
            for key, segment in list(self._segments.items()):
                if id(segment) in used:
                    continue
                if not self._ordered:
                    certify(segment.fd)
                if segment.words[RETIRED] or self._gets - segment.used_at > IDLE_GETS:
                    del self._segments[key]
                    os.close(segment.fd)

    def __len__(self) -> int:
        """How many segments are mapped, apart from those that only views keep."""
        return len(self._segments)

    def close(self) -> None:
        """Let go of all segments; views that live stay valid."""
        with self._lock:
            for segment in self._segments.values():
                os.close(segment.fd)
            self._segments.clear()

    def _segment(self, parts: Parts) -> _Segment:
        segment = self._segments.get(parts.key)
        if segment is None:
            fd = open_segment(parts.pid, parts.fd, parts.key, parts.size)
            try:
                segment = _Segment(fd)
            except BaseException:
                os.close(fd)
                raise
            self._segments[parts.key] = segment
        elif len(segment.words) * 8 != parts.size:
            raise BlockError(f"{parts!r} does not name a block: the size of the segment is another")
        return segment

    def _watch(self, exporter: Any, name: Tuple[int, bool], word: int, segment: _Segment) -> None:
        number = self._gets
        live, exporters = self._live, self._exporters

        def died(reference: weakref.ref[Any]) -> None:
            live.pop(number, None)
            if exporters.get(name) is reference:
                exporters.pop(name, None)

        live[number] = (name[0], word, segment)
        exporters[name] = weakref.ref(exporter, died)


def _parse(reference: Reference) -> Parts:
    """The parts of a reference, checked: numbers from another process must not lead outside of the segment."""
    if type(reference) is tuple and len(reference) == len(Parts._fields) and type(reference[6]) is tuple:
        numbers = (*reference[:6], *reference[6])
        if all(type(n) is int and 0 <= n < 2**63 for n in numbers):
            parts = Parts(*reference)
            end = parts.offset + slot_size(layout(parts.sizes)[1])
            if parts.stamp and parts.offset % PAGE == 0 and parts.offset >= SEGMENT_HEADER and end <= parts.size:
                return parts
    raise BlockError(f"{reference!r} does not name a block of shared memory: what a worker sent is damaged")


def _gone(pid: int, size: int, why: str) -> str:
    return (
        f"A large value ({size} bytes of shared memory of process {pid}) cannot be read any more ({why}): the process "
        "that made it has ended or let go of it; run the step that made it again."
    )


@functools.lru_cache(maxsize=None)
def _buffer_type() -> Any:
    class Buffer(ctypes.Structure):
        """The beginning of CPython's Py_buffer, and room for the rest."""

        _fields_ = (("address", ctypes.c_void_p), ("rest", ctypes.c_byte * 256))

    return Buffer


def _address(memory: mmap.mmap) -> int:
    """Where a mapping for reading only begins: ctypes' own `from_buffer` wants to write."""
    buffer = _buffer_type()()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(memory), ctypes.byref(buffer), 0)
    try:
        return int(buffer.address)
    finally:
        ctypes.pythonapi.PyBuffer_Release(ctypes.byref(buffer))
