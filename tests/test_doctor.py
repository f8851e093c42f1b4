"""`mpsteps doctor`: what the machine gives, and what it says of machines that are not this one."""

from __future__ import annotations

import json
import os
import sys

import pytest
from test_cli import cli  # noqa: F401  # the fixture

from mpsteps import _checkup, _machine, _self_test
from mpsteps._checkup import BAD, GOOD, NOTE
from mpsteps.errors import EngineError


def test_what_limits_the_cores_is_named(monkeypatch):
    """Each limit by its name, and advice for the one that counts."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    for limits, state, words in (
        ({"machine": 64, "affinity": 64}, GOOD, ["64 of 64 cores may be used, nothing limits them"]),
        ({"machine": 64, "affinity": 8}, NOTE, ["8 of 64", "affinity allows 8", "pinned", "More than 8 workers"]),
        ({"machine": 64, "affinity": 64, "cgroup": 2.5}, NOTE, ["2 of 64", "cgroup allows 2.5", "docker --cpus"]),
        ({"machine": 64, "Slurm": 4, "cgroup": 4.5}, NOTE, ["4 of 64", "Slurm allows 4", "--cpus-per-task"]),
    ):
        monkeypatch.setattr(_machine, "core_limits", lambda limits=limits: limits)
        found = _checkup.cores()
        assert found.state == state
        for word in words:
            assert word in f"{found.fact} {found.advice}"
        assert found.data["usable"] == int(min(limits.values()))
    monkeypatch.setattr(_machine, "core_limits", lambda: {"machine": 4})
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert "This is a Slurm job without --cpus-per-task" in _checkup.cores().advice


def test_slurm_and_affinity_are_seen(monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    assert _machine.core_limits()["Slurm"] == 1
    assert _machine.usable_cores() == 1
    if hasattr(os, "sched_getaffinity"):
        assert _machine.core_limits()["affinity"] == len(os.sched_getaffinity(0))


def test_what_is_missing_or_short_is_said(monkeypatch, tmp_path):
    real = _checkup._version
    monkeypatch.setattr(_checkup, "_version", lambda name: None if name in ("tblib", "rich") else real(name))
    assert _checkup.versions().state == BAD
    assert "pip install tblib" in _checkup.versions().advice
    assert 'rich (a live progress bar): pip install "mpsteps[cli]"' in _checkup.optional_packages().advice
    monkeypatch.setattr(_checkup, "_sync_seconds", lambda folder: 0.1)
    assert "--durability power" in _checkup.disk(str(tmp_path)).advice

    def refused(folder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(_checkup, "_sync_seconds", refused)
    assert "cannot be written to (Permission denied)" in _checkup.disk(str(tmp_path)).fact

    def none(size):
        raise EngineError("no memory")

    monkeypatch.setattr(_checkup.shm, "create", none)
    assert (_checkup.shared_memory().state, "no memory" in _checkup.shared_memory().fact) == (BAD, True)


@pytest.mark.skipif(sys.platform == "win32", reason="needs rlimits")
def test_too_few_open_files_are_said_with_the_way_out(monkeypatch):
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, 4096))
    found = next(f for f in _checkup.limits(64) if f.topic == "open files")
    assert found.state == BAD
    assert "ulimit -n 4096" in found.advice


def test_too_many_blas_threads_are_said(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    found = _self_test.blas({"variables": {"OMP_NUM_THREADS": "64"}, "libraries": [("openblas", 64)]}, 2)
    assert found.state == NOTE
    assert "64 threads in each of 2 workers" in found.advice
    assert "openblas with 64" in found.fact


def test_a_pool_that_cannot_be_started_is_a_finding(monkeypatch):
    def broken(workers):
        raise EngineError("no process can be started")

    monkeypatch.setattr(_self_test, "StepPool", broken)
    (found,) = _self_test.self_test(2)
    assert found.state == BAD
    assert "no process can be started" in found.fact


@pytest.mark.once
def test_the_command_checks_this_machine(cli):  # noqa: F811
    """All of it works here; the same as JSON; exit code 0."""
    done = cli("doctor", "--threads", "2")
    assert done.code == 0, done.out + done.err
    for topic in ("versions", "cores", "memory", "shared memory", "start of workers", "open files", "disk", "workers",
                  "BLAS threads", "steps", "speed-up", "isolation"):  # fmt: skip
        assert f" {topic}: " in done.out, topic
    assert "All works." in done.out
    assert max(map(len, done.out.splitlines())) <= 110
    told = json.loads(cli("doctor", "--json", "--no-self-test").out)
    assert told["ok"]
    assert "speed-up" not in {f["topic"] for f in told["findings"]}
    assert {f["state"] for f in told["findings"]} <= {GOOD, NOTE}
