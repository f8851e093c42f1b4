"""Where the time of a run's workers went.

Pure: numbers in, numbers out. The time of all workers, from the first moment of a session to its last,
is shared out between steps that ran (*busy*) and reasons why a worker had nothing to do:

=============== ====================================================================================================
start           no step had begun yet, or the last one had ended: workers start, steps are inserted, results are kept
memory          steps could have started, but the memory that they declare was held by others
gpus, cpus      likewise, for graphics cards and for worker slots (`@step(cpus=...)`)
overhead        a step could have started and had not: the time it takes to hand out and take back steps
prerequisites   the steps that were left waited for others
input           there was nothing to do yet: steps were inserted later
tail            there was nothing left to start: the others finish
=============== ====================================================================================================
"""

from __future__ import annotations

import heapq
from typing import Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple

IDLE = ("memory", "gpus", "cpus", "overhead", "prerequisites", "input", "tail", "start")


class Piece(NamedTuple):
    """A step as it ran: `begin` and `end` in seconds; `worker` numbers the workers, -1 is the coordinator itself;
    `cpu`: CPU seconds, `peak`: bytes of memory, where they are known."""

    step: int
    func: str
    worker: int
    begin: float
    end: float
    attempt: int = 1
    cpu: Optional[float] = None
    peak: Optional[int] = None


class Needs(NamedTuple):
    """What a function's steps hold while they run: worker slots, bytes, cards. `measured`: nobody has declared the
    bytes."""

    cpus: int = 1
    memory: int = 0
    gpus: int = 0
    measured: bool = False


class Machine(NamedTuple):
    """What there was: worker processes, cores (0: not known), bytes (0: not limited), cards."""

    workers: int
    cores: int = 0
    memory: int = 0
    gpus: int = 0


def critical_path(
    pieces: Iterable[Piece], prerequisites: Mapping[int, Sequence[int]]
) -> Tuple[Tuple[int, ...], float]:  # fmt: skip
    """The chain of prerequisites that takes longest, by the time of the steps alone. `pieces` in order of begin."""
    length: Dict[int, float] = {}
    before: Dict[int, Optional[int]] = {}
    for p in pieces:
        best = max((n for n in prerequisites.get(p.step, ()) if n in length), key=length.__getitem__, default=None)
        if best == p.step:
            best = None
        total = p.end - p.begin + (length[best] if best is not None else 0.0)
        if p.step in length:  # another attempt
            total = max(total, length[p.step])
        length[p.step], before[p.step] = total, best
    if not length:
        return (), 0.0
    at: Optional[int] = max(length, key=length.__getitem__)
    total = length[at] if at is not None else 0.0
    path: List[int] = []
    while at is not None:
        path.append(at)
        at = before[at]
    return tuple(reversed(path)), total


def most_at_once(pieces: Sequence[Piece]) -> int:
    """How many ran together, at most."""
    most = running = 0
    for _, change in sorted([*((p.begin, 1) for p in pieces), *((p.end, -1) for p in pieces)]):
        running += change
        most = max(most, running)
    return most


class Account(NamedTuple):
    shares: Dict[str, float]
    blame: Dict[int, float]  # step -> idle worker seconds in which others waited for it, or it was the last
    most_at_once: Dict[str, int]  # function -> how many of its steps ran together, at most


