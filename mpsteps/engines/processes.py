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

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from typing import Any, Callable, Deque, Dict, List, Optional, Sequence, Tuple

from mpsteps._ipc import wire
from mpsteps._ipc.bell import LONGEST_SLEEP, next_spin
from mpsteps._ipc.lane import Board, Lane
from mpsteps._machine import blas_share
from mpsteps._worker import step_log
from mpsteps._zygote import Link
from mpsteps.engines.base import EngineFailed, Happening, Message, Replies, WorkerGone, WorkerUp
from mpsteps.errors import EngineError

SPIN_SECONDS = 30e-6
BOOT_DEATHS = 3
"""So many workers in a row may die before they are ready; then the engine gives up."""
STOP_SECONDS = 2.0
"""Idle workers that were told to leave are killed after this."""
LOG_TAIL = 16_384

_yield: Callable[[], None] = getattr(os, "sched_yield", lambda: time.sleep(0))


class _Worker:
    """One worker as the coordinator sees it."""

    __slots__ = ("backlog", "end", "in_lane", "lane", "log", "next_number", "number", "pid", "ready", "revoking")

    def __init__(self, number: int, lane: Lane, log: Optional[str]) -> None:
        self.number = number
        self.lane = lane
        self.end = lane.coordinator_side()
        self.pid = 0
        self.log = log
        self.ready = False
        self.revoking = False
        self.next_number = 1  # of the next step message
        self.in_lane: Dict[int, int] = {}  # step -> message number, of what is not answered
        self.backlog: Deque[bytes] = deque()  # frames that the ring has had no room for

    def put(self, frame: bytes) -> None:
        """Send a frame, or keep it until there is room."""
        if self.backlog or self.end.send.unsent:
            self.backlog.append(frame)
        else:
            self.end.send.begin(frame)
        self.end.wake.wake()

    def pump(self) -> None:
        """Send what was kept, as far as there is room now."""
        sent = False
        while self.end.send.pump():
            sent = True
            if not self.backlog:
                break
            self.end.send.begin(self.backlog.popleft())
        if sent or self.backlog:
            self.end.wake.wake()

    @property
    def choked(self) -> bool:
        """Whether something is kept back for want of room."""
        return bool(self.backlog) or self.end.send.unsent > 0


