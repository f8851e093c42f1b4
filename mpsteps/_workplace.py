"""The run directory of one call of `run`: found or made, locked, checked, and taken away again if nothing ran in it."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
from typing import TYPE_CHECKING, Any, FrozenSet, Iterator, List, Optional

from mpsteps._private_files import open_private
from mpsteps._rundir import FOLDERS, RunDirectory
from mpsteps.errors import JournalError, RunDirectoryError

if TYPE_CHECKING:
    from mpsteps._journal import RunHistory  # loaded when there is a journal: see `run`

RUNS_FOLDER = "Runs"
FENCE_SECONDS = 10.0
"""How long a new coordinator waits for workers of a dead one to be gone (they are killed within a second)."""

logger = logging.getLogger("mpsteps.protocol")


class Workplace:
    """Claims the directory when it is made; `leave` gives it back. Raises RunDirectoryError and JournalError.

    `directory` is locked. The caller says `begin` before it starts a
    step: otherwise `leave` removes what this call has made.
    """

    def __init__(self, protocol: Any) -> None:
        self.began = False
        self._history: Optional[RunHistory] = None
        path = protocol.getWorkingDir()
        self._made_parent = not path and not os.path.isdir(RUNS_FOLDER)
        self._before: Optional[FrozenSet[str]] = None  # the names in the directory, if it was there
        if path and os.path.isdir(path):
            self._before = _names_in(path)
        self.directory = (
            RunDirectory.create_at(path) if path else RunDirectory.create(RUNS_FOLDER, type(protocol).__name__)
        )
        try:
            self._claim(type(protocol).__name__, protocol.isRestart())
        except BaseException:
            self.leave()
            raise
        if not path:
            protocol.setWorkingDir(os.path.relpath(self.directory.path))

    @property
    def history(self) -> RunHistory:
        """What earlier sessions left there."""
        if self._history is None:
            from mpsteps._journal import RunHistory

            self._history = RunHistory()
        return self._history

    def _claim(self, name: str, restart: bool) -> None:
        directory = self.directory
        directory.lock()
        if not directory.wait_for_fence(FENCE_SECONDS):
            pids = ", ".join(str(p) for p in directory.fence_holders())
            raise RunDirectoryError(
                f"worker processes of an earlier coordinator are still alive in run {directory.path!r} (pids {pids}): "
                "end them first"
            )
        if os.path.exists(directory.journal_path):
            self._look_at_journal(name, restart)
        elif not restart and os.listdir(directory.tmp):
            raise RunDirectoryError(
                f"{directory.tmp!r} holds files, which a run would remove when it has finished, but there is no "
                "journal beside it, so it is no run directory: choose another one"
            )
        if restart:
            self.began = True  # what was there is gone in any case
            directory.clean()
            self.began = False

    def _look_at_journal(self, name: str, restart: bool) -> None:
        """Also a restart deletes only runs of the same protocol; but it is the way out of a damaged journal."""
        from mpsteps._journal import read_journal
        from mpsteps._leftovers import sweep_values, take_back_unbegun

        path = self.directory.path
        try:
            journal = read_journal(self.directory.journal_path)
            history = journal.replay()
        except JournalError:
            if restart:
                return
            raise
        before = history.sessions[-1].get("class") if history.sessions else name
        if before != name:
            raise RunDirectoryError(f"{path!r} is a run of protocol {before}, not of {name}: choose another directory")
        if not restart:
            if take_back_unbegun(self.directory, journal):
                journal = read_journal(self.directory.journal_path)
                history = journal.replay()
            sweep_values(self.directory, journal)
            self._history = history

    def begin(self) -> None:
        """From now on there is something worth keeping."""
        self.began = True

    def leave(self) -> None:
        """Release the lock; if nothing ran, remove what was made here."""
        try:
            if not self.began:
                self._remove_what_was_made()
        finally:
            self.directory.close()

    def _remove_what_was_made(self) -> None:
        path = self.directory.path
        if self._before is None:
            shutil.rmtree(path, ignore_errors=True)
            if self._made_parent:
                with contextlib.suppress(OSError):  # another run has been made in it meanwhile
                    os.rmdir(os.path.dirname(path))
            return
        if not os.path.exists(self.directory.journal_path):
            for name in FOLDERS:
                if name not in self._before:
                    shutil.rmtree(os.path.join(path, name), ignore_errors=True)
            # The lock files stay: others may have opened them by now.

    def empty_tmp(self) -> None:
        """Remove what is in `tmp`."""
        for entry in os.scandir(self.directory.tmp):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                os.unlink(entry.path)

    @contextlib.contextmanager
    def log(self) -> Iterator[None]:
        """Lines of the protocol's log go to logs/run.stdout, warnings and errors to logs/run.stderr as well."""
        handlers: List[logging.Handler] = []
        level, propagate = logger.level, logger.propagate
        try:
            for name, least in (("run.stdout", logging.INFO), ("run.stderr", logging.WARNING)):
                handlers.append(_handler(os.path.join(self.directory.logs, name), least))
                logger.addHandler(handlers[-1])
            if logger.getEffectiveLevel() > logging.INFO:
                logger.setLevel(logging.INFO)
            logger.propagate = False
            yield
        finally:
            logger.propagate = propagate
            logger.setLevel(level)
            for handler in handlers:
                logger.removeHandler(handler)
                handler.close()


def _names_in(path: str) -> FrozenSet[str]:
    try:
        return frozenset(os.listdir(path))
    except OSError:
        return frozenset()  # not ours to read: RunDirectory says so in a moment


def _handler(path: str, least: int) -> logging.Handler:
    """Names of files may hold bytes that are no text: they are written with a backslash, which 3.8 needs help for."""
    os.close(open_private(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND))  # 0600, whatever the umask is
    if sys.version_info >= (3, 9):
        handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    else:
        handler = logging.FileHandler(path, encoding="utf-8")
        handler.stream.reconfigure(errors="backslashreplace")
    handler.setLevel(least)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s: %(message)s"))
    return handler
