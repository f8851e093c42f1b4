"""The events of a run as JSON lines: the first listener for other programs, and an example for one's own.

One object a line, written when it happens and whole, so that `tail -f` and the like can follow. All have `event` (the
name of the listener's call, one line for each step) and `time` (seconds since the epoch); those of steps have `step`
and `function`; the others are seen below.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any, Dict, List, Sequence

from mpsteps.errors import UsageError
from mpsteps.listeners import Listener
from mpsteps.report import RunReport, shorten

MOST_ARGUMENTS = 200  # characters


class JsonLines(Listener):
    """Appends to the file `path`, which is made with mode 0600 if it is not there. UsageError if that fails.

    A file that cannot be written to any more (a full disk, a reader that is gone) does not end the run: the protocol's
    log has a warning, and nothing more is written. `close` may be called again.
    """

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        try:
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise UsageError(
                f"cannot write events to {path!r}: {error.strerror}; choose another file with --events"
            ) from error

    def close(self) -> None:
        """Nothing more is written."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    # ------------------------------------------------------------------------------------------------ the calls

    def run_started(self, run: Any, kept: int) -> None:
        self._write(run, [{
            "event": "run_started", "protocol": type(run.protocol).__name__, "run_dir": os.path.abspath(run.run_dir),
            "workers": run.workers, "total": run.total, "kept": kept,
        }])  # fmt: skip

    def steps_inserted(self, run: Any) -> None:
        self._write(run, [{"event": "steps_inserted", "total": run.total}])

    def step_running(self, run: Any, step: int) -> None:
        self._write(run, [self._of(run, "step_running", step, arguments=_arguments(run, step))])

    def steps_finished(self, run: Any, steps: Sequence[int]) -> None:
        self._write(run, [self._of(run, "step_finished", step, seconds=_seconds(run, step)) for step in steps])

    def step_failed(self, run: Any, step: int, message: str) -> None:
        self._write(run, [self._of(run, "step_failed", step, arguments=_arguments(run, step), message=message)])

    def step_retried(self, run: Any, step: int, attempt: int, message: str) -> None:
        self._write(run, [self._of(run, "step_retried", step, attempt=attempt, message=message)])

    def steps_skipped(self, run: Any, steps: Sequence[int], because: int) -> None:
        self._write(run, [self._of(run, "step_skipped", step, because=because) for step in steps])

    def run_stopping(self, run: Any, reason: str) -> None:
        self._write(run, [{"event": "run_stopping", "reason": reason}])

    def run_ended(self, run: Any, report: RunReport) -> None:
        told = {key: value for key, value in report._asdict().items() if key not in ("failed", "protocol", "run_dir")}
        self._write(run, [{"event": "run_ended", **told, "failed": [f.step for f in report.failed]}])
        self.close()

    # ------------------------------------------------------------------------------------------------ writing

    @staticmethod
    def _of(run: Any, event: str, step: int, **more: Any) -> Dict[str, Any]:
        return {"event": event, "step": step, "function": run.steps[step - 1]._funcName, **more}

    def _write(self, run: Any, events: List[Dict[str, Any]]) -> None:
        if self._fd < 0:
            return
        now = round(time.time(), 6)
        text = "".join(json.dumps({**event, "time": now}, ensure_ascii=True, default=str) + "\n" for event in events)
        data = memoryview(text.encode("ascii"))
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError as error:
            self.close()
            run.protocol.warning(f"events are not written to {self.path!r} any more: {error.strerror}")


def _arguments(run: Any, step: int) -> str:
    return shorten(run.steps[step - 1].getArgs(), MOST_ARGUMENTS)


def _seconds(run: Any, step: int) -> Any:
    s = run.steps[step - 1]
    return None if s._started is None or s._ended is None else round(s._ended - s._started, 6)
