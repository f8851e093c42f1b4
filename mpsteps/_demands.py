"""From what a protocol declares to what the scheduler counts: demands of steps, groups of graphics cards."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from mpsteps._core.steps import PLAIN, Demand
from mpsteps._step_options import NO_OPTIONS, StepOptions
from mpsteps.constants import VOID_GPU
from mpsteps.steps import Step


def gpu_groups(gpus: Sequence[int], workers: int) -> List[Tuple[int, ...]]:
    """How the cards of the form are shared out, as Scipion does: with more cards than workers each worker's step gets
    several, otherwise one each. Card 99 (VOID_GPU) is a hole: it takes a place and is nobody's."""
    if len(gpus) <= workers:
        groups: List[Tuple[int, ...]] = [(g,) for g in gpus]
    else:
        share, spare = divmod(len(gpus), workers)
        groups, start = [], 0
        for i in range(workers):
            end = start + share + (1 if i < spare else 0)
            groups.append(tuple(gpus[start:end]))
            start = end
    real = [tuple(g for g in group if g != VOID_GPU) for group in groups]
    return [group for group in real if group]


class Demands:
    """The demand of each step of a protocol, worked out once for each function.

    `learned`: bytes that steps of a function were known to need when the session began.
    """

    def __init__(
        self, protocol: Any, local_allowed: bool, cards: int, learned: Optional[Mapping[str, int]] = None
    ) -> None:
        self._protocol = protocol
        self._local_allowed = local_allowed
        self._cards = cards  # groups of graphics cards there are
        self._learned = dict(learned or {})
        self._known: Dict[Any, Demand] = {}

    def options(self, step: Step) -> StepOptions:
        """What `@step(...)` declared for its function."""
        function = getattr(self._protocol, step._func, None) if isinstance(step._func, str) else step._func
        options = getattr(function, "__mpsteps__", NO_OPTIONS)
        return options if isinstance(options, StepOptions) else NO_OPTIONS

    def learned(self) -> Dict[str, int]:
        """Method -> bytes that count for admission though they are not declared."""
        declared = self.declared()
        return {func: n for func, n in self._learned.items() if not declared.get(func, [1, 0, 0])[1]}

    def declared(self) -> Dict[str, List[int]]:
        """Method -> [cpus, bytes, cards], of the methods that declare more than one slot."""
        found: Dict[str, List[int]] = {}
        for cls in reversed(type(self._protocol).__mro__):
            for name, function in vars(cls).items():
                options = getattr(function, "__mpsteps__", NO_OPTIONS)
                if isinstance(options, StepOptions) and (options.cpus > 1 or options.memory or options.gpus):
                    found[name] = [options.cpus, options.memory, options.gpus]
                else:
                    found.pop(name, None)  # overridden without it
        return found

    def is_plain(self, step: Step) -> bool:
        """Whether it is a method's step that asks for nothing but a turn."""
        func = step._func
        return type(func) is str and self.of(step) is PLAIN

    def of(self, step: Step) -> Demand:
        """Its demand; the very object PLAIN when it asks for nothing but a turn."""
        uses_card = step._needsGPU and self._cards > 0
        key = (step._func, uses_card) if uses_card else step._func
        found = self._known.get(key) if type(step._func) is str else None
        if found is None:
            options = self.options(step)
            found = Demand(
                cpus=options.cpus,
                gpus=max(options.gpus, 1 if uses_card else 0) if self._cards else 0,
                memory=options.memory,
                local=options.local and self._local_allowed,
                retries=options.retries,
                alone=options.timeout is not None,
            )
            if found == PLAIN:
                found = PLAIN
            elif not found.memory and not found.local:
                found = found._replace(learned=step._funcName)
            if isinstance(step._func, str):  # other callables are not kept alive by this
                self._known[key] = found
        return found
