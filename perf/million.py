"""Do rate and memory stay flat up to a million steps? Empty ones, wide, and as a random graph.

::

    o  o  o  o  ...  o               wide: no edges

    o <- o <- o                      random: each step waits for up to two of all steps before it
     \\__ o <-/ \\__ o <- ...

1,000, 10,000, 100,000 and 1,000,000 steps (peers: up to 100,000), each run in a process of its own. In the time: from
the first submission to the last result, all in flight at once; of a protocol, "engine only", the time from its first
step's dispatch to the end of its last, and "whole run", with insertion, journal, and the start and end of its workers.

bytes/step: by how much the memory of the coordinator (the submitting process) grows more in the longest run than in
that of 10,000 steps, for each further step. It is all that a step costs there: the Step or Future that the user holds,
the scheduler's tables, what is on its way; not the list of calls that this script has.

Three counted rounds by default, without a warm-up: the runs are long. `--count` sets the longest run.
"""

from __future__ import annotations

import argparse
from typing import Dict, List, Optional, Sequence, Tuple

from perf._harness import Job, Result, Row, Timing, brief, count_of, grid, interleaved, runs_of, script
from perf._memory import in_fresh_process, peak_rss
from perf._systems import chosen, kind, note_missing
from perf._work import Graph, Layers, Random, board, calls

USUAL = ("pool", "ppe", "pebble", "loky", "steppool", "protocol")
RUNS = 3
PEERS = 10
"""Peers run so many times fewer steps at most."""


def measure(args: argparse.Namespace) -> List[Result]:
    """A table for each kind of graph."""
    most = count_of(args, usual=1_000_000, smoke=1_000)
    counts = [n for n in (1_000, 10_000, 100_000) if n < most] + [most]
    if args.smoke:
        counts = [100, most]
    names = [name for name in chosen(args, USUAL) if _is_there(name)]
    results = []
    for shape in ("wide", "random"):
        peaks: Dict[str, Dict[int, int]] = {}
        jobs = [
            _job(name, shape, count, args.workers, peaks)
            for name in names
            for count in counts
            if count <= most // PEERS or kind(name).title.startswith("mpsteps")
        ]
        rows = interleaved(jobs, runs_of(args, RUNS), warm=False)
        results.append(_table(shape, counts, rows, peaks))
    return results


def _is_there(name: str) -> bool:
    try:
        kind(name)(1).close()
    except ImportError as error:
        note_missing(name, error)
        return False
    return True


def _job(name: str, shape: str, count: int, workers: int, peaks: Dict[str, Dict[int, int]]) -> Job:
    def run() -> Timing:
        timing, peak = in_fresh_process(one_run, name, shape, count, workers)
        for title in timing:
            peaks.setdefault(title, {})[count] = max(peak, peaks.get(title, {}).get(count, 0))
        return {f"{title} @ {count}": seconds for title, seconds in timing.items()}

    return Job(run, count)


def one_run(name: str, shape: str, count: int, workers: int) -> Tuple[Timing, int]:
    """Seconds of one run, and by how many bytes this process's memory was larger at most than before it."""
    graph: Graph = Layers(count, 1) if shape == "wide" else Random(count)
    with board(count) as marks:
        system = kind(name)(workers)
        try:
            todo = calls(graph)
            before = peak_rss()
            timing = system.independent(todo) if shape == "wide" else system.graph(todo)
            grown = peak_rss() - before
            marks.verify(count, system.title)
        finally:
            system.close()
    return timing, grown


def _table(shape: str, counts: List[int], rows: Dict[str, Row], peaks: Dict[str, Dict[int, int]]) -> Result:
    curves: Dict[str, List[Tuple[int, float]]] = {}
    for name, row in rows.items():
        title, _, count = name.rpartition(" @ ")
        curves.setdefault(title, []).append((int(count), 1 / row.per_step()))
    cells = {}
    bytes_per_step = {title: _bytes_per_step(peak) for title, peak in peaks.items()}
    for title, curve in sorted(curves.items(), key=lambda item: -item[1][-1][1]):
        known = dict(curve)
        memory = bytes_per_step[title]
        cells[title] = [brief(known[n]) if n in known else "" for n in counts]
        cells[title].append("-" if memory is None else f"{memory:,.0f}")
    title = f"million: {'empty independent steps' if shape == 'wide' else 'empty steps of a random graph'}, steps/s"
    grid(title, [*(f"{n:,} steps" for n in counts), "bytes/step"], cells)
    return {
        "question": f"million, {shape}",
        "title": title,
        "unit": "steps/s",
        "values": {t: curve[-1][1] for t, curve in curves.items()},
        "curves": curves,
        "bytes_per_step": bytes_per_step,
        "peaks": peaks,
        "seconds": {name: row.seconds for name, row in rows.items()},
    }


def _bytes_per_step(peaks: Dict[int, int]) -> Optional[float]:
    """Between the run of 10,000 steps, or the shortest longer one, and the longest; None if there are no two."""
    few, most = min((n for n in peaks if n >= 10_000), default=0), max(peaks)
    return (peaks[most] - peaks[few]) / (most - few) if 0 < few < most else None


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Measure, print, save."""
    script(argv, __doc__, measure, "steps of the longest run of mpsteps; peers get a tenth (default: 1,000,000)")


if __name__ == "__main__":
    main()
