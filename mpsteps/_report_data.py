"""What the HTML report shows, as plain data: columns instead of objects, so that 100,000 steps are a few megabytes.

Times are integers of microseconds on an axis on which the sessions follow each other without the breaks between them.
Steps are those of the last session, by id; spans are the attempts of all sessions, and name functions themselves, since
an id of an earlier session may have been another step. Lists of lists are flat, with an index of where each begins.
"""

from __future__ import annotations

import os
import time
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from mpsteps._account import Machine, Needs, Piece, most_at_once
from mpsteps._history import RunHistory, StepRecord
from mpsteps._learned_memory import MARGIN, need_of
from mpsteps._limits import Analysis, analyse
from mpsteps._rundir import RunDirectory
from mpsteps._timeline import Session, Span, Timeline
from mpsteps.report import format_bytes, shorten

STATUSES = ("new", "running", "finished", "failed", "lost", "skipped", "aborted", "in doubt", "cut")
MANY_STEPS = 20_000  # above it, arguments are cut shorter
MOST_FAILURES = 200  # told in full; the others are only marked
LOG_BYTES = 8_000  # of the log of each of these
_BAD = ("failed", "lost")


def report_data(directory: RunDirectory, history: RunHistory, line: Timeline, alive: bool) -> Dict[str, Any]:
    """All that the page shows. `history` and `line` are of the same journal, with at least one session."""
    steps = [history.steps[number] for number in sorted(history.steps)]
    names = _Names()
    offsets = _offsets(line.sessions)
    last = line.sessions[-1]
    analysis = analyse_last_that_ran(history, line)
    analysed, found = analysis
    return {
        "protocol": str(last.info.get("class", "run")), "name": str(last.info.get("name", "")),
        "runDir": os.path.abspath(directory.path), "made": time.time(), "alive": alive,
        "status": "cut off" if history.status == "running" and not alive else history.status,
        "message": history.error, "statuses": STATUSES,
        "sessions": [_session(s, offset) for s, offset in zip(line.sessions, offsets)],
        "steps": _steps(steps, names, alive), "spans": _spans(line, offsets, names),
        "limits": _limits(found, analysed), "failures": _failures(directory, steps),
        "failed": sum(s.status in _BAD for s in steps), "environment": _environment(last.info),
        "values": _values(last.info), "functions": names.all,
    }  # fmt: skip


def analyse_last_that_ran(history: RunHistory, line: Timeline) -> Tuple[int, Analysis]:
    """The number of the last session in which any step ran (or of the last one), and what limited it."""
    ran = {span.session for span in line.spans}
    number = max(ran) if ran else len(line.sessions)
    session = line.sessions[number - 1]
    # Ids of an earlier session may mean other steps; then nothing is known of what waited for what.
    needs_of = {n: s.prerequisites for n, s in history.steps.items()} if number == len(line.sessions) else {}
    rows = {row for row, name in enumerate(session.workers) if name.startswith("coordinator")}
    inline = session.info.get("engine") == "inline"
    pieces = [
        Piece(s.step, s.func, -1 if s.worker in rows and not inline else s.worker, s.begin, s.end, s.attempt, s.cpu,
            s.peak_kib * 1024 if s.peak_kib else None,
        )
        for s in line.of_session(number)
    ]  # fmt: skip
    machine, needs = resources(session.info, {p.func for p in pieces}, _measured(pieces, session.info))
    return number, analyse(pieces, needs_of, machine, session.began, session.ended, needs, session.inserted)


def _measured(pieces: Sequence[Piece], info: Dict[str, Any]) -> Dict[str, int]:
    """Function -> bytes that counted for its steps, by their own peaks. Not of those of which more ran at a time than
    would have fitted: whoever ran them did not know, or had no choice."""
    peaks: Dict[str, List[float]] = {}
    for p in pieces:
        if p.peak:
            peaks.setdefault(p.func, []).append(MARGIN * p.peak)
    found = {func: need_of(known) for func, known in peaks.items()}
    memory, workers = _whole(info.get("memory")), max(1, _whole(info.get("threads")))
    large = {func for func, need in found.items() if need * workers > memory}
    at_once = {func: most_at_once([p for p in pieces if p.func == func]) for func in large}
    return {func: need for func, need in found.items() if at_once.get(func, 0) * need <= max(memory, need)}


