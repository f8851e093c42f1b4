"""The run directory: where a run keeps its journal, logs and files, and who may use it when.

``Runs/000007_ProtCtf/`` holds ``journal.log``, ``extra/``, ``tmp/``, ``logs/`` and two lock files:

- ``run.lock`` keeps a second coordinator out. The coordinator holds it by flock(2); no worker inherits it, neither by
  exec (close-on-exec) nor by a plain fork (an at-fork hook closes it), so that it is free as soon as the coordinator
  is gone. Its content only makes the refusal readable; nobody acts on a pid that he read from a file.
- ``workers.fence`` is locked (shared) through one descriptor that every worker inherits: it is free when the last
  worker is gone. A new coordinator proves that before it sends a step that an old worker might still be running.
  flock(2) and not fcntl(2) locks, since the latter are not inherited and would let the new coordinator through.

After a kill of the coordinator there is ``workers.begun``, too: see `_begun`.

The directory carries pickles that a resume loads: it is made 0700, and used only if it belongs to the user and nobody
else may write in it. The files are 0600 whatever the umask is, and a symbolic link, a FIFO or a hard link in the
place of one is refused.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import stat
import time
import weakref
from types import TracebackType
from typing import Any, Optional, Union

from mpsteps._private_files import EXCLUSIVE, SHARED, check_file, open_private, sentence_for, try_lock
from mpsteps.errors import RunDirectoryError

PathLike = Union[str, "os.PathLike[str]"]

JOURNAL = "journal.log"
LOCK = "run.lock"
FENCE = "workers.fence"
BEGUN = "workers.begun"
VALUES = "values"
"""The folder in which workers store large values that steps return."""
FOLDERS = ("extra", "tmp", "logs")

_CLAIM_TRIES = 100_000
_FENCE_PAUSE = (0.001, 0.05)  # seconds between two looks at the fence: the first, and the longest


class RunDirectory:
    """One run's directory; made by `create`, `create_at` or `open`.

    `path`, `extra`, `tmp`, `logs`, `journal_path` and `begun_path` are absolute paths. A coordinator calls `lock`
    before anything else and `close` at its end, or uses the directory as a context manager. All errors are
    RunDirectoryError.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.extra, self.tmp, self.logs = (os.path.join(path, folder) for folder in FOLDERS)
        self.journal_path = os.path.join(path, JOURNAL)
        self.begun_path = os.path.join(path, BEGUN)
        self._lock_fd: Optional[int] = None
        _opened.add(self)

    @classmethod
    def create(cls, parent: PathLike, name: str) -> RunDirectory:
        """A new ``parent/000007_name`` with the next free number; several processes may do so at once.

        `parent` is made where it is missing. Nothing is left behind if it fails.
        """
        if not name or "/" in name or "\0" in name or len(os.fsencode(name)) > 200:
            raise RunDirectoryError(f"{name!r} cannot be part of a run directory's name")
        parent = os.path.realpath(os.fspath(parent))
        path = os.path.join(parent, name)
        try:
            os.makedirs(parent, exist_ok=True)
            claim = _claim_number(parent)
            path = f"{claim}_{name}"
            try:
                _make_folders(claim, made=True)
                os.rename(claim, path)
            except BaseException:
                shutil.rmtree(claim, ignore_errors=True)
                raise
        except OSError as error:
            raise RunDirectoryError(sentence_for("make the run directory", path, error)) from error
        return cls(path)

    @classmethod
    def create_at(cls, path: PathLike) -> RunDirectory:
        """The directory `path`, made where it is missing, with its subfolders.

        An existing one keeps its contents, which the caller judges; if it is empty it becomes 0700, too.
        """
        path = os.path.realpath(os.fspath(path))
        made = False
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            try:
                os.mkdir(path, 0o700)
                made = True
            except FileExistsError:
                _check_directory(path, mask=0 if os.path.isdir(path) and not os.listdir(path) else 0o022)
            _make_folders(path, made or not os.listdir(path))
        except OSError as error:
            if made:
                shutil.rmtree(path, ignore_errors=True)
            raise RunDirectoryError(sentence_for("make the run directory", path, error)) from error
        return cls(path)

    @classmethod
    def open(cls, path: PathLike) -> RunDirectory:
        """An existing run directory, which is only looked at: it belongs to this user, and nobody else writes in it."""
        path = os.path.realpath(os.fspath(path))
        try:
            _check_directory(path)
            journal = os.path.join(path, JOURNAL)
            if os.path.lexists(journal):
                os.close(open_private(journal, os.O_RDONLY))
                check_file(journal, os.lstat(journal), RunDirectoryError, writing=True)
        except OSError as error:
            raise RunDirectoryError(sentence_for("open the run directory", path, error)) from error
        return cls(path)

    # -- the lock ------------------------------------------------------------------------------------------

    @property
    def locked(self) -> bool:
        """Whether `lock` has been called with success, and `close` not yet."""
        return self._lock_fd is not None

    def lock(self, required: bool = True) -> bool:
        """Become the run's only coordinator, or raise, naming the one that is.

        A file system without locks (Lustre mounted without ``-o flock``, say) is an error that says so. Who is sure
        that no second coordinator exists passes ``required=False``: a RuntimeWarning, and False is returned.
        """
        if self._lock_fd is not None:
            return True
        path = os.path.join(self.path, LOCK)
        fd = open_private(path, os.O_RDWR | os.O_CREAT)
        try:
            holds = try_lock(fd, path, EXCLUSIVE, required)
            if holds is False:
                raise RunDirectoryError(f"run {self.path!r} is in use by {_holder(fd)}: wait for it, or stop it")
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps(_who_am_i()).encode("ascii"), 0)
        except OSError as error:
            os.close(fd)
            raise RunDirectoryError(sentence_for("lock the run directory", self.path, error)) from error
        except BaseException:
            os.close(fd)
            raise
        self._lock_fd = fd
        return holds is True

    def close(self) -> None:
        """Release the lock. The file stays: removing it would let two coordinators lock two files of one name."""
        fd, self._lock_fd = self._lock_fd, None
        if fd is not None:
            os.close(fd)

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], where: Optional[TracebackType]
    ) -> None:
        self.close()

    # -- the fence -----------------------------------------------------------------------------------------

    def open_fence(self, required: bool = True) -> int:
        """A new descriptor that holds the fence for whoever inherits it; the caller hands it on and closes it.

        It is close-on-exec: workers get it by fork or pass_fds, the programs that they start do not.
        """
        path = os.path.join(self.path, FENCE)
        fd = open_private(path, os.O_RDWR | os.O_CREAT)
        try:
            if try_lock(fd, path, SHARED, required) is False:
                raise RunDirectoryError(f"another coordinator is starting in run {self.path!r}: stop one of the two")
        except BaseException:
            os.close(fd)
            raise
        return fd

    def wait_for_fence(self, timeout: float, required: bool = True) -> bool:
        """Whether within `timeout` seconds no worker of an earlier coordinator is left.

        Tries with short pauses rather than blocking: flock(2) has no timeout, a thread blocked in it could not be
        stopped and would take the lock long after its caller gave up. It happens once, before a run starts, and it
        costs one system call where no old worker lives.
        """
        path = os.path.join(self.path, FENCE)
        if not os.path.lexists(path):
            return True
        fd = open_private(path, os.O_RDWR)
        try:
            deadline = time.monotonic() + timeout
            pause = _FENCE_PAUSE[0]
            while try_lock(fd, path, EXCLUSIVE, required) is False:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                time.sleep(min(pause, left))
                pause = min(pause * 2, _FENCE_PAUSE[1])
            return True
        finally:
            os.close(fd)

    def holds_lock(self, pid: int) -> Optional[bool]:
        """Whether a process has this run's lock file open, as only its coordinator has; None: that cannot be seen."""
        try:
            lock = os.stat(os.path.join(self.path, LOCK))
            os.listdir(f"/proc/{pid}/fd")
        except OSError:
            return None
        return _has_open(pid, lock)

    def fence_holders(self) -> list[int]:
        """Pids of the other processes that have the fence open, for the message; empty where there is no /proc."""
        try:
            fence = os.stat(os.path.join(self.path, FENCE))
            pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        except OSError:
            return []
        return sorted(pid for pid in pids if pid != os.getpid() and _has_open(pid, fence))

    # -- restart -------------------------------------------------------------------------------------------

    def clean(self) -> None:
        """Remove all that earlier runs left here, follow no symbolic link, and make the subfolders anew.

        Only under the lock, and only in what is a run directory: one with a journal, or with nothing in it but empty
        subfolders. A home directory given as run directory by mistake survives. The journal goes last: if cleaning is
        cut short, it can be done again.
        """
        if not self.locked:
            raise RunDirectoryError(f"lock run {self.path!r} before cleaning it")
        names = sorted(set(os.listdir(self.path)) - {LOCK, FENCE, JOURNAL})
        if not os.path.lexists(self.journal_path):
            for name in names:
                ours = name.startswith("journal.") or (
                    name in FOLDERS and _is_empty_folder(os.path.join(self.path, name))
                )
                if not ours:
                    raise RunDirectoryError(
                        f"{self.path!r} holds {name!r} but no journal, so it is no run directory and nothing was "
                        "removed: choose another one"
                    )
        try:
            for name in [*names, JOURNAL]:
                _remove(os.path.join(self.path, name))
            _make_folders(self.path, made=False)
        except OSError as error:
            raise RunDirectoryError(sentence_for("clean the run directory", self.path, error)) from error


