"""Memory: of a tree of processes while something runs, and of what runs in a process of its own."""

from __future__ import annotations

import multiprocessing
import sys
import threading
import traceback
from typing import Any, Callable, Optional

import psutil

from perf._harness import check

INTERVAL = 0.02
"""Seconds between two looks: longer than a look takes, shorter than an array travels."""


class PeakPss:
    """The largest proportional set size, in bytes, of this process and all its descendants within the block.

    Proportional: a page that three processes share counts a third for each, so shared memory counts once. `peak` stays
    None where the system does not tell (macOS).
    """

    def __init__(self) -> None:
        self.peak: Optional[int] = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="perf-pss", daemon=True)

    def __enter__(self) -> "PeakPss":
        if sys.platform == "linux":
            self._thread.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._over.set()
        if sys.platform == "linux":
            self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while True:
            self.peak = max(self.peak or 0, sum(pss(p) for p in [me, *me.children(recursive=True)]))
            if self._over.wait(INTERVAL):
                return


def pss(process: psutil.Process) -> int:
    """Proportional set size of one process."""
    try:
        return int(process.memory_full_info().pss)
    except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
        return 0  # it has just ended


def peak_rss() -> int:
    """The largest resident set size that this process has had, in bytes."""
    try:
        with open("/proc/self/status", encoding="ascii") as f:
            return next(int(line.split()[1]) * 1024 for line in f if line.startswith("VmHWM"))
    except FileNotFoundError:  # not Linux, where getrusage would count what this process was forked from
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def in_fresh_process(fn: Callable[..., Any], *args: Any) -> Any:
    """`fn(*args)` in a process that has done nothing else; whatever fails there stops the script here."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_tell, args=(there, fn, args))
    process.start()
    there.close()
    try:
        result, problem = here.recv()
    except EOFError:
        result, problem = None, "the process ended without a word"
    process.join()
    check(not problem, f"{fn.__name__}{args} in a process of its own: {problem}")
    return result


def _tell(pipe: Any, fn: Callable[..., Any], args: Any) -> None:
    try:
        answer = (fn(*args), "")
    except BaseException as error:  # also SystemExit, which is how a wrong result is told
        answer = (None, str(error) if isinstance(error, SystemExit) else traceback.format_exc())
    pipe.send(answer)
