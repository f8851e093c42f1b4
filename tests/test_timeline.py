"""The records of a journal laid out along time."""

from __future__ import annotations

import random

import pytest

from mpsteps._timeline import timeline


def session(threads=2, began=100.0):
    return ["protocol", {"class": "P", "threads": threads, "pid": 1, "started": began, "params": {}}]


def steps(count, prerequisites=None):
    return ["steps", 1, "f", [[i] for i in range(count)], prerequisites or [[] for _ in range(count)]]


def rows(line):
    return [(s.step, s.worker, round(s.begin, 6), round(s.end, 6), s.status) for s in line.spans]


def test_a_step_that_is_alone_lies_between_its_dispatch_and_its_record():
    """What its record came late by is shared between before and after."""
    line = timeline([session(), steps(1), ["started", 7, 1, 101.0, [1]], ["finished", 7, 103.0, [[1, 1.0, 0.5, 9]]]])
    assert rows(line) == [(1, 0, 101.5, 102.5, "finished")]
    assert (line.spans[0].cpu, line.spans[0].peak_kib) == (0.5, 9)
    assert (line.sessions[0].began, line.sessions[0].ended, line.sessions[0].status) == (100.0, 103.0, "running")


def test_steps_of_one_record_follow_each_other_with_even_pauses():
    line = timeline([session(), steps(2), ["started", 7, 1, 101.0, [1, 2]],
                     ["done", 7, 102.0, [1, 2], [200000, 400000], [0, 0]]])  # fmt: skip
    assert rows(line) == [(1, 0, 101.1, 101.3, "finished"), (2, 0, 101.5, 101.9, "finished")]


def test_a_step_does_not_begin_before_what_it_waits_for_in_another_lane():
    line = timeline([
        session(), steps(2, [[], [1]]), ["started", 7, 1, 101.0, [1]], ["started", 8, 1, 101.0, [2]],
        ["finished", 7, 103.0, [[1, 2.0, 0, None]]], ["finished", 8, 104.0, [[2, 1.0, 0, None]]],
    ])  # fmt: skip
    assert rows(line) == [(1, 0, 101.0, 103.0, "finished"), (2, 1, 103.0, 104.0, "finished")]


def test_failures_last_until_they_are_recorded_and_attempts_are_told_apart():
    line = timeline([
        session(), steps(1), ["started", 7, 1, 101.0, [1]], ["lost", 1, 7, 1, 102.0, {"peak_kib": 5}],
        ["started", 8, 2, 103.0, [1]], ["failed", 1, 8, 2, 104.0, {}], ["ended", "failed", 105.0, "x"],
    ])  # fmt: skip
    assert rows(line) == [(1, 0, 101.0, 102.0, "lost"), (1, 1, 103.0, 104.0, "failed")]
    assert [s.attempt for s in line.spans] == [1, 2]
    assert line.sessions[0].status == "failed"


def test_a_worker_takes_the_row_of_one_that_died():
    """Where there are as many rows as the run had workers."""
    records = [session(threads=1), steps(2), ["started", 7, 1, 101.0, [1]], ["lost", 1, 7, 1, 102.0, {}],
               ["started", 8, 1, 103.0, [2]], ["finished", 8, 104.0, [[2, 1.0, 0, None]]]]  # fmt: skip
    line = timeline(records)
    assert [s.worker for s in line.spans] == [0, 0]
    assert line.sessions[0].workers == ["worker 1 (7, 8)"]


def test_the_coordinator_has_a_row_of_its_own():
    line = timeline([
        session(threads=1), steps(2), ["started", 1, 1, 101.0, [1]], ["started", 7, 1, 101.0, [2]],
        ["finished", 1, 102.0, [[1, 1.0, 0, None]]], ["finished", 7, 102.0, [[2, 1.0, 0, None]]],
    ])  # fmt: skip
    assert line.sessions[0].workers == ["coordinator 1", "worker 2 (7)"]


def test_what_has_no_end_lasts_to_the_end_of_its_session_or_until_now():
    """The one that waits behind it in the lane has no span; of a past session it was cut, in a live one it runs."""
    records = [session(), steps(2), ["started", 7, 1, 101.0, [1, 2]], ["started", 8, 1, 104.0, []]]
    assert rows(timeline(records)) == [(1, 0, 101.0, 104.0, "cut")]
    assert rows(timeline(records, now=110.0)) == [(1, 0, 101.0, 110.0, "running")]
    assert rows(timeline([*records, session(began=120.0)], now=130.0)) == [(1, 0, 101.0, 104.0, "cut")]


def test_what_was_given_back_did_not_run():
    line = timeline([session(), steps(1), ["started", 7, 1, 101.0, [1]], ["returned", [1]]])
    assert rows(line) == []


def test_steps_that_came_later_were_there_when_the_next_record_was_made():
    line = timeline([session(), steps(1), ["started", 7, 1, 101.0, [1]], ["steps", 2, "g", [[]], [[]]],
                     ["started", 8, 1, 102.0, [2]]])  # fmt: skip
    assert line.sessions[0].inserted == {2: 102.0}


@pytest.mark.parametrize("seed", range(20))
def test_a_worker_does_one_thing_at_a_time(seed):
    """Whatever the clock says in the records: spans of a row never overlap, and durations are as recorded."""
    rng = random.Random(seed)
    records, waiting, now = [session(threads=3), steps(60)], list(range(1, 61)), 100.0
    seconds = {}
    while waiting:
        now += rng.uniform(-0.01, 0.1)
        batch, waiting = waiting[:3], waiting[3:]
        pid = rng.choice((7, 8, 9))
        records.append(["started", pid, 1, now, batch])
        now += rng.uniform(0, 0.3)
        took = {step: rng.uniform(0, 0.2) for step in batch}
        seconds.update(took)
        records.append(["finished", pid, now, [[s, t, t, None] for s, t in took.items()]])
    line = timeline(records)
    assert len(line.spans) == 60
    last = {}
    for span in line.spans:
        assert span.begin >= last.get(span.worker, 0.0) - 1e-9
        assert span.end - span.begin == pytest.approx(seconds[span.step])
        last[span.worker] = span.end
