"""What one worker has been sent and has not answered."""

from __future__ import annotations

from collections import deque
from typing import Deque

LANE_SECONDS = 0.004
"""A lane is given no more work than this ahead of time."""
LANE_DEPTH = 512
"""... and no more steps than this."""


class Lane:
    """The steps of one lane, in the order in which they will run.

    Invariant: in a worker's lane the first step is RUNNING and all others are DISPATCHED.
    """

    __slots__ = ("alone", "expected", "sent", "stalled_by", "steps")

    def __init__(self) -> None:
        self.steps: Deque[int] = deque()
        self.expected = 0.0  # seconds of work in `steps`, by the means known when they were sent
        self.sent = 0.0  # seconds of work that was ever sent here
        self.alone = False  # its only step has a demand of its own: nothing may follow
        self.stalled_by = 0  # a step of it that runs longer than expected: nothing may follow

    @property
    def open(self) -> bool:
        """Whether anything may follow what it has."""
        return not self.alone and not self.stalled_by
