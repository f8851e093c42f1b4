"""Real launches, as Scipion's interface makes them: the plug-in on and off, Stop, and the death of the main process."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import scipion_run
from test_scipion_shapes import require_pyworkflow


def launch(folder, what, **variables):
    """What `scipion_launch` says."""
    require_pyworkflow()
    scipion_run.install(str(folder))
    script = os.path.join(scipion_run.HERE, "scipion_launch.py")
    done = subprocess.run(
        [sys.executable, script, str(folder), what], env=scipion_run.environment(str(folder), **variables),
        cwd=str(folder), timeout=100, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:]
    with open(str(folder / "launched.json")) as f:
        return json.load(f)


def test_one_variable_switches_it_on(tmp_path):
    """A launch of an unchanged protocol; what its steps wrote is in the run's own log."""
    found = launch(tmp_path, "finish", MPSTEPS_EXECUTOR="processes")

    assert found["status"] == "finished"
    assert found["result"]["failed"] == [1, 2, 3, 4]
    assert "mpsteps: ProcessStepExecutor in the place of ThreadStepExecutor" in found["log"]
    assert "mpsteps: step 2 runs in process" in found["log"]
    assert "FINISHED" in found["log"]


@pytest.mark.once
def test_without_it_nothing_is_touched(tmp_path):
    """The plug-in is installed and loaded, and there is no sign of it."""
    found = launch(tmp_path, "finish", MPSTEPS_EXECUTOR="")

    assert found["status"] == "finished"
    assert found["result"]["failed"] == [1, 2, 3, 4]
    assert "mpsteps" not in found["log"] + found["errors"]


@pytest.mark.once
def test_a_value_that_it_does_not_know_is_said_and_means_threads(tmp_path):
    """Nobody is to believe that it is on."""
    found = launch(tmp_path, "finish", MPSTEPS_EXECUTOR="procesess")

    assert found["status"] == "finished"
    assert "MPSTEPS_EXECUTOR is 'procesess': it can be 'processes', or 'threads'" in found["log"] + found["errors"]
    assert "runs in process" not in found["log"]


@pytest.mark.parametrize("what", ["stop", "sigterm", "sigkill"])
def test_however_the_run_is_ended_no_worker_and_no_program_is_left(what, tmp_path):
    """Stop in the interface, SIGTERM of a batch system, the kernel's OOM killer."""
    found = launch(tmp_path, what, MPSTEPS_EXECUTOR="processes")

    assert found["gone"]
    if what == "stop":
        assert found["status"] == "aborted"
