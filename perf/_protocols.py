"""Protocols that the scripts run."""

from __future__ import annotations

import shutil
import tempfile
import time
from typing import Any, Callable, Dict

from mpsteps import STEPS_PARALLEL, Form, Protocol
from perf._harness import check


class Empty(Protocol):
    """`count` empty steps: independent of each other, or each after the one before it."""

    stepsExecutionMode = STEPS_PARALLEL
    count = 0
    chained = False

    def _defineParams(self, form: Form) -> None:
        form.addSection(label="Parallel")
        form.addParallelSection(threads=2)

    def _insertAllSteps(self) -> None:
        prerequisites = None if self.chained else []
        for i in range(self.count):
            self._insertFunctionStep(self.emptyStep, i, prerequisites=prerequisites)

    def emptyStep(self, i: int) -> None:
        """Nothing."""


def timed_run(make: Callable[[str], Protocol], verify: Callable[[Any], bool]) -> float:
    """Seconds of `run()` of a new protocol in a new run directory: starting and ending workers included."""
    folder = tempfile.mkdtemp(prefix="mpsteps-perf-")
    try:
        protocol = make(folder + "/run")
        started = time.perf_counter()
        protocol.run()
        took = time.perf_counter() - started
        check(protocol.isFinished() and verify(protocol), f"{protocol}: {protocol.getErrorMessage()}")
        return took
    finally:
        shutil.rmtree(folder)


def empty_run(count: int, chained: bool, workers: int) -> float:
    """Seconds of a run of `count` empty steps."""

    def make(folder: str) -> Protocol:
        settings: Dict[str, Any] = {"count": count, "chained": chained}
        cls = type("Empty", (Empty,), settings)
        cls.__module__ = "__main__"  # it is made here and now: it travels by value
        return cls(workingDir=folder, numberOfThreads=workers)

    return timed_run(make, lambda p: p.stepsDone == count)
