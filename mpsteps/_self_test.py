"""A few seconds of real steps, whose results are checked: the part of `mpsteps doctor` that runs something."""

from __future__ import annotations

import contextlib
import importlib
import os
import time
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, Dict, Iterator

from mpsteps._checkup import BAD, GOOD, NOTE, Finding
from mpsteps._machine import THREAD_VARIABLES, blas_share, usable_cores
from mpsteps.errors import MpstepsError, StepLost
from mpsteps.pool import StepPool

MANY = 3000
CHAIN = 300
BURN_SECONDS = 0.4
PATIENCE = 60.0  # seconds for any single answer: far more than it takes
_LITTLE_GAIN = 0.7  # of the speed-up that the cores promise


def self_test(workers: int) -> Iterator[Finding]:
    """Start a pool of `workers`, run steps, and tell what came out. A failure is a finding, too."""
    began = time.perf_counter()
    try:
        with StepPool(workers) as pool:
            pids = {f.result(PATIENCE) for f in [pool.submit(os.getpid) for _ in range(workers)]}
            up = time.perf_counter() - began
            fact = f"{_many(workers, 'worker')} came up in {up:.2f} s, the first step's result included."
            yield Finding("workers", GOOD, fact, "", {"workers": workers, "seconds": up, "pids": sorted(pids)})
            yield blas(pool.submit(_in_worker).result(PATIENCE), workers)
            yield _throughput(pool)
            yield _speed_up(pool, workers)
            yield _survival(pool)
    except (MpstepsError, OSError, FutureTimeout) as error:
        text = f"{type(error).__name__}: {error}"
        yield Finding("self-test", BAD, f"Steps cannot be run: {text}", "Please report it, with this whole output.")


def blas(told: Dict[str, Any], workers: int) -> Finding:
    """Threads of BLAS and OpenMP in a worker."""
    share = blas_share(workers, {})[THREAD_VARIABLES[0]]
    mine = {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ}
    counts = sorted(set(told["variables"].values()))
    fact = f"{', '.join(counts) or 'Any number'} for each worker (cores / workers = {share})."
    if told["libraries"]:
        fact += " Loaded there: " + ", ".join(f"{n} with {c}" for n, c in told["libraries"]) + "."
    if mine:
        fact += f" Set by you, and kept: {', '.join(f'{k}={v}' for k, v in mine.items())}."
    too_many = [int(v) for v in mine.values() if v.isdigit() and int(v) > int(share)]
    advice = ""
    if too_many:
        advice = f"{max(too_many)} threads in each of {_many(workers, 'worker')} are more than the cores: unset it."
    return Finding("BLAS threads", NOTE if advice else GOOD, fact, advice, told)


def _in_worker() -> Dict[str, Any]:
    """What a worker's environment and libraries say of threads."""
    libraries = []
    with contextlib.suppress(ImportError):  # without numpy there is no BLAS to look at, without the other no way to
        importlib.import_module("numpy")
        control = importlib.import_module("threadpoolctl")
        libraries = [(str(p["internal_api"]), int(p["num_threads"])) for p in control.threadpool_info()]
    variables = {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ}
    return {"variables": variables, "libraries": libraries}


def _throughput(pool: StepPool) -> Finding:
    began = time.perf_counter()
    futures = [pool.submit(_double, n) for n in range(MANY)]
    good = [f.result(PATIENCE) for f in futures] == [2 * n for n in range(MANY)]
    rate = MANY / (time.perf_counter() - began)
    began = time.perf_counter()
    last = pool.submit(_double, 1)
    for _ in range(CHAIN):
        last = pool.submit(_increment, last)
    good = good and last.result(PATIENCE) == 2 + CHAIN
    each = (time.perf_counter() - began) / CHAIN
    fact = f"{rate:,.0f} empty steps a second, {each * 1e6:.0f} µs for each of a chain; all results were right."
    if not good:
        return Finding("steps", BAD, "Steps returned wrong results.", "Please report it, with this whole output.")
    return Finding("steps", GOOD, fact.replace(",", " ", 1), "", {"per_second": rate, "chain_seconds": each})


def _speed_up(pool: StepPool, workers: int) -> Finding:
    """The same work in one worker, then in all at once: what the cores are worth."""
    rounds = pool.submit(_rounds, BURN_SECONDS).result(PATIENCE)
    alone = pool.submit(_burn, rounds).result(PATIENCE)
    began = time.perf_counter()
    for f in [pool.submit(_burn, rounds) for _ in range(workers)]:
        f.result(PATIENCE)
    together = time.perf_counter() - began
    gain = workers * alone / together
    fact = f"{_many(workers, 'worker')} compute {gain:.1f} times as fast as one."
    advice = ""
    if gain < _LITTLE_GAIN * min(workers, usable_cores()):
        advice = (
            "That is less than the cores promise: other programs use them, they are halves of hyperthreaded cores, or "
            "the machine is virtual and shares them. Fewer workers may be as fast."
        )
    return Finding("speed-up", NOTE if advice else GOOD, fact, advice, {"gain": gain, "workers": workers})


def _survival(pool: StepPool) -> Finding:
    """A step that kills its worker fails alone."""
    victim, other = pool.submit(_die), pool.submit(_double, 21)
    error = victim.exception(PATIENCE)
    if isinstance(error, StepLost) and other.result(PATIENCE) == 42 and pool.submit(_double, 4).result(PATIENCE) == 8:
        return Finding("isolation", GOOD, "A step that killed its worker failed alone; the pool went on.")
    fact = f"A step that killed its worker was told as {type(error).__name__}."
    return Finding("isolation", BAD, fact, "Please report it, with this whole output.")


def _double(n: int) -> int:
    return 2 * n


def _increment(n: int) -> int:
    return n + 1


def _die() -> None:
    os.kill(os.getpid(), 9)


def _rounds(seconds: float) -> int:
    """So many rounds of `_burn` take about `seconds` here."""
    began, rounds = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        _burn(1)
        rounds += 1
    return max(1, rounds)


def _burn(rounds: int) -> float:
    """Compute in pure Python; how long it took, seconds."""
    began = time.perf_counter()
    for _ in range(rounds):
        total = 0
        for n in range(5000):
            total += n * n % 7
    return time.perf_counter() - began


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
