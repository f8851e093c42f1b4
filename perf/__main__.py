"""`python -m perf`: all measurements, or those that are named, a summary, and with `--out` figures and pictures."""

from __future__ import annotations

import argparse
import importlib
import os
import time
from typing import List, Optional, Sequence

import perf
from perf._harness import Result, common_options, machine, print_machine, save
from perf._summary import print_summary

QUESTIONS = (
    "wide", "chain", "stencil", "metg", "speedup", "balance", "arrays", "coldstart", "coordinator", "million", "real",
    "scipion",
)  # fmt: skip


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Run scripts, print, write."""
    parser = argparse.ArgumentParser(
        prog="python -m perf", description=perf.__doc__, parents=[common_options()],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="`python -m perf.QUESTION --help` tells what is in the times of one, and what else can be chosen there.",
    )  # fmt: skip
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help="which scripts to run (default: all)")
    parser.add_argument("--out", metavar="DIR", help="write results.json (the machine, and the seconds of every run) "
                        "and, if matplotlib is there, pictures to DIR")  # fmt: skip
    args = parser.parse_args(argv)
    unknown = [name for name in args.questions if name not in QUESTIONS]
    if unknown:
        parser.error(f"there is no script {unknown[0]!r}: choose of {', '.join(QUESTIONS)}")
    if args.out:
        os.makedirs(args.out, exist_ok=True)  # now: not at the end of half an hour
    print_machine()
    results: List[Result] = []
    for name in args.questions or QUESTIONS:
        started = time.monotonic()
        results += importlib.import_module(f"perf.{name}").measure(args)
        print(f"  [{name}: {time.monotonic() - started:.0f} s]", flush=True)
    print_summary(results)
    if args.out:
        write(args.out, results)


def write(folder: str, results: List[Result]) -> None:
    """results.json, and the pictures."""
    save(os.path.join(folder, "results.json"), results)
    try:
        from perf._plots import draw_all
    except ImportError as error:
        print(f"note: no pictures: there is no module {error.name!r} (pip install matplotlib)")
        return
    draw_all(folder, results, machine())


if __name__ == "__main__":
    main()
