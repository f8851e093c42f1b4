"""What does one dependent step cost? Empty steps, each after the one before it.

::

    o -> o -> o -> ... -> o        5,000 steps; nothing to run in parallel: pure latency

mpsteps: a whole protocol run (start and end of its workers included), and a warm StepPool with `after=`.
ProcessPoolExecutor: the next call is submitted when the result of the one before it is there.
"""

from __future__ import annotations

import concurrent.futures
import time
from typing import Any, Dict, List, Optional, Sequence

import mpsteps
from perf._harness import check, interleaved, options, save, table
from perf._protocols import empty_run


def next_number(i: int) -> int:
    """What a step of the chain computes."""
    return i + 1


def chain_of_results(pool: Any, count: int) -> float:
    """Seconds for `count` calls, each with the result of the one before."""
    started = time.perf_counter()
    value = 0
    for _ in range(count):
        value = pool.submit(next_number, value).result()
    took = time.perf_counter() - started
    check(value == count, "the last number")
    return took


def chain_of_steps(pool: mpsteps.StepPool, count: int) -> float:
    """The same, submitted at once: the pool knows the prerequisites."""
    started = time.perf_counter()
    future = pool.submit(next_number, 0)
    for _ in range(count - 1):
        future = pool.submit_step(next_number, future)
    value = future.result()
    took = time.perf_counter() - started
    check(value == count, "the last number")
    return took


def main(argv: Optional[Sequence[str]] = None) -> List[Dict[str, Any]]:
    """Measure, print, save."""
    args = options(argv, __doc__)
    count = 50 if args.smoke else 5_000
    with mpsteps.StepPool(args.workers) as steps, concurrent.futures.ProcessPoolExecutor(args.workers) as ppe:
        seconds = interleaved(
            {
                "ProcessPoolExecutor": lambda: chain_of_results(ppe, count),
                "mpsteps.StepPool": lambda: chain_of_steps(steps, count),
                "mpsteps protocol, journal on": lambda: empty_run(count, True, args.workers),
            },
            args.runs,
        )
    results = [table(f"chain: {count:,} empty dependent steps", seconds, count, "ProcessPoolExecutor")]
    save(args.json, results)
    return results


if __name__ == "__main__":
    main()
