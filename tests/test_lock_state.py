"""Write-back and the lock: what is read and written under it is exact, whatever the order in which messages arrive.

As in `test_statelog`, a worker is an object with a tracker and two lanes of messages, here with steps that tell what
they have changed, and are let in in the middle. Time passes only where a test says so.
"""

from __future__ import annotations

import random
from collections import deque
from typing import Any, Deque, Dict, List, Optional, Tuple

import pytest

from mpsteps._ipc import state, wire
from mpsteps._lock_queue import Claim, LockQueue
from mpsteps._statelog import StateLog


class Thing:
    """Stands for a protocol: only its attributes matter."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


def fresh() -> Thing:
    """Attributes that are changed under the lock, and (the second line) without it."""
    return Thing(
        top=0, seq=[], table={"a": 1}, order=[], both=set(), last=None,
        grown=[], found={}, count=0,
    )  # fmt: skip


def free_change(thing: Thing, i: int) -> None:
    """What needs no lock."""
    thing.grown.append(i)
    thing.found[i] = 1
    thing.count += 1


def locked_change(thing: Thing, i: int) -> None:
    """What does: each reads what it writes. Which of it, the number says."""
    thing.order.append(i)
    if i % 2:
        thing.top = thing.top * 3 % 1009 + i
    if i % 3:
        thing.seq = [*thing.seq[-3:], i]
    if i % 5:
        thing.table["a"] = (thing.table["a"] * 2 + i) % 1013
        thing.table[f"k{i % 4}"] = len(thing.order)
    if i % 7:
        thing.both ^= {i % 11}
    thing.last = None if i % 4 else (i, len(thing.order))


class Code:
    """`count` is counted, all else is set."""

    def adds(self, name: str, inside: bool) -> bool:
        return name == "count"

    def begins(self, name: str, inside: bool) -> bool:
        return name != "last"

    def sets(self, name: str, inside: bool) -> bool:
        return not self.adds(name, inside)


CODE = Code()
Script = List[str]
"""What a step does: 'free', 'lock' (a change under it), 'twice' (two). 'late' is what a second thread of the step does
without the lock while the first waits for it."""


class Replica:
    """One worker. It says ('changed' or 'late', step, parcel, what), ('lock', step), ('unlock', step, what) and ('end',
    step, parcel, what), where `what` is for the books of the test: numbers of changes, free or under the lock."""

    def __init__(self, number: int, image: Dict[str, Any], numbers: Any) -> None:
        self.number = number
        self.thing = Thing(**wire.unpack(wire.pack(image)))
        self.tracker = state.Tracker(self.thing, ())
        self.inbox: Deque[Tuple[Any, ...]] = deque()
        self.outbox: Deque[Tuple[Any, ...]] = deque()
        self.queue: Deque[List[Any]] = deque()
        self.unheard: List[Any] = []
        self.pending: Deque[Tuple[int, bytes]] = deque()
        self.reported = 0
        self.step = 0
        self.script: Deque[str] = deque()
        self.section = ""
        self.waits = self.granted = False
        self.free: List[int] = []
        self._numbers = numbers

    def move(self) -> bool:
        """Do the next thing; False: there is none."""
        while self.inbox:
            what, step, news, script = self.inbox.popleft()
            if what == "step":
                self.queue.append([step, news, script])
            else:
                self._hear_later(news)
                self.granted = True
        if self.waits:
            if self.script and self.script[0] == "late":
                self.script.popleft()
                self._change_free()
                return True
            if not self.granted:
                return False
            self._under_lock()
        elif self.step and self.script:
            self._next()
        elif self.step:
            self.outbox.append(("end", self.step, self._changes(), self._take_free()))
            self.step = 0
        elif self.queue:
            self.step, news, script = self.queue.popleft()
            self.script.extend(script)
            if news is not None:
                self.unheard.append(news)
            self._hear()
        else:
            return False
        return True

    def _next(self) -> None:
        what = self.script.popleft()
        if what in ("free", "late"):
            self._change_free()
        else:
            self.section = what
            parcel = self._changes()
            if parcel is not None:
                self.outbox.append(("changed", self.step, parcel, self._take_free()))
            self.outbox.append(("lock", self.step))
            self.waits, self.granted = True, False

    def _under_lock(self) -> None:
        late = self._changes()
        if late is not None:
            self.outbox.append(("late", self.step, late, self._take_free()))
        self._hear()
        done = []
        for _ in range(2 if self.section == "twice" else 1):
            done.append(next(self._numbers))
            locked_change(self.thing, done[-1])
        parcel = self._changes()
        assert parcel is not None
        self.outbox.append(("changed", self.step, parcel, self._take_free()))
        self.outbox.append(("unlock", self.step, done))
        self.waits = False

    def _change_free(self) -> None:
        self.free.append(next(self._numbers))
        free_change(self.thing, self.free[-1])

    def _take_free(self) -> List[int]:
        free, self.free = self.free, []
        return free

    def _changes(self) -> Optional[bytes]:
        changes = self.tracker.changes()
        if not changes:
            return None
        self.reported += 1
        self.pending.append((self.reported, state.pack_changes(changes, self.thing)))
        return self.pending[-1][1]

    def _hear_later(self, news: List[Any]) -> None:
        for m in self.queue:
            if m[1] is not None:
                self.unheard.append(m[1])
                m[1] = None
        self.unheard.extend(news)

    def _hear(self) -> None:
        for news in self.unheard:
            taken_in, parcels = (news, ()) if type(news) is int else news
            while self.pending and self.pending[0][0] <= taken_in:
                self.pending.popleft()
            changes = [c for parcel in parcels for c in wire.unpack(parcel, self.thing)]
            pending = [(c, CODE) for _, told in self.pending for c in wire.unpack(told, self.thing)]
            self.tracker.apply(changes, pending)
        self.unheard.clear()


class World:
    """The coordinator, its replicas, and what should be true."""

    def __init__(self, workers: int, chance: random.Random) -> None:
        self.chance = chance
        self.truth, self.reference = fresh(), fresh()
        self.tracker = state.Tracker(self.truth, ())
        self.log = StateLog(self.truth, self.tracker, writes=lambda step: CODE)
        self.queue = LockQueue()
        self.numbers = iter(range(1, 1_000_000))
        self.replicas: Dict[int, Replica] = {}
        self.workers = self.steps = 0
        self.free: List[int] = []
        self.journal: List[bytes] = []
        for _ in range(workers):
            self.hire()

    def hire(self) -> None:
        self.publish_own()
        self.workers += 1
        self.replicas[self.workers] = Replica(self.workers, vars(self.truth), self.numbers)
        self.log.join(self.workers)

    def kill(self, worker: int) -> None:
        """What it has said arrives; what it has not said is lost, and the lock is free."""
        replica = self.replicas[worker]
        while replica.outbox:
            self.take(worker)
        if replica.step:
            self.log.settle(replica.step)
            self._grant(self.queue.end(replica.step))
        del self.replicas[worker]
        self.log.leave(worker)

    def send(self, worker: int, script: Script) -> None:
        self.steps += 1
        news = self.log.news(worker, (self.steps,))
        self.replicas[worker].inbox.append(("step", self.steps, news, script))

    def take(self, worker: int) -> None:
        """The next thing that a worker has said."""
        what, step, *rest = self.replicas[worker].outbox.popleft()
        if what in ("changed", "late", "end"):
            parcel, free = rest
            if parcel is not None:
                self.publish_own()
                self.journal.append(self.log.merge(worker, step, parcel, what == "end", what == "late"))
                self.free += free
            elif what == "end":
                self.log.settle(step)
            if what == "end":
                self._grant(self.queue.end(step))
        elif what == "lock":
            if self.queue.ask(Claim(step, worker, 0)):
                self._grant(self.queue.holder)
        else:
            for i in rest[0]:
                locked_change(self.reference, i)
            self._grant(self.queue.give_back(Claim(step, worker, 0)))

    def _grant(self, claim: Optional[Claim]) -> None:
        if claim is not None:
            self.publish_own()
            news = self.log.granted(claim.worker, claim.step)
            self.replicas[claim.worker].inbox.append(("grant", claim.step, news, None))

    def act_here(self) -> None:
        """Code of the coordinator's process: with the lock, if it is free."""
        i = next(self.numbers)
        if self.queue.holder is None:
            locked_change(self.truth, i)
            locked_change(self.reference, i)
        self.truth.grown.append(i)
        self.truth.found[i] = 1
        self.free.append(i)
        self.publish_own()

    def publish_own(self) -> None:
        changes = self.tracker.changes()
        if changes:
            self.journal.append(self.log.publish(state.pack_changes(changes, self.truth)))

    def drain(self) -> None:
        moved = True
        while moved:
            moved = False
            for worker, replica in list(self.replicas.items()):
                while replica.move():
                    moved = True
                while replica.outbox:
                    self.take(worker)
                    moved = True

    def check(self, here: int) -> None:
        """All is over: what was changed under the lock is what it would be one after another, nothing else is lost, and
        everybody who hears of all that there is believes the same."""
        self.drain()
        assert self.queue.holder is None
        for name in ("top", "seq", "table", "order", "both", "last"):
            assert getattr(self.truth, name) == getattr(self.reference, name), name
        assert sorted(self.truth.grown) == sorted(self.truth.found) == sorted(self.free)
        assert self.truth.count == len(self.free) - here
        for worker in self.replicas:
            self.send(worker, [])
        self.drain()
        for worker, replica in self.replicas.items():
            assert vars(replica.thing) == vars(self.truth), f"worker {worker} believes otherwise"
            assert replica.tracker.changes() == []
        again = fresh()
        for parcel in self.journal:
            for change in wire.unpack(parcel, again):
                state.apply(again, change)
        assert vars(again) == vars(self.truth)