_opened: weakref.WeakSet[RunDirectory] = weakref.WeakSet()


def _release_in_child() -> None:
    for directory in list(_opened):
        directory.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_in_child)


# ------------------------------------------------------------------------------------------------- directories


def _claim_number(parent: str) -> str:
    """Make the empty ``parent/000007``, with a number that nothing else in `parent` has.

    Whoever holds the bare number may use it: two runs of different names never get one number, since the second
    one's claim succeeds only after the first was renamed, and then it sees the first.
    """
    number = max(_numbers(parent), default=0)
    for _ in range(_CLAIM_TRIES):
        number += 1
        claim = os.path.join(parent, f"{number:06d}")
        try:
            os.mkdir(claim, 0o700)
        except FileExistsError:
            continue
        if _numbers(parent).count(number) == 1:
            return claim
        os.rmdir(claim)
    raise RunDirectoryError(f"found no free number for a run in {parent!r}: remove old runs")


def _numbers(parent: str) -> list[int]:
    matches = (re.match(r"(\d{6,})(?:_|$)", name) for name in os.listdir(parent))
    return [int(match.group(1)) for match in matches if match]


def _make_folders(path: str, made: bool) -> None:
    """Make the missing subfolders, all or none; with `made`, set the mode of `path` whatever the umask was."""
    new: list[str] = []
    try:
        if made:
            _set_mode(path)
        for folder in (os.path.join(path, name) for name in FOLDERS):
            if not os.path.isdir(folder) or os.path.islink(folder):
                os.mkdir(folder, 0o700)
                new.append(folder)
                _set_mode(folder)
    except BaseException:
        for folder in new:
            os.rmdir(folder)
        raise


