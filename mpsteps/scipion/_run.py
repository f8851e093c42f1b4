"""One call of `runSteps`: the scheduler's commands carried out, in the main process and thread, without polling.

When a step has ended, the order is: its changes are merged into the protocol, its status is set, Scipion is told (and
writes it to steps.sqlite and run.db), the scheduler is told, the next ones begin. Of steps that failed Scipion is told
last, when those beside them have ended: that call makes the protocol a failed one.
"""

from __future__ import annotations

import collections
import heapq
import itertools
import logging
import os
import selectors
import time
from typing import Any, Callable, Deque, Dict, List, Optional, Tuple

from pyworkflow.protocol import constants as cts
from pyworkflow.protocol.protocol import Protocol

from mpsteps._core.events import (
    Dispatch,
    Event,
    StepFailed,
    StepInteractive,
    StepsFinished,
    StepsReturned,
    StopRequested,
    WorkerReady,
)
from mpsteps._core.scheduler import Scheduler
from mpsteps._core.slots import SlotPool
from mpsteps._core.steps import LOCAL, Demand, Status
from mpsteps.errors import PrerequisiteError
from mpsteps.scipion._choice import Choice
from mpsteps.scipion._commits import Commits
from mpsteps.scipion._database import Database
from mpsteps.scipion._gpus import GPU, Gpus
from mpsteps.scipion._listing import Listing, name_of, store_new
from mpsteps.scipion._main_steps import MainStep
from mpsteps.scipion._sharing import Sharing
from mpsteps.scipion._workers import Workers

logger = logging.getLogger(__name__)

