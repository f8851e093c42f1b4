"""Consumers of what happens in a run: a listener overrides the calls it wants.

All calls come from the coordinator's thread.
"""

from __future__ import annotations

from typing import Any, Sequence, Tuple

from mpsteps.report import RunReport


class Listener:
    """Does nothing; subclass it. Steps are given by their ids: `run.steps[id - 1]` is the Step.

    `run` is the `mpsteps.run.ProtocolRun`: `run.protocol`, `run.steps`, `run.run_dir`, `run.workers` (their number),
    `run.done` (finished steps), `run.total`.
    """

    def run_started(self, run: Any, kept: int) -> None:
        """Steps are inserted, workers are being started; `kept` steps had finished in an earlier session."""

    def steps_inserted(self, run: Any) -> None:
        """There are more steps than before."""

    def step_running(self, run: Any, step: int) -> None:
        """A worker begins a step."""

    def steps_finished(self, run: Any, steps: Sequence[int]) -> None:
        """These have finished."""

    def step_failed(self, run: Any, step: int, message: str) -> None:
        """An attempt failed and there will be no other."""

    def step_retried(self, run: Any, step: int, attempt: int, message: str) -> None:
        """This attempt failed; another one follows."""

    def steps_skipped(self, run: Any, steps: Sequence[int], because: int) -> None:
        """These cannot run, since that step failed."""

    def run_stopping(self, run: Any, reason: str) -> None:
        """No new steps start; those that run are waited for."""

    def run_ended(self, run: Any, report: RunReport) -> None:
        """It is over."""


Listeners = Tuple[Listener, ...]
