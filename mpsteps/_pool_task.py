"""One call submitted to a StepPool, and what can be said about it: what it waits for, its name, why it was not run."""

from __future__ import annotations

import functools
import threading
import weakref
from concurrent.futures import CancelledError, Future
from typing import Any, Callable, Dict, List, Optional, Tuple

from mpsteps._core.steps import Demand
from mpsteps._failures import make_error, peak_memory
from mpsteps._ipc import wire
from mpsteps._ipc.wire import Failure
from mpsteps._result_of import ResultOf
from mpsteps.errors import RemoteTraceback, StepCancelled, StepError, UsageError
from mpsteps.report import shorten

_ATOMS = frozenset({type(None), bool, int, float, str, bytes})
_MESSAGE = 400
"""Characters of an exception's text that are repeated in the message of a step that was not run because of it."""

_not_run: weakref.WeakSet[StepError] = weakref.WeakSet()  # made by `not_run`: their cause is the failure itself


class Task:
    """One submitted call.

    `step`: its id in the scheduler, 0 until it is there. `begun`: whether its future runs; None while it is pending,
    False once those who wait for it have been told that it was cancelled (they may be told once). `unfinished`: how
    many futures that are not steps of this pool it waits for. `uses`: steps whose results stand in `args` as ResultOf,
    as often as they do. `key`: what its duration is learned under.
    """

    __slots__ = (
        "args", "begun", "demand", "fn", "future", "key", "kwargs", "name", "step", "timeout", "unfinished", "uses",
        "waits_for",
    )  # fmt: skip

    def __init__(
        self, fn: Callable[..., Any], args: Tuple[Any, ...], kwargs: Dict[str, Any], demand: Demand,
        timeout: Optional[float] = None, name: Optional[str] = None, after: Tuple[Future[Any], ...] = (),
    ) -> None:  # fmt: skip
        self.future: Future[Any] = Future()
        self.fn: Any = fn
        self.key = callable_name(fn)
        self.name = name
        if kwargs and futures_in(kwargs.values()):
            fn, args, kwargs = call_with_keywords, (*args, kwargs, fn), {}
            self.fn = fn
        self.args = args
        self.kwargs = kwargs
        self.demand = demand
        self.timeout = timeout
        self.step = 0
        self.begun: Optional[bool] = None
        self.unfinished = 0
        self.uses: Tuple[int, ...] = ()
        self.waits_for = after
        for a in args:
            if type(a) not in _ATOMS:
                self.waits_for = tuple(dict.fromkeys((*after, *futures_in(args))))
                break

    def __str__(self) -> str:
        return f"{self.name or self.key}{shorten(self.args)}"

    def begin(self) -> bool:
        """Mark the future as running, if it is not; False if it was cancelled: then those who wait for it are told."""
        if self.begun is None:
            try:
                self.begun = self.future.set_running_or_notify_cancel()
            except Exception:  # somebody else has set its result
                self.begun = False
        return self.begun

    def fail(self, error: BaseException) -> None:
        """End the future with an exception, unless it was cancelled."""
        if self.begin():
            self.future.set_exception(error)

    def cancel(self) -> None:
        """Cancel the future if it has not begun, and tell those who wait for it."""
        if self.future.cancel():
            self.begin()

    def resolve(self, step_of: Callable[[Future[Any]], Optional[int]]) -> None:
        """Put values in place of the futures in the arguments: `ResultOf` where `step_of` knows a step that is still
        to finish, what the future holds (raises if it failed) where it does not."""
        uses: List[int] = []

        def replace(value: Any) -> Any:
            kind = type(value)
            if kind in _ATOMS:
                return value
            if kind is list or kind is tuple:
                return kind([replace(v) for v in value])
            if kind is dict:
                return {k: replace(v) for k, v in value.items()}
            if not isinstance(value, Future):
                return value
            step = step_of(value)
            if step is None:
                return value.result(0)
            uses.append(step)
            return ResultOf(step)

        self.args = tuple([replace(a) for a in self.args])
        self.uses = tuple(uses)
        self.waits_for = ()


