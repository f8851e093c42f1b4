"""`--logs`: what steps write, while they run."""

from __future__ import annotations

import os
import re

import pytest
from test_cli import cli  # noqa: F401  # the fixture

pytestmark = pytest.mark.once

TALKING = """
import os, subprocess, sys, time
from mpsteps import STEPS_PARALLEL, Protocol, step

class ProtTalking(Protocol):
    stepsExecutionMode = STEPS_PARALLEL
    keepGoing = True

    def _defineParams(self, form):
        form.addParallelSection(threads=2)

    def _insertAllSteps(self):
        self._insertFunctionStep(self.longStep, prerequisites=[])
        for i in range(30):
            self._insertFunctionStep(self.shortStep, i, prerequisites=[])
        self._insertFunctionStep(self.againStep, self._getExtraPath('mark'), prerequisites=[])
        self._insertFunctionStep(self.dyingStep, prerequisites=[])

    def longStep(self):
        print('before the wait')
        subprocess.run(['sh', '-c', 'echo from a program; printf half'], check=True)
        with open('waiting', 'r') as f:
            assert f.read() == 'go on'
        print(' and half')
        os.write(1, b'\\x1b[2Jno line end')

    def shortStep(self, i):
        print('short', i)

    @step(retries=1)
    def againStep(self, mark):
        print('attempt', os.path.exists(mark))
        if not os.path.exists(mark):
            open(mark, 'w').close()
            raise OSError('not yet')

    def dyingStep(self):
        print('last words', flush=True)
        os.kill(os.getpid(), 9)
"""


def test_lines_come_while_the_step_runs_and_none_is_lost_or_told_twice(cli):  # noqa: F811
    """The long step waits for us until its first lines have been shown; the second session shows only what is new."""
    (cli.folder / "talking.py").write_text(TALKING)
    os.mkfifo(str(cli.folder / "waiting"))
    process = cli.start("run", "talking.py", "--logs", "--quiet")
    shown = ""
    try:
        while "[1 longStep] from a program" not in shown:
            line = process.stderr.readline()
            assert line, shown
            shown += line
        with open(str(cli.folder / "waiting"), "w") as f:
            f.write("go on")
        _, rest = process.communicate(timeout=60)
    finally:
        process.kill()
    lines = (shown + rest).splitlines()
    of = {step: [line.split("] ", 1)[1] for line in lines if line.startswith(f"[{step} ")] for step in range(1, 34)}
    assert of[1] == ["before the wait", "from a program", "half and half", "?[2Jno line end"]
    assert [of[n] for n in range(2, 32)] == [[f"short {n - 2}"] for n in range(2, 32)]
    assert of[32] == ["attempt False", "attempt True"]
    assert of[33] == ["last words"]
    again = cli("resume", "Runs/000001_ProtTalking", "--logs", "--quiet")
    assert [line for line in again.err.splitlines() if line.startswith("[")] == ["[33 dyingStep] last words"]


def test_the_display_is_not_spoiled(cli):  # noqa: F811
    """Without --quiet the lines stand among those of the progress."""
    done = cli("run", "squares.py", "--logs")
    assert done.code == 0
    assert sorted(re.findall(r"^\[(\d) squareStep\] squaring (\d)$", done.err, re.MULTILINE)) == [
        ("1", "0"), ("2", "1"), ("3", "2"), ("4", "3")
    ]  # fmt: skip
    assert "squaring" not in done.out
    inline = cli("run", "squares.py", "--logs", "--engine", "inline")
    assert inline.code == 0
    assert inline.err.count("squaring 3") == 1
