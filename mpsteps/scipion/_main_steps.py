"""Steps in the main process: each in a thread of its own, as Scipion's own executor runs all of them."""

from __future__ import annotations

import logging
import threading
from typing import Any, Callable, Optional

from mpsteps.scipion._gpus import needs_gpu

logger = logging.getLogger(__name__)


class MainStep(threading.Thread):
    """Runs one step and calls `ended(id, error text or None)`. Has what pyworkflow asks the thread of a step for.

    A step that calls sys.exit has failed, and says so.
    """

    def __init__(self, number: int, step: Any, thread_id: int, ended: Callable[[int, Optional[str]], None]) -> None:
        super().__init__(name=f"mpsteps-step-{number}", daemon=True)
        self.number = number
        self.step = step
        self.thId = thread_id
        self._ended = ended

    def needsGPU(self) -> bool:
        """Whether its step does."""
        return needs_gpu(self.step)

    def run(self) -> None:
        """In the thread."""
        error: Optional[str] = None
        try:
            self.step._run()
        except SystemExit as problem:
            error = f"step {self.number} called sys.exit({'' if problem.code is None else repr(problem.code)})"
            logger.error(error)
        except BaseException as problem:
            error = str(problem) or type(problem).__name__
            logger.error("Step %s failed in the main process.", self.number, exc_info=problem)
        self._ended(self.number, error)
