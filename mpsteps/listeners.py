"""Consumers of what happens in a run: a listener overrides the calls it wants.

All calls come from the coordinator's thread, in the order in which things happen, so a call must not take long: the
run waits for it. A listener that raises is told of in the protocol's log and is not called again: whoever watches a run
cannot break it.

::

    class Mail(mpsteps.Listener):
        def step_failed(self, run, step, message):
            send_mail(f"{run.run_dir}: {message}")

    protocol.run(listeners=[Mail()])
"""

from __future__ import annotations

from typing import Any, Callable, Sequence, Tuple

from mpsteps.report import RunReport


class Listener:
    """Does nothing; subclass it. Steps are given by their ids: `run.steps[id - 1]` is the Step.

    `run` is the run: `run.protocol`, `run.steps`, `run.run_dir`, `run.workers` (their number),
    `run.done` (finished steps), `run.total`.
    """

    trusted = False
    """Set by those of mpsteps itself, which never raise: they are called without a guard, since that costs time."""

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

CALLS = tuple(name for name in vars(Listener) if not name.startswith("_") and name != "trusted")


def guarded(listeners: Sequence[Listener], warn: Callable[[str], None]) -> Listeners:
    """The listeners as the run calls them: none can break it. `warn` is told of the first error of each."""
    return tuple(listener if listener.trusted else _Guarded(listener, warn) for listener in listeners)


class _Guarded(Listener):
    """Passes calls on, until one of them raises."""

    def __init__(self, listener: Listener, warn: Callable[[str], None]) -> None:
        self._listener = listener
        self._warn = warn
        for name in CALLS:
            if getattr(type(listener), name, None) is not getattr(Listener, name):
                setattr(self, name, self._guard(name))

    def _guard(self, name: str) -> Callable[..., None]:
        call = getattr(self._listener, name)

        def guard(*args: Any) -> None:
            try:
                call(*args)
            except Exception as error:
                for other in CALLS:
                    setattr(self, other, _silent)
                self._warn(
                    f"listener {type(self._listener).__name__} failed in {name} and is not called any more: "
                    f"{type(error).__name__}: {error}"
                )

        return guard


def _silent(*_args: Any) -> None:
    """In the place of a call that nobody wants."""
