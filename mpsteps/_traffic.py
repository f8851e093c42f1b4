"""What single steps have read and written, and how much went to their workers and back.

Read and written is what the kernel counts of a process (/proc/self/io): the bytes of its calls, from files, pipes and
sockets, whether they came from a disk or from memory; pages of mapped files are not in it. Programs count when they
have been waited for. Like peaks, this is asked for after steps that take a while only, and what shorter ones have read
and written is put down to the next one that is looked at, on the same worker.
"""

from __future__ import annotations

import marshal
from typing import Any, Iterable, NamedTuple, Optional, Tuple


class Traffic(NamedTuple):
    """Bytes that a step has read and written (None: the system does not say), and that went to its worker for it, and
    back: arguments, changes of self, results; large ones, which are mapped and not copied, included."""

    read: Optional[int]
    written: Optional[int]
    received: int
    returned: int


def traffic_of(found: Any) -> Optional[Traffic]:
    """What a journal or a reply tells as a list; None if it is none."""
    if not isinstance(found, (list, tuple)) or len(found) != len(Traffic._fields):
        return None
    numbers = [n if type(n) is int else None for n in found]
    return Traffic(numbers[0], numbers[1], numbers[2] or 0, numbers[3] or 0)


class Calls:
    """Bytes that this process, and programs that it has waited for, have read and written by calls."""

    def __init__(self) -> None:
        self._before = self._look()

    def of_last_step(self) -> Tuple[Optional[int], Optional[int]]:
        """Bytes read and written since the last call."""
        now, before = self._look(), self._before
        if now is None or before is None:
            return None, None
        self._before = now
        return max(0, now[0] - before[0]), max(0, now[1] - before[1])

    @staticmethod
    def _look() -> Optional[Tuple[int, int]]:
        try:
            with open("/proc/self/io", "rb", buffering=0) as file:
                words = file.read(4096).split(None, 4)  # rchar: 123 wchar: 45 ...
            return int(words[1]), int(words[3])
        except (OSError, ValueError, IndexError):
            return None  # not Linux, or a kernel without it


def size(parts: Iterable[Any]) -> int:
    """The bytes of what stands in a message, without the frame around it, and with the blocks that it refers to."""
    total = 0
    rest = []
    for part in parts:
        if type(part) is bytes:
            total += len(part)
        elif type(part) is list and len(part) == 2 and type(part[0]) is bytes and type(part[1]) is tuple:  # a Parcel
            total += len(part[0]) + sum(part[1][-1])
        elif part is not None:
            rest.append(part)
    return total + (len(marshal.dumps(rest)) if rest else 0)
