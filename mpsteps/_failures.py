"""From a Failure to the exception that a user meets: which step, where, why, with its last log lines."""

from __future__ import annotations

import re
from typing import Any, Callable, Dict, Optional, Type

from mpsteps._ipc.wire import Failure
from mpsteps.errors import SerializationError, StepCancelled, StepError, StepLost, StepOutOfMemory, StepTimeout
from mpsteps.report import format_bytes, shorten

LOG_LINES = 20
_OUR_FRAME = re.compile(r'\s*File "(?:.*[/\\]mpsteps[/\\]_(?:worker|zygote)\.py|<string>)", line \d+ in ')
"""What faulthandler writes of the frames below a step: they say nothing to a user, and would push the others out."""

_KINDS: Dict[str, Type[StepError]] = {
    "lost": StepLost,
    "memory": StepOutOfMemory,
    "timeout": StepTimeout,
    "cancelled": StepCancelled,
    "serialization": SerializationError,
}


def step_error(
    step: Any, failure: Failure, exception: Optional[BaseException], unpack: Callable[[bytes], Any]
) -> StepError:
    """The StepError of a failed step of a protocol; the original exception, where it travelled, is its `__cause__`."""
    where = f" in worker {failure.pid}" if failure.pid else ""
    message = f"step {step._id} {step._funcName}{shorten(step._args)} failed{where}: {failure.cause()}"
    message = "\n".join(_printable(line) for line in message.split("\n"))
    message += peak_memory(failure)
    lines = [line for line in failure.log.splitlines() if not _OUR_FRAME.match(line)][-LOG_LINES:]
    if lines:
        message += "\nits last output:\n" + "\n".join(f"  {_printable(line)}" for line in lines)
    return make_error(message, step._id, failure, exception, unpack)


def peak_memory(failure: Failure) -> str:
    """A line for the message; '' where it is not known."""
    return f"\npeak memory of its worker: {format_bytes(failure.peak_kib * 1024)}" if failure.peak_kib else ""


def make_error(
    message: str, step_id: Optional[int], failure: Failure, exception: Optional[BaseException],
    unpack: Callable[[bytes], Any],
) -> StepError:  # fmt: skip
    """A StepError of the kind that the failure is."""
    error = _KINDS.get(failure.kind, StepError)(message, step_id, failure.cause(), failure.traceback)
    if isinstance(error, StepLost):
        error.pid, error.exitcode = failure.pid, failure.exitcode
    if isinstance(error, SerializationError):
        error.part = failure.part
    error.__cause__ = exception if exception is not None else original(failure, unpack)
    return error


def original(failure: Failure, unpack: Callable[[bytes], Any]) -> Optional[BaseException]:
    """The exception that the step raised, with its remote traceback; None if it could not travel."""
    if failure.parcel is None:
        return None
    try:
        found = unpack(failure.parcel)
    except (Exception, SystemExit, GeneratorExit):
        return None  # it loaded in the worker and does not here (a module is missing): its text says what it was
    return found if isinstance(found, BaseException) else None


def _printable(line: str) -> str:
    """Control characters in what a program or an exception says must not steer the terminal that shows it."""
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode("ascii") for c in line)