class Run:
    """One session: its pieces, and the sweep along time that accounts for the workers' time."""

    def __init__(
        self, pieces: Sequence[Piece], prerequisites: Mapping[int, Sequence[int]], machine: Machine, began: float,
        ended: float, needs: Mapping[str, Needs], inserted: Mapping[int, float],
    ) -> None:  # fmt: skip
        self.pieces, self.prerequisites, self.machine = pieces, prerequisites, machine
        self.began, self.ended, self.needs, self.inserted = began, ended, needs, inserted
        self.work = sum(p.end - p.begin for p in pieces if p.worker >= 0)
        self.seconds = {p.step: p.end - p.begin for p in pieces}
        self.func = {p.step: p.func for p in pieces}
        measured = [p for p in pieces if p.cpu is not None and p.end > p.begin]
        spent = sum(p.end - p.begin for p in measured)
        self.cpu_use = sum(p.cpu or 0.0 for p in measured) / spent if spent else None  # CPU seconds a second

    @property
    def wall(self) -> float:
        return self.ended - self.began

    def need(self, func: str) -> Needs:
        """What its steps hold here: never more than there is in all, as the scheduler gives it."""
        n, m = self.needs.get(func, _PLAIN), self.machine
        return Needs(min(n.cpus, max(1, m.workers)), min(n.memory, m.memory), min(n.gpus, m.gpus), n.measured)

    def _ready_at(self) -> List[float]:
        """When each piece could have begun."""
        ends: Dict[int, float] = {}
        ready: List[float] = []
        for p in self.pieces:
            at = max([self.inserted.get(p.step, self.began), *(ends.get(n, 0.0) for n in
                                                               self.prerequisites.get(p.step, ()))])  # fmt: skip
            ready.append(p.begin if p.attempt > 1 else min(at, p.begin))
            ends[p.step] = p.end
        return ready

    def account(self) -> Account:
        """Go through the session from event to event, and say of each interval what the workers did."""
        spent = dict.fromkeys(("busy", *IDLE), 0.0)
        blame: Dict[int, float] = {}
        most: Dict[str, int] = {}
        ready: Dict[str, int] = {}
        running: Dict[int, Piece] = {}
        running_of: Dict[str, int] = {}
        there = 0  # inserted, and neither ready nor begun
        coming = len(self.pieces)  # not inserted yet
        left = len(self.pieces)  # not begun
        now, used, first = self.began, 0, True
        for when, kind, number in self._events():
            if when > now:
                used = sum(self.need(f).cpus * n for f, n in running_of.items() if n)
                self._interval(when - now, used, first or not (left or running), ready, running_of, there, coming,
                               running, spent, blame)  # fmt: skip
                now = when
            p = self.pieces[number]
            if kind == _INSERTED:
                there += 1
                coming -= 1
            elif kind == _READY:
                there -= 1
                ready[p.func] = ready.get(p.func, 0) + 1
            elif kind == _BEGIN:
                ready[p.func] -= 1
                left, first = left - 1, False
                if p.worker >= 0:
                    running_of[p.func] = running_of.get(p.func, 0) + 1
                    most[p.func] = max(most.get(p.func, 0), running_of[p.func])
                running[number] = p
            else:
                if p.worker >= 0:
                    running_of[p.func] -= 1
                del running[number]
        if self.ended > now:
            spent["start"] += (self.ended - now) * self.machine.workers
        total = max(sum(spent.values()), 1e-12)
        return Account({kind: seconds / total for kind, seconds in spent.items()}, blame, most)

    def _events(self) -> Iterable[Tuple[float, int, int]]:
        """In order; of one moment: ends, then what they make ready, then begins."""
        ready = self._ready_at()
        streams = []
        for kind, times in (
            (_END, [p.end for p in self.pieces]),
            (_INSERTED, [min(self.inserted.get(p.step, self.began), r) for p, r in zip(self.pieces, ready)]),
            (_READY, ready),
            (_BEGIN, [p.begin for p in self.pieces]),
        ):
            streams.append(sorted((t, kind, number) for number, t in enumerate(times)))
        return _ends_after_begins(heapq.merge(*streams))

    def _interval(
        self, dt: float, used: int, outside: bool, ready: Dict[str, int], running_of: Dict[str, int], there: int,
        coming: int, running: Dict[int, Piece], spent: Dict[str, float], blame: Dict[int, float],
    ) -> None:  # fmt: skip
        workers = self.machine.workers
        busy = min(workers, used)
        spent["busy"] += busy * dt
        idle = workers - busy
        if idle and outside:
            spent["start"] += idle * dt
            return
        if not idle:
            return
        lacking: Dict[str, int] = {}
        for func, count in ready.items():
            if count:
                what = self._lacks(self.need(func), running_of, idle)
                lacking[what] = lacking.get(what, 0) + count * self.need(func).cpus
        for what in ("overhead", "memory", "gpus", "cpus"):
            n = min(idle, lacking.get(what, 0))
            spent[what] += n * dt
            idle -= n
        if idle:
            spent["prerequisites" if there else "input" if coming else "tail"] += idle * dt
            if running and (there or not coming):
                for p in running.values():
                    blame[p.step] = blame.get(p.step, 0.0) + idle * dt / len(running)

    def _lacks(self, need: Needs, running_of: Dict[str, int], idle: int) -> str:
        if need.memory or need.gpus:
            memory = gpus = 0
            for func, n in running_of.items():
                other = self.need(func)
                memory += other.memory * n
                gpus += other.gpus * n
            if need.gpus and gpus + need.gpus > self.machine.gpus:
                return "gpus"
            if need.memory and memory + need.memory > self.machine.memory:
                return "memory"
        return "cpus" if need.cpus > idle else "overhead"


_PLAIN = Needs()
_END, _INSERTED, _READY, _BEGIN = range(4)


def _ends_after_begins(events: Iterable[Tuple[float, int, int]]) -> Iterable[Tuple[float, int, int]]:
    """A step that took no time at all ends after it has begun."""
    begun = set()
    early = set()
    for event in events:
        _, kind, number = event
        if kind == _END and number not in begun:
            early.add(number)
            continue
        yield event
        if kind == _BEGIN:
            begun.add(number)
            if number in early:
                yield (event[0], _END, number)
