"""Unmodified protocols of published plug-ins, on simulated input: the same volumes and outputs from processes.

Runs where scipion-em-tomo and scipion-em-tomosegmemtv are installed (pip install; their programs are not needed).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import scipion_published
import scipion_run

MISSING = [name for name in ("pyworkflow", "pwem", "tomo", "tomosegmemtv") if find_spec(name) is None]
PROTOCOLS = ("ProtTomoApplyTomoMask", "ProtResizeSegmentedVolume")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What threads and processes come to, and the log of the latter."""
    if MISSING:
        pytest.skip(f"not installed here: {', '.join(MISSING)} (scipion-em-tomo, scipion-em-tomosegmemtv)")
    outcomes = {}
    for kind in ("threads", "processes"):
        folder = tmp_path_factory.mktemp(kind)
        scipion_published.install(str(folder))
        script = os.path.join(scipion_run.HERE, "scipion_published.py")
        done = subprocess.run(
            [sys.executable, script, kind, str(folder)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            env=scipion_run.environment(
                str(folder), SCIPION_DOMAIN="pwem", TOMOSEGMEMTV_HOME=str(folder / "programs")
            ), cwd=str(folder), timeout=110, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-8000:]
        outcomes[kind] = json.loads((folder / "outcomes.json").read_text())
        outcomes[f"{kind} log"] = done.stdout
    return outcomes


@pytest.mark.parametrize("name", PROTOCOLS)
def test_it_comes_to_the_same(name, found):
    """Statuses, attributes and outputs in run.db, rows of the sets, and each voxel."""
    assert found["processes"][name]["status"] == "finished", found["processes"][name]["error"]
    assert len(found["processes"][name]["volumes"]) == scipion_published.N
    assert found["processes"][name] == found["threads"][name]


def test_what_computes_runs_in_processes(found):
    """And what registers outputs does not."""
    log = found["processes log"]

    assert "(createOutputStep) runs in the main process" in log
    for name in ("processMaskStep", "applyMaskStep", "resizeStep"):
        assert f"({name}) runs in the main process" not in log
