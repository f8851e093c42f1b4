"""`mpsteps trace` and `report`: a run as a file for other programs to show."""

from __future__ import annotations

import os
from typing import Any

from mpsteps._report_data import report_data
from mpsteps._report_page import write_report
from mpsteps._trace import write_trace
from mpsteps.cli import output
from mpsteps.cli.history import look_at
from mpsteps.errors import UsageError


def trace_command(args: Any) -> int:
    """`mpsteps trace RUN`."""
    look = look_at(args.run)
    path = _path(args, look.directory.path, ".trace.json")
    count = write_trace(look.history, look.timeline, path)
    output.put(f"wrote {path}: {len(look.timeline.spans)} attempts of steps, {count} events")
    output.note("open it in https://ui.perfetto.dev or chrome://tracing")
    return 0


def report_command(args: Any) -> int:
    """`mpsteps report RUN`."""
    look = look_at(args.run)
    path = _path(args, look.directory.path, ".html")
    data = report_data(look.directory, look.history, look.timeline, look.alive)
    write_report(data, path)
    verdict = data["limits"]["limits"][0]
    output.put(f"wrote {path}: {len(look.history.steps)} steps, {os.path.getsize(path) / 1e6:.1f} MB")
    output.put(f"what limited it: {verdict['kind']}. {verdict['sentence']} {verdict['advice']}".rstrip())
    return 0


def _path(args: Any, run_dir: str, ending: str) -> str:
    """Where to write: what the user said, or a file in this folder that is called like the run."""
    if args.output is not None and not args.output:
        raise UsageError("-o needs the name of a file")
    path = str(args.output or os.path.basename(os.path.abspath(run_dir)) + ending)
    if os.path.isdir(path):
        raise UsageError(f"{path!r} is a folder: give the name of a file with -o")
    if not os.path.isdir(os.path.dirname(os.path.abspath(path))):
        raise UsageError(f"the folder of {path!r} does not exist: choose another file with -o")
    return path