def live(seed: int, moves: int, late: bool, deaths: bool) -> None:
    """One random history."""
    chance = random.Random(seed)
    world = World(chance.randrange(1, 5), chance)
    words = ["free", "lock", "lock", "twice"] + (["late"] if late else [])
    here = 0
    for _ in range(moves):
        worker = chance.choice(list(world.replicas))
        replica, what = world.replicas[worker], chance.random()
        if what < 0.2 and len(replica.inbox) + len(replica.queue) < 4:
            world.send(worker, [chance.choice(words) for _ in range(chance.randrange(4))])
        elif what < 0.6:
            replica.move()
        elif what < 0.95 and replica.outbox:
            world.take(worker)
        elif what > 0.995 and deaths:
            world.kill(worker)
            world.hire()
        elif what > 0.98:
            world.act_here()
            here += 1
    world.check(here)


@pytest.mark.parametrize("seed", range(60))
def test_whatever_comes_when_what_is_done_under_the_lock_is_exact(seed: int) -> None:
    """Steps that enter and leave, some several times, some with free changes in between, beside local code."""
    live(seed, 400, late=False, deaths=False)


@pytest.mark.parametrize("seed", range(60))
def test_deaths_lose_what_was_not_told_and_nothing_else(seed: int) -> None:
    """Of who holds the lock, of who waits for it, of others."""
    live(seed, 400, late=False, deaths=True)


