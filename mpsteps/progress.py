"""Listeners that show how a run goes: a live bar on a terminal, plain lines elsewhere, or nothing.

The coordinator calls them from its hot loop, up to a hundred thousand steps a second, so a call only counts; what is
drawn is drawn eight times a second at most, and from the run's own counters. The live bar has a thread of its own
(rich's), the other two start none and look at the clock only when something happens.

A display never ends a run: a stream that is closed, full or too narrow for a character is written to no more, or with
the character escaped. This is the only module that imports rich; without it a terminal gets one line, rewritten.
"""

from __future__ import annotations

import os
import shutil
import time
from types import TracebackType
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, TextIO, Type

from mpsteps._run_figures import RunFigures
from mpsteps._safe_stream import SafeStream
from mpsteps._signals import hidden_cursors
from mpsteps.listeners import Listener
from mpsteps.report import RunReport, format_seconds, shorten

REDRAWS = 8  # a second, at most
LINE_SECONDS = 10.0
"""A plain line at least so often, if anything happens at all; and sooner, when a tenth of the steps was done since."""
LEAST_SECONDS = 1.0  # between two plain lines
MAX_TOLD = 100
"""So many failures are told one by one; later ones are counted, so that a run of bad input is not slowed by telling."""
RUNNING_LINES = 4  # running steps that the live bar shows, the oldest
SHOWN_AFTER = 1.0  # seconds a step has run before it is shown

Clock = Callable[[], float]


class Progress(Listener):
    """Shows nothing: what the others have in common. `close` (or leaving it as a context manager) ends the display,
    also of a run that broke off."""

    trusted = True

    def close(self) -> None:
        """Leave the terminal as it was; calling it again does nothing."""

    def say(self, text: str) -> None:
        """Show lines among what is displayed, without spoiling it."""

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], where: Optional[TracebackType]
    ) -> None:
        self.close()


def make_progress(stream: Optional[TextIO], quiet: bool = False, clock: Clock = time.monotonic) -> Progress:
    """The display that fits `stream`: a live bar on a terminal, a rewritten line there without rich, else plain lines.

    `quiet`, or no stream at all: nothing is shown. `clock`: seconds, never backwards.
    """
    if quiet or stream is None:
        return Progress()
    safe = SafeStream(stream)
    if not safe.isatty() or os.environ.get("TERM") == "dumb":
        return PlainProgress(safe, clock)
    try:
        return LiveProgress(safe, clock)
    except ImportError:
        return LineProgress(safe, clock)


