"""What this process may use of the machine: the smallest of what the box, the affinity, the cgroup and Slurm allow."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Dict

import pytest

from mpsteps import _machine


def cgroups(monkeypatch: pytest.MonkeyPatch, root: Path, groups: str, files: Dict[str, str]) -> None:
    """A /proc/self/cgroup and a cgroup file system of our own."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        (root / "cg" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "cg" / name).write_text(text)
    monkeypatch.setattr(_machine, "_PROC", str(root / "proc"))
    monkeypatch.setattr(_machine, "_CGROUPS", str(root / "cg"))
    monkeypatch.setattr(_machine.os, "cpu_count", lambda: 64)
    monkeypatch.setattr(_machine.os, "sched_getaffinity", lambda _: set(range(48)), raising=False)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("0::/\n", {}, 48),
        ("0::/\n", {"cpu.max": "max 100000"}, 48),
        ("0::/\n", {"cpu.max": "400000 100000"}, 4),
        ("0::/\n", {"cpu.max": "50000 100000"}, 1),
        ("0::/slurm/job_1/step_0\n", {"slurm/job_1/cpu.max": "800000 100000"}, 8),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "900000 100000"}, 3),
        ("0::/../other\n", {"cpu.max": "600000 100000"}, 6),
        (
            "4:memory:/m\n2:cpu,cpuacct:/job\n0::/\n",
            {"cpu/job/cpu.cfs_quota_us": "250000", "cpu/job/cpu.cfs_period_us": "100000"},
            2,
        ),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 48),
        ("nonsense", {}, 48),
    ],
)
def test_cores_are_what_affinity_and_all_cgroups_above_allow(
    groups: str, files: Dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Version 1 and 2, limits on the group itself or on any above it, none at all."""
    cgroups(monkeypatch, tmp_path, groups, files)
    assert _machine.usable_cores() == cores


def test_slurm_and_a_machine_without_cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Slurm granted counts when it is less; a number it is not is passed over."""
    cgroups(monkeypatch, tmp_path, "0::/\n", {})
    monkeypatch.setattr(_machine, "_PROC", str(tmp_path / "nowhere"))
    assert _machine.usable_cores() == 48
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "6")
    assert _machine.usable_cores() == 6
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "many")
    assert _machine.usable_cores() == 48


def test_memory_is_what_all_cgroups_above_allow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest limit wins; 'max' is none."""
    cgroups(
        monkeypatch, tmp_path, "0::/job/task\n",
        {"job/memory.max": str(64 << 20), "job/task/memory.max": "max", "memory.max": str(128 << 20)},
    )  # fmt: skip
    assert _machine.usable_memory() == 64 << 20


def test_this_machine_has_at_least_a_core() -> None:
    """Whatever it is."""
    assert 1 <= _machine.usable_cores() <= (os.cpu_count() or 1)
    assert _machine.usable_memory() > 1 << 20
