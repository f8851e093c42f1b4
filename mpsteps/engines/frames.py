"""Messages between a coordinator and its agents as a stream of bytes: a length, then what marshal wrote.

Whoever carries the bytes (a socket, Dask's connections) may cut them where he likes. Every message has a number, so
that one that was lost or came twice is noticed, and no step runs twice because of it.
"""

from __future__ import annotations

import marshal
import struct
from typing import Any, List, Tuple

from mpsteps.errors import EngineError

Message = Tuple[Any, ...]

_HEAD = struct.Struct("<QQ")  # number of the message, bytes of what follows
PIECE = 4 << 20
"""What carries the bytes is given so many at a time."""


class FrameWriter:
    """Numbers messages and writes them."""

    def __init__(self) -> None:
        self._number = 0

    def frame(self, message: Message) -> bytes:
        """The bytes of a message. ValueError, and no number used up, if it holds 2 GiB or more in one piece."""
        body = marshal.dumps(message)
        self._number += 1
        return _HEAD.pack(self._number, len(body)) + body


class FrameReader:
    """Puts messages together again."""

    def __init__(self) -> None:
        self._number = 0
        self._data = bytearray()

    def feed(self, data: bytes) -> List[Message]:
        """More of the stream; the messages that are whole now. EngineError if one is missing or came twice."""
        buffer = self._data
        buffer += data
        found: List[Message] = []
        start = 0
        while len(buffer) - start >= _HEAD.size:
            number, size = _HEAD.unpack_from(buffer, start)
            if number != self._number + 1:
                raise EngineError(f"message {number} came after message {self._number}: the connection is damaged")
            end = start + _HEAD.size + size
            if len(buffer) < end:
                break
            with memoryview(buffer) as view:
                found.append(marshal.loads(view[start + _HEAD.size : end]))
            self._number = number
            start = end
        if start:
            del buffer[:start]
        return found
