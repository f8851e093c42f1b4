"""The coordinator's hold on its zygote: start it, talk to it, and see that nothing of it is left.

A start can fail in ways that only the new process knows (a broken sys.path, a Python that is none). Its standard error
is therefore a nameless file until it has said "up": if it dies before that, the file says why.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Deque, List, Mapping, Optional, Sequence, Tuple

from mpsteps._ipc.link import Link, Message, plug_stdio
from mpsteps._machine import blas_share
from mpsteps._proctree import end_session, has_ended
from mpsteps.errors import EngineError

if TYPE_CHECKING:
    from mpsteps._begun import Occasion  # a pool has none, and is not to wait for this

START_SECONDS = 120.0
"""A zygote that has not come up by then never will. (Importing its few modules takes 0.1 s; from a slow disk, more.)"""
END_SECONDS = 12.0
"""How long it may take to end: it gives what hangs in the kernel 10 s to die."""
FORKS_AHEAD = 16
"""So many workers are asked for before the first of them is there: their descriptors in flight are limited.

They are asked for before the zygote is up, and are there as soon as it is."""

_alive: weakref.WeakSet[Spawner] = weakref.WeakSet()


def start_zygote(
    workers: int, keep_open: Sequence[int] = (), preload: Sequence[str] = (), occasion: Optional[Occasion] = None
) -> Spawner:
    """A zygote for so many workers, of which each gets its share of the cores for BLAS and OpenMP; the rest as for
    `Spawner`. It loads what it needs while the caller does something else."""
    if sys.platform == "win32":
        raise EngineError("worker processes are not supported on Windows: use the 'inline' engine, Linux or macOS")
    if not sys.executable:
        raise EngineError("sys.executable is not set: mpsteps does not know which Python to start workers with")
    plug_stdio()
    return Spawner(blas_share(workers, os.environ), keep_open, preload, occasion)


class Spawner:
    """A zygote. `up`: it has come up; `guards`: it is the subreaper of what workers start (None: not known yet).

    `environment` is added to this process's; `keep_open`: descriptors that every worker holds as long as it lives;
    `preload`: names of modules that it imports for all workers; `occasion`: what its witness is to tell, should
    this process be gone without `stop`.
    Raises EngineError, with nothing left behind, if no process can be started.
    """

    def __init__(
        self, environment: Mapping[str, str], keep_open: Sequence[int] = (), preload: Sequence[str] = (),
        occasion: Optional[Occasion] = None,
    ) -> None:  # fmt: skip
        self._owner = os.getpid()
        self.up = False
        self.guards: Optional[bool] = None
        self._to_fork: Deque[Tuple[int, Tuple[int, ...], Tuple[int, ...]]] = deque()
        self._asked = 0  # forks asked for and not answered
        self._deadline = time.monotonic() + START_SECONDS
        plug_stdio()
        try:
            with contextlib.ExitStack() as undo:
                self._errors: Optional[int] = _nameless_file()
                undo.callback(os.close, self._errors)
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
                undo.callback(ours.close)
                with theirs:
                    self._process = _start(
                        theirs.fileno(), self._errors, tuple(keep_open), tuple(preload), environment, occasion
                    )
                undo.pop_all()
        except (OSError, ValueError) as error:
            raise EngineError(f"the process that starts workers cannot be started: {error}") from error
        self._link = Link(ours)
        _alive.add(self)

    @property
    def pid(self) -> int:
        """The zygote's pid."""
        return self._process.pid

    def fileno(self) -> int:
        """What to wait on."""
        return self._link.fileno()

    @property
    def overdue(self) -> bool:
        """Whether it has not come up in time."""
        return not self.up and time.monotonic() > self._deadline

    def fork(self, worker: int, lane_fds: Tuple[int, ...], board_fds: Tuple[int, ...]) -> None:
        """Ask for a worker: "forked" or "no-fork" will be the answer. The descriptors stay the caller's, and open
        until then."""
        self._to_fork.append((worker, lane_fds, board_fds))
        self._ask()

    def kill(self, worker: int, number: int) -> None:
        """Signal a worker and what it has started, through its parent, which alone knows that the pid is still its."""
        with contextlib.suppress(OSError):  # the zygote is gone, and every worker with it: `receive` tells
            self._link.send(("kill", worker, int(number)))

    def receive(self) -> Optional[List[Message]]:
        """What it tells about workers; None: it is gone. Blocks, unless `fileno` is readable."""
        messages = self._link.receive()
        for message in messages or ():
            if message[0] == "up":
                self.up, self.guards = True, message[1]
                self._forget_errors()
            elif message[0] in ("forked", "no-fork"):
                self._asked -= 1
        if messages:
            self._ask()
            return [m for m in messages if m[0] != "up"]
        return messages

    def _ask(self) -> None:
        while self._to_fork and self._asked < FORKS_AHEAD:
            worker, lane_fds, board_fds = self._to_fork.popleft()
            fds = lane_fds + board_fds
            try:
                self._link.send(("fork", worker, len(fds), len(lane_fds)), fds)
            except (BrokenPipeError, ConnectionResetError):
                return  # it is gone: `receive` tells
            self._asked += 1

    # ----------------------------------------------------------------------- the end

    def bury(self) -> str:
        """It is gone: kill what it has left behind and say why it went, as a part of a sentence."""
        self._link.close()
        code = self._reap()
        text = self._forget_errors()
        return f"{describe_exit(code)}\n{text}".rstrip() if text else describe_exit(code)

    def stop(self) -> None:
        """Let it kill every worker, and all that they have started, and wait until it has. Does nothing when it is
        gone, or in a child that somebody forked off this process: it is not its own."""
        if self._process.returncode is not None or self._owner != os.getpid():
            return
        with contextlib.suppress(OSError):  # it is gone already
            self._link.send(("leave",))
        self._link.close()
        self._reap()
        self._forget_errors()

    def _reap(self) -> int:
        if not self._wait_until_dead(END_SECONDS):
            self._process.kill()
        if not self._ended_by_itself():
            end_session(self._process.pid)  # before it is reaped: until then its pid names its session and no other
        return self._process.wait()

    def _wait_until_dead(self, seconds: float) -> bool:
        """Without reaping it: until then its pid is nobody else's."""
        if hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):  # an old kernel, no descriptor left, or it is gone: the long way round
                return self._poll_until_dead(os.pidfd_open(self._process.pid), seconds)
        deadline = time.monotonic() + seconds
        pause = 0.0005
        while not has_ended(self._process.pid):
            if time.monotonic() > deadline:
                return False
            time.sleep(pause)  # as Popen.wait does it
            pause = min(2 * pause, 0.02)
        return True

    def _poll_until_dead(self, pidfd: int, seconds: float) -> bool:
        try:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            return bool(poll.poll(seconds * 1000))
        finally:
            os.close(pidfd)

    def _ended_by_itself(self) -> bool:
        """Whether the dead zygote has had the time to kill what was below it."""
        try:
            ended = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except (AttributeError, ChildProcessError):  # macOS before Python 3.13; SIGCHLD is ignored in this process
            return False
        return ended is not None and ended.si_code == os.CLD_EXITED

    def _forget_errors(self) -> str:
        """What it has written to standard error before it was up. Nothing is known of what it writes later."""
        if self._errors is None:
            return ""
        fd, self._errors = self._errors, None
        size = os.fstat(fd).st_size
        text = os.pread(fd, 1 << 14, max(0, size - (1 << 14))).decode("utf-8", "replace").strip()
        os.close(fd)
        return text


