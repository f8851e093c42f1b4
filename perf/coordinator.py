"""What does the coordinator cost for a step, by itself, and with many workers?

::

    o   o   o  ...  o        4, 32 and 128 wide, for 2, 8 and 32 workers
    | X | X |  ...  |
    o   o   o  ...  o        each step waits for the one above it and for that one's neighbours

The workers are virtual: their steps take 100 µs of a time that is not this machine's, so that 32 of them run on two
cores, and nothing disturbs the coordinator's caches or takes its core. In the time: all that it does from the first
reply to the last (merging, journal, statuses, scheduling, messages), and nothing of waiting, waking and rings. So it is
less than what the coordinator costs beside real workers, and it tells two versions apart on a machine that is not
quiet: look at the fastest run. There are no peers, so that `--systems` and `--workers` do not matter here.
"""

from __future__ import annotations

import argparse
from typing import List, Optional, Sequence
from unittest import mock

from perf import _ours
from perf._harness import Job, Result, Timing, brief_time, count_of, grid, interleaved, runs_of, script
from perf._virtual import VirtualEngine
from perf._work import Layers, calls

SHAPES = ((2, 4), (8, 32), (32, 128))
"""Workers, and the width of their graph."""
STEP_SECONDS = 100e-6


def measure(args: argparse.Namespace) -> List[Result]:
    """One table."""
    count = count_of(args, usual=10_000, smoke=400)
    jobs = [_job(workers, Layers(width, max(2, count // width))) for workers, width in SHAPES]
    rows = interleaved(jobs, runs_of(args))
    cells = {name: [brief_time(row.per_step()), brief_time(min(row.seconds) / row.steps)] for name, row in rows.items()}
    title = "coordinator: its own time a step, layers of 100 us steps, virtual workers"
    grid(title, ["median", "fastest"], cells)
    return [{
        "question": "coordinator", "title": title, "unit": "s",
        "values": {name: row.per_step() for name, row in rows.items()},
        "seconds": {name: row.seconds for name, row in rows.items()},
    }]  # fmt: skip


def _job(workers: int, graph: Layers) -> Job:
    todo = calls(graph)

    def run() -> Timing:
        VirtualEngine.step_seconds = STEP_SECONDS
        with mock.patch("mpsteps.engines.processes.ProcessEngine", VirtualEngine):
            _ours.ProtocolRun(workers).graph(todo)  # which checks that every step has finished
        return {f"mpsteps, {workers} workers, {graph.width} wide": VirtualEngine.spent}

    return Job(run, graph.size)


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Measure, print, save."""
    script(argv, __doc__, measure, "steps (default: 10,000)")


if __name__ == "__main__":
    main()
