"""How many empty steps a second? Independent ones, each a message of its own.

::

    o  o  o  o  ...  o        10,000 steps (and 100,000), no edges

In the time: from the first submission to the last result, of pools that are up and warm. A run of a protocol also
starts its workers, inserts and journals its steps, and ends its workers; "engine only" is that same run from its first
step's dispatch to the end of its last. The plain loop is what the steps themselves take. At 100,000 steps only mpsteps
is run: what a long run comes to, all included. Systems that take milliseconds a step run fewer of them; the table says
how many.
"""

from __future__ import annotations

import argparse
from typing import List, Optional, Sequence

from perf._harness import Result, count_of, rate_table, runs_of, script
from perf._systems import ALL, OURS, chosen, in_turn, independent_job
from perf._work import board

LONG = 10
"""The longer run has so many times the steps."""


def measure(args: argparse.Namespace) -> List[Result]:
    """Both tables."""
    count = count_of(args, usual=10_000, smoke=200)
    names = chosen(args, ALL)
    with board(LONG * count) as marks:
        rows = in_turn(args, names, lambda s: [independent_job(s, marks, count)], runs_of(args))
        results = [rate_table("wide", f"wide: {count:,} empty independent steps", rows)]
        ours = [name for name in names if name in OURS]
        if ours:
            rows = in_turn(args, ours, lambda s: [independent_job(s, marks, LONG * count)], runs_of(args))
            results.append(rate_table("wide, long", f"wide: {LONG * count:,} empty independent steps", rows))
    return results


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Measure, print, save."""
    script(argv, __doc__, measure, "steps of the first table; the second has ten times as many (default: 10,000)")


if __name__ == "__main__":
    main()
