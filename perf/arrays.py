"""How fast does large data travel to steps and back, and in how much memory?

::

    array -> o        200 steps x 8 MB as arguments, 20 x 80 MB
    o -> array        the same as results
    array -> o o o o o o ... o        one array of 200 MB that 200 steps read

MB/s: bytes of the arrays that steps were given, read or returned, by the time from the first submission to the last
result; whoever receives an array reads all of it (of the shared one, a number on each page). At most 2 N arrays are on
their way to and from N workers. A shared array is given as an argument, or in the way that a system has for it: a
copy scattered to Dask's workers, in Ray's object store, or in a `mpsteps.shared_array`.

A protocol is a whole run: it starts and ends its workers, tells its steps by the content of their arguments, and keeps
and journals what they return; the shared array is its attribute.

peak PSS: memory of the whole tree of processes, what is shared counted once, in a run of its own with fewer steps on a
system that is alone in its process. That run also tells how many steps can be run in about a second, at most those
that the title says: so many are in the counted runs. Needs numpy.
"""

from __future__ import annotations

import argparse
import importlib.util
from typing import Any, Dict, List, Optional, Sequence

from perf._harness import Job, Result, Row, brief, grid, runs_of, script
from perf._memory import in_fresh_process
from perf._systems import System, chosen, in_turn

USUAL = ("loop", "pool", "ppe", "loky", "joblib", "dask", "ray", "steppool", "shared_array", "protocol")
RUN_SECONDS = 1.0


def measure(args: argparse.Namespace) -> List[Result]:
    """A table for each case."""
    if importlib.util.find_spec("numpy") is None:
        print("\nnote: arrays is left out: there is no module 'numpy' (pip install numpy)")
        return []
    from perf._arrays import Case

    cases = [
        Case("in", 200, 8, 40), Case("out", 200, 8, 40), Case("in", 20, 80, 6), Case("out", 20, 80, 6),
        Case("shared", 200, 200, 6),
    ]  # fmt: skip
    if args.smoke:
        cases = [Case("in", 6, 2, 6), Case("out", 6, 2, 6), Case("shared", 6, 2, 6)]
    return [_measure(args, case) for case in cases]


def _measure(args: argparse.Namespace, case: Any) -> Result:
    from perf._arrays import Inputs, timed, trial

    inputs = Inputs(case, args.workers)
    peaks: Dict[str, Optional[int]] = {}

    def jobs(system: System) -> List[Job]:
        each, peaks[system.title] = in_fresh_process(trial, system.name, case, args.workers)
        count = max(2, min(case.steps, round(RUN_SECONDS / each)))
        return [Job(lambda: {system.title: timed(system, inputs, count)}, count)]

    names = [name for name in chosen(args, USUAL) if case.way == "shared" or name != "shared_array"]
    return _table(case, in_turn(args, names, jobs, runs_of(args)), peaks)


def _table(case: Any, rows: Dict[str, Row], peaks: Dict[str, Optional[int]]) -> Result:
    rates = {title: case.megabytes / row.per_step() for title, row in rows.items()}
    cells = {}
    for title in sorted(rates, key=lambda t: -rates[t]):
        each = [case.megabytes * rows[title].steps / s for s in rows[title].seconds]
        peak = peaks[title]
        cells[title] = [
            str(rows[title].steps),
            brief(rates[title]),
            f"{brief(min(each))}..{brief(max(each))}" if len(each) > 1 else "one run",
            "-" if peak is None else f"{peak / 1e6:,.0f}",
        ]
    title = f"arrays: {case.title}"
    grid(title, ["steps", "MB/s", "min..max", "peak PSS, MB"], cells)
    return {
        "question": f"arrays, {case.megabytes} MB {case.way}",
        "title": title,
        "unit": "MB/s",
        "values": rates,
        "peak_pss": peaks,
        "steps": {name: row.steps for name, row in rows.items()},
        "seconds": {name: row.seconds for name, row in rows.items()},
    }


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Measure, print, save."""
    script(argv, __doc__, measure)


if __name__ == "__main__":
    main()
