"""One run of one protocol: what its steps mean to the coordinator, and what the protocol's users see of them.

It is the coordinator's `Work`: all of it runs in the coordinator's thread. What steps ask for while they run (to
insert others, above all) comes in through `_sink`; what they return is kept by `_step_values`.
"""

from __future__ import annotations

import itertools
import threading
import time
import traceback
from typing import Any, Dict, List, Mapping, Optional, Tuple

from mpsteps._announcer import Announcer
from mpsteps._conflicts import called, conflict_failure
from mpsteps._coordinator import Coordinator
from mpsteps._core.steps import LOCAL, Status
from mpsteps._demands import Demands
from mpsteps._failures import step_error
from mpsteps._ipc import state, wire
from mpsteps._ipc.wire import Failure
from mpsteps._large_values import LargeValues
from mpsteps._local import Here, run_here
from mpsteps._lock_queue import Claim
from mpsteps._machine import usable_cores, usable_memory
from mpsteps._outgoing import Outgoing
from mpsteps._output import step_log
from mpsteps._ownchanges import OwnChanges
from mpsteps._protocol_lock import ProtocolLock
from mpsteps._recorder import Recorder
from mpsteps._result_of import put_results
from mpsteps._resume import Earlier, Kept
from mpsteps._sink import RunSink
from mpsteps._statelog import CHECK, StateLog
from mpsteps._step_keys import StepKeys
from mpsteps._step_values import StepValues
from mpsteps._writes import WritesOf
from mpsteps.constants import (
    STATUS_FAILED,
    STATUS_FINISHED,
    STATUS_INTERACTIVE,
    STATUS_NEW,
    STATUS_RUNNING,
    STATUS_WAITING,
)
from mpsteps.engines.base import Message, Replies
from mpsteps.errors import InternalError, StateConflict, UsageError
from mpsteps.listeners import Listeners
from mpsteps.protocol import FRAMEWORK_ATTRIBUTES, Protocol
from mpsteps.report import StepReport, shorten
from mpsteps.steps import Step

_STEPS_A_FRAME = 50_000
"""So many steps are written to the journal at once: as text they take some memory, for a moment."""


