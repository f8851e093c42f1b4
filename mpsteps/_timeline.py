"""When each attempt of each step ran, and on which worker: the journal's records laid out along time.

The journal says when a step was sent to a worker, how long its function took, and when its end was recorded. Several
short steps are sent together and their ends are recorded together, so the moment in which a step began is worked out:
after it was sent, after the step before it on that worker, after its prerequisites, and so early that it and all that
follow it fit before their record. What is left over is spread evenly between them: it is what a step costs beside its
function.
"""

from __future__ import annotations

from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

from mpsteps._records import Record
from mpsteps._traffic import Traffic, traffic_of


class Span(NamedTuple):
    """One attempt of one step. `worker` is a row of the session's `Session.workers`; `begin` and `end` are seconds
    since the epoch, `cpu` seconds or None, `peak_kib` KiB or None, `traffic` bytes or None.

    `status`: finished, failed, lost (its worker died), cut (the session ended, and nobody said what became of it) or
    running (in a session that is not over). `end` of the last two is the last moment of which the journal knows.
    """

    session: int
    step: int
    func: str
    worker: int
    begin: float
    end: float
    attempt: int
    status: str
    cpu: Optional[float] = None
    peak_kib: Optional[int] = None
    traffic: Optional[Traffic] = None


class Session:
    """One session of a run, times in seconds since the epoch. `workers`: what the rows of its spans are called.

    `inserted`: when the steps that were inserted while it ran were there, at the latest; the others were from `began`.
    """

    def __init__(self, number: int, info: Dict[str, Any]) -> None:
        self.number = number
        self.info = info
        self.began = _time(info.get("started")) or 0.0
        self.ended = self.began
        self.status = "running"
        self.kept = 0
        self.workers: List[str] = []
        self.inserted: Dict[int, float] = {}


class Timeline(NamedTuple):
    """All sessions of a run, oldest first, and all spans, by session and in the order in which they ended."""

    sessions: List[Session]
    spans: List[Span]

    def of_session(self, number: int) -> List[Span]:
        """The spans of one session (from 1)."""
        return [span for span in self.spans if span.session == number]


def timeline(records: Iterable[Record], now: Optional[float] = None) -> Timeline:
    """Lay out the records of a journal that `replay` has accepted. `now`: the present, if its last session is alive."""
    fold = _Fold()
    for record in records:
        handler = getattr(fold, f"_on_{record[0]}", None)
        if handler is not None:
            handler(*record[1:])
    fold.close(now)
    return Timeline(fold.sessions, fold.spans)


