"""Does the right step go first? Independent steps, and inserted after them a chain.

::

    o  o  o  ...  o        60 steps, no edges
    o -> o -> ... -> o     a chain of 30

A step is 5 ms of pure Python. Whoever takes the steps as they come begins the chain last, and then works on it with one
worker while the others have nothing to do: 60 + 2 x 30 halves of 5 ms with two workers. Begun first, it takes no longer
than the rest beside it: 60 + 30 halves. The ratio is to ProcessPoolExecutor, in which callbacks submit what has become
ready. In the time: from the first submission to the last result; see `stencil` for the protocol's two lines.
"""

from __future__ import annotations

import argparse
from typing import List, Optional, Sequence

from perf._harness import Job, Result, rate_table, runs_of, script
from perf._systems import System, chosen, graph_job, in_turn
from perf._work import Late, board, iterations_per_second

USUAL = ("pool", "ppe", "pebble", "loky", "steppool", "protocol")
STEP_SECONDS = 5e-3


def measure(args: argparse.Namespace) -> List[Result]:
    """One table."""
    graph = Late(4, 3) if args.smoke else Late(60, 30)
    iterations = round(iterations_per_second() * (1e-4 if args.smoke else STEP_SECONDS))
    with board(graph.size) as marks:

        def jobs(system: System) -> List[Job]:
            return [graph_job(system, marks, graph, iterations)]

        rows = in_turn(args, chosen(args, USUAL), jobs, runs_of(args))
    title = f"balance: {graph.wide} independent steps of 5 ms, then a chain of {graph.chain}"
    return [rate_table("balance", title, rows)]


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Measure, print, save."""
    script(argv, __doc__, measure)


if __name__ == "__main__":
    main()
