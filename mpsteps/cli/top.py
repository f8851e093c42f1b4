"""`mpsteps top`: a run of another process, live, from its journal."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sys
import time
from typing import Any, Dict, Iterator, List

import psutil

from mpsteps._forecast import Tally
from mpsteps._journal_follow import Follower
from mpsteps._live import LiveRun
from mpsteps._rundir import RunDirectory
from mpsteps.cli import output
from mpsteps.cli.history import coordinator_lives, look_for_run
from mpsteps.errors import JournalError, UsageError
from mpsteps.report import format_bytes, format_seconds

_INTERVAL = 0.5  # seconds between two looks
_FORECAST_SECONDS = 5.0  # the time left is worked out anew so often
_MOST_FUNCTIONS, _MOST_RUNNING, _BAR = 12, 12, 30
_OPEN, _CLOSE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"  # the alternate screen, without a cursor


def top_command(args: Any) -> int:
    """`mpsteps top RUN`. Exit code: that of the run, if one waits for its end; else 0."""
    directory = look_for_run(args.run)
    view = _View(directory)
    try:
        live = sys.stdout is not None and sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and not args.once
        if not live:
            view.refresh()
            if not view.over:
                view.lines(0, 0)  # CPU time is told since the last look: this is the first
                time.sleep(_INTERVAL)
                view.refresh()
            output.put("\n".join(view.lines(100_000, 100_000)))
            return 0
        return _watch(view)
    except JournalError as error:
        raise UsageError(str(error)) from error
    finally:
        view.close()


def _watch(view: _View) -> int:
    """Redraw until the run has ended; afterwards the last picture stays on the terminal."""
    with _full_screen():
        try:
            while True:
                view.refresh()
                columns, rows = (given or usual for given, usual in zip(shutil.get_terminal_size(), (80, 24)))
                lines = [line[: columns - 1] for line in view.lines(columns - 1, rows - 1)][: rows - 1]
                sys.stdout.write("\x1b[H" + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J")
                sys.stdout.flush()
                if view.over:
                    break
                time.sleep(_INTERVAL)
        except KeyboardInterrupt:
            pass  # whoever watches leaves; the run goes on
        except OSError:
            return 1  # the terminal is gone
    output.put("\n".join(view.lines(100_000, 100_000)))
    if not view.over:
        output.note("mpsteps top: the run goes on")
        return 130
    return 0 if view.run.status in ("finished", "interactive") else 1


@contextlib.contextmanager
def _full_screen() -> Iterator[None]:
    """The terminal as it was comes back, also after SIGTERM."""
    before = signal.signal(signal.SIGTERM, _leave)
    sys.stdout.write(_OPEN)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.write(_CLOSE)
            sys.stdout.flush()
        signal.signal(signal.SIGTERM, before)


def _leave(number: int, _frame: Any) -> None:
    raise SystemExit(128 + number)


class _View:
    """What is known of the run, and the lines that show it."""

    def __init__(self, directory: RunDirectory) -> None:
        self.path = directory.path
        self.run = LiveRun()
        self.over = False
        self._gone = False
        self._follower = Follower(directory.journal_path)
        self._processes: Dict[int, psutil.Process] = {}
        self._now = 0.0
        self._left: Any = None
        self._left_at = float("-inf")

    def close(self) -> None:
        """The journal is not read any more."""
        self._follower.close()

    def refresh(self) -> None:
        """Look at the journal again."""
        self.run.feed(self._follower.news())
        run, self._now = self.run, time.time()
        alive = run.status == "running" and coordinator_lives(run.info)
        if run.status == "running" and not alive:
            self.run.feed(self._follower.news())  # it may have ended between the two looks
        self._gone = run.status == "running" and not alive
        self.over = run.status != "running" or self._gone
        if self._now - self._left_at >= _FORECAST_SECONDS:
            self._left, self._left_at = run.seconds_left(self._now), self._now

    def lines(self, width: int, height: int) -> List[str]:
        """The picture, at most about `height` lines."""
        run = self.run
        lines = [*self._head(), ""]
        room = max(3, height - len(lines) - 4)
        functions = list(self._functions(width))
        running = list(self._running()) if not self.over else []
        most = max(2, min(len(functions), room - min(len(running), room // 2)))
        lines += _cut(functions, min(most, _MOST_FUNCTIONS), "functions")
        if running:
            lines += ["", "running:", *_cut(running, min(max(1, room - most), _MOST_RUNNING), "steps")]
        if run.failures:
            lines += ["", "failed:"]
            lines += [output.printable(f"  step {step} {func}: {why}") for step, func, why in list(run.failures)[-3:]]
        return lines

    def _head(self) -> Iterator[str]:
        run = self.run
        name = output.printable(str(run.info.get("class") or "run"))
        status = "cut off: its process is gone" if self._gone else run.status
        yield f"{name} {status}, {self.path}"
        total, done = run.total, run.done
        share = done / total if total else 0.0
        parts = [f"{done} of {total} steps ({100 * share:.0f} %)"]
        end = self._now if not self.over else run.last
        parts.append(f"after {format_seconds(max(0.0, end - float(run.info.get('started') or end)))}")
        rate = run.rate(self._now) if not self.over else None
        if rate is not None:
            parts.append(f"{rate:.0f} steps/s" if rate >= 10 else f"{rate:.2g} steps/s" if rate >= 1 else
                         f"a step every {format_seconds(1 / rate)}")  # fmt: skip
        if self._left is not None and not self.over:
            parts.append(f"about {format_seconds(max(0.0, self._left - (self._now - self._left_at)))} left")
        yield ", ".join(parts)
        if not self.over:
            yield self._machine()
        elif self._gone:
            yield f"to run what is missing: mpsteps resume {self.path}"

    def _machine(self) -> str:
        """CPU and memory of the workers and of the programs they run."""
        run = self.run
        count = run.info.get("threads", "?")
        workers = "1 worker" if count == 1 else f"{count} workers"
        if run.info.get("host") != socket.gethostname():
            return f"{workers} on {run.info.get('host')}"
        cpu = memory = 0.0
        pids = set(run.pids()) - {run.info.get("pid")}
        seen: Dict[int, psutil.Process] = {}
        for pid in pids:
            for process in self._tree(pid):
                with contextlib.suppress(psutil.Error):
                    cpu += process.cpu_percent(None)
                    memory += process.memory_info().rss
                    seen[process.pid] = process
        self._processes = seen
        return f"{workers}: {cpu:.0f} % of a core, {format_bytes(memory)}"

    def _tree(self, pid: int) -> List[psutil.Process]:
        """A worker and what it has started; known ones as they were, since they remember their CPU time."""
        try:
            top = self._processes.get(pid) or psutil.Process(pid)
            return [top, *(self._processes.get(child.pid, child) for child in top.children(recursive=True))]
        except psutil.Error:
            return []

    def _functions(self, width: int) -> Iterator[str]:
        tallies = self.run.functions
        name_width = min(32, max(map(len, tallies), default=0))
        for func, tally in tallies.items():
            yield f"{output.printable(func)[:name_width].ljust(name_width)}  {_bar(tally)}  {_figures(tally)}"

    def _running(self) -> Iterator[str]:
        for r in self.run.running():
            mean = self.run.functions[r.func].mean
            usual = f" (usually {format_seconds(mean)})" if mean is not None else ""
            age = format_seconds(max(0.0, self._now - r.since))
            yield f"  step {r.step} {output.printable(r.func)}  {age}{usual}  worker {r.worker}"


def _bar(tally: Tally) -> str:
    done = round(_BAR * tally.finished / tally.total) if tally.total else 0
    bad = min(_BAR - done, -(-_BAR * (tally.failed + tally.skipped) // max(1, tally.total)))
    return f"[{'#' * done}{'x' * bad}{'.' * (_BAR - done - bad)}]"


def _figures(tally: Tally) -> str:
    parts = [f"{tally.finished}/{tally.total}"]
    for number, word in ((tally.kept, "kept"), (tally.failed, "failed"), (tally.skipped, "skipped")):
        if number:
            parts.append(f"{number} {word}")
    mean = tally.mean
    if mean is not None:
        parts.append(f"{format_seconds(mean)} each" if mean >= 0.1 else f"{mean * 1e3:.2g} ms each")
    return ", ".join(parts)


def _cut(lines: List[str], most: int, what: str) -> List[str]:
    return lines if len(lines) <= most else [*lines[:most], f"  and {len(lines) - most} more {what}"]