class _Fold:
    """The state of `timeline`: sessions, spans, and what is known of the present session."""

    def __init__(self) -> None:
        self.sessions: List[Session] = []
        self.spans: List[Span] = []
        self._begin_session()

    def _begin_session(self) -> None:
        self._funcs: Dict[int, str] = {}
        self._needs: Dict[int, Sequence[int]] = {}
        self._sent: Dict[int, Tuple[float, Any, int]] = {}  # step -> when, pid, attempt; until it ends
        self._ended: Dict[int, float] = {}
        self._free: Dict[Any, float] = {}  # pid -> end of the span before
        self._rows: Dict[Any, int] = {}
        self._uses: Dict[Any, List[float]] = {}  # pid -> first time it was sent something, last end
        self._new: List[int] = []  # inserted since the last record that has a time
        self._first = len(self.spans)  # of this session

    # ------------------------------------------------------------------------------- the records that matter here

    def _on_protocol(self, info: Dict[str, Any]) -> None:
        self.close(None)
        self._begin_session()
        self.sessions.append(Session(len(self.sessions) + 1, dict(info)))

    def _on_steps(self, first: int, func: str, args: List[Any], prerequisites: List[List[int]]) -> None:
        for step, needs in enumerate(prerequisites, first):
            self._insert(step, func, needs)

    def _on_inserted(self, step: int, func: str, args: Any, digest: str, needs: List[int], options: Any) -> None:
        self._insert(step, func, needs)

    def _insert(self, step: int, func: str, needs: Sequence[int]) -> None:
        if step not in self._funcs and self._uses:
            self._new.append(step)
        self._funcs[step], self._needs[step] = str(func), needs

    def _on_kept(self, step: int, digest: str) -> None:
        self.sessions[-1].kept += 1

    def _on_started(self, pid: Any, attempt: int, time: Any, steps: List[int]) -> None:
        now = self._at(time)
        self._uses.setdefault(pid, [now, now])
        for step in steps:
            self._sent[step] = (now, pid, attempt)

    def _on_finished(self, pid: Any, time: Any, steps: List[List[Any]]) -> None:
        self._batch(pid, self._at(time), [(s, _time(wall) or 0.0, *more) for s, wall, *more in steps])

    def _on_done(self, pid: Any, time: Any, steps: List[int], wall: List[int], cpu: List[int]) -> None:
        self._batch(pid, self._at(time), [(s, w / 1e6, c / 1e6) for s, w, c in zip(steps, wall, cpu)])

    def _on_failed(self, step: int, pid: Any, attempt: int, time: Any, error: Dict[str, Any]) -> None:
        self._unsuccessful("failed", step, self._at(time), error)

    def _on_lost(self, step: int, pid: Any, attempt: int, time: Any, error: Dict[str, Any]) -> None:
        self._unsuccessful("lost", step, self._at(time), error)

    def _on_returned(self, steps: List[int]) -> None:
        for step in steps:
            self._sent.pop(step, None)

    def _on_ended(self, status: str, time: Any, message: Any) -> None:
        self._at(time)
        self.sessions[-1].status = str(status)

    # ------------------------------------------------------------------------------------------- laying them out

    def _at(self, time: Any) -> float:
        """The time of a record; steps that were inserted just before it were there by then."""
        session = self.sessions[-1]
        now = _time(time)
        if now is None:
            return session.ended
        session.ended = max(session.ended, now)
        for step in self._new:
            session.inserted[step] = now
        self._new.clear()
        return now

    def _batch(self, pid: Any, recorded: float, steps: List[Tuple[Any, ...]]) -> None:
        """`steps`: id, wall time, CPU time, and maybe peak and traffic."""
        rest = sum(step[1] for step in steps)
        left = len(steps)
        for step, wall, cpu, *more in steps:
            sent, _, attempt = self._sent.pop(step, (recorded - rest, pid, 1))
            needs = self._needs.get(step, ())
            earliest = max([sent, self._free.get(pid, 0.0), *(self._ended.get(p, 0.0) for p in needs)])
            spare = max(0.0, recorded - earliest - rest) / left
            begin = earliest + spare / 2
            self._free[pid] = begin + wall + spare / 2
            self._span(pid, step, begin, begin + wall, attempt, "finished", _time(cpu), *_more(*more))
            rest -= wall
            left -= 1

    def _unsuccessful(self, status: str, step: int, recorded: float, error: Dict[str, Any]) -> None:
        if step not in self._sent:  # it never left the coordinator: an argument that cannot travel
            return
        sent, pid, attempt = self._sent.pop(step)
        begin = max(sent, self._free.get(pid, 0.0))
        end = self._free[pid] = max(begin, recorded)
        self._span(pid, step, begin, end, attempt, status, None, _whole(error.get("peak_kib")))

    def _span(
        self, pid: Any, step: int, begin: float, end: float, attempt: int, status: str, cpu: Optional[float],
        peak: Optional[int], traffic: Optional[Traffic] = None,
    ) -> None:  # fmt: skip
        self._ended[step] = end
        use = self._uses.setdefault(pid, [begin, end])
        use[1] = max(use[1], end)
        self.spans.append(Span(len(self.sessions), step, self._funcs.get(step, ""), self._row(pid), begin, end,
                               attempt, status, cpu, peak, traffic))  # fmt: skip

    def _row(self, pid: Any) -> int:
        if pid not in self._rows:
            self._rows[pid] = len(self._rows)
        return self._rows[pid]

    # --------------------------------------------------------------------------------------------- end of a session

    def close(self, now: Optional[float]) -> None:
        """The present session is over, or is looked at in the moment `now`."""
        if not self.sessions:
            return
        session = self.sessions[-1]
        alive = now is not None and session.status == "running"
        if now is not None and alive:
            session.ended = max(session.ended, now)
        for step, (sent, pid, attempt) in sorted(self._sent.items(), key=lambda item: item[1][0]):
            begin = max(sent, self._free.get(pid, 0.0))
            if begin >= session.ended:
                continue  # it waits behind another one
            self._free[pid] = session.ended
            self._span(pid, step, begin, session.ended, attempt, "running" if alive else "cut", None, None)
        self._sent.clear()
        self._pack_rows(session)

    def _pack_rows(self, session: Session) -> None:
        """Workers that took the place of dead ones share their rows; the coordinator has one of its own."""
        own = session.info.get("pid")
        lasts: List[float] = []
        names: List[List[str]] = []
        row_of: Dict[int, int] = {}
        most = session.info.get("threads")
        for pid, old in sorted(self._rows.items(), key=lambda item: self._uses[item[0]][0]):
            first, last = self._uses[pid]
            free = [row for row, end in enumerate(lasts) if end <= first]
            if pid == own or not free or (isinstance(most, int) and len(lasts) < most):
                row_of[old] = len(lasts)
                lasts.append(float("inf") if pid == own else last)
                names.append([f"coordinator {pid}" if pid == own else f"{pid}"])
            else:
                row = min(free, key=lasts.__getitem__)
                row_of[old], lasts[row] = row, last
                names[row].append(str(pid))
        session.workers = [
            name[0] if name[0].startswith("coordinator") else f"worker {number} ({', '.join(name[-3:])})"
            for number, name in enumerate(names, 1)
        ]
        first = self._first
        if any(old != new for old, new in row_of.items()):
            self.spans[first:] = [span._replace(worker=row_of[span.worker]) for span in self.spans[first:]]


def _time(value: object) -> Optional[float]:
    return float(value) if isinstance(value, (int, float)) else None


def _whole(value: object) -> Optional[int]:
    return value if isinstance(value, int) else None


def _more(peak: object = None, traffic: object = None) -> Tuple[Optional[int], Optional[Traffic]]:
    return _whole(peak), traffic_of(traffic)
