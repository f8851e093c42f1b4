"""Which ready step goes first: the one with the longest remaining path, by what is known of durations."""

from __future__ import annotations

import heapq
import random
from typing import Any, Dict, List, Sequence, Tuple

import pytest

from mpsteps._core.events import (
    Closed,
    Dispatch,
    PrerequisitesAdded,
    Running,
    StepAdded,
    StepHeld,
    StepReleased,
    StepsAdded,
    StepsFinished,
    WorkerReady,
)
from mpsteps._core.scheduler import Scheduler
from mpsteps._core.slots import SlotPool
from mpsteps._core.waiting import ReadyQueue

Graph = Sequence[Tuple[Tuple[int, ...], str]]  # of steps 1, 2, ...: prerequisites and function


def makespan(graph: Graph, takes: Dict[str, float], workers: int = 2, **options: Any) -> float:
    """How long the scheduler's decisions take if steps take what `takes` says: a run in virtual time."""
    scheduler = Scheduler(SlotPool(workers), **options)
    commands: List[Any] = []
    for worker in range(1, workers + 1):
        commands += scheduler.handle(WorkerReady(worker))
    scheduler.handle(StepAdded(1, held=True, function=graph[0][1]))  # so that nothing starts before all is there
    for step, (needs, function) in enumerate(graph[1:], 2):
        scheduler.handle(StepAdded(step, needs, True, function=function))
    for step in range(1, len(graph) + 1):
        if step < len(graph):
            scheduler.stopping = True  # all are released at one moment
        else:
            scheduler.stopping = False
        commands += scheduler.handle(StepReleased(step))
    now, running = 0.0, []
    done = 0
    while True:
        for command in commands:
            if type(command) is Dispatch:
                assert len(command.steps) == 1, "these are long steps"
                took = takes[graph[command.steps[0] - 1][1]]
                heapq.heappush(running, (now + took, command.worker, command.steps[0], took))
            elif type(command) is Closed:
                done += len(command.steps)
            else:
                assert type(command) is Running
        if not running:
            assert done == len(graph)
            return now
        now, worker, step, took = heapq.heappop(running)
        commands = scheduler.handle(StepsFinished(worker, (step,), (took,)))
        scheduler.check_invariants()


def chain_behind(independent: int, chain: int) -> List[Tuple[Tuple[int, ...], str]]:
    """Independent steps, and inserted after them a chain."""
    steps: List[Tuple[Tuple[int, ...], str]] = [((), "f")] * independent
    steps.append(((), "f"))
    for _ in range(chain - 1):
        steps.append(((len(steps),), "f"))
    return steps


def test_a_long_chain_starts_first_although_it_was_inserted_last() -> None:
    """40 steps and a chain of 20, 2 workers: the chain beside the rest takes as long as all the work shared out."""
    graph = chain_behind(40, 20)
    assert makespan(graph, {"f": 1.0}) == 30.0
    assert makespan(graph, {"f": 1.0}, ranked=False) == 40.0  # first the 40, then the chain alone


def test_durations_count_and_not_the_number_of_steps() -> None:
    """A short path of long steps goes before a long path of short ones, as soon as durations are known."""
    graph: List[Tuple[Tuple[int, ...], str]] = [((), "short")] * 100
    graph += [((), "long"), ((101,), "long")]
    seconds = {"short": 0.1, "long": 4.0}
    assert makespan(graph, seconds, seconds=seconds) == pytest.approx(9.0)
    assert makespan(graph, seconds, ranked=False) >= 12.9


def test_what_is_learned_in_the_run_changes_the_order() -> None:
    """Nothing is known at first: the first long step teaches it, and the others do not wait until the end."""
    graph: List[Tuple[Tuple[int, ...], str]] = [((), "long")] + [((), "short")] * 200 + [((), "long")] * 3
    seconds = {"short": 0.1, "long": 5.0}
    assert makespan(graph, seconds) <= 20.3
    assert makespan(graph, seconds, ranked=False) >= 22.4


def test_on_random_graphs_it_is_better_on_average_and_hardly_ever_worse() -> None:
    """Chains of different lengths beside each other, with steps of different durations, unknown at first."""
    gains = []
    for seed in range(60):
        r = random.Random(seed)
        graph: List[Tuple[Tuple[int, ...], str]] = []
        for _ in range(12):
            length, function = r.randint(1, 25), r.choice("aab")
            for i in range(length):
                graph.append(((len(graph),) if i else (), function))
        takes = {"a": 1.0, "b": r.choice((0.2, 3.0))}
        gains.append(makespan(graph, takes, 3, ranked=False) / makespan(graph, takes, 3))
    assert sum(gains) / len(gains) > 1.05
    assert min(gains) > 0.95