def resources(
    info: Dict[str, Any], funcs: Iterable[str], measured: Optional[Mapping[str, int]] = None
) -> Tuple[Machine, Dict[str, Needs]]:
    """What a session had for its steps, and what the steps of each function hold. `measured`: bytes that their like
    have needed, which count where nobody has declared it and as much for every worker is not there."""
    machine = Machine(
        max(1, _whole(info.get("threads"))), _whole(info.get("cores")), _whole(info.get("memory")),
        _whole(info.get("gpus")),
    )  # fmt: skip
    declared = info.get("needs") if isinstance(info.get("needs"), dict) else {}
    learned = info.get("learned")
    needs = {}
    for func in funcs:
        told = (declared or {}).get(func)
        known = _whole(learned.get(func)) if isinstance(learned, dict) else 0
        if measured and measured.get(func, 0) * machine.workers > machine.memory > 0 and not info.get("cluster"):
            known = measured[func]
        cpus, memory, gpus = [_whole(n) for n in told[:3]] if isinstance(told, list) and len(told) == 3 else (1, 0, 0)
        cards = max(gpus, 1) if machine.gpus else 0
        needs[func] = Needs(max(1, cpus), memory or known, cards, measured=bool(known and not memory))
    return machine, needs


class _Names:
    """Functions by number."""

    def __init__(self) -> None:
        self.all: List[str] = []
        self._numbers: Dict[str, int] = {}

    def number(self, name: str) -> int:
        found = self._numbers.get(name)
        if found is None:
            found = self._numbers[name] = len(self.all)
            self.all.append(name)
        return found


def _offsets(sessions: Sequence[Session]) -> List[float]:
    """What is taken from the times of each session: where it begins less where the ones before it end."""
    offsets: List[float] = []
    total = 0.0
    for session in sessions:
        offsets.append(session.began - total)
        total += max(0.0, session.ended - session.began)
    return offsets


def _session(session: Session, offset: float) -> Dict[str, Any]:
    info = session.info
    return {
        "number": session.number, "status": session.status, "began": session.began, "kept": session.kept,
        "from": _micro(session.began - offset), "to": _micro(session.ended - offset), "workers": session.workers,
        "threads": _whole(info.get("threads")), "host": str(info.get("host", "")),
    }  # fmt: skip


def _steps(steps: Sequence[StepRecord], names: _Names, alive: bool) -> Dict[str, Any]:
    most = 40 if len(steps) > MANY_STEPS else 160
    ids = [s.id for s in steps]
    place = {number: i for i, number in enumerate(ids)}
    starts: List[int] = [0]
    flat: List[int] = []
    for s in steps:
        flat.extend(place[p] for p in s.prerequisites if p in place)
        starts.append(len(flat))
    return {
        "id": ids if ids != list(range(1, len(ids) + 1)) else len(ids),
        "func": [names.number(s.func) for s in steps],
        "args": [_arguments(s.args, most) for s in steps],
        "status": [STATUSES.index(_status(s.status, alive)) for s in steps],
        "starts": starts, "needs": flat, "depth": depths(starts, flat),
    }  # fmt: skip


def _status(status: str, alive: bool) -> str:
    if status == "running" and not alive:
        return "in doubt"
    return status if status in STATUSES else "new"


