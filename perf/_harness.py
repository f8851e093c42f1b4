"""What the scripts share: their options, systems run in turn, medians, tables, the machine they ran on."""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import time
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence

RUNS = 7

Timing = Dict[str, float]
"""What one run gives: seconds by the title of the table's row. Most runs give one; a protocol's gives two."""

Result = Dict[str, Any]
"""One table as it is written to JSON: `question`, `title`, `unit`, and what else the script puts there."""


class Job(NamedTuple):
    """Something to measure: `measure()` runs it once, checks its results and says how long it took.

    `steps`: how many steps one run has. `runs`: so many rounds at most, and no warm-up: for systems that take seconds
    a step, because they sleep.
    """

    measure: Callable[[], Timing]
    steps: int
    runs: Optional[int] = None


class Row(NamedTuple):
    """A row of a table: the seconds of each counted run of `steps` steps."""

    steps: int
    seconds: List[float]

    @property
    def median(self) -> float:
        """Seconds of the median run."""
        return statistics.median(self.seconds)

    def per_step(self) -> float:
        """Seconds a step in the median run."""
        return self.median / self.steps


def interleaved(jobs: Sequence[Job], runs: int = RUNS, warm: bool = True) -> Dict[str, Row]:
    """The rows of all jobs: one uncounted round (unless not `warm`), then `runs` rounds of all jobs in turn.

    In turn, so that a machine that slows down slows all of them down. Garbage of one is not collected in the time of
    the next.
    """
    rows: Dict[str, Row] = {}
    for turn in range(0 if warm else 1, runs + 1):
        for job in jobs:
            if job.runs is not None and not 1 <= turn <= job.runs:
                continue
            gc.collect()
            for title, took in job.measure().items():
                row = rows.setdefault(title, Row(job.steps, []))
                if turn:
                    row.seconds.append(took)
    return rows


def check(condition: bool, what: str) -> None:
    """A figure of a wrong result is no figure."""
    if not condition:
        raise SystemExit(f"wrong result: {what}")


# ---------------------------------------------------------------------------------------------------- tables


BASE = "ProcessPoolExecutor"
"""What everybody has, and others are compared with."""


def rate_table(question: str, title: str, rows: Dict[str, Row], unit: str = "steps/s") -> Result:
    """Print medians per system (rate, time a step, spread), best first; `x`: how often the rate of BASE.

    `unit`: of the values in the result, 'steps/s' or 's' (a step).
    """
    print(f"\n{title}")
    print(f"  {'system':<30}{'steps':>9}{'steps/s':>12}{'us/step':>11}{'min..max':>21}{'x':>8}")
    for name, row in sorted(rows.items(), key=lambda item: item[1].per_step()):
        each = [s / row.steps * 1e6 for s in row.seconds]
        spread = f"{brief(min(each))}..{brief(max(each))}" if len(each) > 1 else "one run"
        ratio = brief(rows[BASE].per_step() / row.per_step()) if BASE in rows else ""
        rate, us = brief(1 / row.per_step()), brief(row.per_step() * 1e6)
        print(f"  {name:<30}{row.steps:>9,}{rate:>12}{us:>11}{spread:>21}{ratio:>8}".rstrip())
    return {
        "question": question,
        "title": title,
        "unit": unit,
        "values": {name: row.per_step() if unit == "s" else 1 / row.per_step() for name, row in rows.items()},
        "steps": {name: row.steps for name, row in rows.items()},
        "seconds": {name: row.seconds for name, row in rows.items()},
    }


def grid(title: str, columns: Sequence[str], cells: Mapping[str, Sequence[str]], of: str = "system") -> None:
    """Print a table of texts: a row's name, then one cell for each column."""
    widths = [max(10, len(c) + 2, *(len(row[i]) + 2 for row in cells.values())) for i, c in enumerate(columns)]
    first = max(30, *(len(name) + 1 for name in cells))
    print(f"\n{title}")
    for name, row in [(of, columns), *cells.items()]:
        print(("  " + name.ljust(first) + "".join(c.rjust(w) for c, w in zip(row, widths))).rstrip())


def brief(value: float) -> str:
    """Three significant digits at least: 0.0312, 4.56, 78.9, 12,345."""
    if value == 0 or value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def brief_time(seconds: float) -> str:
    """12 us, 3.4 ms, 5.6 s."""
    if seconds < 1e-3:
        return f"{brief(seconds * 1e6)} us"
    return f"{brief(seconds * 1e3)} ms" if seconds < 1 else f"{brief(seconds)} s"


# --------------------------------------------------------------------------------------------------- scripts


def common_options() -> argparse.ArgumentParser:
    """The options that all scripts have."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--runs", type=int, metavar="N", help="counted runs of each system (default: 7, if the script "
                        "does not say otherwise); medians are reported, with the smallest and the largest")  # fmt: skip
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="workers of each system (default: "
                        "%(default)s); more than the machine has cores measures its scheduler, too")  # fmt: skip
    parser.add_argument("--systems", metavar="A,B,...", help="which to compare, of: loop (no workers at all), "
                        "threads, ppe (ProcessPoolExecutor), pool (multiprocessing.Pool), loky, joblib, pebble, mpire, "
                        "dask, ray, scipion, steppool, steppool_dask, protocol (three are mpsteps)")  # fmt: skip
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, one run, and of the systems only those that "
                        "start at once: checks that results are right, says nothing of speed")  # fmt: skip
    return parser


def script(
    argv: Optional[Sequence[str]],
    doc: Optional[str],
    measure: Callable[[argparse.Namespace], List[Result]],
    count: str = "",
) -> None:
    """A script's `main`: options, figures, file. `count`: the help of --count, for scripts that have it."""
    parser = argparse.ArgumentParser(
        description=doc, parents=[common_options()], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", metavar="FILE", help="write the machine, and the seconds of every run, to FILE")
    if count:
        parser.add_argument("--count", type=int, metavar="N", help=count)
    args = parser.parse_args(argv)
    print_machine()
    results = measure(args)
    if args.json:
        save(args.json, results)


def runs_of(args: argparse.Namespace, usual: int = RUNS) -> int:
    """How many rounds count."""
    return 1 if args.smoke else args.runs or usual


def count_of(args: argparse.Namespace, usual: int, smoke: int) -> int:
    """How many steps: as asked for, else `usual`, or `smoke` in a smoke test."""
    return getattr(args, "count", None) or (smoke if args.smoke else usual)


def machine() -> Dict[str, Any]:
    """What the figures depend on."""
    model = platform.processor()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            model = next((line.split(":")[1].strip() for line in f if line.startswith("model name")), model)
    except OSError:
        pass  # not Linux: the platform module's word has to do
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": model,
        "cores": cores,
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
        "date": time.strftime("%Y-%m-%d"),
    }


def print_machine() -> None:
    """One line, and another if the figures will not be those of this machine alone."""
    facts = machine()
    print("machine: " + ", ".join(f"{k} {v}" for k, v in facts.items()))
    if facts["load"] > 0.5:
        print("note: other programs are at work here (see load): wait for them, or read no figure as the machine's")


def save(path: str, results: List[Result]) -> None:
    """Write what was measured, with the machine."""
    with open(path, "w", encoding="utf-8") as f:
        json.dump({"machine": machine(), "results": results}, f, indent=1)