@pytest.mark.parametrize("forward", [False, True])
def test_ranks_are_the_longest_remaining_paths(forward: bool) -> None:
    """Against the plain definition, also where prerequisites point forward."""
    for seed in range(30):
        r = random.Random(seed)
        scheduler = Scheduler(SlotPool(1), seconds={"a": 1.0, "b": 2.5})
        functions, needs = [""], [()]
        for step in range(1, 41):
            function = r.choice("abc")
            before = tuple(sorted({r.randint(1, step - 1) for _ in range(r.randint(0, 2))})) if step > 1 else ()
            scheduler.handle(StepAdded(step, before, function=function))
            functions.append(function)
            needs.append(before)
        if forward:
            scheduler.handle(StepHeld(1))
            scheduler.handle(StepAdded(41, (), function="b"))
            scheduler.handle(PrerequisitesAdded(1, (41,)))
            functions.append("b")
            needs.append(())
            needs[1] = (41,)
        ranks = scheduler._lanes.ranks
        assert ranks is not None
        ranks.work_out()

        def longest(step: int) -> float:
            own = {"a": 1.0, "b": 2.5, "c": 1.75}[functions[step]]  # c: nothing is known, so the average of the others
            return own + max((longest(d) for d in range(1, len(needs)) if step in needs[d]), default=0.0)

        for step in range(1, len(needs)):
            assert ranks.of(step) == pytest.approx(longest(step)), (seed, step)


def test_ties_go_to_the_first_inserted() -> None:
    """Whenever they became ready."""
    scheduler = Scheduler(SlotPool(1))
    for step in range(1, 7):
        scheduler.handle(StepAdded(step, held=step in (2, 4), function="f"))
    for step in (4, 2):
        scheduler.handle(StepReleased(step))
    order = []
    commands = scheduler.handle(WorkerReady(1))
    while any(type(c) is Dispatch for c in commands):
        (step,) = next(c.steps for c in commands if type(c) is Dispatch)
        order.append(step)
        commands = scheduler.handle(StepsFinished(1, (step,), (1.0,)))
    assert order == [1, 2, 3, 4, 5, 6]


def test_ranks_are_worked_out_a_few_times_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the graph grows all the time, and durations vary: O(steps + edges) in all."""
    scheduler = Scheduler(SlotPool(1))
    ranks = scheduler._lanes.ranks
    assert ranks is not None
    walked = 0
    work_out = ranks.work_out

    def counted() -> None:
        nonlocal walked
        walked += len(scheduler._register.statuses)
        work_out()

    monkeypatch.setattr(ranks, "work_out", counted)
    commands = scheduler.handle(WorkerReady(1))
    r = random.Random(5)
    total = 0
    for turn in range(100):
        first = total + 1
        scheduler.handle(StepsAdded(first, [(), (), *((first,) for _ in range(18))], "ab"[turn % 2]))
        total += 20
    commands = []
    for worker, lane in scheduler.lanes():
        if lane:
            commands = [Dispatch(worker, lane)]
    finished = 0
    while commands:
        dispatched = [c for c in commands if type(c) is Dispatch]
        commands = []
        for c in dispatched:
            finished += len(c.steps)
            commands += scheduler.handle(StepsFinished(1, c.steps, tuple(r.random() * 10 for _ in c.steps)))
    assert finished == total
    assert 0 < walked <= 30 * total


def test_the_queue_hands_out_by_rank_and_by_id() -> None:
    """Whatever comes and goes in between."""
    for seed in range(200):
        r = random.Random(seed)
        queue, inside = ReadyQueue(), set()
        ranks = {step: float(r.choice((1, 1, 2, 3))) for step in range(1, 60)}
        ranked = False
        for _ in range(150):
            x = r.random()
            outside = sorted(set(ranks) - inside)
            if x < 0.5 and outside:
                step = r.choice(outside)
                queue.add(step)
                inside.add(step)
            elif x < 0.6 and outside:
                some = sorted(r.sample(outside, r.randint(0, len(outside))))
                queue.extend(some)
                inside.update(some)
            elif x < 0.63:
                ranked = True
                inside -= {s for s in inside if r.random() < 0.2}
                queue.reorder(ranks.__getitem__, list(inside))
            elif inside:
                expected = min(inside, key=lambda s: (-ranks[s] if ranked else 0, s))
                assert queue.first() == expected
                assert queue.pop() == expected
                inside.remove(expected)
            assert sorted(queue) == sorted(inside)
            assert bool(queue) == bool(inside)