class ProcessEngine:
    """N worker processes. `setup()` gives what a new worker is set up with (image of the protocol as it is then, ...);
    `logs`: the folder for output of workers, None: they write where this process writes; `keep_open`: a descriptor
    (the fence of the run directory) that every worker holds open as long as it lives."""

    by_value = True

    def __init__(
        self,
        workers: int,
        setup: Callable[[int], Dict[str, Any]],
        logs: Optional[str] = None,
        keep_open: Sequence[int] = (),
        spin: float = SPIN_SECONDS,
    ) -> None:
        self._wanted = workers
        self._setup = setup
        self._logs = logs
        self._keep_open = tuple(keep_open)
        self._spin = spin
        self._workers: Dict[int, _Worker] = {}
        self._last_number = 0
        self._boot_deaths = 0
        self._zygote: Optional[subprocess.Popen[bytes]] = None
        self._link: Optional[Link] = None
        self._board: Optional[Board] = None
        self._happened: List[Happening] = []
        self._stopping = False

    # ------------------------------------------------------------------ beginning

    def prepare(self) -> None:
        """Start the zygote. It comes up while the caller does something else."""
        if sys.platform == "win32":
            raise EngineError("worker processes are not supported on Windows: use the 'inline' engine, Linux or macOS")
        if not sys.executable:
            raise EngineError("sys.executable is not set: mpsteps does not know which Python to start workers with")
        self._board = Board.create()
        self._sleeper = self._board.sleeper()
        self._start_zygote()

    def start(self) -> None:
        """Ask the zygote for all workers."""
        if self._zygote is None:
            self.prepare()
        for _ in range(self._wanted):
            self._start_worker()

    def _start_zygote(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        path = [os.path.abspath(p) if p else os.getcwd() for p in sys.path]
        code = f"import sys; sys.path[:] = {path!r}; from mpsteps._zygote import main; main({theirs.fileno()})"
        try:
            self._zygote = subprocess.Popen(
                [sys.executable, *subprocess._args_from_interpreter_flags(), "-c", code],  # type: ignore[attr-defined]
                pass_fds=(theirs.fileno(), *self._keep_open),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, **blas_share(self._wanted, os.environ)},
            )
        except OSError as error:
            ours.close()
            raise EngineError(f"the process that starts workers cannot be started: {error}") from error
        finally:
            theirs.close()
        self._link = Link(ours)
        self._poll = select.poll()
        self._poll.register(ours.fileno(), select.POLLIN)
        assert self._board is not None
        self._poll.register(self._board.bell.fileno(), select.POLLIN)

    def _start_worker(self) -> None:
        assert self._board is not None and self._link is not None
        self._last_number += 1
        number = self._last_number
        lane = Lane.create()
        log = os.path.join(self._logs, f"worker-{number}.log") if self._logs else None
        worker = _Worker(number, lane, log)
        self._workers[number] = worker
        lane_fds, board_fds = lane.fds(), self._board.fds()
        try:
            self._link.send(("fork", number, len(lane_fds) + len(board_fds), len(lane_fds)), lane_fds + board_fds)
        except OSError:
            return  # the zygote is gone: `wait` sees that next
        setup = {"log": log, "log_folder": self._logs or "", **self._setup(number)}
        worker.put(wire.encode([(-wire.SETUP, setup)]))

    # ------------------------------------------------------------------ while it runs

    def send(self, worker: int, messages: List[Message]) -> None:
        """Put step messages and orders into a worker's lane; what there is no room for is sent later."""
        w = self._workers.get(worker)
        if w is None:
            return  # it died a moment ago: `wait` has told so, or will, and these steps were never begun
        for message in messages:
            if message[0] > 0:
                w.in_lane[message[0]] = w.next_number
                w.next_number += 1
        w.put(wire.encode(messages))

    def revoke(self, worker: int) -> None:
        """Take back what is not begun. The worker passes over those messages and answers RETURNED for each."""
        w = self._workers.get(worker)
        if w is not None and w.in_lane and not w.revoking:
            w.revoking = True
            w.end.revoke(w.end.begun() + 1)

    def kill(self, worker: int, signal: int) -> None:
        """Signal a worker's process group, through its parent, which alone knows that the pid is still its own."""
        if self._link is not None and worker in self._workers:
            try:
                self._link.send(("kill", worker, signal))
            except OSError:
                pass  # the zygote is gone, and every worker with it

    def pid(self, worker: int) -> int:
        """The worker's process id; 0 while it is not known."""
        w = self._workers.get(worker)
        return w.pid if w else 0

    def wake(self) -> None:
        """Ring the coordinator's own bell."""
        if self._board is not None:
            self._board.bell.ring()

    def wait(self, timeout: Optional[float]) -> List[Happening]:
        """Look at all lanes; sleep if there is nothing, until a bell, a death or the time."""
        found = self._collect()
        if found or timeout == 0:
            self._look_at_link(0)
            return found + self._take_happened()
        started = time.perf_counter()
        if self._spin and self._spin_until_pending(timeout):
            self._spin = next_spin(time.perf_counter() - started)
            return self._collect()
        self._sleeper.prepare()
        rung = False
        try:
            if not self._pending() and not self._happened:
                seconds = LONGEST_SLEEP if timeout is None else min(timeout, LONGEST_SLEEP)
                rung = self._look_at_link(seconds)
        finally:
            self._sleeper.awake(rung)
            if self._spin:
                self._spin = next_spin(time.perf_counter() - started)
        return self._collect() + self._take_happened()

    def _spin_until_pending(self, timeout: Optional[float]) -> bool:
        stop = time.perf_counter() + (self._spin if timeout is None else min(self._spin, timeout))
        readers = [w.end.receive for w in self._workers.values()]
        while time.perf_counter() < stop:
            _yield()
            for reader in readers:
                if reader.pending():
                    return True
        return False

    def _pending(self) -> bool:
        return any(w.end.receive.pending() for w in self._workers.values())

    def _collect(self) -> List[Happening]:
        found: List[Happening] = []
        for w in self._workers.values():
            if w.end.receive.pending():
                self._take_replies(w, found)
            if w.choked:
                w.pump()
        return found

    def _take_replies(self, w: _Worker, found: List[Happening]) -> None:
        messages: List[Message] = []
        in_lane = w.in_lane
        for frame in w.end.receive.drain():
            for message in wire.decode(frame):
                first = message[0]
                if first > 0:
                    in_lane.pop(first, None)
                    messages.append(message)
                elif first == -wire.READY:
                    w.ready, w.pid = True, message[1]
                    self._boot_deaths = 0
                    found.append(WorkerUp(w.number, w.pid))
                elif first == -wire.UNFIT:
                    failure = wire.Failure(*message[1])
                    self._stopping = True
                    found.append(EngineFailed(_unfit(failure)))
                else:
                    if first == -wire.RETURNED:
                        in_lane.pop(message[1], None)
                    messages.append(message)
        if messages:
            found.append(Replies(w.number, messages))
        if w.revoking and not in_lane:
            w.revoking = False
            w.end.restore()

    def _take_happened(self) -> List[Happening]:
        happened, self._happened = self._happened, []
        return happened

    def _look_at_link(self, seconds: float) -> bool:
        """Wait for the bell or the zygote; whether the bell was rung."""
        assert self._link is not None and self._board is not None
        rung = False
        for fd, _ in self._poll.poll(seconds * 1000):
            if fd == self._board.bell.fileno():
                rung = True
                continue
            messages = self._link.receive()
            if messages is None:
                self._zygote_gone()
                break
            for message in messages:
                self._hear(message)
        return rung

    # ------------------------------------------------------------------------ deaths

    def _hear(self, message: Tuple[Any, ...]) -> None:
        what, number = message[0], message[1]
        w = self._workers.get(number)
        if w is None:
            return
        if what == "forked":
            w.pid = message[2]
        elif what == "no-fork":
            self._drop(w)
            if not self._workers:
                self._give_up(f"no worker process can be started: {message[2]}")
        elif what == "dead":
            self._bury(w, message[3], message[4])

    def _bury(self, w: _Worker, exitcode: Optional[int], peak_kib: int) -> None:
        """Take the last replies out of a dead worker's lane, then say what became of the rest."""
        try:
            self._take_replies(w, self._happened)
        except EngineError as error:  # what it wrote last is damaged: it had gone wild
            print(f"mpsteps: worker {w.pid} died with a damaged lane: {error}", file=sys.stderr)
        begun, done = w.end.begun(), w.end.done()
        finished = tuple(s for s, n in w.in_lane.items() if n <= done)
        running = [s for s, n in w.in_lane.items() if n == begun and n > done]
        began = running[0] if running else None
        log = self._keep_log(w, began)
        was_ready = w.ready
        self._drop(w)
        self._happened.append(WorkerGone(w.number, w.pid, exitcode, finished, began, peak_kib, log))
        if self._stopping:
            return
        if not was_ready:
            self._boot_deaths += 1
            if self._boot_deaths >= BOOT_DEATHS:
                how = "an unknown end" if exitcode is None else describe_exit(exitcode)
                self._give_up(f"{BOOT_DEATHS} worker processes in a row died before they were ready ({how})\n{log}".rstrip())
                return
        self._start_worker()

    def _keep_log(self, w: _Worker, step: Optional[int]) -> str:
        """Move a dead worker's output to the log of the step it was running; its last part as text."""
        if not w.log or not self._logs:
            return ""
        try:
            with open(w.log, "rb") as f:
                data = f.read()
            if step is not None and data:
                with open(step_log(self._logs, step), "ab") as target:
                    target.write(data)
            os.unlink(w.log)
        except FileNotFoundError:
            return ""  # it died before it opened its log
        return data[-LOG_TAIL:].decode("utf-8", "replace")

    def _drop(self, w: _Worker) -> None:
        del self._workers[w.number]
        w.lane.close()

    def _give_up(self, reason: str) -> None:
        self._stopping = True
        self._happened.append(EngineFailed(reason))

    def _zygote_gone(self) -> None:
        """It was killed: its workers die with it (parent-death signal). Begin anew once nothing of them is left."""
        assert self._zygote is not None and self._link is not None
        self._poll.unregister(self._link.fileno())
        self._link.close()
        self._link = None
        code = self._zygote.wait()
        victims = list(self._workers.values())
        _wait_until_gone([w.pid for w in victims if w.pid])
        if not self._stopping:
            self._boot_deaths += 1
            if self._boot_deaths >= BOOT_DEATHS:
                self._give_up(f"the process that starts workers keeps dying ({describe_exit(code)})")
            else:
                self._start_zygote()
        for w in victims:
            self._bury(w, None, 0)

    # ------------------------------------------------------------------------ the end

    def stop(self, at_once: bool = False) -> None:
        """Tell the workers to leave (or not even that), then let the zygote end whatever is left."""
        self._stopping = True
        if self._zygote is None:
            return
        if not at_once and self._link is not None:
            self._say_goodbye()
        if self._link is not None:
            self._link.close()
        try:
            self._zygote.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._zygote.kill()
            self._zygote.wait()
        self._zygote = None
        for w in list(self._workers.values()):
            self._keep_log(w, None)
            self._drop(w)
        if self._board is not None:
            self._board.close()
            self._board = None

    def _say_goodbye(self) -> None:
        for w in self._workers.values():
            w.put(wire.encode([(-wire.STOP,)]))
        deadline = time.monotonic() + STOP_SECONDS
        while self._workers and self._link is not None and time.monotonic() < deadline:
            self._look_at_link(min(0.1, max(0.0, deadline - time.monotonic())))


def describe_exit(code: int) -> str:
    """An exit code in words: 'exit code 3', 'killed by SIGSEGV'."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def _unfit(failure: wire.Failure) -> str:
    return f"the protocol cannot be loaded in a worker process: {failure.cause()}\n{failure.traceback}".rstrip()


def _wait_until_gone(pids: List[int]) -> None:
    """Until these processes, which have been sent SIGKILL by the kernel, are really gone; at most 5 seconds."""
    import psutil

    processes = []
    for pid in pids:
        try:
            processes.append(psutil.Process(pid))
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=5)
