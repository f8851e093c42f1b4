"""The zygote: a small single-threaded process that forks workers, buries them, and takes all of them with it.

It is exec'd once by the coordinator (`python -c`, no `__main__` of the user's) and does nothing else:

- *fork* on request. It has one thread and has used no library of the user's, so that no lock can be held and no BLAS
  pool be half dead in a worker, whatever the coordinator's process does with threads.
- *bury*: every death of a child is told to the coordinator with its exit status and peak memory, after the programs it
  started have been killed: those of its process group, and those that left it (they are known by a variable of their
  environment). A worker that was stopped is told as well.
- *guard*: it is the subreaper of everything below it, so that no daemon can slip away by a double fork. When the
  coordinator is gone (the socket ends, also after kill -9) it kills the whole tree and exits.
- if the zygote itself is killed, its workers die by the parent-death signal, and the coordinator sees the socket end
  and kills what is left of the session.

Messages:

    ("fork", worker, n_fds, n_lane_fds) + descriptors      ("kill", worker, signal)        to the zygote
    ("leave",)
    ("up", guards)  ("forked", worker, pid)  ("no-fork", worker, text)
    ("dead", worker, pid, exitcode, peak_kib)  ("stopped", worker)  ("continued", worker)  from it

"leave" comes before an orderly end: the coordinator itself has told the journal what workers had begun. When it is gone
without a word, the zygote's `Witness` does.

`guards` is False where the system has no subreaper (it is Linux's): a daemon that a step detached then outlives us.
"""

from __future__ import annotations

import gc
import importlib
import os
import select
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, NoReturn, Optional, Sequence, Set, Tuple

from mpsteps._ipc.link import Link, plug_stdio
from mpsteps._memory import offer_to_oom_killer
from mpsteps._proctree import descendants, send_signal

if TYPE_CHECKING:
    from mpsteps._begun import Witness

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
KILL_SECONDS = 10.0
"""What has not died this long after SIGKILL (it hangs in a system call, or runs as somebody else) is left behind."""
WORKER_VARIABLE = "MPSTEPS_WORKER"
"""In the environment of what a worker starts: its pid. So programs that have detached themselves are known as its."""
EXIT_NO_START = 71  # as EX_OSERR: the worker could not even start

Prctl = Callable[[int, int], int]


