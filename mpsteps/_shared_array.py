"""`mpsteps.shared_array`: an array that every step reads and writes in place.

Its memory belongs to no process: it lives as long as an array that lies in it does, anywhere. It travels as a reference
(`mpsteps._ipc.blocks`), so that passing it to a step, or keeping it on the protocol, copies nothing; and as what steps
write to it is there for all at once, it takes no part in write-back. Steps that write the same elements at the same
time overwrite each other, as threads would: use prerequisites, `self._lock`, or a part for each step.

(This module cannot be called shared_array: once imported it would hide the function, `mpsteps.shared_array`.)
"""

from __future__ import annotations

import math
import mmap
import os
import shutil
import tempfile
import threading
import weakref
from collections import deque
from typing import Any, Deque, Optional, Sequence, Tuple, Union

from mpsteps._ipc import blocks, room, shm
from mpsteps._ipc.blocks import SEGMENT_HEADER, BlockError
from mpsteps.errors import EngineError, UsageError

_base: Any
try:
    import numpy as np
except ImportError:
    _base = object
else:
    _base = np.ndarray

_Where = Union[int, str]  # a descriptor of the process that tells it, or, without /proc, the path of a file
_ArrayReference = Tuple[int, _Where, int, int]  # pid, where, key, size

BY_DESCRIPTOR: bool = os.path.isdir("/proc/self/fd")
"""Whether other processes open the memory through /proc. Elsewhere (macOS) it is a file in a folder of its own, which
only this user can enter and which is removed with the array; kill -9 leaves it."""

_known: weakref.WeakValueDictionary[int, _Memory] = weakref.WeakValueDictionary()  # key -> memory mapped here
_told: Deque[_Memory] = deque()  # see `blocks.told_kept`
_lock = threading.Lock()


def shared_array(shape: Union[int, Sequence[int]], dtype: Any = float) -> Any:
    """A new `numpy.ndarray` of zeros that is the same memory in all steps, to read and to write.

    Make it before the steps run, as an attribute of the protocol or an argument. Views of it (slices, reshaped,
    transposed) are shared as well; what is computed from it is an ordinary array. UsageError without numpy or for a
    dtype that holds objects; EngineError if there is no room in memory.
    """
    if _base is object:
        raise UsageError("mpsteps.shared_array needs numpy, which is not installed: pip install numpy")
    dtype = np.dtype(dtype)
    if dtype.hasobject:
        raise UsageError(f"a shared array cannot hold objects (dtype {dtype}): they live in one process only")
    dims: Tuple[int, ...] = tuple(int(n) for n in shape) if isinstance(shape, Sequence) else (int(shape),)
    if any(n < 0 for n in dims):
        raise UsageError(f"a shared array cannot have the shape {dims}: no dimension may be negative")
    return _array(_Memory.create(math.prod(dims) * dtype.itemsize), dims, dtype)


class SharedArray(_base):  # type: ignore[misc]  # numpy may be missing
    """What `shared_array` returns, and its views. `_mpsteps_shared`: whether this array lies in shared memory."""

    _memory: Optional[_Memory] = None

    @property
    def _mpsteps_shared(self) -> bool:
        return self._memory is not None

    def __array_finalize__(self, obj: Any) -> None:
        memory = getattr(obj, "_memory", None)
        if memory is not None and memory.holds(self.__array_interface__["data"][0]):
            self._memory = memory

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        """What is computed is an ordinary array or number, unless it was written into a shared one (`out=`, `+=`)."""
        if array is self or getattr(array, "_memory", None) is not None:
            return array
        plain = array.view(np.ndarray)
        return plain[()] if return_scalar or not plain.shape else plain

    def __reduce_ex__(self, protocol: Any) -> Any:
        memory = self._memory
        if memory is None:
            return self.view(np.ndarray).__reduce_ex__(protocol)
        offset = self.__array_interface__["data"][0] - memory.start
        view = (self.shape, self.dtype, offset, self.strides, self.flags.writeable)
        return _open, (memory.tell(), *view)


