"""`mpsteps run`, `resume` and `demo`: a protocol runs, its progress goes to stderr, its report to stdout."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
from typing import Any, Dict, List, Optional

from mpsteps._event_lines import JsonLines
from mpsteps._live_logs import LiveLogs
from mpsteps._machine import usable_cores
from mpsteps._targets import comes_from_user, load_target, user_traceback
from mpsteps.cli import output
from mpsteps.cli.building import new_protocol, protocol_again, threads_wanted
from mpsteps.cli.history import last_session, open_run
from mpsteps.engines.choice import LOCAL_ENGINES, Cluster, Engine, engine_of
from mpsteps.errors import InternalError, MpstepsError, UsageError, ValidationError
from mpsteps.listeners import Listener
from mpsteps.progress import make_progress
from mpsteps.protocol import Protocol
from mpsteps.report import RunReport
from mpsteps.run import run

MAX_FAILURES = 10
"""So many failed steps are listed at the end of a run; `mpsteps steps RUN --failed` has them all."""

# ------------------------------------------------------------------------------------------------- the commands


def run_command(args: Any) -> int:
    """`mpsteps run TARGET`."""
    with output.users_output_aside():
        protocol = new_protocol(load_target(args.target), args, threads_wanted(args))
    return _Run(protocol, args, _engine_wanted(args)).carry_out()


def demo_command(args: Any) -> int:
    """`mpsteps demo`."""
    try:
        from mpsteps.demo.protocol import ProtDemo, format_defocus_table
    except ImportError as error:
        raise UsageError(str(error)) from error
    if args.micrographs is not None:
        args.settings.append(("micrographs", args.micrographs))
    threads = threads_wanted(args) or max(2, min(4, usable_cores()))
    demo = _Run(new_protocol(ProtDemo, args, threads), args, _engine_wanted(args))
    code = demo.carry_out(summary=False, more=lambda p: {"defocus": p.defocusRows, "files": _result_files(p)})
    if code == 0 and not args.json:
        output.put("\n".join(["", format_defocus_table(demo.protocol.defocusRows), "", *_result_files(demo.protocol)]))
    return code


def resume_command(args: Any) -> int:
    """`mpsteps resume RUN`."""
    directory, history = open_run(args.run)
    session = last_session(directory, history)
    here = os.getcwd()
    if args.events is not None:
        args.events = os.path.abspath(args.events)  # it is meant from here
    _go_back_to(str(session.get("cwd") or here), args.run)
    with output.users_output_aside():
        cls = load_target(str(session.get("target")))
        protocol = protocol_again(cls, session, directory, args, here)
    return _Run(protocol, args, _engine_again(args, session)).carry_out(args.in_doubt)


def _engine_wanted(args: Any) -> Optional[Engine]:
    if args.engine:
        return _with_options(str(args.engine), args)
    text = os.environ.get("MPSTEPS_ENGINE", "").strip()
    if not text:
        return _with_options(None, args)
    try:
        return _with_options(text, args)
    except UsageError as error:
        raise UsageError(f"the environment variable MPSTEPS_ENGINE must be an engine: {error}") from error


def _engine_again(args: Any, session: Dict[str, Any]) -> Optional[Engine]:
    """That of the last session, with what is given now."""
    name = args.engine or session.get("engine")
    last = session.get("cluster") if not args.engine or args.engine == session.get("engine") else None
    return _with_options(str(name) if name else None, args, last or {})


def _with_options(name: Optional[str], args: Any, last: Optional[Dict[str, Any]] = None) -> Optional[Engine]:
    given = {
        "workers": args.workers, "cores": args.cores, "memory": args.job_memory, "partition": args.partition,
        "walltime": args.walltime, "interface": args.interface,
    }  # fmt: skip
    options = {key: value for key, value in given.items() if value is not None}
    if name is None or name in LOCAL_ENGINES:
        if options:
            names = ", ".join("--job-memory" if key == "memory" else f"--{key}" for key in options)
            raise UsageError(f"{names}: only engines 'dask' and 'slurm' have a use for that; choose one with --engine")
        return name
    return engine_of(Cluster(**{**(last or {}), "where": name, **options}))


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


def _result_files(protocol: Protocol) -> List[str]:
    """The files that the last step returned."""
    return [str(path) for path in protocol.getSteps()[-1].result or ()]


# ------------------------------------------------------------------------------------------------- running


class _Watcher(Listener):
    """Tells the protocol's warnings, and keeps the report, which `run` does not return when it raises."""

    trusted = True
    report: Optional[RunReport] = None

    def run_started(self, run: Any, kept: int) -> None:
        try:
            texts = run.protocol.warnings()
        except Exception as error:
            texts = [f"{type(run.protocol).__name__}._warnings failed: {type(error).__name__}: {error}"]
        for text in texts:
            output.note(f"warning: {text}")

    def run_ended(self, run: Any, report: RunReport) -> None:
        self.report = report