class Zygote:
    """Forks, buries and guards workers for the coordinator at the other end of `sock`."""

    def __init__(self, sock: socket.socket, witness: Optional[Witness] = None) -> None:
        self._link = Link(sock)
        self._witness = witness  # None: nobody wants to know what workers had begun
        self._workers: Dict[int, int] = {}  # worker -> pid, of those not reaped
        self._killed: Set[int] = set()  # pids of those that we were told to kill
        self._prctl = _load_prctl()
        self._wake_read = -1

    def run(self) -> None:
        """Serve until the coordinator is gone, then kill everything below this process."""
        self._wake_read, wake_write = os.pipe()
        for fd in (self._wake_read, wake_write):
            os.set_blocking(fd, False)
        signal.signal(signal.SIGCHLD, _wake_up)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _wake_up)  # the zygote goes when the coordinator goes, not before
        guards = self._prctl is not None and self._prctl(_PR_SET_CHILD_SUBREAPER, 1) == 0
        poll = select.poll()
        poll.register(self._link.fileno(), select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        try:
            self._tell("up", guards)
            while self._serve(poll):
                pass
        finally:
            self._kill_everything()
            if self._witness is not None:
                self._witness.testify()

    def _serve(self, poll: select.poll) -> bool:
        for fd, _ in poll.poll():
            if fd == self._wake_read:
                os.read(fd, 4096)
                self._bury()
            else:
                messages = self._link.receive()
                if messages is None:
                    return False
                for message in messages:
                    self._handle(message)
        return True

    def _tell(self, *message: Any) -> None:
        try:
            self._link.send(message)
        except OSError:
            pass  # the coordinator is gone: the next look at the socket says so, and ends everything

    def _handle(self, message: Tuple[Any, ...]) -> None:
        if message[0] == "fork":
            self._fork(*message[1:])
        elif message[0] == "leave":
            self._leave_witness()
        elif message[0] == "kill" and message[1] in self._workers:
            self._killed.add(self._workers[message[1]])
            _kill_worker(self._workers[message[1]], message[2])

    # ------------------------------------------------------------------------- birth

    def _fork(self, worker: int, n_fds: int, n_lane_fds: int) -> None:
        parent = os.getpid()
        try:
            fds = self._link.take_fds(n_fds)
        except OSError as error:
            self._tell("no-fork", worker, f"{error.strerror} (the limit on open files: ulimit -n)")
            return
        try:
            pid = os.fork()
        except OSError as error:
            pid = -1
            self._tell("no-fork", worker, f"{error.strerror} (limits on processes and memory: ulimit -u, pids.max)")
        if pid == 0:
            self._become_worker(worker, parent, fds[:n_lane_fds], fds[n_lane_fds:])
        if pid > 0 and self._witness is not None:
            self._witness.born(pid, fds[0])
        for fd in fds:
            os.close(fd)
        if pid > 0:
            _set_group(pid)
            self._workers[worker] = pid
            self._tell("forked", worker, pid)

    def _become_worker(self, worker: int, parent: int, lane_fds: List[int], board_fds: List[int]) -> NoReturn:
        """What the child does instead of returning into the zygote's loop."""
        code = EXIT_NO_START
        try:
            wake_write = signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            _set_group(0)
            if self._prctl is not None:
                self._prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
                if os.getppid() != parent:  # it died before the line above
                    os._exit(code)
            self._link.close()
            self._leave_witness()
            os.close(self._wake_read)
            os.close(wake_write)
            offer_to_oom_killer()
            os.environ[WORKER_VARIABLE] = str(os.getpid())
            code = _serve_lane(worker, lane_fds, board_fds)
            _leave_properly()
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            try:
                for stream in (sys.stdout, sys.stderr):
                    if stream is not None:
                        stream.flush()
            finally:
                os._exit(code)

    # ------------------------------------------------------------------------- death

    def _leave_witness(self) -> None:
        if self._witness is not None:
            self._witness.forget()
            self._witness = None

    def _bury(self) -> None:
        """Tell of every worker that has died. Orphans, which come to us as their subreaper, are reaped silently."""
        numbers = {pid: worker for worker, pid in self._workers.items()}

        def before_reaping(pid: int) -> None:
            if pid in numbers:
                _kill_group(pid, signal.SIGKILL)

        for pid, stopped in _stopped_or_continued():
            if pid in numbers and pid not in self._killed:
                self._tell("stopped" if stopped else "continued", numbers[pid])
        for pid, status, peak_kib in _reap(before_reaping):
            worker = numbers.get(pid)
            if worker is not None:
                if status:
                    _kill_left_behind(pid)
                del self._workers[worker]
                self._killed.discard(pid)
                if self._witness is not None:
                    self._witness.died(pid)
                self._tell("dead", worker, pid, _exit_code(status), peak_kib)

    def _kill_everything(self) -> None:
        """Kill the whole tree, again until nothing is left: a process may fork while its parent is being killed."""
        self._link.close()
        for pid in self._workers.values():
            _kill_group(pid, signal.SIGKILL)
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        deadline = time.monotonic() + KILL_SECONDS
        while time.monotonic() < deadline:
            for pid, _, _ in _reap(_leave):
                if self._witness is not None:
                    self._witness.died(pid)
            if not _has_children():
                return  # nobody is left: what they left behind would have come to us
            for pid in descendants(os.getpid()):
                send_signal(pid, signal.SIGKILL)
            if poll.poll(20):  # the next death, or a look in case a process was born meanwhile
                os.read(self._wake_read, 4096)


def _reap(before: Callable[[int], None]) -> Iterator[Tuple[int, int, int]]:
    """All children that have ended: pid, status, peak memory in KiB.

    `before(pid)` is called before the child is reaped: until then its pid, which is also its group's, cannot belong to
    anybody else. Where Python has no waitid (macOS before 3.13) it comes a moment after.
    """
    peek = hasattr(os, "waitid")
    while True:
        pid = 0
        try:
            if peek:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if ended is None:
                    return
                before(ended.si_pid)
                pid = ended.si_pid
            pid, status, usage = os.wait4(pid or -1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        if not peek:
            before(pid)
        yield pid, status, usage.ru_maxrss if sys.platform != "darwin" else usage.ru_maxrss // 1024


def _stopped_or_continued() -> Iterator[Tuple[int, bool]]:
    """The children that a signal has stopped (True), or let go on (False), since the last call."""
    while hasattr(os, "waitid"):
        try:
            news = os.waitid(os.P_ALL, 0, os.WSTOPPED | os.WCONTINUED | os.WNOHANG)
        except ChildProcessError:
            return
        if news is None:
            return
        yield news.si_pid, news.si_code != os.CLD_CONTINUED


def _kill_left_behind(pid: int) -> None:
    """Kill what a worker that did not end by itself has started and that has left its group: by now it is below us."""
    mark = f"{WORKER_VARIABLE}={pid}\0".encode()
    for below in descendants(os.getpid()):
        try:
            with open(f"/proc/{below}/environ", "rb") as f:
                found = mark in f.read()
        except OSError:
            continue  # it went while we looked, or is somebody else's; or there is no /proc
        if found:
            send_signal(below, signal.SIGKILL)


def _leave(_pid: int) -> None:
    """Nothing is to be done before reaping: all are being killed anyway."""


def _has_children() -> bool:
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return False
    return True


def _kill_worker(pid: int, number: int) -> None:
    """Signal a worker and the programs it started: its group, and for SIGKILL also those that left the group.

    It is stopped first, since a worker that goes on could start another program behind our back.
    """
    if number == signal.SIGKILL:
        send_signal(pid, signal.SIGSTOP)
        for below in descendants(pid):
            send_signal(below, signal.SIGKILL)
    _kill_group(pid, number)


def _serve_lane(number: int, lane_fds: List[int], board_fds: List[int]) -> int:
    from mpsteps import _worker
    from mpsteps._ipc.lane import Board, Lane

    board = Board.from_fds(board_fds)
    lane = Lane.from_fds(lane_fds)
    return _worker.main(lane.worker_side(board, number=number), (*lane.bell.fds(), *board.bell.fds(), *_kept))


def _leave_properly() -> None:
    """End what the steps' libraries left running in this process, as a process of multiprocessing does."""
    if "multiprocessing.util" in sys.modules:
        sys.modules["multiprocessing.util"]._exit_function()


def _set_group(pid: int) -> None:
    """Parent and child both do it, so that it is done whoever runs first."""
    try:
        os.setpgid(pid, pid)
    except (PermissionError, ProcessLookupError):
        pass  # the other side was first, or the child is gone already


def _kill_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        pass  # nobody left in it (macOS says EPERM for a group of zombies)


def _exit_code(status: int) -> int:
    """As `subprocess` gives it: negative for a signal."""
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _load_prctl() -> Optional[Prctl]:
    """prctl(2) with one argument; None where there is none (it is Linux's), or no ctypes to call it with."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        import ctypes

        prctl = ctypes.CDLL(None, use_errno=True).prctl
    except (ImportError, OSError, AttributeError):
        return None  # "up" tells the coordinator, which tells the user
    prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    return lambda option, value: int(prctl(option, value, 0, 0, 0))


def _wake_up(_signum: int, _frame: Any) -> None:
    """The wake-up descriptor has been written by then; a handler is needed for it to be."""


def _end_of_start(stderr_fd: int) -> None:
    """From now on errors go where the coordinator's go; so does what was written meanwhile (warnings of imports)."""
    sys.stderr.flush()
    written = os.pread(2, 1 << 16, 0)
    os.dup2(stderr_fd, 2)
    os.close(stderr_fd)
    try:
        while written:
            written = written[os.write(2, written) :]
    except OSError:
        pass  # nobody reads our standard error any more


_kept: Tuple[int, ...] = ()
"""Descriptors that every worker holds as long as it lives."""


def main(
    link_fd: int, stderr_fd: int, kept_fds: Sequence[int], preload: Sequence[str],
    occasion: Optional[Tuple[str, str, str]],
) -> NoReturn:  # fmt: skip
    """Run the zygote on an inherited socket.

    Standard error is a file in which the coordinator looks for the reason should we not come up; `stderr_fd` is the
    real one. `kept_fds`: descriptors that every worker holds as long as it lives, and no program it starts. `preload`:
    modules that all workers are going to need. `occasion`: what its witness is to tell when the coordinator is
    gone.
    """
    plug_stdio()
    global _kept
    _kept = tuple(kept_fds)
    for fd in (link_fd, stderr_fd, *kept_fds):
        os.set_inheritable(fd, False)
    # A mask is inherited through exec: without this, a coordinator that blocks SIGCHLD would never hear of a death.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # Loaded before the first fork, so that every worker starts with them: they are the larger part of its start.
    # (A worker that loaded cloudpickle when it first needs it would do so in its first step's time, and could not where
    # that step has used up all descriptors or memory.)
    import resource  # noqa: F401

    import tblib.pickling_support  # noqa: F401

    from mpsteps import _worker  # noqa: F401
    from mpsteps._ipc import pickling  # noqa: F401

    for name in preload:
        importlib.import_module(name)
    witness = None
    if occasion:
        from mpsteps._begun import Occasion, Witness

        witness = Witness(Occasion(*occasion))
    _end_of_start(stderr_fd)
    gc.freeze()  # what is loaded now stays shared with the workers: their collectors would copy its pages
    Zygote(socket.socket(fileno=link_fd), witness).run()
    os._exit(0)  # there is nothing to clean up that was not, and the coordinator waits for this process to be gone
