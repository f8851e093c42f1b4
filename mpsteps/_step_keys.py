"""A name for each step that is the same in every run of the same protocol, whatever worker it lands on and whenever:
what `Protocol.stepSeed` is made of.

It is the step's digest (function, arguments, what comes before it) and, of steps with the same digest, which one it is,
by id. Not the id alone: steps that are inserted by others that run at the same time get ids in any order.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List

from mpsteps.steps import Step


class StepKeys:
    """Keys of the steps in the growing list `steps`; `digest` gives that of a step. For one thread."""

    def __init__(self, steps: List[Step], digest: Callable[[Step], str]) -> None:
        self._steps = steps
        self._digest = digest
        self._seen: Dict[Any, int] = {}  # function -> so many steps of the list have been looked at for it
        self._count: Dict[str, int] = {}  # digest -> how many have it
        self._key: Dict[int, str] = {}

    def of(self, step: int) -> str:
        """The key of a step, by its id. The first call for a function looks at all of its steps."""
        if step not in self._key:
            func = self._steps[step - 1]._func
            for s in self._steps[self._seen.get(func, 0) :]:
                if s._func == func:
                    digest = self._digest(s)
                    self._count[digest] = count = self._count.get(digest, 0) + 1
                    self._key[s._id] = f"{digest}/{count}"
            self._seen[func] = len(self._steps)
        return self._key[step]
