"""Slots by node: a step has its CPUs and memory on one node; and the stream of messages to nodes."""

from __future__ import annotations

import random
from typing import Any, Dict, List, Optional, Tuple

import pytest

from mpsteps._core import events as ev
from mpsteps._core.events import (
    Command,
    Dispatch,
    StepAdded,
    StepFailed,
    StepsFinished,
    StepsReturned,
    WorkerLost,
    WorkerReady,
)
from mpsteps._core.nodes import NodeSlots, named_cards
from mpsteps._core.scheduler import Scheduler
from mpsteps._core.steps import PLAIN, Cards, Demand, Node, Status
from mpsteps.engines.frames import FrameReader, FrameWriter
from mpsteps.errors import EngineError

pytestmark = pytest.mark.once
SMALL, LARGE = Node(1, 2, 100), Node(2, 4, 400)


def cards(host: str, *numbers: int) -> Tuple[Cards, ...]:
    return named_cards([(n,) for n in numbers], {n: f"{host}/{n}" for n in numbers})


class Cluster:
    """A scheduler and where its steps are."""

    def __init__(self, *nodes: Node) -> None:
        self.scheduler = Scheduler(NodeSlots(), keep_going=True)
        self.node: Dict[int, Node] = {}
        self.lanes: Dict[int, List[int]] = {}
        self.demand: Dict[int, Demand] = {}
        for node in nodes:
            for _ in range(node.cpus):
                self.join(node)

    def join(self, node: Node) -> int:
        worker = max(self.node, default=0) + 1
        self.node[worker], self.lanes[worker] = node, []
        self.tell(WorkerReady(worker, node))
        return worker

    def add(self, demand: Demand = PLAIN) -> int:
        step = len(self.demand) + 1
        self.demand[step] = demand
        self.tell(StepAdded(step, (), False, demand, None))
        return step

    def tell(self, event: Any) -> None:
        commands: List[Command] = self.scheduler.handle(event)
        for c in commands:
            if isinstance(c, Dispatch):
                self.lanes[c.worker] += c.steps
        self.scheduler.check_invariants()
        for node in set(self.node.values()):
            workers = [w for w, its in self.node.items() if its == node]
            running = [self.demand[self.lanes[w][0]] for w in workers if self.lanes[w]]
            assert sum(min(d.cpus, node.cpus) for d in running) <= node.cpus, "more CPUs than the node has"
            assert sum(min(d.memory, node.memory) for d in running) <= node.memory, "more memory than the node has"
        used: List[str] = []
        for worker, lane in self.lanes.items():
            for step in lane[:1]:
                held = self.scheduler.slots.gpus_of(step)
                there = {n: name for c in self.node[worker].cards for n, name in zip(c.numbers, c.names)}
                used += [there[n] for n in held]
                assert bool(held) == bool(self.demand[step].gpus), "a step without the card that it needs"
        assert len(used) == len(set(used)), "a card is used by two steps"

    def finish(self, step: int, seconds: float = 1.0) -> None:
        worker = self.where(step)
        assert worker is not None
        self.lanes[worker].remove(step)
        self.tell(StepsFinished(worker, (step,), (seconds,)))

    def lose(self, worker: int, began: Optional[int] = None) -> None:
        del self.node[worker], self.lanes[worker]
        self.tell(WorkerLost(worker, began))

    def where(self, step: int) -> Optional[int]:
        return next((w for w, lane in self.lanes.items() if step in lane), None)

    def node_of(self, step: int) -> Optional[Node]:
        worker = self.where(step)
        return None if worker is None else self.node[worker]


def test_a_step_of_many_cpus_goes_to_the_node_that_has_them() -> None:
    c = Cluster(SMALL, LARGE)
    assert c.node_of(c.add(Demand(cpus=3, memory=200))) == LARGE
    assert c.node_of(c.add(Demand(memory=300))) is None, "one of its CPUs is free, not enough of its memory"
    assert c.node_of(c.add(Demand(memory=100))) == SMALL


def test_one_node_is_kept_for_a_step_that_fits_nowhere_and_the_others_go_on() -> None:
    c = Cluster(SMALL, LARGE)
    first = [c.add() for _ in range(6)]
    wide = c.add(Demand(cpus=4))
    assert c.node_of(wide) is None
    on_large = [s for s in first if c.node_of(s) == LARGE]
    on_small = [s for s in first if c.node_of(s) == SMALL]
    more = [c.add() for _ in range(3)]
    c.finish(on_large[0])
    assert all(c.where(s) is None for s in more), "what is freed on the node that is kept is not for younger ones"
    c.finish(on_small[0])
    assert c.node_of(more[0]) == SMALL
    for step in on_large[1:]:
        c.finish(step)
    assert c.node_of(wide) == LARGE