def _set_mode(folder: str) -> None:
    mode = stat.S_IMODE(os.stat(folder).st_mode)
    os.chmod(folder, mode & ~0o777 | 0o700)  # keeps the set-group-id bit that shared projects use


def _check_directory(path: str, mask: int = 0o022) -> None:
    found = os.stat(path)
    if not stat.S_ISDIR(found.st_mode):
        raise RunDirectoryError(f"{path!r} is not a directory: choose another run directory")
    if found.st_uid != os.geteuid():
        raise RunDirectoryError(f"run directory {path!r} belongs to user {found.st_uid}, not to you: copy it first")
    if found.st_mode & mask:
        raise RunDirectoryError(f"others may write in the run directory {path!r}: chmod go-w it if you trust it")


def _is_empty_folder(path: str) -> bool:
    return os.path.isdir(path) and not os.path.islink(path) and not os.listdir(path)


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def _who_am_i() -> dict[str, Any]:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
    except OSError:  # not Linux
        boot = ""
    return {
        "host": socket.gethostname(),
        "boot": boot,
        "pid": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }


def _holder(fd: int) -> str:
    try:
        who = json.loads(os.pread(fd, 4096, 0).decode("ascii"))
        return f"pid {int(who['pid'])} on host {str(who['host'])!r} since {str(who['since'])!r}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another process that has just started"


def _has_open(pid: int, file: os.stat_result) -> bool:
    folder = f"/proc/{pid}/fd"
    try:
        fds = os.listdir(folder)
    except OSError:  # gone meanwhile, or not ours
        return False
    for fd in fds:
        try:
            found = os.stat(f"{folder}/{fd}")
        except OSError:  # closed meanwhile
            continue
        if (found.st_dev, found.st_ino) == (file.st_dev, file.st_ino):
            return True
    return False
