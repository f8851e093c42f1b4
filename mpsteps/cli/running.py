"""`mpsteps run`, `resume` and `demo`: from the options to a protocol, from the protocol to its report."""

from __future__ import annotations

import json
import os
import shlex
import sys
from typing import Any, Dict, List, Optional, Sequence, Tuple, Type

from mpsteps._machine import usable_cores
from mpsteps._rundir import RunDirectory
from mpsteps._targets import comes_from_user, load_target, user_traceback
from mpsteps.cli import output
from mpsteps.cli.history import last_session, open_run
from mpsteps.constants import MODE_RESTART, MODE_RESUME
from mpsteps.errors import InternalError, MpstepsError, UsageError, ValidationError
from mpsteps.listeners import Listener
from mpsteps.params import DeprecatedParam, Param, PathParam
from mpsteps.progress import make_progress
from mpsteps.protocol import Protocol
from mpsteps.report import RunReport
from mpsteps.run import ENGINES, run

MAX_FAILURES = 10
"""So many failed steps are listed at the end of a run; `mpsteps steps RUN --failed` has them all."""

Values = Dict[str, Any]
Settings = Sequence[Tuple[str, str]]


# ------------------------------------------------------------------------------------------------- the commands


def run_command(args: Any) -> int:
    """`mpsteps run TARGET`."""
    with output.users_output_aside():
        protocol = _new_protocol(load_target(args.target), args, _threads_wanted(args))
    return _Run(protocol, args, _engine_wanted(args)).carry_out()


def demo_command(args: Any) -> int:
    """`mpsteps demo`."""
    try:
        from mpsteps.demo.protocol import ProtDemo, format_defocus_table
    except ImportError as error:
        raise UsageError(str(error)) from error
    if args.micrographs is not None:
        args.settings.append(("micrographs", args.micrographs))
    threads = _threads_wanted(args) or max(2, min(4, usable_cores()))
    demo = _Run(_new_protocol(ProtDemo, args, threads), args, _engine_wanted(args))
    code = demo.carry_out(summary=False, more=lambda p: {"defocus": p.defocusRows, "files": _result_files(p)})
    if code == 0 and not args.json:
        output.put("\n".join(["", format_defocus_table(demo.protocol.defocusRows), "", *_result_files(demo.protocol)]))
    return code


def resume_command(args: Any) -> int:
    """`mpsteps resume RUN`."""
    directory, history = open_run(args.run)
    session = last_session(directory, history)
    here = os.getcwd()
    _go_back_to(str(session.get("cwd") or here), args.run)
    with output.users_output_aside():
        cls = load_target(str(session.get("target")))
        protocol = _protocol_again(cls, session, directory, args, here)
    return _Run(protocol, args, args.engine or session.get("engine")).carry_out(args.in_doubt)


# ------------------------------------------------------------------------------------------- from options to protocol


def _new_protocol(cls: Type[Protocol], args: Any, threads: Optional[int]) -> Protocol:
    values = _parsed(cls, args.settings)
    if threads is not None:
        values["numberOfThreads"] = threads
    if args.run_dir is not None:
        values["workingDir"] = _directory_name(args.run_dir)
    if args.restart:
        values["runMode"] = MODE_RESTART
    protocol = make_protocol(cls, values)
    if args.threads is not None and not _uses_threads(protocol, args.engine):
        output.note(
            f"note: --threads has no effect: {cls.__name__} runs its steps one after another (to run them in parallel "
            "it must say  stepsExecutionMode = STEPS_PARALLEL)"
        )
    return protocol


