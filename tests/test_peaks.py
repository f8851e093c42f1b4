"""The peak memory of single steps."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys

import pytest

from mpsteps import STEPS_PARALLEL, Protocol
from mpsteps._journal import read_journal
from mpsteps._memory import own_memory
from mpsteps._peaks import Peaks

MB = 1000 * 1000
NEEDS_RESET = pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux")


@NEEDS_RESET
def test_the_mark_is_of_one_step_not_of_those_before():
    peaks = Peaks()
    if not peaks._can_reset:
        pytest.skip("this kernel does not start the mark anew")
    block = bytearray(300 * MB)
    large = peaks.of_last_step()
    del block
    small = peaks.of_last_step()  # since the block was still there: its memory is given back only after this mark began
    after = peaks.of_last_step()
    assert None not in (large, small, after)
    assert large * 1024 > 290 * MB
    assert after < large - 200_000


@NEEDS_RESET
def test_shared_memory_is_not_the_steps_own():
    """An array that all workers map is there once; or each of them would be taken to need it anew."""
    peaks = Peaks()
    if not peaks._can_reset:
        pytest.skip("this kernel does not start the mark anew")
    with mmap.mmap(-1, 400 * MB) as shared:
        shared.write(b"x" * (400 * MB))
        assert peaks.of_last_step() * 1024 > 350 * MB, "the text that was written"
        own = bytearray(300 * MB)
        alone, held = peaks.of_last_step(), own_memory(os.getpid())
    assert 290 * MB < alone * 1024 < held + 100 * MB, len(own)


def test_where_the_mark_cannot_be_started_anew_only_a_higher_one_tells(monkeypatch):
    monkeypatch.setattr(Peaks, "_reset", staticmethod(lambda: False))
    peaks = Peaks()
    assert peaks.of_last_step() is None
    monkeypatch.setattr(Peaks, "_read", staticmethod(lambda: (10**9, 0, 0.0)))
    assert peaks.of_last_step() == pytest.approx(10**9, rel=1e-3), "but for what is shared"
    assert peaks.of_last_step() is None


class ProtMemory(Protocol):
    stepsExecutionMode = STEPS_PARALLEL

    def _defineParams(self, form):
        form.addParallelSection(threads=1)

    def _insertAllSteps(self):
        self._insertFunctionStep(self.largeStep)
        self._insertFunctionStep(self.smallStep)
        self._insertFunctionStep(self.programStep)
        self._insertFunctionStep(self.shortStep)

    def largeStep(self):
        _busy(bytearray(300 * MB))

    def smallStep(self):
        _busy(b"")

    def programStep(self):
        subprocess.run([sys.executable, "-c", "x = bytearray(500 * 10**6)"], check=True)

    def shortStep(self):
        pass


def _busy(_what):
    import time

    end = time.perf_counter() + 0.05
    while time.perf_counter() < end:
        pass


@NEEDS_RESET
def test_the_journal_has_the_peak_of_steps_that_take_a_while(tmp_path):
    """Of the worker, or of the program that the step ran."""
    protocol = ProtMemory(workingDir=str(tmp_path / "run"))
    assert protocol.run().ok
    steps = read_journal(str(tmp_path / "run" / "journal.log")).replay().steps
    large, small, program, short = (steps[n].peak_kib for n in (1, 2, 3, 4))
    assert large * 1024 > 290 * MB
    assert program * 1024 > 480 * MB
    assert small < large - 200_000
    assert short is None
