"""When steps that have a timeout are told to end, and when they are killed."""

from __future__ import annotations

import heapq
import signal
from typing import Dict, Iterator, List, Optional, Tuple

TERM_SECONDS = 2.0
"""A step that ran out of time gets SIGTERM, and after this many seconds SIGKILL."""


class Deadlines:
    """The deadlines of the steps that run. All times are monotonic seconds; the caller says what time it is.

    Each attempt has a number of its own, since a step may have several: `_run_of` says which one's time runs in a
    worker. What stands in the heap for another one is passed over.
    """

    def __init__(self) -> None:
        self._heap: List[Tuple[float, int, int, int, int]] = []  # (when, number, worker, step, signal to send then)
        self._runs = 0
        self._run_of: Dict[int, int] = {}

    def begin(self, worker: int, step: int, end: float) -> None:
        """`step` has begun there, and may run until `end`."""
        self._runs = self._run_of[worker] = self._runs + 1
        heapq.heappush(self._heap, (end, self._runs, worker, step, signal.SIGTERM))

    def end(self, worker: int) -> None:
        """Another step begins there, or none will."""
        if self._run_of:
            self._run_of.pop(worker, None)

    def next_end(self) -> Optional[float]:
        """When `due` is to be asked; None: nobody has a deadline."""
        return self._heap[0][0] if self._heap else None

    def postpone(self, seconds: float) -> None:
        """Nobody could run for so long."""
        self._heap = [(d[0] + seconds, *d[1:]) for d in self._heap]  # the order of a heap is kept

    def due(self, now: float) -> Iterator[Tuple[int, int, int]]:
        """(worker, step, signal) of those whose time is up, if they have not ended: that is for the caller to see."""
        while self._heap and self._heap[0][0] <= now:
            when, run, worker, step, number = heapq.heappop(self._heap)
            if self._run_of.get(worker) != run:
                continue
            if number != signal.SIGKILL:
                heapq.heappush(self._heap, (when + TERM_SECONDS, run, worker, step, signal.SIGKILL))
            yield worker, step, number
