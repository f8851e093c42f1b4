"""How much memory processes use, and how often the kernel has ended one because there was none left.

What counts is memory that is a process's own (anonymous pages, in memory or swapped out): it is what goes away when the
process does. Shared memory and the pages of files are not: an array in shared memory would count once for each worker.
"""

from __future__ import annotations

import os
from typing import Iterable, Optional

from mpsteps import _machine

_OWN = ("RssAnon:", "VmSwap:")
_SHARED = ("RssFile:", "RssShmem:")
_SHARE = ("Pss_Anon:", "SwapPss:")
OOM_SCORE = 500
"""Added to a worker's oom_score_adj."""


def own_memory(pid: int) -> int:
    """Bytes of a process's own memory; 0 if it is gone. Pages that it shares with its parent since a fork count as its
    own: see `fair_memory`."""
    if os.path.exists("/proc/self/status"):
        return _sum(f"/proc/{pid}/status", _OWN) or 0
    return _from_psutil(pid)


def shared_memory(pid: int) -> int:
    """Bytes of shared memory and of files that a process maps and that are in memory; 0 where that is not told."""
    return _sum(f"/proc/{pid}/status", _SHARED) or 0


def fair_memory(pids: Iterable[int]) -> int:
    """Bytes of several processes together, where what they share since a fork counts once. Walks their page tables: a
    millisecond for each GB."""
    total = 0
    for pid in pids:
        share = _sum(f"/proc/{pid}/smaps_rollup", _SHARE)
        total += own_memory(pid) if share is None else share
    return total


def oom_kills() -> Optional[int]:
    """How many processes the kernel has ended for want of memory in this process's cgroup (in the machine, where that
    has no counter); None where the system does not say."""
    for folder in _machine._cgroup_folders("memory"):
        if not os.path.isdir(folder):
            continue  # in a container: what is mounted there is our group, under another name
        for name in ("memory.events", "memory.oom_control"):  # version 2, version 1
            found = _entry(_machine._read(folder, name), "oom_kill")
            if found is not None:
                return found
        break  # groups above count their other children as well
    return _entry(_machine._read(_machine._PROC, "vmstat"), "oom_kill")


def _entry(text: str, name: str) -> Optional[int]:
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdigit():
            return int(value)
    return None


def _sum(path: str, names: Iterable[str]) -> Optional[int]:
    """The sum of such lines, which are in kB; None if there is no such file or none of them in it."""
    try:
        with open(path) as f:
            words = [line.split() for line in f]
            found = [int(w[1]) for w in words if w and w[0] in names]
    except (OSError, IndexError, ValueError):
        return None  # it is gone, or somebody else's, or the kernel is too old
    return sum(found) * 1024 if found else None


def _from_psutil(pid: int) -> int:
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def offer_to_oom_killer() -> None:
    """Where memory runs out, the kernel is to end this process, a worker, and not the coordinator or main process."""
    try:
        with open("/proc/self/oom_score_adj", "r+") as f:
            score = int(f.read())
            f.seek(0)
            f.write(str(min(1000, score + OOM_SCORE)))
    except (OSError, ValueError):
        pass  # no Linux, or no right to: the kernel chooses by size alone
