"""Steps sent ahead: chains of short steps fill a lane, and what happens when one in front fails or dies."""

from __future__ import annotations

import random
from collections import deque
from typing import Any, Deque, Dict, List, Set, Tuple

import pytest

from mpsteps._core.ahead import WARY_STEPS, Ahead
from mpsteps._core.events import (
    Closed,
    Dispatch,
    PrerequisitesAdded,
    Retry,
    Revoke,
    Running,
    StepAdded,
    StepFailed,
    StepReleased,
    StepRested,
    StepsAdded,
    StepsFinished,
    StepsReturned,
    WorkerLost,
    WorkerReady,
)
from mpsteps._core.graph import Graph
from mpsteps._core.register import Register
from mpsteps._core.scheduler import Scheduler
from mpsteps._core.slots import SlotPool
from mpsteps._core.steps import PLAIN, Demand, Status

SHORT = 1e-6


def make(workers: int = 1, keep_going: bool = True, across: bool = False) -> Scheduler:
    """A scheduler that knows from step 1 that function 'f' is short."""
    scheduler = Scheduler(SlotPool(workers), keep_going, ahead=True, across=across)
    for worker in range(1, workers + 1):
        scheduler.handle(WorkerReady(worker))
    scheduler.handle(StepAdded(1, function="f"))
    scheduler.handle(StepsFinished(1, (1,), (SHORT,)))
    return scheduler


def add(scheduler: Scheduler, *steps: StepAdded) -> List[Any]:
    """All commands after adding these; afterwards everything is as it should be."""
    commands = [c for step in steps for c in scheduler.handle(step)]
    scheduler.check_invariants()
    return commands


def test_a_chain_goes_into_one_lane_behind_its_first_step() -> None:
    """No round trip: the whole chain is with the worker, and each message names what it waits for."""
    scheduler = make()
    scheduler.handle(StepAdded(2, held=True, function="f"))
    add(scheduler, *(StepAdded(i, (i - 1,), function="f") for i in range(3, 7)))
    commands = scheduler.handle(StepReleased(2))

    assert [c for c in commands if type(c) is Dispatch] == [
        Dispatch(1, (2,)),
        Dispatch(1, (3, 4, 5, 6), ((2,), (3,), (4,), (5,))),
    ]
    assert scheduler.lane(1) == (2, 3, 4, 5, 6)
    scheduler.check_invariants()


def test_a_step_whose_prerequisites_are_in_two_lanes_waits() -> None:
    """Only one lane keeps an order."""
    scheduler = make(workers=2)
    add(scheduler, StepAdded(2, function="f"), StepAdded(3, function="f"))
    assert {scheduler.lane(1), scheduler.lane(2)} == {(2,), (3,)}

    add(scheduler, StepAdded(4, (2, 3), function="f"))

    assert scheduler.status(4) is Status.BLOCKED


def test_where_workers_see_each_other_a_step_follows_two_lanes() -> None:
    """It goes into one of the two, and the message names the worker whom it has to wait for."""
    scheduler = make(workers=2, across=True)
    add(scheduler, StepAdded(2, function="f"), StepAdded(3, function="f"), StepAdded(4, (2, 3), function="f"))

    (sent,) = [c for c in stir(scheduler, 4) if type(c) is Dispatch]

    other = 3 - sent.worker
    assert sent == Dispatch(sent.worker, (4,), ((2, 3),), {4: {scheduler.lane(other)[0]: other}})
    assert scheduler.lane(sent.worker)[-1] == 4
    scheduler.check_invariants()


def test_what_left_something_is_not_followed_into_other_lanes() -> None:
    """Its dependants must hear of that from the coordinator. After enough that left nothing, it is trusted again."""
    scheduler = make(workers=2, across=True)
    scheduler.handle(StepAdded(2, function="f"))
    scheduler.handle(StepsFinished(worker_of(scheduler, 2), (2,), (SHORT,), plain=False))

    for first, trusted in ((3, False), (6 + WARY_STEPS, True)):
        joint = StepAdded(first + 2, (first, first + 1), function="f")
        add(scheduler, StepAdded(first, function="f"), StepAdded(first + 1, function="f"), joint)
        stir(scheduler, first + 2)
        assert (scheduler.status(first + 2) is Status.DISPATCHED) == trusted
        run_dry(scheduler)
        for step in range(first + 3, first + 3 + WARY_STEPS):
            scheduler.handle(StepAdded(step, function="f")) if not trusted else None
        run_dry(scheduler)


