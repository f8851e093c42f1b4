"""Steps that follow steps of other lanes, in real workers: they see what they must, whatever becomes of the others."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any, List, Tuple

import pytest

import mpsteps
from mpsteps import STEPS_PARALLEL, Form, Protocol, ResultOf, StepPool
from mpsteps._coordinator import Coordinator
from mpsteps._ipc.shm import ORDERED

pytestmark = pytest.mark.skipif(not ORDERED, reason="on this machine nothing is sent across lanes")

WIDTH, LAYERS = 4, 60


@pytest.fixture
def followed(monkeypatch: pytest.MonkeyPatch) -> List[int]:
    """The steps that were sent behind one of another lane."""
    steps: List[int] = []
    sent_ahead = Coordinator._sent_ahead

    def watched(self: Coordinator, step: int, *args: Any) -> Any:
        message = sent_ahead(self, step, *args)
        if message[5] and "peers" in message[5]:
            steps.append(step)
        return message

    monkeypatch.setattr(Coordinator, "_sent_ahead", watched)
    return steps


class Layers(Protocol):
    """A stencil of short steps: each waits for the one above it and that one's neighbours."""

    stepsExecutionMode = STEPS_PARALLEL
    keepGoing = True

    def _defineParams(self, form: Form) -> None:
        form.addSection(label="Layers")
        form.addParallelSection(threads=2)

    def _insertAllSteps(self) -> None:
        self.told = ()
        up = self._insertStart()
        above: List[int] = []
        for layer in range(LAYERS):
            above = [
                self._insertFunctionStep(
                    self.cellStep, layer, i,
                    prerequisites=[above[j] for j in (i - 1, i, i + 1) if 0 <= j < WIDTH] if above else up,
                )
                for i in range(WIDTH)
            ]  # fmt: skip

    def _insertStart(self) -> List[int]:
        count = self.numberOfThreads.get()
        return [self._insertFunctionStep(self.meetStep, count, i, prerequisites=[]) for i in range(count)]

    def meetStep(self, count: int, i: int) -> None:
        """Ends when there is one in every worker."""
        mine = Path(self._getTmpPath(str(os.getpid())))
        mine.touch()
        deadline = time.monotonic() + 60
        while len(list(mine.parent.iterdir())) < count:
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def cellStep(self, layer: int, i: int) -> None:
        """Looks for the files of those that must have finished, and leaves one."""
        for j in (i - 1, i, i + 1):
            if layer and 0 <= j < WIDTH and not Path(self._getExtraPath(f"{layer - 1}_{j}")).exists():
                raise AssertionError(f"{layer}, {i} runs before {layer - 1}, {j}")
        self.leave(layer, i)
        Path(self._getExtraPath(f"{layer}_{i}")).touch()

    def leave(self, layer: int, i: int) -> None:
        """What else a cell leaves."""


class Telling(Layers):
    """Some cells change `self`: all that come after them must see it."""

    def leave(self, layer: int, i: int) -> None:
        seen = {tuple(t) for t in self.told}
        for above in range(layer):
            reach = range(max(0, i - layer + above), min(WIDTH, i + layer - above + 1))
            missed = [(above, j) for j in reach if tells(above, j) and (above, j) not in seen]
            assert not missed, f"{layer}, {i} has not heard of {missed}"
        if tells(layer, i):
            self.told = self.told if isinstance(self.told, list) else []
            self.told.append((layer, i))


def tells(layer: int, i: int) -> bool:
    """The first layers tell nothing, so that the others dare to follow them; then one cell does, now and then."""
    return layer % 9 == 8 and i == layer % WIDTH


class Failing(Layers):
    """One cell fails in the midst."""

    def leave(self, layer: int, i: int) -> None:
        if (layer, i) == (30, 1):
            raise ValueError("a bad cell")


class Dying(Layers):
    """One cell kills its worker, which has finished others of which nobody has heard."""

    def leave(self, layer: int, i: int) -> None:
        if (layer, i) == (30, 1):
            os.kill(os.getpid(), signal.SIGKILL)


