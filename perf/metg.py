"""How short may steps be? METG(50%), the minimum effective task granularity of Task Bench (Slaughter et al., SC 2020).

::

    o   o   o   o        stencil_1d, 4 wide: each step waits for the one above it and for that one's neighbours
    | X | X | X |
    o   o   o   o        every step computes (pure Python) for the same time, its length
    | X | X | X |
    o   o   o   o        10 to 1,000 layers, so that a run takes about a third of a second

The efficiency of a run is (its steps' sequential compute time / workers) / wall time. METG(50%) is the shortest length
at which it is at least 0.5: below it, more time is lost than used. For each system, lengths (powers of two
microseconds) are tried until they lie on both sides; seven of them, around the crossing, are then measured in turn with
all other systems, each beside a plain loop that tells what the same steps take one after another. METG is interpolated
between the two lengths beside the crossing, over the logarithm of the length, on the nearest curve that never falls.

In the time: as in `stencil`, of pools that are up and warm. Of a protocol it is "engine only", from its first step's
dispatch to the end of its last, journal on: how long its workers take to start depends on no step's length. Threads
wait for the GIL: with 2 of them even endless steps come to 0.5 at best, and what is told of them then is noise.
Scipion, at seconds a step, is not run.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from typing import Dict, List, Optional, Sequence, Tuple

from perf._harness import Job, Result, Timing, brief_time, grid, runs_of, script
from perf._ours import WHOLE
from perf._systems import ALL, System, chosen, graph_job, in_turn
from perf._work import Board, Layers, board, busy, iterations_per_second

NOT_HERE = ("loop", "scipion")
WIDTH, MOST_LAYERS = 4, 1_000
RUN_SECONDS = 0.3  # a run's aim
LONGEST = 1 << 19  # us: half a second
LOOP = ", loop"

Curve = List[Tuple[float, float]]
"""(length in seconds, efficiency), by length; the length is what the plain loop took, not what was aimed at."""


def measure(args: argparse.Namespace) -> List[Result]:
    """One table, and a curve for each system."""
    rate = iterations_per_second()
    with board(WIDTH * MOST_LAYERS) as marks:

        def jobs(system: System) -> List[Job]:
            layers = {16: 5, 64: 5} if args.smoke else _find_lengths(system, marks, rate)
            return [_beside_loop(_job(system, marks, rate, us, n), us, rate) for us, n in layers.items()]

        names = [name for name in chosen(args, ALL) if name not in NOT_HERE]
        rows = in_turn(args, names, jobs, runs_of(args))
    curves: Dict[str, Curve] = {}
    for name, row in rows.items():
        title, _, us = name.rpartition(" @ ")
        if not us.endswith(LOOP):
            loop = rows[name + LOOP]
            # Each run by the loop just before it: what disturbs this machine for seconds disturbs both.
            gain = statistics.median(alone / wall for alone, wall in zip(loop.seconds, row.seconds))
            curves.setdefault(title, []).append((loop.per_step(), gain / args.workers))
    return [_table({title: sorted(curve) for title, curve in curves.items()})]


def _find_lengths(system: System, marks: Board, rate: float) -> Dict[int, int]:
    """Seven lengths in microseconds around the one at which efficiency crosses one half, from single runs; for each,
    how many layers a run has."""
    overhead = min(_try(system, marks, rate, 0, 20) for _ in range(2))

    def layers(us: int) -> int:
        return int(max(10, min(MOST_LAYERS, RUN_SECONDS / WIDTH / (overhead + us * 1e-6 / system.workers))))

    def is_enough(us: int) -> bool:
        return us * 1e-6 / system.workers >= 0.5 * _try(system, marks, rate, us, layers(us))

    us = 1 << max(0, round(math.log2(overhead * system.workers * 1e6)))
    if is_enough(us):
        while us > 1 and is_enough(us // 2):
            us //= 2
    else:
        most = min(LONGEST, us << 7)
        while us < most and not is_enough(us):
            us *= 2
    return {u: layers(u) for u in (us << 3 >> k for k in range(7)) if u}


def _try(system: System, marks: Board, rate: float, us: int, layers: int) -> float:
    """Seconds a step in one run; of a protocol's two, those of the engine."""
    job = _job(system, marks, rate, us, layers)
    return min(job.measure().values()) / job.steps


def _job(system: System, marks: Board, rate: float, us: int, layers: int) -> Job:
    return graph_job(system, marks, Layers(WIDTH, layers), round(us * 1e-6 * rate))


def _beside_loop(job: Job, us: int, rate: float) -> Job:
    """The same, and just before it what as many steps take one after another, without any system.

    Titles have the length behind them. The time in which a protocol's workers start and end is left out.
    """
    iterations = round(us * 1e-6 * rate)
    times = max(1, 20_000 // us)

    def run() -> Timing:
        started = time.perf_counter()
        for _ in range(times):
            busy(iterations)
        loop = (time.perf_counter() - started) / times * job.steps
        timing = {f"{title} @ {us}": seconds for title, seconds in job.measure().items() if title != WHOLE}
        return {**timing, **{name + LOOP: loop for name in timing}}

    return job._replace(measure=run)


def metg(curve: Curve) -> Optional[float]:
    """The length in seconds at which efficiency crosses one half; None if it stays below.

    What is above at the shortest length is given as that length: it is less then.
    """
    before: Optional[Tuple[float, float]] = None
    for length, efficiency in _rising(curve):
        if efficiency >= 0.5:
            if before is None:
                return length
            share = (0.5 - before[1]) / (efficiency - before[1])
            return before[0] * math.exp(share * math.log(length / before[0]))
        before = length, efficiency
    return None


def _rising(curve: Curve) -> Curve:
    """The nearest curve that never falls (isotonic regression): longer steps are not less efficient, figures are."""
    pools: List[Tuple[float, int]] = []  # (mean efficiency, of so many points)
    for _, efficiency in curve:
        mean, count = efficiency, 1
        while pools and pools[-1][0] >= mean:
            other, others = pools.pop()
            mean, count = (mean * count + other * others) / (count + others), count + others
        pools.append((mean, count))
    means = [mean for mean, count in pools for _ in range(count)]
    return [(length, mean) for (length, _), mean in zip(curve, means)]


def _table(curves: Dict[str, Curve]) -> Result:
    values = {title: metg(curve) for title, curve in curves.items()}
    cells = {}
    for title in sorted(curves, key=lambda t: values[t] or math.inf):
        value = values[title]
        points = [f"{brief_time(length)}: {efficiency:.2f}" for length, efficiency in curves[title]]
        cells[title] = [brief_time(value) if value else "none", *points, *[""] * (7 - len(points))]
    title = "metg: shortest steps with which the workers still do useful work half of the time; stencil_1d, width 4"
    grid(title, ["METG(50%)", "length: efficiency", *[""] * 6], cells)
    return {"question": "metg", "title": title, "unit": "s", "values": values, "curves": curves}


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Measure, print, save."""
    script(argv, __doc__, measure)


if __name__ == "__main__":
    main()