def test_an_idle_worker_takes_its_share_of_what_follows_another() -> None:
    """All that is ready is with one worker. What follows goes to both, and the idle one begins with it."""
    scheduler = make(workers=2, across=True)
    for step in (2, 3):
        add(scheduler, StepAdded(step, function="f"))
    busy, idle = worker_of(scheduler, 2), worker_of(scheduler, 3)
    scheduler.handle(StepsFinished(idle, (3,), (SHORT,)))
    add(scheduler, *(StepAdded(step, (2,), function="f") for step in (4, 5)))
    stir(scheduler, 5)
    add(scheduler, *(StepAdded(step, (2, 4), function="f") for step in range(6, 12)))

    commands = stir(scheduler, 11)

    scheduler.check_invariants()
    assert scheduler.lane(busy)[:2] == (2, 4)
    assert {*scheduler.lane(busy), *scheduler.lane(idle)} == {2, 4, 5, *range(6, 12)}
    assert Running(idle, scheduler.lane(idle)[0]) in commands


def test_a_stencil_is_shared_evenly_without_an_answer() -> None:
    """Ten layers go out at once, to both workers alike, and in an order in which nobody waits for ever."""
    scheduler = make(workers=2, across=True)
    step = {(y, x): 2 + 4 * y + x for y in range(11) for x in range(4)}
    needs = {
        s: {step[y - 1, i] for i in (x - 1, x, x + 1) if y and 0 <= i < 4} for (y, x), s in step.items()
    }  # fmt: skip
    scheduler.handle(StepsAdded(2, [tuple(needs[s]) for s in range(2, 46)], function="f"))
    stir(scheduler, 45)
    scheduler.check_invariants()

    lanes = {w: deque(scheduler.lane(w)) for w in (1, 2)}
    assert sorted(s for lane in lanes.values() for s in lane) == sorted(needs)
    assert abs(len(lanes[1]) - len(lanes[2])) <= 4
    done: Set[int] = set()
    while any(lanes.values()):
        ready = [w for w, lane in lanes.items() if lane and needs[lane[0]] <= done]
        assert ready, f"both wait: {lanes}"
        done.update(lanes[w].popleft() for w in ready)


def ahead_of(last: int, prerequisites: Tuple[int, ...], across: bool = False) -> Ahead:
    """Of a graph in which only the last step waits."""
    register, graph = Register(), Graph()
    for step in range(1, last + 1):
        register.add(step, False, "f", PLAIN)
        graph.grow(step)
    graph.link(last, prerequisites)
    return Ahead(register, graph, across)


def test_steps_do_not_follow_what_has_left_its_lane_across() -> None:
    """There was no room for the step at first, and by now one of the two may be anywhere."""
    ahead = ahead_of(3, (1, 2), across=True)
    ahead.follow(7, 1, 2, 0.1)
    assert ahead.take_joint() is None
    ahead.follow(8, 2, 2, 0.2)
    assert ahead.take_joint() == (3, [1, 2], [(7, 0.1), (8, 0.2)])
    ahead.put_joint_back(3)

    ahead.answered((1,))

    assert ahead.take_joint() is None
    ahead.follow(8, 1, 2, 0.3)
    assert ahead.take_joint() == (3, [1, 2], [(8, 0.3), (8, 0.2)])


def test_a_step_is_sent_ahead_once_though_it_was_enabled_twice() -> None:
    """Its prerequisite went to this lane, was given back, and came again, while there was no room for the step. Its
    status only changes when the round is over."""
    ahead = ahead_of(2, (1,))
    ahead.follow(7, 1, 2, 0.1)
    ahead.answered((1,))
    ahead.follow(7, 1, 2, 0.1)

    assert ahead.take(7) == (2, 1)
    ahead.sent(2, 7, 2, 0.2)
    assert ahead.take(7) is None


def stir(scheduler: Scheduler, blocked: int) -> List[Any]:
    """Something happens that changes nothing for this blocked step or any other."""
    return scheduler.handle(PrerequisitesAdded(blocked, ()))


