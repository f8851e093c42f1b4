"""Write-back among many workers: the coordinator's truth, and replicas that hear of it in pieces and late.

Here a worker is an object with a tracker and a lane of messages; time passes only where a test says so.
"""

from __future__ import annotations

import random
from collections import deque
from typing import Any, Callable, Deque, Dict, List, Optional, Tuple

import pytest

from mpsteps import _statelog
from mpsteps._ipc import state, wire
from mpsteps._ipc.merge import UNKNOWN
from mpsteps._statelog import StateLog
from mpsteps.errors import StateConflict

Action = Callable[[Any], None]


class Thing:
    """Stands for a protocol: only its attributes matter."""

    grown: List[str]

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


def fresh() -> Thing:
    """What every run here begins with."""
    return Thing(
        grown=[], other=[], found={}, names=set(), last=None, table={"a": 1}, nested={}, count=0, tally={}, stats={}
    )  # fmt: skip


class Code:
    """What the actions here do: `count` is counted, items of `nested` are begun, all else is set."""

    def adds(self, name: str, inside: bool) -> bool:
        return name in ("count", "tally", "stats")

    def begins(self, name: str, inside: bool) -> bool:
        return name in ("nested", "stats")

    def sets(self, name: str, inside: bool) -> bool:
        return not self.adds(name, inside)


CODE = Code()


class Replica:
    """One worker: its copy of the protocol, the messages in its lane, the replies it has not been rid of."""

    def __init__(self, number: int, image: Dict[str, Any]) -> None:
        self.number = number
        self.thing = Thing(**wire.unpack(wire.pack(image)))
        self.tracker = state.Tracker(self.thing, ())
        self.lane: Deque[Tuple[int, _statelog.News, Action]] = deque()
        self.replies: Deque[Tuple[int, Optional[bytes]]] = deque()
        self.reported = 0  # how many replies told of changes
        self.pending: Deque[Tuple[int, bytes]] = deque()  # (number of the reply, what it told)

    def run(self) -> None:
        """The next step of the lane, as `_worker.Worker` runs it."""
        step, news, action = self.lane.popleft()
        if news is not None:
            self._hear(news)
        action(self.thing)
        changes = self.tracker.changes()
        if changes:
            self.reported += 1
            self.pending.append((self.reported, state.pack_changes(changes, self.thing)))
        self.replies.append((step, self.pending[-1][1] if changes else None))

    def _hear(self, news: Any) -> None:
        taken_in, parcels = (news, ()) if type(news) is int else news
        while self.pending and self.pending[0][0] <= taken_in:
            self.pending.popleft()
        changes = [c for parcel in parcels for c in wire.unpack(parcel, self.thing)]
        self.tracker.apply(changes, [(c, CODE) for _, own in self.pending for c in wire.unpack(own, self.thing)])


class Coordinator:
    """The truth, its log and the replicas."""

    def __init__(self, workers: int, own_tracker: bool = False) -> None:
        self.truth = fresh()
        self.tracker = state.Tracker(self.truth, ()) if own_tracker else None
        self.log = StateLog(self.truth, self.tracker, writes=lambda step: CODE)
        self.replicas: Dict[int, Replica] = {}
        self.workers = 0
        self.steps = 0
        self.journal: List[bytes] = []
        self.conflicts: List[int] = []  # steps that failed by one
        for _ in range(workers):
            self.hire()

    def hire(self) -> Replica:
        if self.tracker is not None:
            self.publish()  # else the image would have what a local step has changed and may yet take back
        self.workers += 1
        replica = self.replicas[self.workers] = Replica(self.workers, vars(self.truth))
        self.log.join(self.workers)
        return replica

    def lose(self, worker: int) -> None:
        self.replicas.pop(worker)
        self.log.leave(worker)

    def send(self, worker: int, action: Action) -> int:
        self.steps += 1
        news = self.log.news(worker, (self.steps,))
        self.replicas[worker].lane.append((self.steps, news, action))
        return self.steps

    def take_reply(self, worker: int) -> None:
        step, parcel = self.replicas[worker].replies.popleft()
        if parcel is None:
            self.log.settle(step)
        else:
            if self.tracker is not None:
                self.publish()  # a local step may be running: its changes come before (see `OwnChanges.before_merge`)
            try:
                self.journal.append(self.log.merge(worker, step, parcel))
            except StateConflict:
                self.conflicts.append(step)

    def act_here(self, action: Action) -> None:
        """A piece of a local step, or of `_stepsCheck`: on the truth itself."""
        action(self.truth)

    def publish(self) -> None:
        """As `ProtocolRun.publish_own_changes`."""
        assert self.tracker is not None
        changes = self.tracker.changes()
        if changes:
            self.journal.append(self.log.publish(state.pack_changes(changes, self.truth)))

    def drain(self) -> None:
        """Everything that is under way arrives; then each replica hears of all that it has not heard."""
        for worker, replica in self.replicas.items():
            while replica.lane:
                replica.run()
            while replica.replies:
                self.take_reply(worker)
        if self.tracker is not None:
            self.publish()
        for worker, replica in self.replicas.items():
            self.send(worker, lambda thing: None)
            replica.run()
            assert replica.replies.pop() == (self.steps, None), "hearing of changes was taken for a change"
            self.log.settle(self.steps)

    def assert_all_agree(self) -> None:
        for worker, replica in self.replicas.items():
            assert vars(replica.thing) == vars(self.truth), f"worker {worker} believes otherwise"

    def run_here(self, worker: int, action: Action) -> None:
        """Send, run and merge one step at once."""
        self.send(worker, action)
        self.replicas[worker].run()
        self.take_reply(worker)


