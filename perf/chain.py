"""What does one dependent step cost? Empty steps, each after the one before it.

::

    o -> o -> o -> ... -> o        5,000 steps; nothing to run in parallel: pure latency

In the time: from the first submission to the last result, of pools that are up and warm. Systems that know
prerequisites get the whole chain at once; to the others, the callback of each step submits the next one. A run of a
protocol also starts its workers, journals and ends its workers; "engine only" is the same run from its first step's
dispatch to the end of its last. Systems that take milliseconds a step run fewer of them; the table says how many.
"""

from __future__ import annotations

import argparse
from typing import List, Optional, Sequence

from perf._harness import Job, Result, count_of, rate_table, runs_of, script
from perf._systems import ALL, System, chosen, graph_job, in_turn
from perf._work import Layers, board


def measure(args: argparse.Namespace) -> List[Result]:
    """One table."""
    count = count_of(args, usual=5_000, smoke=50)
    with board(count) as marks:

        def jobs(system: System) -> List[Job]:
            return [graph_job(system, marks, Layers(1, max(4, count // system.graph_scale)))]

        rows = in_turn(args, chosen(args, ALL), jobs, runs_of(args))
    return [rate_table("chain", f"chain: {count:,} empty dependent steps", rows, unit="s")]


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Measure, print, save."""
    script(argv, __doc__, measure, "steps of the chain (default: 5,000)")


if __name__ == "__main__":
    main()