def worker_of(scheduler: Scheduler, step: int) -> int:
    """The worker in whose lane a step is."""
    return next(w for w, steps in scheduler.lanes() if step in steps)


def run_dry(scheduler: Scheduler) -> None:
    """All that is in lanes finishes and leaves nothing."""
    while any(steps for _, steps in scheduler.lanes()):
        for worker, steps in scheduler.lanes():
            if steps:
                scheduler.handle(StepsFinished(worker, steps, (SHORT,) * len(steps)))


def test_a_step_that_comes_back_late_is_skipped_for_one_that_failed_elsewhere() -> None:
    """Its prerequisite was taken out of the lane before it, and failed in another worker's."""
    scheduler = make(workers=2)
    scheduler.handle(StepAdded(2, held=True, function="f"))
    add(scheduler, StepAdded(3, (2,), function="f"), StepAdded(4, (3,), function="f"))
    scheduler.handle(StepReleased(2))
    lane, other = (1, 2) if scheduler.lane(1) else (2, 1)
    assert scheduler.lane(lane) == (2, 3, 4)
    scheduler.handle(StepsFinished(lane, (2,), (SHORT,)))
    assert scheduler.handle(StepsReturned(lane, (3,)))[-2:] == [Dispatch(other, (3,)), Running(other, 3)]

    scheduler.handle(StepFailed(other, 3))
    scheduler.check_invariants()
    assert scheduler.to_be_blamed() == {3}

    commands = scheduler.handle(StepsReturned(lane, (4,)))
    assert Closed((4,), Status.SKIPPED, 3) in commands
    assert scheduler.to_be_blamed() == set()


def test_what_has_left_its_lane_enables_nobody_there() -> None:
    """There was no room for the step behind it at first, and by now it may be anywhere."""
    ahead = ahead_of(2, (1,))

    ahead.follow(7, 1, 1, 0.0)
    assert ahead.take(7) == (2, 1)
    ahead.put_back(7, (2, 1))
    ahead.answered((1,))
    assert ahead.take(7) is None

    ahead.follow(8, 1, 1, 0.0)
    assert ahead.take(7) is None
    assert ahead.take(8) == (2, 1)


def test_a_step_that_left_its_queue_by_way_of_a_lane_stands_in_it_once() -> None:
    """It was ready, then made to wait, then sent ahead, and comes back ready: its old place is still there. (Found by
    one of ten thousand simulated runs.)"""
    scheduler = make()
    add(scheduler, StepAdded(2, function="a long one"))
    add(scheduler, StepAdded(3, function="f"), StepAdded(4, function="another"), StepAdded(5, function="f"))
    scheduler.handle(PrerequisitesAdded(5, (3,)))
    scheduler.handle(StepsFinished(1, (2,), (1.0,)))
    assert scheduler.lane(1) == (3, 5)
    scheduler.handle(StepsFinished(1, (3,), (SHORT,)))
    scheduler.handle(StepsReturned(1, (5,)))

    scheduler.check_invariants()
    assert sum(s == 5 for s in scheduler._waiting.plain) + scheduler.lane(1).count(5) == 1


def test_half_of_a_fan_out_is_left_for_the_other_worker() -> None:
    """A lane that took all dependants of its step would leave the other one idle."""
    scheduler = make(workers=2)
    add(scheduler, StepAdded(2, held=True, function="f"))
    add(scheduler, *(StepAdded(i, (2,), function="f") for i in range(3, 13)))
    scheduler.handle(StepReleased(2))

    ahead = [s for s in range(3, 13) if scheduler.status(s) is Status.DISPATCHED]
    assert len(ahead) == 5
    scheduler.check_invariants()


def test_steps_of_unknown_or_long_functions_are_not_sent_ahead() -> None:
    """What is behind a long step could run elsewhere by the time its turn comes."""
    scheduler = make()
    add(scheduler, StepAdded(2, function="f"), StepAdded(3, (2,), function="unknown"))

    assert scheduler.lane(1) == (2,)


def test_a_step_with_a_demand_is_never_sent_ahead() -> None:
    """It always has a lane to itself."""
    scheduler = make()
    add(scheduler, StepAdded(2, function="f"), StepAdded(3, (2,), demand=Demand(retries=1), function="f"))

    assert scheduler.lane(1) == (2,)


