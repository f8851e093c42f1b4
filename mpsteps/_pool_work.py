"""What steps mean to a StepPool: futures. The coordinator's `Work`, and the thread that its loop runs in."""

from __future__ import annotations

import sys
import threading
import types
from concurrent.futures import CancelledError, Future
from typing import Any, Callable, Dict, List, Optional, Sequence, Set, Tuple, Union

from mpsteps._coordinator import Coordinator
from mpsteps._core.events import StepAdded
from mpsteps._core.scheduler import Scheduler
from mpsteps._core.slots import SlotPool
from mpsteps._core.steps import Demand, Status
from mpsteps._failures import make_error, original
from mpsteps._ipc import wire
from mpsteps._ipc.wire import Failure
from mpsteps.engines.base import Message
from mpsteps.engines.processes import ProcessEngine
from mpsteps.errors import EngineError, InternalError, RemoteTraceback, StepCancelled, StepError
from mpsteps.report import shorten
from mpsteps.steps import ResultOf, results_used


class Task:
    """One submitted call. `step` is its id once the loop has taken it in."""

    __slots__ = ("args", "demand", "fn", "future", "kwargs", "name", "step", "timeout", "waits_for")

    def __init__(
        self, future: Future[Any], fn: Callable[..., Any], args: Tuple[Any, ...], kwargs: Dict[str, Any],
        demand: Demand, timeout: Optional[float], name: Optional[str],
    ) -> None:  # fmt: skip
        self.future = future
        self.fn: Any = fn
        self.args = args
        self.kwargs = kwargs
        self.demand = demand
        self.timeout = timeout
        self.name = name
        self.step = 0
        self.waits_for: Tuple[Future[Any], ...] = ()

    def __str__(self) -> str:
        name = self.name or getattr(self.fn, "__qualname__", None) or type(self.fn).__name__
        return f"{name}{shorten(self.args)}"


