"""Steps with large arrays, for `perf.arrays`: in a module of their own, so that all processes can import them.

Arrays are of 64-bit integers. A step that is given one adds all its numbers up; one that is given a shared one adds up
a number of each page, each step others; one that returns an array makes it. All sums are checked.
"""

from __future__ import annotations

import time
from typing import Any, Callable, Iterable, Iterator, List, NamedTuple, Optional, Tuple

import numpy as np

from mpsteps import STEPS_PARALLEL, Form, Protocol
from perf._harness import check
from perf._memory import PeakPss
from perf._ours import WHOLE, ProtocolRun, timed_run
from perf._systems import System, kind

ITEM = 8  # bytes
PAGE = 4096 // ITEM  # items


class Case(NamedTuple):
    """What is measured: `steps` steps with `megabytes` each, 'in' (arguments), 'out' (results) or 'shared'.

    `trial`: how many steps tell roughly how fast a system is, and how much memory it takes.
    """

    way: str
    steps: int
    megabytes: int
    trial: int

    @property
    def items(self) -> int:
        """Length of an array."""
        return self.megabytes * 1_000_000 // ITEM

    @property
    def title(self) -> str:
        """For people."""
        if self.way == "shared":
            return f"one array of {self.megabytes} MB, read by {self.steps} steps"
        return f"{self.steps} steps x {self.megabytes} MB as {'arguments' if self.way == 'in' else 'results'}"


def take(index: int, array: Any) -> Tuple[int, int]:
    """A step that is given an array."""
    return index, int(array.sum())


def look(index: int, array: Any) -> Tuple[int, int]:
    """A step that reads a number of each page of a shared array."""
    return index, int(array[index % PAGE :: PAGE].sum())


def make(index: int, items: int) -> Any:
    """A step that returns an array."""
    return np.full(items, index, dtype=np.int64)


def sum_of_pages(index: int, items: int) -> int:
    """What `look` must find in an array of 0, 1, 2, ..."""
    terms = range(index % PAGE, items, PAGE)
    return (terms[0] + terms[-1]) * len(terms) // 2


class Inputs:
    """What the steps of a case are given, ready before the clock starts.

    Six arrays take turns as arguments, each time as a new view of one: no system can know that it has sent it before.
    """

    def __init__(self, case: Case, workers: int) -> None:
        self.case = case
        self.arrays = [np.full(case.items, i, dtype=np.int64) for i in range(6 if case.way == "in" else 0)]
        self.shared = np.arange(case.items, dtype=np.int64) if case.way == "shared" else None
        self.window = 2 * workers

    def calls(self, count: int, shared: Any) -> Iterable[Tuple[Any, ...]]:
        """Arguments of the steps."""
        way = self.case.way
        for i in range(count):
            yield i, (self.arrays[i % 6][:] if way == "in" else self.case.items if way == "out" else shared)

    @property
    def fn(self) -> Callable[..., Any]:
        """The step."""
        return {"in": take, "out": make, "shared": look}[self.case.way]

    def verify(self, results: Iterator[Any], count: int, who: str) -> None:
        """Take the results as they come, check and drop each."""
        left = set(range(count))
        for result in results:
            if self.case.way == "out":
                index = int(result[0])
                right = result.shape == (self.case.items,) and int(result.sum()) == index * self.case.items
            else:
                index, found = result
                right = found == self.expected(index)
            check(right, f"{who}: the array of step {index}")
            left.discard(index)
        check(not left, f"{who}: {len(left)} of {count} results did not come")

    def expected(self, index: int) -> int:
        """What a step must find."""
        return index % 6 * self.case.items if self.case.way == "in" else sum_of_pages(index, self.case.items)


# -------------------------------------------------------------------------------------------------- protocol


class ArraySteps(Protocol):
    """The same steps in a protocol. `volume`, the shared array, is an attribute, as it would be in a real one."""

    stepsExecutionMode = STEPS_PARALLEL
    volume: Any = None

    def _defineParams(self, form: Form) -> None:
        form.addSection(label="Parallel")
        form.addParallelSection(threads=2)

    def _insertAllSteps(self) -> None:
        inputs, count = _next[0]
        function: Any = {"in": self.takeStep, "out": self.makeStep, "shared": self.lookStep}[inputs.case.way]
        for i, array in inputs.calls(count, None):
            given = () if array is None else (array,)
            wanted = () if inputs.case.way == "out" else (inputs.expected(i),)
            self._insertFunctionStep(function, i, *given, *wanted, prerequisites=[])

    def takeStep(self, i: int, array: Any, expected: int) -> None:
        """Is given an array."""
        check(take(i, array) == (i, expected), f"the array of step {i}")

    def makeStep(self, i: int, items: int) -> Any:
        """Returns an array."""
        return make(i, items)

    def lookStep(self, i: int, expected: int) -> None:
        """Reads an attribute of the protocol."""
        check(look(i, self.volume) == (i, expected), f"the volume in step {i}")


_next: List[Tuple[Inputs, int]] = []
"""What the protocol that runs next inserts: no attribute of it, since those travel."""


def protocol_seconds(inputs: Inputs, count: int, workers: int) -> float:
    """A whole run; the results, which its steps keep, are verified when it is over."""

    def new(folder: str) -> Protocol:
        protocol = ArraySteps(workingDir=folder, numberOfThreads=workers)
        if inputs.shared is not None:
            protocol.volume = inputs.shared
        return protocol

    def verify(protocol: Protocol) -> None:
        if inputs.case.way == "out":
            inputs.verify((step.result for step in protocol.getSteps()), count, WHOLE)

    _next[:] = [(inputs, count)]
    try:
        return timed_run(new, count, verify)[WHOLE]
    finally:
        _next.clear()


# -------------------------------------------------------------------------------------------------- measuring


def timed(system: System, inputs: Inputs, count: int) -> float:
    """Seconds for `count` steps. How a shared array is made known to the workers is part of them."""
    if isinstance(system, ProtocolRun):
        return protocol_seconds(inputs, count, system.workers)
    started = time.perf_counter()
    shared = None if inputs.shared is None else system.share(inputs.shared)
    results = system.stream(inputs.fn, inputs.calls(count, shared), inputs.window)
    inputs.verify(results, count, system.title)
    return time.perf_counter() - started


def trial(name: str, case: Case, workers: int) -> Tuple[float, Optional[int]]:
    """(seconds that each further step takes, bytes of memory at most) on a system that is alone in its process."""
    inputs = Inputs(case, workers)
    system = kind(name)(workers)
    few = 2
    try:
        start = timed(system, inputs, few)  # also, workers that did not inherit numpy have loaded it now
        with PeakPss() as memory:
            seconds = timed(system, inputs, case.trial)
    finally:
        system.close()
    return min(seconds / case.trial, max(1e-4, (seconds - start) / (case.trial - few))), memory.peak
