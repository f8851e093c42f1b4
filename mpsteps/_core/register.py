"""Where every step is: the transition table, applied. Nothing else writes a status.

What is known of a step from the moment it is added (its function, its demand) stands here too, in columns by step id:
a million waiting steps must not cost a million objects.
"""

from __future__ import annotations

from collections import deque
from itertools import repeat
from typing import Deque, Dict, Hashable, List, Sequence, Tuple

from mpsteps._core.steps import PLAIN, TRANSITIONS, Cause, Demand, Status
from mpsteps.errors import InternalError

STORY_LENGTH = 4096
"""How many moves are remembered for error messages."""

_NOWHERE = 255  # in `_NEXT`: this cause cannot happen in this status
_NEXT: Tuple[Tuple[int, ...], ...] = tuple(
    tuple(int(TRANSITIONS.get((before, cause), _NOWHERE)) for before in Status) for cause in Cause
)


class Register:
    """The status of each step and what was said of it when it was added.

    Invariant: `counts[s]` is the number of steps with status `s`; ids that were never added are not counted.
    """

    def __init__(self) -> None:
        self.statuses = bytearray(1)  # by step id; id 0 is nobody
        self.functions: List[Hashable] = [None]  # by step id: the key under which its duration is learned
        self.several_functions = False
        self.demands: Dict[int, Demand] = {}  # only of steps that are not PLAIN
        self.counts = [0] * len(Status)
        self._moves: Deque[Tuple[int, Cause]] = deque(maxlen=STORY_LENGTH)

    def status(self, step: int) -> Status:
        """Where `step` is; UNKNOWN if it was never added."""
        return Status(self.statuses[step]) if 0 < step < len(self.statuses) else Status.UNKNOWN

    def story(self, step: int) -> str:
        """The remembered moves of a step, for error messages."""
        moves = [cause.name.lower() for s, cause in self._moves if s == step]
        return f"step {step} is {self.status(step).name}; its story: {' -> '.join(moves) or 'nothing remembered'}"

    def add(self, step: int, held: bool, function: Hashable, demand: Demand) -> None:
        """A step that does not exist yet begins its life."""
        if function != self.functions[-1] and len(self.functions) > 1:
            self.several_functions = True
        short = step + 1 - len(self.statuses)
        if short == 1:
            self.statuses.append(0)
            self.functions.append(function)
        else:
            if short > 0:
                self.statuses.extend(bytes(short))
                self.functions.extend([None] * short)
            self.functions[step] = function
        if demand is not PLAIN and demand != PLAIN:
            self.demands[step] = demand
        self.counts[0] += 1  # UNKNOWN: `move` takes it out again
        self.move(step, Cause.ADDED_HELD if held else Cause.ADDED)

    def add_all(self, first: int, count: int, function: Hashable) -> range:
        """`add` for `count` ordinary steps of one function, with the next ids; the caller knows that they are."""
        if function != self.functions[-1] and len(self.functions) > 1:
            self.several_functions = True
        self.statuses.extend(bytes(count))
        self.functions.extend(repeat(function, count))
        self.counts[0] += count
        steps = range(first, first + count)
        self.move_all(steps, Cause.ADDED)
        return steps

    def move(self, step: int, cause: Cause) -> None:
        """Take `step` along an edge of the table; InternalError, and nothing changed, if there is none."""
        statuses = self.statuses
        before = statuses[step] if 0 < step < len(statuses) else 0
        after = _NEXT[cause][before]
        if after == _NOWHERE:
            raise InternalError(f"{cause.name} cannot happen now: {self.story(step)}")
        statuses[step] = after
        counts = self.counts
        counts[before] -= 1
        counts[after] += 1
        self._moves.append((step, cause))

    def move_all(self, steps: Sequence[int], cause: Cause) -> None:
        """`move` for steps of which the caller knows that they exist and may move."""
        statuses, counts, after_of = self.statuses, self.counts, _NEXT[cause]
        here = after = 0  # the status of the step before, of which there are `same` in a row, and what follows it
        same = 0
        for step in steps:
            before = statuses[step]
            if before != here or not same:
                counts[here] -= same
                counts[after] += same
                same, here, after = 0, before, after_of[before]
                if after == _NOWHERE:
                    raise InternalError(f"{cause.name} cannot happen now: {self.story(step)}")
            statuses[step] = after
            same += 1
        counts[here] -= same
        counts[after] += same
        self._moves.extend(zip(steps[-STORY_LENGTH:], repeat(cause)))

    def check_invariants(self) -> None:
        """Raise AssertionError if the counts are not those of the statuses."""
        real = [self.statuses.count(status) for status in range(len(Status))]
        assert self.counts[1:] == real[1:], f"counts {self.counts} != {real}"
        assert self.counts[0] == 0, "steps that were never added are counted"
        assert len(self.functions) == len(self.statuses)
