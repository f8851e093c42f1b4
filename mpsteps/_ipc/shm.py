"""Shared memory that has no name, and the order in which two processes see what is stored in it.

A block is an anonymous file (`memfd`) passed to the other process by descriptor: there is nothing to unlink, nothing is
left behind by kill -9, and a small /dev/shm does not matter. Its pages are reserved when it is created, so that a full
machine is an error here, in one sentence, and not a SIGBUS in the middle of a step. It is sealed: nobody, not even
another process that holds the descriptor, can make it shorter under a reader. Where there is no memfd (macOS), the
block is a temporary file of mode 0600 that is unlinked at once.

The memory model stands here too because everything above leans on it: `ORDERED` and `fence`. See README.md.
"""

from __future__ import annotations

import errno
import mmap
import os
import sys
import threading
from typing import Callable

from mpsteps.errors import EngineError

if sys.platform != "win32":
    import fcntl

#: The processor, as the system names it; not asked of `platform`, which starts a program to find out (Python 3.8).
MACHINE: str = os.uname().machine if hasattr(os, "uname") else "Windows"

#: True where stores of one process become visible to others in the order they were made and loads are made in order
#: (x86, "TSO"), so that only store-then-load needs a fence. Everything that depends on it takes it as a parameter.
ORDERED: bool = MACHINE.lower() in {"x86_64", "amd64"} and sys.maxsize > 2**32

# <linux/fcntl.h> and <linux/memfd.h>: Python has these names only from 3.8, 3.9 or not at all.
_F_ADD_SEALS = 1033
_F_SEAL_SEAL, _F_SEAL_SHRINK, _F_SEAL_GROW = 1, 2, 4
_MFD_CLOEXEC, _MFD_ALLOW_SEALING, _MFD_NOEXEC_SEAL = 1, 2, 8
_MAP_POPULATE = 0x8000  # the same on x86 and ARM

_lock = threading.Lock()


def fence(acquire: Callable[[], object] = _lock.acquire, release: Callable[[], None] = _lock.release) -> None:
    """Make this process's earlier stores visible to others before it makes its later loads (a full barrier on x86).

    Taking a free lock is a lock-prefixed instruction, which on x86 drains the store buffer; plain Python has no other
    name for it. One thread per process uses it, so the lock is always free. On other machines it is *not* promised to
    be a full barrier, and nothing there relies on it.
    """
    acquire()
    release()


def create(size: int, reserved: int | None = None) -> int:
    """A new zeroed block of `size` bytes; returns its descriptor (close-on-exec, never 0 to 2), which the caller owns.

    The memory is reserved (the first `reserved` bytes of it; None: all), of mode 0600, and cannot be made longer or
    shorter. Raises EngineError where it cannot be had.
    """
    if sys.platform == "win32" or sys.maxsize <= 2**32:
        raise EngineError(
            f"mpsteps cannot start worker processes on {sys.platform} {MACHINE}: it needs a 64-bit "
            "Python on Linux or macOS."
        )
    fd = -1
    try:
        fd = _anonymous_file()
        os.fchmod(fd, 0o600)
        os.ftruncate(fd, size)
        _reserve(fd, size if reserved is None else reserved)
        _seal(fd)
    except OSError as error:
        if fd >= 0:
            os.close(fd)
        raise EngineError(_complaint(size, error)) from error
    return fd


def reserve(fd: int, offset: int, size: int) -> None:
    """Have the system set a part of a block aside that was not reserved when it was made. Raises EngineError."""
    try:
        _reserve(fd, size, offset)
    except OSError as error:
        raise EngineError(_complaint(size, error)) from error


def attach(fd: int, touch: bool = False, readonly: bool = False) -> mmap.mmap:
    """Map the block `fd` whole into this process. `fd` stays the caller's; the mapping outlives it.

    `touch`: enter all pages into the page table now, so that no later first access costs a page fault. `readonly`: a
    store through this mapping raises TypeError. Release all views of the mapping before closing it.
    """
    size = os.fstat(fd).st_size
    flags = mmap.MAP_SHARED
    if touch and sys.platform.startswith("linux"):
        flags |= _MAP_POPULATE
    protection = mmap.PROT_READ if readonly else mmap.PROT_READ | mmap.PROT_WRITE
    try:
        memory = mmap.mmap(fd, size, flags=flags, prot=protection)
    except (OSError, ValueError) as error:
        raise EngineError(
            f"The {size} bytes of shared memory behind descriptor {fd} cannot be mapped: {error}."
        ) from error
    if touch and not flags & _MAP_POPULATE:
        for offset in range(0, size, mmap.PAGESIZE):
            memory[offset]
    return memory


def above_stdio(fd: int) -> int:
    """`fd`, moved to 3 or above: a step's print must never land in a ring because stdin happened to be closed."""
    if fd > 2:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(fd)


def _anonymous_file() -> int:
    """A memfd, or an unlinked temporary file where the system or its sandbox has none."""
    if not hasattr(os, "memfd_create"):
        return _temporary_file()
    flags = _MFD_CLOEXEC | _MFD_ALLOW_SEALING
    try:
        # Hardened kernels (vm.memfd_noexec=2) allow only non-executable ones, kernels before 6.3 do not know the flag.
        return above_stdio(os.memfd_create("mpsteps", flags | _MFD_NOEXEC_SEAL))
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EPERM):
            return _temporary_file()
        if error.errno != errno.EINVAL:
            raise
    return above_stdio(os.memfd_create("mpsteps", flags))


def _temporary_file() -> int:
    import tempfile  # seldom needed, and it loads a dozen modules, in every worker

    fd, path = tempfile.mkstemp(prefix="mpsteps-")
    os.unlink(path)
    return above_stdio(fd)


def _reserve(fd: int, size: int, start: int = 0) -> None:
    """Have the system set the memory aside now; OSError (ENOSPC, ENOMEM) where it has not enough."""
    if hasattr(os, "posix_fallocate"):
        if size:
            os.posix_fallocate(fd, start, size)
        return
    block = bytes(1 << 20)
    for offset in range(0, size, len(block)):
        rest = min(len(block), size - offset)
        if os.pwrite(fd, block[:rest], start + offset) != rest:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _seal(fd: int) -> None:
    """Fix the size for good. A plain temporary file knows no seals: it has no name by which anyone could reach it."""
    if not sys.platform.startswith("linux"):
        return
    try:
        fcntl.fcntl(fd, _F_ADD_SEALS, _F_SEAL_SHRINK | _F_SEAL_GROW | _F_SEAL_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


def _complaint(size: int, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.ENOMEM, errno.EDQUOT, errno.EFBIG):
        return (
            f"There is no room for {size} bytes of shared memory ({error.strerror}): free some memory, raise the "
            "memory limit of this job or container, or use fewer workers."
        )
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return (
            f"Shared memory of {size} bytes cannot be created because too many files are open ({error.strerror}): "
            "raise the limit (ulimit -n) or use fewer workers."
        )
    return f"Shared memory of {size} bytes cannot be created: {error.strerror or error}."
