"""Forty parallel steps that change everything in `self`, many times, each run compared with one in a single process.

    python tests/stress_state.py --runs 200
    python tests/stress_state.py --runs 200 --lock --threads 8

With `--lock`, what they do is right only under `self._lock`, and each run is compared with threads on one object.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from lock_protocols import Shares
from merging_protocol import Merges

TIMES = 10
"""How often each step takes the lock."""


def insert(protocol: Merges) -> None:
    """Forty steps that do not depend on each other."""
    for i in range(40):
        protocol._insertFunctionStep("work", i, prerequisites=[])


def run(folder: str, engine: str, threads: int) -> object:
    """What one run leaves."""
    protocol = Merges(insert, workingDir=folder, numberOfThreads=threads)
    protocol.run(engine=engine)
    assert protocol.isFinished(), protocol.getErrorMessage()
    return protocol.plain()


def insert_locking(protocol: Shares) -> None:
    """The same, for what needs the lock."""
    for i in range(40):
        protocol._insertFunctionStep("work", i, TIMES, prerequisites=[])


def run_locking(folder: str, threads: int) -> object:
    """What one run leaves."""
    protocol = Shares(insert_locking, workingDir=folder, numberOfThreads=threads)
    protocol.run(engine="processes")
    assert protocol.isFinished(), protocol.getErrorMessage()
    return protocol.plain()


def in_threads() -> object:
    """What threads leave, on one object with a `threading.RLock`."""
    protocol = Shares()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: protocol.work(i, TIMES), range(40)))
    return protocol.plain()


def main() -> int:
    """0: all runs left the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--threads", type=int, default=0, help="workers; 0: 2, 3, 4, ... 8 in turn")
    parser.add_argument("--lock", action="store_true", help="steps that share self._lock")
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        expected = in_threads() if options.lock else run(os.path.join(folder, "reference"), "inline", 1)
        for i in range(options.runs):
            threads, place = options.threads or 2 + i % 7, os.path.join(folder, str(i))
            found = run_locking(place, threads) if options.lock else run(place, "processes", threads)
            if found != expected:
                print(f"run {i} left {found}, not {expected}")
                return 1
    print(f"{options.runs} runs of 40 steps, all exact, in {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
