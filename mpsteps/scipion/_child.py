"""The life of a fork: it takes steps from the main process, runs them, and tells what they changed."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import signal
import sqlite3
import sys
import threading
import time
from typing import Any, Dict, List, Optional

from pyworkflow.object import Scalar

from mpsteps._ipc import state, wire
from mpsteps._memory import offer_to_oom_killer
from mpsteps._proctree import descendants, send_signal
from mpsteps._surroundings import Surroundings
from mpsteps.errors import MpstepsError, SerializationError
from mpsteps.scipion import _guard
from mpsteps.scipion._forks import END_SIGNAL, Channel
from mpsteps.scipion._gpus import needs_gpu
from mpsteps.scipion._listing import name_of

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_KILL_SECONDS = 5.0


class Child:
    """In a fork. `tracker` knows the protocol's attributes as they were when it was made."""

    def __init__(self, run: Any, channel: Channel, parent: int, databases: List[Any]) -> None:
        self._protocol = run.protocol
        self._steps: List[Any] = run.steps
        self._executor = run.executor
        self._choice = run.choice
        self._tracker: state.Tracker = run.sharing.tracker
        self._databases = databases
        self._channel = channel
        self._parent = parent
        self._id = 0
        self._mixed = ""

    def serve(self) -> None:
        """Until there are no more steps."""
        self._settle_in()
        message = self._channel.receive()
        while message is not None and message[0] == "run":
            self._run(*message[1:])
            message = self._channel.receive()

    # ---------------------------------------------------------------------- beginning

    def _settle_in(self) -> None:
        gc.freeze()  # what was garbage in the main process is not to be collected here: it may close a database
        _die_with(self._parent)
        offer_to_oom_killer()
        _replace_streams()
        _guard.install(self._protocol, self._databases, self._carry, self._where)
        sqlite3.connect(":memory:").close()  # if another thread was inside sqlite at the fork, it hangs here, unbegun
        self._tracker.look_again()
        # What another thread changed between the last look and the fork is here, and no change of the first step. The
        # main process will tell of it once more; so there is no second step here.
        self._mixed = "the main process was at work when it was made" if self._tracker.changes() else ""
        self._surroundings = Surroundings((self._channel.sock.fileno(),))

    def _where(self) -> str:
        return f"{self._id} {name_of(self._steps[self._id - 1])}"

    # -------------------------------------------------------------------------- a step

    def _run(self, number: int, thread_id: int, gpus: Optional[List[int]], news: List[bytes]) -> None:
        self._id = number
        step = self._steps[number - 1]
        self._take_in(news)
        thread: Any = threading.current_thread()
        thread.thId, thread.needsGPU = thread_id, lambda: needs_gpu(step)  # where pyworkflow looks for them
        self._executor.gpuDict = {} if gpus is None else {thread_id: list(gpus)}
        before = _scalars(step)
        self._channel.send(("begun", number))
        try:
            step._run()
            changed = {k: v for k, v in _scalars(step).items() if before.get(k) != v}
            parcel = self._changes()
        except BaseException as error:
            self._fail(number, error)
        else:
            self._reply("done", number, parcel, changed)

    def _take_in(self, news: List[bytes]) -> None:
        for parcel in news:
            self._tracker.apply(wire.unpack(parcel, self._protocol))

    def _changes(self) -> Optional[bytes]:
        changes = self._tracker.changes()
        while changes:
            try:
                return state.pack_changes(changes, self._protocol)
            except SerializationError as problem:
                name = problem.part.partition("'")[2].rstrip("'")
                if not self._choice.is_private(name, self._steps[self._id - 1]):
                    raise
                logger.info("mpsteps: step %s: what it put into self.%s stays in its process: nobody else uses it",
                            self._where(), name)  # fmt: skip
                changes = [change for change in changes if change[1] != name]
        return None

    def _fail(self, number: int, error: BaseException) -> None:
        if isinstance(error, SystemExit):
            text = f"step {self._where()} called sys.exit({'' if error.code is None else repr(error.code)})"
        elif isinstance(error, SerializationError):
            text = (f"step {self._where()}: {error}, or name it in MPSTEPS_LOCAL (environment or scipion.conf), so "
                    "that it runs in the main process")  # fmt: skip
        else:
            text = str(error) or type(error).__name__
        logger.error("Step %s failed in process %d.", self._where(), os.getpid(), exc_info=error)
        self._reply("failed", number, text)

    def _reply(self, *message: Any) -> None:
        """The end of a step, and why this process can run no other ('': it can)."""
        _, problem = self._surroundings.put_back()
        self._flush()
        self._channel.send((*message, problem or self._mixed))

    def _flush(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            if not stream.closed:
                stream.flush()

    # ------------------------------------------------------------- calls that go home

    def _carry(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Have a method of the protocol called in the main process; its result."""
        if name == "_store":
            args = tuple(self._attribute(obj) for obj in args)
        elif name == "_insertFunctionStep" and args and getattr(args[0], "__self__", None) is self._protocol:
            args = (args[0].__name__, *args[1:])
        changes = self._changes()
        try:
            parcel = wire.pack((args, kwargs), self._protocol)
        except Exception as problem:
            raise _guard.Refused(
                f"{_guard.explain(f'self.{name}', self._where())} ({type(problem).__name__}: {problem})"
            ) from problem
        self._channel.send(("ask", self._id, name, parcel, changes))
        answer = self._channel.receive()
        if answer is None:
            os._exit(1)  # the main process is gone
        _, good, reply = answer
        if not good:
            raise MpstepsError(reply)
        if name == "_defineOutputs":
            vars(self._protocol).update(kwargs)
            self._tracker.changes()  # known there already
        return wire.unpack(reply, self._protocol)

    def _attribute(self, obj: Any) -> str:
        for name, value in vars(self._protocol).items():
            if value is obj and not hasattr(value, "_mapper"):
                return str(name)
        raise _guard.Refused(_guard.explain(f"self._store of a {type(obj).__name__}", self._where()))


def _scalars(step: Any) -> Dict[str, Any]:
    """What a step says of itself in plain values, its result files among them."""
    return {
        name: value.get() for name, value in vars(step).items()
        if isinstance(value, Scalar) and wire.is_plain(value.get())
    }  # fmt: skip


def _die_with(parent: int) -> None:
    """When the main process ends, however it does, so does this one, with all that it has started."""
    os.setpgid(0, 0)  # Ctrl-C is for the main process; its programs are known by it when it has died: `_forks.Fork`

    def end(number: int, _frame: Any) -> None:
        _end_programs()
        os._exit(128 + number)

    signal.signal(END_SIGNAL, end)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _prctl(_PR_SET_PDEATHSIG, END_SIGNAL)
    if os.getppid() != parent:
        os._exit(1)


def _end_programs() -> None:
    """Kill everything below this process. What is started meanwhile becomes its own child when its parent is killed."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    deadline = time.monotonic() + _KILL_SECONDS
    left = descendants(os.getpid())
    while left and time.monotonic() < deadline:
        for pid in left:
            send_signal(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass  # all of them are buried
        left = descendants(os.getpid())


def _prctl(option: int, value: int) -> None:
    try:
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
    except (OSError, AttributeError):
        pass  # no Linux: it ends when it next looks at its socket


def _replace_streams() -> None:
    """Another thread may have held the lock of a stream at the fork, for ever in this process: new ones, on the same
    files, for print and for all loggers."""
    new: Dict[int, Any] = {}
    for name in ("stdout", "stderr"):
        old = getattr(sys, name)
        try:
            fd = os.dup(old.fileno())
        except (AttributeError, OSError, ValueError):
            continue  # it is no file
        _guard.keep(old)
        new[id(old)] = _stream(fd, old)
        setattr(sys, name, new[id(old)])
    loggers: List[Any] = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    handlers = {h for each in loggers for h in getattr(each, "handlers", ())}
    for handler in handlers:
        stream = getattr(handler, "stream", None)
        if id(stream) in new:
            handler.stream = new[id(stream)]
        elif hasattr(stream, "fileno"):
            _renew(handler, stream, new)


def _renew(handler: Any, stream: Any, new: Dict[int, Any]) -> None:
    try:
        fd = os.dup(stream.fileno())
    except (OSError, ValueError):
        return  # it is no file, or closed
    _guard.keep(stream)
    new[id(stream)] = handler.stream = _stream(fd, stream)


def _stream(fd: int, like: Any) -> Any:
    return open(fd, "a", buffering=1, encoding=getattr(like, "encoding", None), errors="backslashreplace")
