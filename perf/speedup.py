"""How much faster with N workers? Steps that compute in pure Python, 1 ms to 1 s each, against N bare processes.

::

    1 worker     [ step ][ step ][ step ][ step ][ step ][ step ] ...
    N workers    [ step ][ step ][ step ] ...
                 [ step ][ step ][ step ] ...

Speed-up: the time of the same steps in a plain loop, in this process and this round, by the time of the run. Bare
processes are the most that the machine gives: N of `multiprocessing.Process`, each with its share of the steps, known
beforehand, and nothing to decide; in their time is their start and end. In parentheses: the speed-up as a share of
theirs. (Cores that share their units, or a machine that others use, keep the bare ones from N as well.)

Pools are up and warm. A run of a protocol also starts and ends its workers, which weighs where all steps together take
half a second; "engine only" is the same run from its first step's dispatch to the end of its last.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import time
from typing import Any, Dict, List, Optional, Sequence, Tuple

from perf._harness import Job, Result, Row, Timing, brief_time, grid, runs_of, script
from perf._systems import System, chosen, graph_job, in_turn
from perf._work import Board, Call, Layers, board, calls, iterations_per_second, step

USUAL = ("ppe", "pool", "steppool", "protocol")
BARE = "bare processes"
LOOP = "plain loop"
SIZES = {0.001: 500, 0.01: 64, 0.05: 32, 1.0: 4}  # seconds a step: how many
HEADLINE = 0.05


def measure(args: argparse.Namespace) -> List[Result]:
    """One table for each number of workers."""
    sizes = {0.001: 20, HEADLINE: 2} if args.smoke else SIZES
    rate = iterations_per_second()
    results = []
    for workers in range(1, args.workers + 1):
        own = copy.copy(args)
        own.workers = workers
        results.append(_measure(own, {seconds: (count, round(seconds * rate)) for seconds, count in sizes.items()}))
    return results


def _measure(args: argparse.Namespace, sizes: Dict[float, Tuple[int, int]]) -> Result:
    """`sizes`: seconds a step -> (how many, iterations of each)."""
    with board(max(count for count, _ in sizes.values())) as marks:
        baselines = [
            _named(job, seconds)
            for seconds, (count, iterations) in sizes.items()
            for job in (_loop(marks, count, iterations), _bare(marks, count, iterations, args.workers))
        ]

        def jobs(system: System) -> List[Job]:
            return [_named(graph_job(system, marks, Layers(n, 1), i), seconds) for seconds, (n, i) in sizes.items()]

        rows = in_turn(args, chosen(args, USUAL), jobs, runs_of(args), baselines)
    return _table(rows, list(sizes), args.workers)


def _named(job: Job, seconds: float) -> Job:
    """With the step's length in the title."""
    return job._replace(measure=lambda: {f"{title} @ {seconds}": s for title, s in job.measure().items()})


def _loop(marks: Board, count: int, iterations: int) -> Job:
    todo = calls(Layers(count, 1), iterations)

    def measure_loop() -> Timing:
        started = time.perf_counter()
        run_share(todo)
        took = time.perf_counter() - started
        marks.verify(count, LOOP)
        return {LOOP: took}

    return Job(measure_loop, count)


def _bare(marks: Board, count: int, iterations: int, workers: int) -> Job:
    todo = calls(Layers(count, 1), iterations)

    def measure_bare() -> Timing:
        started = time.perf_counter()
        processes = [multiprocessing.Process(target=run_share, args=(todo[w::workers],)) for w in range(workers)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        took = time.perf_counter() - started
        marks.verify(count, BARE)
        return {BARE: took}

    return Job(measure_bare, count)


def run_share(share: Sequence[Call]) -> None:
    """All steps of one worker."""
    for call in share:
        step(*call)


def _table(rows: Dict[str, Row], sizes: List[float], workers: int) -> Result:
    titles = [name.rpartition(" @ ")[0] for name in rows if name.endswith(f" @ {sizes[0]}")]
    gains: Dict[str, Dict[float, float]] = {}
    for title in titles:
        gains[title] = {s: rows[f"{LOOP} @ {s}"].median / rows[f"{title} @ {s}"].median for s in sizes}
    cells = {title: [f"{g:.2f} ({g / gains[BARE][s]:.0%})" for s, g in gains[title].items()] for title in titles}
    del cells[LOOP]
    who = f"{workers} worker{'s' * (workers > 1)}"
    title = f"speedup: {who}, steps of pure Python (in parentheses: of bare processes')"
    grid(title, [f"{rows[f'{LOOP} @ {s}'].steps} x {brief_time(s)}" for s in sizes], cells)
    result: Dict[str, Any] = {"question": f"speedup, {who}", "title": title, "unit": "x", "workers": workers}
    result["values"] = {t: gains[t][HEADLINE] for t in titles if t != LOOP}
    result["curves"] = {t: sorted(gains[t].items()) for t in titles if t != LOOP}
    result["seconds"] = {name: row.seconds for name, row in rows.items()}
    return result


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Measure, print, save."""
    script(argv, __doc__, measure)


if __name__ == "__main__":
    main()
