"""Memory that functions need, learned from earlier sessions: it decides how many steps run at a time."""

from __future__ import annotations

import os
import threading
import time

import pytest

from mpsteps import STEPS_PARALLEL, FloatParam, IntParam, Protocol, _protocol_run, step
from mpsteps import _session as session_module
from mpsteps._core.steps import PLAIN
from mpsteps._demands import Demands
from mpsteps._explain import Explainer
from mpsteps._history import replay
from mpsteps._journal import read_journal
from mpsteps._learned_memory import learned_memory
from mpsteps._memory import own_memory
from mpsteps._proctree import descendants
from mpsteps._report_data import analyse_last_that_ran, resources
from mpsteps._timeline import timeline

pytestmark = pytest.mark.once
MB = 10**6


def history(*peaks, lost=()):
    """Steps of one function with these peaks, MB, finished; others that were lost with an error's type."""
    records = [["protocol", {"params": {}}], ["steps", 1, "f", [[i] for i in range(99)], [[] for _ in range(99)]]]
    for number, peak in enumerate(peaks, 1):
        kib = peak * MB // 1024
        records += [["started", 7, 1, 1.0, [number]], ["finished", 7, 2.0, [[number, 1.0, 1.0, kib]]]]
    for number, (peak, kind) in enumerate(lost, 50):
        error = {"type": kind, "peak_kib": peak * MB // 1024}
        records += [["started", 7, 1, 1.0, [number]], ["lost", number, 7, 1, 2.0, error]]
    return replay(records)


def test_what_is_learned_is_a_high_quantile_with_a_margin():
    assert learned_memory(history()) == {}
    assert learned_memory(history(100))["f"] == pytest.approx(120 * MB, rel=0.01)
    few = [100] * 97 + [200, 900]
    assert learned_memory(history(*few[-40:]))["f"] == pytest.approx(240 * MB, rel=0.01), "one of forty does not count"


def test_what_died_for_want_of_memory_would_have_had_more():
    assert learned_memory(history(lost=[(100, "StepOutOfMemory")]))["f"] == pytest.approx(150 * MB, rel=0.01)
    assert learned_memory(history(lost=[(100, "StepLost")]))["f"] == pytest.approx(120 * MB, rel=0.01)


class ProtLarge(Protocol):
    stepsExecutionMode = STEPS_PARALLEL

    def _defineParams(self, form):
        form.addSection(label="Input")
        form.addParam("count", IntParam, default=4)
        form.addParallelSection(threads=4)

    def _insertAllSteps(self):
        for i in range(self.count.get()):
            self._insertFunctionStep(self.largeStep, i, prerequisites=[])
            self._insertFunctionStep(self.smallStep, i, prerequisites=[])

    def largeStep(self, i):
        block = bytearray(200 * MB)
        time.sleep(0.1)
        return len(block)

    @step(memory="1 MB", cpus=1)
    def declaredStep(self, i):
        pass

    @step(retries=2)
    def triedStep(self, i):
        pass

    def smallStep(self, i):
        pass


def test_what_is_declared_wins_and_nothing_that_is_learned_is_a_limit():
    protocol = ProtLarge()
    demands = Demands(protocol, True, 0, {"largeStep": 500, "declaredStep": 700})
    protocol._insertFunctionStep(protocol.largeStep, 1, prerequisites=[])
    protocol._insertFunctionStep(protocol.declaredStep, 1, prerequisites=[])
    large, declared = (demands.of(s) for s in protocol._steps)
    assert large is PLAIN, "it waits as all others, until it is found to need much"
    assert (declared.memory, declared.learned) == (10**6, None)
    protocol._insertFunctionStep(protocol.triedStep, 1, prerequisites=[])
    tried = demands.of(protocol._steps[-1])
    assert (tried.memory, tried.retries, tried.learned) == (0, 2, "triedStep")
    assert demands.learned() == {"largeStep": 500}


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="peaks of single steps need Linux")
def test_a_resumed_run_starts_no_more_than_fit(tmp_path, monkeypatch):
    """Four at a time in the first session; then there is room for two, by what was measured."""
    folder = str(tmp_path / "run")
    assert ProtLarge(workingDir=folder).run().ok
    monkeypatch.setattr(session_module, "usable_memory", lambda: 750 * MB)
    assert ProtLarge(workingDir=folder, count=10).run().ok
    records = list(read_journal(os.path.join(folder, "journal.log")).records)
    line = timeline(records)
    assert most_at_once(line.of_session(1)) > 2
    assert most_at_once(line.of_session(2)) == 2
    learned = line.sessions[1].info["learned"]
    assert list(learned) == ["largeStep"]
    assert 240 * MB < learned["largeStep"] < 375 * MB


