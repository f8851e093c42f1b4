"""Whole runs of the scheduler by chance: `simulate(seed)`.

A random graph, workers that come, die and are replaced, steps that fail, cannot travel, are given back and are tried
again; steps that are inserted, held, released and given new prerequisites while others run; a journal that restores
some; a stop at any moment; in some worlds, memory that is learned while steps run. After every event the scheduler's
invariants are checked and its commands compared with the books of `simulated_world.World`. A failure is repeated by its
seed.
"""

from __future__ import annotations

import random
from typing import Any, NamedTuple, Optional, Set, Tuple

from simulated_world import World

from mpsteps._core.steps import LOCAL, PLAIN, Demand, Status


class Chances(NamedTuple):
    """How often things happen in one world, from 0 to 1; many are 0 in any one world, so that others have room."""

    fail: float
    die: float
    cannot_travel: float
    lose_result: float
    give_back: float
    hold: float
    interactive: float
    special: float
    insert: float
    more_needs: float
    restore: float
    stop: float
    batch: float
    stall: float
    leave: float


def simulate(seed: int, size: Optional[int] = None, **world: Any) -> World:
    """A whole run by chance; AssertionError or whatever the scheduler raises if anything is wrong with it.

    `size`: the number of steps (by default 1 to 60). First faults happen, then they stop, and then the run must come
    to its end within a number of events that is known before.
    """
    return _Story(seed, size, **world).tell()


