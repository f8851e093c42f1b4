"""How much memory steps need, where nobody has declared it: measured while they run, and told to the scheduler, so that
no more of them run at a time than fit (docs/decisions/0030). It is for admission only: nobody is ended for it.

Once steps of a function have ended, their peaks say what the others need. Until then those that run are looked at, four
times a second. At first each is taken to need `ASSUMED`, and less and less the longer the oldest has run. One that
grows is expected to go on like that for a while. Where `ASSUMED` for every worker is there, none of this is done.
"""

from __future__ import annotations

import time
from typing import Dict, Hashable, List, Mapping, NamedTuple, Optional, Tuple

from mpsteps._core.events import MemoryLearned
from mpsteps._ipc.room import available
from mpsteps._learned_memory import AFTER_DEATH, ASSUMED, MARGIN, need_of
from mpsteps._memory import own_memory
from mpsteps._proctree import descendants, process_table

SOFTENS_SECONDS = 4.0
"""After so many seconds half of ASSUMED is still assumed, after twice as many a third, ..."""
GROWS_SECONDS = 30.0
"""A step that grows is expected to grow for so long, at the rate that it had between the last two looks."""
LOOK_SECONDS = 0.25
SHARE_OF_TIME = 0.02
"""Looking takes at most this share of the coordinator's time: where there are many processes, it looks more rarely."""
MOST_PEAKS = 200
"""So many peaks of a function are remembered, the newest."""
CHANGED = 0.05
"""A need that has changed by less than this part is not told anew."""


class _Seen(NamedTuple):
    """A step of a worker when it was last looked at: its own memory, with that of the programs it has started, and how
    fast that had grown, bytes a second."""

    step: int
    attempt: int
    function: Hashable
    pid: int
    began: float
    at: float
    used: int
    rate: float


class MemoryNeeds:
    """`total`: bytes there are for steps; `share`: a need above it matters, since as much for every worker is not there
    (0: that is not known here). `known`: function -> peaks of earlier sessions, bytes, with their margin."""

    def __init__(self, total: int, share: float, known: Mapping[str, List[float]]) -> None:
        self.watched: Dict[int, _Seen] = {}  # by worker
        self._total = total
        self._share = share
        self._peaks: Dict[Hashable, List[float]] = {func: list(peaks)[-MOST_PEAKS:] for func, peaks in known.items()}
        self._told: Dict[Hashable, int] = {}
        self._others = max(0, total - available())
        self._next = 0.0

    @property
    def assumed(self) -> int:
        """Bytes for each step of which nothing is known; 0 where there are so many for every worker."""
        share = self._share * (1 - self._others / self._total) if self._total else ASSUMED
        return ASSUMED if share < ASSUMED else 0

    def first(self) -> MemoryLearned:
        """What is known before any step runs."""
        needs = {func: need_of(peaks) for func, peaks in self._peaks.items()}
        return self._tell({func: need for func, need in needs.items() if need > self._share})

    def peak(self, function: Hashable, kib: int, died: bool = False) -> Optional[MemoryLearned]:
        """A step has ended, and had so much; what that changes. `died`: for want of more."""
        peaks = self._peaks.setdefault(function, [])
        peaks.append((AFTER_DEATH if died else MARGIN) * kib * 1024)
        del peaks[:-MOST_PEAKS]
        need, before = need_of(peaks), self._told.get(function)
        if before is None:
            return self._tell({function: need}) if need > self._share else None
        return self._tell({function: need}) if abs(need - before) > CHANGED * before else None

    def _tell(self, needs: Mapping[Hashable, int]) -> MemoryLearned:
        self._told.update(needs)
        return MemoryLearned(needs, self._others)

    # ------------------------------------------------------------------- those that run

    def begin(self, worker: int, step: int, attempt: int, function: Hashable, pid: int) -> None:
        """A worker is about to be sent a step of which it matters how much it uses."""
        now = time.monotonic()
        if not self.watched:
            self._next = now + LOOK_SECONDS
        self.watched[worker] = _Seen(step, attempt, function, pid, now, now, own_memory(pid), 0.0)

    def end(self, worker: int) -> None:
        """It runs something else, or nothing."""
        self.watched.pop(worker, None)

    def running(self) -> List[Tuple[int, int, int]]:
        """(worker, step, attempt) of all that are watched."""
        return [(worker, seen.step, seen.attempt) for worker, seen in self.watched.items()]

    def next_look(self) -> Optional[float]:
        """When `look` is due; None: nothing is watched."""
        return self._next if self.watched else None

    def look(self, now: float) -> MemoryLearned:
        """Look at all that are watched."""
        table = process_table()
        for worker, seen in self.watched.items():
            used = sum(map(own_memory, [seen.pid, *descendants(seen.pid, table)]))
            self.watched[worker] = seen._replace(at=now, used=used, rate=(used - seen.used) / max(1e-3, now - seen.at))
        self._others = max(0, self._total - available() - sum(seen.used for seen in self.watched.values()))
        ended = time.monotonic()
        self._next = ended + max(LOOK_SECONDS, (ended - now) / SHARE_OF_TIME)
        by_function: Dict[Hashable, List[_Seen]] = {}
        for seen in self.watched.values():
            by_function.setdefault(seen.function, []).append(seen)
        return self._tell({function: self._need(function, all_seen) for function, all_seen in by_function.items()})

    def _need(self, function: Hashable, running: List[_Seen]) -> int:
        """What each step of a function is to be expected to need, given those that run."""
        most = max(seen.used for seen in running)
        peaks = self._peaks.get(function)
        if peaks:
            return max(need_of(peaks), most)
        age = max(seen.at - seen.began for seen in running)
        grown = max(seen.used + max(0.0, seen.rate) * GROWS_SECONDS for seen in running)
        return int(max(MARGIN * most, grown, ASSUMED / (1 + age / SOFTENS_SECONDS)))
