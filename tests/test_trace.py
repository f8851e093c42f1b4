"""`mpsteps trace`: what Chrome and Perfetto open."""

from __future__ import annotations

import copy
import json
import os

import pytest
from test_cli import cli  # noqa: F401  # the fixture
from trace_rules import broken_rules

from mpsteps._history import replay
from mpsteps._timeline import timeline
from mpsteps._trace import write_trace
from mpsteps.errors import UsageError

pytestmark = pytest.mark.once

RECORDS = [
    ["protocol", {"class": "P", "threads": 2, "pid": 1, "started": 100.0, "params": {}}],
    ["steps", 1, "load", [["a"], ["</script>\udce9"]], [[], []]],
    ["steps", 3, "join", [[None]], [[1, 2]]],
    ["started", 7, 1, 101.0, [1]],
    ["started", 8, 1, 101.0, [2]],
    ["finished", 7, 102.0, [[1, 0.9, 0.5, 4096]]],
    ["finished", 8, 103.0, [[2, 1.9, 0.5, None]]],
    ["started", 7, 1, 103.0, [3]],
    ["failed", 3, 7, 1, 104.0, {"type": "ValueError", "message": "no", "cause": "ValueError: no"}],
    ["ended", "failed", 104.5, "no"],
]


def traced(records, path):
    write_trace(replay(records), timeline(records), str(path))
    return json.loads(path.read_text(encoding="utf-8"))


def test_workers_are_threads_steps_slices_and_prerequisites_flows(tmp_path):
    trace = traced(RECORDS, tmp_path / "t.json")
    assert broken_rules(trace) == []
    events = trace["traceEvents"]
    slices = [e for e in events if e["ph"] == "X"]
    assert [(e["name"], e["tid"], e["args"]["status"]) for e in slices] == [
        ("load", 1, "finished"), ("load", 2, "finished"), ("join", 1, "failed")
    ]  # fmt: skip
    assert slices[0]["args"] == {
        "step": 1, "status": "finished", "cpu_seconds": 0.5, "peak_kib": 4096, "arguments": "'a'", "after": []
    }  # fmt: skip
    assert slices[2]["args"]["error"] == "ValueError: no"
    assert slices[0]["ts"] == pytest.approx(1.05e6)
    assert slices[0]["dur"] == pytest.approx(0.9e6)
    assert sum(e["ph"] == "s" for e in events) == sum(e["ph"] == "f" for e in events) == 2
    names = {e["args"]["name"] for e in events if e["ph"] == "M" and "name" in e["args"]}
    assert names == {"session 1 of P, failed", "worker 1 (7)", "worker 2 (8)"}


def test_sessions_are_processes_and_ids_of_earlier_ones_are_not_mixed_up(tmp_path):
    """Step 1 of the first session is another one than that of the second."""
    again = [
        ["protocol", {"class": "P", "threads": 2, "pid": 2, "started": 200.0, "params": {}}],
        ["steps", 1, "other", [["z"]], [[]]],
        ["started", 9, 1, 201.0, [1]],
        ["finished", 9, 202.0, [[1, 0.9, 0.5, None]]],
        ["ended", "finished", 203.0, ""],
    ]
    trace = traced([*RECORDS, *again], tmp_path / "t.json")
    assert broken_rules(trace) == []
    slices = [e for e in trace["traceEvents"] if e["ph"] == "X"]
    assert [(e["pid"], e["name"]) for e in slices] == [(1, "load"), (1, "load"), (1, "join"), (2, "other")]
    assert "arguments" not in slices[0]["args"]
    assert slices[3]["ts"] > 100e6


@pytest.mark.parametrize(
    "change",
    [
        lambda events: events[-1].pop("bp"),
        lambda events: events[-1].update(ts=0.5),
        lambda events: events.pop(),
        lambda events: next(e for e in events if e["ph"] == "X").update(dur=2.5e6),
        lambda events: next(e for e in events if e["ph"] == "X").update(ts=float("nan")),
        lambda events: next(e for e in events if e["ph"] == "X").pop("tid"),
        lambda events: events.remove(next(e for e in events if e["name"] == "thread_name")),
    ],
)
def test_the_rules_see_what_is_broken(tmp_path, change):
    """A check that cannot fail checks nothing."""
    trace = traced(RECORDS, tmp_path / "t.json")
    broken = copy.deepcopy(trace)
    change(broken["traceEvents"])
    assert broken_rules(broken)


def test_only_files_of_ours_are_replaced(tmp_path):
    path = tmp_path / "t.json"
    traced(RECORDS, path)
    assert len(traced(RECORDS, path)["traceEvents"]) > 5, "an earlier trace is replaced"
    assert os.stat(str(path)).st_mode & 0o777 == 0o600
    path.write_text("{}")
    with pytest.raises(UsageError, match="is not the trace of a run, so it is not overwritten"):
        traced(RECORDS, path)
    assert os.listdir(str(tmp_path)) == ["t.json"], "no draft is left"


def test_the_command_writes_the_trace_of_a_run(cli):  # noqa: F811
    """As a new user would: run, then trace; the file is named after the run."""
    assert cli("run", "squares.py", "--set", "bad=2", "--keep-going", "--quiet").code == 1
    done = cli("trace", "Runs/000001_ProtSquares")
    assert (done.code, "wrote 000001_ProtSquares.trace.json: 4 attempts of steps" in done.out) == (0, True), done.err
    trace = json.loads((cli.folder / "000001_ProtSquares.trace.json").read_text())
    assert broken_rules(trace) == []
    assert {e["name"] for e in trace["traceEvents"] if e["ph"] == "X"} == {"squareStep"}
    for wrong, message in (
        (("trace", "nowhere"), "there is no run directory"),
        (("trace", "Runs/000001_ProtSquares", "-o", "no/where.json"), "does not exist"),
        (("trace", "Runs/000001_ProtSquares", "-o", "Runs"), "is a folder"),
        (("trace", "Runs/000001_ProtSquares", "-o", "squares.py"), "not overwritten"),
    ):
        refused = cli(*wrong)
        assert refused.code == 2
        assert message in refused.err
        assert "Traceback" not in refused.err
