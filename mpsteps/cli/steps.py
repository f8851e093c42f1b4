"""`mpsteps steps`: the steps of a run as a table, as JSON, or as an SQLite file."""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
import sys
from collections import Counter
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from mpsteps._export import export_sqlite
from mpsteps._journal import RunHistory, StepRecord
from mpsteps._output import step_log
from mpsteps._rundir import RunDirectory
from mpsteps._traffic import Traffic
from mpsteps.cli import output
from mpsteps.cli.history import is_alive, open_run
from mpsteps.errors import UsageError
from mpsteps.report import format_bytes, shorten

_TITLES = ("id", "function", "arguments", "status", "attempts", "seconds", "cpu", "worker", "after")
_RIGHT = (0, 4, 5, 6, 7)
_ARGUMENTS = 2
_MORE = 7  # where columns come in that only steps have which took a while
_MOST_ARGUMENTS = 60  # characters, where there is no terminal that says how much fits
_MOST_AFTER = 20
_LOG_LINES = 20
_FAILED = ("failed", "lost")
_STATUSES = ("new", "running", "in doubt", "finished", "failed", "lost", "skipped", "aborted")
_Key = Callable[[StepRecord], Any]
SORT_KEYS: Dict[str, Tuple[_Key, bool]] = {
    "id": (lambda s: s.id, False),
    "function": (lambda s: (s.func, s.id), False),
    "status": (lambda s: (s.status, s.id), False),
    "started": (lambda s: s.started, False),
    "seconds": (lambda s: s.seconds, True),
    "cpu": (lambda s: s.cpu_seconds, True),
    "memory": (lambda s: s.peak_kib, True),
    "read": (lambda s: s.traffic and s.traffic.read, True),
    "written": (lambda s: s.traffic and s.traffic.written, True),
    "moved": (lambda s: s.traffic and s.traffic.received + s.traffic.returned, True),
    "attempts": (lambda s: s.attempts, True),
}
"""What steps can be sorted by, and whether the largest comes first; what is not known comes last."""


class _Column(NamedTuple):
    """Bytes of steps that took a while. `always`: also where steps are not sorted by what was read, written, moved."""

    title: str
    of: Callable[[StepRecord], Optional[int]]
    always: bool = False


_COLUMNS = (
    _Column("memory", lambda s: s.peak_kib * 1024 if s.peak_kib else None, always=True),
    _Column("read", lambda s: s.traffic.read if s.traffic else None),
    _Column("written", lambda s: s.traffic.written if s.traffic else None),
    _Column("to worker", lambda s: s.traffic.received if s.traffic else None),
    _Column("back", lambda s: s.traffic.returned if s.traffic else None),
)


def steps_command(args: Any) -> int:
    """`mpsteps steps RUN`."""
    directory, history = open_run(args.run)
    steps = [history.steps[number] for number in sorted(history.steps)]
    alive = is_alive(history)
    chosen = _chosen(args, steps, alive)
    if args.sqlite:
        _export(args, history, len(steps))
    if args.json:
        output.put(json.dumps(_as_dict(directory, history, chosen, alive), ensure_ascii=False, default=str))
    elif not args.sqlite:
        _put_table(args, directory, history, chosen, alive)
    return 0


def _chosen(args: Any, steps: List[StepRecord], alive: bool) -> List[StepRecord]:
    """Those that the options ask for, in the order that they ask for."""
    wanted = set(_FAILED) if args.failed else set()
    for text in args.status:
        wanted.update(word.strip().replace("-", " ") for word in text.split(","))
    unknown = wanted - set(_STATUSES)
    if unknown:
        raise UsageError(f"there is no status {sorted(unknown)[0]!r}; there are {', '.join(_STATUSES)}")
    chosen = [s for s in steps if not wanted or _status(s, alive) in wanted]
    if args.function:
        chosen = [s for s in chosen if any(fnmatch.fnmatchcase(s.func, pattern) for pattern in args.function)]
        if not chosen and not any(fnmatch.fnmatchcase(s.func, pattern) for s in steps for pattern in args.function):
            functions = ", ".join(sorted({s.func for s in steps})[:10]) or "none yet"
            raise UsageError(f"no step has the function {args.function[0]!r}; there are {functions}")
    if args.sort:
        key, largest_first = SORT_KEYS[args.sort]
        known = sorted((s for s in chosen if key(s) is not None), key=key, reverse=largest_first)
        chosen = [*known, *(s for s in chosen if key(s) is None)]
    return chosen[: args.limit] if args.limit else chosen


def _export(args: Any, history: RunHistory, count: int) -> None:
    if not os.path.isdir(os.path.dirname(os.path.abspath(args.sqlite))):
        raise UsageError(f"cannot export the run to {args.sqlite!r}: its folder does not exist; choose another file")
    export_sqlite(history, args.sqlite)
    say = output.note if args.json else output.put
    say(f"exported {_count(count, 'step')} of {args.run} to {args.sqlite}")