def depths(starts: Sequence[int], needs: Sequence[int]) -> List[int]:
    """How many steps stand above each one, on the longest way; in a circle, which no run has, 0."""
    count = len(starts) - 1
    missing = [starts[i + 1] - starts[i] for i in range(count)]
    followers: List[List[int]] = [[] for _ in range(count)]
    for i in range(count):
        for p in needs[starts[i] : starts[i + 1]]:
            followers[p].append(i)
    depth = [0] * count
    ready = [i for i in range(count) if not missing[i]]
    for i in ready:  # grows while it is walked through
        for f in followers[i]:
            depth[f] = max(depth[f], depth[i] + 1)
            missing[f] -= 1
            if not missing[f]:
                ready.append(f)
    return depth


def _spans(line: Timeline, offsets: Sequence[float], names: _Names) -> Dict[str, Any]:
    spans: List[Span] = sorted(line.spans, key=lambda s: (s.session, s.worker, s.begin))
    begins = [_micro(s.begin - offsets[s.session - 1]) for s in spans]
    return {
        "step": [s.step for s in spans], "func": [names.number(s.func) for s in spans],
        "session": [s.session for s in spans], "row": [s.worker for s in spans], "begin": begins,
        "length": [max(0, _micro(s.end - offsets[s.session - 1]) - b) for s, b in zip(spans, begins)],
        "status": [STATUSES.index(s.status) for s in spans], "attempt": [s.attempt for s in spans],
        "cpu": [None if s.cpu is None else _micro(s.cpu) for s in spans], "peak": [s.peak_kib for s in spans],
        "traffic": [s.traffic for s in spans],
    }  # fmt: skip


def _limits(found: Analysis, session: int) -> Dict[str, Any]:
    return {
        "session": session, "wall": found.wall, "work": found.work, "shares": found.shares,
        "path": list(found.path), "pathSeconds": found.path_seconds,
        "limits": [limit._asdict() for limit in found.limits],
    }  # fmt: skip


def _failures(directory: RunDirectory, steps: Sequence[StepRecord]) -> List[Dict[str, Any]]:
    told = []
    for s in [s for s in steps if s.status in _BAD][:MOST_FAILURES]:
        error = s.error or {}
        told.append({
            "step": s.id, "func": s.func, "args": _arguments(s.args, 300), "status": s.status, "attempts": s.attempts,
            "cause": str(error.get("cause") or error.get("message") or "unknown reason"),
            "traceback": str(error.get("traceback") or ""), "log": log_of(directory, s, LOG_BYTES),
        })  # fmt: skip
    return told


def log_of(directory: RunDirectory, step: StepRecord, most: int) -> str:
    """The end of what a step has written: of its log, at most `most` bytes; if there is none, what its error tells."""
    path = os.path.join(directory.logs, f"step-{step.id:06d}.log")
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            size = file.tell()
            file.seek(max(0, size - most))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return str((step.error or {}).get("log") or "")
    except OSError as error:
        return f"(its log cannot be read: {error.strerror})"
    return text if size <= most else f"... ({size - most} bytes more in {path})\n{text}"


def _environment(info: Dict[str, Any]) -> List[Tuple[str, str]]:
    shown = (
        ("host", "host"), ("platform", "system"), ("python", "Python"), ("mpsteps", "mpsteps"), ("engine", "engine"),
        ("threads", "worker processes"), ("cores", "usable cores"), ("memory", "usable memory"),
        ("gpus", "graphics cards"), ("target", "protocol"), ("cwd", "started in"), ("pid", "process"),
    )  # fmt: skip
    told = {**info, "memory": format_bytes(_whole(info.get("memory"))) if info.get("memory") else ""}
    return [(title, str(told[key])) for key, title in shown if told.get(key) not in (None, "", 0)]


def _values(info: Dict[str, Any]) -> List[Tuple[str, str]]:
    params = info.get("params")
    return [(str(k), "" if v is None else str(v)) for k, v in params.items()] if isinstance(params, dict) else []


def _arguments(args: Any, most: int) -> str:
    values = args if isinstance(args, list) else [args]
    text = ", ".join(shorten(value, most) for value in values[:20])
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _micro(seconds: Optional[float]) -> int:
    return round((seconds or 0.0) * 1e6)


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
