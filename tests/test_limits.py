"""What limited a run: constructed runs, each of which is limited by one known thing.

Runs are made by a small list scheduler of the test's own: it gives ready steps, in order, to free workers.
"""

from __future__ import annotations

import heapq

import pytest

from mpsteps._account import IDLE, Machine, Needs, Piece, critical_path
from mpsteps._limits import analyse

GB = 10**9


class Made:
    """Steps are (function, seconds, prerequisites); they run on `machine` as soon as they can."""

    def __init__(self, steps, machine, needs=None, cost=0.0, start=0.0, end=0.0, arrive=None):
        needs, arrive = needs or {}, arrive or {}
        self.machine, self.needs, self.inserted = machine, needs, {n: t for n, t in arrive.items() if t}
        self.prerequisites = {n: list(p) for n, (_, _, p) in enumerate(steps, 1)}
        self.pieces, free = [], [(start, w) for w in range(machine.workers)]
        ends, waiting, now = {}, list(range(1, len(steps) + 1)), start
        memory = gpus = slots = 0
        running = []
        while waiting or running:
            for number in list(waiting):
                func, seconds, before = steps[number - 1]
                need = needs.get(func, Needs())
                fits = (
                    memory + need.memory <= machine.memory or not need.memory,
                    gpus + need.gpus <= machine.gpus,
                    slots + need.cpus <= machine.workers,
                    arrive.get(number, 0.0) <= now,
                    all(ends.get(p, 1e9) <= now for p in before),
                )
                idle = [f for f in free if f[0] <= now]
                if not all(fits) or not idle:
                    continue
                free.remove(idle[0])
                worker = idle[0][1]
                waiting.remove(number)
                begin = now + cost / 2
                ends[number] = begin + seconds
                memory, gpus, slots = memory + need.memory, gpus + need.gpus, slots + need.cpus
                self.pieces.append(Piece(number, func, worker, begin, begin + seconds))
                heapq.heappush(running, (begin + seconds, number, worker, need))
            times = [running[0][0]] if running else []
            times += [t for t, _ in free if t > now] + [arrive[n] for n in waiting if arrive.get(n, 0.0) > now]
            now = max(now, min(times))
            while running and running[0][0] <= now:
                ended, _, worker, need = heapq.heappop(running)
                free.append((ended + cost / 2, worker))
                memory, gpus, slots = memory - need.memory, gpus - need.gpus, slots - need.cpus
        self.ended = max(ends.values()) + end

    def analyse(self):
        return analyse(self.pieces, self.prerequisites, self.machine, 0.0, self.ended, self.needs, self.inserted)


def many(count, seconds, func="f", before=()):
    return [(func, seconds, before)] * count


def chains(count, length, seconds):
    """`count` chains next to each other."""
    steps = []
    for i in range(count * length):
        steps.append(("link", seconds, [i + 1 - count] if i >= count else []))
    return steps


CONSTRUCTED = {
    "workers": Made(many(200, 1.0), Machine(4, cores=16)),
    "critical path": Made(chains(2, 40, 1.0) + many(8, 1.0), Machine(8)),
    "slow step": Made([*many(24, 0.2, "prepare"), ("join", 9.0, range(1, 25))], Machine(4)),
    "imbalance": Made([*many(12, 1.0), *many(2, 4.0, "f")], Machine(8)),
    "memory": Made(many(24, 1.0, "big"), Machine(6, memory=10 * GB), {"big": Needs(memory=4 * GB)}),
    "gpus": Made(many(24, 1.0, "train"), Machine(4, gpus=1), {"train": Needs(gpus=1)}),
    "overhead": Made(many(2000, 20e-6), Machine(2), cost=60e-6),
    "start": Made(many(8, 0.1), Machine(4), start=2.0, end=0.5),
    "cpus": Made(many(12, 1.0, "wide"), Machine(5), {"wide": Needs(cpus=3)}),
    "input": Made(many(10, 0.1), Machine(2), arrive={n: float(n) for n in range(2, 11)}),
}


