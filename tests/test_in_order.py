"""Replies of several lanes come out so that no step ends before what it was sent behind."""

from __future__ import annotations

import random
from typing import Any, Dict, List, Sequence, Set

import pytest

from mpsteps._in_order import InOrder
from mpsteps._ipc import wire
from mpsteps.engines.base import Happening, Replies, WorkerGone, WorkerUp


def finished(worker: int, *steps: int) -> Replies:
    return Replies(worker, [(-wire.FINISHED, list(steps), [0.1 * s for s in steps], [0.0] * len(steps))])


def with_value(worker: int, step: int) -> Replies:
    return Replies(worker, [(step, 0.1, 0.0, {"value": b"7"})])


def back(worker: int, *steps: int) -> Replies:
    return Replies(worker, [(-wire.RETURNED, step) for step in steps])


def gone(worker: int, done: Sequence[int] = (), began: Any = None) -> WorkerGone:
    return WorkerGone(worker, 4711, -9, tuple(done), began, 0, "")


class Lanes:
    """An InOrder, and the steps that the scheduler takes to be in flight."""

    def __init__(self, follows: Dict[int, Sequence[int]], in_flight: Sequence[int] = range(1, 100)) -> None:
        self.in_flight = set(in_flight)
        self.in_order = InOrder(self.in_flight.__contains__)
        for step, behind in follows.items():
            self.in_order.sent(step, behind)

    def sort(self, *happenings: Happening) -> List[Happening]:
        found = self.in_order.sort(list(happenings))
        for h in found:
            self.in_flight.difference_update(abs(s) for s in ends(h))
        return found


def ends(h: Happening) -> List[int]:
    """The steps that this tells the end of; minus those that were given back."""
    if isinstance(h, WorkerGone):
        return [*h.done] if h.began is None else [*h.done, h.began]
    found: List[int] = []
    for m in h.messages if isinstance(h, Replies) else ():
        if m[0] == -wire.FINISHED:
            assert len(m[1]) == len(m[2]) == len(m[3]), "the parts of a message were cut apart"
            assert m[2] == [0.1 * s for s in m[1]], "a step has got the time of another"
            found += m[1]
        elif m[0] > 0 or m[0] == -wire.RETURNED:
            found.append(m[0] if m[0] > 0 else -m[1])
    return found


def test_what_follows_nobody_passes_as_it_is() -> None:
    """Also while others wait; what is no reply passes always."""
    lanes = Lanes({5: (1,)})
    assert lanes.sort(finished(2, 5)) == []
    passing = [finished(3, 7), WorkerUp(4, 1), with_value(3, 8)]
    assert sorted(map(str, lanes.sort(*passing))) == sorted(map(str, passing))


def test_a_reply_waits_for_that_of_the_step_before_it() -> None:
    """And all that its lane says after it."""
    lanes = Lanes({5: (1,)})
    assert lanes.sort(finished(2, 4, 5, 6)) == [finished(2, 4)]
    assert 5 in lanes.in_order.ended
    assert 6 in lanes.in_order.ended
    assert 4 not in lanes.in_order.ended
    assert lanes.sort(with_value(2, 7)) == []
    assert lanes.sort(finished(1, 1)) == [finished(2, 5, 6), with_value(2, 7), finished(1, 1)]
    assert 5 not in lanes.in_order.ended


def test_steps_that_follow_each_other_in_turns_come_out_together() -> None:
    """Neither lane could be told in full before the other."""
    lanes = Lanes({4: (3,), 5: (4,), 6: (5,)})
    assert lanes.sort(finished(2, 4, 6)) == []
    assert {s for h in lanes.sort(finished(1, 3, 5)) for s in ends(h)} == {3, 4, 5, 6}


def test_what_is_given_back_waits_for_nobody() -> None:
    """Nothing of it was run. But what its lane says before it comes first."""
    lanes = Lanes({5: (1,), 6: (1,)})
    assert lanes.sort(back(2, 5)) == [back(2, 5)]
    assert lanes.sort(finished(2, 6)) == []
    assert lanes.sort(back(2, 7)) == []
    assert 7 not in lanes.in_order.ended
    assert lanes.sort(finished(1, 1)) == [finished(2, 6), back(2, 7), finished(1, 1)]


def test_a_death_waits_its_turn() -> None:
    """What the dead had finished follows others, too. Who was killed in a step has not run it to its end."""
    lanes = Lanes({5: (1,)})
    death = gone(2, done=(5,), began=6)
    assert lanes.sort(death) == []
    assert 5 in lanes.in_order.ended
    assert 6 not in lanes.in_order.ended
    assert lanes.sort(finished(1, 1)) == [death, finished(1, 1)]


def test_the_death_of_the_lane_before_lets_go() -> None:
    """What had finished there has finished."""
    lanes = Lanes({5: (1,)})
    lanes.sort(finished(2, 5))
    assert lanes.sort(gone(1, done=(1,))) == [finished(2, 5), gone(1, done=(1,))]


def test_nobody_waits_for_a_step_that_is_in_no_lane() -> None:
    """It has ended long ago, or was given back and waits for a lane."""
    lanes = Lanes({5: (1,)}, in_flight=(5,))
    assert lanes.sort(finished(2, 5)) == [finished(2, 5)]


@pytest.mark.parametrize("seed", range(40))
def test_in_every_order_all_is_told_once_and_nothing_too_early(seed: int) -> None:
    """Random graphs in random lanes, whose workers run what they may and tell it whenever they like."""
    r = random.Random(seed)
    workers, count = r.randint(2, 5), 60
    lane_of = {s: r.randint(1, workers) for s in range(1, count + 1)}
    needs = {s: sorted(r.sample(range(max(1, s - 8), s), min(s - 1, r.randint(0, 3)))) for s in range(1, count + 1)}
    follows = {s: tuple(p for p in needs[s] if lane_of[p] != lane_of[s]) for s in needs}
    lanes = Lanes({s: ps for s, ps in follows.items() if ps}, in_flight=range(1, count + 1))
    queues = {w: [s for s in needs if lane_of[s] == w] for w in range(1, workers + 1)}
    kept: Dict[int, List[int]] = {w: [] for w in queues}
    run: Set[int] = set()
    told: List[int] = []
    while len(told) < count:
        for w, queue in queues.items():
            while queue and run.issuperset(needs[queue[0]]) and r.random() < 0.7:
                run.add(queue[0])
                kept[w].append(queue.pop(0))
        happenings: List[Happening] = []
        for w in r.sample(sorted(kept), workers):
            if kept[w] and r.random() < 0.4:
                told_now = len(kept[w]) if r.random() < 0.8 else 1
                now, kept[w] = kept[w][:told_now], kept[w][told_now:]
                happenings.append(finished(w, *now) if r.random() < 0.8 or len(now) > 1 else with_value(w, now[0]))
        turn = [s for h in lanes.sort(*happenings) for s in ends(h)]
        for s in turn:
            assert set(needs[s]) <= {*told, *turn}, f"step {s} is told before {needs[s]}"
        told += turn
    assert sorted(told) == sorted(needs)
    for w in queues:
        assert [s for s in told if lane_of[s] == w] == [s for s in sorted(needs) if lane_of[s] == w], "out of order"