class PoolWork:
    """Steps of a pool, by id. All but `submit`, `shut_down` and `join` runs in the loop's thread."""

    def __init__(self, workers: int, memory: int, gpus: Sequence[int]) -> None:
        self._tasks: Dict[int, Task] = {}  # not ended
        self._by_future: Dict[Future[Any], Task] = {}  # the same by future, for `after` and arguments
        self._last = 0
        self._failures: Dict[int, Failure] = {}
        self._error_of: Tuple[int, Optional[BaseException]] = (0, None)  # the last failed step: those skipped follow
        self._uses: Dict[int, int] = {}  # step -> how often its result stands in arguments of steps that have not ended
        self._parcels: Dict[int, bytes] = {}  # results of those that have ended
        self._numbers: Dict[Any, int] = {}  # published function -> its number
        self._published: List[bytes] = []
        self._known: Dict[int, Set[int]] = {}  # worker -> numbers of the functions it has been sent
        self._orders: List[Message] = []
        self._shut = False
        self._cancel = False
        self._broken: Optional[BaseException] = None
        engine = ProcessEngine(workers, self._setup)
        scheduler = Scheduler(SlotPool(workers, memory, gpus), keep_going=True)
        self._coordinator = Coordinator(scheduler, engine, self)
        self._thread = threading.Thread(target=self._loop, name="mpsteps-coordinator", daemon=True)
        self._gpus = tuple(gpus)

    # -------------------------------------------------------------- from other threads

    def start(self) -> None:
        """Bring the workers up; raises EngineError if that cannot be tried. Then run the loop in its thread."""
        self._coordinator.engine.start()
        self._thread.start()

    def submit(self, task: Task, after: Tuple[Future[Any], ...]) -> None:
        """Take a task in; it waits for futures that are not this pool's before the loop hears of it."""
        waits = dict.fromkeys(after)
        if any(type(a) not in _ATOMS for a in task.args):
            waits.update(dict.fromkeys(_futures_in(task.args)))
        task.waits_for = tuple(waits)
        if not waits:
            self._coordinator.post(task)
            return
        foreign = [f for f in waits if not f.done() and f not in self._by_future]
        _Countdown(len(foreign), lambda: self._coordinator.post(task)).watch(foreign)

    def shut_down(self, cancel: bool = False) -> None:
        """End when all is done; with `cancel`, cancel what has not been sent to a worker."""

        def tell() -> None:
            self._shut = True
            if cancel:
                self._cancel_pending()

        self._coordinator.post(tell)

    def join(self) -> None:
        """Until the loop has ended and no process is left."""
        if threading.current_thread() is not self._thread:
            self._thread.join()

    # ------------------------------------------------------------------------- the loop

    def _loop(self) -> None:
        try:
            self._coordinator.run()
        except BaseException as error:  # it must reach those who wait for futures: nobody joins this thread
            self._broken = error if isinstance(error, EngineError) else InternalError(f"{type(error).__name__}: {error}")
            self._broken.__cause__ = error
            self._fail_everything()
        finally:
            self._coordinator.engine.stop()

    def _fail_everything(self) -> None:
        """No more workers: every future that is not done learns why, also those still to come."""
        while self._coordinator.has_post():
            self._coordinator.take_inbox()
        for task in list(self._tasks.values()):
            if not task.future.done():
                _set_exception(task.future, self._broken or InternalError("the pool has ended"))
        self._tasks.clear()
        self._by_future.clear()

    def take_in(self, task: Task) -> None:
        """A posted task becomes a step, or ends at once when something it waits for has failed."""
        if self._broken is not None:
            _set_exception(task.future, self._broken)
            return
        self._last = step = self._last + 1
        task.step = step
        before: List[int] = []
        for f in task.waits_for:
            other = self._by_future.get(f)
            if other is not None:
                before.append(other.step)
            elif not f.done() or f.cancelled() or f.exception() is not None:
                self._not_run(task, f)
                return
        self._tasks[step] = task
        self._by_future[task.future] = task
        if task.waits_for:
            task.args = self._resolve(task)
            task.waits_for = ()
        self._coordinator.handle(StepAdded(step, tuple(before), False, task.demand, _learning_key(task.fn)))

    def _resolve(self, task: Task) -> Tuple[Any, ...]:
        """Futures in the arguments become their values, or `ResultOf` where they are still to come."""

        def replace(value: Any) -> Any:
            if isinstance(value, Future):
                other = self._by_future.get(value)
                if other is None:
                    return value.result()
                self._uses[other.step] = self._uses.get(other.step, 0) + 1
                return ResultOf(other.step)
            kind = type(value)
            if kind is list or kind is tuple:
                return kind(replace(v) for v in value)
            return {k: replace(v) for k, v in value.items()} if kind is dict else value

        return tuple(replace(a) for a in task.args)

    def _not_run(self, task: Task, because: Future[Any]) -> None:
        cause: BaseException = CancelledError() if because.cancelled() else because.exception() or CancelledError()
        _set_exception(task.future, _prerequisite_error(task, cause))

    def _cancel_pending(self) -> None:
        for step, task in list(self._tasks.items()):
            if self._coordinator.scheduler.status(step) in (Status.READY, Status.BLOCKED):
                task.future.cancel()

    def _setup(self, worker: int) -> Dict[str, Any]:
        self._known[worker] = set()
        return {}

    # ------------------------------------------------------------- the coordinator's Work

    def message(self, worker: int, step: int, attempt: int, gpus: Tuple[int, ...]) -> Any:
        """The step message; a Failure if it was cancelled or cannot travel."""
        task = self._tasks[step]
        if attempt == 1 and not task.future.running() and not task.future.set_running_or_notify_cancel():
            return Failure("cancelled", "CancelledError", "it was cancelled")
        extras: Optional[Dict[str, Any]] = {"gpus": [self._gpus[g] for g in gpus]} if gpus else None
        part = "function"
        try:
            fn = self._function(worker, task.fn)
            part = ""
            args = wire.pack_arguments(task.args, task.kwargs)
        except Exception as error:
            part = part or wire.what_cannot_travel(task.args, task.kwargs)
            failure = wire.describe(error, "serialization", part)
            return failure._replace(
                message=f"{part} cannot travel to a worker process ({failure.type_name}: {failure.message})",
                parcel=wire.pack_exception(error),
            )
        if type(args) is bytes:
            used = set(results_used(task.args))
            if used:
                extras = {**(extras or {}), "results": {u: self._parcels[u] for u in used}}
        return (step, attempt, fn, args, None, extras)

    def _function(self, worker: int, fn: Any) -> Union[int, bytes]:
        """A number for a function that the worker can import, sent once; a parcel each time for any other, whose
        state (closure, globals of __main__) may have changed since the last time."""
        number = self._numbers.get(fn) if type(fn) in _PUBLISHABLE else None
        if number is None:
            if not _is_importable(fn):
                return wire.pack(fn)
            number = self._numbers[fn] = len(self._published)
            self._published.append(wire.pack(fn))
        known = self._known[worker]
        if number not in known:
            known.add(number)
            self._orders.append((-wire.FUNCTION, number, self._published[number]))
        return number

    def take_orders(self) -> List[Message]:
        """Orders that must reach the worker before the messages just made."""
        orders, self._orders = self._orders, []
        return orders

    def finished(
        self, worker: int, pid: int, step: int, seconds: float, cpu: float, extras: Optional[Dict[str, Any]]
    ) -> Optional[Failure]:
        """Set the future's result; a Failure if the value cannot be loaded here."""
        task = self._tasks[step]
        value = None
        if extras and "value" in extras:
            parcel = extras["value"]
            try:
                value = wire.unpack(parcel)
            except BaseException as error:
                failure = wire.describe(error, "serialization", "result")
                return failure._replace(
                    message=f"the result cannot be loaded ({failure.type_name}: {failure.message})",
                    parcel=wire.pack_exception(error),
                )
        else:
            parcel = _NONE
        if step in self._uses:
            self._parcels[step] = parcel
        self._leave(task)
        task.future.set_result(value)
        return None

    def _leave(self, task: Task) -> None:
        """The step has ended: forget it, and results that nobody needs any more."""
        self._tasks.pop(task.step, None)
        self._by_future.pop(task.future, None)
        if task.args and any(type(a) not in _ATOMS for a in task.args):
            for used in results_used(task.args):
                left = self._uses[used] = self._uses[used] - 1
                if not left:
                    del self._uses[used]
                    self._parcels.pop(used, None)

    def failed(
        self, worker: int, pid: int, step: int, attempt: int, seconds: float, cpu: float,
        extras: Optional[Dict[str, Any]], failure: Failure,
    ) -> None:  # fmt: skip
        """Remember why, for `closed`."""
        self._failures[step] = failure._replace(pid=failure.pid or pid)

    def closed(self, steps: Tuple[int, ...], status: Status, because: Optional[int]) -> None:
        """Futures of failed and skipped steps learn why."""
        if status is Status.FAILED:
            task = self._tasks[steps[0]]
            failure = self._failures.pop(steps[0])
            self._leave(task)
            error = self._error(task, failure)
            self._error_of = (steps[0], error)
            if not task.future.cancelled():
                _set_exception(task.future, error)
        elif status is Status.SKIPPED and because is not None:
            for step in steps:
                task = self._tasks[step]
                self._leave(task)
                if task.future.set_running_or_notify_cancel():
                    _set_exception(task.future, _prerequisite_error(task, self._why(because)))

    def _why(self, step: int) -> BaseException:
        """Why `step` failed. The scheduler tells of skipped steps right after the failure, or when they are added."""
        known, error = self._error_of
        return error if known == step and error is not None else StepError("a step before it failed")

    def _error(self, task: Task, failure: Failure) -> BaseException:
        if failure.kind == "exception":
            found = original(failure, wire.unpack)
            if found is not None:
                if found.__cause__ is None:
                    found.__cause__ = RemoteTraceback(failure.traceback)
                return found
        where = f" in worker {failure.pid}" if failure.pid else ""
        error = make_error(f"step {task} failed{where}: {failure.cause()}", None, failure, None, wire.unpack)
        if error.__cause__ is None and failure.traceback:
            error.__cause__ = RemoteTraceback(failure.traceback)
        return error

    def is_over(self) -> bool:
        """After `shut_down`, when nothing is left."""
        return self._shut and not self._tasks and not self._coordinator.has_post()

    def worker_gone(self, worker: int) -> None:
        """What it knew is gone."""
        self._known.pop(worker, None)

    def timeout(self, step: int) -> Optional[float]:
        """Seconds it may run."""
        task = self._tasks.get(step)
        return task.timeout if task else None

    def answer(self, worker: int, step: int, name: str, parcel: bytes) -> bytes:
        """Steps of a pool have nothing to ask."""
        return wire.pack((False, InternalError(f"a step of a pool asked for {name!r}")))

    def dispatching(self, pid: int, attempt: int, steps: Tuple[int, ...]) -> None:
        """Nothing is written down."""

    def run_local(self, step: int, message: Message) -> None:
        """There are no local steps in a pool."""
        raise InternalError(f"step {step} of a pool is local")

    def running(self, step: int) -> None:
        """The future has been told when the step was sent."""

    def retry(self, step: int, attempt: int) -> None:
        """The future learns nothing of it."""
        self._failures.pop(step, None)

    def returned(self, steps: Tuple[int, ...]) -> None:
        """They are sent again; their futures count as running."""

    def worker_up(self, worker: int, pid: int) -> None:
        """Nothing to do."""

    def is_interactive(self, step: int) -> bool:
        """Never."""
        return False

    def commit(self) -> None:
        """Nothing is written down."""

    def next_call(self, now: float) -> Optional[float]:
        """No timers."""
        return None

    def on_time(self, now: float) -> None:
        """No timers."""


