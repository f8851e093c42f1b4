"""What the scripts share: systems run in turn, medians, a table, the machine they ran on."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from typing import Any, Callable, Dict, List, Optional, Sequence

RUNS = 7

Measure = Callable[[], float]
"""One run of one system: seconds, after it has checked its own results."""


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
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
        "date": time.strftime("%Y-%m-%d"),
    }


def interleaved(systems: Dict[str, Measure], runs: int = RUNS) -> Dict[str, List[float]]:
    """Seconds of each run of each system: one uncounted round, then `runs` rounds of all systems in turn.

    In turn, so that a machine that slows down slows all of them down.
    """
    seconds: Dict[str, List[float]] = {name: [] for name in systems}
    for turn in range(runs + 1):
        for name, measure in systems.items():
            took = measure()
            if turn:
                seconds[name].append(took)
    return seconds


def table(title: str, seconds: Dict[str, List[float]], steps: int, base: Optional[str] = None) -> Dict[str, Any]:
    """Print medians per system (rate, time a step, spread); returns them for JSON."""
    print(f"\n{title}")
    print(f"  {'system':<28}{'steps/s':>12}{'us/step':>10}{'min..max':>18}{'ratio':>8}")
    medians = {name: statistics.median(s) for name, s in seconds.items()}
    for name, s in seconds.items():
        m = medians[name]
        ratio = f"{medians[base] / m:.1f}x" if base and base in medians else ""
        spread = f"{min(s) / steps * 1e6:.1f}..{max(s) / steps * 1e6:.1f}"
        print(f"  {name:<28}{steps / m:>12,.0f}{m / steps * 1e6:>10.1f}{spread:>18}{ratio:>8}")
    return {"title": title, "steps": steps, "seconds": seconds, "medians": medians}


def check(condition: bool, what: str) -> None:
    """A figure of a wrong result is no figure."""
    if not condition:
        raise SystemExit(f"wrong result: {what}")


def options(argv: Optional[Sequence[str]], description: Optional[str]) -> argparse.Namespace:
    """The options that all scripts have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=RUNS, help="counted runs of each system (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="workers of each system (default: %(default)s)")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: checks the results, not the times")
    parser.add_argument("--json", metavar="FILE", help="write the figures to FILE")
    args = parser.parse_args(argv)
    if args.smoke:
        args.runs = 1
    print(" ".join(f"{k}={v}" for k, v in machine().items()), file=sys.stderr)
    return args


def save(path: Optional[str], results: List[Dict[str, Any]]) -> None:
    """Write what was measured, with the machine."""
    if path:
        with open(path, "w", encoding="utf-8") as f:
            json.dump({"machine": machine(), "results": results}, f, indent=1)
