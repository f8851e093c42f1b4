"""What a protocol's author and user see of a step: its declaration, its status, its result.

Names are Scipion's (camelCase); `step`, the decorator, and `ResultOf` are ours. A `Step` is kept small: a protocol
may have a million of them.
"""

from __future__ import annotations

import datetime
import json
import math
import operator
import re
import typing
from typing import Any, Callable, Iterable, Iterator, NamedTuple, Optional, Tuple, TypeVar, Union

from mpsteps.constants import (
    ACTIVE_STATUS,
    STATUS_ABORTED,
    STATUS_FAILED,
    STATUS_FINISHED,
    STATUS_INTERACTIVE,
    STATUS_NEW,
    STATUS_RUNNING,
    STATUS_WAITING,
)
from mpsteps.errors import PrerequisiteError, StepError, UsageError
from mpsteps.scalars import CsvList, String

F = TypeVar("F", bound=Callable[..., Any])

_ATOMS = frozenset({type(None), bool, int, float, str, bytes})  # arguments in which no ResultOf can stand
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS.update({"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40, "K": 2**10, "M": 2**20, "G": 2**30})


class StepOptions(NamedTuple):
    """What `@step(...)` declares; see there."""

    cpus: int = 1
    memory: int = 0
    gpus: int = 0
    timeout: Optional[float] = None
    retries: int = 0
    local: bool = False


NO_OPTIONS = StepOptions()


def step(
    cpus: int = 1,
    memory: Union[None, int, str] = None,
    gpus: int = 0,
    timeout: Optional[float] = None,
    retries: int = 0,
    local: bool = False,
) -> Callable[[F], F]:
    """Declare what the steps of a method need; put it above the method.

    `cpus`: worker slots it holds (a step that starts threads of its own); `memory`: bytes or '4 GB', held while it
    runs: if it and its programs use more, it is killed; `gpus`: graphics cards; `timeout`: seconds after which it is
    killed (both in worker processes only: nothing else can be killed); `retries`: attempts after the first one (0: a
    step that fails has failed), each after a rest; `local`: it runs in the coordinator process, beside the workers.
    Raises UsageError for values that make no sense.
    """
    if callable(cpus):
        raise UsageError("@step needs parentheses: write @step(), or @step(cpus=2, ...), above the method")
    options = make_options(cpus, memory, gpus, timeout, retries, local)

    def declare(function: F) -> F:
        if not callable(function):
            raise UsageError(f"@step(...) goes above a method, not above {function!r}")
        function.__mpsteps__ = options  # type: ignore[attr-defined]  # functions take attributes
        return function

    return declare


def make_options(
    cpus: int = 1,
    memory: Union[None, int, str] = None,
    gpus: int = 0,
    timeout: Optional[float] = None,
    retries: int = 0,
    local: bool = False,
) -> StepOptions:
    """StepOptions from what a user wrote; UsageError names the value that makes no sense."""
    for name, value, least in (("cpus", cpus, 1), ("gpus", gpus, 0), ("retries", retries, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UsageError(f"{name} of a step must be an integer of at least {least}, not {value!r}")
    number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if timeout is not None and not (number and 0 < timeout < math.inf):
        raise UsageError(f"timeout of a step must be a number of seconds above 0, not {timeout!r}")
    return StepOptions(cpus, parse_memory(memory), gpus, timeout, retries, bool(local))


def parse_memory(text: Union[None, int, str]) -> int:
    """Bytes from 4000000000, '4 GB' or '512 MiB'; 0 for None. Raises UsageError."""
    if text is None:
        return 0
    if isinstance(text, int) and not isinstance(text, bool) and text >= 0:
        return text
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(text))
    unit = match.group(2).upper() if match else None
    if match is None or unit not in _UNITS:
        raise UsageError(f"memory of a step must be bytes or a text such as '4 GB' or '512 MiB', not {text!r}")
    return int(float(match.group(1)) * _UNITS[unit])


class ResultOf:
    """As an argument of a step: the value that an earlier step returned, put in its place when the step runs.

    It is a prerequisite by itself. It may stand inside lists, tuples and dicts.
    """

    __slots__ = ("stepId",)

    def __init__(self, stepId: int) -> None:
        self.stepId = as_step_id(stepId)

    def __repr__(self) -> str:
        return f"ResultOf({self.stepId})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ResultOf) and other.stepId == self.stepId

    def __hash__(self) -> int:
        return hash(("ResultOf", self.stepId))


_INT = {int}


def as_step_id(value: Any) -> int:
    """A 1-based step id from what a protocol's author wrote; PrerequisiteError otherwise."""
    try:
        if isinstance(value, (bool, str)):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise PrerequisiteError(
            f"a prerequisite is the id (an integer) that _insertFunctionStep returned, not {value!r}"
        ) from None
    if number < 1:
        raise PrerequisiteError(f"step ids start at 1: there is no step {number}")
    return number


def as_step_ids(value: Any) -> Tuple[int, ...]:
    """Ids, each once and in order, from one id or any iterable of them."""
    if type(value) is list:  # nearly always of plain integers
        if not value:
            return ()
        if {*map(type, value)} == _INT and min(value) > 0:
            return tuple(value) if len(value) == 1 else tuple(dict.fromkeys(value))
    several = hasattr(value, "__iter__") and not isinstance(value, (str, bytes))
    if several and getattr(value, "ndim", None) != 0:  # an array of no dimension is one number
        return tuple(dict.fromkeys(as_step_id(v) for v in value))
    return (as_step_id(value),)


def results_used(args: Iterable[Any]) -> Iterator[int]:
    """The ids of all steps whose results stand in `args`, at any depth of lists, tuples and dicts."""
    for a in args:
        kind = type(a)
        if kind is ResultOf:
            yield a.stepId
        elif kind is list or kind is tuple:
            yield from results_used(a)
        elif kind is dict:
            yield from results_used(a.values())


def results_taken(args: Tuple[Any, ...]) -> Tuple[int, ...]:
    """The same, each once; quick where there are none."""
    for a in args:
        if type(a) not in _ATOMS:
            return tuple(dict.fromkeys(results_used(args)))
    return ()


def put_results(value: Any, result: Callable[[int], Any]) -> Any:
    """`value` with every ResultOf replaced by `result(its step id)`."""
    kind = type(value)
    if kind is ResultOf:
        return result(value.stepId)
    if kind is list or kind is tuple:
        return kind(put_results(v, result) for v in value)
    if kind is dict:
        return {k: put_results(v, result) for k, v in value.items()}
    return value


class StepSink(typing.Protocol):
    """Where a protocol puts its steps: nowhere special before the run, the coordinator while it runs."""

    def insert(self, step: Step) -> int: ...

    def add_prerequisites(self, step_id: int, prerequisites: Tuple[int, ...]) -> None: ...

    def set_status(self, step_id: int, status: str) -> None: ...

    def key(self, step_id: int) -> str: ...


class StepOwner:
    """What all steps of a protocol share: `sink`, where they turn to while it runs (None: it does not run)."""

    __slots__ = ("sink",)

    def __init__(self, sink: Optional[StepSink] = None) -> None:
        self.sink = sink


_NOBODY = StepOwner()


class Step:
    """One step of a protocol: a function with arguments, and what became of it.

    `result`: the value it returned (None until it finished). `error`: what it failed with, or None.
    """

    __slots__ = (
        "_args", "_ended", "_error", "_func", "_funcName", "_id", "_interactive", "_needsGPU", "_owner",
        "_prerequisites", "_result", "_started", "_status",
    )  # fmt: skip

    def __init__(
        self,
        func: Union[str, Callable[..., Any]],
        funcName: str,
        args: Tuple[Any, ...],
        prerequisites: Tuple[int, ...] = (),
        wait: bool = False,
        interactive: bool = False,
        needsGPU: bool = True,
        owner: StepOwner = _NOBODY,
    ) -> None:
        self._func = func  # the name of a method of the protocol, or any callable
        self._funcName = funcName
        self._args = args
        self._prerequisites = prerequisites
        self._status = STATUS_WAITING if wait else STATUS_NEW
        self._interactive = interactive
        self._needsGPU = needsGPU
        self._id = 0
        self._owner = owner
        self._started: Optional[float] = None  # seconds since the epoch
        self._ended: Optional[float] = None
        self._error: Optional[StepError] = None
        self._result: Any = None

    def __str__(self) -> str:
        return f"{self._id} - {self._funcName}"

    def __repr__(self) -> str:
        return f"<Step {self._id} {self._funcName} {self._status}>"

    # -- what it is

    def getObjId(self) -> int:
        """The 1-based id that `_insertFunctionStep` returned."""
        return self._id

    getIndex = getObjId

    @property
    def funcName(self) -> String:
        """The name of its function, as a String: `.get()`, or compare it with a str."""
        return String(self._funcName)

    @property
    def argsStr(self) -> String:
        """Its arguments as JSON text; what JSON cannot hold stands there as null, as in Scipion."""
        try:
            return String(json.dumps(self._args, default=_null))
        except (TypeError, ValueError, RecursionError):  # keys that are no texts, a circle: these are null as well
            return String(json.dumps([_json_or_null(a) for a in self._args]))

    def getArgs(self) -> Tuple[Any, ...]:
        """The arguments it was inserted with."""
        return self._args

    def needsGPU(self) -> bool:
        """Whether it takes a graphics card while it runs, if the run has any."""
        return self._needsGPU

    def isInteractive(self) -> bool:
        """Whether it waits for a person when it has run."""
        return self._interactive

    def getPrerequisites(self) -> CsvList:
        """The ids of the steps that must finish before it: a list of integers, of its own."""
        return CsvList(int, self._prerequisites)

    def addPrerequisites(self, *newPrerequisites: int) -> None:
        """It waits for these steps as well. PrerequisiteError if it has been started already."""
        ids = tuple(p for p in as_step_ids(newPrerequisites) if p not in self._prerequisites)
        if self._id in ids:
            raise PrerequisiteError(f"step {self} cannot wait for itself")
        if ids and self._owner.sink is not None:
            self._owner.sink.add_prerequisites(self._id, ids)
        self._prerequisites += ids

    def setPrerequisites(self, *newPrerequisites: int) -> None:
        """It waits for these steps and no others; only before the run starts."""
        if self._owner.sink is not None:
            raise PrerequisiteError(f"step {self}: prerequisites can only be added while the protocol runs")
        self._prerequisites = ()
        self.addPrerequisites(*newPrerequisites)

    # -- what became of it

    def getStatus(self) -> str:
        """One of the STATUS_ constants."""
        return self._status

    def setStatus(self, value: str) -> None:
        """STATUS_NEW releases a waiting step, STATUS_WAITING holds one that has not started."""
        if value == self._status:
            return
        if value not in (STATUS_NEW, STATUS_WAITING) or self._status not in (STATUS_NEW, STATUS_WAITING):
            raise UsageError(
                f"step {self} is {self._status}: its status cannot be set to {value!r} by hand; "
                "only 'waiting' and 'new' can, before the step starts"
            )
        if self._owner.sink is not None:
            self._owner.sink.set_status(self._id, value)
        self._status = value

    def isNew(self) -> bool:
        return self._status == STATUS_NEW

    def isWaiting(self) -> bool:
        return self._status == STATUS_WAITING

    def isRunning(self) -> bool:
        return self._status == STATUS_RUNNING

    def isFinished(self) -> bool:
        return self._status == STATUS_FINISHED

    def isFailed(self) -> bool:
        return self._status == STATUS_FAILED

    def isAborted(self) -> bool:
        return self._status == STATUS_ABORTED

    def isActive(self) -> bool:
        return self._status in ACTIVE_STATUS

    def isAwaitingUser(self) -> bool:
        """Whether it ran and waits for a person."""
        return self._status == STATUS_INTERACTIVE

    @property
    def initTime(self) -> String:
        """When it started, as a String with `.datetime()`; empty if it did not."""
        return String(_moment(self._started))

    @property
    def endTime(self) -> String:
        """When it ended, as a String with `.datetime()`; empty if it did not."""
        return String(_moment(self._ended))

    def getElapsedTime(self, default: datetime.timedelta = datetime.timedelta()) -> datetime.timedelta:
        """How long it took, or has taken up to now; `default` if it never started."""
        if self._started is None:
            return default
        end = self._ended if self._ended is not None else datetime.datetime.now().timestamp()
        return datetime.timedelta(seconds=max(0.0, end - self._started))

    @property
    def result(self) -> Any:
        """The value it returned; None for none, and until it has finished."""
        result = self._result
        return result.open() if isinstance(result, Sealed) else result

    @property
    def error(self) -> Optional[BaseException]:
        """What it failed with: the original exception where it could travel, else a StepError; None otherwise."""
        failed = self._error
        return None if failed is None else failed.__cause__ or failed

    def getErrorMessage(self) -> str:
        """Which step failed, where and why, with the last lines of its log; '' if it did not fail."""
        return "" if self._error is None else str(self._error)


class Sealed:
    """A result that is still in the parcel in which it came from a worker, or in a file; opened when somebody asks."""

    __slots__ = ("_unpack", "parcel")

    def __init__(self, parcel: Any, unpack: Callable[[Any], Any]) -> None:
        self.parcel = parcel
        self._unpack = unpack

    def open(self) -> Any:
        """The value. Runs the user's code (unpickling)."""
        return self._unpack(self.parcel)


def _null(_value: Any) -> None:
    """What stands in argsStr for an object."""


def _json_or_null(value: Any) -> Any:
    try:
        return json.loads(json.dumps(value, default=_null))
    except (TypeError, ValueError, RecursionError):
        return None


def _moment(seconds: Optional[float]) -> Optional[str]:
    return None if seconds is None else str(datetime.datetime.fromtimestamp(seconds))
