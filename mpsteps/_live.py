"""A run while it goes on, from the records of its journal as they come: how far, what runs, how long it may still take.

Pure: it is fed records, and told the time. It keeps little of each step, so that a long run is cheap to follow.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Deque, Dict, List, NamedTuple, Optional, Sequence, Tuple

from mpsteps._forecast import Tally, longest_chain, means_of_what_is_left, seconds_left
from mpsteps._records import Record

RECENT = 20.0  # seconds over which the rate is measured


class Running(NamedTuple):
    """A step at work: since when, seconds since the epoch."""

    step: int
    func: str
    worker: int
    since: float


class LiveRun:
    """The last session. `info`: its record; `status`: running, or how it ended; `failures`: the last ones, as (step,
    function, why)."""

    def __init__(self) -> None:
        self.info: Dict[str, Any] = {}
        self._begin()

    def _begin(self) -> None:
        self.status = "running" if self.info else "new"
        self.message = ""
        self.functions: Dict[str, Tally] = {}
        self.failures: Deque[Tuple[int, str, str]] = deque(maxlen=5)
        self.last = float(self.info.get("started") or 0.0)  # the time of the last record that has one
        self._func: Dict[int, str] = {}
        self._needs: Dict[int, Sequence[int]] = {}
        self._state: Dict[int, str] = {}  # of steps that have ended
        self._lanes: Dict[int, Deque[Tuple[int, float]]] = {}  # pid -> steps sent and not ended, each with when
        self._free: Dict[int, float] = {}  # pid -> when the step before ended
        self._ends: Deque[Tuple[float, int]] = deque()  # lately: when, and how many

    @property
    def total(self) -> int:
        """Steps there are."""
        return len(self._func)

    @property
    def done(self) -> int:
        """Finished ones."""
        return sum(t.finished for t in self.functions.values())

    # --------------------------------------------------------------------------------------------------- records

    def feed(self, records: Sequence[Record]) -> None:
        """Take in what has come."""
        for record in records:
            handler = getattr(self, f"_on_{record[0]}", None)
            if handler is not None:
                handler(*record[1:])

    def _on_protocol(self, info: Dict[str, Any]) -> None:
        self.info = dict(info)
        self._begin()

    def _on_steps(self, first: int, func: str, args: List[Any], needs: List[List[int]]) -> None:
        for step, own in enumerate(needs, first):
            self._insert(step, func, own)

    def _on_inserted(self, step: int, func: str, args: Any, digest: str, needs: List[int], options: Any) -> None:
        self._insert(step, func, needs)

    def _insert(self, step: int, func: str, needs: Sequence[int]) -> None:
        if step not in self._func:
            self._func[step] = func
            self.functions.setdefault(func, Tally()).total += 1
        self._needs[step] = needs

    def _on_kept(self, step: int, digest: str) -> None:
        self._end(step, "finished")
        self.functions[self._func[step]].kept += 1

    def _on_started(self, pid: int, attempt: int, time: float, steps: List[int]) -> None:
        self.last = max(self.last, time)
        self._lanes.setdefault(pid, deque()).extend((step, time) for step in steps)

    def _on_finished(self, pid: int, time: float, steps: List[List[Any]]) -> None:
        self._finish(pid, time, [(step, float(wall)) for step, wall, *_ in steps])

    def _on_done(self, pid: int, time: float, steps: List[int], wall: List[int], cpu: List[int]) -> None:
        self._finish(pid, time, [(step, w / 1e6) for step, w in zip(steps, wall)])

    def _finish(self, pid: int, time: float, steps: List[Tuple[int, float]]) -> None:
        self.last = max(self.last, time)
        for step, wall in steps:
            self._leave(pid, step, time)
            self._end(step, "finished")
            tally = self.functions[self._func[step]]
            tally.seconds += wall
            tally.timed += 1
        self._ends.append((time, len(steps)))

    def _on_failed(self, step: int, pid: int, attempt: int, time: float, error: Dict[str, Any]) -> None:
        self.last = max(self.last, time)
        self._leave(pid, step, time)
        self._end(step, "failed")
        self.failures.append((step, self._func[step], str(error.get("cause") or error.get("message") or "")))

    _on_lost = _on_failed

    def _on_skipped(self, steps: List[int], because: str) -> None:
        for step in steps:
            self._end(step, "skipped")

    def _on_returned(self, steps: List[int]) -> None:
        gone = set(steps)
        for lane in self._lanes.values():
            if any(step in gone for step, _ in lane):
                kept = [item for item in lane if item[0] not in gone]
                lane.clear()
                lane.extend(kept)

    def _on_ended(self, status: str, time: float, message: Any) -> None:
        self.status, self.message, self.last = str(status), str(message or ""), max(self.last, time)
        self._lanes.clear()

    def _end(self, step: int, state: str) -> None:
        tally, before = self.functions[self._func[step]], self._state.get(step)
        if before is not None:  # a failed attempt was not the last
            setattr(tally, before, getattr(tally, before) - 1)
        setattr(tally, state, getattr(tally, state) + 1)
        self._state[step] = state

    def _leave(self, pid: int, step: int, time: float) -> None:
        lane = self._lanes.get(pid)
        if lane:
            if lane[0][0] == step:
                lane.popleft()
            else:
                kept = [item for item in lane if item[0] != step]
                lane.clear()
                lane.extend(kept)
        self._free[pid] = time

    # --------------------------------------------------------------------------------------------------- figures

    def running(self) -> List[Running]:
        """The first step of each lane, those that have been running longest first."""
        found = [
            Running(lane[0][0], self._func[lane[0][0]], pid, max(lane[0][1], self._free.get(pid, 0.0)))
            for pid, lane in self._lanes.items() if lane
        ]  # fmt: skip
        return sorted(found, key=lambda r: r.since)

    def pids(self) -> List[int]:
        """Workers that have been sent a step."""
        return sorted(self._lanes)

    def rate(self, now: float) -> Optional[float]:
        """Steps that finish in a second, lately; None if none has."""
        while self._ends and self._ends[0][0] < now - RECENT:
            self._ends.popleft()
        if not self._ends:
            return None
        began = float(self.info.get("started") or 0.0)
        return sum(n for _, n in self._ends) / max(0.001, min(RECENT, now - began))

    def seconds_left(self, now: float) -> Optional[float]:
        """How long it may still take, see `_forecast`; None if too little is known."""
        means = means_of_what_is_left(self.functions)
        if means is None:
            return None
        age = {r.step: now - r.since for r in self.running()}
        open_ = ((s, self._func[s], self._needs.get(s, ())) for s in sorted(self._func) if s not in self._state)
        running = [(self._func[step], seconds) for step, seconds in age.items()]
        return seconds_left(
            self.functions, int(self.info.get("threads") or 1), running, longest_chain(open_, means, age)
        )
