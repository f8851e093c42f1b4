"""Memory that nobody has declared: the scheduler and who measures, rehearsed in simulated time.

A rehearsal has workers whose steps grow as they are told, the real `MemoryNeeds`, which sees them through functions of
the rehearsal, and the real scheduler. What the steps have together is added up at every tick.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

import pytest

from mpsteps import _memory_needs
from mpsteps._core import events as ev
from mpsteps._core.scheduler import Scheduler
from mpsteps._core.slots import SlotPool
from mpsteps._core.steps import PLAIN, Demand
from mpsteps._learned_memory import ASSUMED, MARGIN
from mpsteps._memory_needs import LOOK_SECONDS, MemoryNeeds

GB, MB = 10**9, 10**6
TICK = 0.05
IMPORTS = 30 * MB  # what a worker has anyway


class Kind(NamedTuple):
    """Steps of one function: seconds they take, and bytes that they have after so many seconds."""

    seconds: float
    memory: Callable[[float], float]


def at_once(size: float, after: float = 0.0, rate: float = 2 * GB) -> Callable[[float], float]:
    """Memory that is taken as fast as the machine hands it out, once `after` seconds have passed."""
    return lambda age: max(0.0, min(size, (age - after) * rate))


class Rehearsal:
    """`total` bytes, `others` of which somebody else uses."""

    def __init__(self, monkeypatch: Any, workers: int, total: int, others: int = 0, known: Any = None) -> None:
        self.now = 100.0
        self.total, self.others = total, others
        self.running: Dict[int, Tuple[int, float]] = {}  # worker -> step, when it began
        self.kinds: Dict[str, Kind] = {}
        self.function: Dict[int, str] = {}
        self.most = 0.0
        self.at_once: Dict[str, int] = {}
        self.ended: Dict[int, float] = {}
        self.began: Dict[int, float] = {}
        self.looks = 0
        monkeypatch.setattr(_memory_needs, "own_memory", lambda pid: int(self.used(pid)))
        monkeypatch.setattr(_memory_needs, "available", self._available)
        monkeypatch.setattr(_memory_needs, "process_table", dict)
        monkeypatch.setattr(_memory_needs.time, "monotonic", lambda: self.now)
        self.needs = MemoryNeeds(total, total / workers, known or {})
        self.scheduler = Scheduler(SlotPool(workers, total), assumed=self.needs.assumed)
        self._handle(self.needs.first())
        for worker in range(1, workers + 1):
            self._handle(ev.WorkerReady(worker))

    def used(self, worker: int) -> float:
        """Bytes of a worker (whose number is its pid) and of what it runs."""
        step, began = self.running.get(worker, (0, 0.0))
        return IMPORTS + (self.kinds[self.function[step]].memory(self.now - began) if step else 0.0)

    def in_use(self) -> float:
        return sum(self.used(worker) - IMPORTS for worker in self.running)

    def _available(self) -> int:
        return int(self.total - self.others - self.in_use())

    def add(self, name: str, count: int, kind: Kind, demand: Demand = PLAIN) -> List[int]:
        self.kinds[name] = kind
        first = len(self.function) + 1
        steps = list(range(first, first + count))
        self.function.update((step, name) for step in steps)
        for step in steps:
            self._handle(ev.StepAdded(step, (), False, demand, name))
        return steps

    def _handle(self, event: Any) -> None:
        for command in self.scheduler.handle(event):
            if isinstance(command, ev.Running):
                self.running[command.worker] = (command.step, self.now)
                self.began[command.step] = self.now
                if self.scheduler.watches_memory(command.step):
                    function = self.scheduler.function(command.step)
                    self.needs.begin(command.worker, command.step, 1, function, command.worker)
        self.scheduler.check_invariants()

    def run(self, limit: float = 3600.0, until: float = 1e9) -> float:
        """Until all is done, or so many seconds have passed; the seconds that it took."""
        start = self.now
        while len(self.ended) < len(self.function) and self.now < start + until:
            assert self.now < start + limit, "it does not come to its end"
            self.now += TICK
            self._count()
            for worker, (step, began) in list(self.running.items()):
                kind = self.kinds[self.function[step]]
                if self.now - began >= kind.seconds - 1e-9:
                    self._end(worker, step, kind)
            self._look()
        return self.now - start

    def _count(self) -> None:
        self.most = max(self.most, self.in_use())
        running = [self.function[step] for step, _ in self.running.values()]
        for name in running:
            self.at_once[name] = max(self.at_once.get(name, 0), running.count(name))

    def _end(self, worker: int, step: int, kind: Kind) -> None:
        del self.running[worker]
        self.ended[step] = self.now
        if kind.seconds >= 0.01:
            peak = max(kind.memory(kind.seconds * i / 50) for i in range(51)) + IMPORTS
            learned = self.needs.peak(self.function[step], int(peak) // 1024)
            if learned is not None:
                self._handle(learned)
        self._handle(ev.StepsFinished(worker, (step,), (kind.seconds,)))

    def _look(self) -> None:
        due = self.needs.next_look()
        if due is None or due > self.now:
            return
        for worker, step, _ in self.needs.running():
            if step not in self.scheduler.lane(worker):
                self.needs.end(worker)
        if self.needs.watched:
            self.looks += 1
            self._handle(self.needs.look(self.now))


GROWTHS = {
    "at once": at_once(3 * GB),
    "after a second": at_once(3 * GB, after=1.0),
    "slowly": at_once(3 * GB, rate=0.2 * GB),
    "in the end": at_once(3 * GB, after=0.5, rate=0.3 * GB),
    "a part first": lambda age: min(3 * GB, 0.3 * GB + max(0.0, age - 1.5) * GB) if age > 0.2 else age * GB,
}


@pytest.mark.parametrize("growth", GROWTHS)
def test_steps_of_which_four_fit_run_without_any_declaration(monkeypatch, growth):
    """3 GB each, where there is room for four: sixteen workers, and nobody has said anything."""
    rehearsal = Rehearsal(monkeypatch, workers=16, total=13 * GB)
    rehearsal.add("large", 40, Kind(20.0, GROWTHS[growth]))

    seconds = rehearsal.run()

    assert rehearsal.most <= 13 * GB, "more than there is: it would have swapped, or been killed"
    assert rehearsal.at_once["large"] >= 3
    assert seconds < 1.15 * 40 / 3 * 20, "as quick as three at a time, which is what fits with a margin"


def test_without_it_the_machine_would_be_full(monkeypatch):
    """The rehearsal is able to see what it looks for."""
    monkeypatch.setattr(_memory_needs, "ASSUMED", 0)
    rehearsal = Rehearsal(monkeypatch, workers=16, total=13 * GB)
    rehearsal.add("large", 16, Kind(20.0, GROWTHS["at once"]))
    rehearsal.run()
    assert rehearsal.most > 40 * GB


def test_what_others_use_is_not_handed_out(monkeypatch):
    """Somebody else has half of the machine, and later takes more."""
    rehearsal = Rehearsal(monkeypatch, workers=16, total=26 * GB, others=13 * GB)
    rehearsal.add("large", 30, Kind(10.0, at_once(3 * GB)))
    rehearsal.run(until=60.0)
    assert rehearsal.most <= 13 * GB
    assert rehearsal.at_once["large"] >= 3

    rehearsal.others = 19 * GB
    rehearsal.run(until=12.0)  # those that run end in their own time
    rehearsal.at_once, rehearsal.most = {}, 0.0
    rehearsal.run()
    assert rehearsal.most <= 7 * GB
    assert rehearsal.at_once["large"] <= 2


def test_a_step_that_needs_more_than_there_is_runs_alone(monkeypatch):
    """To wait would be to wait for ever."""
    rehearsal = Rehearsal(monkeypatch, workers=4, total=2 * GB, others=GB)
    rehearsal.add("huge", 5, Kind(5.0, at_once(6 * GB)))
    rehearsal.run(limit=60)
    assert rehearsal.at_once["huge"] == 1


@pytest.mark.parametrize("workers", [2, 8, 64])
def test_where_there_is_plenty_of_memory_nobody_waits(monkeypatch, workers):
    """All begin at once, and none of them is looked at."""
    rehearsal = Rehearsal(monkeypatch, workers, total=workers * ASSUMED)
    steps = rehearsal.add("some", workers, Kind(1.0, at_once(GB)))
    assert {rehearsal.began[s] for s in steps} == {rehearsal.now}
    assert rehearsal.run() == pytest.approx(1.0, abs=TICK)
    assert not rehearsal.looks


@pytest.mark.parametrize(("memory", "most"), [(6 * GB, 20.0), (12 * GB, 8.0), (24 * GB, 2.0)])
def test_small_steps_lose_little_where_memory_is_scarce(monkeypatch, memory, most):
    """Eight workers, steps of 100 MB that take long: they all begin within so many seconds."""
    rehearsal = Rehearsal(monkeypatch, workers=8, total=memory)
    steps = rehearsal.add("small", 8, Kind(30.0, at_once(100 * MB)))
    rehearsal.run()
    assert max(rehearsal.began[s] for s in steps) - 100.0 <= most


def test_one_short_step_tells_enough(monkeypatch):
    """The others begin as soon as the first has ended."""
    rehearsal = Rehearsal(monkeypatch, workers=8, total=4 * GB)
    steps = rehearsal.add("short", 80, Kind(TICK, at_once(10 * MB)))
    assert rehearsal.run() <= 12 * TICK
    assert sorted(rehearsal.began[s] for s in steps)[8] - 100.0 == pytest.approx(TICK)


def test_light_steps_pass_those_that_wait_for_memory(monkeypatch):
    """Their workers would have nothing to do otherwise."""
    rehearsal = Rehearsal(monkeypatch, workers=8, total=8 * GB)
    rehearsal.add("large", 20, Kind(10.0, at_once(3 * GB)))
    light = rehearsal.add("light", 100, Kind(2.0, at_once(50 * MB)))
    seconds = rehearsal.run()
    assert rehearsal.most <= 8 * GB
    assert max(rehearsal.ended[s] for s in light) - 100.0 < 0.5 * seconds


def test_one_that_is_larger_than_its_like_is_noticed_while_it_runs(monkeypatch):
    """Peaks said 1 GB; this one takes 5 GB: nobody begins beside it who would not fit."""
    known = {"some": [MARGIN * GB] * 30}
    rehearsal = Rehearsal(monkeypatch, workers=8, total=7 * GB, known=known)
    rehearsal.add("some", 1, Kind(30.0, at_once(5 * GB)))
    rehearsal.run(limit=40)
    rehearsal = Rehearsal(monkeypatch, workers=8, total=7 * GB, known=known)
    first = rehearsal.add("some", 1, Kind(30.0, at_once(5 * GB)))
    for _ in range(100):
        rehearsal.now += TICK
        rehearsal._look()
    rehearsal.add("some", 7, Kind(30.0, at_once(5 * GB)))
    assert list(rehearsal.running.values()) == [(first[0], 100.0)]


def test_declared_steps_count_as_declared_and_are_not_looked_at(monkeypatch):
    """What the user says wins."""
    rehearsal = Rehearsal(monkeypatch, workers=8, total=8 * GB)
    steps = rehearsal.add("declared", 8, Kind(3.0, at_once(3 * GB)), Demand(memory=2 * GB))
    assert len(rehearsal.running) == 4
    rehearsal.run()
    assert not rehearsal.looks
    assert all(not rehearsal.scheduler.watches_memory(s) for s in steps)


def test_steps_with_other_demands_are_learned_of_too(monkeypatch):
    """Retries, a timeout: they do not say anything of memory."""
    rehearsal = Rehearsal(monkeypatch, workers=8, total=13 * GB)
    rehearsal.add("tried", 20, Kind(10.0, at_once(3 * GB)), Demand(retries=2, learned="tried"))
    rehearsal.run()
    assert rehearsal.most <= 13 * GB
    assert rehearsal.at_once["tried"] >= 3


def test_what_is_learned_changes_as_more_steps_end():
    """The newest peaks count; small changes are not told."""
    needs = MemoryNeeds(10 * GB, GB, {})
    assert needs.peak("f", 1000) is None, "it fits, whatever runs"
    told = needs.peak("f", 2 * GB // 1024)
    assert told is not None
    assert told.needs["f"] == pytest.approx(MARGIN * 2 * GB, rel=1e-3)
    assert needs.peak("f", int(2.01 * GB) // 1024) is None
    told: Optional[ev.MemoryLearned] = None
    for _ in range(300):
        told = needs.peak("f", 1000) or told
    assert told is not None
    assert told.needs["f"] < MB * 2, "the large ones were long ago"


def test_one_that_died_for_want_of_memory_would_have_had_more():
    needs = MemoryNeeds(10 * GB, GB, {})
    alive, dead = needs.peak("f", 2 * GB // 1024), needs.peak("g", 2 * GB // 1024, died=True)
    assert alive is not None
    assert dead is not None
    assert dead.needs["g"] > alive.needs["f"]


def test_looks_cost_what_they_may(monkeypatch):
    """Where it takes long to look, it is done more rarely."""
    needs = MemoryNeeds(10 * GB, 0.1 * GB, {})
    clock = [50.0]
    monkeypatch.setattr(_memory_needs.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(_memory_needs, "own_memory", lambda pid: MB)

    def slow_table() -> Dict[int, Any]:
        clock[0] += 0.1
        return {}

    needs.begin(1, 1, 1, "f", 1)
    assert needs.next_look() == 50.0 + LOOK_SECONDS
    monkeypatch.setattr(_memory_needs, "process_table", slow_table)
    needs.look(50.0)
    due = needs.next_look()
    assert due is not None
    assert due - clock[0] >= 5.0


def test_nobody_younger_takes_the_memory_that_a_heavy_step_waits_for():
    """Or small ones, one after the other, would keep it waiting. Those that take none may pass."""
    scheduler = Scheduler(SlotPool(6, 100), seconds={"heavy": 1.0})
    for worker in range(1, 7):
        scheduler.handle(ev.WorkerReady(worker))
    scheduler.handle(ev.MemoryLearned({"heavy": 60}))
    scheduler.handle(ev.StepsAdded(1, [(), ()], "heavy"))
    scheduler.handle(ev.StepAdded(3, (), False, Demand(memory=10), "small"))
    scheduler.handle(ev.StepAdded(4, (), False, Demand(retries=1, learned="tried"), "tried"))
    scheduler.handle(ev.StepAdded(5, (), False, PLAIN, "plain"))
    running = [step for _, lane in scheduler.lanes() for step in lane]
    assert running == [1, 4, 5]
    scheduler.handle(ev.StepsFinished(1, (1,), (1.0,)))
    assert sorted(step for _, lane in scheduler.lanes() for step in lane) == [2, 3, 4, 5]


def test_a_withdrawn_step_does_not_keep_heavy_ones_waiting():
    """It is the first of an unknown function, and nobody will begin it."""
    scheduler = Scheduler(SlotPool(2, 100), seconds={"heavy": 1.0}, assumed=50)
    scheduler.handle(ev.MemoryLearned({"heavy": 60}))
    scheduler.handle(ev.StepAdded(1, (), False, Demand(retries=1, learned="new"), "new"))
    scheduler.handle(ev.StepHeld(1))
    scheduler.handle(ev.StepAdded(2, (), False, PLAIN, "heavy"))
    scheduler.handle(ev.WorkerReady(1))
    assert scheduler.lane(1) == (2,)
    scheduler.check_invariants()


def test_steps_of_heavy_functions_do_not_follow_others_into_lanes():
    """They have to wait for memory, and what is sent ahead does not wait for anything but its prerequisites."""
    scheduler = Scheduler(SlotPool(2, 100), ahead=True, seconds={"f": 1e-5, "g": 1e-5})
    for worker in (1, 2):
        scheduler.handle(ev.WorkerReady(worker))
    scheduler.handle(ev.MemoryLearned({"g": 90}))
    scheduler.handle(ev.StepsAdded(1, [()] * 40, "f"))
    scheduler.handle(ev.StepsAdded(41, [(n,) for n in range(1, 41)], "g"))
    for _ in range(200):
        busy = [(worker, lane) for worker, lane in scheduler.lanes() if lane]
        if not busy:
            break
        functions = [[scheduler.function(s) for s in lane] for _, lane in busy]
        assert sum(f.count("g") for f in functions) <= 1
        worker, lane = busy[0]
        scheduler.handle(ev.StepsFinished(worker, lane[:1], (1e-5,)))
        scheduler.check_invariants()
    assert scheduler.counts[7] == 0
    assert not scheduler.active
