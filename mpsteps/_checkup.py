"""What this machine gives to mpsteps, as findings: each a fact in a sentence, and advice where something can be done.

Everything is asked of the system as a run would meet it: nothing here is guessed from a name or a version.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
import time
from typing import Any, Dict, Iterator, List, NamedTuple, Optional

import psutil

from mpsteps import _machine
from mpsteps._ipc import shm
from mpsteps.errors import MpstepsError
from mpsteps.report import format_bytes

GOOD, NOTE, BAD = "good", "note", "bad"

CORE = ("psutil", "cloudpickle", "tblib")
OPTIONAL = (
    ("rich", "a live progress bar", "cli"),
    ("numpy", "large arrays without copies, and the demo", "demo"),
    ("scipy", "the demo", "demo"),
    ("mrcfile", "the demo", "demo"),
    ("matplotlib", "the demo's pictures", "demo"),
    ("distributed", "steps on a Dask cluster", "dask"),
    ("scipion-pyworkflow", "Scipion's protocols", "scipion"),
)
_ENOUGH_FILES = 256  # descriptors for everything but workers, which take about eight each
_FILES_A_WORKER = 8
_LITTLE_DISK = 10**9
_SLOW_SYNC = 0.02  # seconds


class Finding(NamedTuple):
    """`state`: good, note (worth knowing) or bad (does not work, or hurts); `data`: for machines."""

    topic: str
    state: str
    fact: str
    advice: str = ""
    data: Optional[Dict[str, Any]] = None


def look(workers: int) -> Iterator[Finding]:
    """All findings that need no step to run. `workers`: for how many there has to be room."""
    yield versions()
    yield cores()
    yield memory(workers)
    yield shared_memory()
    yield start_method()
    yield from limits(workers)
    yield disk(os.getcwd())
    yield optional_packages()


def versions() -> Finding:
    """Python, system, mpsteps and what it needs."""
    found = {name: _version(name) for name in ("mpsteps", *CORE)}
    found["mpsteps"] = sys.modules["mpsteps"].__version__
    fact = f"mpsteps {found['mpsteps']}, Python {platform.python_version()} ({sys.executable}), {platform.system()} "
    fact += f"{platform.release()} {platform.machine()}; " + ", ".join(f"{n} {found[n] or 'missing'}" for n in CORE)
    missing = [name for name in CORE if not found[name]]
    advice = f"Install what is missing: python -m pip install {' '.join(missing)}" if missing else ""
    return Finding("versions", BAD if missing else GOOD, fact, advice, {"python": platform.python_version(), **found})


def cores() -> Finding:
    """How many may be used, and what limits them."""
    limits_, usable = _machine.core_limits(), _machine.usable_cores()
    machine = int(limits_["machine"])
    less = {k: v for k, v in limits_.items() if k != "machine" and v < machine}
    told = ", ".join(f"{name} allows {_short(value)}" for name, value in less.items())
    fact = f"{usable} of {_many(machine, 'core')} may be used" + (f": {told}." if told else ", nothing limits them.")
    advice = ""
    if less:
        advice = {
            "affinity": "Whoever started this process pinned it to some cores (taskset, a batch system).",
            "cgroup": "A container or a batch job has a quota: ask for more there (docker --cpus, Slurm -c).",
            "Slurm": "Ask Slurm for more with -c/--cpus-per-task.",
        }[min(less, key=less.__getitem__)]
        advice += f" More than {_many(usable, 'worker')} would only wait for each other."
    elif os.environ.get("SLURM_JOB_ID") and "Slurm" not in limits_:
        advice = "This is a Slurm job without --cpus-per-task: say there how many cores it needs."
    data = {"usable": usable, **limits_}
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > 0.5 * usable + 0.5:
        fact += f" Other programs keep {load:.1f} of them busy (load average of the last minute)."
    return Finding("cores", NOTE if advice else GOOD, fact, advice, {**data, "load": load})


def memory(workers: int) -> Finding:
    """What there is, and what each worker's part of it would be."""
    usable, now, swap = _machine.usable_memory(), psutil.virtual_memory(), psutil.swap_memory()
    free = min(usable, now.available)
    fact = f"{format_bytes(usable)} may be used, {format_bytes(free)} are free now: "
    fact += f"{format_bytes(free / workers)} for each of {_many(workers, 'worker')}."
    advice = ""
    if usable < now.total:
        fact += f" (The machine has {format_bytes(now.total)}; a cgroup limits it.)"
    if swap.used > 0.1 * max(1, swap.total) and swap.used > 10**9:
        advice = f"{format_bytes(swap.used)} are swapped out: the machine is short of memory, steps will be slow."
    return Finding(
        "memory", NOTE if advice else GOOD, fact, advice,
        {"usable": usable, "free": free, "total": now.total, "swap_used": swap.used},
    )  # fmt: skip


