"""Scipion commits three times a step, to steps.sqlite and run.db, and each commit waits for the disk: ten times as long
as all else. What one turn of the loop has to record is committed at the end of that turn, once for each database.

Nothing is lost by that: of a step whose beginning or end was not committed when the main process died, Scipion knows
what it knew before, and runs it again. Only while no other thread runs a step here: it might wait for the database with
a lock in its hands for which the loop waits.
"""

from __future__ import annotations

from typing import Any, Callable, List, Tuple


class Commits:
    """Of one protocol."""

    def __init__(self, protocol: Any) -> None:
        self._protocol = protocol
        self._held: List[Tuple[Any, Callable[[], None]]] = []
        self._wanted: List[Any] = []

    def hold(self) -> None:
        """From now on commits are only noted."""
        if self._held:
            return
        for owner in (getattr(self._protocol, "_stepsSet", None), self._protocol):
            mapper = getattr(owner, "_mapper", None) or getattr(owner, "mapper", None)
            db = getattr(mapper, "db", None)
            if db is not None and "commit" in vars(db):  # pyworkflow has it as an attribute of each database
                self._held.append((db, db.commit))
                db.commit = self._noting(db)

    def _noting(self, db: Any) -> Callable[[], None]:
        def note() -> None:
            if db not in self._wanted:
                self._wanted.append(db)

        return note

    def release(self) -> None:
        """What was noted is committed, and from now on as ever. Raises what sqlite raises."""
        held, self._held = self._held, []
        wanted, self._wanted = self._wanted, []
        for db, commit in held:
            db.commit = commit
        for db, commit in held:
            if db in wanted:
                commit()
