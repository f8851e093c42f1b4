"""What every test gets: a check that it leaves nothing behind, and a temporary directory that is short and private."""

from __future__ import annotations

import gc
import glob
import os
import signal
import tempfile
import threading
import time
import uuid
from typing import Dict, Iterator, List, Set

import psutil
import pytest

TOKEN = f"mpsteps-tests-{uuid.uuid4().hex}"
"""In the environment of every process that tests start, also of those that have detached themselves."""
os.environ["MPSTEPS_TESTS"] = TOKEN

# Whoever starts the tests in a shell's background, or by nohup, has every program that they start ignore signals.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

_PATIENCE = 2.0  # seconds: what a dying process may take


def processes_of_tests() -> Set[int]:
    """All processes but this one that were started by tests, however many generations below, and have not ended."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        found.add(process.pid)
    if os.path.isdir("/proc/self"):
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) != os.getpid() and has_token(int(name), TOKEN):
                found.add(int(name))
    return found


def has_token(pid: int, token: str) -> bool:
    """Whether a process was started with `token` somewhere in its environment (Linux)."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as f:
            return token.encode() in f.read()
    except OSError:
        return False  # it went meanwhile, or is somebody else's


def _descriptors() -> List[str]:
    """Where this process's descriptors lead, without those that Python and matplotlib (fonts) open and keep."""
    found = []
    for fd in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        try:
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:
            continue  # the one that listed them
    return sorted(t for t in found if not t.startswith(("/dev/", "/proc/")) and not t.endswith((".ttf", ".otf")))


def _threads() -> Set[str]:
    return {t.name for t in threading.enumerate() if t.name.startswith("mpsteps")}


def _files() -> Set[str]:
    """Shared memory and temporary files that carry our name."""
    return {
        path
        for folder in ("/dev/shm", tempfile.gettempdir())
        for path in glob.glob(os.path.join(folder, "*mpsteps*"))
        if os.path.isfile(path)
    }


def _mappings() -> int:
    """How many blocks of shared memory of ours are mapped into this process."""
    try:
        with open("/proc/self/maps") as f:
            return sum("memfd:mpsteps" in line for line in f)
    except OSError:
        return 0


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Processes, threads, descriptors and shared memory of a test must be gone when it ends (waits up to 2 s)."""
    processes, descriptors, threads, files = processes_of_tests(), _descriptors(), _threads(), _files()
    mappings = _mappings()
    yield
    deadline = time.monotonic() + _PATIENCE
    while True:
        left: Dict[str, object] = {
            "processes": [_describe(pid) for pid in processes_of_tests() - processes],
            "threads": _threads() - threads,
            "files": _files() - files,
        }
        if len(_descriptors()) > len(descriptors):
            left["descriptors"] = f"{_descriptors()} (before: {descriptors})"
        if _mappings() > mappings:
            left["mappings of shared memory"] = _mappings() - mappings
        left = {what: which for what, which in left.items() if which}
        if not left:
            return
        if time.monotonic() > deadline:
            pytest.fail(f"left behind: {left}")
        gc.collect()
        time.sleep(0.01)


def _describe(pid: int) -> str:
    try:
        process = psutil.Process(pid)
        return f"{pid} {process.status()} {' '.join(process.cmdline())[:200]}"
    except psutil.Error:
        return str(pid)


ONCE = frozenset({
    "test_bad_input", "test_cli", "test_demo_ctf", "test_demo_micrograph", "test_demo_output", "test_demo_picking",
    "test_demo_protocol", "test_diagram", "test_docs", "test_export", "test_form", "test_history",
    "test_journal_faults", "test_journal_format", "test_layering", "test_orphans", "test_parity", "test_progress",
    "test_random_graphs", "test_records", "test_resume", "test_ring_interleavings", "test_rundir",
    "test_scheduler_random", "test_scheduler_stateful", "test_ahead", "test_balance", "test_ranks", "test_stress",
    "test_recorder", "test_begun", "test_ends", "test_kills", "test_kill_points", "test_worker_crashes",
    "test_statelog", "test_targets", "test_validators", "test_params", "test_programs", "test_arena", "test_blocks",
    "test_large", "test_shared_array", "test_slots", "test_graph", "test_rests", "test_chaos",
    "test_lock_queue", "test_lock_state", "test_lock_resume", "test_lock", "test_scheduler", "test_events",
    "test_peaks", "test_step_seed", "test_in_order", "test_memory_needs", "test_limits", "test_local_adds",
    "test_large_runs", "test_following", "test_crashes", "test_ring_crashes", "test_pool_steps", "test_deadlines",
    "test_coordinator_turns", "test_run_processes", "test_writeback", "test_merge",
})  # fmt: skip
"""Modules whose tests do not depend on the Python version, but for those marked `versions`."""


def pytest_collection_modifyitems(items: List[pytest.Item]) -> None:
    """Mark what the matrix runs on one Python only."""
    for item in items:
        if item.path.stem in ONCE and item.get_closest_marker("versions") is None:
            item.add_marker(pytest.mark.once)
