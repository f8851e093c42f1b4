"""The one loop: what happened goes to the scheduler, what it commands is carried out.

A turn, in this order, which is the order that makes every crash and every reader right:

1. wait once, for everything (replies, deaths, calls from other threads, signals, timers);
2. for each step that ended: merge its changes, record it; then tell the scheduler (at once, all that only finished),
   announce it, and let others be released, so that no dependent is sent before the state it must see is there;
3. write all records of the turn as one frame (`work.commit()`), among them *started* of what is about to be sent;
4. send. A crash between 3 and 4 leaves steps recorded as started that never ran: in doubt, never lost or doubled.

The coordinator knows neither protocols nor futures: what a step means is up to its `Work`.
"""

from __future__ import annotations

import signal
import time
from collections import deque
from typing import Any, Deque, Dict, List, Mapping, Optional, Tuple

from mpsteps._core.events import (
    Closed,
    Command,
    Dispatch,
    Event,
    LaneStalled,
    Retry,
    Running,
    StepFailed,
    StepInteractive,
    StepRested,
    StepsFinished,
    StepsReturned,
    StopRequested,
    WorkerLost,
    WorkerReady,
)
from mpsteps._core.scheduler import Scheduler
from mpsteps._core.steps import LOCAL
from mpsteps._deadlines import Deadlines
from mpsteps._deaths import Deaths, used_too_much
from mpsteps._in_order import InOrder
from mpsteps._ipc import wire
from mpsteps._ipc.wire import Failure
from mpsteps._logging_relay import hand_on
from mpsteps._memory_needs import MemoryNeeds
from mpsteps._memory_watch import MemoryWatch
from mpsteps._rests import Rests
from mpsteps._work import Work
from mpsteps.engines.base import Engine, EngineFailed, Happening, Message, Replies, WorkerGone, WorkerUp
from mpsteps.errors import EngineError, InternalError

STALL_SECONDS = 0.010
"""A step that has others behind it in its lane, since it was expected to be short, and runs longer than this holds them
up: they are taken back. Several times what a lane is given ahead of time."""

AWAKE_SECONDS = 1.0
"""While a step has a deadline, the loop sleeps no longer than this at a time. If it has then slept as much longer than
it wanted, this process was stopped (SIGSTOP), and so, it must suppose, were the workers: what it overslept is added to
the time of all steps."""


