"""The process that a run's workers are forked from, and the fence that all of them hold."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Iterator, NamedTuple, Optional

from mpsteps._begun import Occasion, session_name
from mpsteps._rundir import RunDirectory
from mpsteps._spawn import Spawner, start_zygote

PRELOAD = ("mpsteps.protocol",)
"""What all workers of a run need."""


class Parent(NamedTuple):
    """Of the worker processes. `fence`: a descriptor that all of them hold."""

    zygote: Spawner
    fence: int


@contextlib.contextmanager
def parent_of_workers(directory: RunDirectory, workers: int, started: float) -> Iterator[Optional[Parent]]:
    """The parent of so many workers, coming up; None if there are none. Whatever happens, nothing of it is left.

    `started`: of the session, seconds since the epoch. Raises EngineError if it cannot be started.
    """
    if not workers:
        yield None
        return
    fence = directory.open_fence()
    try:
        name = session_name(socket.gethostname(), os.getpid(), started)
        occasion = Occasion(directory.begun_path, name, directory.journal_path)
        zygote = start_zygote(workers, (fence,), PRELOAD, occasion)
        try:
            yield Parent(zygote, fence)
        finally:
            zygote.stop()
    finally:
        os.close(fence)