def test_a_step_that_is_larger_than_every_node_runs_alone_on_the_largest() -> None:
    c = Cluster(SMALL, LARGE)
    step = c.add(Demand(cpus=100))
    assert c.node_of(step) == LARGE
    c.finish(step)
    assert c.scheduler.status(step) is Status.FINISHED


def test_the_node_that_is_kept_may_be_lost() -> None:
    """Then another one is kept, or the next that comes."""
    c = Cluster(LARGE)
    running = [c.add() for _ in range(4)]
    wide = c.add(Demand(cpus=4))
    for worker in list(c.lanes):
        c.lose(worker)
    other = LARGE._replace(number=3)
    c.join(other)
    assert c.node_of(wide) == other
    c.finish(wide)
    assert [s for s in running if c.where(s)] == running[:1]


ONE, OTHER = Node(1, 2, 100, cards("a", 0)), Node(2, 2, 100, cards("b", 0, 1))


def test_each_node_has_its_own_cards() -> None:
    """Two cards with the number 0 are used at the same time; a step gets one of the node it runs on."""
    c = Cluster(ONE, OTHER)
    steps = [c.add(Demand(gpus=1)) for _ in range(4)]
    assert [c.node_of(s) for s in steps] == [ONE, OTHER, OTHER, None]
    assert [c.scheduler.slots.gpus_of(s) for s in steps[:3]] == [(0,), (0,), (1,)]
    c.finish(steps[1])
    assert c.node_of(steps[3]) == OTHER
    assert c.scheduler.slots.gpus_of(steps[3]) == (0,)


def test_a_step_of_two_cards_has_them_on_one_node_and_others_go_on() -> None:
    """No node is kept for it: cards are not what others wait for."""
    c = Cluster(ONE, OTHER)
    first = [c.add(Demand(gpus=1)) for _ in range(2)]
    both = c.add(Demand(gpus=2))
    assert [c.node_of(s) for s in (*first, both)] == [ONE, OTHER, None]
    assert c.node_of(c.add()) is not None
    c.finish(first[1])
    assert c.node_of(both) == OTHER
    assert c.scheduler.slots.gpus_of(both) == (0, 1)


def test_a_step_that_wants_more_cards_than_any_node_has_gets_all_of_one() -> None:
    c = Cluster(ONE, OTHER)
    assert c.node_of(c.add(Demand(gpus=3))) == OTHER


def test_a_card_that_two_nodes_share_is_held_once() -> None:
    """Two Dask workers on one machine; they may call it by different numbers."""
    shared = Node(3, 2, 100, named_cards([(5,)], {5: "b/1"}))
    c = Cluster(shared, OTHER)
    steps = [c.add(Demand(gpus=1)) for _ in range(3)]
    assert [c.node_of(s) for s in steps] == [shared, OTHER, None]
    c.finish(steps[0])
    assert c.scheduler.slots.gpus_of(steps[2]) == (5,)


def test_a_step_that_needs_a_card_waits_for_a_node_that_has_one() -> None:
    """It does not run where there is none, however large that node is."""
    c = Cluster(LARGE)
    step = c.add(Demand(gpus=1))
    assert c.where(step) is None
    assert c.where(c.add()) is not None
    c.join(ONE)
    assert c.node_of(step) == ONE


def test_a_card_that_is_named_twice_may_be_held_twice() -> None:
    scheduler = Scheduler(NodeSlots(), keep_going=True)
    for worker in (1, 2, 3):
        scheduler.handle(WorkerReady(worker, Node(1, 3, 100, named_cards([(4,), (4,)], {4: "a/4"}))))
    for step in (1, 2, 3):
        scheduler.handle(StepAdded(step, (), False, Demand(gpus=1), None))
    scheduler.check_invariants()
    assert [scheduler.slots.gpus_of(s) for s in (1, 2, 3)] == [(4,), (4,), ()]


def test_local_steps_have_the_cards_of_the_coordinators_machine() -> None:
    """Which nodes may be on, too."""
    scheduler = Scheduler(NodeSlots(cards("a", 0)), keep_going=True)
    scheduler.handle(WorkerReady(1, ONE))
    scheduler.handle(StepAdded(1, (), False, Demand(gpus=1, local=True), None))
    scheduler.handle(StepAdded(2, (), False, Demand(gpus=1), None))
    assert scheduler.slots.gpus_of(1) == (0,)
    assert scheduler.status(2) is Status.READY
    scheduler.handle(StepsFinished(0, (1,), (1.0,)))
    scheduler.check_invariants()
    assert scheduler.slots.gpus_of(2) == (0,)


