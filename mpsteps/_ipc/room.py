"""How much memory may be reserved: looked at *before* reserving, since the kernel says no too late.

Reserving a memfd takes page after page until there is none left: only then comes an error, and by then, or instead of
it, the OOM killer has ended some process of this machine or job. A request that cannot be met must be refused here.
"""

from __future__ import annotations

import sys
from typing import Iterator

from mpsteps import _machine

SHARE = 0.75
"""At most so much of the memory that is free may be reserved at once: others want some, too."""


def available() -> int:
    """Bytes that are free now, or can be freed by dropping cached files: in the machine, and in every cgroup that this
    process is in. `sys.maxsize` where the system does not say (it is not Linux)."""
    return max(0, min([sys.maxsize, *_of_machine(), *_of_cgroups()]))


def refusal(size: int) -> str:
    """Why `size` bytes should not be reserved; '' if they may be."""
    free = available()
    if size <= free * SHARE:
        return ""
    return f"there is no room for {size} bytes of shared memory: only {free} bytes of memory are free"


def _of_machine() -> Iterator[int]:
    for line in _machine._read(_machine._PROC, "meminfo").splitlines():
        words = line.split()
        if words and words[0] == "MemAvailable:" and words[1].isdigit():
            yield int(words[1]) * 1024


def _of_cgroups() -> Iterator[int]:
    """What is left of each limit: version 2, then 1. Pages of files that were not used of late do not count."""
    for folder in _machine._cgroup_folders("memory"):
        for limit, usage, cached in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            numbers = [_machine._read(folder, name) for name in (limit, usage)]
            if all(text.isdigit() for text in numbers):
                yield int(numbers[0]) - int(numbers[1]) + _entry(_machine._read(folder, "memory.stat"), cached)


def _entry(text: str, name: str) -> int:
    for line in text.splitlines():
        words = line.split()
        if len(words) == 2 and words[0] == name and words[1].isdigit():
            return int(words[1])
    return 0
