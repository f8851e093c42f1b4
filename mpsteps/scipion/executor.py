"""`ProcessStepExecutor`: to Scipion a ThreadStepExecutor, to protocols processes."""

from __future__ import annotations

import logging
import os
from typing import Any, Callable, List, Optional, Sequence

from pyworkflow.protocol.executor import ThreadStepExecutor

from mpsteps._machine import usable_cores
from mpsteps.errors import UsageError

logger = logging.getLogger(__name__)


class ProcessStepExecutor(ThreadStepExecutor):  # type: ignore[misc]  # pyworkflow is not typed
    """Runs a protocol's steps in up to `nThreads` processes at the same time.

    `hostConfig` and `gpuList` as in ThreadStepExecutor. (Scipion gives it one less than the threads of the form, and
    counts its own main thread as the missing one.) Raises UsageError for less than 1.
    """

    def __init__(self, hostConfig: Any, nThreads: int, gpuList: Optional[Sequence[int]] = None, **kwargs: Any) -> None:
        if isinstance(nThreads, bool) or not isinstance(nThreads, int) or nThreads < 1:
            raise UsageError(f"a ProcessStepExecutor needs a number of processes of at least 1, not {nThreads!r}")
        self.protocol: Any = None
        super().__init__(hostConfig, nThreads, gpuList=gpuList, **kwargs)

    def runSteps(
        self, steps: List[Any], stepStartedCallback: Callable[[Any], Any], stepFinishedCallback: Callable[[Any], Any],
        stepsCheckCallback: Callable[[], Any], stepsCheckSecs: float = 5,
    ) -> None:  # fmt: skip
        """Run the steps of the protocol, which may become more meanwhile, in the order that their prerequisites leave.

        Callbacks are called in this thread. Of a step that fails it is called when those that ran beside it have ended
        and are recorded: then the protocol has failed.
        """
        from mpsteps.scipion._run import Run

        if self.protocol is None:
            raise UsageError("a ProcessStepExecutor runs the steps of a protocol: call setProtocol before runSteps")
        logger.info("mpsteps: steps run in up to %d processes (%d cores)", self.numberOfProcs, usable_cores())
        protocol: Any = self.protocol
        try:
            Run(self, protocol, steps, stepStartedCallback, stepFinishedCallback, stepsCheckCallback,
                float(stepsCheckSecs)).run()  # fmt: skip
        finally:
            self.protocol = protocol  # a protocol that runs others lends them its executor


def in_processes(executor: Any) -> Any:
    """The executor that takes the place of `executor`: a ProcessStepExecutor for a ThreadStepExecutor, any other (one
    of steps in a queue, a serial one) itself."""
    if type(executor) is not ThreadStepExecutor:
        return executor
    ours = ProcessStepExecutor(executor.hostConfig, executor.numberOfProcs, gpuList=executor.gpuList)
    logger.info("mpsteps: ProcessStepExecutor in the place of ThreadStepExecutor (process %d)", os.getpid())
    return ours
