"""One and the same source under real pyworkflow and under mpsteps, differing in its import line only: same outcomes.

pyworkflow runs in a process of its own, in a real project (see `parity_run`). It needs scipion-pyworkflow, which exists
for Python 3.8 to 3.11: elsewhere these tests are skipped, and say so. Where MPSTEPS_REQUIRE_PYWORKFLOW is set, as in
the project's own matrix, a missing pyworkflow is a failure on those Pythons.
"""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

import parity_run
import pytest

COLOUR = re.compile("\x1b\\[[0-9;]*m")
NAMES = [name + "".join(f"-{k}{v}" for k, v in params.items()) for name, params in parity_run.RUNS]


def _installed():
    try:
        return version("scipion-pyworkflow")
    except PackageNotFoundError:
        return ""


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """The outcomes under pyworkflow."""
    if not _installed():
        if os.environ.get("MPSTEPS_REQUIRE_PYWORKFLOW") and sys.version_info < (3, 12):
            pytest.fail("scipion-pyworkflow is not installed here, and MPSTEPS_REQUIRE_PYWORKFLOW wants it")
        pytest.skip("scipion-pyworkflow is not installed (pip install '.[scipion]', on Python 3.8 to 3.11)")
    for left in (2, 1, 0):
        folder = tmp_path_factory.mktemp("pyworkflow")
        done = _run_pyworkflow(folder)
        if not (left and "sqlite3." in done.stdout):  # its threads share a connection and now and then collide on it
            break
    assert done.returncode == 0, done.stdout[-5000:]
    with open(str(folder / "outcomes.json")) as f:
        return json.load(f)


def _run_pyworkflow(folder):
    (folder / "home" / "config").mkdir(parents=True)
    env = {
        **os.environ, "SCIPION_HOME": str(folder / "home"), "SCIPION_USER_DATA": str(folder / "user"),
        "SCIPION_DOMAIN": "pyworkflowtests", "PYTHONWARNINGS": "ignore",
    }  # fmt: skip
    script = os.path.join(parity_run.HERE, "parity_run.py")
    return subprocess.run(
        [sys.executable, script, "pyworkflow", str(folder)], env=env, cwd=str(folder), timeout=100, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module", params=["inline", "processes"])
def ours(request, tmp_path_factory):
    """The outcomes under mpsteps, by the same path through JSON."""
    folder = tmp_path_factory.mktemp("mpsteps")
    return json.loads(json.dumps(parity_run.run_mpsteps(str(folder), request.param)))


@pytest.mark.parametrize("number", range(len(NAMES)), ids=NAMES)
def test_a_protocol_comes_to_the_same_under_both(theirs, ours, number):
    """Statuses, ids, arguments, prerequisites, attributes, outputs, files, graph; errors contain the same text."""
    expected, found = copy.deepcopy((theirs["runs"][number], ours["runs"][number]))
    for outcome in (expected, found):
        assert parity_run.order_holds(outcome)
        outcome["files"].pop("notes", None)
    errors = [s.pop("error") for s in expected["steps"]], [s.pop("error") for s in found["steps"]]
    for they, we in zip(*errors):
        assert they in we
        assert bool(they) == bool(we)
    they, we = COLOUR.sub("", expected.pop("error")), found.pop("error")
    assert they.replace("Protocol failed: ", "") in we
    assert bool(they) == bool(we)
    assert found == expected


@pytest.mark.parametrize("number", range(len(parity_run.FORMS)), ids=[str(p) for p in parity_run.FORMS])
def test_a_form_says_the_same_under_both(theirs, ours, number):
    """Values, conditions, choices, comparisons; messages begin with the same words."""
    expected, found = theirs["forms"][number], ours["forms"][number]
    assert found["look"] == expected["look"]
    assert len(found["messages"]) == len(expected["messages"])
    for they, we in zip(expected["messages"], found["messages"]):
        assert they.split("*")[:2] == we.split("*")[:2]  # the label, or the author's own sentence


def test_nothing_but_the_import_line_is_changed():
    """So that this file's promise is checked, too."""
    with open(os.path.join(parity_run.HERE, "parity_protocols.py")) as f:
        lines = [line for line in f if "mpsteps" in line]
    assert [line for line in lines if not line.startswith('"""')] == [lines[-1]]
    assert lines[-1].startswith(parity_run.IMPORT_HERE)


def test_the_protocols_run_under_mpsteps(ours):
    """Also where pyworkflow is not installed: what they should come to."""
    statuses = [run["status"] for run in ours["runs"]]
    assert statuses == ["finished"] * 4 + ["failed"] * 3 + ["interactive"] + ["finished"] * 2
    assert ours["runs"][0]["outputs"] == {"total": 510, "names": "1,3"}
    assert all(parity_run.order_holds(run) for run in ours["runs"])