class Run:
    """`protocol`'s `steps`, with Scipion's callbacks: `started(step)`, `finished(step)` (False: begin no more),
    `check()`, to be called every `seconds`."""

    def __init__(
        self, executor: Any, protocol: Any, steps: List[Any], started: Callable[[Any], Any],
        finished: Callable[[Any], Any], check: Callable[[], Any], seconds: float,
    ) -> None:  # fmt: skip
        self.executor = executor
        self.protocol = protocol
        self.steps = steps
        self._started = started
        self._finished = finished
        self._check_callback = check
        self._seconds = seconds
        slots = executor.numberOfProcs
        self._gpus = Gpus(executor)
        self._scheduler = Scheduler(SlotPool(slots, tokens={GPU: self._gpus.slots}), ranked=False)
        self.choice = self._choice = Choice(protocol)
        self._listing = Listing(steps, self._demand)
        self.sharing = Sharing(protocol, steps)
        self._workers = Workers(self)
        self._commits = Commits(protocol)
        self.database = Database(protocol)
        self._in_main = 0  # steps that run in threads of this process
        self._running: Dict[int, Tuple[int, int, float]] = {}  # step -> place, id of its "thread", when it began
        self._at_the_end: List[Any] = []  # steps of which Scipion is told last
        self._pauses = 0
        self._held: List[Tuple[int, int]] = []  # places and steps that would have begun during a pause
        self._problem: Optional[BaseException] = None
        self._news: Deque[Callable[[], None]] = collections.deque()  # from other threads
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._selector = selectors.DefaultSelector()
        self._timers: List[Tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()

    # --------------------------------------------------------------------- the loop

    def run(self) -> None:
        """Until nothing runs and nothing can. Raises what a callback of Scipion's raised."""
        self._open()
        try:
            for worker in range(1, self.executor.numberOfProcs + 1):
                self._handle(WorkerReady(worker))
            self._look()
            self.later(self._seconds, self._check_in_time)
            self._turn_until_done()
            for step in reversed(self._at_the_end):
                self._tell(self._finished, step)
            if self._at_the_end:
                self._tell(self._check_callback)
        finally:
            self._close()
        if self._problem is not None:
            raise self._problem

    def _turn_until_done(self) -> None:
        while True:
            while self._goes_on():
                self._turn()
            if self._scheduler.stopping:
                return
            self._check()
            if self._scheduler.stopping or not self._goes_on():
                break
        stuck = self._listing.stuck()
        if stuck and not self._scheduler.stopping:
            raise PrerequisiteError(
                f"steps {', '.join(map(str, stuck[:10]))} wait for steps that do not run and never will: "
                f"step {stuck[0]} needs {[int(p) for p in self.steps[stuck[0] - 1].getPrerequisites()]}"
            )

    def _goes_on(self) -> bool:
        if self._scheduler.stopping:
            generators = len(self._scheduler.lane(LOCAL))  # they may go on for days: nobody waits for them
            return self._scheduler.in_flight() > generators
        return self._scheduler.in_flight() > 0 or self._listing.waiting()

    def _turn(self) -> None:
        timeout = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
        ready = self._selector.select(timeout)
        if not self._in_main:
            self._commits.hold()
        for key, _ in ready:
            key.data()
        while self._news:
            self._news.popleft()()
        while self._timers and self._timers[0][0] <= time.monotonic():
            heapq.heappop(self._timers)[2]()
        self.commit()

    def commit(self) -> None:
        """Write what has been recorded in this turn of the loop."""
        self._tell(self._commits.release)

    def _drain(self) -> None:
        try:
            while os.read(self._wake_read, 4096):
                pass
        except BlockingIOError:
            pass  # all of it is read

    def later(self, seconds: float, do: Callable[[], None]) -> None:
        """Have something done in the loop after that time."""
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._count), do))

    def pause(self, seconds: float, do: Callable[[], None]) -> None:
        """Have something done after that time, and begin no step until then."""

        def go_on() -> None:
            do()
            self._pauses -= 1
            held, self._held = ([], self._held) if self._pauses else (self._held, [])
            for place, number in held:
                if self._scheduler.stopping:
                    self._handle(StepsReturned(place, (number,)))
                else:
                    self._begin(place, number)

        self._pauses += 1
        self.later(seconds, go_on)

    def soon(self, do: Callable[[], None]) -> None:
        """Have something done in the loop, and wake it. Callable from any thread."""
        self._news.append(do)
        try:
            os.write(self._wake_write, b"w")
        except (BlockingIOError, OSError):
            pass  # it is awake, or the run is over

    def listen(self, fileobj: Any, do: Callable[[], None]) -> None:
        """Have something done in the loop whenever there is something to read."""
        self._selector.register(fileobj, selectors.EVENT_READ, do)

    def listen_no_more(self, fileobj: Any) -> None:
        """Undo it."""
        self._selector.unregister(fileobj)

    # ------------------------------------------------------------ beginning and end

    def _open(self) -> None:
        self.listen(self._wake_read, self._drain)
        insert = type(self.protocol)._Protocol__insertStep

        def inserting(*args: Any, **kwargs: Any) -> Any:
            number = insert(self.protocol, *args, **kwargs)
            self.soon(self._look)
            return number

        self.database.guard()
        vars(self.protocol)["_Protocol__insertStep"] = inserting  # a name of pyworkflow's: it finds this one first

    def _close(self) -> None:
        self.commit()
        self._workers.close()
        self.database.unguard()
        vars(self.protocol).pop("_Protocol__insertStep", None)
        self.sharing.close()
        self._selector.close()
        os.close(self._wake_read)
        write, self._wake_write = self._wake_write, -1
        os.close(write)

    # ------------------------------------------------------------------- the steps

    def _demand(self, step: Any) -> Demand:
        if self._choice.inserts(step):
            return Demand(local=True)
        return self._gpus.demand(step)

    def _look(self) -> None:
        for event in self._listing.look():
            self._handle(event)

    def _handle(self, event: Event) -> None:
        for command in self._scheduler.handle(event):
            if isinstance(command, Dispatch):
                for number in command.steps:
                    if self._pauses:
                        self._held.append((command.worker, number))
                    else:
                        self._begin(command.worker, number)

    def _begin(self, place: int, number: int) -> None:
        step = self.steps[number - 1]
        self._listing.begun(number)
        if not step.hasObjId():
            self._tell(store_new, self.protocol, self.steps)
        thread_id, gpus = self._gpus.book(place, number, step)
        self._running[number] = (place, thread_id, time.monotonic())
        step.setRunning()
        self._tell(self._started, step)
        why = self._choice.why_main(step, place == LOCAL, self._is_alone())
        if not why and self._workers.give(place, number, thread_id, gpus):
            return
        self.begin_in_main(number, why or "there cannot be another process")

    def begin_in_main(self, number: int, why: str) -> None:
        """Have a step run in a thread of this process."""
        step = self.steps[number - 1]
        logger.info("mpsteps: step %d (%s) runs in the main process: %s", number, name_of(step), why)
        self._in_main += 1
        self.commit()
        MainStep(number, step, self._running[number][1], self._main_step_ended).start()

    def _is_alone(self) -> bool:
        """Whether nothing runs beside the step that begins, nor could."""
        return self._scheduler.in_flight() == 1 and not self._scheduler.counts[Status.READY] and not self._streams()

    def _streams(self) -> bool:
        """Whether steps may come at any time."""
        return self._listing.waiting() or bool(self._scheduler.lane(LOCAL)) or not _is_base(self.protocol)

    def _main_step_ended(self, number: int, error: Optional[str]) -> None:
        def take_in() -> None:
            self._in_main -= 1
            self.sharing.collect(deep=True)
            self.end(number, error)
            self._look()

        self.soon(take_in)

    def end(
        self, number: int, error: Optional[str] = None, parcel: Optional[bytes] = None,
        values: Optional[Dict[str, Any]] = None,
    ) -> None:  # fmt: skip
        """A step has ended. `parcel`: what it changed; `values`: what it says of itself (its result files)."""
        step = self.steps[number - 1]
        place, thread_id, began = self._running.pop(number)
        if error is None:
            error = self.merge(place, number, parcel)
        else:
            self.sharing.merge(place, number, None)
        for name, value in (values or {}).items():
            getattr(step, name).set(value)
        self._gpus.free(thread_id)
        if error is not None:
            self._failed(place, number, step, error)
        elif step.isInteractive():
            step._finalizeStep(cts.STATUS_INTERACTIVE)
            self._at_the_end.append(step)
            self._handle(StepInteractive(place, number))
        else:
            step.setFinished()
            goes_on = self._tell(self._finished, step)
            self._handle(StepsFinished(place, (number,), (time.monotonic() - began,)))
            if goes_on is False:
                self._handle(StopRequested())

    def merge(self, place: int, number: int, parcel: Optional[bytes], goes_on: bool = False) -> Optional[str]:
        """Take in what a step changed; why that cannot be done, or None."""
        try:
            if self._in_main and parcel is not None:
                self.sharing.collect()  # what steps here have changed meanwhile must be known as theirs
            self.sharing.merge(place, number, parcel, goes_on)
            return None
        except Exception as problem:  # StateConflict, or what the user's classes do when they are loaded
            self._workers.discard(place)
            logger.error("Step %d: what it changed cannot be taken over.", number, exc_info=problem)
            return str(problem) or type(problem).__name__

    def _failed(self, place: int, number: int, step: Any, error: str) -> None:
        step.setFailed(error)
        self._workers.discard(place)
        self._at_the_end.append(step)
        logger.error("mpsteps: step %d (%s) failed: %s", number, name_of(step), error)
        items = getattr(self.protocol, "_stepsSet", None)
        if items is not None and step.hasObjId():  # so that it is seen before the others have ended
            self._tell(items.update, step)
            self._tell(items.write)
        self._handle(StepFailed(place, number, final=True))
        if self._scheduler.in_flight():
            logger.info("mpsteps: %d steps that run beside it go on to their end", self._scheduler.in_flight())

    # ----------------------------------------------------------------- Scipion's say

    def _tell(self, callback: Callable[..., Any], *args: Any) -> Any:
        """Call something of Scipion's. If it raises, no step begins any more, and the run ends with that."""
        try:
            return callback(*args)
        except Exception as problem:
            logger.error("mpsteps: the run ends, since Scipion could not go on", exc_info=problem)
            self._problem = self._problem or problem
            self._scheduler.handle(StopRequested())
            return None

    def _check(self) -> None:
        self.commit()
        self._tell(self._check_callback)
        self.sharing.collect()
        self._look()

    def _check_in_time(self) -> None:
        if not self._scheduler.stopping:
            self._check()
            self.later(self._seconds, self._check_in_time)

    def call(self, place: int, number: int, name: str, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Any:
        """A step in a fork asks for a method of the protocol to be called here; the result."""
        self.commit()
        if name == "_store":
            args = tuple(getattr(self.protocol, attribute) for attribute in args)
        result = getattr(self.protocol, name)(*args, **kwargs)
        self.sharing.collect(deep=True)
        self._look()
        return result if type(result) in (int, str, bool) else None


def _is_base(protocol: Any) -> bool:
    return type(protocol)._stepsCheck is Protocol._stepsCheck
