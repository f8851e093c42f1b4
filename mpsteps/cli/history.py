"""What the commands that look at a run find in its directory."""

from __future__ import annotations

import os
import socket
from typing import Any, Dict, List, Tuple

import psutil

from mpsteps._journal import RunHistory, read_journal
from mpsteps._leftovers import history_as_told
from mpsteps._rundir import JOURNAL, RunDirectory
from mpsteps.errors import JournalError, UsageError


def open_run(path: str) -> Tuple[RunDirectory, RunHistory]:
    """The run directory at `path` and what its journal adds up to. UsageError for whatever is no readable run."""
    if not os.path.lexists(path):
        raise UsageError(f"there is no run directory {path!r}{_runs_near(os.path.dirname(path) or '.')}")
    directory = RunDirectory.open(path)
    if not os.path.exists(directory.journal_path):
        raise UsageError(
            f"{path!r} holds no journal ({JOURNAL}), so it is no run directory, or its run never began"
            f"{_runs_near(path)}"
        )
    try:
        return directory, history_as_told(directory, read_journal(directory.journal_path))
    except JournalError as error:
        raise UsageError(str(error)) from error


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