class _Memory:
    """The memory of a shared array, as this process has it: a descriptor for others to open, and a mapping.

    The mapping is closed when the last array dies, the descriptor with this object, which the arrays hold.
    """

    def __init__(self, fd: int, where: str, key: int, size: int, owned: str = "") -> None:
        self._fd = fd
        self._path = where
        self.key = key
        self.size = size
        try:
            self.mapping: mmap.mmap = shm.attach(fd)
        except BaseException:
            _release(fd, owned, os.getpid())
            raise
        self.start = 0  # address of the first element; set by the first array
        self.end = 0
        weakref.finalize(self, _release, fd, owned, os.getpid())
        _known[key] = self

    @classmethod
    def create(cls, size: int) -> _Memory:
        """New memory for `size` bytes, zeroed and reserved."""
        key = blocks.random_word()
        size = SEGMENT_HEADER + (size + blocks.PAGE - 1) // blocks.PAGE * blocks.PAGE
        if BY_DESCRIPTOR:
            why = room.refusal(size)
            if why:
                raise EngineError(f"a shared array cannot be made: {why}; make it smaller, or several of them")
            fd, folder, path = shm.create(size), "", ""
        else:
            fd, folder, path = _named_file(size)
        try:
            blocks.write_header(fd, key, size)
        except BaseException:
            _release(fd, folder, os.getpid())
            raise
        return cls(fd, path, key, size, folder)

    @classmethod
    def open(cls, pid: int, where: _Where, key: int, size: int) -> _Memory:
        """The memory that another process told of; the same object each time."""
        with _lock:
            memory = _known.get(key)
            if memory is None:
                if isinstance(where, int):
                    memory = cls(blocks.open_segment(pid, where, key, size, writable=True), "", key, size)
                else:
                    fd = blocks.check_segment(where, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, pid, key, size)
                    memory = cls(fd, where, key, size)
            _keep(memory)
            return memory

    def tell(self) -> _ArrayReference:
        """How another process opens it."""
        with _lock:
            _keep(self)
        return os.getpid(), self._path or self._fd, self.key, self.size

    def holds(self, address: int) -> bool:
        """Whether an array that begins there lies in this memory."""
        return self.start <= address < self.end


def _keep(memory: _Memory) -> None:
    """Whoever gives this process an array gives it again to the next step: mapping it anew each time would cost a page
    fault for every page. And what is told to others must not be gone before they have opened it."""
    if blocks.told_kept:
        if memory in _told:
            _told.remove(memory)
        _told.append(memory)
        while len(_told) > blocks.told_kept:
            _told.popleft()


def _array(memory: _Memory, shape: Tuple[int, ...], dtype: Any, offset: int = 0, strides: Any = None) -> Any:
    array = np.ndarray.__new__(SharedArray, shape, dtype, memory.mapping, SEGMENT_HEADER + offset, strides)
    if not memory.end:
        memory.start = array.__array_interface__["data"][0] - offset
        memory.end = memory.start + max(1, memory.size - SEGMENT_HEADER)
    array._memory = memory
    return array


def _open(
    reference: _ArrayReference, shape: Tuple[int, ...], dtype: Any, offset: int, strides: Any, writeable: bool
) -> Any:
    """The array again, in the process that unpickles it."""
    try:
        memory = _Memory.open(*reference)
    except BlockError as error:
        raise EngineError(
            f"the shared array of shape {shape} and type {dtype} is no longer there: its memory went with the last "
            "process that used it, or is on another machine (a shared array does not outlive its run and is for one "
            "machine; make it again, or return an ordinary array)"
        ) from error
    array = _array(memory, shape, dtype, offset, strides)
    array.flags.writeable = writeable
    return array


def _named_file(size: int) -> Tuple[int, str, str]:
    """Descriptor, folder and path of a file that others open by its name."""
    folder = tempfile.mkdtemp(prefix="mpsteps-")
    path = os.path.join(folder, "array")
    fd = -1
    try:
        fd = shm.above_stdio(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        os.ftruncate(fd, size)
        shm._reserve(fd, size)
    except OSError as error:
        if fd >= 0:
            os.close(fd)
        shutil.rmtree(folder, ignore_errors=True)
        raise EngineError(f"a shared array of {size} bytes cannot be made in {folder!r}: {error.strerror}") from error
    return fd, folder, path


def _release(fd: int, owned: str, pid: int) -> None:
    """Close the descriptor; remove the folder, but not as a fork of the process that made it."""
    os.close(fd)
    if owned and os.getpid() == pid:
        shutil.rmtree(owned, ignore_errors=True)
