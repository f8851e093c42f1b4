"""Scipion's own ThreadStepExecutor (scipion-pyworkflow), given minimal steps: what mpsteps replaces.

Its loop looks every three seconds whether a step has ended, so its times are multiples of that: one run tells them.
It ends by joining *all* threads of its process, those of other systems, too: each run has a process of its own, whose
start is not in the time.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import time
from typing import Any, Callable, List, Sequence

from perf._harness import Timing, check
from perf._systems import System
from perf._work import Call, step


class Scipion(System):
    """ThreadStepExecutor with `workers` threads."""

    title = "Scipion ThreadStepExecutor"
    package = "'scipion-pyworkflow; python_version < \"3.12\"'"
    scale = 400
    graph_scale = 1000
    runs = 1

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        if importlib.util.find_spec("pyworkflow") is None:
            raise ModuleNotFoundError("No module named 'pyworkflow'", name="pyworkflow")

    def independent(self, calls: Sequence[Call]) -> Timing:
        """A graph without edges."""
        return self.graph(calls)

    def graph(self, calls: Sequence[Call], fn: Callable[..., Any] = step) -> Timing:
        """`runSteps` alone. `fn` must be a function of a module."""
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=_run_and_tell, args=(there, self.workers, list(calls), fn))
        process.start()
        there.close()
        try:
            seconds, problem = here.recv()
        finally:
            process.join()
        check(not problem, f"{self.title}: {problem}")
        return {self.title: seconds}


def _run_and_tell(pipe: Any, workers: int, calls: List[Call], fn: Callable[..., Any]) -> None:
    """In the process of its own."""
    from pyworkflow.protocol import Step
    from pyworkflow.protocol.executor import ThreadStepExecutor

    class MinimalStep(Step):  # type: ignore[misc]
        """As little as the executor allows."""

        def __init__(self, call: Call) -> None:
            super().__init__(needsGPU=False)
            self.setObjId(call[0] + 1)
            self.addPrerequisites(*[p + 1 for p in call[1]])
            self._call = call

        def _run(self) -> None:
            fn(*self._call)

    steps = [MinimalStep(call) for call in calls]
    executor = ThreadStepExecutor(None, workers)
    started = time.perf_counter()
    executor.runSteps(steps, lambda s: None, lambda s: not s.isFailed(), lambda: None)
    seconds = time.perf_counter() - started
    problems = [s.getErrorMessage() or s.getStatus() for s in steps if not s.isFinished()]
    pipe.send((seconds, problems[0] if problems else ""))
