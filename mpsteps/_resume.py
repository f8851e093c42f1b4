"""What earlier sessions of a run left for this one: which steps have finished already and need not run again.

A step is recognised by its digest (function, arguments, prerequisites), never by its place, and it is kept only if
everything before it is kept. That goes for the steps of `_insertAllSteps` and, as they come, for those that are
inserted while the run goes on.

A step that changed the graph itself (it inserted steps, released one, added prerequisites) runs again although it has
finished: what it did to the graph stands nowhere in the protocol's source, so that without it steps would be missing.
What it inserts is recognised then, and kept. (Scipion's own generator steps run again in the same way.)
"""

from __future__ import annotations

import os
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Optional, Set, Tuple

from mpsteps._ipc import state, wire
from mpsteps._ipc.edits import ABSENT, change_of, edit_of
from mpsteps._ipc.merge import upon
from mpsteps._journal import RunHistory, StepRecord
from mpsteps._recorder import CHANGED_GRAPH
from mpsteps._rundir import VALUES
from mpsteps._writes import WritesOf
from mpsteps.steps import Step


class Kept(NamedTuple):
    """A step that needs not run again: its record, and the changes of self that it made then, in pieces, each with its
    place in the order in which all changes of that run became true."""

    record: StepRecord
    pieces: List[Tuple[int, List[state.Change]]]


class Earlier:
    """The finished steps of earlier sessions, to be taken one by one. `warn` is told what could not be read."""

    def __init__(
        self, history: RunHistory, protocol: Any, digest: Callable[[Step], str], warn: Callable[[str], None]
    ) -> None:
        self._protocol = protocol
        self._digest = digest
        self._warn = warn
        self._available = {d: list(records) for d, records in history.finished_by_digest.items()}
        self._doubtful: Dict[str, int] = {}
        for record in history.in_doubt:
            self._doubtful[record.digest] = self._doubtful.get(record.digest, 0) + 1
        self._ran_before = protocol._report is not None
        self._writes = WritesOf(type(protocol))
        self._settled: Set[int] = set()  # steps of this session whose earlier outcome counts for those behind them

    def __bool__(self) -> bool:
        return bool(self._available or self._doubtful)

    def take(self, step: Step) -> Optional[Kept]:
        """What is known of this very step, if that is enough not to run it; each record is given away once."""
        records = self._available.get(self._digest(step))
        if not records or not all(p in self._settled for p in step._prerequisites):
            return None
        record = records[0]
        result = record.result or {}
        if not all(os.path.exists(f) for f in result.get("files", ())):
            return None
        if "stored" in result and not os.path.exists(self._protocol._getPath(VALUES, result["stored"])):
            return None
        pieces = self._pieces(record)
        if pieces is None:
            return None
        records.pop(0)
        self._settled.add(step._id)
        return None if result.get(CHANGED_GRAPH) else Kept(record, pieces)

    def take_all(self, steps: Iterable[Step]) -> Dict[int, StepRecord]:
        """Those of `steps` (each after its prerequisites) that are kept, by id; their changes are made on self."""
        found: Dict[int, Kept] = {}
        for step in steps:
            kept = self.take(step)
            if kept is not None:
                found[step._id] = kept
        pieces = [(order, changes, kept.record.func) for kept in found.values() for order, changes in kept.pieces]
        for _, changes, func in sorted(pieces, key=lambda piece: piece[0]):
            self._redo(changes, func, None)
        return {step: kept.record for step, kept in found.items()}

    def redo(self, kept: Kept, tracker: Optional[state.Tracker] = None) -> List[state.Change]:
        """Make the changes of a step on self, not as `tracker`'s own; returns them as they came to be made."""
        return [done for _, changes in kept.pieces for done in self._redo(changes, kept.record.func, tracker)]

    def _redo(
        self, changes: List[state.Change], func: str, tracker: Optional[state.Tracker]
    ) -> List[state.Change]:  # fmt: skip
        made = []
        for change in changes:
            placed = self._placed(change, func)
            made.append(placed)
            if tracker is not None:
                tracker.apply([placed])
            else:
                state.apply(self._protocol, placed)
        return made

    def was_cut_short(self, step: Step) -> bool:
        """Whether a step that is about to run was in flight when an earlier session broke off; tells of each once."""
        if not self._doubtful:
            return False
        digest = self._digest(step)
        count = self._doubtful.get(digest, 0)
        if count:
            self._doubtful[digest] = count - 1
        return count > 0

    def _placed(self, change: state.Change, func: str) -> state.Change:
        """On top of what is there now: items that were appended to a list go to its end, since where they stood then,
        other steps' items may stand; what was added to a number is added again. Unless this very object ran before,
        and has it all already."""
        name, edit = change[1], edit_of(change)
        now = vars(self._protocol).get(name, ABSENT)
        if not self._ran_before:
            return change_of(name, upon(edit, now, self._writes(func), name))
        if change[0] != "+" or type(now) is not list:
            return change
        _, name, start, items = change
        if _same(now[start : start + len(items)], items):
            return ("+", name, start, now[start:])
        return ("+", name, len(now), items)

    def _pieces(self, record: StepRecord) -> Optional[List[Tuple[int, List[state.Change]]]]:
        parcels = list(record.published)
        if record.changes:
            parcels.append((record.order or 0, record.changes))
        try:
            return [(order, list(wire.unpack(parcel, self._protocol))) for order, parcel in parcels]
        except Exception as error:  # the user's own code, when it is loaded
            self._warn(
                f"step {record.id} {record.func} runs again: what it changed on self cannot be read any more "
                f"({type(error).__name__}: {error})"
            )
            return None


def _same(a: List[Any], b: List[Any]) -> bool:
    try:
        return bool(a == b)
    except ValueError:  # arrays among them
        return wire.pack(a) == wire.pack(b)
