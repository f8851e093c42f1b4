"""Nodes as the coordinator's engine sees them, without any: a bus that the test holds in its hands."""

from __future__ import annotations

import queue
from typing import Any, Dict, List, Sequence

import pytest

from mpsteps._ipc import wire
from mpsteps.engines.base import EngineFailed, Happening, Replies, WorkerGone, WorkerUp
from mpsteps.engines.bus import Broken, Drain, Joined, Left, Said, Unfit
from mpsteps.engines.frames import FrameReader, FrameWriter
from mpsteps.engines.remote import RemoteEngine

pytestmark = pytest.mark.once
STEP = (b"function", (), None, None)
READY = {"host": "there", "pid": 1, "memory": 1 << 30, "cards": {}}


class HeldBus:
    """Notes what the engine wants, and says what the test wants."""

    def __init__(self) -> None:
        self.wanted: List[Any] = []
        self.writers: Dict[int, FrameWriter] = {}
        self.readers: Dict[int, FrameReader] = {}
        self.said: Dict[int, List[Any]] = {}

    def open(self, inbox: Any) -> None:
        self.inbox = inbox

    def post(self, agent: int, data: bytes) -> None:
        self.said.setdefault(agent, []).extend(self.readers[agent].feed(data))

    def again(self, agent: int) -> None:
        self.wanted.append(("again", agent))

    def drop(self, agent: int) -> None:
        self.wanted.append(("drop", agent))

    def scale(self, open_steps: int, busy: Sequence[int]) -> None:
        pass

    def close(self) -> None:
        self.wanted.append("close")

    def join(self, agent: int, slots: int = 1) -> None:
        self.writers[agent], self.readers[agent] = FrameWriter(), FrameReader()
        self.inbox.put(Joined(agent, f"address-{agent % 10}", slots))

    def say(self, agent: int, *message: Any) -> None:
        self.inbox.put(Said(agent, self.writers[agent].frame(message)))


class Held:
    """An engine on such a bus. Agents 1, 11, 21, ... are of one node."""

    def __init__(self, rerun: bool = False) -> None:
        self.bus = HeldBus()
        self.engine = RemoteEngine(self.bus, lambda worker: {}, {"cards": (0, 1)}, rerun_on_loss=rerun)
        self.engine.prepare()
        self.engine.start()

    def happened(self) -> List[Happening]:
        found: List[Happening] = []
        while True:
            new = self.engine.wait(0.0)
            found += new
            if (not new and self.bus.inbox.empty()) or any(isinstance(h, EngineFailed) for h in new):
                return found

    def bring_up(self, agent: int, slots: int = 1) -> List[int]:
        """A node whose workers are ready; their numbers."""
        self.bus.join(agent, slots)
        self.bus.say(agent, "ready", READY)
        for local in range(1, slots + 1):
            self.bus.say(agent, "want", local)
            self.bus.say(agent, "up", local, 1000 + local)
        return [h.worker for h in self.happened() if isinstance(h, WorkerUp)]

    def send(self, worker: int, *steps: int) -> None:
        self.engine.send(worker, [(step, 1, *STEP) for step in steps])


@pytest.fixture
def held() -> Any:
    made: List[Held] = []

    def make(rerun: bool = False) -> Held:
        made.append(Held(rerun))
        return made[-1]

    yield make
    for h in made:
        h.bus.inbox.put(Broken("the test is over"))
        h.engine.stop(at_once=True)


def fates(happened: List[Happening]) -> Dict[int, str]:
    """What was told of steps: 'back', 'finished', or why it has failed."""
    told: Dict[int, str] = {}
    for h in happened:
        for m in h.messages if isinstance(h, Replies) else ():
            if m[0] == -wire.RETURNED:
                told[m[1]] = "back"
            else:
                told[m[0]] = m[4][2] if len(m) > 4 else "finished"
    return told


