"""How many empty steps a second? Independent ones, each its own message.

::

    o  o  o  o  ...  o        10,000 steps, no edges

mpsteps: a whole protocol run (insertion, journal, start and end of its workers included), and a warm StepPool.
ProcessPoolExecutor and multiprocessing.Pool: one `submit` or `apply_async` a step, on a warm pool.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import time
from typing import Any, Dict, List, Optional, Sequence

import mpsteps
from perf._harness import check, interleaved, options, save, table
from perf._protocols import empty_run


def submit_all(pool: Any, count: int) -> float:
    """Seconds to submit `count` calls and to have all their results."""
    started = time.perf_counter()
    futures = [pool.submit(abs, i) for i in range(count)]
    total = sum(f.result() for f in futures)
    took = time.perf_counter() - started
    check(total == count * (count - 1) // 2, "the sum of the results")
    return took


def apply_all(pool: Any, count: int) -> float:
    """The same with multiprocessing.Pool."""
    started = time.perf_counter()
    results = [pool.apply_async(abs, (i,)) for i in range(count)]
    total = sum(r.get() for r in results)
    took = time.perf_counter() - started
    check(total == count * (count - 1) // 2, "the sum of the results")
    return took


def main(argv: Optional[Sequence[str]] = None) -> List[Dict[str, Any]]:
    """Measure, print, save."""
    args = options(argv, __doc__)
    count = 200 if args.smoke else 10_000
    with mpsteps.StepPool(args.workers) as steps, concurrent.futures.ProcessPoolExecutor(
        args.workers
    ) as ppe, multiprocessing.Pool(args.workers) as pool:
        seconds = interleaved(
            {
                "ProcessPoolExecutor": lambda: submit_all(ppe, count),
                "multiprocessing.Pool": lambda: apply_all(pool, count),
                "mpsteps.StepPool": lambda: submit_all(steps, count),
                "mpsteps protocol, journal on": lambda: empty_run(count, False, args.workers),
            },
            args.runs,
        )
    results = [table(f"wide: {count:,} empty independent steps", seconds, count, "ProcessPoolExecutor")]
    save(args.json, results)
    return results


if __name__ == "__main__":
    main()
