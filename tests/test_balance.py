"""Short steps are put into lanes by the dozen; one that then takes long must hold up none of the others."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from mpsteps import STEPS_PARALLEL, Protocol, StepPool
from mpsteps._ipc import shm

SECONDS = 60

pytestmark = pytest.mark.skipif(not shm.ORDERED, reason="nothing is taken back on such a machine")


def note(path: str) -> None:
    """One byte more."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, b".")
    os.close(fd)


def wait_for_size(path: str, size: int) -> None:
    """Until all others have run: if one of them waits for this very step, it never comes."""
    end = time.monotonic() + SECONDS
    while os.stat(path).st_size < size:
        if time.monotonic() > end:
            raise TimeoutError(f"{os.stat(path).st_size} of {size} steps have run")
        time.sleep(0.001)


class Unbalanced(Protocol):
    """1,000 steps of one function, of which one is long, and one step behind each of the others."""

    stepsExecutionMode = STEPS_PARALLEL
    count = 1000
    long = 700

    def _defineParams(self, form: Any) -> None:
        form.addSection("Parallel")
        form.addParallelSection(threads=2)

    def _insertAllSteps(self) -> None:
        for i in range(self.count):
            step = self._insertFunctionStep(self.unevenStep, i, prerequisites=[])
            if i != self.long:
                self._insertFunctionStep(self.nextStep, prerequisites=[step])

    def unevenStep(self, i: int) -> None:
        if i == self.long:
            wait_for_size(self._getTmpPath("ran"), 2 * (self.count - 1))
        else:
            note(self._getTmpPath("ran"))

    def nextStep(self) -> None:
        note(self._getTmpPath("ran"))


def test_one_long_step_among_a_thousand_short_ones_delays_none_of_them(tmp_path: Path) -> None:
    """Those behind it in its lane are taken back; those before it, whose replies the worker still keeps, count as
    finished, so that what depends on them starts."""
    protocol = Unbalanced(workingDir=str(tmp_path / "run"))
    protocol.run()
    assert protocol.isFinished(), protocol.getErrorMessage()
    assert protocol.stepsDone == 1999


def uneven(path: str, i: int) -> int:
    """The same, for a pool."""
    if i == 700:
        wait_for_size(path, 999)
    else:
        note(path)
    return i


def test_one_long_call_of_a_pool_delays_none_of_the_others(tmp_path: Path) -> None:
    """The pool's steps share lanes in the same way."""
    with StepPool(2) as pool:
        futures = [pool.submit(uneven, str(tmp_path / "ran"), i) for i in range(1000)]
        assert [f.result(SECONDS + 20) for f in futures] == list(range(1000))
