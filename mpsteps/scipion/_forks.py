"""Worker processes: forks of the main process, each with a socket to it and a thread that waits for its end.

A fork has everything as it is at that moment: inputs, open objects that cannot be pickled, what the insertion of steps
left in memory. It is used for several steps as long as it can be told what has changed since.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import sys
import threading
from typing import Any, Callable, List, Optional, Tuple

from mpsteps._ipc import wire

Message = Tuple[Any, ...]
_LENGTH = struct.Struct("<Q")

END_SIGNAL: int = getattr(signal, "SIGRTMIN", signal.SIGUSR2)
"""Ends a worker and all that it has started. Not SIGTERM: by that what steps fork (a multiprocessing.Pool) is ended,
where a handler of Python's, which they would inherit, may lose a signal (between fork and start) or never be called
(while waiting for a semaphore)."""


class Channel:
    """One end of a socket: messages of plain values, whole or not at all."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._bytes = bytearray()

    def send(self, message: Message) -> bool:
        """Send one; False: nobody is at the other end any more."""
        data = wire.encode([message])
        try:
            self.sock.setblocking(True)
            self.sock.sendall(_LENGTH.pack(len(data)) + data)
            return True
        except (BrokenPipeError, ConnectionResetError):
            return False

    def receive(self) -> Optional[Message]:
        """The next one, as soon as it is there; None: there will be no more."""
        self.sock.setblocking(True)
        message = self._cut()
        while message is None:
            if not self._read():
                return None
            message = self._cut()
        return message

    def pending(self) -> List[Message]:
        """Those that have come, without waiting."""
        self.sock.setblocking(False)
        found: List[Message] = []
        try:
            while self._read():
                pass
        except BlockingIOError:
            pass  # all of it is read
        message = self._cut()
        while message is not None:
            found.append(message)
            message = self._cut()
        return found

    def _read(self) -> bool:
        try:
            data = self.sock.recv(1 << 20)
        except ConnectionResetError:
            return False
        self._bytes += data
        return bool(data)

    def _cut(self) -> Optional[Message]:
        have = self._bytes
        if len(have) < _LENGTH.size:
            return None
        end = _LENGTH.size + _LENGTH.unpack_from(have)[0]
        if len(have) < end:
            return None
        message = wire.decode(bytes(have[_LENGTH.size : end]))[0]
        del have[:end]
        return message


class Fork:
    """One worker process. `step`: what it runs now; `generation`: of the state that it began with, see `Run`; `knows`:
    the number of steps that there were then."""

    def __init__(self, pid: int, channel: Channel, generation: int, knows: int) -> None:
        self.pid = pid
        self.channel = channel
        self.generation = generation
        self.knows = knows
        self.step: Optional[int] = None
        self.begun = False
        self.dead = False
        self._lock = threading.Lock()
        self._waiter: Optional[threading.Thread] = None

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End it, if it has not ended: its pid may be somebody else's then."""
        with self._lock:
            if not self.dead:
                os.kill(self.pid, number)

    def wait(self, ended: Callable[[int, int], None]) -> None:
        """Have `ended(pid, exit code)` called, in another thread, when it has ended."""
        self._waiter = threading.Thread(target=self._wait, args=(ended,), name=f"mpsteps-fork-{self.pid}", daemon=True)
        self._waiter.start()

    def join(self, seconds: float) -> None:
        """Wait for its end, but no longer than that."""
        if self._waiter is not None:
            self._waiter.join(max(0.0, seconds))

    def _wait(self, ended: Callable[[int, int], None]) -> None:
        code = 0
        try:
            # Leaves it a zombie until the lock is held: so nobody signals a pid, or a group, that is no longer its own.
            ended_how = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
            if ended_how is not None and (ended_how.si_code != os.CLD_EXITED or ended_how.si_status):
                _end_group(self.pid)
            with self._lock:
                _, status = os.waitpid(self.pid, 0)
                self.dead = True
            code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        except ChildProcessError:  # somebody else in this process waits for any child
            self.dead = True
        ended(self.pid, code)


def _end_group(pid: int) -> None:
    """Kill what a worker that died has left: its programs are in its process group."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # it died before it had a group of its own; macOS says EPERM of a group of zombies


def fork(serve: Callable[[Channel], None], generation: int, knows: int, others: List[Fork]) -> Fork:
    """A new worker process, which calls `serve` with its end of the channel and ends. Raises OSError if there cannot
    be one. `others`: whose sockets it must not keep open."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()
    ours, theirs = socket.socketpair()
    try:
        pid = os.fork()
    except OSError:
        ours.close()
        theirs.close()
        raise
    if pid == 0:
        _run_child(serve, ours, theirs, others)
    theirs.close()
    return Fork(pid, Channel(ours), generation, knows)


def _run_child(
    serve: Callable[[Channel], None], ours: socket.socket, theirs: socket.socket, others: List[Fork]
) -> None:  # fmt: skip
    """Does not return: nothing of what the main process had planned for its own end may happen here."""
    code = 70  # as EX_SOFTWARE: it could not even start
    try:
        ours.close()
        for other in others:
            other.channel.sock.close()
        serve(Channel(theirs))
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        try:
            for stream in (sys.stdout, sys.stderr):
                if stream is not None and not stream.closed:
                    stream.flush()
        finally:
            os._exit(code)