@pytest.mark.parametrize("kind", sorted(CONSTRUCTED))
def test_the_verdict_is_what_the_run_was_made_to_be_limited_by(kind):
    analysis = CONSTRUCTED[kind].analyse()
    assert analysis.limits[0].kind == kind, (analysis.shares, analysis.limits)
    assert analysis.limits[0].share == pytest.approx(analysis.shares.get(_share_of(kind), analysis.limits[0].share))
    assert any(c.isdigit() for c in analysis.limits[0].sentence), "no verdict without its number"
    assert analysis.limits[0].advice.endswith(".")


def _share_of(kind):
    return {"workers": "busy", "critical path": "prerequisites", "imbalance": "tail"}.get(kind, kind)


@pytest.mark.parametrize("kind", sorted(CONSTRUCTED))
def test_all_of_the_workers_time_is_accounted_for_once(kind):
    """Shares add up, and busy is what the steps took."""
    made = CONSTRUCTED[kind]
    analysis = made.analyse()
    assert sum(analysis.shares.values()) == pytest.approx(1.0)
    assert set(analysis.shares) == {"busy", *IDLE}
    assert all(0 <= share <= 1 for share in analysis.shares.values())
    slots = sum((p.end - p.begin) * made.needs.get(p.func, Needs()).cpus for p in made.pieces)
    assert analysis.shares["busy"] * analysis.wall * made.machine.workers == pytest.approx(slots)


@pytest.mark.parametrize(
    ("kind", "number"),
    [("workers", "50.0 s"), ("critical path", "40 steps"), ("slow step", "9.0 s"), ("imbalance", "4.0 s"),
     ("memory", "4.0 GB"), ("gpus", "1 graphics card"), ("overhead", "60 µs"), ("start", "2.0 s"), ("cpus", "cpus=3")],
)  # fmt: skip
def test_the_number_that_says_so_is_told(kind, number):
    text = CONSTRUCTED[kind].analyse().limits[0].sentence
    assert number in text or number.replace(".0 s", " s") in text, text


def test_where_to_look_is_named():
    assert CONSTRUCTED["slow step"].analyse().limits[0].steps == (25,)
    path = CONSTRUCTED["critical path"].analyse()
    assert path.limits[0].steps == path.path
    assert len(path.path) == 40
    assert path.path_seconds == pytest.approx(40.0)
    assert set(CONSTRUCTED["imbalance"].analyse().limits[0].steps) == {13, 14}


def test_one_step_among_many_of_its_kind_that_takes_much_longer_is_a_slow_step():
    """Though nothing waits for it but the end."""
    analysis = Made([*many(30, 0.5), ("f", 20.0, [])], Machine(4)).analyse()
    assert analysis.limits[0].kind == "slow step"
    assert analysis.limits[0].steps == (31,)
    assert "others of its kind 0.5 s" in analysis.limits[0].sentence


def test_all_cores_are_used_is_said():
    text = Made(many(100, 1.0), Machine(4, cores=4)).analyse().limits[0].advice
    assert "All 4 cores of this machine are used" in text
    assert "--threads" in Made(many(100, 1.0), Machine(4, cores=8)).analyse().limits[0].advice


def test_busy_workers_whose_steps_hardly_compute_are_told_apart():
    """All cores may be 'used' by steps that wait for files: then more workers help."""
    made = Made(many(100, 1.0), Machine(4, cores=4))
    made.pieces = [p._replace(cpu=0.1) for p in made.pieces]
    limit = made.analyse().limits[0]
    assert limit.kind == "workers"
    assert "computed only 10 % of that time" in limit.sentence
    assert "more workers than cores" in limit.advice