def _protocol_again(
    cls: Type[Protocol], session: Dict[str, Any], directory: RunDirectory, args: Any, here: str
) -> Protocol:
    """The protocol of a session, with the values it had and those that are given now."""
    recorded = dict(session.get("params") or {})
    form = make_protocol(cls, {}).getDefinition()
    gone = form.unknown(recorded)
    if gone:
        raise UsageError(
            f"run {args.run!r} cannot be continued, since {cls.__name__} has changed: {'; '.join(gone)}; start a new "
            "run, or bring the param back"
        )
    values = {**recorded, **_parsed(cls, args.settings, here)}
    if values.get("runMode") == MODE_RESTART and any(name == "runMode" for name, _ in args.settings):
        raise UsageError("resume continues a run; to start it anew: mpsteps run TARGET --run-dir RUN --restart")
    values["runMode"] = MODE_RESUME  # the last time may have been a restart: it must not happen again
    values["workingDir"] = _recorded_name(session, directory)
    if "numberOfThreads" not in values and session.get("engine") != "inline":
        values["numberOfThreads"] = session.get("threads") or 1
    if args.threads is not None:
        values["numberOfThreads"] = args.threads
    return make_protocol(cls, values)


def make_protocol(cls: Type[Protocol], values: Values) -> Protocol:
    """An instance. UsageError, with the traceback, for what its author's code raises."""
    try:
        return cls(**values)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{cls.__name__} cannot be set up:\n{user_traceback(error)}") from error


def _parsed(cls: Type[Protocol], settings: Settings, here: Optional[str] = None) -> Values:
    """The values that `--set` gives, by param. UsageError lists all that is wrong with them.

    `here`: the folder that relative paths are meant from, if that is not the current one.
    """
    protocol = make_protocol(cls, {})
    form = protocol.getDefinition()
    values: Values = {}
    problems: List[str] = []
    for name, text in settings:
        renamed = vars(protocol).get(name)
        param = form.getParam(renamed.newParamName if isinstance(renamed, DeprecatedParam) else name)
        if not isinstance(param, Param):
            problems += form.unknown([name]) or [f"{name!r} is a group of params: set its params"]
            continue
        try:
            values[param.name] = param.parse(text)
        except ValueError as error:
            problems.append(str(error))
            continue
        if here is not None and isinstance(param, PathParam) and text:
            values[param.name] = text if here == os.getcwd() else os.path.join(here, text)
    if problems:
        names = ", ".join(name for name, _ in form.iterParams())
        listed = f" (its params are {names})" if any("there is no param" in p for p in problems) else ""
        raise UsageError(f"--set for {cls.__name__}: {'; '.join(problems)}{listed}")
    return values


def _threads_wanted(args: Any) -> Optional[int]:
    """The number that --threads, --set numberOfThreads (None: it is among the values) or the environment gives."""
    if args.threads is not None:
        return int(args.threads)
    if any(name == "numberOfThreads" for name, _ in args.settings):
        return None
    text = os.environ.get("MPSTEPS_THREADS", "").strip()
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"the environment variable MPSTEPS_THREADS must be an integer of at least 1, not {text!r}")
    return int(text)


def _engine_wanted(args: Any) -> Optional[str]:
    if args.engine:
        return str(args.engine)
    text = os.environ.get("MPSTEPS_ENGINE", "").strip()
    if text and text not in ENGINES:
        raise UsageError(f"the environment variable MPSTEPS_ENGINE must be one of {', '.join(ENGINES)}, not {text!r}")
    return text or None


def _uses_threads(protocol: Protocol, engine: Optional[str]) -> bool:
    """Whether its number of threads means anything: for workers, or for the programs of a serial protocol."""
    return protocol.modeParallel() or engine == "processes" or protocol.getDefinition().hasParam("numberOfThreads")


# ------------------------------------------------------------------------------------------------- places


def _directory_name(path: str) -> str:
    if not path:
        raise UsageError("--run-dir is empty: give the path of a directory, or leave it out")
    return os.path.normpath(path)


def _go_back_to(folder: str, run_dir: str) -> None:
    """Relative paths in values and results are meant from where the run was started."""
    if folder == os.getcwd():
        return
    try:
        os.chdir(folder)
        output.note(f"mpsteps resume: working in {folder}, where the run was started")
    except OSError as error:
        output.note(
            f"mpsteps resume: run {run_dir!r} was started in {folder}, which cannot be used ({error.strerror}): "
            f"relative paths are meant from {os.getcwd()} now"
        )


def _recorded_name(session: Dict[str, Any], directory: RunDirectory) -> str:
    """The run directory's path as it was given: arguments of steps contain it, by which they are recognised."""
    name = str(session.get("workingDir") or "")
    if name and os.path.isdir(name) and os.path.samefile(name, directory.path):
        return name
    return os.path.relpath(directory.path)


