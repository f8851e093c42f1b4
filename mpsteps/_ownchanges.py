"""What code in the coordinator's own process changes on self while workers run: local steps and `_stepsCheck`.

They work on the true object, so that nothing has to be merged; but workers have to hear of it, and the journal must
have what a local step changed, even if it was seen and published before the step came to its end.
"""

from __future__ import annotations

from typing import Any, Callable, List, Optional, Tuple

from mpsteps._ipc import state, wire
from mpsteps._statelog import CHECK, StateLog
from mpsteps.errors import SerializationError


class OwnChanges:
    """Collects them with `tracker`, tells the workers by `log`, and keeps those of local steps for the journal."""

    def __init__(
        self, protocol: Any, log: StateLog, tracker: state.Tracker, local_steps: Callable[[], Tuple[int, ...]]
    ) -> None:
        self._protocol = protocol
        self._log = log
        self._tracker = tracker
        self._local_steps = local_steps
        self._for_journal: List[state.Change] = []  # of local steps that have not ended yet

    def collect(self, by_check: bool = False) -> bool:
        """Publish what has been changed since the last call: by local steps, if one runs, or by `_stepsCheck`. Whether
        there was anything."""
        changes = self._tracker.changes()
        if not changes:
            return False
        by = self._local_steps()
        if by and not by_check:
            self._for_journal.extend(changes)
        self._log.publish(wire.pack(self._for_workers(changes), self._protocol), (*by, CHECK) if by_check else by)
        return True

    def before_merge(self) -> bool:
        """Workers' changes are about to be applied: those of local steps must be known as such before. Whether there
        were any."""
        return bool(self._local_steps()) and self.collect()

    def of_local_step(self) -> Optional[bytes]:
        """A local step ends: what it changed, for the journal. (Of several that run at the same time, the first to
        end answers for all that was changed until then.)"""
        self.collect()
        changes, self._for_journal = self._for_journal, []
        written = [c for c in changes if _problem(c, self._protocol) is None]
        for name in {c[1] for c in changes} - {c[1] for c in written}:
            self._protocol.warning(
                f"attribute '{name}' cannot be written to the journal: a resumed run will not see what a local step "
                "put there"
            )
        return wire.pack(written, self._protocol) if written else None

    def _for_workers(self, changes: List[state.Change]) -> List[state.Change]:
        """What cannot travel is absent there; local steps may use it."""
        try:
            state.pack_changes(changes, self._protocol)
            return changes
        except SerializationError:
            problems = [(c, _problem(c, self._protocol)) for c in changes]
            return [c if p is None else ("=", c[1], state.Absent(c[1], p)) for c, p in problems]


def _problem(change: state.Change, protocol: Any) -> Optional[str]:
    """Why a change cannot travel; None if it can."""
    try:
        wire.unpack(wire.pack(change, protocol), protocol)
        return None
    except Exception as error:
        return f"{type(change[-1]).__name__}: {type(error).__name__}: {error}"
