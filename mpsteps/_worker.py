"""A worker process: take step messages out of the lane, run them, put what became of them back.

The loop in one breath: announce the step (`begun`: from here on a death has exactly one victim), run it inside a try
block that also opens its arguments and packs its result, compare `self` with what it was, keep the reply; send all
replies kept when there is nothing left to run, or when some time has passed.

What a worker imports decides how fast it starts: nothing of the protocol, form or command line is imported here.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import deque
from typing import Any, Callable, Deque, Dict, List, Optional, Sequence, Tuple, Union

from mpsteps import _context, _peaks, _traffic
from mpsteps._image import load_image
from mpsteps._ipc import blocks, large, wire
from mpsteps._ipc.bell import SPIN, next_spin
from mpsteps._ipc.lane import WorkerEnd
from mpsteps._logging_relay import Relay
from mpsteps._memory import own_memory
from mpsteps._output import PROGRAM_SECONDS, Output
from mpsteps._remote import RemoteSink, RemoteSteps
from mpsteps._result_of import put_results
from mpsteps._results import check_result_files
from mpsteps._surroundings import LOOK_SECONDS, Surroundings
from mpsteps._turns import Turns
from mpsteps._worker_blocks import WorkerBlocks
from mpsteps._worker_forks import NotOurs, end_fork
from mpsteps._worker_lock import WorkerLock
from mpsteps._worker_recent import RecentSteps
from mpsteps._worker_replica import Replica
from mpsteps._worker_replies import WorkerReplies
from mpsteps.errors import InternalError, MpstepsError, SerializationError
from mpsteps.report import format_bytes

SHARED_ARRAYS_KEPT = 4
"""See `blocks.told_kept`."""
SHORT_SECONDS = 200e-6
"""The CPU time of a step that took less is taken to be all of it: to ask would cost as much as such a step."""
MEMORY_LEFT = 64 << 20
"""A worker whose step raised MemoryError and left so many bytes behind is not used again."""

_READ_ONLY = (
    "large arrays that are attributes of the protocol cannot be written by steps: put a new array in the attribute's "
    "place, return it, or make it with mpsteps.shared_array"
)

EXIT_LANE_BROKEN = 70  # as EX_SOFTWARE: what came out of the ring was not what the coordinator put in


class Worker:
    """Runs the steps of one lane. `run()` returns the exit code of the process."""

    def __init__(self, end: WorkerEnd, own_fds: Sequence[int] = ()) -> None:
        self._end = end
        self._replies = WorkerReplies(end)
        self._recent = RecentSteps(end, self._replies)
        self._surroundings = Surroundings(own_fds)
        self._look_at = 0.0
        self._trusted = self._surroundings.trusted
        self._memory_at_start = 0
        self.turns = Turns()
        self._queue: Deque[Tuple[Any, ...]] = deque()
        self._functions: Dict[int, Any] = {}  # number -> callable, or its parcel until first used
        self._lock: Optional[WorkerLock] = None  # that of the protocol
        self._number = 0  # of the last step message taken from the lane, from 1
        self._spin = self._longest_spin = SPIN
        self._step: Tuple[int, Any] = (0, None)  # the step that runs, or ran last, and its function
        self._halt = False  # after a failed step, give back what is behind it
        self._leaving = False
        self._protocol: Any = None
        self._replica = Replica()
        self._output: Optional[Output] = None  # None: steps write where the coordinator writes
        self._blocks = WorkerBlocks()
        self._relay: Optional[Relay] = None
        self._peaks: Optional[_peaks.Peaks] = None  # set for the steps of a protocol
        self._calls: Optional[_traffic.Calls] = None  # as well
        self._context = _context.StepContext(0)
        self._cpu = time.process_time()
        self._programs_cpu = 0.0  # of programs that steps have run, as far as it is known

    # ------------------------------------------------------------------ messages

    def run(self) -> int:
        """Serve until told to stop."""
        queue = self._queue
        try:
            while True:
                while not queue:
                    self._recent.patient = True
                    if self._relay is not None:
                        self._relay.flush_waiting()  # what was logged while replies were told
                    self._replies.flush()
                    if self._leaving:
                        return 0
                    self._receive(block=True)
                self._next(queue.popleft())
        except OSError:
            if self._leaving:
                return 0  # a step has closed the bell: the coordinator hears of our end, and finds all we have said
            raise
        except MpstepsError as error:  # RingCorrupt: the steps of this lane are reported lost
            print(f"mpsteps worker {os.getpid()}: {error}", file=sys.stderr, flush=True)
            return EXIT_LANE_BROKEN

    def _receive(self, block: bool, seconds: Optional[float] = None) -> None:
        end = self._end
        if block and not end.receive.pending():
            started = time.perf_counter()
            self.turns.sleep(lambda: end.sleeper.wait(self._can_go_on, seconds, self._spin), seconds)
            self._spin = next_spin(time.perf_counter() - started, self._longest_spin)
            if not self.turns.is_open:  # else a step waits, and what it has used before is its own
                self._cpu = time.process_time()
        came = False
        for frame in end.receive.drain():
            came = True
            for message in wire.decode(frame):
                if message[0] > 0:
                    self._queue.append(message)
                else:
                    self._order(message)
        if came and self.turns.is_open:  # what it waits for may be here, and the ring that woke it is empty again
            self.turns.disturb(end.sleeper.disturb)

    def _can_go_on(self) -> bool:
        return self._end.receive.pending() or self.turns.disturbed

    def _order(self, message: Tuple[Any, ...]) -> None:
        order = -message[0]
        if order == wire.FUNCTION:
            self._functions[message[1]] = message[2]
        elif order == wire.ANSWER:
            self.turns.answered(message[1])
        elif order == wire.GRANT:
            assert self._lock is not None
            self._lock.answered(*message[1:])
        elif order == wire.FREE:
            for key in message[1]:
                self._blocks.arena.free(key)
        elif order == wire.SETUP:
            self._set_up(message[1])
        elif order == wire.STOP:
            self._leaving = True

    def _send_records(self, records: List[Tuple[Any, ...]]) -> bool:
        """Log records, for the handlers of the coordinator's process; at once: the step may run for long. False: not
        now, as another thread speaks, or this one does and the handler of a signal, or a finalizer, logs."""
        if self.turns.forked:
            return True
        if self._replies.busy:
            return False
        in_step = self.turns.is_open
        if in_step and not self.turns.enter_if_free():
            return False
        try:
            self._replies.add((-wire.LOGGED, records))
            self._replies.flush()
        finally:
            if in_step:
                self.turns.leave()
        return True

    def request(self, name: str, *args: Any) -> Any:
        """Ask the coordinator something while a step runs and wait for the answer; raises what it answers with."""
        parcel = wire.pack(args, self._protocol)
        with self.turns:
            number, answer = self.turns.ask(), None
            self.tell((-wire.REQUEST, self.running, name, parcel))
            while answer is None:
                self.listen(None)
                answer = self.turns.take_answer(number)
        good, value = self.unpack(answer)
        if not good:
            raise value
        return value

    # What `self._lock` and requests need; by the thread whose turn it is.

    @property
    def running(self) -> int:
        """The step that runs, or ran last."""
        return self._step[0]

    def tell(self, message: Tuple[Any, ...]) -> None:
        """Send this, after all that is to be said before."""
        self._replies.add(message)
        self._replies.flush()

    def listen(self, seconds: Optional[float]) -> None:
        """Take in what comes, waiting for it at most so long."""
        self._receive(True, seconds)

    def unpack(self, parcel: bytes) -> Any:
        """Open a parcel."""
        return wire.unpack(parcel, self._protocol)

    def tell_changes(self) -> None:
        """Tell what the step that runs has changed so far, with what is told next."""
        if self._replica.has_changed:
            self._tell_changes(False)

    def _tell_changes(self, late: bool) -> None:
        changes = self._replica.pack_changes(self._step[1])
        if isinstance(changes, wire.Failure):
            assert self._lock is not None
            self._leaving = True
            self._lock.lost_changes = changes  # the step fails, also if its code goes on as if nothing were
            raise SerializationError(changes.message)
        if changes is not None:
            self._replies.add((-wire.CHANGED, self.running, changes, late))

    def hear_later(self, news: List[Any]) -> None:
        """There are news, to be heard at the next occasion; what steps in the queue would tell is older."""
        for i, m in enumerate(self._queue):
            self._replica.hear_later(m[4])
            if m[4] is not None:
                self._queue[i] = (*m[:4], None, *m[5:])
        for each in news:
            self._replica.hear_later(each)

    def hear_now(self) -> None:
        """Take in what others changed, in the middle of a step."""
        if not self._replica.unheard:
            return
        if self._replica.has_changed:  # by other threads of the step, since the lock was asked for
            self._tell_changes(True)
        self._replica.hear()

    # -------------------------------------------------------------------- set-up

    def _set_up(self, setup: Dict[str, Any]) -> None:
        """Take in the protocol and where output goes; answers READY, or UNFIT with the reason."""
        try:
            self._halt = bool(setup.get("halt"))
            self._longest_spin = setup.get("spin", SPIN)
            self._blocks.limit, self._blocks.folder = setup.get("arena", (0, None))
            self._blocks.values, self._blocks.sync = setup.get("values", (None, False))
            if setup.get("log"):
                self._output = Output(setup["log"], setup["log_folder"])
            if setup.get("logging") is not None:
                self._relay = Relay(setup["logging"], lambda: self.running, self._send_records)
            if setup.get("image"):
                self._protocol = load_image(setup["image"], self._blocks.open_shared)
                self._replica = Replica(self._protocol, setup["ignored"])
                self._protocol._sink = RemoteSink(self)
                self._protocol._steps = RemoteSteps(self)
                self._protocol._stepsExecutor = self._context
                self._protocol._lock = self._lock = WorkerLock(self)
                self._context.log = setup.get("log")
                _context.enter_process(self._context)
                self._peaks = _peaks.Peaks()
                self._calls = _traffic.Calls()
            self._surroundings.take()
            self._memory_at_start = own_memory(os.getpid())
            self._replies.add((-wire.READY, os.getpid()))
        except BaseException as error:
            self._replies.add((-wire.UNFIT, tuple(wire.describe(error))))
        self._replies.flush()

    # --------------------------------------------------------------------- steps

    def _next(self, message: Tuple[Any, ...]) -> None:
        self._number += 1
        step, extras = message[0], message[5]
        self._recent.forget(step)
        may_run = not extras or "ahead" not in extras or self._recent.may_run(extras)
        if not may_run or not self._end.begin(self._number):  # what is not begun is nobody's victim
            self._replica.hear_later(message[4])
            self._replies.gave_back(self._number, step)
            return
        self._step = (step, message[2])
        started = time.perf_counter()
        extras, failure = self._run_step(message)
        ended = time.perf_counter()
        seconds = ended - started
        if self._relay is not None:
            self._relay.flush_waiting()
        used = self._cpu_used(seconds)
        if failure is not None:
            failure = failure._replace(peak_kib=_peak_kib())
        leaving = False
        if ended >= self._look_at or message[2] not in self._trusted or failure is not None:
            leaving = self._look_around(message[2], failure)
        extras = self._with_traces(message, seconds, extras, failure is not None)
        if failure is not None:
            self._replies.failed((step, seconds, used, extras, tuple(failure)))
        elif extras:
            self._recent.add(step, extras.get("value"))
            self._replies.left(self._number, (step, seconds, used, extras), ended)
        else:
            self._recent.add(step, None)
            self._replies.finished(self._number, step, seconds, used, ended)
        if leaving:
            self._replies.flush()
        if leaving or failure is not None:
            self._after_failure()

    def _with_traces(
        self, message: Tuple[Any, ...], seconds: float, extras: Optional[Dict[str, Any]], failed: bool
    ) -> Optional[Dict[str, Any]]:
        """`extras` of a step, with what it left outside of Python: output, a peak of memory, what it read and wrote."""
        if self._output is not None and self._output.has_written(seconds) and self._output.keep(message[0]):
            extras = {**(extras or {}), "log": True}
        if self._peaks is not None and (seconds > _peaks.LOOK_SECONDS or failed):
            peak = self._peaks.of_last_step()
            if peak is not None and not failed:
                extras = {**(extras or {}), "peak": peak}
            if self._calls is not None:
                calls = self._calls.of_last_step()
                if not failed:
                    extras = extras or {}
                    moved = (self._size_of(message), _traffic.size(extras.values()))
                    extras = {**extras, "traffic": (*calls, *moved)}
        return extras

    def _size_of(self, message: Tuple[Any, ...]) -> int:
        """Bytes that came with a step."""
        results = (message[5] or {}).get("results", {})
        return _traffic.size(message[:5]) + _traffic.size(results.values())

    def _cpu_used(self, seconds: float) -> float:
        """CPU seconds of the step that has just ended after `seconds`."""
        if seconds < SHORT_SECONDS:
            self._cpu += seconds
            return seconds
        cpu = time.process_time()
        used, self._cpu = cpu - self._cpu, cpu
        if seconds > used + PROGRAM_SECONDS:
            used += self._new_cpu_of_programs()
        return used

    def _look_around(self, function: Any, failure: Optional[wire.Failure]) -> bool:
        """What the step has changed around it is not for the next one; whether this worker has to leave."""
        surroundings = self._surroundings
        if self._protocol is not None:
            self._protocol._currentDir = None
        changed, problem = surroundings.put_back()
        if changed:
            surroundings.suspect(function)
        else:
            surroundings.clean(function)
        if failure is not None and failure.type_name == "MemoryError":
            left = own_memory(os.getpid()) - self._memory_at_start
            if left > MEMORY_LEFT:
                problem = problem or f"it ran out of memory, and {format_bytes(left)} of it are not free again"
        if problem:
            self._leaving = True
            try:
                if self._output is not None:
                    self._output.attach()  # it may have closed that, too
                sys.stderr.write(f"mpsteps: worker {os.getpid()} is replaced after this step: {problem}\n")
                sys.stderr.flush()
            except (OSError, ValueError, AttributeError):
                pass  # there is no standard error any more that could be told, or no descriptor left
        self._look_at = time.perf_counter() + LOOK_SECONDS
        return bool(problem)  # one that was told to leave runs what is in its lane first

    def forked(self) -> None:
        """This is a fork of the worker, which a step has made. It can do what it likes, but it is no worker."""
        again = self.turns.forked  # a fork of a fork, as daemons are made
        self.turns = Turns(forked=True)  # also since another thread of the step may have had the old one
        self.turns.open()
        # The code of the step may return here, or to where one of these was interrupted: then it ends.
        nobody: Any = NotOurs()
        if not again:
            self._replies.disown(nobody)
            self._recent.disown(nobody)
        self._end = self._replies = self._recent = nobody
        self._output = None

    def _new_cpu_of_programs(self) -> float:
        """CPU seconds of the programs that have ended since this was last asked. (Only asked after a step that waited
        for something: it costs as much as an empty step.)"""
        import resource  # not there on Windows, where there are no workers

        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        before, self._programs_cpu = self._programs_cpu, usage.ru_utime + usage.ru_stime
        return self._programs_cpu - before

    def _after_failure(self) -> None:
        """Where a failure ends the run, or this worker, nothing that is behind it in the lane starts any more."""
        if self._halt or self._leaving:
            self._receive(block=False)
            for m in self._queue:
                self._replica.hear_later(m[4])
                self._replies.add((-wire.RETURNED, m[0]))
            self._end.standing.give_back(self._number + len(self._queue))
            self._replies.flush()
            self._number += len(self._queue)  # answered first, announced then: killed in between, nobody is blamed
            self._end.begin(self._number)
            self._queue.clear()

    def _run_step(self, message: Tuple[Any, ...]) -> Tuple[Optional[Dict[str, Any]], Optional[wire.Failure]]:
        """Run one step; everything that can raise because of what a user made is inside the try blocks."""
        opened = self._open(message)
        if isinstance(opened, wire.Failure):
            return None, opened
        function, args, kwargs, gpus = opened
        del opened
        found: Dict[str, Any] = {}
        failure: Optional[wire.Failure] = None
        context = self._context
        context.step, context.attempt = message[0], message[1]
        if gpus or context.gpus:
            self._use_cards(gpus)
        try:
            self.turns.open()
            try:
                value = function(*args, **kwargs)
            finally:
                self.turns.close()
            if value is not None and self._protocol is not None:
                files = check_result_files(value)
                if files:
                    found["files"] = files
        except BaseException as error:
            if self.turns.forked:
                end_fork(error)
            failure = self._describe(error)
            del error
        else:
            if value is not None:
                failure = self._pack_value(value, found)
            value = None
        del function, args, kwargs
        if self._lock is not None and self._lock.used:
            failure = self._end_lock(found, failure)
        if self._replica.has_changed:
            failure = self._pack_changes(message[2], found, failure)
        if self._blocks.in_use:
            failure = self._note_blocks(found, failure)
        return found or None, failure

    def _open(self, message: Tuple[Any, ...]) -> Union[wire.Failure, Tuple[Any, Tuple[Any, ...], Dict[str, Any], Any]]:
        """Make of a message what is to be called, its arguments, and the graphics cards that it may use."""
        _, _, fn, args, changes, extras = message
        gpus: Tuple[int, ...] = ()
        kwargs: Dict[str, Any] = {}
        part = "function"
        try:
            if changes is not None or self._replica.unheard:
                part = "a change of self by an earlier step"
                self._replica.hear(changes)
                part = "function"
            function = getattr(self._protocol, fn) if type(fn) is str else self._function(fn)
            part = "arguments"
            if type(args) is not tuple:
                args, kwargs = self._blocks.open(args, self._protocol)
            if extras:
                gpus = tuple(extras.get("gpus", ()))
                if "results" in extras:
                    args = self._put_results(args, extras["results"])
        except BaseException as error:
            return _cannot_open(error, part)
        return function, args, kwargs, gpus

    def _describe(self, error: BaseException) -> wire.Failure:
        failure = wire.describe(error)
        if self._blocks.in_use and failure.type_name == "ValueError" and "read-only" in failure.message:
            failure = failure._replace(message=f"{failure.message} ({_READ_ONLY})")
        return failure

    def _end_lock(self, found: Dict[str, Any], failure: Optional[wire.Failure]) -> Optional[wire.Failure]:
        """A step that has had `self._lock` leaves something, if only that it has heard of what others left: who follows
        it must hear of that, too."""
        assert self._lock is not None
        self._lock.end_step()
        self.turns.disturb(self._end.sleeper.disturb)  # threads that have outlived the step, and wait
        found["lock"] = True
        return failure or self._lock.take_lost()

    def _note_blocks(self, found: Dict[str, Any], failure: Optional[wire.Failure]) -> Optional[wire.Failure]:
        """Tell which blocks something here still reads, now that the step's own variables are gone."""
        try:
            keys = self._blocks.news()
            if keys is not None:
                found["keeps"] = keys
        except InternalError as error:
            failure = failure or wire.describe(error, "serialization", "a large value")
        return failure

    def _use_cards(self, gpus: Tuple[int, ...]) -> None:
        """What code of the step may ask about its cards. In a pool there is nothing else that it could ask."""
        self._context.gpus = gpus
        if self._protocol is None:
            _context.enter_process(self._context if gpus else None)

    def _put_results(self, args: Tuple[Any, ...], results: Dict[int, Optional[large.Parcel]]) -> Tuple[Any, ...]:
        def result(step: int) -> Any:
            parcel = results[step]
            if parcel is None:
                parcel = self._recent.value(step)
            return None if parcel is None else self._blocks.open(parcel, self._protocol)

        return tuple(put_results(args, result))

    def _function(self, fn: Union[bytes, int]) -> Callable[..., Any]:
        if type(fn) is bytes:
            return wire.unpack(fn, self._protocol)  # type: ignore[no-any-return]
        function = self._functions[fn]  # type: ignore[index]  # a number: see above
        if type(function) is bytes:
            function = self._functions[fn] = wire.unpack(function, self._protocol)  # type: ignore[index]
        return function  # type: ignore[no-any-return]

    def _pack_value(self, value: Any, found: Dict[str, Any]) -> Optional[wire.Failure]:
        try:
            found["value"] = parcel = self._blocks.pack(value, self._protocol)
            if type(parcel) is list and self._blocks.values is not None:
                found["stored"] = self._blocks.store(value, self._protocol)
            return None
        except BaseException as error:
            return _cannot_send(error, "result", f"the result (of type {type(value).__name__})")

    def _pack_changes(
        self, fn: Any, found: Dict[str, Any], failure: Optional[wire.Failure]
    ) -> Optional[wire.Failure]:
        changes = self._replica.pack_changes(fn)
        if isinstance(changes, wire.Failure):
            self._leaving = True  # this replica holds what the others can never hear of: a new worker takes over
            return failure or changes
        if changes is not None:
            found["changes"] = changes
        return failure