def _result_files(protocol: Protocol) -> List[str]:
    """The files that the last step returned."""
    return [str(path) for path in protocol.getSteps()[-1].result or ()]


# ------------------------------------------------------------------------------------------------- running


class _LastReport(Listener):
    """Keeps the report, which `run` does not return when it raises."""

    report: Optional[RunReport] = None

    def run_ended(self, run: Any, report: RunReport) -> None:
        self.report = report


class _Run:
    """One run with its progress on stderr; afterwards its report on stdout."""

    def __init__(self, protocol: Any, args: Any, engine: Optional[str]) -> None:
        self.protocol = protocol
        self.args = args
        self.engine = engine
        self._error = ""

    def carry_out(self, in_doubt: str = "rerun", summary: bool = True, more: Any = None) -> int:
        """Returns the exit code. `more(protocol)`: a dict to be added to the JSON of a finished run."""
        last = _LastReport()
        try:
            code = self._run(last, in_doubt)
        except KeyboardInterrupt:
            code = 130
        report = last.report
        if report is not None:
            if self.args.json:
                extra = more(self.protocol) if more and report.ok else {}
                output.put(json.dumps({**json.loads(report.to_json()), **extra}, ensure_ascii=False))
            else:
                output.put(_result_text(report, self.protocol if summary else None))
        if self._error:
            output.note(f"mpsteps {self.args.command}: {self._error}")
        if report is not None and not self.args.quiet:
            _say_what_next(report)
        return code

    def _run(self, last: _LastReport, in_doubt: str) -> int:
        with make_progress(sys.stderr, self.args.quiet) as progress, output.users_output_aside():
            try:
                self._warn()
                report = run(
                    self.protocol, self.engine, (last, progress), True if self.args.keep_going else None,
                    self.args.durability, in_doubt,
                )  # fmt: skip
                return 0 if report.status in ("finished", "interactive") else 1
            except ValidationError as error:
                raise UsageError(_validation_text(self.protocol, error)) from error
            except MpstepsError as error:
                if last.report is None or isinstance(error, InternalError):
                    raise
                self._error = str(error)
            except Exception as error:
                if not comes_from_user(error):
                    raise InternalError(f"{type(error).__name__}: {error}") from error
                self._error = f"{type(self.protocol).__name__} failed outside of its steps:\n{user_traceback(error)}"
        return 1

    def _warn(self) -> None:
        for text in self.protocol.warnings():
            output.note(f"warning: {text}")


def _validation_text(protocol: Protocol, error: ValidationError) -> str:
    count = len(error.messages)
    lines = [f"{type(protocol).__name__} cannot run, {count} problem{'s' if count > 1 else ''} with its values:"]
    lines += [f"  {message}" for message in error.messages]
    return "\n".join(lines)


def _result_text(report: RunReport, protocol: Optional[Protocol]) -> str:
    """What came out, for people: status, failures, and the protocol's own summary if it has written one."""
    if report.ok and report.total and report.kept == report.total:
        return f"nothing is to be done: all {report.total} steps of {report.run_dir} have finished before"
    lines = [report.text().partition("\n")[0]]
    for f in report.failed[:MAX_FAILURES]:
        lines.append(f"  step {f.step} {f.function}{f.arguments} failed: {f.message}")
    if len(report.failed) > MAX_FAILURES:
        lines.append(f"  and {len(report.failed) - MAX_FAILURES} more steps failed")
    if report.skipped:
        lines.append(f"  {report.skipped} steps were skipped, since they come after a failed one")
    if report.ok and protocol is not None and type(protocol)._summary is not Protocol._summary:
        lines += protocol.summary()
    return "\n".join(lines)


def _say_what_next(report: RunReport) -> None:
    run_dir = shlex.quote(report.run_dir)
    if report.failed:
        output.note(f"tracebacks and output of the failed steps: mpsteps steps {run_dir} --failed")
    if not report.ok:
        output.note(f"to run what is missing: mpsteps resume {run_dir}")
