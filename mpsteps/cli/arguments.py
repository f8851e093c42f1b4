"""The commands and their options: what `--help` teaches."""

from __future__ import annotations

import argparse
import re
import sys
from typing import Any, List, NoReturn, Tuple

from mpsteps import __version__

_TARGET = "file.py:Class, module:Class, or a file with one protocol in it"
_RUN = "a run directory, such as Runs/000001_ProtCtf"

_DESCRIPTION = "Run protocols, whose steps run in parallel in worker processes."
_EPILOG = """\
a first session:
  mpsteps demo                                a real protocol on a real micrograph
  mpsteps form ctf.py                         what can be set
  mpsteps run ctf.py --set boxSize=64 --threads 8
  mpsteps steps Runs/000001_ProtCtf --failed  what went wrong
  mpsteps resume Runs/000001_ProtCtf          run what is missing
  mpsteps report Runs/000001_ProtCtf          one HTML file: what limited it, what it cost

exit codes: 0 finished, 1 a step or the protocol failed, 2 usage or validation, 130 Ctrl-C, 143 SIGTERM
environment: MPSTEPS_THREADS and MPSTEPS_ENGINE are defaults for --threads and --engine of run and demo
`mpsteps COMMAND --help` tells more."""

_RUN_TEXT = """\
Run a protocol: check the values, insert its steps, run them. Progress goes to stderr, what came out to stdout.
Each run has a directory with its journal, logs and files: a new one in Runs/, or --run-dir."""
_RUN_EXAMPLE = """\
example: run the only protocol in ctf.py with 8 worker processes and two values of its form:
  mpsteps run ctf.py --threads 8 --set "micrographs=Micrographs/*.mrc" --set boxSize=512"""

_RESUME_TEXT = """\
Continue a run after a failure, an interruption or a crash: the steps that finished are kept, the others run. Values,
threads and engine are those of the last time unless given. A changed value runs the steps again whose arguments it
changes, and what depends on them. Relative paths are meant from where the run was started."""
_RESUME_EXAMPLE = """\
example: continue after a failure, with another value:
  mpsteps resume Runs/000001_ProtCtf --set maxDefocus=40000"""

_FORM_TEXT = "Show the form of a protocol: names, types, defaults, choices, conditions and help of its params."
_FORM_EXAMPLE = """\
example:
  mpsteps form ctf.py:ProtCtf"""

_STEPS_TEXT = """\
Show the steps of a run, also of one that is going on: seconds and CPU seconds of the last attempt, the pid of the
worker, and the steps that each comes after. --failed adds why they failed. Peak memory is known of steps of 10 ms and
more: it is that of the worker or of the largest program that the step ran, and the column is there if one has it. So is
what they read and wrote (by calls: files, pipes, sockets) and what went to their worker for them, and back: --json has
it, and --sort read, written or moved shows it."""
_STEPS_EXAMPLE = """\
examples: the ten slowest steps of a function, and all that is known of a run, for SQL:
  mpsteps steps Runs/000001_ProtCtf --function ctfStep --sort seconds --limit 10
  mpsteps steps Runs/000001_ProtCtf --sqlite run.sqlite"""

_TOP_TEXT = """\
Watch a run that another process carries out: progress of each function, running steps and their age, rate, the time
that may be left (from what steps of each function took, and the graph), CPU and memory of the workers. It reads the
run's journal and does not disturb it. Ctrl-C leaves; the run goes on. Where there is no terminal it tells once."""
_TOP_EXAMPLE = """\
example:
  mpsteps top Runs/000001_ProtCtf"""

_TRACE_TEXT = """\
Write a run as a Chrome trace: workers are threads, steps are slices, prerequisites are arrows. It is opened in
https://ui.perfetto.dev or chrome://tracing. A run that is going on is written as far as it has come."""
_TRACE_EXAMPLE = """\
example:
  mpsteps trace Runs/000001_ProtCtf -o trace.json"""

_EXPLAIN_TEXT = """\
Say why a step is where it is, also while the run goes on: why it waits (which prerequisite, slot or memory, and until
when at the earliest), why it ran again on resume (what has changed), why it failed (cause, traceback, output)."""
_EXPLAIN_EXAMPLE = """\
examples:
  mpsteps explain Runs/000001_ProtCtf 40
  mpsteps explain Runs/000001_ProtCtf createOutputStep"""

_REPORT_TEXT = """\
Write a run as one HTML file: summary, what limited it, timeline by worker, graph, functions, failures with tracebacks
and output, environment. It needs no network and no other file. Of a run that is going on it shows what there is."""
_REPORT_EXAMPLE = """\
example:
  mpsteps report Runs/000001_ProtCtf -o report.html"""

_STOP_TEXT = """\
End a run of another process of yours on this machine, as Ctrl-C in its terminal does: no further step starts, those
that run come to their end and are recorded. Then `mpsteps resume` continues it. A second `stop` ends the running steps,
as --now does. Exit code 0 when it has ended, also if it had before."""
_STOP_EXAMPLE = """\
example:
  mpsteps stop Runs/000001_ProtCtf"""

