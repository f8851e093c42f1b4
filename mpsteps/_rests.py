"""The rest between two attempts of a step: longer each time, different for each step, the same in each run.

What makes an attempt fail and the next succeed (a file server that stalls, a licence that is taken, a card that is
full) needs some time to pass, and more if it was not enough. Steps that failed together for such a reason should not
come back together; so the rests of different steps differ. By the step's number and not by chance: a run can be told
again.
"""

from __future__ import annotations

import heapq
from typing import List, Optional, Tuple

FIRST_SECONDS = 0.2
LONGEST_SECONDS = 30.0
_SPREAD = 0.5
_GOLDEN = 0.6180339887498949
"""Multiples of it, modulo 1, are spread evenly however many there are."""


def rest_seconds(step: int, attempt: int) -> float:
    """How long a step rests after its failed attempt of this number (from 1): twice as long each time, at most 30 s,
    and for each step between 0.75 and 1.25 times that."""
    seconds: float = min(FIRST_SECONDS * 2 ** min(attempt - 1, 20), LONGEST_SECONDS)
    return seconds * (1 - _SPREAD / 2 + _SPREAD * ((step + attempt) * _GOLDEN % 1))


class Rests:
    """The steps that rest. All times are monotonic seconds. `until`: a heap of (when, step)."""

    def __init__(self) -> None:
        self.until: List[Tuple[float, int]] = []

    def begin(self, step: int, attempt: int, now: float) -> None:
        """An attempt failed, and another will be made."""
        heapq.heappush(self.until, (now + rest_seconds(step, attempt), step))

    def next_end(self) -> Optional[float]:
        """When the first of them has rested; None: none rests."""
        return self.until[0][0] if self.until else None

    def ended(self, now: float) -> List[int]:
        """The steps that have rested by now; each is told once."""
        found = []
        while self.until and self.until[0][0] <= now:
            found.append(heapq.heappop(self.until)[1])
        return found
