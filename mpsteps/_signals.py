"""Signals are events: a handler notes the signal and wakes the loop; nothing is ever raised inside the loop.

(A KeyboardInterrupt there leaves a step half dispatched at most of the points where it can strike.)
"""

from __future__ import annotations

import os
import select
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Callable, Dict, List, NoReturn, Optional, Set, Type

_HANDLED = [n for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]


hidden_cursors: Set[int] = set()
"""Descriptors of terminals whose cursor is hidden, to be shown again also by a process that dies on the spot."""


def die_of(number: int) -> NoReturn:
    """End this process as the signal does by default, at once: nothing is flushed, closed or waited for."""
    for fd in hidden_cursors:
        try:
            if select.select([], [fd], [], 0)[1]:  # a terminal that was stopped (Ctrl-S) would keep us
                os.write(fd, b"\x1b[?25h\r\n")
        except (OSError, ValueError):
            continue  # that terminal is gone
    signal.signal(number, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # not reached, unless this is the first process of a container, which no signal ends


class Signals:
    """While this is entered (main thread only; elsewhere it does nothing), `on_signal(number, count)` is called for
    SIGINT, SIGTERM and SIGHUP: `count` is 1 for the first of its number. `received` lists the numbers."""

    def __init__(self, on_signal: Callable[[int, int], None]) -> None:
        self._on_signal = on_signal
        self._before: Dict[int, Any] = {}
        self.received: List[int] = []

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for name in _HANDLED:
                number = getattr(signal, name)
                if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or a parent that wants it ignored
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], where: Optional[TracebackType]
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _handle(self, number: int, _frame: Optional[FrameType]) -> None:
        self.received.append(number)
        self._on_signal(number, self.received.count(number))
