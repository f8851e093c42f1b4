"""Real pyworkflow: protocols that know nothing of mpsteps come to the same in processes as in threads.

In processes of their own, as pyworkflow is configured by its environment. Where MPSTEPS_REQUIRE_PYWORKFLOW is set a
missing pyworkflow is a failure.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

import pytest
import scipion_run

FAILING = ("raise", "job")


def require_pyworkflow():
    """Skip, or fail where it is required."""
    try:
        return version("scipion-pyworkflow")
    except PackageNotFoundError:
        if os.environ.get("MPSTEPS_REQUIRE_PYWORKFLOW") and sys.version_info < (3, 12):
            pytest.fail("scipion-pyworkflow is not installed here, and MPSTEPS_REQUIRE_PYWORKFLOW wants it")
        pytest.skip("scipion-pyworkflow is not installed (pip install '.[scipion]', on Python 3.8 to 3.11)")


def outcomes(kind, folder, names):
    """What `scipion_run` says, by name of the run, and its output."""
    scipion_run.install(str(folder))
    script = os.path.join(scipion_run.HERE, "scipion_run.py")
    done = subprocess.run(
        [sys.executable, script, kind, str(folder), *names], env=scipion_run.environment(str(folder)), cwd=str(folder),
        timeout=100, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:]
    with open(str(folder / "outcomes.json")) as f:
        return json.load(f), done.stdout


@pytest.fixture(scope="module")
def threads(tmp_path_factory):
    """What ThreadStepExecutor makes of all runs. Its threads share a cursor of SQLite: where the machine is busy, now
    and then "Recursive use of cursors not allowed" ends one of them, and then there is nothing to compare with."""
    require_pyworkflow()
    for _ in range(2):
        try:
            return outcomes("threads", tmp_path_factory.mktemp("threads"), list(scipion_run.RUNS))[0]
        except AssertionError as error:
            if "Recursive use of cursors" not in str(error):
                raise
    return outcomes("threads", tmp_path_factory.mktemp("threads"), list(scipion_run.RUNS))[0]


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """What ProcessStepExecutor makes of all runs, also of those that threads do not survive; and the output."""
    require_pyworkflow()
    names = [*scipion_run.RUNS, *scipion_run.ONLY_PROCESSES]
    return outcomes("processes", tmp_path_factory.mktemp("processes"), names)


@pytest.mark.parametrize("name", [n for n in scipion_run.RUNS if n not in FAILING])
def test_a_protocol_comes_to_the_same_in_processes_as_in_threads(name, threads, processes):
    """Statuses, steps, what run.db has of attributes and outputs, rows of sets, results."""
    assert processes[0][name] == threads[name]
    assert processes[0][name][0]["status"] == "finished"


@pytest.mark.parametrize("name", FAILING)
def test_a_failure_is_the_same_but_those_beside_it_are_recorded(name, threads, processes):
    """Threads may leave what ran beside it as running, and do it again."""
    theirs, ours = threads[name], processes[0][name]

    assert ours[0]["error"] == theirs[0]["error"] != ""
    assert [s[2] for s in ours[0]["steps"]][:2] == ["finished", "failed"]
    assert not [s for s in ours[0]["steps"] if s[2] == "running"]
    assert ours[1]["steps"] == theirs[1]["steps"]
    assert ours[1]["status"] == theirs[1]["status"] == "finished"


@pytest.mark.parametrize("name", [*FAILING, *scipion_run.ONLY_PROCESSES])
def test_whatever_ends_a_step_ends_that_step_only(name, processes):
    """The one beside it is finished and not done again on resume; the error says which step and why."""
    failed, resumed = processes[0][name]
    causes = {
        "raise": "bad item 2", "job": "returned non-zero exit status 1",
        "sysexit": "step 2 itemStep called sys.exit('cannot go on')", "osexit": "ended with exit code 3",
        "segv": "was killed by SIGSEGV", "kill": "was killed by SIGKILL",
    }  # fmt: skip

    assert failed["status"] == "failed"
    assert failed["steps"][0][2] == "finished"
    assert failed["steps"][1][2] == "failed"
    assert causes[name] in failed["steps"][1][4]
    assert causes[name] in failed["error"]
    assert failed["ran"]["ran1"] == 1
    assert "ran2" not in failed["ran"]
    assert resumed["status"] == "finished"
    assert resumed["ran"] == {"ran1": 1, "ran2": 1, "ran3": 1, "ran4": 1}
    assert all(s[2] == "finished" for s in resumed["steps"])


def test_the_log_says_where_each_step_ran(processes):
    """And why one runs in the main process."""
    log = processes[1]

    assert "(createOutputStep) runs in the main process: it uses _defineOutputs (outputs, database)" in log
    assert "(itemStep) runs in the main process: it uses _closeOutputSet" not in log
    assert "mpsteps: step 1 runs in process" in log
    assert "self.book has a lock of its own: threads share it" in log
    assert "ran at the same time and both set self.current: the last one wins" in log
    assert "what it put into self.handle stays in its process: nobody else uses it" in log
    assert "nothing can run beside it, and it sets attributes of the protocol" in log