def test_steps_of_a_lost_node_are_lost_and_its_workers_are_gone(held: Any) -> None:
    h = held()
    one, two = h.bring_up(1, 2)
    h.send(one, 5, 6)
    h.bus.say(1, "replies", 1, [(5, 0.1, 0.1, None)], 0)
    h.bus.inbox.put(Left(1, "it burns"))
    happened = h.happened()
    assert [k for k, v in fates(happened).items() if "it burns" in v and "rerunOnLoss" in v] == [6]
    assert {e.worker for e in happened if isinstance(e, WorkerGone)} == {one, two}
    assert h.bus.wanted == [("again", 1)]


def test_a_step_that_takes_its_nodes_along_is_not_repeated_for_ever(held: Any) -> None:
    """Three nodes; what was behind it in its lane is not to blame."""
    h = held(rerun=True)
    for agent in (1, 2, 3):
        (worker,) = h.bring_up(agent)
        h.send(worker, 7, 8 + agent)
        h.bus.inbox.put(Left(agent, "no memory"))
        told = fates(h.happened())
        assert told.pop(8 + agent) == "back"
        if agent < 3:
            assert told == {7: "back"}
    assert "3 nodes have been lost while it ran there" in told[7]


def test_a_step_that_has_finished_between_two_losses_is_not_blamed(held: Any) -> None:
    h = held(rerun=True)
    for agent in (1, 2, 3, 4):
        (worker,) = h.bring_up(agent)
        h.send(worker, 7)
        if agent == 2:
            h.bus.say(agent, "replies", 1, [(7, 0.1, 0.1, None)], 0)
            h.happened()
            h.send(worker, 7)
        h.bus.inbox.put(Left(agent, "no memory"))
        told = fates(h.happened())
        if agent < 4:
            assert told == {7: "back"}
    assert "3 nodes have been lost" in told[7]


def test_an_agent_that_makes_no_sense_is_ended_and_its_steps_are_lost(held: Any) -> None:
    """It would run them on, while others do so, too."""
    h = held()
    (worker,) = h.bring_up(1)
    h.send(worker, 5)
    h.bus.inbox.put(Said(1, b"x" * 64))
    happened = h.happened()
    assert "makes no sense" in fates(happened)[5]
    assert h.bus.wanted == [("drop", 1)]
    h.bus.say(1, "replies", 1, [(5, 0.1, 0.1, None)], 0)
    assert h.happened() == []


def test_an_agent_that_never_says_whether_it_is_ready_is_done_without(held: Any, monkeypatch: Any) -> None:
    """A file system that hangs there, say. There is no other node: the run ends."""
    monkeypatch.setattr("mpsteps.engines.nodes.READY_SECONDS", 0.0)
    monkeypatch.setattr("mpsteps.engines.nodes.OTHERS_SECONDS", 0.0)
    monkeypatch.setattr("mpsteps.engines.remote.SCALE_SECONDS", 0.0)
    h = held()
    h.bus.join(1)
    happened = h.happened() + h.happened()
    assert h.bus.wanted == [("drop", 1)]
    assert any(isinstance(e, EngineFailed) and "has not answered" in e.reason for e in happened), happened


@pytest.mark.parametrize("how", ["refused", "unfit"])
def test_a_node_that_cannot_be_used_ends_the_run_only_if_there_is_no_other(
    held: Any, monkeypatch: Any, how: str
) -> None:
    monkeypatch.setattr("mpsteps.engines.nodes.OTHERS_SECONDS", 0.0)
    h = held()
    h.bring_up(1)
    for agent in (2, 3):
        if how == "unfit":
            h.bus.inbox.put(Unfit("there", "no"))
        else:
            h.bus.join(agent)
            h.bus.say(agent, "refused", "no")
        failed = [e for e in h.happened() + h.happened() if isinstance(e, EngineFailed)]
        assert bool(failed) == (agent == 3)
        h.bus.inbox.put(Left(1, "gone"))
        h.happened()
    assert [w for w in h.bus.wanted if w[0] == "drop"] == ([] if how == "unfit" else [("drop", 2), ("drop", 3)])


