"""The scheduler in thousands of random worlds: see `simulator` and `simulated_world`, where the promises stand."""

from __future__ import annotations

import copy
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, Callable

import pytest
from mutants import MUTANTS, Mutant, core_with
from portrait import portrait
from simulator import simulate

from mpsteps import StepPool
from mpsteps._core import events as ev
from mpsteps._core.register import Register
from mpsteps._core.scheduler import Scheduler
from mpsteps._core.steps import TRANSITIONS, Cause, Status
from mpsteps._machine import usable_cores
from mpsteps.errors import InternalError, UsageError

RUNS = 10_000
SHARE = 500  # seeds that one step of a pool runs
SEEDS_FOR_A_MUTANT = 1500


@pytest.mark.timeout(300)  # a minute on a slow machine, and longer where others are at work
def test_ten_thousand_runs_with_faults_keep_every_promise(record_property: Callable[[str, object], None]) -> None:
    """Order, one entry per attempt, one fate per step, an end: in 10,000 random runs, checked after every event.
    They run in our own pool, whose scheduler is the one that is looked at; what is wrong with it is told all the same:
    a pool that hangs or loses a share fails here."""
    began = time.perf_counter()
    with StepPool(usable_cores()) as pool:
        shares = list(pool.map(_many, range(0, RUNS, SHARE), timeout=300))
    seconds = time.perf_counter() - began

    fates, done = (sum((share[i] for share in shares), Counter()) for i in (0, 1))
    record_property("seconds", round(seconds, 2))
    record_property("events", done["events"])
    print(f"{done['runs']} runs, {done['events']} events, {seconds:.1f} s; fates: {dict(fates)}")
    assert done["runs"] == RUNS
    assert min(fates[s.name] for s in (Status.FINISHED, Status.FAILED, Status.SKIPPED, Status.INTERACTIVE)) > 100
    assert done["deaths"] > RUNS / 20, "too few deaths"
    assert done["to the end"] > RUNS / 5, "too few runs to the end"


def _many(first: int) -> tuple[Counter[str], Counter[str]]:
    """The fates of all steps of `SHARE` runs, and what else happened in them."""
    fates: Counter[str] = Counter()
    done: Counter[str] = Counter()
    for seed in range(first, first + SHARE):
        world = _run(seed)
        fates.update(fate.name for fate in world.fate.values())
        done.update({
            "runs": 1, "events": world.events, "to the end": int(not world.stopping),
            "deaths": int(world.newest_worker > len(world.workers) - 1),
        })  # fmt: skip
    return fates, done


def _run(seed: int, **world: Any) -> Any:
    try:
        return simulate(seed, **world)
    except Exception as error:
        raise AssertionError(f"simulate({seed}): {type(error).__name__}: {error}") from error


@pytest.mark.parametrize(("seed", "size"), [(1, 500), (7, 2000), (14, 5000), (7, 5000), (10, 1000)])
def test_large_graphs_behave_as_small_ones(seed: int, size: int) -> None:
    """Thousands of steps keep the same promises (invariants, which look at every step, are checked now and then)."""
    world = _run(seed, size=size, check_every=size // 10)

    assert len(world.needs) == size
    assert world.stopping or len(world.fate) == size


def test_the_same_seed_tells_the_same_story() -> None:
    """Nothing in the core depends on anything but the events: not on the clock, the run before, or object addresses."""
    assert [_run(seed).trace() for seed in range(60)] == [_run(seed).trace() for seed in range(60)]
    assert len({_run(seed).trace() for seed in range(60)}) == 60


def test_the_story_does_not_depend_on_the_hash_seed() -> None:
    """A run that went wrong elsewhere can be replayed here: no order comes out of a set or a hash."""
    code = "import simulator; print(*(simulator.simulate(seed).trace() for seed in range(20)))"
    tests = Path(__file__).parent
    path = os.pathsep.join([str(tests), str(tests.parent)])
    stories = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": hash_seed},
            stdout=subprocess.PIPE, check=True, timeout=60,
        ).stdout
        for hash_seed in ("1", "2")
    }  # fmt: skip

    assert len(stories) == 1