class _Countdown:
    """Calls `then` when all of some futures are done, at once if there are none."""

    def __init__(self, count: int, then: Callable[[], None]) -> None:
        self._left = count
        self._then = then
        self._lock = threading.Lock()  # callbacks come from whichever thread completes a future

    def watch(self, futures: List[Future[Any]]) -> None:
        if not futures:
            self._then()
        for f in futures:
            f.add_done_callback(self._one)

    def _one(self, _future: Future[Any]) -> None:
        with self._lock:
            self._left -= 1
            last = self._left == 0
        if last:
            self._then()


_ATOMS = frozenset({type(None), bool, int, float, str, bytes})
_PUBLISHABLE = frozenset({types.FunctionType, types.BuiltinFunctionType, type})
_NONE = wire.pack(None)


def _is_importable(fn: Any) -> bool:
    """Whether a worker finds this very function under its module and name; not so for what is in __main__."""
    if type(fn) not in _PUBLISHABLE:
        return False
    module, name = getattr(fn, "__module__", None), getattr(fn, "__qualname__", "")
    if not module or module == "__main__" or "." in name or module in cloudpickle_by_value():
        return False
    return getattr(sys.modules.get(module), name, None) is fn


def cloudpickle_by_value() -> Set[str]:
    """Modules whose functions the user wants to travel by value."""
    import cloudpickle

    return set(cloudpickle.list_registry_pickle_by_value())


def _learning_key(fn: Any) -> Any:
    """Under what the durations of this callable are learned."""
    return getattr(fn, "__qualname__", None) or type(fn).__qualname__


def _futures_in(args: Any) -> List[Future[Any]]:
    found: List[Future[Any]] = []
    for a in args:
        if isinstance(a, Future):
            found.append(a)
        elif type(a) in (list, tuple):
            found.extend(_futures_in(a))
        elif type(a) is dict:
            found.extend(_futures_in(a.values()))
    return found


def _set_exception(future: Future[Any], error: BaseException) -> None:
    if future.cancelled() or (not future.running() and not future.set_running_or_notify_cancel()):
        return  # cancelled: whoever waits for it knows
    future.set_exception(error)


def _prerequisite_error(task: Task, cause: BaseException) -> StepError:
    cancelled = isinstance(cause, (CancelledError, StepCancelled))
    kind = StepCancelled if cancelled else StepError
    what = "was cancelled" if cancelled else f"failed ({type(cause).__name__}: {cause})"
    error = kind(f"step {task} was not run: a step it waits for {what}")
    error.__cause__ = cause
    return error