class _Run:
    """One run with its progress on stderr; afterwards its report on stdout."""

    def __init__(self, protocol: Any, args: Any, engine: Optional[Engine]) -> None:
        self.protocol = protocol
        self.args = args
        self.engine = engine
        self._error = ""

    def carry_out(self, in_doubt: str = "rerun", summary: bool = True, more: Any = None) -> int:
        """Returns the exit code. `more(protocol)`: a dict to be added to the JSON of a finished run."""
        watcher = _Watcher()
        try:
            code = self._run(watcher, in_doubt)
        except KeyboardInterrupt:
            code = 130
        report = watcher.report
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

    def _run(self, watcher: _Watcher, in_doubt: str) -> int:
        with contextlib.ExitStack() as stack:
            listeners: List[Listener] = [watcher]
            if self.args.events is not None:
                listeners.append(stack.enter_context(contextlib.closing(JsonLines(self.args.events))))
            stack.enter_context(output.users_output_aside())
            progress = stack.enter_context(make_progress(sys.stderr, self.args.quiet))
            if self.args.logs:  # before the display, so that the last lines come before its last figures
                tell = _say_plainly if self.args.quiet else progress.say
                listeners.append(stack.enter_context(contextlib.closing(LiveLogs(tell))))
            listeners.append(progress)
            try:
                report = run(
                    self.protocol, self.engine, listeners, True if self.args.keep_going else None,
                    self.args.durability, in_doubt,
                )  # fmt: skip
                return 0 if report.status in ("finished", "interactive") else 1
            except SystemExit as error:
                name = type(self.protocol).__name__
                self._error = f"{name} called sys.exit() outside of its steps:\n{user_traceback(error)}"
            except ValidationError as error:
                raise UsageError(_validation_text(self.protocol, error)) from error
            except MpstepsError as error:
                if watcher.report is None or isinstance(error, InternalError):
                    raise
                self._error = str(error)
            except Exception as error:
                if not comes_from_user(error):
                    raise InternalError(f"{type(error).__name__}: {error}") from error
                self._error = f"{type(self.protocol).__name__} failed outside of its steps:\n{user_traceback(error)}"
        return 1


def _say_plainly(text: str) -> None:
    output.note("\n".join(map(output.printable, text.split("\n"))))


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
    if report.in_doubt:
        lines.append(f"  {_count(len(report.in_doubt))} had been cut in the middle by a crash and ran again")
    for f in report.failed[:MAX_FAILURES]:
        lines.append(f"  step {f.step} {f.function}{f.arguments} failed: {f.message}")
    if len(report.failed) > MAX_FAILURES:
        lines.append(f"  and {len(report.failed) - MAX_FAILURES} more failed")
    if report.skipped:
        lines.append(f"  {_count(report.skipped)} skipped: what comes after a failed step cannot run")
    if report.ok and protocol is not None and type(protocol)._summary is not Protocol._summary:
        lines += protocol.summary()
    return "\n".join(lines)


def _count(steps: int) -> str:
    return "1 step" if steps == 1 else f"{steps} steps"


def _say_what_next(report: RunReport) -> None:
    run_dir = shlex.quote(report.run_dir)
    if report.failed:
        output.note(f"tracebacks and output of the failed steps: mpsteps steps {run_dir} --failed")
    if not report.ok:
        output.note(f"to run what is missing: mpsteps resume {run_dir}")
