"""How much memory counts for steps that have declared none: by function, as it is learned while they run.

Who measures is outside (`MemoryLearned`); here is what follows from it. A function is one of three:

- *unknown*: none of its steps has ended, and nobody has told anything of it. Each of its steps counts `assumed` bytes.
- *heavy*: its steps need so much that they do not fit if one runs on every worker. Each counts what is told of it.
- *light*, as most are: nothing counts, and nothing is looked up for its steps.
"""

from __future__ import annotations

from typing import Dict, Hashable, Mapping

from mpsteps._core.steps import Demand


class Needs:
    """`assumed`: bytes for each step of an unknown function (0: nobody is cautious). `heavy`: function -> bytes for
    each of its steps; `told`: the same of all functions of which something was told."""

    def __init__(self, assumed: int = 0) -> None:
        self.assumed = assumed
        self.told: Dict[Hashable, int] = {}
        self.heavy: Dict[Hashable, int] = {}
        self._demands: Dict[Hashable, Demand] = {}

    def learn(self, told: Mapping[Hashable, int], each: float) -> None:
        """`told`: function -> bytes; those above `each`, the share of one worker, are heavy."""
        self.told.update(told)
        self.heavy.clear()  # the same dict for good: it is looked at while lanes are filled
        self.heavy.update((function, n) for function, n in self.told.items() if n > each)

    def of(self, function: Hashable, ended: bool) -> int:
        """Bytes that count for a step of a function; `ended`: some of its steps have."""
        if function in self.heavy:
            return self.heavy[function]
        return 0 if ended or function in self.told else self.assumed

    def demand(self, function: Hashable) -> Demand:
        """That of an ordinary step of a heavy function: always the same object, as they wait together."""
        found = self._demands.get(function)
        if found is None:
            found = self._demands[function] = Demand(learned=function)
        return found
