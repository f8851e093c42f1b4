"""The most memory that single steps had: the kernel's high-water mark, started anew after each that is looked at.

Only steps that take a while are looked at: it costs about 20 microseconds, and a step of a millisecond has little time
to use memory. The mark (`ru_maxrss`) is of all memory that a process had in RAM. Where that is much, what it still maps
of shared memory and files at the end is taken off: an array that all workers see is there once, not once for each. Of
the programs that a step ran, the mark of the largest one counts, as far as the kernel tells it.
"""

from __future__ import annotations

import os
import sys
from typing import Optional

from mpsteps._memory import shared_memory

LOOK_SECONDS = 0.01
"""Steps that took less are not looked at; what they use is put down to the next one that is, on the same worker."""


MUCH_KIB = 256 * 1024
"""Below it shared memory is not taken off: to ask for it costs as much as all else here."""


class Peaks:
    """The marks of this process and of programs that have ended."""

    def __init__(self) -> None:
        self._can_reset = self._reset()
        self._own, self._programs, self._programs_cpu = self._read()

    def of_last_step(self) -> Optional[int]:
        """KiB: the peak since the last call, of this process or of the largest program that ended since; None if it
        cannot be known, because the kernel does not start the mark anew and it has not risen."""
        own, programs, cpu = self._read()
        found = own if self._can_reset or own > self._own else None
        if found is not None and found > MUCH_KIB:
            found = max(0, found - shared_memory(os.getpid()) // 1024)
        if cpu > self._programs_cpu and (found is not None or programs > self._programs):
            found = max(found or 0, programs)
        self._own, self._programs, self._programs_cpu = own, programs, cpu
        if self._can_reset:
            self._can_reset = self._reset()
        return found

    @staticmethod
    def _reset() -> bool:
        """Start this process's mark anew (Linux only); whether that could be done."""
        try:
            with open("/proc/self/clear_refs", "wb", buffering=0) as file:
                file.write(b"5")
        except OSError:
            return False
        return True

    @staticmethod
    def _read() -> "tuple[int, int, float]":
        import resource  # not there on Windows, where there are no workers

        unit = 1024 if sys.platform == "darwin" else 1
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit
        programs = resource.getrusage(resource.RUSAGE_CHILDREN)
        return own, programs.ru_maxrss // unit, programs.ru_utime + programs.ru_stime