_DOCTOR_TEXT = """\
Look at what this machine gives: cores that may really be used (affinity, cgroup, Slurm), memory, shared memory, how
workers start and why so, BLAS threads in a worker, limits, this folder's disk, versions; then run real steps for a few
seconds and check what comes out. Exit code 1 if something does not work."""
_DOCTOR_EXAMPLE = """\
example: on a cluster, from within a job:
  mpsteps doctor --threads 16"""

_DEMO_TEXT = """\
Estimate the defocus and pick the particles of a micrograph that comes with mpsteps, or of yours. It needs numpy, scipy,
mrcfile and matplotlib: pip install "mpsteps[demo]". `mpsteps form mpsteps.demo.protocol:ProtDemo` shows its form."""
_DEMO_EXAMPLE = """\
example: your own micrographs, with 8 worker processes (quotes keep the shell from expanding the pattern):
  mpsteps demo --micrographs "Micrographs/*.mrc" --threads 8"""


_SORT_KEYS = (
    "id", "function", "status", "started", "seconds", "cpu", "memory", "read", "written", "moved", "attempts"
)  # fmt: skip


COMMANDS = {
    "run": ("mpsteps.cli.running", "run_command"),
    "resume": ("mpsteps.cli.running", "resume_command"),
    "form": ("mpsteps.cli.forms", "form_command"),
    "steps": ("mpsteps.cli.steps", "steps_command"),
    "explain": ("mpsteps.cli.explain", "explain_command"),
    "top": ("mpsteps.cli.top", "top_command"),
    "report": ("mpsteps.cli.views", "report_command"),
    "trace": ("mpsteps.cli.views", "trace_command"),
    "stop": ("mpsteps.cli.stop", "stop_command"),
    "doctor": ("mpsteps.cli.doctor", "doctor_command"),
    "demo": ("mpsteps.cli.running", "demo_command"),
}
"""Where each command is: module and function, loaded when it is called, so that `--help` answers at once."""


def parse(argv: List[str]) -> argparse.Namespace:
    """The options as a namespace; `command` is its name. SystemExit after help, or after saying what is wrong."""
    parser = _parser()
    if not argv:
        parser.print_help(sys.stderr)
        raise SystemExit(2)
    if argv[0] not in COMMANDS and re.search(r"\.py\b|\w:\w", argv[0]):
        parser.error(f"{argv[0]!r} is no command; to run it: mpsteps run {argv[0]}")
    return parser.parse_args(_one_setting_each(argv))