def _cannot_open(error: BaseException, part: str) -> wire.Failure:
    failure = wire.describe(error, "serialization", part)
    return failure._replace(
        message=f"{part} of the step could not be opened in the worker ({failure.type_name}: {failure.message})"
    )


def _cannot_send(error: BaseException, part: str, what: str) -> wire.Failure:
    failure = wire.describe(error, "serialization", part)
    return failure._replace(
        message=f"{what} of the step cannot travel back from the worker ({failure.type_name}: {failure.message})"
    )


def _peak_kib() -> int:
    """The most memory that this process has had, KiB."""
    import resource  # not there on Windows, where there are no workers

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform != "darwin" else peak // 1024


def main(end: WorkerEnd, own_fds: Sequence[int] = ()) -> int:
    """The life of a worker process after the fork; returns its exit code. `own_fds`: without which it cannot live."""
    blocks.told_kept = SHARED_ARRAYS_KEPT
    signal.signal(signal.SIGINT, _ignore)
    sys.argv[:1] = ["mpsteps-worker"]
    worker = Worker(end, own_fds)
    os.register_at_fork(after_in_child=worker.forked)
    return worker.run()


def _ignore(_signum: int, _frame: Any) -> None:
    """The terminal's Ctrl-C is for the coordinator. A handler, not SIG_IGN: programs must not inherit deafness."""
