"""What the commands that look at a run find in its directory."""

from __future__ import annotations

import os
import socket
import time
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import psutil

from mpsteps._journal import Journal, RunHistory, read_journal, replay
from mpsteps._leftovers import history_as_told, records_as_told
from mpsteps._rundir import JOURNAL, RunDirectory
from mpsteps._timeline import Timeline, timeline
from mpsteps.errors import JournalError, UsageError


def open_run(path: str) -> Tuple[RunDirectory, RunHistory]:
    """The run directory at `path` and what its journal adds up to. UsageError for whatever is no readable run."""
    directory, journal = _open_journal(path)
    try:
        return directory, history_as_told(directory, journal)
    except JournalError as error:
        raise UsageError(str(error)) from error


def _open_journal(path: str) -> Tuple[RunDirectory, Journal]:
    directory = look_for_run(path)
    try:
        return directory, read_journal(directory.journal_path)
    except JournalError as error:
        raise UsageError(str(error)) from error


def look_for_run(path: str) -> RunDirectory:
    """The run directory at `path`, which has a journal. UsageError if it is none."""
    if not os.path.lexists(path):
        raise UsageError(f"there is no run directory {path!r}{_runs_near(os.path.dirname(path) or '.')}")
    directory = RunDirectory.open(path)
    if not os.path.exists(directory.journal_path):
        raise UsageError(
            f"{path!r} holds no journal ({JOURNAL}), so it is no run directory, or its run never began"
            f"{_runs_near(path)}"
        )
    return directory


class Look(NamedTuple):
    """A run as it is at one moment. `alive`: its coordinator is at work, as far as can be told."""

    directory: RunDirectory
    history: RunHistory
    timeline: Timeline
    alive: bool
    journal: Journal


def before_last_session(look: Look) -> Optional[RunHistory]:
    """What the journal added up to before the last session; None if there was none before."""
    records = list(look.journal.records)
    last = max(place for place, record in enumerate(records) if record[0] == "protocol")
    return replay(records[:last], look.history.header) if len(look.history.sessions) > 1 else None


def look_at(path: str) -> Look:
    """All that the run directory at `path` tells. UsageError for whatever is no readable run, or never began."""
    directory, journal = _open_journal(path)
    try:
        history = replay(records_as_told(directory, journal), journal.header)
    except JournalError as error:
        raise UsageError(str(error)) from error
    last_session(directory, history)
    alive = is_alive(history)
    line = timeline(records_as_told(directory, journal), time.time() if alive else None)
    return Look(directory, history, line, alive, journal)


def is_alive(history: RunHistory) -> bool:
    """Whether the last session has not ended and its coordinator is still there."""
    return bool(history.sessions) and history.status == "running" and coordinator_lives(history.sessions[-1])


def last_session(directory: RunDirectory, history: RunHistory) -> Dict[str, Any]:
    """The record of the last session. UsageError if none has begun."""
    if not history.sessions:
        raise UsageError(f"the journal of {directory.path!r} is empty, its run never began: start it with mpsteps run")
    return history.sessions[-1]


def coordinator_lives(session: Dict[str, Any]) -> bool:
    """Whether the process that began a session is still there, as far as can be told: on another host it may be."""
    if session.get("host") != socket.gethostname():
        return True
    try:
        began = float(session["started"])
        return bool(psutil.Process(int(session["pid"])).create_time() <= began + 1)  # else the pid is another's by now
    except (KeyError, TypeError, ValueError):
        return True
    except psutil.NoSuchProcess:
        return False


def _runs_near(folder: str) -> str:
    """A few runs in a folder where the user may have meant one of them."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return ""
    found: List[str] = [n for n in names if os.path.exists(os.path.join(folder, n, JOURNAL))]
    if not found:
        return ""
    return f"; runs in {folder!r}: {'..., ' if len(found) > 5 else ''}{', '.join(found[-5:])}"