class _Parser(argparse.ArgumentParser):
    """No abbreviated options: a script that uses one breaks when an option is added."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.format_usage()}{self.prog}: {message}; {self.prog} --help tells more\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="mpsteps", description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("--version", action="version", version=f"mpsteps {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, short: str, text: str, example: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=short, description=text, epilog=example)

    run = add("run", "run a protocol", _RUN_TEXT, _RUN_EXAMPLE)
    run.add_argument("target", metavar="TARGET", help=_TARGET)
    _add_place(run)
    _add_options(run)
    resume = add("resume", "continue a run", _RESUME_TEXT, _RESUME_EXAMPLE)
    resume.add_argument("run", metavar="RUN", help=_RUN)
    resume.add_argument("--in-doubt", choices=("rerun", "fail"), default="rerun", help="what to do with steps that a "
                        "crash cut in the middle: run them again (default), or refuse and name them")
    _add_options(resume)
    form = add("form", "show the params of a protocol", _FORM_TEXT, _FORM_EXAMPLE)
    form.add_argument("target", metavar="TARGET", help=_TARGET)
    _add_json(form, "one JSON object")
    steps = add("steps", "show the steps of a run", _STEPS_TEXT, _STEPS_EXAMPLE)
    steps.add_argument("run", metavar="RUN", help=_RUN)
    steps.add_argument("--failed", action="store_true", help="only the steps that failed, with traceback and output")
    steps.add_argument("--status", metavar="STATUS", action="append", default=[], help="only these: new, running, "
                       "in-doubt, finished, failed, lost, skipped, aborted; several with commas")
    steps.add_argument("--function", metavar="NAME", action="append", default=[], help="only the steps of this "
                       "function, or of those that fit a pattern such as 'fit*'; as often as needed")
    steps.add_argument("--sort", choices=_SORT_KEYS, help="the order; of seconds, cpu, memory, read, "
                       "written, moved and attempts the largest first (default: id)")
    steps.add_argument("--limit", metavar="N", type=_count, help="only the first N")
    steps.add_argument("--sqlite", metavar="FILE", help="write the run to FILE for queries, instead of the table")
    _add_json(steps, "one JSON object, with all that is known of each step")
    explain = add("explain", "say why a step waits, ran again or failed", _EXPLAIN_TEXT, _EXPLAIN_EXAMPLE)
    explain.add_argument("run", metavar="RUN", help=_RUN)
    explain.add_argument("step", metavar="STEP", help="the id of a step, or a function that has one step only")
    _add_json(explain, "one JSON object")
    top = add("top", "watch a run of another process", _TOP_TEXT, _TOP_EXAMPLE)
    top.add_argument("run", metavar="RUN", help=_RUN)
    top.add_argument("--once", action="store_true", help="tell once, also on a terminal")
    report = add("report", "write a run as one HTML file", _REPORT_TEXT, _REPORT_EXAMPLE)
    report.add_argument("run", metavar="RUN", help=_RUN)
    _add_output(report, ".html")
    trace = add("trace", "write a run as a Chrome/Perfetto trace", _TRACE_TEXT, _TRACE_EXAMPLE)
    trace.add_argument("run", metavar="RUN", help=_RUN)
    _add_output(trace, ".trace.json")
    stop = add("stop", "end a run of another process", _STOP_TEXT, _STOP_EXAMPLE)
    stop.add_argument("run", metavar="RUN", help=_RUN)
    stop.add_argument("--now", action="store_true", help="end the steps that run, too (as SIGTERM does)")
    stop.add_argument("--no-wait", action="store_true", help="do not wait until it has ended")
    doctor = add("doctor", "see what this machine gives", _DOCTOR_TEXT, _DOCTOR_EXAMPLE)
    doctor.add_argument("--threads", metavar="N", type=_count, help="worker processes for the self-test (default: the "
                        "cores that may be used, at most 8)")
    doctor.add_argument("--no-self-test", action="store_true", help="only look, run no steps")
    _add_json(doctor, "one JSON object with all findings")
    demo = add("demo", "see mpsteps at work on a micrograph", _DEMO_TEXT, _DEMO_EXAMPLE)
    demo.add_argument("--micrographs", metavar="GLOB", help="an MRC file or a pattern (default: the bundled one)")
    _add_place(demo)
    _add_options(demo)
    return parser


def _add_place(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run-dir", metavar="DIR", help="the run directory (default: a new Runs/NNNNNN_Class); one "
                        "that has a run in it continues it")
    parser.add_argument("--restart", action="store_true", help="delete what an earlier run left in the run directory")


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--set", metavar="NAME=VALUE", action="append", default=[], dest="settings", type=_setting,
                        help="a value for a param of the form; as often as needed")
    parser.add_argument("--threads", metavar="N", type=_count, help="how many worker processes, at least 1")
    parser.add_argument("--engine", metavar="ENGINE", help="where steps run: inline (in this process), processes "
                        "(default if the protocol's steps run in parallel), dask (Dask workers on this machine), slurm "
                        "(jobs), or the address or scheduler file of a Dask cluster that is there")
    cluster = parser.add_argument_group("for --engine dask and slurm")
    cluster.add_argument("--workers", metavar="N", type=_count, help="Dask workers (default 1), or the most jobs at a "
                         "time")
    cluster.add_argument("--cores", metavar="N", type=_count, help="how many steps run at a time in each of them")
    cluster.add_argument("--job-memory", metavar="SIZE", help="memory of a job, such as '16 GB'")
    cluster.add_argument("--partition", metavar="NAME", help="where jobs are queued")
    cluster.add_argument("--walltime", metavar="H:M:S", help="how long a job may run; towards its end it is given no "
                         "new steps")
    cluster.add_argument("--interface", metavar="NAME", help="the network interface by which this machine is reached, "
                         "such as eth0")
    parser.add_argument("--keep-going", action="store_true", help="after a failure, still run all steps that do not "
                        "depend on it")
    parser.add_argument("--durability", choices=("process", "power"), default="process", help="what the journal "
                        "survives: any kill of a process (default), or a power failure too (slower)")
    parser.add_argument("--logs", action="store_true", help="show what steps write, while they run: lines on stderr "
                        "with the step in front")
    parser.add_argument("--events", metavar="FILE", help="append what happens to FILE, as JSON lines")
    _add_json(parser, "the report as one JSON object, instead of text")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def _add_output(parser: argparse.ArgumentParser, ending: str) -> None:
    parser.add_argument("-o", "--output", metavar="FILE", help="the file to write (default: the run directory's name "
                        f"and {ending}, in this folder); an earlier one is replaced")


def _add_json(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--json", action="store_true", help=f"on stdout: {what}")


def _setting(text: str) -> Tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name.strip():
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, such as boxSize=64, got {text!r}")
    return name.strip(), value


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, got {text!r}")
    return int(text)


def _one_setting_each(argv: List[str]) -> List[str]:
    """`--set a=1 b=2` as `--set a=1 --set b=2`. (nargs='+' would take a TARGET that follows for a setting.)"""
    result: List[str] = []
    in_settings = False
    for i, arg in enumerate(argv):
        if i and argv[i - 1] == "--set":
            in_settings = True
        elif in_settings and re.match(r"[A-Za-z_]\w*=", arg):
            result.append("--set")
        else:
            in_settings = False
        result.append(arg)
    return result
