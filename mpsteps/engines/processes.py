"""Workers on this machine: a zygote that forks them, and a lane of shared memory to each.

::

    coordinator process                       | other processes
                                              |
    ProcessEngine ---- socket --------------------> zygote ---- fork ---> worker, worker, ...
        |   fork, kill  / forked, dead        |       (kills all below it when the socket ends)
        |                                     |
        +--- lane 1: requests ====================> worker 1
        |            replies  <====================
        +--- lane 2: ...                      |
        +--- board: "I sleep", bell <-------------- every worker

The engine knows which message numbers it sent to which lane. After a death it reads the worker's two words, `begun`
and `done`: what is unanswered and not above `done` has finished, `begun` above `done` names the one victim, the rest
was never begun.
"""

from __future__ import annotations

import itertools
import logging
import os
import select
import sys
import threading
import time
from signal import SIGKILL
from typing import TYPE_CHECKING, Any, Callable, Container, Dict, List, Mapping, Optional, Sequence, Tuple

from mpsteps._ipc import wire
from mpsteps._ipc.bell import LONGEST_SLEEP, longest_spin, next_spin
from mpsteps._ipc.lane import Board
from mpsteps._ipc.shm import ORDERED
from mpsteps._ipc.standing import ENDED
from mpsteps._logging_relay import wanted
from mpsteps._spawn import Spawner, describe_exit, start_zygote
from mpsteps.engines.base import EngineFailed, Happening, Message, Replies, WorkerGone
from mpsteps.engines.handle import WorkerHandle, last_log
from mpsteps.errors import EngineError

if TYPE_CHECKING:
    from mpsteps._begun import Occasion

SPIN_SECONDS = 30e-6
BOOT_DEATHS = 3
"""So many workers in a row may die before they are ready; then the engine gives up."""
STOP_SECONDS = 2.0
"""Idle workers that were told to leave are killed after this."""

__all__ = ["ProcessEngine", "describe_exit"]

logger = logging.getLogger("mpsteps.engine")

_yield: Callable[[], None] = getattr(os, "sched_yield", lambda: time.sleep(0))
_said_unguarded = False  # once per process is enough


