"""A run as an SQLite file, for queries: ``mpsteps steps RUN --sqlite FILE``.

The journal stays the truth; this is a copy of what it adds up to at one moment. The tables::

    run            key, value                     run, protocol, created, status, error, sessions, in_doubt, params, ...
    steps          id, function, arguments, status, worker, attempt, started, seconds, cpu_seconds, peak_kib, error,
                   traceback                      of the last session
    prerequisites  step, prerequisite
    results        step, kind, value              kind 'file': a path; 'value': a pickle in base64

Times are seconds since the epoch, durations seconds, memory KiB, NULL where unknown. For example, the ten steps that
took longest: ``SELECT id, function, arguments, seconds FROM steps ORDER BY seconds DESC LIMIT 10``.
"""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import tempfile
from typing import Any, Iterator, Union

from mpsteps._history import RunHistory, StepRecord
from mpsteps.errors import UsageError

APPLICATION_ID = 0x6D707374  # 'mpst', in the header of every SQLite file that we made
_ID_OFFSET = 68  # bytes, in the header of an SQLite file: https://www.sqlite.org/fileformat.html
_SQLITE_MAGIC = b"SQLite format 3\0"

_TABLES = f"""
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = 1;
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
CREATE TABLE run (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE steps (
    id INTEGER PRIMARY KEY, function TEXT NOT NULL, arguments TEXT, status TEXT NOT NULL, worker INTEGER,
    attempt INTEGER NOT NULL, started REAL, seconds REAL, cpu_seconds REAL, peak_kib INTEGER, error TEXT,
    traceback TEXT, read_bytes INTEGER, written_bytes INTEGER, received_bytes INTEGER, returned_bytes INTEGER
);
CREATE TABLE prerequisites (
    step INTEGER NOT NULL REFERENCES steps, prerequisite INTEGER NOT NULL REFERENCES steps,
    PRIMARY KEY (step, prerequisite)
) WITHOUT ROWID;
CREATE TABLE results (step INTEGER NOT NULL REFERENCES steps, kind TEXT NOT NULL, value TEXT);
"""
_INDEXES = """
CREATE INDEX steps_by_status ON steps (status);
CREATE INDEX steps_by_function ON steps (function);
CREATE INDEX steps_by_worker ON steps (worker);
CREATE INDEX dependents ON prerequisites (prerequisite);
CREATE INDEX results_by_step ON results (step);
"""


def export_sqlite(history: RunHistory, path: Union[str, os.PathLike[str]]) -> None:
    """Write `history` to the SQLite file `path`, all or nothing.

    An earlier export is replaced, as is an empty file; anything else at `path` is refused with a UsageError, like
    every failure.
    """
    path = os.path.abspath(os.fspath(path))
    draft = ""
    try:
        _check_replaceable(path)
        fd, draft = tempfile.mkstemp(prefix=f".{os.path.basename(path)[:100]}.", dir=os.path.dirname(path))
        os.close(fd)
        _fill(draft, history)
        os.replace(draft, path)
        draft = ""
    except (OSError, sqlite3.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"cannot export the run to {path!r}: {reason}; choose another file") from error
    finally:
        if draft:
            os.unlink(draft)


def _check_replaceable(path: str) -> None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISREG(found.st_mode):
        raise UsageError(f"{path!r} is not a regular file, so it is not overwritten: choose another file")
    if not found.st_size:
        return
    with open(path, "rb") as file:
        start = file.read(_ID_OFFSET + 4)
    if not start.startswith(_SQLITE_MAGIC) or start[_ID_OFFSET:] != APPLICATION_ID.to_bytes(4, "big"):
        raise UsageError(f"{path!r} is not an export of mpsteps, so it is not overwritten: choose another file")


def _fill(path: str, history: RunHistory) -> None:
    steps = history.steps.values()
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.executescript(_TABLES)
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO run VALUES (?, ?)", _run_rows(history))
        connection.executemany(f"INSERT INTO steps VALUES ({', '.join('?' * 16)})", map(_step_row, steps))
        connection.executemany(
            "INSERT OR IGNORE INTO prerequisites VALUES (?, ?)",
            ((step.id, _value(prerequisite)) for step in steps for prerequisite in step.prerequisites),
        )
        connection.executemany("INSERT INTO results VALUES (?, ?, ?)", _result_rows(history))
        connection.execute("COMMIT")
        connection.executescript(_INDEXES)
    finally:
        connection.close()


def _run_rows(history: RunHistory) -> Iterator[tuple[str, Any]]:
    header = history.header
    if header is not None:
        yield "run", _value(header.run_id)
        yield "protocol", _value(header.protocol)
        yield "created", _value(header.created)
    yield "status", _value(history.status)
    yield "error", _value(history.error)
    yield "ended", _value(history.ended)
    yield "sessions", len(history.sessions)
    yield "in_doubt", json.dumps([step.id for step in history.in_doubt])
    if history.sessions:
        for key, value in history.sessions[-1].items():
            yield f"session.{_text(key)}", _value(value)


def _step_row(step: StepRecord) -> tuple[Any, ...]:
    error = step.error or {}
    message = error.get("message")
    kind = error.get("type")
    return (
        step.id,
        _text(step.func),
        _value(step.args),
        step.status,
        _value(step.worker),
        _value(step.attempts),
        _value(step.started),
        _value(step.seconds),
        _value(step.cpu_seconds),
        _value(step.peak_kib),
        _value(f"{kind}: {message}" if kind and message else message or kind or None),
        _value(error.get("traceback")),
        *(step.traffic or (None,) * 4),
    )


def _result_rows(history: RunHistory) -> Iterator[tuple[int, str, Any]]:
    for step in history.steps.values():
        for kind, value in (step.result or {}).items():
            if kind == "files" and isinstance(value, list):
                for file in value:
                    yield step.id, "file", _value(file)
            else:
                yield step.id, _text(kind), _value(value)


def _value(value: Any) -> Any:
    """As SQLite can hold it: numbers as they are, other things as JSON text."""
    if value is None or isinstance(value, float):
        return value
    if isinstance(value, int):
        return int(value) if -(2**63) <= value < 2**63 else str(value)
    return _text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _text(value: object) -> str:
    """Lone surrogates, of file names that are not UTF-8, as \\udcxx: SQLite takes none."""
    return str(value).encode("utf-8", "backslashreplace").decode("utf-8")
