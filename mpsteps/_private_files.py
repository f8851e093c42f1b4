"""Files that only this user can have written, the locks on them, and the calls that store them.

Everything that a run directory holds of ours goes through `open_private`: a journal carries pickles, so that a file
which somebody else put or linked in its place must not be read, let alone appended to.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import warnings
from typing import Optional

from mpsteps.errors import JournalError, MpstepsError, RunDirectoryError

if sys.platform != "win32":
    import fcntl

    EXCLUSIVE = fcntl.LOCK_EX | fcntl.LOCK_NB
    SHARED = fcntl.LOCK_SH | fcntl.LOCK_NB
else:  # imports work there, running does not
    EXCLUSIVE = SHARED = 0

_ADVICE = {
    errno.ENOSPC: "free some space, or choose another place",
    errno.EDQUOT: "free some of your quota, or choose another place",
    errno.EROFS: "choose a place that can be written",
    errno.EACCES: "choose a place that you may write to",
    errno.EPERM: "choose a place that you may write to",
    errno.ENOTDIR: "a part of this path is a file: choose another",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOENT: "check the path",
}
_NO_LOCKS = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS}


def open_private(path: str, flags: int, blame: type[MpstepsError] = RunDirectoryError) -> int:
    """Open a regular file of ours, 0600 if it is created; anything else in its place raises `blame`.

    The descriptor is close-on-exec and never 0, 1 or 2, also where the process has those closed: what is printed
    later must not end up in the file.
    """
    flags |= os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # non-blocking: opening a FIFO must not wait for its writer
    try:
        fd = above_stdio(os.open(path, flags, 0o600))
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise blame(f"{path!r} is a symbolic link: remove it, or choose another run directory") from error
        raise blame(sentence_for("open", path, error)) from error
    try:
        check_file(path, os.fstat(fd), blame, writing=flags & os.O_ACCMODE != os.O_RDONLY)
        if flags & os.O_CREAT:
            os.fchmod(fd, 0o600)
    except BaseException:
        os.close(fd)
        raise
    return fd


def try_lock(fd: int, path: str, operation: int, required: bool) -> Optional[bool]:
    """True: locked; False: somebody else has it; None: there are no locks here and none are `required`."""
    try:
        fcntl.flock(fd, operation)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise RunDirectoryError(sentence_for("lock", path, error)) from error
        sentence = f"the file system of {path!r} has no file locks ({os.strerror(error.errno)})"
        if required:
            raise RunDirectoryError(
                f"{sentence}: put the run directory on another one (for Lustre, mount it with "
                "-o flock), or go without the lock if nothing else uses this run"
            ) from error
        warnings.warn(f"{sentence}: nothing keeps a second coordinator out", RuntimeWarning, stacklevel=3)
        return None
    return True


def sentence_for(what: str, path: str, error: OSError) -> str:
    advice = _ADVICE.get(error.errno or 0, "check the path and the disk")
    return f"cannot {what} {path!r}: {error.strerror or error}; {advice}"


def above_stdio(fd: int) -> int:
    """The descriptor `fd`, moved to 3 or above if it is one of stdin, stdout and stderr; close-on-exec if moved."""
    if fd > 2:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(fd)


def check_file(path: str, found: os.stat_result, blame: type[MpstepsError], writing: bool) -> None:
    problem = ""
    if not stat.S_ISREG(found.st_mode):
        problem = "is not a regular file"
    elif found.st_nlink != 1:
        problem = f"has {found.st_nlink} names (hard links)"
    elif writing and found.st_uid != os.geteuid():
        problem = f"belongs to user {found.st_uid}, not to you"
    elif writing and found.st_mode & 0o022:
        problem = "may be written by others"
    if problem:
        raise blame(f"{path!r} {problem}: remove it, or choose another run directory")


class Disk:
    """The system calls that can fail under a journal, in one place so that tests can make each of them fail."""

    def write(self, fd: int, data: bytes) -> int:
        return os.write(fd, data)

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def allocate(self, fd: int, size: int) -> None:
        """Really reserve `size` bytes, also where the file system cannot allocate ahead (macOS, NFS)."""
        allocate = getattr(os, "posix_fallocate", None)
        if allocate is not None:
            try:
                allocate(fd, 0, size)
                return
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                    raise
        zeros = b"\0" * size
        while zeros:
            zeros = zeros[os.write(fd, zeros) :]

    def sync(self, fd: int) -> None:
        """To the disk itself: macOS's fsync leaves data in the drive's cache, unlike its F_FULLFSYNC."""
        full = getattr(fcntl, "F_FULLFSYNC", None)
        if full is not None:
            fcntl.fcntl(fd, full)
        else:
            getattr(os, "fdatasync", os.fsync)(fd)

    def close(self, fd: int) -> None:
        os.close(fd)


def sync_folders(path: str) -> None:
    """Make the names of a new file and of its directory last, which an fsync of the file does not."""
    folder = os.path.dirname(path)
    for place in (folder, os.path.dirname(folder)):
        try:
            fd = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EINVAL):  # a parent we may not read, or that needs no fsync
                raise JournalError(f"the disk failed to store the directory {place!r}: {error.strerror}") from error