class _Story:
    def __init__(self, seed: int, size: Optional[int], **world: Any) -> None:
        self.r = r = random.Random(seed)
        self.size = size or r.randint(1, 60)
        some = (0.0, 0.0, 0.05, 0.2, 0.5)
        self.chances = Chances(*(r.choice(some) for _ in Chances._fields))
        self.chances = self.chances._replace(
            fail=r.choice((0.0, 0.1, 0.3, 0.6)), insert=r.choice((0.0, 0.3, 1.0)), batch=r.choice((0.0, 0.5, 0.9)),
            special=r.choice((0.0, 0.0, 0.2, 0.5, 0.9)),
            stop=r.choice((0.0, 0.0, 0.1)), interactive=r.choice((0.0, 0.0, 0.0, 0.02)),
        )  # fmt: skip
        ahead = r.random() < 0.6
        self.m = m = random.Random(f"memory {seed}")  # of its own, so that seeds mean what they meant before
        self.learns = m.choice((0.0, 0.0, 0.1, 0.3))
        self.v = random.Random(f"values {seed}")  # as well
        self.takes = self.v.choice((0.0, 0.0, 0.2, 0.7))
        self.t = random.Random(f"together {seed}")  # as well
        self.turns = self.t.choice((0.0, 0.0, 0.3, 0.8))  # how often what several workers have finished is told at once
        world.setdefault("assumed", m.choice((20, 40, 60, 200)) if self.learns else 0)
        self.world = World(r.random() < 0.6, ahead=ahead, across=ahead and r.random() < 0.7, **world)
        self.shape = r.choice(("chain", "wide", "layers", "random", "stencil", "stencil"))
        self.timed = r.random() < 0.9
        self.together = r.random() < 0.5  # whether ordinary steps come in runs as well
        self.functions = r.choice(((0,), (0, 1), (0, 1, 2, 3), (3,)))

    def tell(self) -> World:
        world, r = self.world, self.r
        at_first = int(self.size * (1 - self.chances.insert * r.random()))
        while len(world.needs) < at_first:
            self._insert()
        self._restore()
        for _ in range(r.randint(0, 4)):
            world.add_worker()
        for _ in range(3 * self.size):
            self._something_happens()
        self._calm()
        world.check_end()
        return world

    # ------------------------------------------------------------------- the graph

    def _insert(self) -> None:
        r, chances = self.r, self.chances
        first = len(self.world.needs) + 1
        if self.together and r.random() < 0.3:
            last = min(self.size, first + r.randint(0, 8))
            self.world.add_steps([self._needs(step) for step in range(first, last + 1)], r.choice(self.functions))
            return
        needs = self._needs(len(self.world.needs) + 1)
        self.world.add_step(
            needs, self._demand(), r.random() < chances.hold * 0.5, r.choice(self.functions),
            r.random() < chances.interactive, [p for p in needs if self.v.random() < self.takes],
        )  # fmt: skip

    def _restore(self) -> None:
        """Some steps finished in an earlier session, each with all that it waits for; told in any order."""
        world, r = self.world, self.r
        restored: Set[int] = set()
        for step, needs in world.needs.items():
            running = world.scheduler.status(step) is Status.RUNNING  # local steps need no worker
            if needs <= restored and not running and r.random() < self.chances.restore:
                restored.add(step)
        order = sorted(restored)
        if r.random() < 0.5:
            r.shuffle(order)
        for step in order:
            if world.scheduler.status(step) is not Status.RUNNING:
                world.restore(step)

    def _needs(self, step: int) -> Tuple[int, ...]:
        r = self.r
        if step == 1:
            return ()
        if self.shape == "chain":
            return (step - 1,) if r.random() < 0.95 else ()
        if self.shape == "wide":
            return tuple(range(max(1, step - 20), step)) if step % 20 == 0 else ((1,) if r.random() < 0.3 else ())
        if self.shape == "stencil":  # four wide
            return tuple(p for p in range(step - 5, step - 2) if p > 0 and abs((p - 1) % 4 - (step - 1) % 4) < 2)
        if self.shape == "layers":
            first = (step - 1) // 5 * 5  # layers of five
            return tuple(p for p in range(max(1, first - 4), first + 1) if r.random() < 0.4)
        return tuple(r.randint(1, step - 1) for _ in range(r.randint(0, 4)))  # now and then the same one twice

    def _demand(self) -> Demand:
        r = self.r
        if r.random() >= self.chances.special:
            return PLAIN
        return Demand(
            cpus=r.choice((1, 1, 2, 3, 9)), gpus=r.choice((0, 0, 1, 2)), memory=r.choice((0, 10, 60, 1000)),
            tokens=r.choice(((), (("licence", 1),), (("licence", 2),))), local=r.random() < 0.2,
            retries=r.choice((0, 1, 3, 3)), alone=r.random() < 0.5,
        )  # fmt: skip

    # ---------------------------------------------------------------------- faults

    def _something_happens(self) -> None:
        world, r, chances = self.world, self.r, self.chances
        if self.learns and self.m.random() < self.learns:
            self._learn_memory()
        elif len(world.needs) < self.size and r.random() < 0.3:
            self._insert()
        elif r.random() < 0.15:
            self._somebody_changes_the_graph()
        elif r.random() < chances.stop * 0.2:
            world.stop()
        elif len(world.workers) < 5 and r.random() < 0.1:
            world.add_worker()
        elif world.resting and r.random() < 0.2:
            world.rest(r.choice(sorted(world.resting)))
        else:
            worker = r.choice(list(world.workers))
            self._work(worker)

    def _learn_memory(self) -> None:
        """Somebody has looked: at some functions, or at the machine only."""
        m = self.m
        needs = {m.choice(self.functions): m.choice((0, 5, 20, 34, 50, 101, 10**6)) for _ in range(m.randint(0, 2))}
        self.world.learn_memory(needs, m.choice((0, 0, 0, 30, 90, 10**6)))

    def _somebody_changes_the_graph(self) -> None:
        world, r, chances = self.world, self.r, self.chances
        waiting = (Status.HELD, Status.BLOCKED, Status.READY, Status.SKIPPED)
        step, status = 0, Status.UNKNOWN
        for _ in range(5):
            if status not in waiting and world.needs:
                step = r.randint(1, len(world.needs))
                status = world.scheduler.status(step)
        if status not in waiting:
            return
        if status is Status.HELD and r.random() < 0.7:
            world.release(step)
        elif status is not Status.HELD and r.random() < chances.hold:
            world.hold(step)
        elif step > 1 and r.random() < chances.more_needs:
            # Only steps with smaller ids: whether cycles are refused is for other tests.
            world.add_prerequisites(step, [r.randint(1, step - 1) for _ in range(r.randint(1, 3))])

    def _work(self, worker: int) -> None:
        world, r, chances = self.world, self.r, self.chances
        w = world.workers[worker]
        x = r.random()
        if worker != LOCAL and x < chances.die * 0.3:
            world.die(worker, final=r.random() < 0.1)
        elif w.done and (self.v if w.done[0] in w.plain else r).random() < chances.lose_result * 0.2:
            world.lose_result(worker)
        elif w.done and (not w.lane or r.random() > chances.batch):
            count = r.choice((None, None, 1))
            if self.t.random() < self.turns:
                several = [n for n in world.workers if world.workers[n].done]
                self.t.shuffle(several)
                world.report_together(several, self.timed)
            else:
                world.report(worker, count, self.timed)
        elif w.began is None and not world.stands(worker):
            if world.stands(worker) is False or r.random() < 0.2:  # or it has waited too long
                world.refuse(worker)
        elif w.lane and w.began is None:
            if r.random() < chances.cannot_travel * 0.2:
                world.cannot_travel(worker, r.choice(list(w.lane)))
            elif worker != LOCAL and r.random() < (0.5 if w.revoked else chances.give_back * 0.3):
                world.give_back(worker, one_by_one=r.random() < 0.5)
            else:
                world.begin(worker, r.choice(list(w.lane)) if worker == LOCAL else None)
        elif w.began is not None:
            if worker != LOCAL and r.random() < chances.stall * 0.3:
                world.stall(worker)
            elif r.random() < chances.fail:
                world.fail(worker, final=r.random() < 0.1)
            else:
                world.finish(worker, leaves=r.random() < chances.leave)

    # ------------------------------------------------------------------------ calm

    def _calm(self) -> None:
        """No more faults: what is left is inserted, released and run."""
        world = self.world
        while len(world.needs) < self.size:
            self._insert()
        for step in sorted(world.held):
            if step not in world.fate or world.fate[step] is Status.SKIPPED:
                world.release(step)
        if len(world.workers) == 1:
            world.add_worker()
        bound = world.events + 4 * self.size + 10
        while world.scheduler.active:
            assert world.events <= bound, "the run does not come to its end"
            before = world.events
            for step in sorted(world.resting):
                world.rest(step)
            for worker in list(world.workers):
                world.run_out(worker)
                world.report(worker, None, self.timed)
            assert world.events > before, "nobody has anything to do, and the run has not ended"