# ----------------------------------------------------------------------------------------------- single stories
def test_what_a_step_wrote_is_seen_by_a_later_step_elsewhere() -> None:
    """C1: it sees everything that those before it wrote."""
    c = Coordinator(2)
    seen = []
    c.run_here(1, lambda thing: thing.grown.append("a"))

    c.run_here(2, lambda thing: seen.append(list(thing.grown)))

    assert seen == [["a"]]
    assert c.truth.grown == ["a"]


def test_a_worker_is_not_told_what_it_did_itself() -> None:
    """Only that it was taken in; unless somebody else was there before it (see the next test)."""
    c = Coordinator(1)
    c.run_here(1, lambda thing: thing.grown.append("a"))

    assert c.log.news(1, (98,)) == 1
    assert c.log.news(1, (99,)) is None


def test_two_that_append_at_the_same_time_agree_on_the_order() -> None:
    """Neither piece is lost; the one that arrived first is first, for the one that came second as well (echo)."""
    c = Coordinator(2)
    c.send(1, lambda thing: thing.grown.append("a"))
    c.send(2, lambda thing: thing.grown.append("b"))
    for replica in c.replicas.values():
        replica.run()
    c.take_reply(2)
    c.take_reply(1)

    c.drain()

    assert c.truth.grown == ["b", "a"]
    c.assert_all_agree()


def test_what_follows_an_echo_in_the_same_lane_is_echoed_too() -> None:
    """Else hearing of the first one again, late, would undo the second in the worker that made both."""
    c = Coordinator(2)
    c.send(1, lambda thing: setattr(thing, "count", 1))
    c.run_here(2, lambda thing: setattr(thing, "count", 10))
    c.send(1, lambda thing: setattr(thing, "count", 100))  # sent with the news of the other, before the first is back
    c.drain()

    assert c.truth.count == 100
    c.assert_all_agree()


def test_a_list_that_grows_in_a_deep_lane_loses_nothing() -> None:
    """News that arrive between two steps of a lane come before what the first of them appended."""
    c = Coordinator(2)
    c.send(1, lambda thing: thing.grown.append("a"))
    c.run_here(2, lambda thing: thing.grown.append("x"))
    c.send(1, lambda thing: thing.grown.append("b"))
    c.drain()

    assert c.truth.grown == ["x", "a", "b"]
    c.assert_all_agree()


def test_a_replacement_starts_from_the_truth_and_hears_only_what_comes_after() -> None:
    """Its image has all that was merged before it joined."""
    c = Coordinator(1)
    c.run_here(1, lambda thing: thing.grown.append("a"))
    c.lose(1)
    new = c.hire()
    assert c.log.news(2, (99,)) is None

    c.hire()
    c.run_here(3, lambda thing: thing.grown.append("b"))
    c.drain()

    assert new.thing.grown == ["a", "b"]
    c.assert_all_agree()


def test_changes_that_die_with_a_worker_are_nobodys() -> None:
    """They were never merged: as if the step had not run, which is what the coordinator reports."""
    c = Coordinator(2)
    c.send(1, lambda thing: thing.grown.append("lost"))
    c.replicas[1].run()
    c.lose(1)
    c.drain()

    assert c.truth.grown == []
    c.assert_all_agree()


