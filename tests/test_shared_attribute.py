"""`mpsteps.shared_array` as an attribute of a protocol: every step writes its part, everybody sees all of it."""

from __future__ import annotations

from typing import Any

import pytest

import mpsteps

np = pytest.importorskip("numpy")


class Rows(mpsteps.Protocol):
    """Each step fills a row; the last one adds them up."""

    stepsExecutionMode = mpsteps.STEPS_PARALLEL

    def _defineParams(self, form: Any) -> None:
        form.addSection(label="Parallel")
        form.addParallelSection(threads=2)

    def _insertAllSteps(self) -> None:
        self.image = mpsteps.shared_array((8, 1000), "float64")
        rows = [self._insertFunctionStep(self.fillStep, row, prerequisites=[]) for row in range(8)]
        self._insertFunctionStep(self.sumStep, prerequisites=rows)

    def fillStep(self, row: int) -> None:
        self.image[row] += row + 1

    def sumStep(self) -> None:
        self.total = float(self.image.sum())


@pytest.mark.parametrize("engine", ["inline", "processes"])
def test_steps_write_into_one_array(tmp_path: Any, engine: str) -> None:
    """In place, in whatever process; no step's changes have to be merged."""
    protocol = Rows(workingDir=str(tmp_path / "run"))
    protocol.run(engine=engine)

    assert protocol.isFinished(), protocol.getErrorMessage()
    assert protocol.total == 1000 * 36
    assert protocol.image[7, 0] == 8.0
    del protocol.image
