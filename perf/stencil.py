"""How many empty steps a second in a graph with layers? Three prerequisites each: edges cost, too.

::

    o   o   o   o  ...  o        100 wide, round the edge
     \\ | / \\ | /                 each step waits for the one above it and for that one's neighbours
    o   o   o   o  ...  o
     \\ | / \\ | /
    o   o   o   o  ...  o        50 layers

In the time: from the first submission to the last result, of pools that are up and warm. Systems that know
prerequisites get all steps at once; to the others, callbacks submit what has become ready (joblib: layer by layer). A
run of a protocol also starts its workers, journals and ends its workers; "engine only" is the same run from its first
step's dispatch to the end of its last. Systems that take milliseconds a step run fewer layers. Scipion, of which three
layers take a minute and a half, is only run if `--systems` names it.
"""

from __future__ import annotations

import argparse
from typing import List, Optional, Sequence

from perf._harness import Job, Result, count_of, rate_table, runs_of, script
from perf._systems import ALL, System, chosen, graph_job, in_turn
from perf._work import Layers, board

USUAL = tuple(name for name in ALL if name != "scipion")


def measure(args: argparse.Namespace) -> List[Result]:
    """One table."""
    layers = count_of(args, usual=50, smoke=5)
    width = 10 if args.smoke else 100
    with board(layers * width) as marks:

        def jobs(system: System) -> List[Job]:
            return [graph_job(system, marks, Layers(width, max(3, layers // system.graph_scale), round=True))]

        rows = in_turn(args, chosen(args, USUAL), jobs, runs_of(args))
    return [rate_table("stencil", f"stencil: {layers} layers of {width} empty steps, 3 prerequisites each", rows)]


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Measure, print, save."""
    script(argv, __doc__, measure, "layers (default: 50)")


if __name__ == "__main__":
    main()