def test_when_the_one_in_front_fails_the_rest_is_skipped_once_it_is_given_back() -> None:
    """Not before: until the worker has answered, it might run them."""
    scheduler = chain_in_lane()

    commands = scheduler.handle(StepFailed(1, 2))
    assert [c for c in commands if type(c) is Closed] == [Closed((2,), Status.FAILED)]

    commands = scheduler.handle(StepsReturned(1, (3, 4)))
    skipped = {s for c in commands if type(c) is Closed for s in c.steps if c.status is Status.SKIPPED}
    assert skipped == {3, 4, 5}
    assert scheduler.blame(5) == 2
    scheduler.check_invariants()


def test_when_the_worker_dies_the_rest_waits_or_is_skipped_with_its_victim() -> None:
    """None of them was begun."""
    scheduler = chain_in_lane()

    commands = scheduler.handle(WorkerLost(1, began=2))

    assert {s for c in commands if type(c) is Closed for s in c.steps if c.status is Status.SKIPPED} == {3, 4, 5}
    scheduler.check_invariants()


def test_when_the_worker_dies_between_steps_the_chain_starts_again_elsewhere() -> None:
    """The first is ready again, the others are blocked again, and follow it to the new worker."""
    scheduler = chain_in_lane()
    scheduler.handle(WorkerLost(1))
    assert scheduler.status(2) is Status.READY
    assert scheduler.status(3) is Status.BLOCKED

    scheduler.handle(WorkerReady(2))

    assert scheduler.lane(2)[:3] == (2, 3, 4)
    scheduler.check_invariants()


def test_a_chain_of_a_thousand_takes_a_few_messages() -> None:
    """That is what it is for."""
    scheduler = make()
    first = [StepAdded(2, (1,), held=True, function="f")]
    add(scheduler, *first)
    for i in range(3, 1003):
        scheduler.handle(StepAdded(i, (i - 1,), function="f"))
    todo = scheduler.handle(StepReleased(2))
    dispatches = 0
    while todo:
        found = [c for c in todo if type(c) is Dispatch]
        dispatches += len(found)
        todo = [c for d in found for c in scheduler.handle(StepsFinished(d.worker, d.steps, (SHORT,) * len(d.steps)))]

    assert scheduler.counts[Status.FINISHED] == 1002
    assert dispatches < 20


def chain_in_lane() -> Scheduler:
    """2 -> 3 -> 4 in the lane of worker 1; 5 waits for 4 and is of unknown length."""
    scheduler = make()
    add(scheduler, StepAdded(2, held=True, function="f"))
    add(scheduler, StepAdded(3, (2,), function="f"), StepAdded(4, (3,), function="f"), StepAdded(5, (4,), function="u"))
    scheduler.handle(StepReleased(2))
    assert scheduler.lane(1) == (2, 3, 4)
    return scheduler


