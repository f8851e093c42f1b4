"""What this process may use of the machine: cores by affinity, cgroup and Slurm, not those in the box."""

from __future__ import annotations

import os
from typing import Dict, Mapping, Optional

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
    counts = [os.cpu_count() or 1]
    if hasattr(os, "sched_getaffinity"):
        counts.append(len(os.sched_getaffinity(0)))
    quota = _cgroup_quota()
    if quota is not None:
        counts.append(max(1, int(quota)))
    slurm = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if slurm.isdigit() and int(slurm):
        counts.append(int(slurm))
    return min(counts)


def usable_memory() -> int:
    """Bytes of memory that this process may fill: the machine's, or its cgroup's limit."""
    import psutil

    total = int(psutil.virtual_memory().total)
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(path) as f:
                text = f.read().strip()
        except OSError:
            continue  # another version of cgroups, or none
        if text.isdigit():
            total = min(total, int(text))
    return total


def _cgroup_quota() -> Optional[float]:
    """Cores granted by cgroup v2 (`cpu.max`) or v1 (`cpu.cfs_quota_us`); None: no limit, or no cgroups."""
    try:
        with open("/sys/fs/cgroup/cpu.max") as f:
            quota, period = f.read().split()
        return None if quota == "max" else float(quota) / float(period)
    except (OSError, ValueError):
        pass  # no version 2 here: look for version 1
    try:
        with open("/sys/fs/cgroup/cpu/cpu.cfs_quota_us") as f, open("/sys/fs/cgroup/cpu/cpu.cfs_period_us") as g:
            quota_us = int(f.read())
            return None if quota_us <= 0 else quota_us / int(g.read())
    except (OSError, ValueError):
        return None  # no cgroups: the whole machine


def blas_share(workers: int, environment: Mapping[str, str]) -> Dict[str, str]:
    """BLAS and OpenMP thread counts for each of `workers` processes: its share of the cores, where the user has not
    said otherwise."""
    share = str(max(1, usable_cores() // max(1, workers)))
    return {name: share for name in THREAD_VARIABLES if name not in environment}