@pytest.mark.parametrize("seed", range(60))
def test_what_other_threads_of_a_waiting_step_change_is_not_lost(seed: int) -> None:
    """Without the lock, while it is waited for: it was made before the news, and is told after them."""
    live(seed, 400, late=True, deaths=seed % 2 == 0)


def test_steps_that_wait_in_the_lane_have_heard_what_came_with_the_lock() -> None:
    """What they set then is on top of that, not beside it: no conflict."""
    world = World(2, random.Random(0))
    world.send(1, ["lock"])
    world.send(1, ["lock"])
    world.send(2, ["lock"])
    second = world.replicas[2]
    while second.move():
        while second.outbox:
            world.take(2)
    world.check(0)

    assert world.truth.order == [1, 2, 3]


def test_what_was_heard_in_the_middle_of_a_step_is_not_kept() -> None:
    """A long step that takes the lock often leaves nothing behind in the log."""
    world = World(2, random.Random(0))
    world.send(1, ["lock"] * 500)
    longest = 0
    for i in range(1000):
        world.replicas[1].move()  # asks for the lock, or has it and leaves it
        while world.replicas[1].outbox:
            world.take(1)
        if i % 2:
            world.send(2, ["lock"])
            while world.replicas[2].move():
                while world.replicas[2].outbox:
                    world.take(2)
        longest = max(longest, len(world.log._entries))

    assert world.log.version > 900
    assert longest < 100
    world.check(0)
