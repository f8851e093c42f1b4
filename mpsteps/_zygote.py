"""The zygote: a small single-threaded process that forks workers, buries them, and takes all of them with it.

It is exec'd once by the coordinator (`python -c`, no `__main__` of the user's) and does nothing else:

- *fork* on request. It has one thread and has used no library of the user's, so that no lock can be held and no BLAS
  pool be half dead in a worker, whatever the coordinator's process does with threads.
- *bury*: every death of a child is told to the coordinator with its exit status and peak memory, after the rest of
  the worker's process group (programs it started) has been killed.
- *guard*: it is the subreaper of everything below it, so that no daemon can slip away by a double fork. When the
  coordinator is gone (the socket ends, also after kill -9) it kills the whole tree and exits.
- if the zygote itself is killed, its workers die by the parent-death signal, and the coordinator sees the socket end.

Messages, both ways, are marshalled tuples behind a four-byte length; descriptors travel with a request:

    ("fork", worker, n_fds) + descriptors      ("kill", worker, signal)        to the zygote
    ("forked", worker, pid)  ("no-fork", worker, text)  ("dead", worker, pid, exitcode, peak_kib)     from it
"""

from __future__ import annotations

import array
import ctypes
import gc
import marshal
import os
import select
import signal
import socket
import struct
import sys
import time
from typing import Any, Dict, List, NoReturn, Optional, Tuple

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_LENGTH = struct.Struct("=I")
_MAX_FDS = 16
OOM_SCORE = 500
"""Added to a worker's oom_score_adj, so that the kernel's OOM killer takes a worker and not the coordinator."""


class Link:
    """One end of the socket between coordinator and zygote: whole messages, descriptors in the order of sending."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._data = bytearray()
        self._fds: List[int] = []

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._sock.fileno()

    def close(self) -> None:
        """End the conversation; the other side sees it at once."""
        self._sock.close()

    def send(self, message: Tuple[Any, ...], fds: Tuple[int, ...] = ()) -> None:
        """Send one message. Raises OSError when the other side is gone."""
        payload = marshal.dumps(message)
        data = _LENGTH.pack(len(payload)) + payload
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        sent = self._sock.sendmsg([data], ancillary)
        if sent < len(data):
            self._sock.sendall(data[sent:])

    def receive(self) -> Optional[List[Tuple[Any, ...]]]:
        """All messages that are here, at least one read's worth; None when the other side is gone."""
        try:
            data, ancillary, _, _ = self._sock.recvmsg(65536, socket.CMSG_LEN(_MAX_FDS * 4))
        except BlockingIOError:
            return []
        except ConnectionResetError:
            return None
        if not data:
            return None
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
                self._fds.extend(fds)
        self._data += data
        return self._split()

    def _split(self) -> List[Tuple[Any, ...]]:
        found = []
        while len(self._data) >= 4:
            (length,) = _LENGTH.unpack_from(self._data)
            if len(self._data) < 4 + length:
                break
            found.append(marshal.loads(bytes(self._data[4 : 4 + length])))
            del self._data[: 4 + length]
        return found

    def take_fds(self, count: int) -> List[int]:
        """The descriptors that came with a message, close-on-exec."""
        fds, self._fds = self._fds[:count], self._fds[count:]
        for fd in fds:
            os.set_inheritable(fd, False)
        return fds