class Coordinator:
    """Runs steps on an engine until its work is over. One thread calls `run`; any thread may `post`.

    `needs`: learns how much memory steps need while they run; None: nobody does.
    """

    def __init__(
        self, scheduler: Scheduler, engine: Engine, work: Work, needs: Optional[MemoryNeeds] = None
    ) -> None:  # fmt: skip
        self.scheduler = scheduler
        self.engine = engine
        self.work = work
        self._inbox: Deque[Any] = deque()  # from other threads: Replies, callables, what `work.take_in` takes
        self._dispatches: List[Dispatch] = []
        # What workers said last, in this turn, if it is that they have finished steps. The scheduler hears it when all
        # have been heard, or when something else happens; the work has heard it already.
        self._finished: Dict[int, StepsFinished] = {}
        self._deadlines = Deadlines()
        self._heads: Dict[int, float] = {}  # worker -> when (monotonic) it began the first step of its lane
        self._condemned: Dict[int, Failure] = {}  # worker that was sent a signal -> why
        self._apart: Dict[int, int] = {}  # worker -> how many of its steps left something, as far as heard of
        self._in_order = InOrder(scheduler.is_in_flight)
        self._rests = Rests()
        self._memory = MemoryWatch()
        self._needs = needs
        self._looks = needs if engine.by_value and not engine.elsewhere else None  # where this process sees workers
        if needs is not None:
            self.handle(needs.first())
        self._deaths = Deaths()
        self.killed = False  # everything is being ended at once
        self.changes_posted = 0  # how often somebody changed the graph from outside (for who wants to notice)

    # --------------------------------------------------------------- from any thread

    def post(self, item: Any) -> None:
        """Hand the loop Replies, a callable, or something for `work.take_in`; it takes them in order."""
        self._inbox.append(item)
        self.engine.wake()

    def renew(self, scheduler: Scheduler) -> None:
        """Go on with another scheduler, which knows the workers. Only while no step is open; by the loop's thread."""
        if self._finished or self._dispatches or self.scheduler.open_steps:
            raise InternalError("there are steps that the new scheduler does not know")
        self.scheduler = scheduler
        self._in_order = InOrder(scheduler.is_in_flight)

    # ----------------------------------------------------------------------- the loop

    def run(self) -> None:
        """Until the work is over, on an engine that has been started. Raises EngineError when workers cannot be had."""
        while True:
            self.settle()
            if self.work.is_over():
                return
            self.turn()

    def turn(self) -> None:
        """Wait for something to happen and take it in."""
        for happening in self._in_order.sort(self._wait(0 if self._inbox else self._seconds_to_wait())):
            self._take(happening)
        self._hand_in()
        self.take_inbox()
        now = time.monotonic()
        for deadline in self._deadlines.due(now):
            self._out_of_time(*deadline)
        if self._rests.until:
            for step in self._rests.ended(now):
                self.handle(StepRested(step))
        if self._memory.watched:
            self._look_at_memory(now)
        if self._looks is not None and self._looks.watched:
            self._look_at_needs(self._looks, now)
        self._relieve_stalled(now)
        call = self.work.next_call(now)
        if call is not None and call <= now:
            self.work.on_time(now)

    def has_post(self) -> bool:
        """Whether something posted waits to be taken in."""
        return bool(self._inbox)

    def take_inbox(self) -> None:
        """Take in what other threads (or the loop's own callbacks) have posted."""
        inbox = self._inbox
        while inbox:
            item = inbox.popleft()
            if isinstance(item, Replies):
                self._take(item)
                self._hand_in()
            elif callable(item):
                item()
            else:
                self.work.take_in(item)

    def handle(self, event: Event) -> None:
        """Tell the scheduler and do what it commands."""
        self._hand_in()
        self._do(self.scheduler.handle(event))

    def _hand_in(self) -> None:
        if self._finished:
            events = list(self._finished.values())
            self._finished.clear()
            self._do(self.scheduler.handle_finished(events))

    def stop_starting(self) -> None:
        """No new step starts."""
        self.handle(StopRequested())

    def kill_all(self, why: Failure) -> None:
        """End what runs, now: every running step fails for this reason."""
        self.killed = True
        self.stop_starting()
        for worker, lane in self.scheduler.lanes():
            if worker != LOCAL and lane:
                self._condemned[worker] = why
                self.engine.kill(worker, signal.SIGKILL)

    def settle(self) -> None:
        """Send what the scheduler has assigned, after it has been written down."""
        while self._dispatches:
            dispatches, self._dispatches = self._dispatches, []
            if self.scheduler.stopping:  # assigned before the stop was heard of, and not sent: nothing starts any more
                self._unassign(dispatches)
                continue
            ready = [self._messages(d) for d in dispatches]
            if any(d.across for d in dispatches):
                self.engine.number_peers(ready, self._apart, self._in_order.ended)
            self.work.commit()
            for worker, messages in ready:
                if worker == LOCAL:
                    for message in messages:
                        self.work.run_local(message[0], message)
                elif messages:
                    self.engine.send(worker, messages)
            self.take_inbox()
        self.work.commit()
        for worker, order in self.work.errands():
            self.engine.send(worker, [order])

    def _unassign(self, dispatches: List[Dispatch]) -> None:
        """What was assigned, and not sent yet, is not to be sent."""
        self._dispatches = [d for d in self._dispatches if d not in dispatches]
        for d in dispatches:
            self.work.returned(d.steps)
            self.handle(StepsReturned(d.worker, d.steps))

    def _seconds_to_wait(self) -> Optional[float]:
        deadline = self._deadlines.next_end()
        times = [] if deadline is None else [min(deadline, time.monotonic() + AWAKE_SECONDS)]
        call = self.work.next_call(time.monotonic())
        if call is not None:
            times.append(call)
        if self._rests.until or self._memory.watched:
            times += [when for when in (self._rests.next_end(), self._memory.next_look()) if when is not None]
        look = self._looks.next_look() if self._looks is not None else None
        if look is not None:
            times.append(look)
        times += [began + STALL_SECONDS for w, began in self._heads.items() if self.scheduler.is_crowded(w)]
        return max(0.0, min(times) - time.monotonic()) if times else None

    # --------------------------------------------------------------------- commands

    def _do(self, commands: List[Command]) -> None:
        for command in commands:
            if isinstance(command, Dispatch):
                self._dispatches.append(command)
            elif isinstance(command, Closed):
                self.work.closed(*command)
            elif isinstance(command, Running):
                self._running(*command)
            elif isinstance(command, Retry):
                self.work.retry(*command)
                self._rests.begin(command.step, command.attempt, time.monotonic())
            else:
                self.engine.revoke(command.worker)

    def _running(self, worker: int, step: int) -> None:
        self.work.running(step)
        if worker != LOCAL and self.engine.by_value:
            self._heads[worker] = time.monotonic()
        self._deadlines.end(worker)
        seconds = self.work.timeout(step)
        if seconds is not None and worker != LOCAL and self.engine.by_value:
            self._deadlines.begin(worker, step, time.monotonic() + seconds)
        memory = self.scheduler.memory_of(step)
        if memory and worker != LOCAL and self.engine.elsewhere:
            self.engine.limit_memory(worker, step, memory)
        elif memory and worker != LOCAL and self.engine.by_value:
            self._memory.begin(worker, step, self.scheduler.attempt(step), self.engine.pid(worker), memory)
        elif self._looks is not None and worker != LOCAL and self.scheduler.watches_memory(step):
            function, pid = self.scheduler.function(step), self.engine.pid(worker)
            self._looks.begin(worker, step, self.scheduler.attempt(step), function, pid)

    def _relieve_stalled(self, now: float) -> None:
        """Take back what waits behind steps that run longer than was expected."""
        late = [w for w, began in self._heads.items() if began + STALL_SECONDS <= now and self.scheduler.is_crowded(w)]
        for worker in late:
            step = self.engine.running(worker)
            if step is None:  # it has just ended, and the reply is on its way
                self._heads[worker] = now
                continue
            self.handle(LaneStalled(worker, step))
            self._unassign([d for d in self._dispatches if d.worker == worker])

    def _messages(self, dispatch: Dispatch) -> Tuple[int, List[Message]]:
        """The messages for steps that travel; the others fail here and now."""
        work, scheduler = self.work, self.scheduler
        worker, steps, ahead, across = dispatch
        attempt = 1
        if len(steps) > 1 or ahead:
            made = work.messages(worker, steps)
        else:
            attempt = scheduler.attempt(steps[0])
            made = [work.message(worker, steps[0], attempt, scheduler.slots.gpus_of(steps[0]))]
        if ahead:
            made = [
                m if type(m) is Failure else self._sent_ahead(step, m, before, across.get(step))
                for step, m, before in zip(steps, made, ahead)
            ]
        sent = steps
        if any(type(m) is Failure for m in made):
            sent = tuple(step for step, m in zip(steps, made) if type(m) is not Failure)
            for step, m in zip(steps, made):
                if isinstance(m, Failure):
                    self._attempt_failed(worker, step, 0.0, 0.0, None, m, final=True)
        if sent:
            work.dispatching(self.engine.pid(worker), attempt, sent)
        return worker, work.take_orders() + [m for m in made if type(m) is not Failure]

    def _sent_ahead(
        self, step: int, message: Message, before: Tuple[int, ...], across: Optional[Mapping[int, int]]
    ) -> Message:
        """The message of a step that was assigned before its prerequisites `before` had finished, those of `across` in
        other lanes."""
        extras = dict(message[5] or ())
        if across:
            # What has been told since then is in the message already, with all that it left.
            has_finished = self.scheduler.has_finished
            peers = {p: peer for p, peer in across.items() if not has_finished(p)}
            if len(peers) < len(across):
                before = tuple(p for p in before if p in peers or p not in across)
            if peers:
                extras["peers"] = peers
                self._in_order.sent(step, tuple(peers))
        if before:
            extras["ahead"] = before
        return (*message[:5], extras or None)

    # ---------------------------------------------------------------------- happenings

    def _take(self, happening: Happening) -> None:
        if not isinstance(happening, Replies) or happening.worker in self._finished:
            self._hand_in()
        if isinstance(happening, Replies):
            self._replies(happening.worker, happening.messages)
            if happening.apart:
                self._apart[happening.worker] = happening.apart
        elif isinstance(happening, WorkerUp):
            self.work.worker_up(happening.worker, happening.pid)
            self.handle(WorkerReady(happening.worker, happening.node))
        elif isinstance(happening, WorkerGone):
            self._worker_gone(happening)
        elif isinstance(happening, EngineFailed):
            raise EngineError(happening.reason)
        else:
            raise InternalError(f"an engine told {happening!r}")

    def _replies(self, worker: int, messages: List[Message]) -> None:
        """Replies of one lane, in order; finished steps are told to the scheduler together."""
        work, pid = self.work, self.engine.pid(worker)
        steps: List[int] = []
        seconds: List[float] = []
        back: List[int] = []
        plain = True
        for m in messages:
            step = m[0]
            failure: Optional[Failure] = None
            if back and step != -wire.RETURNED:
                self._returned(worker, back)
            if step < 0:
                self._flush(worker, steps, seconds, plain)
                if step == -wire.RETURNED:
                    back.append(m[1])
                elif step == -wire.FINISHED:
                    self._finished_all(worker, pid, m, m is messages[-1])
                else:
                    self._control(worker, m)
                continue
            extras = m[3] if len(m) > 3 else None
            leaves = wire.leaves(extras)
            if len(m) == 5:
                failure = Failure(*m[4])
            else:
                failure = work.finished(worker, pid, step, m[1], m[2], extras)
                if self._needs is not None and extras and extras.get("peak"):
                    self._learn_need(step, extras["peak"])
                extras = None
            if failure is not None:
                self._flush(worker, steps, seconds, plain)
                self._attempt_failed(worker, step, m[1], m[2], extras, failure)
            elif work.is_interactive(step):
                self._flush(worker, steps, seconds, plain)
                self.handle(StepInteractive(worker, step))
            else:
                plain = not leaves and (plain or not steps)
                steps.append(step)
                seconds.append(m[1])
        if steps:
            self._finished[worker] = StepsFinished(worker, tuple(steps), tuple(seconds), plain)
        if back:
            self._returned(worker, back)
        if self._condemned and not self.killed and worker in self._condemned and any(_ends_a_step(m) for m in messages):
            self._retire(worker)

    def _finished_all(self, worker: int, pid: int, message: Message, is_last: bool) -> None:
        """Steps that left nothing. `is_last`: this worker has said no more than that."""
        steps, seconds, cpu = tuple(message[1]), message[2], message[3]
        if len(steps) == 1 and self.work.is_interactive(steps[0]):  # such a step is alone in its lane
            self.work.finished(worker, pid, steps[0], seconds[0], cpu[0], None)
            self.handle(StepInteractive(worker, steps[0]))
            return
        self.work.finished_all(worker, pid, steps, seconds, cpu)
        event = StepsFinished(worker, steps, tuple(seconds))
        if is_last:
            self._finished[worker] = event
        else:
            self.handle(event)

    def _flush(self, worker: int, steps: List[int], seconds: List[float], plain: bool) -> None:
        if steps:
            self.handle(StepsFinished(worker, tuple(steps), tuple(seconds), plain))
            steps.clear()
            seconds.clear()

    def _returned(self, worker: int, steps: List[int]) -> None:
        back = tuple(steps)
        steps.clear()
        self.work.returned(back)
        self.handle(StepsReturned(worker, back))

    def _control(self, worker: int, message: Message) -> None:
        what = -message[0]
        if what != wire.LOGGED:
            self._hand_in()  # what it asks may be about steps that have finished before
        if what == wire.REQUEST:
            answer = self.work.answer(worker, *message[1:])
            self.engine.send(worker, [(-wire.ANSWER, answer)])
        elif what in (wire.CHANGED, wire.LOCK, wire.UNLOCK):
            self.work.told(worker, message)
        elif what == wire.LOGGED:
            for record in message[1]:
                hand_on(record)
        else:
            raise InternalError(f"worker {worker} said {message!r}")

    def _attempt_failed(
        self, worker: int, step: int, seconds: float, cpu: float, extras: Any, failure: Failure, final: bool = False
    ) -> None:
        pid = failure.pid or self.engine.pid(worker)
        attempt = self.scheduler.attempt(step)
        why = self._condemned.get(worker)
        if why is not None and failure.kind == "exception":  # raised by its handler of the signal that we sent
            failure = failure._replace(kind=why.kind, type_name=why.type_name, message=why.message)
        self.work.failed(worker, pid, step, attempt, seconds, cpu, extras, failure)
        self.handle(StepFailed(worker, step, final))

    def _worker_gone(self, gone: WorkerGone) -> None:
        """One victim: the step it was running. What it had finished counts, what it had not begun goes back."""
        work, worker = self.work, gone.worker
        for step in gone.done:
            work.finished(worker, gone.pid, step, 0.0, 0.0, None)
        if gone.done:
            self.handle(StepsFinished(worker, gone.done))
        why = self._condemned.pop(worker, None)
        self._apart.pop(worker, None)
        self._deadlines.end(worker)
        self._heads.pop(worker, None)
        self._memory.end(worker)
        if self._looks is not None:
            self._looks.end(worker)
        if gone.began is not None:
            failure = why or gone.why or self._deaths.failure(gone.exitcode)
            failure = failure._replace(pid=gone.pid, exitcode=gone.exitcode, log=gone.log, peak_kib=gone.peak_kib)
            attempt = self.scheduler.attempt(gone.began)
            if failure.type_name == "StepOutOfMemory" and gone.peak_kib:
                self._learn_need(gone.began, gone.peak_kib, died=True)
            work.failed(worker, gone.pid, gone.began, attempt, 0.0, 0.0, {"peak_kib": gone.peak_kib}, failure)
        self._forget(worker, gone.began)
        work.worker_gone(worker)

    def _retire(self, worker: int) -> None:
        """Its step has ended just in time, but the signal is on its way and must not hit another one there."""
        self._hand_in()
        del self._condemned[worker]
        self.engine.kill(worker, signal.SIGKILL)
        self._forget(worker, None)

    def _forget(self, worker: int, began: Optional[int]) -> None:
        """No more steps for this worker; what it was given and had not begun goes back."""
        back = tuple(s for s in self.scheduler.lane(worker) if s != began)
        if back:
            self.work.returned(back)
        if self.scheduler.knows(worker):
            self.handle(WorkerLost(worker, began, final=self.killed))
        # What it said last may have earned it more steps, which the line above has taken back: they must not be sent.
        self._dispatches = [d for d in self._dispatches if d.worker != worker]

    def _look_at_memory(self, now: float) -> None:
        """End the steps that use more memory than they declared, with all that they have started."""
        for worker, step, attempt in self._memory.running():
            if step not in self.scheduler.lane(worker) or attempt != self.scheduler.attempt(step):
                self._memory.end(worker)  # it has ended: nobody need look any more
        due = self._memory.next_look()
        for worker, used, limit in self._memory.look(now) if due is not None and due <= now else ():
            self._condemned[worker] = used_too_much(used, limit)
            self.engine.kill(worker, signal.SIGKILL)

    def _learn_need(self, step: int, kib: int, died: bool = False) -> None:
        """A step has ended that had so much memory at its peak."""
        if self._needs is not None and not self.scheduler.memory_of(step):
            learned = self._needs.peak(self.scheduler.function(step), kib, died)
            if learned is not None:
                self.handle(learned)

    def _look_at_needs(self, needs: MemoryNeeds, now: float) -> None:
        """Look at the steps that run and whose need is not known yet, or known to be much."""
        due = needs.next_look()
        if due is None or due > now:
            return
        for worker, step, attempt in needs.running():
            if step not in self.scheduler.lane(worker) or attempt != self.scheduler.attempt(step):
                needs.end(worker)
        if needs.watched:
            self.handle(needs.look(now))

    def _wait(self, seconds: Optional[float]) -> List[Happening]:
        """Wait for something to happen. Time in which this process, and with it perhaps the whole run, was stopped is
        not the steps' time."""
        if self._deadlines.next_end() is None or seconds is None:
            return self.engine.wait(seconds)
        began = time.monotonic()
        happenings = self.engine.wait(seconds)
        overslept = time.monotonic() - began - seconds
        if overslept > AWAKE_SECONDS:
            self._deadlines.postpone(overslept)
        return happenings

    def _out_of_time(self, worker: int, step: int, number: int) -> None:
        """A step's time is up: SIGTERM to its worker's process group, SIGKILL if that does not help."""
        if step not in self.scheduler.lane(worker):
            return  # it ended in time
        seconds = self.work.timeout(step)
        self._condemned[worker] = Failure(
            "timeout", "StepTimeout", f"it ran longer than its timeout of {seconds:g} s and was killed"
        )
        self.engine.kill(worker, number)


def _ends_a_step(message: Message) -> bool:
    return bool(message[0] > 0 or message[0] == -wire.FINISHED)
