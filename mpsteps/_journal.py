"""The journal: an append-only file of CRC-framed JSON records, whose every crash state is a readable prefix.

Here is its writer; the file format and the reader are in `_journal_format`, the table of records in `_records`, what
they add up to in `_history`; all their names that others need are offered here.

The coordinator appends one frame a turn of its loop, with one write(2): a kill leaves the frame whole or absent.

Durability: 'process' survives any kill of ours, since what write(2) took is the kernel's; 'power' adds an fdatasync
to every append, and a failed one is final, because the kernel forgets the pages it could not write.

A full disk: `append` cuts back what it wrote and raises; nothing is half-written and the journal stays usable. So
that what has *already happened* can still be recorded, a reserve of 64 KiB was set aside when the journal was opened:
``append(records, from_reserve=True)`` gives it back to the file system and tries again. The coordinator's way out:
send none of the steps whose `started` was refused, start nothing more, record the ends of the running steps from the
reserve. The reserve is a file without a name, so that no crash leaves it behind. It is best effort: another program
may be faster, and a copy-on-write or network file system may count differently.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import weakref
import zlib
from types import TracebackType
from typing import NamedTuple, Optional, Union

from mpsteps._history import RunHistory, StepRecord, replay
from mpsteps._journal_format import (
    Journal,
    JournalHeader,
    first_bytes,
    make_frame,
    parse_journal,
    read_all,
    read_journal,
)
from mpsteps._private_files import Disk, above_stdio, open_private, sync_folders
from mpsteps._records import Record, encode, pack_bytes, unpack_bytes
from mpsteps.errors import JournalError

if sys.platform != "win32":
    import fcntl

__all__ = [
    "Disk",
    "Journal",
    "JournalHeader",
    "JournalWriter",
    "Record",
    "RunHistory",
    "StepRecord",
    "pack_bytes",
    "parse_journal",
    "read_journal",
    "replay",
    "unpack_bytes",
]

RESERVE = 64 * 1024  # bytes: the ends of about a thousand steps

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

_PathOrFd = Union[int, str, "os.PathLike[str]"]


class _End(NamedTuple):
    """Where the journal ends; one object, so that an exception never separates the two."""

    size: int  # bytes
    sequence: int  # of the next frame


class JournalWriter:
    """Appends frames to a journal; one writer a journal (the run directory's lock sees to that), used by one thread.

    ``JournalWriter(path, header=...)`` makes a new journal, all or nothing: the header is written under another name
    first, so that a journal that exists has a header. Given a descriptor of an empty file, it writes there and owns
    the descriptor. `JournalWriter.reopen(path)` continues one. All errors are JournalError.

    Invariant: the file holds exactly the frames of the appends that returned, unless `usable` is False.
    """

    path: str
    header: JournalHeader
    _fd: Optional[int]
    _end: _End
    _seed: int

    def __init__(
        self,
        target: _PathOrFd,
        durability: str = "process",
        header: Optional[JournalHeader] = None,
        disk: Optional[Disk] = None,
        reserve: int = RESERVE,
    ) -> None:
        self._prepare(durability, disk)
        header = header or JournalHeader("")
        start = first_bytes(header)
        if isinstance(target, int):
            self.path = f"descriptor {target}"
            self._fd = _adopt(target)
        else:
            self.path = os.path.abspath(os.fspath(target))
            self._create(self.path, start)
        try:
            if isinstance(target, int):
                self._write(start, 1)
            self._set_up(header, zlib.crc32(start), reserve)
        except BaseException as error:
            self._abandon()
            if not isinstance(target, int):
                os.unlink(self.path)
            if isinstance(error, OSError):
                raise self._failure(error) from error
            raise

    @classmethod
    def reopen(
        cls,
        path: Union[str, os.PathLike[str]],
        durability: str = "process",
        disk: Optional[Disk] = None,
        reserve: int = RESERVE,
    ) -> JournalWriter:
        """Continue the journal at `path`, after cutting off a torn tail; one that is corrupt is left as it is."""
        writer = cls.__new__(cls)
        writer._prepare(durability, disk)
        writer.path = os.path.abspath(os.fspath(path))
        writer._fd = open_private(writer.path, os.O_RDWR | os.O_APPEND, JournalError)
        try:
            journal = parse_journal(read_all(writer._fd, writer.path), writer.path)
            if journal.truncated_at is not None:
                writer._roll_back(journal.truncated_at)
                if not writer.usable:
                    raise JournalError(writer._refusal)
            writer._end = _End(journal.valid_bytes, journal.next_sequence)
            writer._set_up(journal.header, journal.seed, reserve)
        except BaseException as error:
            writer._abandon()
            if isinstance(error, OSError):
                raise writer._failure(error) from error
            raise
        return writer

    @property
    def usable(self) -> bool:
        """Whether `append` may be tried (again): True after a full disk, False after any other error."""
        return self._fd is not None

    @property
    def size(self) -> int:
        """The journal's length in bytes."""
        return self._end.size

    def append(self, records: list[Record], from_reserve: bool = False) -> None:
        """Write all `records` as one frame, or none of them and raise; none to write is no frame.

        `from_reserve`: these tell what has happened already, so the reserve may be used for them on a full disk.
        """
        if not records:
            return
        if self._fd is None:
            raise JournalError(self._refusal)
        sequence = self._end.sequence
        frame = make_frame(encode(records), sequence, self._seed)
        try:
            self._write(frame, sequence + 1)
        except OSError as error:
            if not (from_reserve and self._release_reserve(error)):
                raise self._failure(error) from error
            try:
                self._write(frame, sequence + 1)
            except OSError as again:
                raise self._failure(again) from again
        if self._power:
            self._sync()

    def close(self) -> None:
        """Close the file; on network file systems the first to tell of a full disk, hence a JournalError, too."""
        fd, self._fd = self._fd, None
        self._abandon()
        if fd is not None:
            try:
                self._disk.close(fd)
            except OSError as error:
                raise JournalError(
                    f"cannot close the journal {self.path!r}: {error.strerror}; its end may be missing: check the disk"
                ) from error

    def __enter__(self) -> JournalWriter:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], where: Optional[TracebackType]
    ) -> None:
        self.close()

    # -- opening -------------------------------------------------------------------------------------------

    def _prepare(self, durability: str, disk: Optional[Disk]) -> None:
        if durability not in ("process", "power"):
            raise JournalError(f"durability is 'process' or 'power', not {durability!r}")
        self._power = durability == "power"
        self._disk = disk or Disk()
        self._fd = None
        self._reserve_fd: Optional[int] = None
        self._end = _End(0, 0)
        self._refusal = "the journal is closed"

    def _create(self, path: str, start: bytes) -> None:
        """Make the file with its first bytes under another name, then give it its own."""
        draft = f"{path}.new"
        if os.path.lexists(path):
            raise JournalError(f"there is a journal at {path!r} already: resume its run, or start anew with --restart")
        if os.path.lexists(draft):  # of a start that was killed
            os.unlink(draft)
        self._fd = open_private(draft, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL, JournalError)
        try:
            self._write(start, 1)
            if self._power:
                self._disk.sync(self._fd)
            os.rename(draft, path)
        except BaseException as error:
            self._abandon()
            if os.path.lexists(draft):
                os.unlink(draft)
            if isinstance(error, OSError):
                raise self._failure(error) from error
            raise

    def _set_up(self, header: JournalHeader, seed: int, reserve: int) -> None:
        self.header = header
        self._seed = seed
        if os.path.isabs(self.path) and reserve:
            self._reserve_fd = self._make_reserve(os.path.join(os.path.dirname(self.path), "journal.reserve"), reserve)
        if self._power:
            self._sync()
            if os.path.isabs(self.path):
                sync_folders(self.path)
        _writers.add(self)

    def _make_reserve(self, path: str, size: int) -> int:
        if os.path.lexists(path):  # of a start that was killed
            os.unlink(path)
        fd = open_private(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, JournalError)
        try:
            os.unlink(path)
            self._disk.allocate(fd, size)
        except OSError as error:
            os.close(fd)
            raise JournalError(
                f"cannot set {size} bytes aside for the end of the journal {self.path!r}: {error.strerror}; "
                "free some space, or choose another place"
            ) from error
        return fd

    # -- writing -------------------------------------------------------------------------------------------

    def _write(self, data: bytes, next_sequence: int) -> None:
        """Append `data`; whatever is raised, the file is as it was.

        No loop in the try: Python 3.13 leaves a loop's jump back, where signal handlers run, out of the except clause.
        """
        assert self._fd is not None
        before = self._end
        try:
            written = self._disk.write(self._fd, data)
            if written < len(data):
                self._write_rest(self._fd, data[written:])
            self._end = _End(before.size + len(data), next_sequence)
        except BaseException:  # also a KeyboardInterrupt: the caller is told that nothing was recorded
            self._end = before
            self._roll_back(before.size)
            raise

    def _write_rest(self, fd: int, data: bytes) -> None:
        while data:
            count = self._disk.write(fd, data)
            if count <= 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            data = data[count:]

    def _roll_back(self, size: int) -> None:
        assert self._fd is not None
        try:
            self._disk.truncate(self._fd, size)
        except OSError as error:
            self._give_up(f"cannot cut {self.path!r} back to its last whole record: {error.strerror}; resume the run")

    def _sync(self) -> None:
        assert self._fd is not None
        try:
            self._disk.sync(self._fd)
        except OSError as error:
            self._give_up(
                f"the disk failed to store the journal {self.path!r}: {error.strerror}; what was recorded last may "
                "be lost: check the disk, then resume the run"
            )
            raise JournalError(self._refusal) from error

    def _failure(self, error: OSError) -> JournalError:
        """The error for the user; anything but a full disk ends the use of this writer."""
        if error.errno in _FULL:
            return JournalError(
                f"cannot write the journal {self.path!r}: {error.strerror}; nothing was recorded: free some space, "
                "then resume the run"
            )
        if self.usable:
            self._give_up(f"cannot write the journal {self.path!r}: {error.strerror}; check the disk, resume the run")
            return JournalError(self._refusal)
        return JournalError(f"cannot write the journal {self.path!r}: {error.strerror}; check the disk")

    def _release_reserve(self, error: OSError) -> bool:
        """Give the reserve back to the file system if that may help; a second call has nothing to give."""
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or self._reserve_fd is None or not self.usable:
            return False
        fd, self._reserve_fd = self._reserve_fd, None
        try:
            os.ftruncate(fd, 0)  # frees the blocks even if a child of ours inherited the descriptor
        finally:
            os.close(fd)
        return True

    def _give_up(self, refusal: str) -> None:
        self._refusal = refusal
        self._abandon()

    def _abandon(self) -> None:
        """Close what is open and say nothing: an error is on its way to the caller, or this is a forked child."""
        fds, self._fd, self._reserve_fd = (self._fd, self._reserve_fd), None, None
        for fd in fds:
            if fd is not None:
                try:
                    os.close(fd)
                except OSError:  # the close of a file that has failed already tells nothing new
                    continue


_writers: weakref.WeakSet[JournalWriter] = weakref.WeakSet()


def _forget_in_child() -> None:
    for writer in list(_writers):
        writer._give_up(f"the journal {writer.path!r} is written by the process that opened it, not by a fork of it")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


def _adopt(fd: int) -> int:
    """A descriptor of an empty regular file, set to append."""
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise JournalError(f"descriptor {fd} is not a regular file: a journal cannot begin there")
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        if found.st_size or flags & os.O_ACCMODE == os.O_RDONLY:
            raise JournalError(f"descriptor {fd} is not an empty file open for writing: a journal cannot begin there")
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_APPEND)
        os.set_inheritable(fd, False)
        return above_stdio(fd)
    except OSError as error:
        raise JournalError(f"descriptor {fd} cannot hold a journal: {error.strerror}") from error