def most_at_once(spans):
    large = [s for s in spans if s.func == "largeStep"]
    return max(sum(other.begin <= s.begin < other.end for other in large) for s in large)


class ProtUndeclared(Protocol):
    """Each step has 300 MB, a part at a time, and notes what all workers of the run have then."""

    stepsExecutionMode = STEPS_PARALLEL

    def _defineParams(self, form):
        form.addSection(label="Input")
        form.addParam("count", IntParam, default=12)
        form.addParam("idle", FloatParam, default=0.0)
        form.addParallelSection(threads=8)

    def _insertAllSteps(self):
        for i in range(self.count.get()):
            self._insertFunctionStep(self.largeStep, i, prerequisites=[])
        for i in range(200):
            self._insertFunctionStep(self.smallStep, i, prerequisites=[])

    def largeStep(self, i):
        time.sleep(self.idle.get())
        parts = []
        for _ in range(15):
            parts.append(bytearray(b"x" * (10 * MB)) * 2)
            time.sleep(0.02)
        return sum(map(len, parts))

    def smallStep(self, i):
        pass


class Sampler:
    """The most memory that the workers of this process had together, looked at again and again while the run lasts."""

    def __init__(self):
        self.most = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join(10)

    def _look(self):
        while not self._over.wait(0.02):
            self.most = max(self.most, sum(map(own_memory, descendants(os.getpid()))))


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="peaks of single steps need Linux")
def test_undeclared_steps_of_a_first_session_start_no_more_than_fit(tmp_path, monkeypatch):
    """Eight workers, and room for four of the steps, by what is measured of those that run and have run. All of them
    together would have 2.4 GB."""
    room = 1850 * MB
    monkeypatch.setattr(session_module, "usable_memory", lambda: room)
    monkeypatch.setattr(_protocol_run, "usable_memory", lambda: room)  # what the journal says of the machine
    folder = str(tmp_path / "run")
    with Sampler() as sampler:
        assert ProtUndeclared(workingDir=folder).run().ok
    records = list(read_journal(os.path.join(folder, "journal.log")).records)
    line = timeline(records)
    spans = line.of_session(1)
    assert 300 * MB < sampler.most < room, "what they really had at a time"
    assert most_at_once(spans) == 4, "and there was no need to be more careful than that"
    _, analysis = analyse_last_that_ran(replay(records), line)
    sentence = next(limit.sentence for limit in analysis.limits if limit.kind == "memory")
    assert "largeStep needs about" in sentence
    assert "so at most 4 ran at a time" in sentence
    assert "its function's steps took up to 3" in explained_late(records, line)


def explained_late(records, line):
    """What `mpsteps explain` would have said of the last large step when the fifth had just been sent."""
    large = [s.step for s in line.of_session(1) if s.func == "largeStep"]
    last, begun = large[-1], {large[4]}
    cut = max(place for place, r in enumerate(records) if r[0] == "started" and begun & set(r[4]))
    history = replay(records[: cut + 1])
    assert history.steps[last].status == "new"
    machine, needs = resources(history.sessions[-1], {"largeStep", "smallStep"}, learned_memory(history))
    now = max(s.begin for s in line.of_session(1) if s.step in begun)
    explainer = Explainer(history, timeline(records[: cut + 1], now), None, True, now, machine, needs)
    return "\n".join(explainer.explain(last).reasons)
