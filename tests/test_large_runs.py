"""Large values in pools and protocols: through the arena, copied once, freed when nobody needs them."""

from __future__ import annotations

import gc
import os
import signal
import time
from pathlib import Path
from typing import Any, Callable

import pytest

import mpsteps
from mpsteps import STEPS_PARALLEL, Protocol, ResultOf, StepPool
from mpsteps._ipc import blocks

np = pytest.importorskip("numpy")

SECONDS = 60
SIZE = 1 << 19  # float64 numbers: 4 MB

kept: list[Any] = []  # in a worker: what a step keeps beyond its end


def total(a: Any) -> float:
    return float(a.sum())


def make(i: float) -> Any:
    return np.full(SIZE, float(i))


def add_in_place(a: Any, n: float) -> Any:
    a += n
    return a


def keep(a: Any) -> int:
    kept.append(a)
    return os.getpid()


def sum_of_kept() -> float:
    return float(sum(a.sum() for a in kept))


def make_and_die(i: float) -> Any:
    """The result is on its way when the worker dies: in the step that follows it."""
    return make(i), os.getpid()


def is_written_privately(a: Any) -> bool:
    a[:] = 5
    return bool((a == 5).all())


def in_shared_memory(a: Any) -> bool:
    """Whether an array lies in a block, and not in memory of this process."""
    address = a.__array_interface__["data"][0]
    with open("/proc/self/maps") as f:
        for line in f:
            start, end = (int(x, 16) for x in line.split()[0].split("-"))
            if start <= address < end:
                return "memfd:mpsteps" in line
    return False


def settled(pool: StepPool) -> dict[str, int]:
    """What is in the pool's arena once nothing is under way."""
    found: dict[str, int] = {}
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        pool.submit(abs, 1).result(SECONDS)
        found = pool._work._large.statistics()
        if not found["blocks"]:
            break
    return found


# ----------------------------------------------------------------------------------------------------------------- pool


@pytest.mark.versions
def test_arguments_and_results_of_a_pool_come_as_they_are() -> None:
    """Large arrays, bytes, and objects that hold them, many at a time."""
    with StepPool(2) as pool:
        futures = [pool.submit(make, i) for i in range(20)]
        sums = [pool.submit_step(total, f) for f in futures]
        assert [s.result(SECONDS) for s in sums] == [float(SIZE * i) for i in range(20)]
        big = {"a": [np.arange(SIZE), b"x" * (1 << 20)], "text": "y" * (1 << 20)}
        back = pool.submit(dict, big).result(SECONDS)
        assert (back["a"][0] == big["a"][0]).all()
        assert (back["a"][1], back["text"]) == (big["a"][1], big["text"])
        assert pool.submit(len, b"z" * (1 << 21)).result(SECONDS) == 1 << 21


@pytest.mark.skipif(not blocks.CAN_SHARE, reason="large values are copied where there is no /proc")
def test_large_arrays_of_a_pool_are_not_copied_through_the_rings() -> None:
    """They lie in shared memory, in the worker and here."""
    with StepPool(1) as pool:
        assert pool.submit(in_shared_memory, np.zeros(SIZE)).result(SECONDS)
        assert in_shared_memory(pool.submit(make, 1).result(SECONDS))
        assert not pool.submit(in_shared_memory, np.zeros(10)).result(SECONDS)


def test_who_writes_into_an_array_writes_into_his_own() -> None:
    """As with ProcessPoolExecutor: neither the caller nor another step sees it, and nobody is refused."""
    a = np.zeros(SIZE)
    with StepPool(2) as pool:
        assert all(f.result(SECONDS) for f in [pool.submit(is_written_privately, a) for _ in range(6)])
        assert (a == 0).all()
        first = pool.submit(make, 1)
        second = pool.submit_step(add_in_place, first, 1)
        third = pool.submit_step(add_in_place, second, 1)
        mine = first.result(SECONDS)
        mine += 10
        assert [float(f.result(SECONDS)[-1]) for f in (first, second, third)] == [11.0, 2.0, 3.0]
        assert float(pool.submit_step(total, first).result(SECONDS)) == 11 * SIZE  # what the future holds now


