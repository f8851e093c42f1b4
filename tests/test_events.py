"""Listeners: those of users cannot break a run, and the first of them writes JSON lines."""

from __future__ import annotations

import json
import os

import pytest
from test_cli import cli  # noqa: F401  # the fixture

import mpsteps
from mpsteps import STEPS_PARALLEL, Protocol, step
from mpsteps._event_lines import JsonLines
from mpsteps.errors import UsageError
from mpsteps.listeners import CALLS


class ProtEvents(Protocol):
    stepsExecutionMode = STEPS_PARALLEL
    keepGoing = True

    def _defineParams(self, form):
        form.addParallelSection(threads=2)

    def _insertAllSteps(self):
        good = self._insertFunctionStep(self.goodStep, "a", prerequisites=[])
        bad = self._insertFunctionStep(self.badStep, prerequisites=[])
        again = self._insertFunctionStep(self.againStep, self._getExtraPath("mark"), prerequisites=[good])
        self._insertFunctionStep(self.lastStep, prerequisites=[bad, again])

    def goodStep(self, text):
        self._insertFunctionStep(self.laterStep, prerequisites=[])

    def badStep(self):
        raise ValueError("no")

    @step(retries=1)
    def againStep(self, mark):
        if not os.path.exists(mark):
            open(mark, "w").close()
            raise OSError("not yet")

    def laterStep(self):
        pass

    def lastStep(self):
        pass


def events_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_event_of_a_run_is_a_line(tmp_path):
    """All kinds of events; each step's in their order, and nothing before the run or after it."""
    path = tmp_path / "events.jsonl"
    report = ProtEvents(workingDir=str(tmp_path / "run")).run(listeners=[JsonLines(str(path))])
    assert report.status == "failed"
    events = events_of(path)
    names = [e["event"] for e in events]
    assert (names[0], names[-1]) == ("run_started", "run_ended")
    assert set(names) == {
        "run_started", "steps_inserted", "step_running", "step_finished", "step_failed", "step_retried",
        "step_skipped", "run_ended",
    }  # fmt: skip
    of = {n: [e["event"] for e in events if e.get("step") == n] for n in range(1, 6)}
    assert of[1] == ["step_running", "step_finished"]
    assert of[2] == ["step_running", "step_failed"]
    assert of[3] == ["step_running", "step_retried", "step_running", "step_finished"]
    assert of[4] == ["step_skipped"]
    assert of[5] == ["step_running", "step_finished"]
    times = [e["time"] for e in events]
    assert times == sorted(times)
    assert (events[0]["workers"], events[0]["total"], events[0]["kept"]) == (2, 4, 0)
    ended = events[-1]
    told = tuple(ended[key] for key in ("status", "total", "finished", "failed", "skipped"))
    assert told == ("failed", 5, 3, [2], 1)
    finished = next(e for e in events if e["event"] == "step_finished" and e["step"] == 1)
    assert finished["function"] == "goodStep"
    assert finished["seconds"] >= 0
    assert next(e for e in events if e["event"] == "step_running" and e["step"] == 1)["arguments"] == "('a',)"
    assert "ValueError: no" in next(e for e in events if e["event"] == "step_failed")["message"]
    assert os.stat(str(path)).st_mode & 0o777 == 0o600


@pytest.mark.parametrize("call", ["run_started", "step_running", "steps_finished", "step_failed", "run_ended"])
def test_a_listener_that_raises_is_told_of_once_and_the_run_goes_on(tmp_path, call):
    class Broken(mpsteps.Listener):
        calls = 0

    def broken(self, *args):
        type(self).calls += 1
        raise RuntimeError("broken on purpose")

    setattr(Broken, call, broken)
    heard = []

    class Other(mpsteps.Listener):
        def run_ended(self, run, report):
            heard.append(report.finished)

    protocol = ProtEvents(workingDir=str(tmp_path / "run"))
    report = protocol.run(listeners=[Broken(), Other()])
    assert (report.finished, heard) == (3, [3])
    assert Broken.calls == 1
    log = (tmp_path / "run" / "logs" / "run.stderr").read_text()
    told = f"listener Broken failed in {call} and is not called any more: RuntimeError: broken on purpose"
    assert log.count(told) == 1


def test_all_calls_of_a_listener_are_known():
    """The guard guards each of them."""
    assert set(CALLS) == {
        "run_started", "steps_inserted", "step_running", "steps_finished", "step_failed", "step_retried",
        "steps_skipped", "run_stopping", "run_ended",
    }  # fmt: skip


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_file_that_takes_no_more_does_not_end_the_run(tmp_path):
    protocol = ProtEvents(workingDir=str(tmp_path / "run"))
    assert protocol.run(listeners=[JsonLines("/dev/full")]).finished == 3
    with pytest.raises(UsageError, match="cannot write events to"):
        JsonLines(str(tmp_path / "no" / "where"))


@pytest.mark.once
def test_the_command_line_appends_events_also_on_resume(cli):  # noqa: F811
    """Relative to where the user is, not to where the run was started."""
    assert cli("run", "squares.py", "--set", "bad=2", "--quiet", "--events", "e.jsonl").code == 1
    (cli.folder / "elsewhere").mkdir()
    run = str(cli.folder / "Runs" / "000001_ProtSquares")
    done = cli("resume", run, "--set", "bad=-1", "--quiet", "--events", "e.jsonl", cwd=cli.folder / "elsewhere")
    assert done.code == 0, done.err
    first, second = events_of(cli.folder / "e.jsonl"), events_of(cli.folder / "elsewhere" / "e.jsonl")
    assert first[-1]["status"] == "failed"
    assert second[-1]["status"] == "finished"
    assert second[0]["kept"] >= 2
    refused = cli("run", "squares.py", "--events", "no/where")
    assert (refused.code, "cannot write events to 'no/where'" in refused.err) == (2, True)
