"""What this process may use of the machine: cores by affinity, cgroup and Slurm, not those in the box."""

from __future__ import annotations

import os
from typing import Dict, Iterator, List, Mapping, Optional

_PROC, _CGROUPS = "/proc", "/sys/fs/cgroup"

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


def usable_cores() -> int:
    """The number of cores that this process can really use, at least 1."""
    return max(1, int(min(core_limits().values())))


def core_limits() -> Dict[str, float]:
    """What limits the cores: 'machine', 'affinity', 'cgroup' (may be a fraction), 'Slurm'; the least one counts."""
    limits: Dict[str, float] = {"machine": os.cpu_count() or 1}
    if hasattr(os, "sched_getaffinity"):
        limits["affinity"] = len(os.sched_getaffinity(0))
    quota = _cgroup_quota()
    if quota is not None:
        limits["cgroup"] = quota
    slurm = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if slurm.isdigit() and int(slurm):
        limits["Slurm"] = int(slurm)
    return limits


def usable_memory() -> int:
    """Bytes of memory that this process may fill: the machine's, or its cgroup's limit."""
    total = _physical_memory()
    for name in ("memory.max", "memory.limit_in_bytes"):
        for folder in _cgroup_folders("memory"):
            text = _read(folder, name)
            if text.isdigit():
                total = min(total, int(text))
    return total


def _physical_memory() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError):  # Windows, or a system that does not tell this way
        import psutil  # takes as long to load as half of all that a run needs

        return int(psutil.virtual_memory().total)


def _cgroup_quota() -> Optional[float]:
    """Cores granted by cgroup v2 (`cpu.max`) or v1 (`cpu.cfs_quota_us`); None: no limit, or no cgroups.

    A limit may be set on any group above this process's, as batch systems do it for the job and its tasks.
    """
    quotas: List[float] = []
    for folder in _cgroup_folders("cpu"):
        words = _read(folder, "cpu.max").split() or [
            _read(folder, "cpu.cfs_quota_us"),
            _read(folder, "cpu.cfs_period_us"),
        ]
        if len(words) == 2 and all(w.isdigit() for w in words) and int(words[1]):
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def _cgroup_folders(controller: str) -> Iterator[str]:
    """The folders of this process's cgroup of a controller and of all groups above it."""
    try:
        with open(os.path.join(_PROC, "self/cgroup")) as f:
            lines = f.read().splitlines()
    except OSError:
        return  # no cgroups here
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        top = os.path.join(_CGROUPS, controllers and controller)
        while True:
            yield os.path.join(top, group.lstrip("/"))
            if group in ("", "/"):
                break
            group = os.path.dirname(group)


def _read(folder: str, name: str) -> str:
    try:
        with open(os.path.join(folder, name)) as f:
            return f.read().strip()
    except OSError:
        return ""  # not limited by this one


def blas_share(workers: int, environment: Mapping[str, str]) -> Dict[str, str]:
    """BLAS and OpenMP thread counts for each of `workers` processes: its share of the cores, where the user has not
    said otherwise."""
    share = str(max(1, usable_cores() // max(1, workers)))
    return {name: share for name in THREAD_VARIABLES if name not in environment}
