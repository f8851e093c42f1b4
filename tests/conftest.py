"""What every test gets: a check that it leaves nothing behind, and a short path for run directories."""

from __future__ import annotations

import gc
import os
import threading
import time
from typing import Iterator, List, Set

import psutil
import pytest


def _children() -> Set[int]:
    try:
        return {p.pid for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE}
    except psutil.Error:
        return set()


def _descriptors() -> List[str]:
    """Where this process's descriptors lead, without those that Python itself opens and keeps."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:
            continue  # the one that listed them
    return sorted(t for t in found if not t.startswith(("/dev/", "/proc/")) and not t.endswith(".ttf"))


def _threads() -> Set[str]:
    return {t.name for t in threading.enumerate() if t.name.startswith("mpsteps")}


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Processes, threads, descriptors and shared memory of a test must be gone when it ends (waits up to 2 s)."""
    children, descriptors, threads = _children(), _descriptors() if os.path.isdir("/proc/self/fd") else [], _threads()
    yield
    gc.collect()
    deadline = time.monotonic() + 2
    while True:
        left = _children() - children
        more = len(_descriptors()) - len(descriptors) if descriptors else 0
        running = _threads() - threads
        if not left and more <= 0 and not running:
            return
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)
    assert not left, f"processes left behind: {[_describe(pid) for pid in left]}"
    assert not running, f"threads left behind: {running}"
    assert more <= 0, f"descriptors left behind: {_descriptors()} (before: {descriptors})"


def _describe(pid: int) -> str:
    try:
        return f"{pid} {' '.join(psutil.Process(pid).cmdline())[:200]}"
    except psutil.Error:
        return str(pid)