class Lingering(Layers):
    """One cell takes much longer than the others: what is behind it is taken back, and nobody waits for it in vain."""

    def leave(self, layer: int, i: int) -> None:
        if (layer, i) == (30, 1):
            signal.sigtimedwait([], 0.1)


def ran(protocol: Protocol) -> List[Tuple[int, int]]:
    names = (path.name.split("_") for path in Path(protocol._getExtraPath()).iterdir())
    return sorted((int(layer), int(i)) for layer, i in names)


def downstream(layer: int, i: int) -> List[Tuple[int, int]]:
    """The cell and those that depend on it."""
    return [
        (m, j) for m in range(layer, LAYERS) for j in range(max(0, i - m + layer), min(WIDTH, i + m - layer + 1))
    ]  # fmt: skip


ALL = [(layer, i) for layer in range(LAYERS) for i in range(WIDTH)]


@pytest.mark.versions
@pytest.mark.parametrize("threads", [2, 3, 4])
def test_steps_follow_across_lanes_and_see_all_before_them(tmp_path: Path, followed: List[int], threads: int) -> None:
    """In every layer each cell finds what those above it left."""
    protocol = Layers(workingDir=str(tmp_path / "run"), numberOfThreads=threads)
    protocol.run()
    assert protocol.isFinished(), protocol.getErrorMessage()
    assert ran(protocol) == ALL
    assert len(followed) > LAYERS, "they were to be sent ahead"


def test_a_change_of_self_in_one_lane_is_seen_by_those_that_follow_it_from_others(
    tmp_path: Path, followed: List[int]
) -> None:
    """The workers see only how far others have come: who would miss something is sent again with it."""
    protocol = Telling(workingDir=str(tmp_path / "run"), numberOfThreads=3)
    protocol.run()
    assert protocol.isFinished(), protocol.getErrorMessage()
    assert [tuple(t) for t in protocol.told] == [cell for cell in ALL if tells(*cell)]
    assert ran(protocol) == ALL


@pytest.mark.parametrize("kind", [Failing, Dying])
def test_who_follows_one_that_fails_does_not_run(tmp_path: Path, followed: List[int], kind: type) -> None:
    """It costs what depends on it, and nothing else; nothing runs twice or is lost."""
    protocol = kind(workingDir=str(tmp_path / "run"), numberOfThreads=2)
    protocol.run()
    assert protocol.isFailed()
    lost = downstream(30, 1)
    assert ran(protocol) == [cell for cell in ALL if cell not in lost]
    assert [step.getStatus() for step in protocol.getSteps()].count(mpsteps.STATUS_FAILED) == 1
    assert followed


def test_nobody_waits_long_for_a_lane_that_stalls(tmp_path: Path, followed: List[int]) -> None:
    """What follows the long step waits for it in the coordinator; all others go on."""
    protocol = Lingering(workingDir=str(tmp_path / "run"), numberOfThreads=2)
    protocol.run()
    assert protocol.isFinished(), protocol.getErrorMessage()
    assert ran(protocol) == ALL


def _total(*values: Any) -> int:
    return sum(v for v in values if v) + 1


def test_values_of_other_lanes_are_never_missed_in_a_pool() -> None:
    """Most calls return something, which followers must have; some return nothing, and may be followed."""
    with StepPool(2) as pool:
        nothing = [pool.submit(print, end="") for _ in range(200)]
        above = [pool.submit(_total) for _ in range(WIDTH)]
        for layer in range(1, 30):
            above = [
                pool.submit_step(_total, *(above[j] for j in (i - 1, i, i + 1) if 0 <= j < WIDTH)) for i in range(WIDTH)
            ]
        expected = [1] * WIDTH
        for layer in range(1, 30):
            expected = [sum(expected[max(0, i - 1) : i + 2]) + 1 for i in range(WIDTH)]
        assert [f.result(60) for f in above] == expected
        assert all(f.result(60) is None for f in nothing)


def _cell(i: int) -> int:
    """Returns something that nobody takes."""
    return i