def test_the_longest_chain_goes_before_busy_workers():
    """Both workers are busy nearly all of the time, but one of them with a chain: a third one would not help."""
    made = Made([*chains(1, 10, 1.0), *many(9, 1.0)], Machine(2, cores=8))
    analysis = made.analyse()
    assert analysis.shares["busy"] > 0.9
    assert analysis.limits[0].kind == "critical path"
    assert analysis.limits[0].share == pytest.approx(analysis.path_seconds / analysis.wall)
    assert "10 steps and takes 10 s of the" in analysis.limits[0].sentence
    assert [limit.kind for limit in analysis.limits].count("critical path") == 1


def test_memory_that_is_needed_and_not_declared_is_told_with_what_to_declare():
    """Four steps of 3 GB at a time on a machine with 8 GB: nothing was lost yet, but it may be."""
    made = Made(many(20, 1.0), Machine(4, memory=8 * GB))
    made.pieces = [p._replace(peak=3 * GB) for p in made.pieces]
    *_, limit = made.analyse().limits
    assert limit.kind == "undeclared memory"
    assert "4 at a time may need 12.0 GB of the 8.0 GB" in limit.sentence
    assert "@step(memory='3.6 GB')" in limit.advice
    assert made.analyse().limits[0].kind == "workers"
    made.needs = {"f": Needs(memory=3 * GB)}
    assert "undeclared memory" not in [x.kind for x in made.analyse().limits]


def test_a_scarce_resource_goes_before_busy_workers():
    """Half of the workers' time is idle for want of memory: more workers would not help."""
    made = Made(many(40, 1.0, "big"), Machine(5, memory=16 * GB), {"big": Needs(memory=4 * GB)})
    analysis = made.analyse()
    assert analysis.shares["busy"] == pytest.approx(0.8)
    assert analysis.limits[0].kind == "memory"
    assert "More workers would not help" in analysis.limits[0].advice


def test_a_session_without_steps_says_so():
    analysis = analyse([], {}, Machine(2), 10.0, 12.0)
    assert [limit.kind for limit in analysis.limits] == ["nothing"]
    assert analysis.shares["start"] == pytest.approx(1.0)
    assert (analysis.path, analysis.path_seconds) == ((), 0.0)


def test_steps_that_took_no_time_and_steps_of_the_coordinator_do_no_harm():
    pieces = [Piece(1, "f", 0, 1.0, 1.0), Piece(2, "f", 0, 1.0, 1.0), Piece(3, "here", -1, 1.0, 3.0)]
    analysis = analyse(pieces, {2: [1], 3: [2]}, Machine(1), 0.0, 3.0)
    assert analysis.shares["busy"] == 0
    assert sum(analysis.shares.values()) == pytest.approx(1.0)
    assert analysis.path == (1, 2, 3)


def test_the_longest_chain_is_by_time_not_by_count():
    pieces = [Piece(1, "a", 0, 0, 1), Piece(2, "a", 0, 1, 2), Piece(3, "b", 1, 0, 9), Piece(4, "c", 0, 9, 10)]
    assert critical_path(pieces, {2: [1], 4: [2, 3]}) == ((3, 4), 10.0)


def test_attempts_count_each_and_a_retried_step_is_not_ready_while_it_rests():
    pieces = [Piece(1, "f", 0, 0.0, 1.0, 1), Piece(1, "f", 0, 3.0, 4.0, 2)]
    analysis = analyse(pieces, {}, Machine(1), 0.0, 4.0)
    assert analysis.shares["busy"] == pytest.approx(0.5)
    assert analysis.shares["overhead"] == 0


def test_many_steps_are_analysed_in_seconds():
    """Linear but for sorting; bounds far above what it takes, to see quadratic code only."""
    import time

    pieces = [Piece(n, "f", n % 4, n // 4 * 1e-3, n // 4 * 1e-3 + 8e-4) for n in range(1, 30_001)]
    began = time.process_time()
    analysis = analyse(pieces, {n: [n - 4] for n in range(5, 30_001)}, Machine(4), 0.0, 7.6)
    assert time.process_time() - began < 10
    assert analysis.limits[0].kind == "workers"