class _Telling(Progress):
    """Counts what happens and tells what a user must know at once. Subclasses say how with `_tell` and `_redraw`.

    Invariant: 0 <= shown steps <= shown total, since `run.done` is read before `run.total`, which never shrinks.
    """

    def __init__(self, stream: SafeStream, clock: Clock = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._run: Any = None
        self._began = 0.0
        self._kept = 0
        self._failed = 0
        self._skipped = 0

    # ------------------------------------------------------------------- what happens

    def run_started(self, run: Any, kept: int) -> None:
        self._run, self._kept, self._began = run, kept, self._clock()
        steps, workers = _count(run.total, "step"), _count(run.workers, "worker")
        self._tell(f"{type(run.protocol).__name__}: {steps}, {workers}, {run.run_dir}")
        if kept:
            self._tell(f"{kept} of {run.total} steps kept from before")

    def steps_finished(self, run: Any, steps: Sequence[int]) -> None:
        self._redraw()

    def step_running(self, run: Any, step: int) -> None:
        self._redraw()

    def step_failed(self, run: Any, step: int, message: str) -> None:
        self._failed += 1
        if self._failed <= MAX_TOLD:
            self._tell(message, bad=True)
        if self._failed == MAX_TOLD:
            self._tell(f"further failures are only counted here; mpsteps steps {run.run_dir} --failed tells all")
        self._redraw()

    def say(self, text: str) -> None:
        self._tell(text)

    def step_retried(self, run: Any, step: int, attempt: int, message: str) -> None:
        self._tell(f"attempt {attempt} of {_name(run, step)} failed, another one follows: {message}")

    def steps_skipped(self, run: Any, steps: Sequence[int], because: int) -> None:
        self._skipped += len(steps)
        if self._failed <= MAX_TOLD:
            verb = "is" if len(steps) == 1 else "are"
            self._tell(f"{_count(len(steps), 'step')} {verb} skipped, since step {because} failed")

    def run_stopping(self, run: Any, reason: str) -> None:
        self._tell(f"stopping: {reason}")

    def run_ended(self, run: Any, report: RunReport) -> None:
        self.close()

    # ------------------------------------------------------------------------ figures

    def _tell(self, text: str, bad: bool = False) -> None:
        """Write a message, of one or several lines; `bad`: a failure."""
        raise NotImplementedError

    def _redraw(self) -> None:
        """Something happened: show it, if it is time."""

    def _figures(self, now: float) -> str:
        """'120 of 200 steps (60 %), 12 steps/s, after 10 s, 7 s left, 2 failed'."""
        done = self._run.done
        total = max(self._run.total, done)
        percent = f" ({100 * done // total} %)" if total else ""
        return ", ".join([f"{done} of {total} steps{percent}", *self._times(done, total, now), *self._losses()])

    def _times(self, done: int, total: int, now: float) -> Iterator[str]:
        """Rate, time that has gone by, and time left."""
        elapsed = now - self._began
        ended = done - self._kept
        if ended > 0 and elapsed > 0:
            yield _rate(ended / elapsed)
        yield f"after {format_seconds(elapsed)}"
        left = self._left(total - done - self._failed - self._skipped, ended, elapsed, now)
        if left is not None:
            yield f"{format_seconds(left)} left"

    def _left(self, steps: int, ended: int, elapsed: float, now: float) -> Optional[float]:
        """Seconds that `steps` steps may take, when `ended` took `elapsed`: as long on average. None: not known."""
        return steps * elapsed / ended if ended > 0 and steps > 0 else None

    def _losses(self) -> Iterator[str]:
        if self._failed:
            yield f"{self._failed} failed"
        if self._skipped:
            yield f"{self._skipped} skipped"


class PlainProgress(_Telling):
    """Lines for a pipe or a file: never more than one a second between the failures, no timers."""

    def __init__(self, stream: SafeStream, clock: Clock = time.monotonic) -> None:
        super().__init__(stream, clock)
        self._told_at = 0.0  # when the last line was written,
        self._told_done = 0  # and how many steps had finished then

    def run_started(self, run: Any, kept: int) -> None:
        super().run_started(run, kept)
        self._told_at, self._told_done = self._began, kept

    def run_ended(self, run: Any, report: RunReport) -> None:
        text = f"{report.status}: {report.finished} of {report.total} steps in {format_seconds(report.seconds)}"
        text += f", {len(report.failed)} failed" if report.failed else ""
        text += f", {report.skipped} skipped" if report.skipped else ""
        self._tell(f"{text}, {format_seconds(report.cpu_seconds)} of CPU")

    def _tell(self, text: str, bad: bool = False) -> None:
        self._stream.write(_printable(text) + "\n")
        self._stream.flush()

    def _redraw(self) -> None:
        now = self._clock()
        waited = now - self._told_at
        if waited < LEAST_SECONDS:
            return
        run = self._run
        tenth = 10 * (run.done - self._told_done) >= run.total
        if waited >= LINE_SECONDS or tenth:
            self._told_at, self._told_done = now, run.done
            self._tell(self._figures(now))


class LineProgress(_Telling):
    """One line on a terminal, rewritten: for those without rich."""

    def __init__(self, stream: SafeStream, clock: Clock = time.monotonic) -> None:
        super().__init__(stream, clock)
        self._next = 0.0  # not to be drawn again before
        self._shown = 0  # characters that stand in the line now
        self._closed = False

    def close(self) -> None:
        """Leave the last figures where they are."""
        if not self._closed and self._run is not None:
            self._draw(self._clock())
            self._stream.write("\n")
            self._stream.flush()
        self._closed, self._shown = True, 0

    def _tell(self, text: str, bad: bool = False) -> None:
        self._stream.write(f"\r{' ' * self._shown}\r" if self._shown else "")
        self._stream.write(_printable(text) + "\n")
        self._shown, self._next = 0, 0.0
        self._stream.flush()

    def _redraw(self) -> None:
        now = self._clock()
        if now >= self._next:
            self._draw(now)

    def _draw(self, now: float) -> None:
        width = max(10, shutil.get_terminal_size().columns - 1)
        text = self._figures(now)[:width]
        self._stream.write(f"\r{text}{' ' * (self._shown - len(text))}")
        self._stream.flush()
        self._shown, self._next = len(text), now + 1.0 / REDRAWS


class LiveProgress(_Telling):
    """A bar, and below it the steps that have been running longest. ImportError without rich.

    `_running` is written by the coordinator's thread and read by the drawing one: single operations on a dict, each
    of them atomic.
    """

    def __init__(self, stream: SafeStream, clock: Clock = time.monotonic) -> None:
        super().__init__(stream, clock)
        from rich.console import Console
        from rich.live import Live

        self._console = Console(
            file=stream,  # type: ignore[arg-type]  # it has all of a stream that a console uses
            force_terminal=True, markup=False, highlight=False, emoji=False,
        )  # fmt: skip
        # What code in this process prints is shown above the bar. (Steps in workers write to their logs.)
        self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=REDRAWS)
        self._running: Dict[int, float] = {}  # step -> when it began
        self._widest = 0  # of the figures so far: a bar that changes its length is hard to read
        self._cursor = -1  # the descriptor of the terminal whose cursor is hidden
        self._of_run: Optional[RunFigures] = None
        self._closed = False

    def run_started(self, run: Any, kept: int) -> None:
        super().run_started(run, kept)
        self._of_run = RunFigures(run)
        self._live.start(refresh=True)
        try:
            self._cursor = self._stream.fileno()
        except (OSError, ValueError):
            return  # it only looks like a terminal
        hidden_cursors.add(self._cursor)

    def close(self) -> None:
        """Draw once more, and give the terminal back."""
        self._running.clear()
        self._closed = True
        self._live.stop()
        hidden_cursors.discard(self._cursor)

    def step_running(self, run: Any, step: int) -> None:
        self._running[step] = self._clock()

    def steps_finished(self, run: Any, steps: Sequence[int]) -> None:
        for step in steps:
            self._running.pop(step, None)
        if self._of_run is not None:
            self._of_run.ended(steps)

    def steps_skipped(self, run: Any, steps: Sequence[int], because: int) -> None:
        if self._of_run is not None:
            self._of_run.lost("skipped", steps)
        super().steps_skipped(run, steps, because)

    def step_failed(self, run: Any, step: int, message: str) -> None:
        self._running.pop(step, None)
        if self._of_run is not None:
            self._of_run.lost("failed", (step,))
        super().step_failed(run, step, message)

    def step_retried(self, run: Any, step: int, attempt: int, message: str) -> None:
        self._running.pop(step, None)
        super().step_retried(run, step, attempt, message)

    def _tell(self, text: str, bad: bool = False) -> None:
        from rich.text import Text

        self._console.print(Text(_printable(text), style="red" if bad else ""), soft_wrap=True)

    def _render(self) -> Any:
        """What stands on the terminal now; called by the drawing thread."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        if self._run is None:
            return Text()
        now, done = self._clock(), self._run.done
        total = max(self._run.total, done)
        numbers = f"{done}/{total} {100 * done // max(total, 1):3d}%"
        figures = Text(", ".join(self._times(done, total, now)), overflow="ellipsis")
        for loss in self._losses():
            figures.append(f", {loss}", style="red")
        self._widest = max(self._widest, figures.cell_len)
        line = Table.grid(padding=(0, 1), expand=True)
        line.add_column(no_wrap=True)
        line.add_column(ratio=1, min_width=10)
        line.add_column(no_wrap=True, min_width=min(self._widest, self._console.width // 2))
        line.add_row(numbers, ProgressBar(total=max(total, 1), completed=done), figures)
        below = [*self._about(now), *self._steps(now)]
        return Group(line, *(Text(text, no_wrap=True, overflow="ellipsis", style="dim") for text in below))

    def _left(self, steps: int, ended: int, elapsed: float, now: float) -> Optional[float]:
        """By what steps of each function took and by the graph, where enough is known; else as long on average."""
        if self._of_run is not None and steps > 0:
            left = self._of_run.left(now, {step: now - began for step, began in list(self._running.items())})
            if left is not None:
                return left
        return super()._left(steps, ended, elapsed, now)

    def _about(self, now: float) -> Iterator[str]:
        """Progress of each function, and what the workers use; of a run that takes a while."""
        if self._of_run is None or self._closed or now - self._began < SHOWN_AFTER:
            return
        parts = [part for part in (self._of_run.machine(now), self._of_run.functions()) if part]
        if parts:
            yield f"  {'; '.join(parts)}"

    def _steps(self, now: float) -> List[str]:
        """The steps that have been running longest, oldest first."""
        running = [(step, now - began) for step, began in list(self._running.items())]
        old = [(step, age) for step, age in running if age >= SHOWN_AFTER]
        lines = [f"  {_name(self._run, step)}  {format_seconds(age)}" for step, age in old[:RUNNING_LINES]]
        if len(old) > RUNNING_LINES:
            lines.append(f"  and {len(old) - RUNNING_LINES} more")
        return lines


def _name(run: Any, step: int) -> str:
    """'step 7 ctfStep('mic_007.mrc',)'."""
    s = run.steps[step - 1]
    return f"step {step} {s.funcName.get()}{shorten(s.getArgs(), 60)}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _rate(rate: float) -> str:
    """'1234 steps/s', '2.5 steps/s', '3.1 steps/min'."""
    if rate < 0.2:
        return f"{60 * rate:.2g} steps/min"
    return f"{rate:.0f} steps/s" if rate >= 10 else f"{rate:.2g} steps/s"


def _printable(text: str) -> str:
    """Control characters, from a program's output or a file's name, must not steer the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)