def test_a_step_that_changed_nothing_leaves_no_trace() -> None:
    """Most steps: no entry, nothing to tell, nothing remembered."""
    c = Coordinator(1)
    c.run_here(1, lambda thing: None)

    assert c.log.version == 0
    assert not c.log._base


def test_a_parcel_that_cannot_be_opened_changes_nothing() -> None:
    """The step fails; the truth and what others hear stay as they were."""
    c = Coordinator(1)
    with pytest.raises(Exception, match=r"."):
        c.log.merge(1, 7, b"pgarbage")

    assert vars(c.truth) == vars(fresh())
    assert c.log.version == 0


def test_the_journal_leads_to_the_truth_again() -> None:
    """Resume: what `merge` and `publish` returned, applied in order to the protocol as it was at the start."""
    c = Coordinator(2, own_tracker=True)
    c.send(1, lambda thing: thing.grown.append("a"))
    c.send(2, lambda thing: thing.grown.extend("bc"))
    c.act_here(lambda thing: thing.found.update(k=1))
    c.drain()
    again = fresh()
    for parcel in c.journal:
        for change in wire.unpack(parcel, again):
            state.apply(again, change)

    assert vars(again) == vars(c.truth)


def test_what_every_worker_has_heard_is_forgotten() -> None:
    """A run of a million steps must not keep a million parcels."""
    c = Coordinator(2)
    for i in range(1000):
        c.run_here(1 + i % 2, lambda thing, i=i: thing.found.update({i % 10: i}))

    assert c.log.version == 1000
    assert len(c.log._entries) < 200
    c.drain()
    c.assert_all_agree()


def test_without_workers_nothing_is_kept() -> None:
    """Those that join start from an image."""
    c = Coordinator(1, own_tracker=True)
    c.lose(1)
    for i in range(200):
        c.act_here(lambda thing, i=i: thing.grown.append(i))
        c.publish()
    c.hire()
    c.lose(2)

    assert len(c.log._entries) < 100
    c.hire()
    c.drain()
    c.assert_all_agree()


# ------------------------------------------------------------------------------------- code in this process as well
def test_what_code_in_this_process_changes_is_heard_by_the_workers() -> None:
    """A local step, `_stepsCheck`: in place here, told like the rest."""
    c = Coordinator(2, own_tracker=True)
    c.act_here(lambda thing: thing.grown.append("here"))
    c.publish()
    c.drain()

    assert c.replicas[2].thing.grown == ["here"]
    c.assert_all_agree()


def test_merged_changes_are_not_taken_for_changes_made_here() -> None:
    """Else each would be told and journaled twice."""
    c = Coordinator(1, own_tracker=True)
    c.run_here(1, lambda thing: thing.grown.append("a"))
    assert c.tracker is not None

    assert c.tracker.changes() == []


@pytest.mark.parametrize("name", ["grown", "found", "names", "last"])
def test_a_change_made_here_and_not_told_yet_survives_a_merge_of_the_same_attribute(name: str) -> None:
    """A local step runs beside the loop: its half-done changes must not be taken for a worker's and forgotten."""
    change: Dict[str, Callable[[Any, str], None]] = {
        "grown": lambda thing, who: thing.grown.append(who),
        "found": lambda thing, who: thing.found.update({who: 1}),
        "names": lambda thing, who: thing.names.add(who),
        "last": lambda thing, who: setattr(thing, "last", who),
    }
    c = Coordinator(2, own_tracker=True)
    c.act_here(lambda thing: change[name](thing, "here"))
    c.run_here(1, lambda thing: change[name](thing, "there"))
    c.drain()

    c.assert_all_agree()
    assert c.conflicts == ([1] if name == "last" else [])
    if name == "last":
        assert c.truth.last == "here"
    elif name == "grown":
        assert sorted(c.truth.grown) == ["here", "there"]


def test_what_news_have_not_touched_is_not_done_again() -> None:
    """A worker counted under one key and hears of another one, before its own count is taken in: it must not count it
    twice, or the next step there, which nobody else disturbs, would carry that home."""

    def count(key: str) -> Action:
        return lambda thing: thing.tally.update({key: thing.tally.get(key, 0) + 1})

    c = Coordinator(2)
    c.run_here(1, count("c"))
    c.send(1, count("c"))
    c.replicas[1].run()  # pending: its reply is not taken in
    c.run_here(2, count("a"))
    c.send(1, count("c"))
    c.drain()

    assert c.truth.tally == {"c": 3, "a": 1}
    c.assert_all_agree()