def test_who_takes_no_values_follows_steps_that_return_some_in_a_pool(followed: List[int]) -> None:
    """The futures have them all."""
    with StepPool(2) as pool:
        list(pool.map(_cell, range(200)))
        calls: List[Any] = []
        for layer in range(LAYERS):
            above = calls[-WIDTH:]
            for i in range(WIDTH):
                after = [above[j] for j in (i - 1, i, i + 1) if 0 <= j < WIDTH] if layer else ()
                calls.append(pool.submit_step(_cell, layer * WIDTH + i, after=after))
        assert [call.result(60) for call in calls] == list(range(LAYERS * WIDTH))
        assert len(followed) > LAYERS, "they were to be sent ahead"


class Valued(Layers):
    """Every third cell returns a value, and the one below it is given that."""

    def _insertAllSteps(self) -> None:
        up = self._insertStart()
        above: List[int] = []
        for layer in range(LAYERS):
            above = [
                self._insertFunctionStep(
                    self.valueStep, layer, i, ResultOf(above[i]) if above else None,
                    prerequisites=[above[j] for j in (i - 1, i + 1) if 0 <= j < WIDTH] if above else up,
                )
                for i in range(WIDTH)
            ]  # fmt: skip

    def valueStep(self, layer: int, i: int, value: Any) -> Any:
        """Checks the value of the cell above."""
        expected = layer - 1 if layer and (layer - 1 + i) % 3 == 0 else None
        assert value == expected, f"{layer}, {i}: {value} is not {expected}"
        return layer if (layer + i) % 3 == 0 else None


def test_a_value_of_a_step_of_another_lane_is_there(tmp_path: Path) -> None:
    """ResultOf a step that left nothing is None, and that of one that left a value is the value."""
    protocol = Valued(workingDir=str(tmp_path / "run"), numberOfThreads=2)
    protocol.run()
    assert protocol.isFinished(), protocol.getErrorMessage()


class Returning(Layers):
    """All cells return something, and no cell takes it."""

    def cellStep(self, layer: int, i: int) -> Any:
        super().cellStep(layer, i)
        return [layer, i]


def test_what_steps_return_is_in_the_journal_also_where_others_have_followed_them(
    tmp_path: Path, followed: List[int]
) -> None:
    """A value that nobody takes does not keep steps of other lanes from following."""
    protocol = Returning(workingDir=str(tmp_path / "run"), numberOfThreads=2)
    protocol.run()
    assert protocol.isFinished(), protocol.getErrorMessage()
    assert ran(protocol) == ALL
    assert len(followed) > LAYERS, "they were to be sent ahead"
    assert [tuple(step.result) for step in protocol.getSteps()[2:]] == ALL


class Patient(Layers):
    """One of many short steps waits for what depends on all the others: those before it in its lane, whose end its
    worker has not told yet, and those behind it."""

    def _insertAllSteps(self) -> None:
        up = self._insertStart()
        short = [self._insertFunctionStep(self.shortStep, i, prerequisites=up) for i in range(200)]
        for i, step in enumerate(short):
            if i != 120:
                self._insertFunctionStep(self.afterStep, i, prerequisites=[step])

    def shortStep(self, i: int) -> None:
        """Nothing, or a wait for the others."""
        deadline = time.monotonic() + 60
        while i == 120 and len(os.listdir(self._getExtraPath())) < 199:
            assert time.monotonic() < deadline, f"only {len(os.listdir(self._getExtraPath()))} have run"
            time.sleep(0.001)

    def afterStep(self, i: int) -> None:
        """Leaves a file."""
        Path(self._getExtraPath(str(i))).touch()


def test_a_long_step_delays_neither_what_is_behind_it_nor_what_waits_for_those_before_it(tmp_path: Path) -> None:
    """Its lane is relieved: their ends are told without its worker's help, and the rest goes to others."""
    protocol = Patient(workingDir=str(tmp_path / "run"), numberOfThreads=2)
    protocol.run()
    assert protocol.isFinished(), protocol.getErrorMessage()