def test_memory_comes_back_when_nobody_reads_it() -> None:
    """Arguments when their step has ended, results when the caller has dropped them; the same pages serve again."""
    with StepPool(2) as pool:
        for _ in range(3):
            results = [f.result(SECONDS) for f in [pool.submit(add_in_place, make(1), 1) for _ in range(10)]]
            assert all(r[0] == 2 for r in results)
            del results
            gc.collect()
        found = settled(pool)
        assert found["blocks"] == 0, found
        assert len(pool._work._large._users) == 0


def test_an_array_that_a_step_keeps_stays_what_it_was() -> None:
    """In a global of the worker, while hundreds of other arrays come and go."""
    with StepPool(1) as pool:
        for i in (1, 2, 3):
            pool.submit(keep, make(i)).result(SECONDS)
        for i in range(100):
            assert pool.submit(total, make(i)).result(SECONDS) == i * SIZE
        assert pool.submit(sum_of_kept).result(SECONDS) == 6 * SIZE


def test_a_result_outlives_its_worker() -> None:
    """Also for steps that take it as an argument, in another worker."""
    with StepPool(2) as pool:
        result = pool.submit(make_and_die, 3)
        array, pid = result.result(SECONDS)
        os.kill(pid, signal.SIGKILL)
        after = [pool.submit(total, result.result()[0]) for _ in range(4)]
        assert [f.result(SECONDS) for f in after] == [3.0 * SIZE] * 4
        assert total(array) == 3.0 * SIZE


