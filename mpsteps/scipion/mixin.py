"""`ProcessSteps`: one protocol in processes, whatever the environment says."""

from __future__ import annotations

from typing import Any

from mpsteps.scipion.executor import in_processes


class ProcessSteps:
    """Mix it into a parallel protocol, before its base class, and its steps run in processes:

        class MyProt(ProcessSteps, Protocol):
            stepsExecutionMode = STEPS_PARALLEL

    With one thread in its form, with steps in a queue, or in serial mode it runs as it would without.
    """

    def setStepsExecutor(self, executor: Any = None) -> None:
        """As pyworkflow's, with a ProcessStepExecutor in the place of a ThreadStepExecutor."""
        super().setStepsExecutor(in_processes(executor))  # type: ignore[misc]  # the protocol has it
