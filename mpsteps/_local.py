"""Running a step in this process: for the `inline` engine, and for steps that are declared `local`.

The step works on the protocol itself. What it changed is described all the same, for the journal, so that a resumed
run sees it; replies have the form that workers send, with the value and the exception as they are.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any, Dict, Optional, Tuple

from mpsteps import _context
from mpsteps._ipc import state, wire
from mpsteps._results import check_result_files

Reply = Tuple[Any, ...]


class Here:
    """A value or an exception that did not cross a process boundary."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


def run_here(message: Tuple[Any, ...], tracker: Optional[state.Tracker], protocol: Any, log: Optional[str]) -> Reply:
    """Run one step: `message` is (id, attempt, callable, args, kwargs, extras). Returns its reply.

    `log`: the file that programs of the step write to; prints go where this process prints.
    """
    step, attempt, function, args, kwargs, extras = message
    context = _context.StepContext(step, attempt, tuple((extras or {}).get("gpus", ())), log)
    token = _context.enter(context)
    found: Dict[str, Any] = {}
    failure: Optional[wire.Failure] = None
    error: Optional[BaseException] = None
    started, cpu = time.perf_counter(), _cpu_seconds()
    try:
        value = function(*args, **kwargs)
        if protocol is not None:
            files = check_result_files(value)
            if files:
                found["files"] = files
        if value is not None:
            found["value"] = Here(value)
    except BaseException as problem:
        failure = wire.describe(problem)
        error = problem
    finally:
        _context.leave(token)
    seconds, used = time.perf_counter() - started, _cpu_seconds() - cpu
    if tracker is not None:
        changes = _changes(tracker, protocol)
        if changes:
            found["changes"] = Here(changes)
    if failure is None:
        return (step, seconds, used, found) if found else (step, seconds, used)
    found["exception"] = Here(error)
    return (step, seconds, used, found, tuple(failure))


def _changes(tracker: state.Tracker, protocol: Any) -> Optional[bytes]:
    """What the step changed, if it can be written down: here nothing depends on it but a later resume."""
    changes = tracker.changes()
    good = []
    for change in changes:
        try:
            good.append(wire.unpack(wire.pack(change, protocol), protocol))
        except Exception as error:
            protocol.warning(
                f"attribute '{change[1]}' cannot be written to the journal ({type(error).__name__}: {error}): a "
                "resumed run will not see what this step put there"
            )
    return wire.pack(good, protocol) if good else None


def _cpu_seconds() -> float:
    """Of this process (of this thread, if the coordinator's loop runs beside it), and of programs that have ended."""
    own = time.process_time() if threading.current_thread() is threading.main_thread() else time.thread_time()
    times = os.times()
    return own + times.children_user + times.children_system
