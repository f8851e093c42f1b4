"""How long a run may still take, and the figures of its live display."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from mpsteps._forecast import Tally, longest_chain, seconds_left
from mpsteps._run_figures import RunFigures
from mpsteps.constants import STATUS_FINISHED
from mpsteps.steps import Step

pytestmark = pytest.mark.once


def tally(total, finished=0, seconds=0.0):
    made = Tally()
    made.total, made.finished, made.timed, made.seconds = total, finished, finished, seconds
    return made


def test_work_is_shared_out_but_the_longest_chain_is_not():
    functions = {"f": tally(11, 1, 2.0)}
    assert seconds_left(functions, 2, [("f", 1.0)]) == pytest.approx((20.0 - 1.0) / 2)
    assert seconds_left(functions, 2, [], chain=18.0) == pytest.approx(18.0)
    assert seconds_left(functions, 2, [("f", 100.0)]) == pytest.approx(18.0 / 2), "no step is done before it is done"


def test_too_little_is_known_or_enough():
    assert seconds_left({"f": tally(10)}, 2, []) is None
    assert seconds_left({"f": tally(10, 5, 5.0), "output": tally(1)}, 1, []) == pytest.approx(5.0)
    assert seconds_left({"f": tally(10, 5, 5.0), "g": tally(10)}, 1, []) is None
    assert seconds_left({"f": tally(10, 10, 5.0)}, 1, []) is None, "nothing is left"


def test_the_longest_chain_counts_what_has_run_already():
    steps = [(1, "f", ()), (2, "f", (1,)), (3, "g", (2,)), (4, "g", ())]
    assert longest_chain(steps, {"f": 2.0, "g": 5.0}, {1: 1.5}) == pytest.approx(0.5 + 2.0 + 5.0)


class Run:
    """What the figures ask of a run."""

    def __init__(self, count):
        self.workers = 2
        self.steps = []
        for i in range(count):
            self.insert("work", (i,))

    def insert(self, name, needs=()):
        step = Step(name, name, (), tuple(n for n in needs if n))
        step._id = len(self.steps) + 1
        self.steps.append(step)

    def finish(self, figures, *steps, seconds=2.0):
        for step in steps:
            s = self.steps[step - 1]
            s._status, s._started, s._ended = STATUS_FINISHED, 100.0, 100.0 + seconds
        if figures is not None:
            figures.ended(steps)


def test_figures_follow_a_run():
    """A chain of ten, then others: kept steps count as finished and say nothing of times."""
    run = Run(10)
    run.finish(None, 1, 2, seconds=100.0)
    figures = RunFigures(run)
    assert figures.functions() == "work 2/10"
    assert figures.left(0.0, {}) is None
    run.finish(figures, 3)
    assert figures.left(10.0, {4: 1.0}) == pytest.approx(7 * 2.0 - 1.0), "no shorter than the chain"
    assert figures.left(11.0, {4: 2.0}) == pytest.approx(12.0), "the clock goes on"
    run.insert("other")
    figures.lost("failed", (11,))
    run.insert("last", (10,))
    assert figures.functions() == "work 3/10 · last 0/1"
    figures.lost("skipped", (12,))
    assert figures.functions() == "work 3/10"


def test_each_step_is_counted_once_whenever_one_looks():
    run = Run(100)
    figures = RunFigures(run)
    for first in range(1, 101, 10):
        run.finish(figures, *range(first, first + 10))
        if first % 20 == 1:
            figures.functions()
    assert figures.functions() == ""
    (found,) = figures._functions.values()
    assert (found.total, found.finished, found.kept, found.left) == (100, 100, 0, 0)


def test_processes_that_end_meanwhile_do_no_harm(monkeypatch):
    import psutil

    class Gone(SimpleNamespace):
        pid = 7

        def cpu_percent(self, _):
            raise psutil.NoSuchProcess(7)

    monkeypatch.setattr(psutil.Process, "children", lambda self, recursive: [Gone()])
    figures = RunFigures(Run(1))
    assert figures.machine(10.0) == "workers: 0 % of a core, 0 bytes"
    monkeypatch.setattr(psutil.Process, "children", lambda self, recursive: [])
    assert figures.machine(11.0) == "workers: 0 % of a core, 0 bytes", "looked at every other second"
    assert figures.machine(13.0) == ""
