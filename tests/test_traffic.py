"""What steps read and wrote, and what went to their workers and back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
from report_runs import small
from test_cli import cli  # noqa: F401  # the fixture

from mpsteps import STEPS_PARALLEL, Protocol
from mpsteps._history import replay
from mpsteps._journal import read_journal
from mpsteps._timeline import timeline
from mpsteps._trace import events
from mpsteps._traffic import Calls, Traffic, size, traffic_of

pytestmark = pytest.mark.once
MB = 10**6
LINUX = pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="the kernel counts calls on Linux only")


@LINUX
def test_calls_are_counted_of_this_process_and_of_programs_that_have_ended(tmp_path):
    calls = Calls()
    (tmp_path / "a").write_bytes(b"x" * (3 * MB))
    read, written = calls.of_last_step()
    assert (read < MB, 3 * MB <= written < 4 * MB) == (True, True)
    program = f"open({str(tmp_path / 'a')!r}, 'rb').read(); open({str(tmp_path / 'b')!r}, 'wb').write(b'y' * {5 * MB})"
    subprocess.run([sys.executable, "-c", program], check=True)
    read, written = calls.of_last_step()
    assert (3 * MB <= read < 20 * MB, 5 * MB <= written < 6 * MB) == (True, True)
    assert max(calls.of_last_step()) < MB


def test_where_the_kernel_does_not_say_nothing_is_made_up(monkeypatch):
    monkeypatch.setattr(Calls, "_look", staticmethod(lambda: None))
    assert Calls().of_last_step() == (None, None)


def test_the_size_of_what_stands_in_a_message():
    reference = (1, 2, 3, 4, 5, 6, (1000, 500))
    assert size([None, b"12345", [b"abc", reference]]) == 5 + 3 + 1500
    assert 100 <= size([7, "x" * 100]) < 130
    assert size([]) == 0


@pytest.mark.parametrize("found", [None, 7, [1, 2, 3], "1234", {}])
def test_what_is_no_traffic_is_none(found):
    assert traffic_of(found) is None


def test_what_is_not_known_stays_unknown():
    assert traffic_of([None, None, 3, 4]) == Traffic(None, None, 3, 4)
    assert traffic_of(["x", 2, None, 4]) == Traffic(None, 2, 0, 4)


class ProtTraffic(Protocol):
    stepsExecutionMode = STEPS_PARALLEL

    def _defineParams(self, form):
        form.addParallelSection(threads=1)

    def _insertAllSteps(self):
        numpy = pytest.importorskip("numpy")
        self._insertFunctionStep(self.writeStep)
        self._insertFunctionStep(self.largeStep, numpy.ones(MB, dtype="u1"))
        self._insertFunctionStep(self.textStep, "x" * 1000)
        self._insertFunctionStep(self.shortStep)

    def writeStep(self):
        with open(self._getExtraPath("data"), "wb") as f:
            f.write(b"x" * (7 * MB))
        _busy()

    def largeStep(self, block):
        _busy()
        return block[: MB // 2].copy()

    def textStep(self, text):
        _busy()
        return {"text": text * 3}

    def shortStep(self):
        pass


def _busy():
    end = time.perf_counter() + 0.02
    while time.perf_counter() < end:
        pass


@pytest.fixture
def run_dir(tmp_path):
    folder = str(tmp_path / "run")
    assert ProtTraffic(workingDir=folder).run().ok
    return folder


@LINUX
def test_the_journal_has_the_traffic_of_steps_that_take_a_while(run_dir):
    """Large arrays count with what they are, though nothing of them is copied."""
    history = read_journal(os.path.join(run_dir, "journal.log")).replay()
    write, large, text, short = (history.steps[n].traffic for n in (1, 2, 3, 4))
    assert short is None
    assert 7 * MB <= write.written < 8 * MB
    assert write.returned < 1000
    assert MB <= large.received < MB + 10_000
    assert MB // 2 <= large.returned < MB // 2 + 10_000
    assert large.written < 2 * MB, "what it returned is stored, once"
    assert 1000 <= text.received < 2000
    assert 3000 <= text.returned < 4000


@LINUX
def test_every_view_shows_it(run_dir, cli):  # noqa: F811
    steps = json.loads(cli("steps", run_dir, "--json").out)["steps"]
    assert 7 * MB <= steps[0]["written_bytes"] < 8 * MB
    assert steps[3]["written_bytes"] is None
    table = cli("steps", run_dir, "--sort", "written").out.splitlines()
    assert "written" in table[0]
    assert "writeStep" in next(line for line in table if "Step" in line)
    assert "7 MB" in next(line for line in table if "writeStep" in line)
    assert "written" not in cli("steps", run_dir).out.splitlines()[0]
    moved = cli("steps", run_dir, "--sort", "moved").out.splitlines()
    assert "largeStep" in next(line for line in moved if "Step" in line)
    assert "and wrote 7 MB;" in cli("explain", run_dir, "1").out
    assert "1 MB went to its worker for it, and 500 kB came back." in cli("explain", run_dir, "2").out


def test_a_journal_of_before_is_read_and_has_none():
    """Entries of four, as they were written before; and those of both kinds in one record."""
    old = replay(small())
    assert {s.traffic for s in old.steps.values()} == {None}
    records = [["protocol", {"params": {}, "pid": 1, "started": 1.0}], ["steps", 1, "f", [[1], [2]], [[], []]],
               ["started", 7, 1, 1.0, [1, 2]],
               ["finished", 7, 3.0, [[1, 1.0, 1.0, 5], [2, 1.0, 1.0, 6, [10, 20, 30, 40]]]]]  # fmt: skip
    history, line = replay(records), timeline(records)
    assert [history.steps[n].traffic for n in (1, 2)] == [None, Traffic(10, 20, 30, 40)]
    assert [s.traffic for s in line.spans] == [None, Traffic(10, 20, 30, 40)]
    args = [e["args"] for e in events(history, line) if e["ph"] == "X"]
    assert "read_bytes" not in args[0]
    assert (args[1]["read_bytes"], args[1]["written_bytes"]) == (10, 20)
    assert (args[1]["received_bytes"], args[1]["returned_bytes"]) == (30, 40)
