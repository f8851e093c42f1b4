"""GPU slots, by pyworkflow's own code: which step has which GPUs is in the executor's `gpuDict`.

From pyworkflow 3.9 on a step that needs GPUs books a free slot, under its id. In 3.8 each thread has its GPUs for good,
under its number.
"""

from __future__ import annotations

from typing import Any, List, Optional, Tuple

from mpsteps._core.steps import Demand
from mpsteps.errors import UsageError

GPU = "gpu"


def needs_gpu(step: Any) -> bool:
    """Whether it was inserted with needsGPU (which is the default, and all there is in older versions)."""
    asked = getattr(step, "needsGPU", None)
    return bool(asked()) if asked is not None else True


class Gpus:
    """Those of one executor."""

    def __init__(self, executor: Any) -> None:
        self._executor = executor
        self._books = hasattr(executor, "getFreeGpuSlot")
        self.slots = len(executor.gpuDict) if self._books else 0

    def demand(self, step: Any) -> Demand:
        """What a step needs beside a turn of a worker. Raises UsageError if it needs a GPU and there never is one."""
        if not self._books or not self._executor.gpuList or not needs_gpu(step):
            return Demand(alone=True)
        if not self.slots:
            raise UsageError(
                f"step {step} needs a GPU, and the list of GPUs has none that can be used: {self._executor.gpuList}"
            )
        return Demand(alone=True, tokens=((GPU, 1),))

    def book(self, place: int, number: int, step: Any) -> Tuple[int, Optional[List[int]]]:
        """The id under which the step that begins at `place` is known to pyworkflow's code, and its GPUs."""
        if not self._books:
            return place - 1, self._executor.gpuDict.get(place - 1)
        thread_id = step.getObjId() or number
        wants = self._executor.gpuList and needs_gpu(step)
        return thread_id, self._executor.getFreeGpuSlot(thread_id) if wants else None

    def free(self, thread_id: int) -> None:
        """A step has ended."""
        if self._books:
            self._executor.freeGpusSlot(thread_id)