def shared_memory() -> Finding:
    """Whether blocks of it can be made, and of what kind."""
    data: Dict[str, Any] = {"memfd": hasattr(os, "memfd_create")}
    try:
        data["dev_shm"] = shutil.disk_usage("/dev/shm").total
    except OSError:
        data["dev_shm"] = None
    try:
        os.close(shm.create(1 << 20))
    except (MpstepsError, OSError) as error:
        return Finding("shared memory", BAD, f"None can be had: {error}", "Workers cannot be reached without it.", data)
    if not data["memfd"]:
        fact = "Files that are deleted at once: this system has no memfd."
        return Finding("shared memory", GOOD, fact, "", data)
    size = "" if data["dev_shm"] is None else f" (/dev/shm, of {format_bytes(data['dev_shm'])}, is not used)"
    return Finding("shared memory", GOOD, f"Nameless blocks (memfd), which leave nothing behind{size}.", "", data)


def start_method() -> Finding:
    """How workers come to be, and why so."""
    if os.name == "nt":
        return Finding("start of workers", BAD, "Worker processes are not supported on Windows.", "Use Linux or macOS.")
    fact = (
        "A small process of ours is started anew and forks the workers: threads and libraries of your program cannot "
        "block them, and no __main__ guard is needed."
    )
    if platform.system() == "Linux":
        fact += " It ends all that steps have started, even if yours is killed."
        return Finding("start of workers", GOOD, fact)
    advice = "On this system, programs that steps start and detach may outlive a run that is killed."
    return Finding("start of workers", NOTE, fact, advice)


def limits(workers: int) -> Iterator[Finding]:
    """Open files and processes."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH_FILES + _FILES_A_WORKER * workers
    few = soft != resource.RLIM_INFINITY and soft < wanted
    fact = f"{'Any number of' if soft == resource.RLIM_INFINITY else soft} files may be open at once."
    more = max(wanted, 4096) if hard == resource.RLIM_INFINITY else min(max(wanted, 4096), hard)
    advice = f"{_many(workers, 'worker')} may need {wanted}: ulimit -n {more}"
    yield Finding("open files", BAD if few else GOOD, fact, advice if few else "", {"soft": soft, "hard": hard})
    most = [int(t) for t in (_machine._read(f, "pids.max") for f in _machine._cgroup_folders("pids")) if t.isdigit()]
    own, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if own != resource.RLIM_INFINITY:
        most.append(own)
    if most and min(most) < 50 + 4 * workers:
        advice = "Workers, and programs of steps, may not get started: raise it (ulimit -u, docker --pids-limit)."
        yield Finding("processes", NOTE, f"At most {min(most)} processes and threads.", advice, {"limit": min(most)})


def disk(folder: str) -> Finding:
    """Where runs would be written: this folder."""
    data: Dict[str, Any] = {"folder": folder, "free": shutil.disk_usage(folder).free, "kind": _file_system(folder)}
    fact = f"{folder}: {format_bytes(data['free'])} free" + (f", {data['kind']}" if data["kind"] else "")
    try:
        data["sync_seconds"] = _sync_seconds(folder)
    except OSError as error:
        return Finding("disk", NOTE, f"{fact}; it cannot be written to ({error.strerror}).",
                       "Start runs elsewhere, or give --run-dir.", data)  # fmt: skip
    fact += f"; making a record safe from power failure takes {data['sync_seconds'] * 1e3:.1f} ms."
    advice = ""
    if data["free"] < _LITTLE_DISK:
        advice = "That is little: a run that fills the disk stops."
    elif data["sync_seconds"] > _SLOW_SYNC:
        advice = "With --durability power each turn of the loop waits so long; the default does not."
    return Finding("disk", NOTE if advice else GOOD, fact, advice, data)


def optional_packages() -> Finding:
    """What is installed of that which mpsteps can use."""
    found = {name: _version(name) for name, _, _ in OPTIONAL}
    have = ", ".join(f"{name} {version}" for name, version in found.items() if version) or "none"
    lacking: Dict[str, List[str]] = {}
    for name, what, extra in OPTIONAL:
        if not found[name]:
            lacking.setdefault(extra, []).append(f"{name} ({what})")
    parts = [f'{", ".join(names)}: pip install "mpsteps[{extra}]"' for extra, names in lacking.items()]
    advice = f"Not installed: {'; '.join(parts)}" if parts else ""
    return Finding("optional packages", GOOD, have, advice, found)


def _version(name: str) -> Optional[str]:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _file_system(folder: str) -> str:
    """The kind of file system that a folder is on, '' if it cannot be told."""
    best = ("", "")
    try:
        for part in psutil.disk_partitions(all=True):
            point = part.mountpoint.rstrip("/") + "/"
            if f"{os.path.realpath(folder)}/".startswith(point) and len(point) >= len(best[0]):
                best = (point, part.fstype)
    except (OSError, psutil.Error):
        return ""
    return best[1]


def _sync_seconds(folder: str) -> float:
    """The median of five: 4 KiB written and synced, in a file without a name."""
    times = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(5):
            began = time.perf_counter()
            file.write(b"\0" * 4096)
            file.flush()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - began)
    return sorted(times)[2]


def _short(value: float) -> str:
    return f"{value:.0f}" if value == int(value) else f"{value:.1f}"


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
