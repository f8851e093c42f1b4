"""How long a run may still take, by what the steps of each function took so far, and by the graph. Pure."""

from __future__ import annotations

from typing import Dict, Iterable, Mapping, Optional, Sequence, Tuple

UNKNOWN = 0.05
"""Such a part of the steps that are left may be of functions of which none has finished yet: they count as nothing."""


class Tally:
    """How many steps of a function there are, and in which state; `seconds`: what `timed` finished ones took in all."""

    __slots__ = ("failed", "finished", "kept", "seconds", "skipped", "timed", "total")

    def __init__(self) -> None:
        self.total = self.finished = self.kept = self.failed = self.skipped = self.timed = 0
        self.seconds = 0.0

    @property
    def left(self) -> int:
        """Those that have not ended."""
        return self.total - self.finished - self.failed - self.skipped

    @property
    def mean(self) -> Optional[float]:
        """Seconds a step takes; None if none has finished in this session."""
        return self.seconds / self.timed if self.timed else None


def means_of_what_is_left(functions: Mapping[str, Tally]) -> Optional[Dict[str, float]]:
    """Mean seconds of the functions of which steps are left; None if too little is known to say anything."""
    open_ = {func: t for func, t in functions.items() if t.left}
    known = {func: t.mean for func, t in open_.items() if t.mean is not None}
    left = sum(t.left for t in open_.values())
    unknown = left - sum(open_[func].left for func in known)
    return known if known and unknown <= max(1.0, UNKNOWN * left) else None


def seconds_left(
    functions: Mapping[str, Tally], workers: int, running: Iterable[Tuple[str, float]], chain: float = 0.0
) -> Optional[float]:
    """The work that is left shared out to the workers, but no less than `chain`, the longest chain of steps that is
    left. `running`: function and age, seconds, of each step at work. None if too little is known."""
    means = means_of_what_is_left(functions)
    if means is None:
        return None
    work = sum(functions[func].left * mean for func, mean in means.items())
    work -= sum(min(age, means.get(func, 0.0)) for func, age in running)
    return max(0.0, work / max(1, workers), chain)


def longest_chain(
    steps: Iterable[Tuple[int, str, Sequence[int]]], means: Mapping[str, float], age: Mapping[int, float]
) -> float:
    """Seconds of the longest chain of prerequisites among `steps` (id, function, prerequisites), those that have not
    ended, by rising ids. `age`: of those at work. One pass: a prerequisite with a higher id than its step is missed."""
    length: Dict[int, float] = {}
    for step, func, needs in steps:
        own = max(0.0, means.get(func, 0.0) - age.get(step, 0.0))
        length[step] = own + max((length.get(p, 0.0) for p in needs), default=0.0)
    return max(length.values(), default=0.0)
