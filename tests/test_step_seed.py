"""`self.stepSeed()`: every step has its own, and the same one in every run."""

from __future__ import annotations

import pytest

from mpsteps import STEPS_PARALLEL, IntParam, Protocol, UsageError, step
from mpsteps._step_keys import StepKeys


class ProtSeeds(Protocol):
    stepsExecutionMode = STEPS_PARALLEL

    def _defineParams(self, form):
        form.addSection(label="Input")
        form.addParam("more", IntParam, default=0)
        form.addParallelSection(threads=2)

    def _insertAllSteps(self):
        self.seeds = {}
        for _ in range(self.more.get()):
            self._insertFunctionStep(self.otherStep, prerequisites=[])
        for name in ("a", "b", "c"):
            self._insertFunctionStep(self.namedStep, name, prerequisites=[])
        for _ in range(3):
            self._insertFunctionStep(self.likeStep, prerequisites=[])
        self._insertFunctionStep(self.localStep, prerequisites=[])
        self._insertFunctionStep(self.againStep, self._getExtraPath("mark"), prerequisites=[])

    def namedStep(self, name):
        self.seeds[name] = self.stepSeed()
        if name == "b":
            assert self.stepSeed() == self.seeds[name], "it does not change"
            self.seeds["salted"], self.seeds["small"] = self.stepSeed(salt=1), self.stepSeed(bits=32)
            self._insertFunctionStep(self.namedStep, "inserted", prerequisites=[])

    def likeStep(self):
        self.seeds[f"like {self.stepSeed()}"] = self.stepSeed()

    @step(local=True)
    def localStep(self):
        self.seeds["local"] = self.stepSeed()

    @step(retries=1)
    def againStep(self, mark):
        import os

        if not os.path.exists(mark):
            with open(mark, "w") as f:
                f.write(str(self.stepSeed()))
            raise OSError("not yet")
        with open(mark) as f:
            assert f.read() == str(self.stepSeed()), "the next attempt has the same"

    def otherStep(self):
        pass


def seeds(folder, **options):
    engine = options.pop("engine", None)
    protocol = ProtSeeds(workingDir=str(folder), **options)
    assert protocol.run(engine=engine).ok, protocol.getErrorMessage()
    return dict(protocol.seeds)


def test_seeds_are_the_same_in_every_run(tmp_path):
    """With any number of workers, in any engine, with steps before them or not."""
    first = seeds(tmp_path / "1")
    assert first == seeds(tmp_path / "2", numberOfThreads=4)
    assert first == seeds(tmp_path / "3", engine="inline")
    assert first == seeds(tmp_path / "4", more=5)


def test_every_step_has_its_own(tmp_path):
    """Also steps that are alike in all but their place; and each salt gives another one."""
    found = seeds(tmp_path / "run")
    assert len(found) == 10
    assert len(set(found.values())) == len(found)
    assert sum(name.startswith("like ") for name in found) == 3
    assert 0 <= found["small"] < 2**32
    assert all(0 <= seed < 2**63 for seed in found.values())
    assert found["small"] == found["b"] >> 31


@pytest.mark.once
def test_outside_of_steps_there_is_none():
    with pytest.raises(UsageError, match="belongs to a running step"):
        ProtSeeds().stepSeed()


@pytest.mark.once
def test_asking_for_many_is_not_quadratic():
    """Each step's digest is worked out once."""

    class Fake:
        def __init__(self, number):
            self._id, self._func = number, "f" if number % 2 else "g"

    asked = []
    steps = [Fake(n) for n in range(1, 2001)]
    keys = StepKeys(steps, lambda s: asked.append(s._id) or "d")
    found = {keys.of(n) for n in range(1, 2001, 2)}
    assert len(found) == 1000
    assert len(asked) == 1000
    steps.append(Fake(2001))
    assert keys.of(2001) == "d/1001"