def _as_dict(directory: RunDirectory, history: RunHistory, steps: List[StepRecord], alive: bool) -> Dict[str, Any]:
    session = history.sessions[-1] if history.sessions else {}
    return {
        "run_dir": directory.path, "protocol": session.get("class", ""), "status": _run_status(history, alive),
        "message": history.error, "sessions": len(history.sessions), "total": len(history.steps),
        "steps": [
            {
                "step": s.id, "function": s.func, "arguments": s.args, "status": _status(s, alive),
                "attempts": s.attempts, "started": s.started, "seconds": s.seconds, "cpu_seconds": s.cpu_seconds,
                "peak_kib": s.peak_kib, "worker": s.worker, "prerequisites": s.prerequisites, "error": s.error,
                "files": (s.result or {}).get("files", []),
                **{f"{name}_bytes": s.traffic and getattr(s.traffic, name) for name in Traffic._fields},
            }
            for s in steps
        ],
    }  # fmt: skip


def _put_table(
    args: Any, directory: RunDirectory, history: RunHistory, steps: List[StepRecord], alive: bool
) -> None:
    width = shutil.get_terminal_size().columns if sys.stdout and sys.stdout.isatty() else 0
    columns = [c for c in _COLUMNS if any(c.of(s) is not None for s in steps)]
    if args.sort not in ("read", "written", "moved"):
        columns = [c for c in columns if c.always]
    titles = [*_TITLES[:_MORE], *(c.title for c in columns), *_TITLES[_MORE:]]
    rows = [_row(s, alive, 10_000 if width else _MOST_ARGUMENTS, columns) for s in steps]
    right = [c + (len(columns) if c >= _MORE else 0) for c in _RIGHT] + list(range(_MORE, _MORE + len(columns)))
    lines = [output.table(titles, rows, right, _ARGUMENTS, width)] if rows else []
    if args.failed:
        for step in steps:
            lines += ["", *_why(step, directory)]
    if 0 < len(steps) < len(history.steps) and not args.failed:
        lines += ["", f"{len(steps)} of {_count(len(history.steps), 'step')} shown"]
    lines += [*([""] if lines else []), *_summary(args, history, alive)]
    output.put("\n".join(lines))


def _row(step: StepRecord, alive: bool, most: int, columns: Sequence[_Column]) -> Sequence[str]:
    amounts = [column.of(step) for column in columns]
    return (
        str(step.id), output.printable(step.func), _arguments(step.args, most), _status(step, alive),
        str(step.attempts) if step.attempts else "-", _seconds(step.seconds), _seconds(step.cpu_seconds),
        *("-" if n is None else format_bytes(n) for n in amounts), str(step.worker or "-"), _ranges(step.prerequisites),
    )  # fmt: skip


def _arguments(args: Any, most: int) -> str:
    values = args if isinstance(args, list) else [args]
    text = output.printable(", ".join(shorten(value, most) for value in values))
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _seconds(seconds: Any) -> str:
    return "-" if seconds is None else f"{seconds:.3f}" if seconds < 10 else f"{seconds:.1f}"


def _status(step: StepRecord, alive: bool) -> str:
    """The journal's word for it, but what was running when the coordinator died is in doubt."""
    return "in doubt" if step.status == "running" and not alive else step.status


def _run_status(history: RunHistory, alive: bool) -> str:
    return "cut off" if history.status == "running" and not alive else history.status


def _ranges(numbers: Sequence[int]) -> str:
    """1, 2, 3, 7 as '1-3,7'; what is long is cut, and how many there are is said."""
    parts: List[List[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    text = ",".join("-".join(map(str, part)) for part in parts)
    return text if len(text) <= _MOST_AFTER else f"{text[:10].rpartition(',')[0]},... ({len(numbers)})"


def _why(step: StepRecord, directory: RunDirectory) -> Iterator[str]:
    """All that the journal knows of a failure."""
    error = step.error or {}
    yield f"step {step.id} {output.printable(step.func)}({_arguments(step.args, 200)}) {step.status}: " + str(
        error.get("cause") or error.get("message") or "unknown reason"
    )
    log = [output.printable(line) for line in str(error.get("log") or "").splitlines()][-_LOG_LINES:]
    for title, lines in (("traceback", str(error.get("traceback") or "").splitlines()), ("its last output", log)):
        if lines:
            yield f"  {title}:"
            yield from (f"    {output.printable(line)}" for line in lines)
    path = step_log(directory.logs, step.id)
    if os.path.exists(path):
        yield f"  all its output: {path}"


def _summary(args: Any, history: RunHistory, alive: bool) -> Iterator[str]:
    counts = Counter(_status(step, alive) for step in history.steps.values())
    told = ", ".join(f"{number} {status}" for status, number in counts.most_common())
    name = history.sessions[-1].get("class") if history.sessions else "run"
    yield f"{name} {_run_status(history, alive)}, {_count(len(history.steps), 'step')}{': ' if told else ''}{told}"
    failed = sum(counts[status] for status in _FAILED)
    if failed and not args.failed:
        yield f"why they failed: mpsteps steps {args.run} --failed"
    if history.status == "running" and not alive:
        yield f"its process is gone; to run what is missing: mpsteps resume {args.run}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