def test_results_outlive_the_pool() -> None:
    """What the caller holds stays valid."""
    with StepPool(2) as pool:
        futures = [pool.submit(make, i) for i in range(5)]
    assert [f.result()[7] for f in futures] == [0.0, 1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("limit", [0, 1 << 20, 24 << 20])
def test_where_shared_memory_is_short_values_take_another_way(
    limit: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Through files, or through the rings; with one warning, and never a hang."""
    monkeypatch.setattr(mpsteps._large_values, "usable_memory", lambda: limit * 4)
    with StepPool(2) as pool:
        futures = [pool.submit(add_in_place, make(i), 1) for i in range(12)]
        assert [f.result(SECONDS)[3] for f in futures] == [i + 1.0 for i in range(12)]
        if limit == 1 << 20:
            assert pool._work._large.statistics()["spilled"] > 0
            assert sum("shared memory" in r.getMessage() for r in caplog.records) == 1


def test_a_system_that_cannot_share_sends_large_values_by_the_rings(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS."""
    monkeypatch.setattr(blocks, "CAN_SHARE", False)
    with StepPool(1) as pool:
        assert pool.submit(total, make(2)).result(SECONDS) == 2.0 * SIZE


def known_memories() -> int:
    return len(mpsteps._shared_array._known)


def test_a_worker_keeps_the_shared_arrays_that_it_was_given_last() -> None:
    """Mapping 200 MB anew for each step would cost more than the step."""
    with StepPool(1) as pool:
        arrays = [mpsteps.shared_array(1000) for _ in range(7)]
        assert pool.submit(total, arrays[0]).result(SECONDS) == 0.0
        assert pool.submit(known_memories).result(SECONDS) == 1
        for a in arrays:
            assert pool.submit(total, a).result(SECONDS) == 0.0
        assert pool.submit(known_memories).result(SECONDS) == 4


# ------------------------------------------------------------------------------------------------------------- protocol


class Large(Protocol):
    """A large attribute, large arguments and large results."""

    stepsExecutionMode = STEPS_PARALLEL
    steps: Any = None

    def _defineParams(self, form: Any) -> None:
        form.addSection("Parallel")
        form.addParallelSection(threads=2)

    def _insertAllSteps(self) -> None:
        self.reference = np.arange(SIZE, dtype=float)
        self.small = np.zeros(3)
        self.steps(self)

    def lookStep(self, i: int) -> Any:
        return (float(self.reference[i]), self.reference.flags.writeable, in_shared_memory(self.reference))

    def makeStep(self, i: int) -> Any:
        with open(self._getExtraPath("made"), "a") as f:
            f.write(f"{i}\n")
        return make(i)

    def takeStep(self, a: Any) -> float:
        a += 1
        return float(a[0])

    def spoilStep(self) -> None:
        self.reference[0] = 1

    def replaceStep(self) -> None:
        self.reference = self.reference * 2

    def dieStep(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def run(tmp_path: Path, steps: Callable[[Any], Any], **options: Any) -> Any:
    protocol = type("Large", (Large,), {"steps": staticmethod(steps), "__module__": "__main__"})(
        workingDir=str(tmp_path / "run")
    )
    protocol.run(**options)
    return protocol


@pytest.mark.versions
@pytest.mark.skipif(not blocks.CAN_SHARE, reason="large values are copied where there is no /proc")
def test_a_large_attribute_is_in_memory_once(tmp_path: Path) -> None:
    """All steps, and workers that come later, read the same memory."""

    def steps(p: Any) -> None:
        for i in range(20):
            p._insertFunctionStep(p.lookStep, i, prerequisites=[])

    protocol = run(tmp_path, steps)
    assert protocol.isFinished(), protocol.getErrorMessage()
    assert [s.result for s in protocol.getSteps()] == [(float(i), False, True) for i in range(20)]
    assert protocol.reference.flags.writeable


def test_writing_into_a_large_attribute_is_a_loud_error(tmp_path: Path) -> None:
    """It would be lost: the message says what to do instead."""
    protocol = run(tmp_path, lambda p: p._insertFunctionStep(p.spoilStep))
    message = protocol.getErrorMessage()
    assert protocol.isFailed()
    assert "read-only" in message
    assert "shared_array" in message


def test_a_large_attribute_can_be_replaced(tmp_path: Path) -> None:
    """The new one is what later steps see, in every worker, also in one that replaces a dead one."""

    def steps(p: Any) -> None:
        p.keepGoing = True
        first = p._insertFunctionStep(p.replaceStep, prerequisites=[])
        dead = p._insertFunctionStep(p.dieStep, prerequisites=[first])
        late = p._insertFunctionStep("replaceStep", prerequisites=[first])
        assert dead
        for _ in range(6):
            p._insertFunctionStep(p.lookStep, 3, prerequisites=[late])

    protocol = run(tmp_path, steps)
    assert [s.getStatus() for s in protocol.getSteps()] == ["finished", "failed"] + ["finished"] * 7
    assert [s.result[0] for s in protocol.getSteps()[3:]] == [12.0] * 6
    assert protocol.reference[3] == 12.0


def test_large_results_are_found_again_by_a_resumed_run(tmp_path: Path) -> None:
    """They are stored beside the journal; a step whose file is gone runs again."""

    def steps(p: Any) -> None:
        for i in range(4):
            made = p._insertFunctionStep(p.makeStep, i, prerequisites=[])
            p._insertFunctionStep(p.takeStep, ResultOf(made), prerequisites=[])

    def more(p: Any) -> None:
        steps(p)
        p._insertFunctionStep(p.takeStep, ResultOf(1), prerequisites=[2])
        p._insertFunctionStep(p.takeStep, np.full(SIZE, 8.0), prerequisites=[])

    first = run(tmp_path, steps)
    assert first.isFinished(), first.getErrorMessage()
    assert [first.getSteps()[i].result for i in (1, 3, 5, 7)] == [1.0, 2.0, 3.0, 4.0]
    assert [float(first.getSteps()[i].result[9]) for i in (0, 2, 4, 6)] == [0.0, 1.0, 2.0, 3.0]
    stored = sorted((tmp_path / "run" / "values").iterdir())
    assert len(stored) == 4
    assert os.path.getsize(tmp_path / "run" / "journal.log") < 100_000

    again = run(tmp_path, more)
    assert again.isFinished(), again.getErrorMessage()
    assert (again._report.kept, again._report.finished) == (8, 10)
    assert (again.getSteps()[8].result, again.getSteps()[9].result) == (1.0, 9.0)
    assert sorted((tmp_path / "run" / "extra" / "made").read_text().split()) == ["0", "1", "2", "3"]

    stored[0].unlink()
    third = run(tmp_path, more)
    assert third.isFinished(), third.getErrorMessage()
    assert len((tmp_path / "run" / "extra" / "made").read_text().split()) == 5


def test_results_make_room_for_newer_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in no block any more is read from its file."""
    monkeypatch.setattr(mpsteps._large_values, "usable_memory", lambda: 128 << 20)

    def steps(p: Any) -> None:
        made = [p._insertFunctionStep(p.makeStep, i, prerequisites=[]) for i in range(12)]
        for m in made:
            p._insertFunctionStep(p.takeStep, ResultOf(m), prerequisites=made)

    protocol = run(tmp_path, steps)
    assert protocol.isFinished(), protocol.getErrorMessage()
    assert [s.result for s in protocol.getSteps()[12:]] == [i + 1.0 for i in range(12)]
