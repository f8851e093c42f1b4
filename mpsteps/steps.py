"""What a protocol's author and user see of a step: its declaration, its status, its result.

Names are Scipion's (camelCase); `step`, the decorator, and `ResultOf` are ours. A `Step` is kept small: a protocol
may have a million of them.
"""

from __future__ import annotations

import datetime
import json
import typing
from typing import Any, Callable, Optional, Tuple, Union

from mpsteps._result_of import ResultOf, as_step_ids
from mpsteps._step_options import step
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

__all__ = ["ResultOf", "Step", "StepOwner", "StepSink", "step"]


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
