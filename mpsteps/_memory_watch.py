"""`memory=` as a limit: while a step runs that declared it, its worker and the programs it has started are looked at.

A limit that the kernel keeps would be exact, but there is none that fits: RLIMIT_AS and RLIMIT_DATA count address
space, which numpy, BLAS and CUDA reserve by the gigabyte and never touch; a cgroup for each step needs rights that a
user of a cluster has not (docs/decisions/0017). So the coordinator looks ten times a second, and only while such a step
runs. What a step can take between two looks is what the machine can hand out in that time.
"""

from __future__ import annotations

import time
from typing import Dict, List, NamedTuple, Optional, Tuple

from mpsteps._memory import fair_memory, own_memory
from mpsteps._proctree import descendants, process_table

LOOK_SECONDS = 0.1
SHARE_OF_TIME = 0.02
"""Looking takes at most this share of the coordinator's time: where there are many processes, it looks more rarely."""


class Watched(NamedTuple):
    """A step of a worker, and what it may use: `limit` bytes beyond the `before` that the worker had when it began."""

    step: int
    attempt: int
    pid: int
    limit: int
    before: int


class Excess(NamedTuple):
    """A step that uses more than it declared."""

    worker: int
    used: int
    limit: int


class MemoryWatch:
    """The steps with a limit that run now, by worker: `watched`. All times are monotonic seconds."""

    def __init__(self) -> None:
        self.watched: Dict[int, Watched] = {}
        self._next = 0.0

    def begin(self, worker: int, step: int, attempt: int, pid: int, limit: int) -> None:
        """A worker is about to be sent a step. What it holds already (earlier steps have left it) is not this one's."""
        if not self.watched:
            self._next = time.monotonic() + LOOK_SECONDS
        self.watched[worker] = Watched(step, attempt, pid, limit, own_memory(pid))

    def end(self, worker: int) -> None:
        """It runs something else, or nothing."""
        self.watched.pop(worker, None)

    def running(self) -> List[Tuple[int, int, int]]:
        """(worker, step, attempt) of all that are watched."""
        return [(worker, w.step, w.attempt) for worker, w in self.watched.items()]

    def next_look(self) -> Optional[float]:
        """When `look` is due; None: nothing is watched."""
        return self._next if self.watched else None

    def look(self, now: float) -> List[Excess]:
        """The steps that use too much now. They are not watched any more."""
        found = []
        table = process_table()
        for worker, w in list(self.watched.items()):
            pids = [w.pid, *descendants(w.pid, table)]
            used = sum(map(own_memory, pids)) - w.before
            if used > w.limit and len(pids) > 1:  # forks count what they share with their parent once more
                used = fair_memory(pids) - w.before
            if used > w.limit:
                found.append(Excess(worker, used, w.limit))
                del self.watched[worker]
        ended = time.monotonic()
        self._next = ended + max(LOOK_SECONDS, (ended - now) / SHARE_OF_TIME)
        return found
