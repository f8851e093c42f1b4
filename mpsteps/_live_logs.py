"""What steps write, shown while they run, each line with its step in front: `mpsteps run --logs`.

A worker's output is in a file of its own while a step runs, and is moved to the step's log when the step ends. So what
a running step has written is looked for there, a few times a second, and what is missing when it has ended is taken
from its log. All of it is done in the coordinator's thread, which knows what runs where; another one only keeps time.
"""

from __future__ import annotations

import os
import re
import threading
from typing import Any, Callable, Dict, Sequence

from mpsteps._output import step_log
from mpsteps.listeners import Listener
from mpsteps.report import RunReport

LOOK_SECONDS = 0.25
MOST_BYTES = 1 << 20
"""So much of a step's output is shown at once; of more, the last part, and that something is missing is said."""


class LiveLogs(Listener):
    """Shows lines by calling `tell`. `close` ends its thread; it may be called again."""

    trusted = True

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._base: Dict[int, int] = {}  # step -> bytes of its log that were there before its present attempt
        self._shown: Dict[int, int] = {}  # step -> bytes of its present attempt that have been shown
        self._rest: Dict[int, bytes] = {}  # step -> the beginning of a line that is not whole yet
        self._ended = threading.Event()
        self._thread = threading.Thread(target=lambda: None)
        self._waiting = False  # a look has been posted and not taken yet

    def close(self) -> None:
        """Nothing more is shown."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    # ------------------------------------------------------------------------------------------------ the calls

    def run_started(self, run: Any, kept: int) -> None:
        for entry in os.scandir(os.path.join(run.run_dir, "logs")):
            found = re.match(r"step-(\d+)\.log$", entry.name)
            if found:
                self._base[int(found.group(1))] = entry.stat().st_size
        if run.coordinator.engine.by_value:
            self._thread = threading.Thread(target=self._keep_time, args=(run,), name="mpsteps-logs", daemon=True)
            self._thread.start()

    def steps_finished(self, run: Any, steps: Sequence[int]) -> None:
        for step in steps:
            self._finish(run, step)

    def step_failed(self, run: Any, step: int, message: str) -> None:
        self._finish(run, step)

    def step_retried(self, run: Any, step: int, attempt: int, message: str) -> None:
        self._finish(run, step)

    def run_ended(self, run: Any, report: RunReport) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------- while they run

    def _keep_time(self, run: Any) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            if not self._waiting:
                self._waiting = True
                run.coordinator.post(lambda: self._look(run))

    def _look(self, run: Any) -> None:
        """In the coordinator's thread: what the running steps have written since."""
        self._waiting = False
        engine = run.coordinator.engine
        for worker, lane in list(run.coordinator.scheduler.lanes()):
            path = engine.log(worker) if lane else None
            step = engine.running(worker) if path else None
            if step is None or path is None:
                continue
            try:
                data = _read(path, self._shown.get(step, 0))
            except OSError:
                continue  # the worker has just come, or gone
            if data and engine.running(worker) == step:  # else it may be the next one's
                self._shown[step] = self._shown.get(step, 0) + len(data)
                self._show(run, step, data)

    def _finish(self, run: Any, step: int) -> None:
        """It has ended: the rest is in its log."""
        path = step_log(os.path.join(run.run_dir, "logs"), step)
        begin = self._base.get(step, 0) + self._shown.pop(step, 0)
        try:
            size = os.stat(path).st_size
            skipped = max(0, size - begin - MOST_BYTES)
            data = _read(path, begin + skipped) if size > begin else b""
        except FileNotFoundError:
            data, size, skipped = b"", 0, 0  # it has written nothing
        except OSError as error:
            self._line(run, step, f"(its log cannot be read: {error.strerror})")
            return
        if skipped:
            self._line(run, step, f"({skipped} bytes are not shown; all of it: {path})")
        if size:
            self._base[step] = size
        self._show(run, step, data)
        rest = self._rest.pop(step, b"")
        if rest:
            self._line(run, step, rest.decode("utf-8", "replace"))

    def _show(self, run: Any, step: int, data: bytes) -> None:
        *lines, rest = (self._rest.pop(step, b"") + data).split(b"\n")
        if rest:
            self._rest[step] = rest
        if lines:
            self._line(run, step, *(line.decode("utf-8", "replace").rstrip("\r") for line in lines))

    def _line(self, run: Any, step: int, *lines: str) -> None:
        start = f"[{step} {run.steps[step - 1].funcName.get()}] "
        self._tell("\n".join(start + line for line in lines))


def _read(path: str, begin: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(begin)
        return file.read(MOST_BYTES)
