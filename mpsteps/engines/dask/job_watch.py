"""Jobs that end before their Dask worker is there: a node where Python is not found, a prologue that fails.

Nobody else would notice: to dask-jobqueue, as to the scheduler, they are jobs that are still to come.
"""

from __future__ import annotations

import asyncio
import getpass
from typing import Dict, List, Optional, Set

QUEUE_ANSWER_SECONDS = 10.0
"""Slurm may take so long to tell its queue; else it is asked again later."""


class JobWatch:
    """Compares what was submitted with Slurm's queue. `fruitless`: jobs that have come to nothing since the last one
    of which something has come."""

    def __init__(self) -> None:
        self.fruitless = 0
        self._come: Set[str] = set()  # names of Dask workers that have been there

    async def look(self, jobs: Dict[str, str], come: Set[str]) -> List[str]:
        """`jobs`: the number of each job by the name of its Dask worker; `come`: the Dask workers that are there. The
        names of those whose job has ended, and which never came."""
        if come - self._come:
            self.fruitless = 0
        self._come |= come
        waiting = {name: job for name, job in jobs.items() if name not in self._come}
        if not waiting:
            return []
        queue = await _queue()
        if queue is None:
            return []
        gone = [name for name, job in waiting.items() if job not in queue]
        self.fruitless += len(gone)
        return gone


async def _queue() -> Optional[Set[str]]:
    """The numbers of this user's jobs that wait or run; None: Slurm does not say."""
    quiet = asyncio.subprocess.DEVNULL
    try:
        process = await asyncio.create_subprocess_exec(
            "squeue", "-h", "-o", "%i", "-u", getpass.getuser(), stdin=quiet, stdout=asyncio.subprocess.PIPE,
            stderr=quiet,
        )  # fmt: skip
    except (OSError, KeyError):
        return None
    try:
        told, _ = await asyncio.wait_for(process.communicate(), QUEUE_ANSWER_SECONDS)
    except asyncio.TimeoutError:
        process.kill()
        await process.wait()
        return None
    return None if process.returncode else set(told.decode().split())
