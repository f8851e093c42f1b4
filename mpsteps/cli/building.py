"""From the options of a command, or from the journal of a run, to a protocol with its values."""

from __future__ import annotations

import os
from typing import Any, Dict, List, Optional, Sequence, Tuple, Type

from mpsteps._rundir import RunDirectory
from mpsteps._targets import user_traceback
from mpsteps.cli import output
from mpsteps.constants import MODE_RESTART, MODE_RESUME
from mpsteps.errors import UsageError
from mpsteps.params import DeprecatedParam, Param, PathParam
from mpsteps.protocol import Protocol

Values = Dict[str, Any]
Settings = Sequence[Tuple[str, str]]


def new_protocol(cls: Type[Protocol], args: Any, threads: Optional[int]) -> Protocol:
    values = _parsed(cls, args.settings)
    if threads is not None and (args.threads or "numberOfThreads" not in values):
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


def protocol_again(
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
    except (Exception, SystemExit) as error:
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
        if any("there is no param" in problem for problem in problems):
            problems.append(f"its params are {', '.join(name for name, _ in form.iterParams())}")
        raise UsageError("\n  ".join([f"--set does not fit {cls.__name__}:", *problems]))
    return values


def threads_wanted(args: Any) -> Optional[int]:
    """The number that --threads or else the environment gives; None if neither does."""
    if args.threads is not None:
        return int(args.threads)
    text = os.environ.get("MPSTEPS_THREADS", "").strip()
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"the environment variable MPSTEPS_THREADS must be an integer of at least 1, not {text!r}")
    return int(text)


def _uses_threads(protocol: Protocol, engine: Optional[str]) -> bool:
    """Whether its number of threads means anything: for workers, or for the programs of a serial protocol."""
    return protocol.modeParallel() or engine == "processes" or protocol.getDefinition().hasParam("numberOfThreads")


def _directory_name(path: str) -> str:
    if not path:
        raise UsageError("--run-dir is empty: give the path of a directory, or leave it out")
    return os.path.normpath(path)


def _recorded_name(session: Dict[str, Any], directory: RunDirectory) -> str:
    """The run directory's path as it was given: arguments of steps contain it, by which they are recognised."""
    name = str(session.get("workingDir") or "")
    if name and os.path.isdir(name) and os.path.samefile(name, directory.path):
        return name
    return os.path.relpath(directory.path)