def test_what_was_told_is_done_again_as_it_was_then() -> None:
    """What a step begins is changed by the next one there, before others are heard of: each is done again by itself."""

    def begin(thing: Thing) -> None:
        thing.stats.setdefault("k", {"n": 0})["n"] += 1

    c = Coordinator(2)
    c.send(1, begin)
    c.send(1, begin)
    c.replicas[1].run()
    c.replicas[1].run()
    c.run_here(2, begin)
    c.send(1, begin)
    c.drain()

    assert c.truth.stats == {"k": {"n": 4}}
    c.assert_all_agree()


# -------------------------------------------------------------------------------------------- every interleaving
class Chaos:
    """N workers, random steps, random moments: dispatch, run, merge, death, replacement, code in this process."""

    def __init__(self, seed: int, own_tracker: bool) -> None:
        self.r = random.Random(seed)
        self.c = Coordinator(self.r.randint(1, 4), own_tracker)
        self.here = own_tracker
        self.grown: Dict[int, List[str]] = {}  # step -> what it appended, by its own account
        self.counted: Dict[int, int] = {}  # likewise
        self.merged: List[int] = []
        self.local = 0

    def _action(self, step: int) -> Action:
        r = self.r
        kinds = "grow,grow,grow twice,fill,fill,add,assign,own,replace,drop,forget,none,count,count,nest,nest"
        kind = r.choice(kinds.split(","))
        number, key = r.randint(0, 9), r.choice("abcd")
        tag = f"{step}" if step else f"here {self.local}"

        def act(thing: Any) -> None:
            if kind.startswith("grow"):
                thing.grown.append(tag)
                if kind == "grow twice":
                    thing.other.append(tag)
                    thing.grown.extend([tag + "'", tag + "''"])
            elif kind == "fill":
                thing.found[key] = [number]
            elif kind == "count":
                thing.count += number
                thing.tally[key] = thing.tally.get(key, 0) + number
                stats = thing.stats.setdefault(key, {"n": 0, "all": []})
                stats["n"] += number
                stats["all"].append(tag)
            elif kind == "nest":
                thing.nested.setdefault(key, []).append(tag)
            elif kind == "add":
                thing.names.add(number)
                thing.names.discard((number + 5) % 10)
            elif kind == "assign":
                thing.last = tag
            elif kind == "own":
                setattr(thing, f"own{number}", tag)
            elif kind == "replace":
                thing.table = {key: number}
            elif kind == "drop":
                thing.found.pop(key, None)
                thing.table[key] = number
            elif kind == "forget" and hasattr(thing, f"own{number}"):
                delattr(thing, f"own{number}")

        if kind == "count":
            self.counted[step if step else -self.local] = number
        if kind.startswith("grow"):
            items = [tag, tag + "'", tag + "''"] if kind == "grow twice" else [tag]
            self.grown[step if step else -self.local] = items
        return act

    def _send(self) -> None:
        """A step that depends on all steps merged so far, and looks whether it sees what they appended.

        Or it is sent ahead: then it depends also on all that stand before it in its lane.
        """
        c = self.c
        worker = self.r.choice(list(c.replicas))
        before = list(self.merged)
        if self.r.random() < 0.5:
            before += [step for step, *_ in (*c.replicas[worker].replies, *c.replicas[worker].lane)]
        must_see = [item for step in before for item in self.grown.get(step, [])]
        act = self._action(c.steps + 1)

        def look_and_act(thing: Any) -> None:
            blind = [item for item in must_see if item not in thing.grown and _step_of(item) not in c.conflicts]
            assert not blind, f"a step does not see {blind}, which its prerequisites wrote"
            act(thing)

        c.send(worker, look_and_act)

    def happen(self) -> None:
        r, c = self.r, self.c
        worker = r.choice(list(c.replicas))
        replica = c.replicas[worker]
        x = r.random()
        if x < 0.3:
            self._send()
        elif x < 0.6 and replica.lane:
            replica.run()
        elif x < 0.9 and replica.replies:
            self.merged.append(replica.replies[0][0])
            c.take_reply(worker)
            self._forget_conflicts()
        elif x < 0.92:
            for step, *_ in (*replica.lane, *replica.replies):
                self.grown.pop(step, None)
                self.counted.pop(step, None)
            c.lose(worker)
            c.hire()
        elif self.here and x < 0.97:
            self.local += 1
            c.act_here(self._action(0))
        elif self.here:
            c.publish()

    def _forget_conflicts(self) -> None:
        for step in self.c.conflicts:
            self.grown.pop(step, None)
            self.counted.pop(step, None)

    def check(self) -> None:
        c = self.c
        c.drain()
        self._forget_conflicts()
        c.assert_all_agree()
        wanted = [item for items in self.grown.values() for item in items]
        assert c.truth.count == sum(self.counted.values())
        assert c.truth.count == sum(c.truth.tally.values()) == sum(s["n"] for s in c.truth.stats.values())
        assert sum(len(s["all"]) for s in c.truth.stats.values()) == len(self.counted)
        assert sorted(c.truth.grown) == sorted(wanted), "growth was lost, or doubled"
        for items in self.grown.values():
            at = c.truth.grown.index(items[0])
            assert c.truth.grown[at : at + len(items)] == items, "what a step appended was torn apart"


