"""Where steps run, and what happens to those that do in a worker process what belongs into the main one."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import scipion_run
from test_scipion_shapes import outcomes, require_pyworkflow


@pytest.fixture(scope="module")
def hidden(tmp_path_factory):
    """Runs of steps that hide what they do from a look at their source."""
    require_pyworkflow()
    return outcomes("processes", tmp_path_factory.mktemp("hidden"), list(scipion_run.HIDDEN))[0]


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("hidden-lock", "step 1 hideStep used self._lock in a worker process, where it keeps no other step out"),
        ("hidden-close", "step 1 hideStep used self._closeOutputSet in a worker process, where it would be lost"),
        ("hidden-unpicklable", "the step changed attribute 'handle' of the protocol to something that cannot travel"),
        ("hidden-live", "the step changed attribute 'table' of the protocol to something that cannot travel"),
    ],
)
def test_what_cannot_be_carried_home_fails_the_step_and_names_the_way_out(name, error, hidden):
    """Never a silent loss."""
    (run,) = hidden[name]

    assert run["status"] == "failed"
    assert error in run["error"]
    assert "MPSTEPS_LOCAL" in run["error"]
    assert [s[2] for s in run["steps"]] == ["failed", "finished", "new"]


@pytest.mark.parametrize("name", ["hidden-insert", "hidden-define", "hidden-store"])
def test_what_can_be_carried_home_is_done_there(name, hidden):
    """Steps that are inserted, outputs (a set that the step made, a number), attributes that are stored."""
    (run,) = hidden[name]

    assert run["status"] == "finished"
    assert run["result"]["ran"][:2] == [1, 2]
    if name == "hidden-insert":
        assert run["steps"][3][:3] == ["addedStep", "[50]", "finished"]
        assert run["stored"]["_numberOfSteps"] == run["stored"]["_stepsDone"] == "4"
    elif name == "hidden-define":
        assert run["stored"]["outputNumber"] == "5"
        assert (run["stored"]["outputImages"], run["rows"]["outputImages"]) == (1, 1)
    else:
        assert run["stored"]["count"] == "7"


def test_a_step_that_is_named_runs_in_the_main_process(tmp_path, monkeypatch):
    """Which mends all that the guard refuses."""
    require_pyworkflow()
    monkeypatch.setenv("MPSTEPS_LOCAL", "ShapeHides.hideStep, otherStep")
    found, log = outcomes("processes", tmp_path, ["hidden-lock", "hidden-close", "hidden-unpicklable"])

    assert {run["status"] for (run,) in found.values()} == {"finished"}
    assert sorted(found["hidden-lock"][0]["result"]["ran"]) == [1, 2, 100]
    assert "(hideStep) runs in the main process: MPSTEPS_LOCAL names it" in log


def test_the_mixin_needs_no_variable(tmp_path):
    """One protocol, given a ThreadStepExecutor."""
    require_pyworkflow()
    found, log = outcomes("threads", tmp_path, ["mixed", "fills"])

    assert found["mixed"][0]["status"] == "finished"
    assert found["mixed"][0]["result"] == found["fills"][0]["result"]
    assert log.count("mpsteps: ProcessStepExecutor in the place of ThreadStepExecutor") == 1
    assert "mpsteps: step 2 runs in process" in log


@pytest.mark.once
def test_mpsteps_works_without_pyworkflow_and_says_who_needs_it():
    """Nothing of it is imported for anything else."""
    code = (
        "import sys; sys.modules['pyworkflow'] = None\n"
        "import mpsteps, mpsteps.scipion, mpsteps.protocol, mpsteps.pool\n"
        "try:\n    mpsteps.scipion.ProcessStepExecutor\n"
        "except ModuleNotFoundError as e:\n    print(e)\n"
    )
    path = os.path.dirname(scipion_run.HERE)
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert done.stdout.startswith("mpsteps.scipion.ProcessStepExecutor needs pyworkflow: install mpsteps into Scipion")


STUCK = """
import os, sys, threading
sys.path.insert(0, {here!r})
import scipion_run
from mpsteps.scipion import _child, _workers
_workers.BEGIN_SECONDS = 0.5
real = _child._replace_streams
def stuck():
    try:
        os.close(os.open({marker!r} + str(len(os.listdir({folder!r}))), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        pass
    if len([n for n in os.listdir({folder!r}) if n.startswith("stuck")]) <= {times}:
        threading.Lock().acquire() and threading.Event().wait()  # a lock that nobody will release
    real()
_child._replace_streams = stuck
scipion_run.main("processes", {folder!r}, ["fills"])
"""


@pytest.mark.once
@pytest.mark.parametrize(("times", "said"), [(1, "it is replaced"), (100, "no process for it came up")])
def test_a_fork_that_inherits_a_lock_is_replaced_and_the_step_runs_once(times, said, tmp_path):
    """Whatever lock another thread held at that moment; and if none comes up, in the main process."""
    require_pyworkflow()
    scipion_run.install(str(tmp_path))
    code = STUCK.format(here=scipion_run.HERE, marker=str(tmp_path / "stuck"), folder=str(tmp_path), times=times)
    done = subprocess.run(
        [sys.executable, "-c", code], env=scipion_run.environment(str(tmp_path)), cwd=str(tmp_path), timeout=100,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout[-5000:]
    (run,) = json.loads((tmp_path / "outcomes.json").read_text())["fills"]
    assert said in done.stdout
    assert run["status"] == "finished"
    assert run["result"]["failed"] == [1, 2, 3, 4, 5, 6]


def test_steps_of_the_main_process_and_the_loop_do_not_meet_in_the_database(tmp_path):
    """A mapper of pyworkflow has one cursor for all threads."""
    require_pyworkflow()
    found, log = outcomes("processes", tmp_path, ["outputs"])

    (ended,) = found["outputs"]
    assert ended["status"] == "finished", log[-3000:]
    assert [ended["stored"][f"output{i}"] for i in range(400)] == [str(i) for i in range(400)]
    assert all(s[2] == "finished" for s in ended["steps"])