def call_with_keywords(*args: Any) -> Any:
    """Call the last argument with the one before it as keyword arguments: futures are looked for in `args` only."""
    *positional, keywords, fn = args
    return fn(*positional, **keywords)


def callable_name(fn: Any) -> str:
    """What to call a callable in messages."""
    if type(fn) is functools.partial:
        return f"partial({callable_name(fn.func)})"
    name = getattr(fn, "__qualname__", None)
    return name if type(name) is str else type(fn).__qualname__


def futures_in(values: Any) -> List[Future[Any]]:
    """All futures in `values`, at any depth of lists, tuples and dicts; also where these contain themselves.

    Raises UsageError for a ResultOf: it names a step of a protocol.
    """
    found: List[Future[Any]] = []
    todo = [values]
    seen = set()
    while todo:
        for v in todo.pop():
            kind = type(v)
            if kind in _ATOMS:
                continue
            if kind is list or kind is tuple or kind is dict:
                if id(v) not in seen:
                    seen.add(id(v))
                    todo.append(v.values() if kind is dict else v)
            elif isinstance(v, Future):
                found.append(v)
            elif kind is ResultOf:
                raise UsageError(f"{v!r} names a step of a protocol: give a pool the future that submit returned")
    return found


def failed(future: Future[Any]) -> bool:
    """Whether a future that is done has no result."""
    return future.cancelled() or future.exception(0) is not None


def error_of(future: Future[Any]) -> BaseException:
    """Why a future that is done has no result."""
    return CancelledError() if future.cancelled() else future.exception(0) or CancelledError()


def not_run(task: Task, cause: BaseException) -> StepError:
    """The error of a step that waits for one that failed. Its cause is the first failure of them all."""
    if isinstance(cause, StepError) and cause in _not_run and cause.__cause__ is not None:
        cause = cause.__cause__
    cancelled = isinstance(cause, (CancelledError, StepCancelled))
    kind = StepCancelled if cancelled else StepError
    what = "was cancelled" if cancelled else f"failed ({type(cause).__name__}: {_text(cause)})"
    error = kind(f"step {task} was not run: a step it waits for {what}")
    error.__cause__ = cause
    _not_run.add(error)
    return error


def step_error(task: Task, failure: Failure) -> BaseException:
    """What the future of a failed step raises: the exception of the step itself where it could travel."""
    found = _original(failure.parcel) if failure.parcel is not None else None
    if failure.kind == "exception" and found is not None:
        if found.__cause__ is None:
            found.__cause__ = RemoteTraceback(failure.traceback)
        return found
    where = f" in worker {failure.pid}" if failure.pid else ""
    message = f"step {task} failed{where}: {failure.cause()}{peak_memory(failure)}"
    error = make_error(message, None, failure._replace(parcel=None), found, wire.unpack)
    if error.__cause__ is None and failure.traceback:
        error.__cause__ = RemoteTraceback(failure.traceback)
    return error


def _original(parcel: bytes) -> Optional[BaseException]:
    """The exception in a parcel, opened in a thread of its own.

    The frames of its traceback refer to those that are below them when it is opened: here there are none but these,
    and whoever keeps the exception does not keep what the coordinator had in its hands.
    """
    found: List[Any] = []
    thread = threading.Thread(target=_open_into, args=(found, parcel), name="mpsteps-exception", daemon=True)
    thread.start()
    thread.join()
    error = found.pop() if found else None
    return error if isinstance(error, BaseException) else None


def _open_into(found: List[Any], parcel: bytes) -> None:
    try:
        found.append(wire.unpack(parcel))
    except BaseException:  # also SystemExit: it comes from what the user made
        return  # it loaded in the worker and does not here: its text says what it was


def cannot_travel(error: BaseException, part: str, sentence: str) -> Failure:
    """The failure of a step of which a part cannot travel; `error` is being handled."""
    failure = wire.describe(error, "serialization", part)
    return failure._replace(
        message=f"{sentence} ({failure.type_name}: {failure.message})", parcel=wire.pack_exception(error)
    )


def _text(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception as problem:
        return f"its message cannot be read: {type(problem).__name__}"
    return text if len(text) <= _MESSAGE else f"{text[:_MESSAGE]}..."