def test_the_simulator_walks_every_edge_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the simulator proves, it proves for every transition that there is."""
    walked = set()
    move, move_all = Register.move, Register.move_all

    def watched_move(self: Register, step: int, cause: Cause) -> None:
        before = self.status(step)
        move(self, step, cause)
        walked.add((before, cause))

    def watched_move_all(self: Register, steps: Any, cause: Cause) -> None:
        walked.update((self.status(step), cause) for step in steps)
        move_all(self, steps, cause)

    monkeypatch.setattr(Register, "move", watched_move)
    monkeypatch.setattr(Register, "move_all", watched_move_all)
    seed = 0
    # A lane answers in order, so that its interactive step is always at its head: the other way is in test_scheduler.
    wanted = set(TRANSITIONS) - {(Status.DISPATCHED, Cause.AWAITS_USER)}
    while walked < wanted and seed < 500:
        _run(seed)
        seed += 1

    assert walked == wanted


@pytest.mark.parametrize("name", MUTANTS)
def test_a_bug_in_the_scheduler_is_found_by_the_simulator(name: str) -> None:
    """Each deliberate bug is noticed within 1500 seeds: the simulator is able to see what it looks for."""
    scheduler, slots = core_with(MUTANTS[name])

    assert any(_goes_wrong(seed, scheduler, slots) for seed in range(SEEDS_FOR_A_MUTANT)), f"nobody notices: {name}"


def _goes_wrong(seed: int, scheduler: Any, slots: Any) -> bool:
    try:
        simulate(seed, scheduler=scheduler, slots=slots)
    except Exception:  # whatever a bug leads to: a broken promise, an InternalError, a KeyError
        return True
    return False


def test_an_event_is_taken_in_or_refused_and_then_nothing_has_changed() -> None:
    """Any event at any moment, however wrong: the state is consistent afterwards, or InternalError (a bug of ours) or
    UsageError (a mistake of the user) is raised and the state is, to the last queue, what it was."""
    outcomes: Counter[str] = Counter()
    for seed in range(200):
        _run(seed, scheduler=_with_nonsense(Scheduler, random.Random(seed), outcomes))

    assert outcomes["InternalError"] > 200
    assert outcomes["PrerequisiteError"] > 10
    assert outcomes["taken in"] > 100


@pytest.mark.parametrize(
    "mutant",
    [
        Mutant("lanes", "queue.extendleft(reversed(steps[:n]))", "pass"),
        Mutant("graph", "if step in prerequisites:", "self._missing[step] += 1\n        if step in prerequisites:"),
        Mutant(
            "register",
            "        if after == _NOWHERE:\n            raise",
            "        statuses[step] = 1\n        if after == _NOWHERE:\n            raise",
        ),
    ],
    ids=["a wrong answer empties the lane", "a refused prerequisite counts", "a refused move moves"],
)
def test_a_refusal_that_changes_something_is_noticed(mutant: Mutant) -> None:
    """The test above would find a handler that acts before it has checked."""
    scheduler, _ = core_with(mutant)

    def torment() -> None:
        for seed in range(600):
            _run(seed, scheduler=_with_nonsense(scheduler, random.Random(seed), Counter()))

    with pytest.raises(AssertionError):
        torment()


def _with_nonsense(base: Any, r: random.Random, outcomes: Counter[str]) -> Any:
    class Tormented(base):  # type: ignore[misc]
        """Now and then a copy of it is given an event out of the blue."""

        def handle(self, event: Any) -> Any:
            if r.random() < 0.1:
                outcomes[_torment(base, self, r)] += 1
            return base.handle(self, event)

    return Tormented


def _torment(base: Any, scheduler: Any, r: random.Random) -> str:
    victim = copy.deepcopy(scheduler)
    before = portrait(victim)
    event = _nonsense(victim, r)
    try:
        base.handle(victim, event)
    except (InternalError, UsageError) as error:
        assert portrait(victim) == before, f"{event} was refused and has changed something"
        return type(error).__name__
    victim.check_invariants()
    return "taken in"


def _nonsense(scheduler: Any, r: random.Random) -> Any:
    known = sum(scheduler.counts)

    def step() -> int:
        return r.randint(-1, known + 2)

    def steps() -> tuple[int, ...]:
        lane = list(scheduler.lane(worker))
        some = [*r.sample(lane, r.randint(0, len(lane))), *(step() for _ in range(r.choice((0, 0, 1, 2))))]
        return tuple(some)

    worker = r.choice([w for w, _ in scheduler.lanes()] + [-1, 99])
    return r.choice((
        lambda: ev.StepAdded(step(), steps()), lambda: ev.PrerequisitesAdded(step(), steps()),
        lambda: ev.StepReleased(step()), lambda: ev.StepHeld(step()), lambda: ev.StepRestored(step()),
        lambda: ev.WorkerReady(worker), lambda: ev.StepsFinished(worker, steps(), (0.1,) * r.randint(0, 2)),
        lambda: ev.StepFailed(worker, step()), lambda: ev.StepInteractive(worker, step()),
        lambda: ev.StepsReturned(worker, steps()), lambda: ev.WorkerLost(worker, r.choice((None, step()))),
        lambda: ev.StepsAdded(r.choice((step(), known + 1)), [steps() for _ in range(r.randint(0, 3))]),
        lambda: ev.LaneStalled(worker, step()), lambda: ev.StepRested(step()), lambda: "an event",
    ))()  # fmt: skip