class Zygote:
    """Forks, buries and guards workers for the coordinator at the other end of `sock`."""

    def __init__(self, sock: socket.socket) -> None:
        self._link = Link(sock)
        self._workers: Dict[int, int] = {}  # worker -> pid
        self._prctl = _load_prctl()

    def run(self) -> None:
        """Serve until the coordinator is gone, then kill everything below this process."""
        wake_read, wake_write = os.pipe()
        for fd in (wake_read, wake_write):
            os.set_blocking(fd, False)
        signal.signal(signal.SIGCHLD, _wake_up)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _wake_up)  # the zygote goes when the coordinator goes, not before
        if self._prctl:
            self._prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        poll = select.poll()
        poll.register(self._link.fileno(), select.POLLIN)
        poll.register(wake_read, select.POLLIN)
        try:
            while self._serve(poll, wake_read):
                pass
        finally:
            self._kill_everything()

    def _serve(self, poll: select.poll, wake_read: int) -> bool:
        for fd, _ in poll.poll():
            if fd == wake_read:
                os.read(wake_read, 4096)
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
            self._fork(message[1], self._link.take_fds(message[2]), message[3])
        elif message[0] == "kill" and message[1] in self._workers:
            _kill_group(self._workers[message[1]], message[2])

    def _fork(self, worker: int, fds: List[int], lane_fds: int) -> None:
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            self._tell("no-fork", worker, f"{error.strerror} (limits on processes: ulimit -u, pids.max)")
            pid = -1
        if pid == 0:
            self._become_worker(parent, fds[:lane_fds], fds[lane_fds:])
        for fd in fds:
            os.close(fd)
        if pid > 0:
            _set_group(pid)
            self._workers[worker] = pid
            self._tell("forked", worker, pid)

    def _become_worker(self, parent: int, lane_fds: List[int], board_fds: List[int]) -> NoReturn:
        """What the child does instead of returning into the zygote's loop."""
        code = 71  # as EX_OSERR: it could not even start
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            _set_group(0)
            if self._prctl:
                self._prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
                if os.getppid() != parent:  # it died before the line above
                    os._exit(code)
            self._link.close()
            _raise_oom_score()
            gc.unfreeze()
            code = _serve_lane(lane_fds, board_fds)
            _leave_properly()
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            try:
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code)

    def _bury(self) -> None:
        """Tell of every child that has died. The worker's group is killed *before* the worker is reaped: until then
        its pid, which is also the group's, cannot belong to anybody else."""
        pids = {pid: worker for worker, pid in self._workers.items()}
        for pid, worker in pids.items():
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                continue
            _kill_group(pid, signal.SIGKILL)
            _, status, usage = os.wait4(pid, 0)
            del self._workers[worker]
            peak = usage.ru_maxrss if sys.platform != "darwin" else usage.ru_maxrss // 1024
            self._tell("dead", worker, pid, _exit_code(status), peak)
        self._reap_strays(set(self._workers.values()))

    def _reap_strays(self, workers: set[int]) -> None:
        """Collect orphans that came to us as their subreaper; workers are left for `_bury`."""
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None or found.si_pid in workers:
                return  # a worker's death: another SIGCHLD has been or will be delivered for it
            os.waitpid(found.si_pid, 0)

    def _kill_everything(self) -> None:
        """Stop, then kill the whole tree, again until nothing is left: a process may fork while it is being killed."""
        for pid in self._workers.values():
            _kill_group(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return  # nobody is left, and orphans would have come to us
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            for pid in descendants():
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass  # it went by itself
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                return


def descendants() -> List[int]:
    """The pids of all processes below this one."""
    import psutil

    try:
        return [p.pid for p in psutil.Process().children(recursive=True)]
    except psutil.Error:
        return []  # /proc cannot be read: the groups have been killed already


def _serve_lane(lane_fds: List[int], board_fds: List[int]) -> int:
    from mpsteps import _worker
    from mpsteps._ipc.lane import Board, Lane

    board = Board.from_fds(board_fds)
    lane = Lane.from_fds(lane_fds)
    return _worker.main(lane.worker_side(board))


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


def _raise_oom_score() -> None:
    try:
        with open("/proc/self/oom_score_adj", "r+") as f:
            score = int(f.read())
            f.seek(0)
            f.write(str(min(1000, score + OOM_SCORE)))
    except (OSError, ValueError):
        pass  # no Linux, or no right to: the kernel chooses by size alone


def _exit_code(status: int) -> int:
    """As `subprocess` gives it: negative for a signal."""
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _load_prctl() -> Any:
    return ctypes.CDLL(None, use_errno=True).prctl if sys.platform == "linux" else None


def _wake_up(_signum: int, _frame: Any) -> None:
    """The wake-up descriptor has been written by then; a handler is needed for it to be."""


def main(fd: int) -> None:
    """Run the zygote on an inherited socket descriptor."""
    sock = socket.socket(fileno=fd)
    sock.set_inheritable(False)
    # Loaded before the first fork, so that every worker starts with them: they are the larger part of its start.
    import cloudpickle  # noqa: F401
    import tblib.pickling_support  # noqa: F401

    from mpsteps import _worker  # noqa: F401

    gc.freeze()  # what is loaded now stays shared with the workers: the collector would copy its pages
    Zygote(sock).run()
