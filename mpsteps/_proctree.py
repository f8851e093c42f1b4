"""Who descends from whom: the process table, read once per look.

On Linux /proc is read directly: that costs no import at the moment when everything is being ended, and a few
milliseconds for a thousand processes. Elsewhere psutil reads the table.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Dict, Iterable, List, NamedTuple, Optional

_PAUSE = 0.005


class Entry(NamedTuple):
    """One process: its parent, the session it belongs to, whether it is dead and only waits to be reaped."""

    parent: int
    session: int
    zombie: bool


def process_table() -> Dict[int, Entry]:
    """All processes that this one may see; empty where the table cannot be read."""
    if os.path.exists("/proc/self/stat"):
        return _from_proc()
    return _from_psutil()


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or dead and only waits to be reaped."""
    if os.path.exists("/proc/self/stat"):
        entry = _read_stat(str(pid))
        return entry is None or entry.zombie
    entry = _from_psutil([pid]).get(pid)
    return entry is None or entry.zombie


def descendants(root: int, table: Optional[Dict[int, Entry]] = None) -> List[int]:
    """The processes below `root`, children first, without the dead. `table`: the process table, if it is known."""
    table = process_table() if table is None else table
    children: Dict[int, List[int]] = {}
    for pid, entry in table.items():
        children.setdefault(entry.parent, []).append(pid)
    found: List[int] = []
    todo = [root]
    while todo:
        below = children.pop(todo.pop(0), [])
        todo.extend(below)
        found.extend(pid for pid in below if not table[pid].zombie)
    return found


def end_session(leader: int, seconds: float = 5.0) -> bool:
    """Kill what lives in the session of `leader`, except `leader`, until nothing does; whether that came about.

    `leader` must be a child of ours that has not been waited for: until then its pid names this session and no other.
    """
    deadline = time.monotonic() + seconds
    while True:
        left = [p for p, e in process_table().items() if e.session == leader and p != leader and not e.zombie]
        if not left:
            return True
        for pid in left:
            send_signal(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            return False
        time.sleep(_PAUSE)  # they are not ours to wait for: nothing tells when they are gone


def send_signal(pid: int, number: int) -> None:
    """Signal one process, if it is still there and may be signalled."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass  # it went by itself
    except PermissionError:
        pass  # a program that runs as somebody else (setuid): it is not in our power


def _from_proc() -> Dict[int, Entry]:
    table: Dict[int, Entry] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            entry = _read_stat(name)
            if entry is not None:
                table[int(name)] = entry
    return table


def _read_stat(pid: str) -> Optional[Entry]:
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            text = f.read()
    except OSError:
        return None  # it went while we looked
    # pid (name) state parent group session ...; the name may hold anything, also parentheses
    fields = text[text.rindex(b")") + 2 :].split(None, 4)
    return Entry(int(fields[1]), int(fields[3]), fields[0] in (b"Z", b"X"))


def _from_psutil(pids: Optional[Iterable[int]] = None) -> Dict[int, Entry]:
    import psutil

    table: Dict[int, Entry] = {}
    for pid in psutil.pids() if pids is None else pids:
        try:
            process = psutil.Process(pid)
            zombie = process.status() == psutil.STATUS_ZOMBIE
            table[pid] = Entry(process.ppid(), os.getsid(pid), zombie)
        except (psutil.Error, OSError):
            continue  # it went while we looked, or may not be looked at
    return table