class Workers:
    """Simulated workers: they run their lanes in order, fail, die, give back, and check what they are sent."""

    def __init__(self, seed: int, steps: int) -> None:
        self.random = random.Random(seed)
        self.scheduler = Scheduler(SlotPool(3), keep_going=self.random.random() < 0.7, ahead=True)
        self.lanes: Dict[int, Deque[Any]] = {}  # worker -> (step, ahead)
        self.recent: Dict[int, Set[int]] = {}  # worker -> steps that finished there
        self.finished: Set[int] = set()
        self.entered: Dict[int, int] = {}
        self.failed: Dict[int, int] = {}
        self.needs: Dict[int, Set[int]] = {}
        self.resting: List[int] = []  # steps that are to be tried again
        self.ahead_runs = 0
        self.last_worker = 0
        for _ in range(3):
            self.new_worker()
        self.total = steps

    def new_worker(self) -> None:
        self.last_worker += 1
        self.lanes[self.last_worker], self.recent[self.last_worker] = deque(), set()
        self.tell(WorkerReady(self.last_worker))

    def tell(self, event: Any) -> None:
        for c in self.scheduler.handle(event):
            if type(c) is Dispatch:
                ahead = c.ahead or ((),) * len(c.steps)
                assert len(ahead) == len(c.steps)
                for step, missing in zip(c.steps, ahead):
                    assert self.needs[step] - self.finished == set(missing), f"{step} sent with {missing}"
                    in_front = {s for s, _ in self.lanes[c.worker]} | self.recent[c.worker]
                    assert set(missing) <= in_front
                    self.lanes[c.worker].append((step, missing))
            elif type(c) is Closed and c.status is Status.FINISHED:
                self.finished.update(c.steps)
            elif type(c) is Revoke:
                self.give_back(c.worker)
            elif type(c) is Retry:
                assert c.attempt <= 2
                self.resting.append(c.step)
        self.scheduler.check_invariants()

    def give_back(self, worker: int) -> None:
        steps = tuple(s for s, _ in self.lanes[worker])
        self.lanes[worker].clear()
        if steps:
            self.tell(StepsReturned(worker, steps))

    def act(self) -> None:
        worker = self.random.choice([w for w, lane in self.lanes.items() if lane])
        chance = self.random.random()
        if chance < 0.02:
            began = self.lanes[worker][0][0] if self.random.random() < 0.5 else None
            if began is not None and self.lanes[worker][0][1] and not self.may_run(worker):
                began = None
            if began is not None:
                self.enter(began)
                self.failed[began] = self.failed.get(began, 0) + 1
            del self.lanes[worker]
            self.tell(WorkerLost(worker, began))
            self.new_worker()
        elif chance < 0.04:
            self.give_back(worker)
        elif not self.may_run(worker):
            step, _ = self.lanes[worker].popleft()
            self.tell(StepsReturned(worker, (step,)))
        elif chance < 0.08:
            step, _ = self.lanes[worker].popleft()
            self.enter(step)
            self.failed[step] = self.failed.get(step, 0) + 1
            self.tell(StepFailed(worker, step))
        else:
            self.finish(worker)

    def may_run(self, worker: int) -> bool:
        return set(self.lanes[worker][0][1]) <= self.recent[worker]

    def enter(self, step: int) -> None:
        self.entered[step] = self.entered.get(step, 0) + 1

    def finish(self, worker: int) -> None:
        batch = []
        for _ in range(self.random.randrange(1, 6)):
            if not self.lanes[worker] or not self.may_run(worker):
                break
            step, missing = self.lanes[worker].popleft()
            self.ahead_runs += bool(missing)
            self.enter(step)
            self.recent[worker].add(step)
            batch.append(step)
        if batch:
            self.tell(StepsFinished(worker, tuple(batch), (SHORT,) * len(batch)))

    def run(self) -> None:
        for step in range(1, self.total + 1):
            count = min(step - 1, self.random.choice((0, 1, 1, 1, 2, 3)))
            near = list(range(max(1, step - 8), step))
            self.needs[step] = set(self.random.sample(near, min(count, len(near))))
            demand = Demand(retries=1) if self.random.random() < 0.1 else PLAIN
            self.tell(StepAdded(step, tuple(self.needs[step]), False, demand, "f"))
            if self.random.random() < 0.3 and any(self.lanes.values()):
                self.act()
        for _ in range(20 * self.total + 100):
            idle = not any(self.lanes.values())
            if self.resting and (idle or self.random.random() < 0.2):
                self.tell(StepRested(self.resting.pop()))
            elif idle:
                break
            else:
                self.act()


@pytest.mark.parametrize("block", range(4))
def test_random_graphs_with_deaths_failures_and_returns(block: int) -> None:
    """Order, once an attempt, every fate sealed: in 400 random worlds, with many steps sent ahead."""
    ahead = 0
    for seed in range(block * 100, block * 100 + 100):
        world = Workers(seed, 40)
        world.run()
        ahead += world.ahead_runs
        scheduler = world.scheduler
        assert not any(world.lanes.values()), f"seed {seed} does not end"
        for step in world.needs:
            status = scheduler.status(step)
            assert world.entered.get(step, 0) == world.failed.get(step, 0) + (status is Status.FINISHED)
            if status is Status.FINISHED:
                assert world.needs[step] <= world.finished
            elif not scheduler.stopping:
                assert status in (Status.FAILED, Status.SKIPPED), f"seed {seed}: {scheduler.story(step)}"
    assert ahead > 100