@pytest.mark.parametrize("seed", range(60))
def test_whatever_happens_no_node_is_overbooked_and_all_steps_come_to_their_end(seed: int) -> None:
    r = random.Random(seed)
    c = Cluster(SMALL._replace(cards=cards("a", 0, 1)), LARGE)
    numbers = 2
    for _ in range(300):
        what = r.random()
        busy = [lane[0] for lane in c.lanes.values() if lane]
        if what < 0.4:
            special = [Demand(cpus=r.randint(2, 5)), Demand(memory=r.randint(50, 500)), Demand(gpus=r.randint(1, 3))]
            special.append(Demand(cpus=2, gpus=1))
            c.add(r.choice([PLAIN, PLAIN, *special]))
        elif what < 0.8 and busy:
            c.finish(r.choice(busy), r.choice([0.0001, 1.0]))
        elif what < 0.85 and busy:
            step = r.choice(busy)
            worker = c.where(step)
            assert worker is not None
            c.lanes[worker].remove(step)
            c.tell(r.choice([StepFailed(worker, step), StepsReturned(worker, (step,))]))
        elif what < 0.9 and len(c.node) > 1:
            worker = r.choice(list(c.node))
            c.lose(worker, c.lanes[worker][0] if c.lanes[worker] and r.random() < 0.5 else None)
        else:
            numbers += 1
            its = r.choice([(), cards("a", 0, 1), cards("b", 0), cards(str(numbers), 0, 1, 2)])
            c.join(Node(numbers, r.randint(1, 4), r.choice([100, 400]), its))
    c.join(LARGE._replace(number=999, cards=cards("c", 0, 1)))
    while any(c.lanes.values()):
        c.finish(next(lane[0] for lane in c.lanes.values() if lane))
    assert {c.scheduler.status(s) for s in c.demand} <= {Status.FINISHED, Status.FAILED}


# --------------------------------------------------------------------------------------------------------- the stream

MESSAGES: List[Tuple[Any, ...]] = [("begin", {"a": (1, b"x" * 1000)}), ("send", 1, []), ("piece", 5, b"")]


@pytest.mark.parametrize("size", [1, 7, 16, 17, 1000, 10_000])
def test_messages_come_whole_wherever_the_stream_is_cut(size: int) -> None:
    writer, reader = FrameWriter(), FrameReader()
    stream = b"".join(writer.frame(m) for m in MESSAGES)
    found = [m for at in range(0, len(stream), size) for m in reader.feed(stream[at : at + size])]
    assert found == MESSAGES


def test_a_message_that_is_missing_or_comes_twice_is_noticed() -> None:
    writer = FrameWriter()
    frames = [writer.frame(m) for m in MESSAGES]
    for wrong in (frames[0] + frames[2], frames[0] + frames[0], frames[1]):
        with pytest.raises(EngineError, match="the connection is damaged"):
            FrameReader().feed(wrong)


def test_memory_that_is_learned_counts_on_the_node_where_a_step_runs() -> None:
    """Two nodes of 100 bytes with three workers each: two steps of 40 fit on each, whoever has declared nothing. A need
    that has grown counts for those that run, too."""
    scheduler = Scheduler(NodeSlots(), seconds={"f": 1.0})
    for worker in range(1, 7):
        scheduler.handle(ev.WorkerReady(worker, Node((worker - 1) // 3, 3, 100)))
    scheduler.handle(ev.MemoryLearned({"f": 40}))
    scheduler.handle(ev.StepsAdded(1, [()] * 9, "f"))
    assert busy(scheduler) == [2, 2]

    scheduler.handle(ev.MemoryLearned({"f": 60}))
    scheduler.check_invariants()
    first = next(worker for worker, lane in scheduler.lanes() if lane)
    scheduler.handle(ev.StepsFinished(first, scheduler.lane(first), (1.0,)))
    assert busy(scheduler) == [1, 2], "one of 60 is there still"

    scheduler.handle(ev.MemoryLearned({"f": 10}))
    assert busy(scheduler) == [3, 3], "it is light now"
    scheduler.check_invariants()


def busy(scheduler: Scheduler) -> List[int]:
    """How many workers of each node have something to do."""
    running = [worker for worker, lane in scheduler.lanes() if lane]
    return [sum((worker - 1) // 3 == node for worker in running) for node in (0, 1)]