def test_a_drained_node_that_stays_is_used_again(held: Any, monkeypatch: Any) -> None:
    """What it had not begun comes back, what it runs ends there; some time after it has left, it is asked for again."""
    monkeypatch.setattr("mpsteps.engines.nodes.AGAIN_SECONDS", 0.0)
    monkeypatch.setattr("mpsteps.engines.remote.SCALE_SECONDS", 0.0)
    h = held()
    (worker,) = h.bring_up(1)
    h.send(worker, 5)
    h.bus.inbox.put(Drain(1))
    assert h.happened() == []
    h.send(worker, 6)
    assert fates(h.happened()) == {6: "back"}
    h.bus.say(1, "replies", 1, [(5, 0.1, 0.1, None)], 0)
    happened = h.happened()
    assert [e.worker for e in happened if isinstance(e, WorkerGone)] == [worker]
    assert h.bus.said[1][-1] == ("stop", False)
    assert h.bus.wanted == []
    h.bus.inbox.put(Left(1, "its agent has ended"))
    h.happened()
    h.happened()
    assert h.bus.wanted == [("again", 1)]


def test_a_node_is_asked_for_agents_until_three_have_come_to_nothing(held: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("mpsteps.engines.nodes.OTHERS_SECONDS", 0.0)
    h = held()
    for agent in (1, 11, 21):
        h.bus.join(agent)
        h.bus.inbox.put(Left(agent, "it died"))
    failed = [e for e in h.happened() + h.happened() if isinstance(e, EngineFailed)]
    assert h.bus.wanted == [("again", 1), ("again", 11)]
    assert len(failed) == 1
    assert "3 agents in a row have come to nothing (it died)" in failed[0].reason


def test_cards_come_with_their_node(held: Any) -> None:
    h = held()
    h.bus.join(1)
    h.bus.say(1, "ready", {**READY, "cards": {1: "there/7"}})
    h.bus.say(1, "want", 1)
    h.bus.say(1, "up", 1, 1001)
    (up,) = h.happened()
    assert up.node.cards == (((1,), ("there/7",)),)


def test_steps_that_wait_for_cards_which_no_node_has_end_the_run(held: Any, monkeypatch: Any, caplog: Any) -> None:
    """But not while others run, nor where a node has one."""
    monkeypatch.setattr("mpsteps.engines.nodes.CARD_SECONDS", 0.0)
    monkeypatch.setattr("mpsteps.engines.remote.SCALE_SECONDS", 0.0)
    h = held()
    (worker,) = h.bring_up(1)
    assert "none of the run's graphics cards" in caplog.text
    h.engine.open_steps = lambda: 2
    (failed,) = [e for e in h.happened() if isinstance(e, EngineFailed)]
    assert "2 steps need graphics cards, and no node has any of [0, 1]" in failed.reason
    h.send(worker, 5)
    assert h.happened() == []
    h.bus.join(2)
    h.bus.say(2, "ready", {**READY, "cards": {0: "there/0"}})
    assert h.happened() == []
    h.bus.say(1, "replies", 1, [(5, 0.1, 0.1, None)], 0)
    assert not [e for e in h.happened() + h.happened() if isinstance(e, EngineFailed)]


def test_a_worker_that_waits_on_a_node_that_is_lost_before_the_start_is_none(held: Any) -> None:
    bus = HeldBus()
    engine = RemoteEngine(bus, lambda worker: {}, {})
    engine.prepare()
    bus.join(1)
    bus.say(1, "ready", READY)
    bus.say(1, "want", 1)
    bus.inbox.put(Left(1, "gone"))
    assert engine.wait(0.0) == []
    engine.start()
    assert engine.most == 0
    bus.inbox.put(Broken("the test is over"))
    engine.stop()
    assert isinstance(bus.inbox, queue.SimpleQueue)
