"""How much memory may be reserved: by the machine and by every cgroup, looked at before it is too late."""

from __future__ import annotations

import sys

import pytest

from mpsteps import _machine
from mpsteps._ipc import room

GB = 1 << 30


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine made of files: `machine(meminfo=..., cgroup=..., files={...})`."""

    def make(meminfo: str = "", cgroup: str = "", files=()) -> None:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/meminfo").write_text(meminfo)
        (tmp_path / "proc/self/cgroup").write_text(cgroup)
        for name, text in dict(files).items():
            path = tmp_path / "groups" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        monkeypatch.setattr(_machine, "_PROC", str(tmp_path / "proc"))
        monkeypatch.setattr(_machine, "_CGROUPS", str(tmp_path / "groups"))

    return make


def test_the_machines_free_memory_counts(machine) -> None:
    """With what it could free by dropping caches."""
    machine(meminfo="MemTotal:  8388608 kB\nMemFree: 5 kB\nMemAvailable:    4194304 kB\n")
    assert room.available() == 4 * GB


def test_each_cgroup_above_counts(machine) -> None:
    """The smallest rest; cached files are no use of memory; 'max' is no limit."""
    machine(
        meminfo="MemAvailable: 8388608 kB\n",
        cgroup="0::/job/step\n",
        files={
            "job/memory.max": str(3 * GB),
            "job/memory.current": str(2 * GB + 100),
            "job/memory.stat": "anon 5\ninactive_file 100\n",
            "job/step/memory.max": "max",
            "job/step/memory.current": "77",
        },
    )
    assert room.available() == GB


def test_the_first_version_of_cgroups_counts(machine) -> None:
    """As on older clusters."""
    machine(
        cgroup="5:cpu,cpuacct:/a\n4:memory:/slurm\n",
        files={"memory/slurm/memory.limit_in_bytes": "1000", "memory/slurm/memory.usage_in_bytes": "400"},
    )
    assert room.available() == 600


def test_a_group_over_its_limit_has_nothing(machine) -> None:
    """Not less than nothing."""
    machine(cgroup="0::/\n", files={"memory.max": "10", "memory.current": "50"})
    assert room.available() == 0


def test_where_the_system_does_not_say_there_is_no_limit(machine) -> None:
    """macOS has no /proc: there the reservation itself fails in time."""
    machine()
    assert room.available() == sys.maxsize
    assert room.refusal(1 << 40) == ""


def test_a_request_that_would_take_nearly_all_is_refused(machine) -> None:
    """A part is left to others; the sentence has both numbers."""
    machine(meminfo="MemAvailable: 1000 kB\n")
    assert room.refusal(700_000) == ""
    assert "900000 bytes of shared memory: only 1024000 bytes" in room.refusal(900_000)
