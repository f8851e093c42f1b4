"""Forty parallel steps that change everything in `self`, many times, each run compared with one in a single process.

    python tests/stress_state.py --runs 200
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from merging_protocol import Merges


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


def main() -> int:
    """0: all runs left the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--threads", type=int, default=0, help="workers; 0: 2, 3, 4, ... 8 in turn")
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        expected = run(os.path.join(folder, "reference"), "inline", 1)
        for i in range(options.runs):
            found = run(os.path.join(folder, str(i)), "processes", options.threads or 2 + i % 7)
            if found != expected:
                print(f"run {i} left {found}, not {expected}")
                return 1
    print(f"{options.runs} runs of 40 steps, all exact, in {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
