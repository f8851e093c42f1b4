"""The conversation of coordinator and zygote: whole messages, and descriptors with them, over a socket pair.

Messages are marshalled tuples behind a four-byte length. Descriptors travel beside the first byte of the message that
they belong to, and the system never hands out two messages' descriptors with one read: the order of reading is the
order of sending. A process that is at its limit of open files gets fewer than were sent, which `take_fds` says.
"""

from __future__ import annotations

import array
import errno
import marshal
import os
import socket
import struct
from collections import deque
from typing import Any, Deque, List, Optional, Tuple

from mpsteps.errors import EngineError

_LENGTH = struct.Struct("=I")
_MAX_FDS = 16
_CLOEXEC: int = getattr(socket, "MSG_CMSG_CLOEXEC", 0)  # where it is missing (macOS), `take_fds` sets the flag
_TRUNCATED: int = getattr(socket, "MSG_CTRUNC", 0)

Message = Tuple[Any, ...]


class Link:
    """One end of the socket. `_fds`: what came with each read that carried descriptors and was not taken."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._data = bytearray()
        self._fds: Deque[Tuple[int, ...]] = deque()

    def fileno(self) -> int:
        """The descriptor to wait on; -1 once closed."""
        return self._sock.fileno()

    def close(self) -> None:
        """End the conversation; the other side sees it at once. Twice is once."""
        self._sock.close()
        while self._fds:
            for fd in self._fds.popleft():
                os.close(fd)

    def send(self, message: Message, fds: Tuple[int, ...] = ()) -> None:
        """Send one message, blocking while the other side's buffer is full. Raises OSError when it is gone."""
        payload = marshal.dumps(message)
        data = _LENGTH.pack(len(payload)) + payload
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        sent = self._sock.sendmsg([data], ancillary)
        if sent < len(data):
            self._sock.sendall(data[sent:])

    def receive(self) -> Optional[List[Message]]:
        """The whole messages that one read brings, waiting for a first byte; None when the other side is gone."""
        try:
            data, ancillary, flags, _ = self._sock.recvmsg(65536, socket.CMSG_SPACE(_MAX_FDS * 4), _CLOEXEC)
        except ConnectionResetError:
            return None
        if not data:
            return None
        fds = array.array("i")
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
        if fds or flags & _TRUNCATED:
            self._fds.append(tuple(fds))
        self._data += data
        return self._split()

    def _split(self) -> List[Message]:
        found = []
        while len(self._data) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._data)
            end = _LENGTH.size + length
            if len(self._data) < end:
                break
            found.append(marshal.loads(bytes(self._data[_LENGTH.size : end])))
            del self._data[:end]
        return found

    def take_fds(self, count: int) -> List[int]:
        """The `count` descriptors that came with a message, close-on-exec. OSError (EMFILE) if not all could come."""
        fds = self._fds.popleft() if self._fds else ()
        if len(fds) != count:
            for fd in fds:
                os.close(fd)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        for fd in fds:
            os.set_inheritable(fd, False)
        return list(fds)


def plug_stdio() -> None:
    """Put the null device where descriptor 0, 1 or 2 is closed, and leave it there.

    The next descriptor that is opened would take that place, and whatever is printed later, by any library or program,
    would end up in it: in a socket, or in a ring. Raises EngineError where there is no null device.
    """
    while True:
        try:
            fd = os.open(os.devnull, os.O_RDWR)
        except OSError as error:
            if error.errno == errno.EMFILE:
                return  # no number is free, and so none of these
            raise EngineError(f"{os.devnull} cannot be opened: {error.strerror}") from error
        if fd > 2:
            os.close(fd)
            return
        os.set_inheritable(fd, True)
