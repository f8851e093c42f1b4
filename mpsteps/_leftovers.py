"""What a killed session has left in its run directory, put in order by the next one: under the lock, behind the fence.

- ``workers.begun``: steps that had been sent and were never begun are not in doubt. `_begun` has the argument.
- Files in ``values/`` that no record names: their worker stored the value and died before its reply was recorded.
"""

from __future__ import annotations

import itertools
import os
import re
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Tuple

from mpsteps._begun import session_name
from mpsteps._journal import Journal, JournalWriter, Record, RunHistory, StepRecord, replay
from mpsteps._private_files import open_private
from mpsteps._rundir import VALUES, RunDirectory

_VALUE = re.compile(r"[0-9a-f]{16}\.value$")


class _Testimony(NamedTuple):
    """A file of a `Witness`. `words`: pid -> begun, refused."""

    session: str
    journal_size: int
    words: Dict[int, Tuple[int, int]]


def take_back_unbegun(directory: RunDirectory, journal: Journal) -> List[int]:
    """Use what a witness has written, then remove it. Returns the steps that had not begun; the journal has them as
    returned now, so that `journal`, if there are any, is to be read again.

    Killed anywhere in here, it can be done again: after the append the file does not fit the journal's size any more,
    and is only removed. Raises JournalError and RunDirectoryError.
    """
    path = directory.begun_path
    if os.path.lexists(f"{path}.new"):  # of a witness that was killed
        os.unlink(f"{path}.new")
    if not os.path.lexists(path):
        return []
    unbegun = find_unbegun(directory, journal)
    if unbegun:
        with JournalWriter.reopen(directory.journal_path, reserve=0) as writer:
            writer.append([["returned", unbegun]])
    os.unlink(path)
    return unbegun


def find_unbegun(directory: RunDirectory, journal: Journal) -> List[int]:
    """The same, for who only looks at the run."""
    if not os.path.lexists(directory.begun_path):
        return []
    told = _read(directory.begun_path)
    if told is None or journal.truncated_at is not None or told.journal_size != journal.valid_bytes:
        return []
    return _unbegun(told, journal.records, journal.replay().steps)


def history_as_told(directory: RunDirectory, journal: Journal) -> RunHistory:
    """What the journal adds up to, together with what a witness has written and the journal does not have yet."""
    return replay(records_as_told(directory, journal), journal.header)


def records_as_told(directory: RunDirectory, journal: Journal) -> Iterable[Record]:
    """The records of which that history is made."""
    unbegun = find_unbegun(directory, journal)
    news: List[Record] = [["returned", unbegun]] if unbegun else []
    return itertools.chain(journal.records, news)


def sweep_values(directory: RunDirectory, journal: Journal) -> List[str]:
    """Remove the stored values that the journal does not name; the names of those removed."""
    folder = os.path.join(directory.path, VALUES)
    try:
        orphans = {name for name in os.listdir(folder) if _VALUE.match(name)}
    except FileNotFoundError:
        return []
    if orphans:  # else the journal need not be looked through once more
        orphans -= {record[2].get("stored") for record in journal.records if record[0] == "result"}
    for name in orphans:
        os.unlink(os.path.join(folder, name))
    return sorted(orphans)


def _read(path: str) -> Optional[_Testimony]:
    """None if it makes no sense."""
    with open(open_private(path, os.O_RDONLY), "rb") as f:
        lines = f.read().decode("utf-8", "replace").split("\n")
    try:
        words = {pid: (begun, refused) for pid, begun, refused in (map(int, line.split()) for line in lines[2:-1])}
        return _Testimony(lines[0], int(lines[1]), words)
    except (ValueError, IndexError):
        return None


def _unbegun(told: _Testimony, records: Iterable[Record], steps: Dict[int, StepRecord]) -> List[int]:
    """The steps that run according to the journal, and had not begun according to the witness."""
    places: Dict[Tuple[int, int], int] = {}  # pid and step -> where it was last sent to that worker, from 1
    sent: Dict[int, int] = {}  # pid -> how many steps
    session: Any = None
    for record in records:
        if record[0] == "protocol":
            session = record[1]
            places.clear()
            sent.clear()
        elif record[0] == "started" and record[1] in told.words:
            pid = record[1]
            for step in record[4]:
                sent[pid] = places[pid, step] = sent.get(pid, 0) + 1
    if session is None or session_name(session.get("host"), session.get("pid"), session.get("started")) != told.session:
        return []

    def certainly_not(pid: int, step: int, place: int) -> bool:
        now = steps[step]
        return now.status == "running" and now.worker == pid and place > sum(told.words[pid])

    return sorted(step for (pid, step), place in places.items() if certainly_not(pid, step, place))
