"""mpsteps itself, as two systems: a warm StepPool, and a whole run of a protocol."""

from __future__ import annotations

import shutil
import tempfile
import time
from typing import Any, Callable, List, Optional, Sequence

import mpsteps
from mpsteps import STEPS_PARALLEL, Form, Listener, Protocol
from perf._harness import Timing, check
from perf._systems import System
from perf._work import Call, step
from perf.peers.pools import FuturesSystem

WHOLE, ENGINE = "mpsteps protocol, whole run", "mpsteps protocol, engine only"


class Pool(FuturesSystem):
    """mpsteps.StepPool: an executor that knows prerequisites."""

    title = "mpsteps.StepPool"

    def make(self) -> mpsteps.StepPool:
        """Its workers start at once."""
        return mpsteps.StepPool(self.workers)

    def run_graph(self, calls: Sequence[Call], fn: Callable[..., Any]) -> None:
        """Submitted all at once."""
        futures: List[Any] = []
        for call in calls:
            futures.append(self.executor.submit_step(fn, *call, after=[futures[p] for p in call[1]]))
        for future in futures:
            future.result()


class SharedArrayPool(Pool):
    """StepPool once more: what is shared is copied into a `mpsteps.shared_array` first."""

    title = "mpsteps.StepPool, shared_array"

    def share(self, array: Any) -> Any:
        """Memory that belongs to no process."""
        shared = mpsteps.shared_array(array.shape, array.dtype)
        shared[:] = array
        return shared


class ClusterPool(Pool):
    """StepPool on Dask workers of this machine: as many, of one step at a time, as `dask.distributed` is given."""

    title = "mpsteps.StepPool, on Dask"
    package = "distributed"
    restless = True

    def make(self) -> mpsteps.StepPool:
        """Up when its first step has run on each."""
        pool = mpsteps.StepPool(engine=mpsteps.Cluster("dask", workers=self.workers, cores=1))
        list(pool.map(time.sleep, [0.2] * 4 * self.workers))
        return pool


class Steps(Protocol):
    """The calls that stand in `_to_insert`, as steps of a protocol."""

    stepsExecutionMode = STEPS_PARALLEL

    def _defineParams(self, form: Form) -> None:
        form.addSection(label="Parallel")
        form.addParallelSection(threads=2)

    def _insertAllSteps(self) -> None:
        for call in _to_insert:
            self._insertFunctionStep(self.callStep, *call, prerequisites=[p + 1 for p in call[1]])

    def callStep(self, *call: Any) -> None:
        """A step. Like most steps of real protocols it returns nothing."""
        step(*call)


_to_insert: Sequence[Call] = ()
"""What the protocol that runs next inserts. Not its attribute: attributes travel to the workers, and are watched."""


class ProtocolRun(System):
    """A protocol: workers are started, steps inserted, journaled, run, and workers ended, all within the time.

    In the same run, "engine only" is what a Listener sees between the first step's dispatch and the end of the last.
    """

    title = WHOLE

    def independent(self, calls: Sequence[Call]) -> Timing:
        """A graph without edges."""
        return self.graph(calls)

    def graph(self, calls: Sequence[Call], fn: Callable[..., Any] = step) -> Timing:
        """The run of a new protocol in a new run directory."""
        global _to_insert
        check(fn is step, "protocols of this module run `step`")
        _to_insert = calls
        try:
            return timed_run(lambda folder: Steps(workingDir=folder, numberOfThreads=self.workers), len(calls))
        finally:
            _to_insert = ()


def timed_run(
    make: Callable[[str], Protocol], steps: Optional[int] = None, verify: Callable[[Any], None] = lambda protocol: None
) -> Timing:
    """Seconds of `run()` of a new protocol in a new run directory, whole and engine only.

    `steps`: how many it must have finished (None: all that it has). `verify` looks at its results, when it is over.
    """
    folder = tempfile.mkdtemp(prefix="mpsteps-perf-")
    watch = StopWatch()
    try:
        protocol = make(folder + "/run")
        started = time.perf_counter()
        protocol.run(listeners=[watch])
        took = time.perf_counter() - started
        done = protocol.stepsDone == (protocol.numberOfSteps if steps is None else steps)
        check(protocol.isFinished() and done, f"{protocol}: {protocol.getErrorMessage()}")
        verify(protocol)
        return {WHOLE: took, ENGINE: watch.last - watch.first}
    finally:
        shutil.rmtree(folder)


class StopWatch(Listener):
    """When the first step was handed to a worker, and when the last one was known to have finished."""

    def __init__(self) -> None:
        self.first = 0.0
        self.last = 0.0

    def step_running(self, run: Any, step: int) -> None:
        """Of the first step, this is told when it is dispatched."""
        if not self.first:
            self.first = time.perf_counter()

    def steps_finished(self, run: Any, steps: Sequence[int]) -> None:
        """Several at a time."""
        self.last = time.perf_counter()
