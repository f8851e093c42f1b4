"""Which steps may begin as far as memory is concerned that nobody has declared: it is learned while they run.

Who measures is outside (`MemoryLearned`); here is what follows from it. A function is one of three:

- *unknown*: none of its steps has ended, and nothing was told of it. Each of its steps counts `assumed` bytes, so that
  a few of them begin, and not more before something is known.
- *heavy*: its steps need so much that they do not fit if one runs on every worker. Each counts what was told.
- *light*, as most are: nothing counts, and nothing is looked up for its steps.

An ordinary step of an unknown function waits for memory at the head of the queue. One of a heavy function leaves the
queue when it comes to its head, and waits among those with a demand of their own. Steps that take no memory pass it
there: it gets what another such step gives back, and its worker with that. But while an unknown function waits with
its first step, none of the heavy ones begins: it may well be light, and then all its steps can pass.
"""

from __future__ import annotations

from typing import Dict, Hashable, Mapping

from mpsteps._core.lane import Lane
from mpsteps._core.register import Register
from mpsteps._core.slots import SlotPool
from mpsteps._core.steps import LOCAL, Demand
from mpsteps._core.waiting import Waiting


class Admission:
    """`assumed`: bytes for each step of an unknown function (0: nobody is cautious). `heavy`: function -> bytes for
    each of its steps. `lanes` and `mean` are those of `Lanes`.

    Invariant: the step at the head of a lane holds what counts for its function now.
    """

    def __init__(
        self, register: Register, waiting: Waiting, slots: SlotPool, lanes: Mapping[int, Lane],
        mean: Mapping[Hashable, float], assumed: int,
    ) -> None:  # fmt: skip
        self.assumed = assumed
        self.heavy: Dict[Hashable, int] = {}
        self._told: Dict[Hashable, int] = {}
        self._demands: Dict[Hashable, Demand] = {}
        self._register = register
        self._waiting = waiting
        self._slots = slots
        self._lanes = lanes
        self._mean = mean

    # ---------------------------------------------------------------------- learning

    def learn(self, needs: Mapping[Hashable, int], others: int) -> None:
        """What steps of functions need, and what others use."""
        self._told.update(needs)
        self._slots.count_others(others)
        self.weigh()

    def weigh(self) -> None:
        """Which functions are heavy, given the memory and workers that there are now."""
        if self._told:
            share = self._slots.share()
            self.heavy.clear()  # the same dict for good: it is looked at while lanes are filled
            self.heavy.update((function, n) for function, n in self._told.items() if n > share)
        self.count_all()

    def count_all(self) -> None:
        """Let all that run hold what counts for them now."""
        for worker, lane in self._lanes.items():
            if worker != LOCAL and lane.steps:
                self.count(worker, lane)

    def count(self, worker: int, lane: Lane) -> None:
        """Let the step at the head of a lane hold what counts for it."""
        step = lane.steps[0]
        if not lane.alone:
            self._slots.hold_memory(-worker, self.need(self._register.functions[step]))
        elif self._register.demands[step].learned is not None:
            self._slots.hold_memory(step, self.need(self._register.demands[step].learned))

    # ------------------------------------------------------------------------ asking

    def need(self, function: Hashable) -> int:
        """Bytes that count for each step of a function."""
        if function in self.heavy:
            return self.heavy[function]
        return 0 if function in self._mean or function in self._told else self.assumed

    def resolve(self, demand: Demand) -> Demand:
        """A demand, with what is learned in the place of what is not declared."""
        return demand if demand.learned is None else demand._replace(memory=self.need(demand.learned))

    def watches(self, step: int) -> bool:
        """Whether it matters how much memory a step that runs uses: it is not known yet, or known to be much."""
        demand = self._register.demands.get(step)
        if demand is not None and demand.learned is None:
            return False
        function = self._register.functions[step]
        return function in self.heavy or (self.assumed > 0 and function not in self._mean)

    def must_wait(self, step: int) -> bool:
        """Whether there is no room for what counts for an ordinary step."""
        need = self.need(self._register.functions[step])
        return need > 0 and self._slots.lacks_memory(need)

    def lets_pass(self, demand: Demand) -> bool:
        """Whether steps that take no memory may pass one that waits with this demand: that is all it lacks."""
        return demand.learned is not None and self._slots.lacks(demand) == "memory"

    def explores(self) -> bool:
        """Whether an unknown function waits with its first step, and for nothing but memory."""
        if not self.assumed or not self.heavy:
            return False
        head = self._waiting.first_plain()
        if head is not None and self._is_new(self._register.functions[head]):
            return True
        demands = [d for d in self._waiting.special_demands() if d.learned is not None and self._is_new(d.learned)]
        return any(self._slots.lacks(self.resolve(d)) in ("", "memory") for d in demands)

    def _is_new(self, function: Hashable) -> bool:
        if function in self._mean or function in self._told:
            return False
        functions = self._register.functions
        return not any(lane.steps and functions[lane.steps[0]] == function for lane in self._lanes.values())

    def divert(self, step: int) -> None:
        """An ordinary step of a heavy function, just taken from the queue, waits among those with a demand."""
        function = self._register.functions[step]
        demand = self._demands.get(function)
        if demand is None:  # always the same object, as they wait together
            demand = self._demands[function] = Demand(learned=function)
        self._register.demands[step] = demand
        self._waiting.join(step)

    # ---------------------------------------------------------------------- checking

    def check_invariants(self) -> None:
        """Raise AssertionError if somebody holds what does not count for him now."""
        before = dict(self._slots.free)
        self.count_all()
        assert self._slots.free == before, "what is learned of memory is not held"
