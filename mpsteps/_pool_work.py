"""What steps mean to a StepPool: futures. The coordinator's `Work`, and the thread that its loop runs in.

A task waits in one of two places. Futures of other executors are waited for outside (`_waiting`); when the last of them
is done, the task becomes a step, and waits in the scheduler for the steps of this pool that it needs. So the scheduler
knows steps only, and a future that will never be done costs nothing but its task.

A pool may live for weeks: once nothing is in flight and many ids have been used, a new scheduler begins at 1 again.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from concurrent.futures import Future
from typing import Any, Callable, Dict, List, Optional, Sequence, Set, Tuple

from mpsteps._coordinator import Coordinator
from mpsteps._core.events import StepAdded, WorkerReady
from mpsteps._core.nodes import NodeSlots
from mpsteps._core.scheduler import Scheduler
from mpsteps._core.slots import SlotPool
from mpsteps._core.steps import LOCAL, PLAIN, Demand, Status
from mpsteps._ipc import wire
from mpsteps._ipc.blocks import BlockError
from mpsteps._ipc.large import Parcel, travels_plainly
from mpsteps._ipc.wire import Failure
from mpsteps._large_values import LargeValues
from mpsteps._pool_functions import Functions
from mpsteps._pool_task import Task, callable_name, cannot_travel, error_of, failed, not_run, step_error
from mpsteps._spawn import Spawner
from mpsteps.engines.base import Engine, Message
from mpsteps.engines.choice import Cluster
from mpsteps.engines.processes import ProcessEngine
from mpsteps.errors import EngineError, InternalError

RENEW_AFTER = 100_000
"""So many ids may be used before a scheduler that has nothing to do is replaced."""

_log = logging.getLogger("mpsteps.pool")
_alive: Set[PoolWork] = set()  # pools whose loop runs, also those that nobody holds any more


class PoolWork:
    """Steps of a pool, by id. All but the first section runs in the loop's thread."""

    def __init__(
        self, workers: int, memory: int, gpus: Sequence[int], cluster: Optional[Cluster] = None,
        zygote: Optional[Spawner] = None,
    ) -> None:  # fmt: skip
        self._workers = workers
        self._by_node = cluster is not None
        self._memory = memory
        self._gpus = tuple(gpus)
        # Orders submissions before or after the end. Reentrant: a collected pool may shut down in the middle of it.
        self._gate = threading.RLock()
        self._shut = ""  # why nothing is accepted any more
        self._ended = False  # nobody takes in what is posted
        self._broken: Optional[BaseException] = None
        self._waiting: Set[Task] = set()  # for futures that are not steps here
        self._tasks: Dict[int, Task] = {}  # steps that have not ended
        self._by_future: Dict[Future[Any], Task] = {}  # the same by future
        self._last = 0
        self._closing = False
        self._failures: Dict[int, Failure] = {}  # attempts that have just failed
        self._errors: Dict[int, BaseException] = {}  # of failed steps for which others are still to be skipped
        self._uses: Dict[int, int] = {}  # step -> how often its result stands in arguments of steps that have not ended
        self._parcels: Dict[int, Parcel] = {}  # results of those that have ended
        self._functions = Functions()
        self._large = LargeValues(workers)
        engine = self._made_engine(workers, cluster, zygote)
        self._across = engine.across
        self._coordinator = Coordinator(self._new_scheduler(), engine, self)
        self._thread = threading.Thread(target=self._loop, name="mpsteps-coordinator", daemon=True)

    def _made_engine(self, workers: int, cluster: Optional[Cluster], zygote: Optional[Spawner]) -> Engine:
        if cluster is None:
            return ProcessEngine(workers, self._setup, zygote=zygote)
        from mpsteps.engines.about import about_pool
        from mpsteps.engines.dask.bus import DaskBus
        from mpsteps.engines.remote import RemoteEngine

        engine = RemoteEngine(DaskBus(cluster), self._setup, about_pool(self._gpus))
        engine.open_steps = lambda: self._coordinator.scheduler.open_steps
        return engine

    # -------------------------------------------------------------- from other threads

    def start(self) -> None:
        """Bring the workers up and run the loop in its thread; raises EngineError if that cannot be tried."""
        engine = self._coordinator.engine
        try:
            engine.start()
            _alive.add(self)
            self._thread.start()
        except BaseException:
            _alive.discard(self)
            engine.stop()
            raise

    def call(
        self, fn: Callable[..., Any], args: Tuple[Any, ...], kwargs: Dict[str, Any], demand: Demand = PLAIN,
        timeout: Optional[float] = None, name: Optional[str] = None, after: Tuple[Future[Any], ...] = (),
        calls: Optional[Callable[..., Any]] = None,
    ) -> Future[Any]:  # fmt: skip
        """Take a call in. `calls`: what `fn` calls, to tell its steps from others of `fn`. RuntimeError after the end,
        EngineError when there are no more workers."""
        task = Task(fn, args, kwargs, demand, timeout, name, after)
        if calls is not None:
            task.key = f"{task.key} {callable_name(calls)}"
        with self._gate:
            if self._shut:
                raise RuntimeError(self._shut)
            if self._broken is not None:
                raise EngineError(f"this pool cannot run anything any more: {self._broken}") from self._broken
            self._coordinator.post(task)
        return task.future

    def shut_down(self, cancel: bool = False, when: str = "shutdown") -> None:
        """End when all is done; with `cancel`, cancel what has not been sent to a worker. Does not wait."""

        def tell() -> None:
            self._closing = True
            if cancel:
                self._cancel_pending()

        with self._gate:
            self._shut = self._shut or f"cannot schedule new futures after {when}"
            self._post(tell)

    def forget(self) -> None:
        """This is a fork of the process that made the pool: neither its loop nor its locks are here."""
        self._gate = threading.RLock()
        self._ended = True
        self._shut = "this pool belongs to the process that made it: make another one after a fork"

    def join(self) -> None:
        """Until the loop has ended and no process is left."""
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _post(self, item: Any) -> None:
        with self._gate:
            if not self._ended:
                self._coordinator.post(item)

    # ------------------------------------------------------------------------- the loop

    def _loop(self) -> None:
        try:
            self._coordinator.run()
        except BaseException as error:  # it must reach those who wait for futures: nobody joins this thread
            broken = error if isinstance(error, EngineError) else InternalError(f"{type(error).__name__}: {error}")
            if broken is not error:
                broken.__cause__ = error
            self._fail_everything(broken)
        finally:
            with self._gate:
                self._ended = True
            self._coordinator.engine.stop()
            self._large.close()
            _alive.discard(self)

    def _fail_everything(self, why: BaseException) -> None:
        """No more workers: every future that is not done learns why."""
        with self._gate:
            self._broken = why
        while self._coordinator.has_post():
            _guard(self._coordinator.take_inbox)
        for task in [*self._tasks.values(), *self._waiting]:
            _guard(task.fail, why)
        self._tasks.clear()
        self._by_future.clear()
        self._waiting.clear()

    def _new_scheduler(self) -> Scheduler:
        slots = NodeSlots() if self._by_node else SlotPool(self._workers, self._memory, self._gpus)
        return Scheduler(slots, keep_going=True, ahead=True, across=self._across)

    def _renew(self) -> None:
        """Begin with step 1 again: tables by step id must not grow for ever. Durations are learned anew, which costs
        one round trip for each function and forgets those of long ago."""
        old = self._coordinator.scheduler
        new = self._new_scheduler()
        for worker, _ in old.lanes():
            if worker != LOCAL:
                new.handle(WorkerReady(worker, old.node_of(worker)))
        self._coordinator.renew(new)
        self._errors.clear()
        self._last = 0

    def take_in(self, task: Task) -> None:
        """A posted task becomes a step, waits for futures of others, or ends at once when one has failed."""
        if self._broken is not None:
            task.fail(self._broken)
            return
        others = [f for f in task.waits_for if f not in self._by_future and not f.done()] if task.waits_for else ()
        if others:
            self._wait_for(task, others)
        else:
            self._add(task)

    def _wait_for(self, task: Task, others: Sequence[Future[Any]]) -> None:
        self._waiting.add(task)
        task.unfinished = len(others)

        def one_less() -> None:
            task.unfinished -= 1
            if not task.unfinished and task in self._waiting:
                self._waiting.discard(task)
                self.take_in(task)

        for f in others:
            f.add_done_callback(lambda _: self._post(one_less))

    def _add(self, task: Task) -> None:
        if not self._tasks and self._last >= RENEW_AFTER:
            self._renew()
        before = self._prerequisites(task) if task.waits_for else ()
        if before is None:
            return
        self._last = task.step = step = self._last + 1
        self._tasks[step] = task
        self._by_future[task.future] = task
        self._coordinator.handle(StepAdded(step, before, False, task.demand, task.key, tuple(task.uses)))

    def _prerequisites(self, task: Task) -> Optional[Tuple[int, ...]]:
        """The steps that a task still waits for; None if it has ended here, because one of its futures has failed."""
        before: List[int] = []
        for f in task.waits_for:
            other = self._by_future.get(f)
            if other is not None:
                before.append(other.step)
            elif failed(f):
                _guard(task.fail, not_run(task, error_of(f)))
                return None
        try:
            task.resolve(self._step_of)
        except Exception as error:  # arguments that contain themselves, or somebody's own kind of Future
            _guard(task.fail, error)
            return None
        for used in task.uses:
            self._uses[used] = self._uses.get(used, 0) + 1
        return tuple(before)

    def _step_of(self, future: Future[Any]) -> Optional[int]:
        task = self._by_future.get(future)
        return None if task is None else task.step

    def _cancel_pending(self) -> None:
        waiting, self._waiting = self._waiting, set()
        for task in waiting:
            _guard(task.cancel)
        for step, task in list(self._tasks.items()):
            if self._coordinator.scheduler.status(step) in (Status.READY, Status.BLOCKED):
                _guard(task.cancel)

    def _setup(self, worker: int) -> Dict[str, Any]:
        return {"arena": self._large.for_workers}

    # ------------------------------------------------------------- the coordinator's Work

    def message(self, worker: int, step: int, attempt: int, gpus: Tuple[int, ...]) -> Message | Failure:
        """The step message; a Failure if it was cancelled or cannot travel."""
        task = self._tasks[step]
        if not task.begin():
            return Failure("cancelled", "CancelledError", "it was cancelled")
        extras: Dict[str, Any] = {"gpus": gpus} if gpus else {}
        part = "function"
        try:
            fn = self._functions.pack(worker, task.fn)
            part = ""
            args: Any = task.args
            if task.kwargs or not travels_plainly(args):
                args = self._large.pack((args, task.kwargs), ("step", step))
        except BaseException as error:  # also SystemExit: it comes from what the user made
            part = part or wire.what_cannot_travel(task.args, task.kwargs)
            return cannot_travel(error, part, f"its {part} cannot travel to a worker process")
        if task.uses:
            extras["results"] = {used: self._told(used, step) for used in task.uses}
        return (step, attempt, fn, args, None, extras or None)

    def _told(self, used: int, step: int) -> Optional[Parcel]:
        """The result of `used` for `step`; None if it is sent just before it."""
        parcel = self._parcels.get(used)
        return None if parcel is None else self._large.tell(parcel, ("step", step))

    def messages(self, worker: int, steps: Tuple[int, ...]) -> List[Message | Failure]:
        """Those of several ordinary steps."""
        return [self.message(worker, step, 1, ()) for step in steps]

    def errands(self) -> List[Tuple[int, Message]]:
        """Blocks of large values that workers may free."""
        return self._large.orders()

    def take_orders(self) -> List[Message]:
        """Orders that must reach the worker before the messages just made."""
        return self._functions.take_orders()

    def finished(
        self, worker: int, pid: int, step: int, seconds: float, cpu: float, extras: Optional[Dict[str, Any]]
    ) -> Optional[Failure]:
        """Set the future's result; a Failure if the value cannot be loaded here."""
        task = self._tasks[step]
        value = None
        parcel: Parcel = _NONE
        self._large.answered(worker, extras)
        if extras and "value" in extras:
            parcel = extras["value"]
            try:
                self._large.hold(worker, parcel, ("value", step))
                value = self._large.open(parcel)
            except BlockError as error:
                return Failure("lost", "StepLost", f"it finished, and its result went with its worker: {error}")
            except BaseException as error:  # also SystemExit: it comes from what the user made
                return cannot_travel(error, "result", "its result cannot be loaded")
        if step in self._uses:
            self._parcels[step] = parcel
        else:
            self._large.end(("value", step))
        self._leave(task)
        _guard(task.future.set_result, value)
        return None

    def finished_all(
        self, worker: int, pid: int, steps: Tuple[int, ...], seconds: List[float], cpu: List[float]
    ) -> None:
        """Steps that returned None."""
        for step in steps:
            self.finished(worker, pid, step, 0.0, 0.0, None)

    def _leave(self, task: Task) -> None:
        """The step has ended: forget it, and results that nobody needs any more."""
        self._large.end(("step", task.step))
        del self._tasks[task.step]
        del self._by_future[task.future]
        for used in task.uses:
            left = self._uses[used] = self._uses[used] - 1
            if not left:
                del self._uses[used]
                self._parcels.pop(used, None)
                self._large.end(("value", used))

    def failed(
        self, worker: int, pid: int, step: int, attempt: int, seconds: float, cpu: float,
        extras: Optional[Dict[str, Any]], failure: Failure,
    ) -> None:  # fmt: skip
        """Remember why, for `closed`."""
        self._failures[step] = failure._replace(pid=failure.pid or pid)
        self._large.failed(worker, step, extras)

    def closed(self, steps: Tuple[int, ...], status: Status, because: Optional[int]) -> None:
        """Futures of failed and skipped steps learn why."""
        if status is Status.FAILED:
            step = steps[0]
            failure = self._failures.pop(step)
            error = step_error(self._tasks[step], failure)
            self._errors[step] = error
            self._end(step, error)
        elif status is Status.SKIPPED and because is not None:
            for step in steps:
                self._end(step, not_run(self._tasks[step], self._errors[because]))

    def _end(self, step: int, error: BaseException) -> None:
        task = self._tasks[step]
        self._leave(task)
        _guard(task.fail, error)

    def commit(self) -> None:
        """The end of a turn. Nothing is written down."""
        if self._errors:
            still = self._coordinator.scheduler.to_be_blamed()
            self._errors = {step: error for step, error in self._errors.items() if step in still}

    def is_over(self) -> bool:
        """After `shut_down`, when nothing is left."""
        return self._closing and not self._tasks and not self._waiting and not self._coordinator.has_post()

    def worker_gone(self, worker: int) -> None:
        """What it knew is gone."""
        self._functions.forget_worker(worker)
        self._large.gone(worker)

    def timeout(self, step: int) -> Optional[float]:
        """Seconds it may run."""
        task = self._tasks.get(step)
        return task.timeout if task else None

    def answer(self, worker: int, step: int, name: str, parcel: bytes) -> bytes:
        """Steps of a pool have nothing to ask."""
        return wire.pack((False, InternalError(f"a step of a pool asked for {name!r}")))

    def told(self, worker: int, message: Message) -> None:
        """In a pool there is nothing that all steps share."""
        raise InternalError(f"a step of a pool told {message!r}")

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
        for step in steps:
            self._large.end(("step", step))

    def worker_up(self, worker: int, pid: int) -> None:
        """Nothing to do."""

    def is_interactive(self, step: int) -> bool:
        """Never."""
        return False

    def next_call(self, now: float) -> Optional[float]:
        """No timers."""
        return None

    def on_time(self, now: float) -> None:
        """No timers."""


def end_all() -> None:
    """Let what was submitted to any pool finish, and wait for it."""
    pools = list(_alive)
    for work in pools:
        work.shut_down(when="interpreter shutdown")
    for work in pools:
        work.join()


def _forget_all() -> None:
    for work in _alive:
        work.forget()
    _alive.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)

_NONE = wire.pack(None)


def _guard(complete: Callable[..., Any], *args: Any) -> None:
    """Complete a future. Its callbacks are the user's: what they raise must not end the loop."""
    try:
        complete(*args)
    except BaseException:
        _log.exception("a callback of a future of this pool raised")


# Results that were submitted are worth waiting for at the end of the program, as with the standard library's executors.
atexit.register(end_all)
