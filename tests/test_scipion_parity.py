"""The protocols of the parity tests, under real pyworkflow: the same in processes as in threads, to the last status.

Serial ones, a failure, a missing file, an interactive step, both kinds of streaming.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import parity_run
import pytest
import scipion_run
from test_scipion_shapes import require_pyworkflow


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The outcomes, in threads and in processes."""
    require_pyworkflow()
    outcomes = {}
    for kind in ("pyworkflow", "processes"):
        for left in (2, 1, 0):
            folder = tmp_path_factory.mktemp(kind)
            script = os.path.join(parity_run.HERE, "parity_run.py")
            done = subprocess.run(
                [sys.executable, script, kind, str(folder)], env=scipion_run.environment(str(folder)), cwd=str(folder),
                timeout=100, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                check=False,
            )  # fmt: skip
            if not (left and kind == "pyworkflow" and "sqlite3." in done.stdout):  # its threads share a connection
                break
        assert done.returncode == 0, done.stdout[-5000:]
        outcomes[kind] = json.loads((folder / "outcomes.json").read_text())["runs"]
    return outcomes


@pytest.mark.parametrize("number", range(len(parity_run.RUNS)))
def test_the_outcome_is_the_same(number, found):
    """Statuses, steps, errors, attributes, outputs, files, graph, progress; and what ran, whatever ran first."""
    ours, theirs = found["processes"][number], found["pyworkflow"][number]
    failed = theirs["status"] == "failed"
    for each in (ours, theirs):
        assert parity_run.order_holds(each)
        noted = sorted(each["files"].pop("notes", "").splitlines())  # steps side by side note in any order
        each["notes"] = noted if not failed else None
        if failed:  # of what ran beside it threads may say that it runs still
            each["steps"] = [s["function"] for s in each["steps"]]

    assert ours == theirs