class ProtocolRun:
    """The steps of `protocol` while they run. `coordinator` is set before the loop starts."""

    coordinator: Coordinator
    earlier: Earlier

    def __init__(
        self, protocol: Protocol, recorder: Recorder, listeners: Listeners, by_value: bool, workers: int,
        gpu_groups: Mapping[int, Tuple[int, ...]], logs: Optional[str], sync: bool = False,
        learned: Optional[Dict[str, int]] = None,
    ) -> None:  # fmt: skip
        self.protocol = protocol
        self.steps: List[Step] = list(protocol._steps)
        self.workers = workers
        self.run_dir = protocol.getWorkingDir()
        self.done = 0
        self.kept = 0
        self.failed_steps: List[StepReport] = []
        self.skipped = 0
        self.cpu_seconds = 0.0  # of this session's steps
        self.kept_cpu_seconds = 0.0  # of those that were kept
        self.interrupted = ""  # why the user or the system ended it: '' if nobody did
        self.problem: Optional[BaseException] = None  # an error outside of steps (in _stepsCheck, at the journal)
        self._recorder = recorder
        self._listeners = listeners
        self._gpu_groups = gpu_groups
        self._logs = logs
        self._sync = sync  # what is recorded is to survive a power failure
        self._demands = Demands(protocol, by_value, len(gpu_groups), learned)
        self._announcer = Announcer(self._demands)
        self._blocks = LargeValues(workers, protocol._getTmpPath()) if by_value else None
        self._values = StepValues(protocol, self.steps, self._blocks, self.run_dir)
        self._keys = StepKeys(self.steps, recorder.digest)
        self._failures: Dict[int, Tuple[Failure, Any]] = {}  # attempts that have just failed
        self.checks_steps = type(protocol)._stepsCheck is not Protocol._stepsCheck
        self._next_check = time.monotonic() + float(protocol._stepsCheckSecs)
        self.sink = RunSink(self)
        self.tracker: Optional[state.Tracker] = None  # of what code in this process changes
        self._state: Optional[StateLog] = None
        self._own: Optional[OwnChanges] = None  # of code in this process, beside workers
        self._outgoing: Optional[Outgoing] = None  # inline: nothing is sent anywhere
        self._lock = ProtocolLock(self._wake, self._turn if by_value else None)
        self._lock_before: Any = None  # what the protocol has while it does not run
        self._conflicts: Dict[int, Failure] = {}  # steps that run -> why what they have changed so far was not taken
        self._turning = False  # _stepsCheck waits for the lock
        self._turn_until: Optional[float] = None
        self._loop_error: Optional[Exception] = None  # of the loop, while _stepsCheck waited

    @property
    def total(self) -> int:
        """How many steps there are."""
        return len(self.steps)

    def resources(self) -> Dict[str, Any]:
        """What there is for the steps and what they declare, for who looks at the run later: cores, bytes of memory,
        groups of cards; needs: method -> [cpus, bytes, cards], where that is not [1, 0, 0]; learned: method -> bytes
        that are counted though they are not declared."""
        return {
            "cores": usable_cores(), "memory": usable_memory(), "gpus": len(self._gpu_groups),
            "needs": self._demands.declared(), "learned": self._demands.learned(),
        }  # fmt: skip

    # --------------------------------------------------------------- before the loop

    def open_state(self) -> None:
        """From now on changes of self are known: workers can be given an image of the protocol."""
        if self._blocks is not None:
            writes = WritesOf(type(self.protocol))
            self._state = StateLog(
                self.protocol, None, lambda step: called(self.steps[step - 1]),
                lambda step: writes("_stepsCheck" if step == CHECK else self.steps[step - 1]._func),
            )  # fmt: skip
            self._outgoing = Outgoing(
                self.protocol, self.steps, self._values, self._blocks, self._state, self._sync
            )
            if self.checks_steps or any(self._demands.of(s).local for s in self.steps):
                self._watch_own_changes(self._state)
        else:
            self.tracker = state.Tracker(self.protocol, FRAMEWORK_ATTRIBUTES)

    def begin(self, restored: Dict[int, Any]) -> None:
        """Tell the scheduler of all steps; those in `restored` finished in an earlier session."""
        protocol = self.protocol
        protocol._steps = self.steps
        protocol._sink = self.sink
        self._lock_before, protocol._lock = protocol._lock, self._lock.home
        protocol._numberOfSteps.set(len(self.steps))
        for first in range(0, len(self.steps), _STEPS_A_FRAME):
            self._recorder.inserted(self.steps[first : first + _STEPS_A_FRAME])
            self._recorder.commit()
        self._announcer.tell_all(self.steps, restored, self.coordinator.handle)
        for step, record in restored.items():
            self._restore(self.steps[step - 1], record)
        protocol._stepsDone.set(self.done)
        for listener in self._listeners:
            listener.run_started(self, self.kept)

    def _restore(self, step: Step, record: Any) -> None:
        step._status = STATUS_FINISHED
        if record.started is not None:
            step._started = record.started
            step._ended = record.started + (record.seconds or 0.0)
        self._values.restore(step, self._recorder.kept(step._id, record))
        self.done += 1
        self.kept += 1
        self.kept_cpu_seconds += record.cpu_seconds or 0.0

    def setup(self, worker: int) -> Dict[str, Any]:
        """What a new worker starts from: the protocol as it is now."""
        assert self._outgoing is not None
        if self._own is not None:
            self._own.collect()  # or what a local step is doing would be in the image and never taken back
        return self._outgoing.setup(worker)

    def end(self) -> None:
        """The loop is over: steps cannot be inserted any more. Workers are gone."""
        if self._blocks is not None:
            self._blocks.close()
        self.protocol._sink = None
        self._lock.close()
        if self._lock_before is not None:
            self.protocol._lock = self._lock_before

    # -------------------------------------------------------------- the coordinator's Work

    def message(self, worker: int, step: int, attempt: int, gpus: Tuple[int, ...]) -> Any:
        """The step message, or a Failure naming the part that cannot travel."""
        extras = {"gpus": [card for group in gpus for card in self._gpu_groups[group]]} if gpus else None
        if self._outgoing is not None and worker != LOCAL:
            return self._outgoing.message(worker, step, attempt, extras)
        s = self.steps[step - 1]
        function = getattr(self.protocol, s._func) if isinstance(s._func, str) else s._func
        return (step, attempt, function, put_results(s._args, self._values.here), {}, extras)

    def messages(self, worker: int, steps: Tuple[int, ...]) -> List[Any]:
        """Those of several ordinary steps."""
        if self._outgoing is None:
            return [self.message(worker, step, 1, ()) for step in steps]
        return self._outgoing.messages(worker, steps)

    def take_in(self, item: Any) -> None:
        """Nothing of this kind is posted here."""
        raise InternalError(f"{item!r} was posted")

    def errands(self) -> List[Tuple[int, Message]]:
        """Blocks of large values that workers may free; who has the lock now, with what he must see under it."""
        orders = self._blocks.orders() if self._blocks is not None else []
        answers = self._lock.take_answers()
        if answers and self._own is not None:
            self._own.collect()  # what the code of this process did under the lock
        for claim, outcome in answers:
            assert self._state is not None
            news = self._state.granted(claim.worker, claim.step) if outcome is not False else []
            orders.append((claim.worker, (-wire.GRANT, claim.ticket, outcome, news)))
        return orders

    def told(self, worker: int, message: Message) -> None:
        """What a step has changed so far; that it wants the lock, or has left it."""
        what, step = -message[0], message[1]
        if what == wire.CHANGED:
            self._publish(worker, step, message[2], message[3])
            return
        claim = Claim(step, worker, message[2])
        if what == wire.UNLOCK:
            self._lock.give_back(claim)
        elif step in self._conflicts:
            failure = self._conflicts[step]
            self._lock.deny(claim, wire.pack((failure.parcel, failure.message)))
        else:
            self._lock.ask(claim, message[3])

    def _publish(self, worker: int, step: int, parcel: bytes, late: bool) -> None:
        """Take in what a step has changed so far. If that is impossible it fails, at its end if not before."""
        assert self._state is not None
        try:
            self._recorder.published(step, self._state.merge(worker, step, parcel, False, late))
        except StateConflict as error:
            self._conflicts.setdefault(step, conflict_failure(error))
        except Exception as error:
            self._conflicts.setdefault(step, _not_taken(error))

    def _end_lock(self, step: int) -> None:
        """A step has ended, and its changes are taken in: whoever waits for the lock may have it."""
        if not self._lock.is_held:
            return
        self._lock.home.forget(step)
        if self._lock.end_step(step):
            self.protocol.warning(f"step {self.steps[step - 1]} has ended and still had self._lock: it is free again")

    def _wake(self) -> None:
        self.coordinator.post(lambda: None)

    def _turn(self, until: Optional[float]) -> None:
        """Turn the loop, since `_stepsCheck`, which runs in its thread, waits for the lock."""
        self._turning, self._turn_until = True, until
        try:
            if self._own is not None:
                self._own.collect(by_check=True)
            self.coordinator.settle()
            self.coordinator.turn()
            self.coordinator.settle()
        except Exception as error:
            self._loop_error = error  # it is not for the code of _stepsCheck to catch
            raise
        finally:
            self._turning = False

    def take_orders(self) -> List[Message]:
        """None: functions travel with their steps."""
        return []

    def dispatching(self, pid: int, attempt: int, steps: Tuple[int, ...]) -> None:
        """To the journal, before they are sent."""
        self._recorder.started(pid, attempt, steps)

    def running(self, step: int) -> None:
        """A worker begins it."""
        s = self.steps[step - 1]
        s._status = STATUS_RUNNING
        s._started = time.time()
        s._ended = None
        for listener in self._listeners:
            listener.step_running(self, step)

    def returned(self, steps: Tuple[int, ...]) -> None:
        """They wait again."""
        for step in steps:
            self.steps[step - 1]._status = STATUS_NEW
            if self._state is not None:
                self._state.settle(step)
            if self._blocks is not None:
                self._blocks.end(("step", step))
        self._recorder.returned(steps)

    def finished(
        self, worker: int, pid: int, step: int, seconds: float, cpu: float, extras: Optional[Dict[str, Any]]
    ) -> Optional[Failure]:
        """Take in what a step left; a Failure if that is impossible."""
        s = self.steps[step - 1]
        value: Any = None
        if extras or worker == LOCAL or step in self.sink.changed_graph:
            extras = extras or {}
            if self._blocks is not None:
                self._blocks.answered(worker, extras)
            try:
                changes = self._merge(worker, step, extras)
                if step in self._conflicts:
                    return self._conflicts[step]
                value = self._values.keep(s, worker, extras.get("value"), extras.get("stored"))
            except StateConflict as error:
                return conflict_failure(error)
            except Exception as error:
                return _not_taken(error)
            self._recorder.outcome(step, value, extras.get("files"), changes, step in self.sink.changed_graph)
        elif self._state is not None:
            self._state.settle(step)
        if self._blocks is not None:
            self._blocks.end(("step", step))
        now = time.time()
        s._ended = now
        s._started = now - seconds
        self.cpu_seconds += cpu
        extras = extras or {}
        self._recorder.finished(pid, step, seconds, cpu, extras.get("peak"), extras.get("traffic"))
        self._end_lock(step)
        return None

    def finished_all(
        self, worker: int, pid: int, steps: Tuple[int, ...], seconds: List[float], cpu: List[float]
    ) -> None:
        """Steps that left nothing but the time they took."""
        changed_graph = self.sink.changed_graph
        if changed_graph and not changed_graph.isdisjoint(steps):
            for step, took, used in zip(steps, seconds, cpu):
                self.finished(worker, pid, step, took, used, None)
            return
        if self._state is not None:
            self._state.settle_all(steps)
        if self._blocks is not None:
            self._blocks.end_all(steps)
        all_steps, now = self.steps, time.time()
        for step, took in zip(steps, seconds):
            s = all_steps[step - 1]
            s._ended = now
            s._started = now - took
        self.cpu_seconds += sum(cpu)
        self._recorder.finished_all(pid, steps, seconds, cpu)

    def _merge(self, worker: int, step: int, extras: Dict[str, Any]) -> Optional[bytes]:
        changes = extras.get("changes")
        if isinstance(changes, Here):  # made in this process: in place already
            return changes.value  # type: ignore[no-any-return]
        if self._state is None:
            return None
        if worker == LOCAL:
            return self._own.of_local_step() if self._own is not None else None
        if changes is None:
            self._state.settle(step)
            return None
        return self._state.merge(worker, step, changes)

    def _watch_own_changes(self, log: StateLog) -> None:
        """From now on code in this process may change self beside the workers."""
        self.tracker = log.watch(state.Tracker(self.protocol, FRAMEWORK_ATTRIBUTES))
        self._own = OwnChanges(self.protocol, log, self.tracker, lambda: self.coordinator.scheduler.lane(LOCAL))
        log.collect_own = self._own.before_merge

    def failed(
        self, worker: int, pid: int, step: int, attempt: int, seconds: float, cpu: float,
        extras: Optional[Dict[str, Any]], failure: Failure,
    ) -> None:  # fmt: skip
        """Remember why, for `closed` or `retry`; what the attempt changed before it failed is as it would be with
        threads: there."""
        extras = extras or {}
        if self._blocks is not None:
            self._blocks.failed(worker, step, extras)
        try:
            self._merge(worker, step, extras)
        except Exception as error:
            self.protocol.warning(f"changes that the failed step {step} made are lost: {type(error).__name__}: {error}")
        s = self.steps[step - 1]
        s._ended = time.time()
        if s._started is None:
            s._started = s._ended - seconds
        self.cpu_seconds += cpu
        if not failure.log and self._logs:
            failure = failure._replace(log=_tail(step_log(self._logs, step)))
        failure = failure._replace(pid=failure.pid or pid)
        exception = extras.get("exception")
        self._failures[step] = (failure, exception.value if isinstance(exception, Here) else None)
        self._conflicts.pop(step, None)
        self._end_lock(step)
        self._recorder.failed(pid, step, attempt, failure)

    def closed(self, steps: Tuple[int, ...], status: Status, because: Optional[int]) -> None:
        """Make it known."""
        if status is Status.FINISHED or status is Status.INTERACTIVE:
            name = STATUS_FINISHED if status is Status.FINISHED else STATUS_INTERACTIVE
            for step in steps:
                self.steps[step - 1]._status = name
            self.done += len(steps)
            self.protocol._stepsDone.set(self.done)
            for listener in self._listeners:
                listener.steps_finished(self, steps)
        elif status is Status.FAILED:
            self._close_failed(steps[0])
        elif status is Status.SKIPPED and because is not None:
            self.skipped += len(steps)
            self._recorder.skipped(steps, f"step {self.steps[because - 1]} failed")
            for listener in self._listeners:
                listener.steps_skipped(self, steps, because)

    def _close_failed(self, step: int) -> None:
        s = self.steps[step - 1]
        failure, exception = self._failures.pop(step)
        s._status = STATUS_FAILED
        s._error = step_error(s, failure, exception, self._values.open)
        self.failed_steps.append(
            StepReport(
                step, s._funcName, shorten(s._args), failure.cause(), failure.traceback, failure.log, failure.peak_kib
            )
        )
        self.protocol.error(f"step {s} failed: {failure.cause()}")
        for listener in self._listeners:
            listener.step_failed(self, step, str(s._error))

    def retry(self, step: int, attempt: int) -> None:
        """It waits for its next attempt."""
        s = self.steps[step - 1]
        failure, _ = self._failures.pop(step)
        s._status = STATUS_NEW
        self.protocol.warning(f"attempt {attempt} of step {s} failed and it is tried again: {failure.cause()}")
        for listener in self._listeners:
            listener.step_retried(self, step, attempt, failure.cause())

    def worker_up(self, worker: int, pid: int) -> None:
        """Nothing to do: `setup` has made it known to the state."""

    def worker_gone(self, worker: int) -> None:
        """Its replica is gone."""
        if self._state is not None:
            self._state.leave(worker)
        if self._blocks is not None:
            self._blocks.gone(worker)

    def timeout(self, step: int) -> Optional[float]:
        """Seconds it may run."""
        return self._announcer.timeouts.get(step)

    def is_interactive(self, step: int) -> bool:
        """Whether it waits for a person afterwards."""
        return step in self._announcer.interactive

    def commit(self) -> None:
        """One frame of the journal."""
        self._recorder.commit()

    def run_local(self, step: int, message: Message) -> None:
        """In a thread of its own, so that the loop goes on beside it."""

        def work() -> None:
            log = step_log(self._logs, step) if self._logs else None
            reply = run_here(message, None, self.protocol, log)
            self.coordinator.post(Replies(LOCAL, [reply]))

        threading.Thread(target=work, name=f"mpsteps-step-{step}", daemon=True).start()

    # ------------------------------------------------------------------ checks and ends

    def next_call(self, now: float) -> Optional[float]:
        """When `_stepsCheck` is due."""
        if self._turning:
            return self._turn_until
        return self._next_check if self.checks_steps and not self.coordinator.scheduler.stopping else None

    def on_time(self, now: float) -> None:
        """Call `_stepsCheck`."""
        if self._turning:
            return
        self._call_steps_check()
        self._next_check = time.monotonic() + float(self.protocol._stepsCheckSecs)

    def _call_steps_check(self) -> bool:
        """Whether it changed anything about the steps."""
        before = (len(self.steps), self.coordinator.changes_posted)
        if self._own is not None:
            self._own.collect()
        lock = self._lock
        lock.may_turn = True
        try:
            try:
                self.protocol._stepsCheck()
            finally:
                lock.may_turn = False
                if lock.home.leave_entirely():
                    self.protocol.warning("_stepsCheck has ended and still had self._lock: it is free again")
            if self._own is not None:
                self._own.collect(by_check=True)
            elif self.tracker is not None:
                self.tracker.changes()  # inline: these are no step's, and it will make them again after a resume
        except Exception as error:
            self.problem = error
            self.protocol.error(f"_stepsCheck failed:\n{traceback.format_exc()}")
            self.coordinator.stop_starting()
        if self._loop_error is not None:
            raise self._loop_error
        self.coordinator.take_inbox()
        return before != (len(self.steps), self.coordinator.changes_posted)

    def is_over(self) -> bool:
        """Whether nothing runs and nothing can come any more."""
        scheduler = self.coordinator.scheduler
        if self.coordinator.killed:  # a local step cannot be killed: it is left behind
            return all(worker == LOCAL or not lane for worker, lane in scheduler.lanes())
        if scheduler.active or self.coordinator.has_post():
            return False
        if scheduler.stopping:
            return True
        if self.checks_steps and self._call_steps_check():
            return False
        if self.problem is not None:
            return True
        held = [s for s in self.steps if s._status == STATUS_WAITING and scheduler.status(s._id) is Status.HELD]
        if not held:
            return True
        if self.checks_steps:
            return False  # a later _stepsCheck may release them
        names = ", ".join(str(s) for s in itertools.islice(held, 5))
        self.problem = UsageError(
            f"steps that wait for a release will never get it: {names}; a protocol that inserts steps with wait=True "
            "must release them with setStatus(STATUS_NEW), in _stepsCheck or in another step"
        )
        return True

    def key(self, step: int) -> str:
        """The name of a step that is the same in every run of this protocol."""
        return self._keys.of(step)

    def keep_digest(self, step: int) -> None:
        """A step is to wait for more than it was inserted with; by that it is recognised."""
        self._recorder.digest(self.steps[step - 1])

    def take_inserted(self, step: Step) -> None:
        """A step that was inserted while the run goes on is there for the scheduler, the journal, the listeners."""
        if self._own is not None:
            self._own.collect()
        elif self._state is not None and self._demands.of(step).local:
            self._watch_own_changes(self._state)
        self._recorder.inserted([step])
        kept = self.earlier.take(step) if self.earlier else None
        if kept is None:
            if self.earlier and self.earlier.was_cut_short(step):
                self._recorder.doubt([step._id])
                self.protocol.warning(f"step {step} was cut in the middle by a crash and runs again")
            self._announcer.tell(step, False, self.coordinator.handle)
        else:
            self._keep_late(step, kept)
        for listener in self._listeners:
            listener.steps_inserted(self)

    def _keep_late(self, step: Step, kept: Kept) -> None:
        """A step that was inserted while the run goes on finished in an earlier session."""
        self._announcer.tell(step, True, self.coordinator.handle)
        self._restore(step, kept.record)
        self.protocol._stepsDone.set(self.done)
        changes = self.earlier.redo(kept, self.tracker)
        if changes and self._state is not None:
            self._state.publish(state.pack_changes(changes, self.protocol))

    def answer(self, worker: int, step: int, name: str, parcel: bytes) -> bytes:
        """Serve a request of a step in a worker."""
        return self.sink.answer(step, name, parcel)


def _not_taken(error: Exception) -> Failure:
    failure = wire.describe(error, "serialization", "a change of self")
    return failure._replace(
        message=f"what the step changed could not be taken over ({failure.type_name}: {failure.message})"
    )


def _tail(path: str, size: int = 16_384) -> str:
    """The last part of a text file; '' if there is none."""
    try:
        with open(path, "rb") as f:
            end = f.seek(0, 2)
            f.seek(max(0, end - size))
            return f.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