class ProcessEngine:
    """N worker processes. `setup()` gives what a new worker is set up with (image of the protocol as it is then, ...);
    `logs`: the folder for output of workers, None: they write where this process writes; `keep_open`: descriptors
    (the fence of the run directory) that every worker holds open as long as it lives; `preload`: modules that
    the zygote imports for all of them; `occasion`: what a witness is to tell if this process is killed; `first_log`:
    numbers of logs begin above it (None: above those that are there); `zygote`: one that was started for just this
    (`keep_open`, `preload` and `occasion` are for those after it); `prepare` takes it over.

    Fewer workers than were asked for must do where no more can be had, with a warning; it is an error when there is
    none. All methods are for one thread, `wake` for any.
    """

    by_value = True
    across = ORDERED
    elsewhere = False

    def __init__(
        self,
        workers: int,
        setup: Callable[[int], Dict[str, Any]],
        logs: Optional[str] = None,
        keep_open: Sequence[int] = (),
        spin: float = SPIN_SECONDS,
        preload: Sequence[str] = (),
        occasion: Optional[Occasion] = None,
        first_log: Optional[int] = None,
        zygote: Optional[Spawner] = None,
    ) -> None:
        self._wanted = workers
        self._given = zygote
        self._setup = setup
        self._logs = logs
        self._keep_open = tuple(keep_open)
        self._preload = tuple(preload)
        self._occasion = occasion
        self._spin = spin
        self._longest_spin = longest_spin(workers)
        self._workers: Dict[int, WorkerHandle] = {}
        self._last_number = 0
        self._first_log = first_log
        self._boot_deaths = 0  # of workers and zygotes, since the last worker that got ready
        self._zygote: Optional[Spawner] = None
        self._board: Optional[Board] = None
        self._board_lock = threading.RLock()  # `wake` in a signal handler may interrupt its own thread
        self._happened: List[Happening] = []
        self._listen_to = -1  # a descriptor that ends a `wait` when it can be read, by whoever has asked for that
        self._stopping = False
        self._idle = False  # what the board says
        self._woken = False  # set by any thread: `wait` is to return
        self._asleep = False  # set by the coordinator's thread only
        self._owner = 0

    # ------------------------------------------------------------------ beginning

    def prepare(self) -> None:
        """Start the zygote and ask it for all workers. They come up while the caller does something else. Raises
        EngineError, with nothing left behind, if they cannot even be asked for; what goes wrong later in the new
        processes is told by `wait` (EngineFailed)."""
        self._owner = os.getpid()
        try:
            self._zygote, self._given = self._given, None  # so that it is ended, whatever happens
            if self._zygote is None:
                self._zygote = self._new_zygote()
            self._board = Board.create()
            self._sleeper = self._board.sleeper()
            self._listen_to_all()
            if self._first_log is None:
                self._first_log = last_log(self._logs)
            while len(self._workers) < self._wanted:
                self._ask_for_worker()
        except BaseException:
            self.stop(at_once=True)
            raise

    def start(self) -> None:
        """Set the workers up. Raises what `prepare` does, with nothing left behind, and what `setup` raises."""
        if self._zygote is None:
            self.prepare()
        try:
            for w in self._workers.values():
                self._set_up(w)
        except BaseException:
            self.stop(at_once=True)
            raise

    def _new_zygote(self) -> Spawner:
        occasion, self._occasion = self._occasion, None  # a second one does not know the workers of the first
        return start_zygote(self._wanted, self._keep_open, self._preload, occasion)

    def _listen_to_all(self) -> None:
        assert self._board is not None
        assert self._zygote is not None
        self._poll = select.poll()
        self._poll.register(self._zygote.fileno(), select.POLLIN)
        self._poll.register(self._board.bell.fileno(), select.POLLIN)
        if self._listen_to >= 0:
            self._poll.register(self._listen_to, select.POLLIN)

    def _ask_for_worker(self) -> WorkerHandle:
        assert self._board is not None
        assert self._zygote is not None
        number = self._last_number + 1
        log = os.path.join(self._logs, f"worker-{(self._first_log or 0) + number}.log") if self._logs else None
        self._board.admit(number)
        w = WorkerHandle(number, log)
        self._last_number = number
        self._workers[number] = w
        self._zygote.fork(number, w.lane.fds(), self._board.fds())
        return w

    def _set_up(self, w: WorkerHandle) -> None:
        """What a worker waits for before anything else."""
        setup = {
            "log": w.log, "log_folder": self._logs or "", "spin": self._longest_spin,
            "logging": wanted(), **self._setup(w.number),
        }  # fmt: skip
        w.send([(-wire.SETUP, setup)])

    def _refill(self) -> None:
        """Bring the number of workers back to what was asked for."""
        while len(self._workers) < self._wanted and not self._stopping:
            try:
                self._set_up(self._ask_for_worker())
            except EngineError as error:
                self._do_without(str(error))
                return

    def _do_without(self, reason: str) -> None:
        if self._workers:
            logger.warning("a worker process cannot be started, going on with %d: %s", len(self._workers), reason)
        elif not self._stopping:
            self._give_up(f"no worker process can be started: {reason}")

    # ------------------------------------------------------------------ while it runs

    def send(self, worker: int, messages: List[Message]) -> None:
        """Put step messages and orders into a worker's lane; what there is no room for is sent later."""
        w = self._workers.get(worker)
        if w is None:
            return  # it died a moment ago: `wait` has told so, or will, and these steps were never begun
        refused = w.send(messages)
        if refused:
            self._happened.append(Replies(worker, refused, w.apart))

    def number_peers(
        self, outgoing: Sequence[Tuple[int, List[Message]]], apart: Mapping[int, int], ended: Container[int]
    ) -> None:
        """Say which messages of other lanes steps follow. What is in a lane has its number; of what is about to be
        sent, it is known which one it will get."""
        numbers = {w.number: w.in_lane if w.next_number else {} for w in self._workers.values()}
        next_ones = {w.number: itertools.count(w.next_number) for w in self._workers.values() if w.next_number}
        new: Dict[int, int] = {}
        for worker, messages in outgoing:
            if worker in next_ones:
                new.update((m[0], next(next_ones[worker])) for m in messages if m[0] > 0)
        for _, messages in outgoing:
            for m in messages:
                extras = m[5] if m[0] > 0 else None
                if extras and "peers" in extras:
                    extras["peers"] = {
                        p: (w, ENDED if p in ended else new.get(p) or numbers.get(w, {}).get(p, 0), apart.get(w, 0))
                        for p, w in extras["peers"].items()
                    }

    def revoke(self, worker: int) -> None:
        """Take back what is not begun; `wait` tells which steps are back. The worker passes over their messages."""
        w = self._workers.get(worker)
        if w is not None:
            w.revoke(self._happened)
            if w.damage:
                self._end_wild(w)

    def running(self, worker: int) -> Optional[int]:
        """The step that a worker has begun and not finished; None: it is between steps."""
        w = self._workers.get(worker)
        return w.running() if w is not None and not w.damage else None

    def limit_memory(self, worker: int, step: int, limit: int) -> None:
        """The coordinator looks itself."""

    def log(self, worker: int) -> Optional[str]:
        """The file that a worker's output goes to while a step runs; None: where this process writes."""
        w = self._workers.get(worker)
        return w.log if w is not None else None

    def kill(self, worker: int, signal: int) -> None:
        """Signal a worker and the programs that it has started."""
        if self._zygote is not None and worker in self._workers:
            self._zygote.kill(worker, signal)

    def pid(self, worker: int) -> int:
        """The worker's process id; 0 while it is not known."""
        w = self._workers.get(worker)
        return w.pid if w else 0

    def wake(self) -> None:
        """Make `wait` return. The coordinator's bell is rung only where it sleeps: ringing is a system call."""
        self._woken = True
        if not self._asleep:
            return  # it looks at `_woken` after it has set `_asleep`, and before it sleeps
        with self._board_lock:  # the bell's descriptor must not be closed, and given to somebody else, meanwhile
            if self._board is not None:
                self._board.bell.ring()

    def wait(self, timeout: Optional[float]) -> List[Happening]:
        """Take what there is in all lanes if a worker has called; else sleep, until a bell, a death or the time. (What
        workers put without calling comes with the next call, soon: a turn for each reply would take a core.)"""
        self._say_idle()
        found = self._collect() if self._has_work() else self._take_happened()
        if found or timeout == 0 or self._woken:
            self._woken = False
            self._look_at_link(0)
            return found + self._take_happened()
        started = time.perf_counter()
        if self._spin and self._spin_until_called(timeout):
            self._spin = next_spin(time.perf_counter() - started, self._longest_spin)
            return self._collect()
        self._sleeper.prepare()
        self._asleep = True
        rung = False
        try:
            if not self._has_work() and not self._happened and not self._woken:
                seconds = LONGEST_SLEEP if timeout is None else min(timeout, LONGEST_SLEEP)
                rung = self._look_at_link(seconds)
        finally:
            self._asleep = self._woken = False
            self._sleeper.awake(rung)
            if self._spin:
                self._spin = next_spin(time.perf_counter() - started, self._longest_spin)
        return self._collect() + self._take_happened()

    def _say_idle(self) -> None:
        """Workers tell sooner what they have finished while another one waits for something to do."""
        idle = any(w.ready and not w.in_lane for w in self._workers.values())
        if idle != self._idle and self._board is not None:
            self._idle = idle
            self._board.say_idle(idle)

    def _spin_until_called(self, timeout: Optional[float]) -> bool:
        stop = time.perf_counter() + (self._spin if timeout is None else min(self._spin, timeout))
        ends = [w.end for w in self._workers.values() if not w.damage]
        while time.perf_counter() < stop:
            _yield()
            if self._woken:
                return True
            for end in ends:
                if end.is_called():
                    return True
        return False

    def _has_work(self) -> bool:
        return any(w.end.has_work() for w in self._workers.values() if not w.damage)

    def _collect(self) -> List[Happening]:
        """What has happened, oldest first."""
        found = self._take_happened()
        for w in self._workers.values():
            if w.damage:
                continue  # it is being killed
            if w.end.receive.pending() or w.end.is_called():  # it may call for what was taken in passing already
                was_ready = w.ready
                sound = w.take(found)
                if w.ready and not was_ready:
                    self._boot_deaths = 0
                if w.unfit:
                    self._stopping = True
                if not sound:
                    self._end_wild(w)
                    continue
            if w.choked:
                w.pump()
        return found

    def _end_wild(self, w: WorkerHandle) -> None:
        """A worker that writes nonsense is killed; `bury` says what that means for its steps."""
        logger.error("worker %d is ended: its lane is damaged (%s)", w.pid, w.damage)
        if self._zygote is not None:
            self._zygote.kill(w.number, SIGKILL)

    def _take_happened(self) -> List[Happening]:
        happened, self._happened = self._happened, []
        return happened

    def _look_at_link(self, seconds: float) -> bool:
        """Wait for the bell or the zygote; whether the bell was rung."""
        assert self._board is not None
        rung = False
        for fd, _ in self._poll.poll(seconds * 1000):
            if fd == self._board.bell.fileno():
                rung = True
            elif self._zygote is not None and fd != self._listen_to:
                messages = self._zygote.receive()
                if messages is None:
                    self._zygote_gone()
                    break
                for message in messages:
                    self._hear(message)
        if self._zygote is not None:
            self._check_start(self._zygote)
        return rung

    def _check_start(self, zygote: Spawner) -> None:
        if zygote.overdue:
            self._poll.unregister(zygote.fileno())
            self._zygote = None
            zygote.stop()
            self._give_up(f"the process that starts workers ({sys.executable}) did not come up in time")
        if zygote.guards is False:
            self._say_unguarded()
            zygote.guards = None

    def _say_unguarded(self) -> None:
        global _said_unguarded
        if not _said_unguarded:
            _said_unguarded = True
            logger.warning(
                "this system cannot follow programs that detach themselves (no PR_SET_CHILD_SUBREAPER): a daemon that "
                "a step starts may outlive the run"
            )

    # ------------------------------------------------------------------------ deaths

    def _hear(self, message: Tuple[Any, ...]) -> None:
        what, number = message[0], message[1]
        w = self._workers.get(number)
        if w is None:
            return
        if what == "forked":
            w.pid = message[2]
        elif what in ("stopped", "continued"):
            self._say_stopped(w, what == "stopped")
        elif what == "no-fork":
            self._bury(w, None, 0)
            self._do_without(message[2])
        elif what == "dead":
            gone = self._bury(w, message[3], message[4])
            if not w.ready and self._too_many_boot_deaths():
                how = f"{describe_exit(message[3])})\n{gone.log}".rstrip()
                self._give_up(f"{BOOT_DEATHS} worker processes in a row died before they were ready ({how}")
            self._refill()

    def _say_stopped(self, w: WorkerHandle, stopped: bool) -> None:
        """Somebody has stopped a worker: he will have had a reason, and it may be a debugger. So it is waited for."""
        step = None if w.damage else w.running()
        where = "between steps" if step is None else f"in step {step}"
        if stopped:
            logger.warning(
                "worker process %d was stopped by a signal, %s: it is waited for, unless the step has a timeout. "
                "'kill -CONT %d' lets it go on, 'kill -KILL %d' ends it and its step", w.pid, where, w.pid, w.pid,
            )  # fmt: skip
        else:
            logger.warning("worker process %d, which was stopped %s, goes on", w.pid, where)

    def _too_many_boot_deaths(self) -> bool:
        self._boot_deaths += 1
        return self._boot_deaths >= BOOT_DEATHS and not self._stopping

    def _bury(self, w: WorkerHandle, exitcode: Optional[int], peak_kib: int) -> WorkerGone:
        """Take the last replies out of a dead worker's lane, then say what became of the rest."""
        gone = w.bury(self._logs, exitcode, peak_kib, self._happened)
        if w.unfit:
            self._stopping = True
        del self._workers[w.number]
        w.close()
        return gone

    def _give_up(self, reason: str) -> None:
        self._stopping = True
        self._happened.append(EngineFailed(reason))

    def _zygote_gone(self) -> None:
        """It was killed: its workers die with it (parent-death signal). Begin anew once nothing of them is left."""
        zygote = self._zygote
        assert zygote is not None
        self._poll.unregister(zygote.fileno())
        self._zygote = None
        how = zygote.bury()
        victims = list(self._workers.values())
        for w in victims:
            self._bury(w, None, 0)
        if self._stopping:
            return
        if not zygote.up:
            self._give_up(f"the process that starts workers ({sys.executable}) did not come up: {how}")
        elif self._too_many_boot_deaths():
            self._give_up(f"the process that starts workers keeps dying: {how}")
        else:
            logger.warning("the process that starts workers died (%s): starting another", how)
            try:
                self._zygote = self._new_zygote()
                self._listen_to_all()
            except EngineError as error:
                self._give_up(str(error))
            else:
                self._refill()

    # ------------------------------------------------------------------------ the end

    def stop(self, at_once: bool = False) -> None:
        """Tell the workers to leave (or not even that), then let the zygote end whatever is left."""
        if self._owner != os.getpid():
            return  # never started; or this is a child that somebody forked, and the workers are not its own
        self._stopping = True
        if self._zygote is not None:
            if not at_once:
                self._say_goodbye()
            zygote, self._zygote = self._zygote, None
            if zygote is not None:  # it may have died meanwhile
                zygote.stop()
        for w in self._workers.values():
            w.keep_log(self._logs)
            w.close()
        self._workers.clear()
        with self._board_lock:
            board, self._board = self._board, None
        if board is not None:
            board.close()

    def _say_goodbye(self) -> None:
        """Until all workers have left, or the time is up. What they still say is read, so that none is stuck in a full
        ring, and dropped: nobody waits for it."""
        assert self._board is not None
        for w in self._workers.values():
            w.send([(-wire.STOP,)])
        deadline = time.monotonic() + STOP_SECONDS
        while self._workers and self._zygote is not None and time.monotonic() < deadline:
            self._collect()
            self._sleeper.prepare()
            rung = not self._has_work() and self._look_at_link(min(0.1, max(0.0, deadline - time.monotonic())))
            self._sleeper.awake(rung)
        self._happened.clear()