def _step_of(item: str) -> Optional[int]:
    return int(item.rstrip("'")) if item[0].isdigit() else None


def _live(seed: int, own_tracker: bool) -> None:
    chaos = Chaos(seed, own_tracker)
    for _ in range(chaos.r.randint(5, 120)):
        chaos.happen()
    chaos.check()


@pytest.mark.parametrize("own_tracker", [False, True], ids=["workers only", "and code in this process"])
def test_after_everything_all_replicas_equal_the_truth_and_no_growth_is_lost(own_tracker: bool) -> None:
    """300 random interleavings of dispatch, run, merge and death; each step also sees what its prerequisites wrote."""
    for seed in range(300):
        try:
            _live(seed, own_tracker)
        except Exception as error:
            raise AssertionError(f"_live({seed}, {own_tracker}): {type(error).__name__}: {error}") from error


# ---------------------------------------------------------------------------------- numbers that both sides add to
@pytest.mark.parametrize(
    ("by", "adds_up"),
    [((1,), True), ((_statelog.CHECK,), True), ((1, 2), True), ((1, _statelog.CHECK), True), ((1, 5), True),
     ((), False), ((3,), False), ((1, 3), False), ((4,), False), ((1, 4), False)],
)  # fmt: skip
def test_what_code_of_this_process_adds_adds_up_if_known(by: Tuple[int, ...], adds_up: bool) -> None:
    """A local step, `_stepsCheck`, several of them; 3 sets it, of 4 nothing is known, 5 has nothing to do with it."""

    class Sets(Code):
        def adds(self, name: str, inside: bool) -> bool:
            return False

    class Neither(Sets):
        def sets(self, name: str, inside: bool) -> bool:
            return False

    known = {3: Sets(), 4: UNKNOWN, 5: Neither()}
    truth = fresh()
    log = StateLog(truth, state.Tracker(truth, ()), writes=lambda step: known.get(step, CODE))
    log.join(1)
    log.news(1, (9,))
    truth.count += 5
    log.publish(state.pack_changes([("#", "count", 5, 0)], truth), by)
    told = wire.pack([("#", "count", 3, 0)])

    if adds_up:
        log.merge(1, 9, told)
        assert truth.count == 8
    else:
        with pytest.raises(StateConflict):
            log.merge(1, 9, told)
        assert truth.count == 5


def test_what_code_of_this_process_changes_while_a_merge_is_worked_out_is_not_lost() -> None:
    """A local step runs in a thread of its own: then it is worked out again."""
    truth = fresh()
    tracker = state.Tracker(truth, ())
    log = StateLog(truth, tracker, writes=lambda step: CODE)
    log.join(1)
    log.news(1, (9,))
    calls = []

    def collect_own() -> bool:
        calls.append(truth.count)
        if 1 < len(calls) < 4:
            truth.count += 5
            log.publish(state.pack_changes(tracker.changes(), truth), (1,))
        return 1 < len(calls) < 4

    log.collect_own = collect_own
    log.merge(1, 9, wire.pack([("#", "count", 3, 0)]))

    assert calls == [0, 0, 5, 10]
    assert truth.count == 13