def _start(
    link: int, errors: int, keep_open: Tuple[int, ...], preload: Tuple[str, ...], environment: Mapping[str, str],
    occasion: Optional[Occasion],
) -> subprocess.Popen[bytes]:  # fmt: skip
    stderr = os.dup(2)
    about = tuple(occasion) if occasion else None
    try:
        code = (
            f"import sys; sys.path[:] = {_import_path()}; from mpsteps._zygote import main; "
            f"main({link}, {stderr}, {keep_open}, {preload}, {about!a})"
        )
        return subprocess.Popen(
            [sys.executable, *subprocess._args_from_interpreter_flags(), "-c", code],  # type: ignore[attr-defined]
            pass_fds=(link, stderr, *keep_open),
            stdin=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
            cwd=_folder(),
            env={**os.environ, **environment},
        )
    finally:
        os.close(stderr)


def _folder() -> Optional[str]:
    """None, which means the current one, unless that has been deleted: Python 3.13 does not start there."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return os.sep
    return None


def _import_path() -> str:
    """sys.path as Python source: absolute, since workers may change the directory before they import something."""
    path = []
    for entry in sys.path:
        try:
            path.append(os.path.abspath(entry or os.curdir))
        except FileNotFoundError:
            continue  # relative, and the current directory has been deleted: nothing can be found there
    return ascii(path)


def _nameless_file() -> int:
    """A descriptor of an empty file that goes when it is closed."""
    if hasattr(os, "memfd_create"):
        with contextlib.suppress(OSError):  # a sandbox without it
            return os.memfd_create("mpsteps-stderr")
    import tempfile

    with tempfile.TemporaryFile() as f:
        return os.dup(f.fileno())


def describe_exit(code: int) -> str:
    """An exit code in words: 'exit code 3', 'killed by SIGSEGV'."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def _close_in_child() -> None:
    """A child forked off the coordinator by somebody else must not keep the socket open after our death."""
    for spawner in list(_alive):
        spawner._link.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
