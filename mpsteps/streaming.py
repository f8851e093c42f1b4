"""`ProtStreamingBase`: protocols whose steps are inserted while input arrives, in Scipion's newer style.

One step, the generator, runs as long as input may come and inserts the others. It runs in the coordinator process,
beside the workers, so that it takes none of them: one thread is enough here, where Scipion needs two.
"""

from __future__ import annotations

import datetime
import time
from typing import Any, List

from mpsteps.constants import STEPS_PARALLEL
from mpsteps.params import IntParam
from mpsteps.protocol import Protocol
from mpsteps.steps import step


class ProtStreamingBase(Protocol):
    """Subclasses write `stepsGeneratorStep`, and define outputs in the steps that it inserts."""

    stepsExecutionMode = STEPS_PARALLEL

    def _defineStreamingParams(self, form: Any) -> None:
        """Add the section 'Streaming', with `streamingSleepOnWait`, to the form."""
        form.addSection("Streaming")
        form.addParam(
            "streamingSleepOnWait",
            IntParam,
            default=10,
            label="Sleep when waiting (secs)",
            help="How many seconds to wait before looking for new input again.",
        )

    def _insertAllSteps(self) -> None:
        # The time makes the generator another step in every session: a resumed run looks for new input, too.
        self._insertFunctionStep(self.resumableStepGeneratorStep, str(datetime.datetime.now()), needsGPU=False)

    @step(local=True)
    def resumableStepGeneratorStep(self, ts: str) -> None:
        """The step that runs `stepsGeneratorStep`; `ts` is the time at which it was inserted."""
        self.stepsGeneratorStep()

    def stepsGeneratorStep(self) -> None:
        """Look for input, and insert steps for what has come, until no more can come."""

    def _getStreamingSleepOnWait(self) -> int:
        """Seconds between two looks; 0 if the form does not have them."""
        return int(self.getAttributeValue("streamingSleepOnWait", 0))

    def _streamingSleepOnWait(self) -> None:
        """Wait before the next look for input."""
        seconds = self._getStreamingSleepOnWait()
        if seconds > 0:
            self.info(f"Waiting {seconds} s before looking for new input again")
            time.sleep(seconds)

    def _validateThreads(self, messages: List[str]) -> None:
        """In Scipion: asks for a second thread, since the generator takes one. Here it takes none."""
