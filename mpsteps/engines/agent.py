"""The agent of a coordinator on a node: runs steps in local worker processes, exactly as a coordinator there would.

A process of its own beside the Dask worker, which only carries bytes between it and the coordinator. So no step, no
library and no large value can keep the Dask worker from sending its heartbeats, and whatever ends the Dask worker ends
the agent (its socket closes) and with it, through its zygote, everything that steps have started.

The agent decides nothing about steps. It sets workers up, hands messages to lanes and tells what happened. What needs
to be near is done here: killing, taking back, looking at memory, blaming the one step that a dead worker was running.

Messages from the coordinator: begin(dict), setup(worker, dict), send(worker, messages), revoke(worker),
running(worker), kill(worker, signal), limit(worker, step, bytes), stop(at once), and those of `carried`. Back:
ready(dict), refused(text), want(worker), up(worker, pid), replies(worker, messages, apart), gone(...), running(worker,
step), failed(text), draining(), log(level, text), and those of `carried`. Workers have the numbers that they have in
the agent's own engine.
"""

from __future__ import annotations

import logging
import os
import platform
import signal
import socket
import sys
import time
from typing import Any, Dict, List, NoReturn, Optional, Sequence, Set, Tuple

from mpsteps._cards import cards_here
from mpsteps._deaths import Deaths, used_too_much
from mpsteps._ipc import wire
from mpsteps._ipc.link import plug_stdio
from mpsteps._ipc.wire import Failure
from mpsteps._large_values import SHARE
from mpsteps._machine import usable_memory
from mpsteps._memory_watch import MemoryWatch
from mpsteps._rundir import RunDirectory
from mpsteps.engines.base import EngineFailed, Happening, Replies, WorkerGone, WorkerUp
from mpsteps.engines.carried import NodeBlocks
from mpsteps.engines.frames import PIECE, FrameReader, FrameWriter, Message
from mpsteps.engines.processes import ProcessEngine
from mpsteps.errors import EngineError, MpstepsError

_LOOK_PAUSE = 0.1


class NodeEngine(ProcessEngine):
    """Local workers that are set up by somebody far away: `unset` has those that wait for it. A `wait` ends when
    `listen_to` can be read. Nobody spins: what is waited for comes over the network, and takes longer than that pays.
    """

    def __init__(self, workers: int, listen_to: int, **options: Any) -> None:
        super().__init__(workers, _nothing, spin=0.0, **options)
        self._longest_spin = 0.0  # of the workers, too
        self._listen_to = listen_to
        self.unset: List[int] = []

    def _set_up(self, w: Any) -> None:
        self.unset.append(w.number)

    def set_up(self, number: int, setup: Dict[str, Any]) -> None:
        """Here is what a worker was waiting for."""
        w = self._workers.get(number)
        if w is not None:
            own = {"log": w.log, "log_folder": self._logs or "", "spin": self._longest_spin}
            w.send([(-wire.SETUP, {**own, **setup})])


def _nothing(_worker: int) -> Dict[str, Any]:
    return {}


class Agent:
    """Serves the coordinator at the other end of `sock`, in one thread."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._writer = FrameWriter()
        self._reader = FrameReader()
        self._engine: Optional[NodeEngine] = None
        self._fence = -1
        self._blocks = NodeBlocks(int(usable_memory() * SHARE), "", self._send)
        self._memory = MemoryWatch()
        self._deaths = Deaths()
        self._condemned: Dict[int, Tuple[int, Failure]] = {}  # worker that is ended here -> its step, why
        self._live: Set[int] = set()  # workers that have been set up and have not died, as far as it was told
        self._in_flight: Dict[int, int] = {}  # step -> the worker that has it and has not answered
        self._arena: Tuple[int, str] = (0, "")
        self._over = False
        self._gentle = False
        self._told_draining = False
        self._draining = False  # set by a signal handler

    # ---------------------------------------------------------------------- the socket

    def _send(self, message: Message) -> None:
        frame = memoryview(self._writer.frame(message))
        try:
            for at in range(0, len(frame), PIECE):
                self._sock.sendall(frame[at : at + PIECE])
        except OSError:
            pass  # the coordinator is gone: the next read says so

    def _receive(self, block: bool = False) -> List[Message]:
        """What has come; [("lost",)] if the coordinator is gone."""
        try:
            data = self._sock.recv(1 << 20, 0 if block else socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return []
        except OSError:
            data = b""
        return self._reader.feed(data) if data else [("lost",)]

    # ------------------------------------------------------------------------ the loop

    def run(self) -> None:
        """Until the coordinator says so, or is gone."""
        try:
            messages: List[Message] = []
            while not messages:
                messages = self._receive(block=True)
            if messages[0][0] != "begin":
                return
            try:
                self._begin(messages[0][1])
            except (MpstepsError, OSError) as error:
                self._send(("refused", str(error)))
                while not self._receive(block=True):
                    pass  # the coordinator ends the connection when it has read that
                return
            self._serve(messages[1:])
        finally:
            if self._engine is not None:
                self._engine.stop(at_once=not self._gentle)
            self._blocks.close()
            if self._fence >= 0:
                os.close(self._fence)

    def _serve(self, messages: List[Message]) -> None:
        engine = self._engine
        assert engine is not None
        while True:
            for message in messages:
                self._handle(engine, message)
                if self._over:
                    return
            if self._draining and not self._told_draining:
                self._told_draining = True
                self._send(("draining",))
            for number in engine.unset:
                self._send(("want", number))
            engine.unset.clear()
            due = self._memory.next_look()
            happenings = engine.wait(None if due is None else max(0.0, due - time.monotonic()))
            for happening in happenings:
                self._tell(happening)
            if happenings:
                self._blocks.tell_unused()
            self._look_at_memory(engine)
            messages = self._receive()

    def _begin(self, about: Dict[str, Any]) -> None:
        """Look whether steps of this run can run here, and bring the workers up."""
        ours, theirs = platform.python_version_tuple()[:2], tuple(about["python"])
        if ours != theirs:
            raise EngineError(f"its Python is {'.'.join(ours)}, the coordinator's {'.'.join(theirs)}")
        version = sys.modules["mpsteps"].__version__
        if about["version"] != version:
            raise EngineError(f"its mpsteps is {version}, the coordinator's {about['version']}")
        _take_import_path(about["path"])
        _go_to(about["cwd"], required=bool(about["run"]))
        logs: Optional[str] = None
        keep_open: Sequence[int] = ()
        if about["run"]:
            path, content = about["proof"]
            _wait_until_seen(path, content, about["run"], about["patience"])
            directory = RunDirectory(about["run"])
            self._fence = directory.open_fence()
            keep_open, logs = (self._fence,), directory.logs
        self._arena = (int(usable_memory() * SHARE) // max(1, about["workers"]), about["folder"])
        logging.getLogger("mpsteps").addHandler(_Forward(self._send))
        engine = NodeEngine(
            about["workers"], self._sock.fileno(), logs=logs, keep_open=keep_open, preload=about["preload"],
            first_log=about["first_log"],
        )  # fmt: skip
        signal.signal(signal.SIGTERM, self._on_sigterm)
        engine.start()
        self._engine = engine
        here = {"host": socket.gethostname(), "pid": os.getpid(), "memory": usable_memory()}
        self._send(("ready", {**here, "cards": cards_here(about["cards"])}))

    def _on_sigterm(self, _number: int, _frame: Any) -> None:
        """The node is to be left soon: nothing new is wanted here, what runs may go on as long as it can."""
        self._draining = True
        if self._engine is not None:
            self._engine.wake()

    def _handle(self, engine: NodeEngine, message: Message) -> None:
        what = message[0]
        if what == "send":
            self._forward(engine, message[1], message[2])
        elif self._blocks.hear(message):
            pass
        elif what == "setup":
            try:
                setup = message[2]
                if setup.get("arena", (0,))[0]:  # else nothing is to be shared
                    setup = {**setup, "arena": self._arena}
                setup = self._blocks.setup(setup, message[1])
            except EngineError as error:
                self._send(("failed", str(error)))
                return
            self._live.add(message[1])
            engine.set_up(message[1], setup)
        elif what == "revoke":
            engine.revoke(message[1])
        elif what == "running":
            step = engine.running(message[1])
            if step is not None:
                self._send(("running", message[1], step))
        elif what == "kill":
            engine.kill(*message[1:])
        elif what == "limit":
            worker, step, limit = message[1:]
            self._memory.begin(worker, step, 1, engine.pid(worker), limit)
        elif what in ("stop", "lost"):
            self._gentle = what == "stop" and not message[1]
            self._over = True
        else:
            raise EngineError(f"the coordinator said {what!r}")

    def _forward(self, engine: NodeEngine, worker: int, messages: List[Message]) -> None:
        """Steps and orders for a worker. One that is dead, or is being ended here, will not get to them."""
        if worker not in self._live or worker in self._condemned:
            return
        ready: List[Message] = []
        for m in messages:
            message = m
            if m[0] > 0:
                if m[0] in self._in_flight:
                    raise EngineError(f"step {m[0]} was sent while it is here already")
                try:
                    message = self._blocks.step(m)
                except (EngineError, KeyError) as error:
                    self._blocks.end(("step", m[0]))
                    failure = Failure("lost", type(error).__name__, str(error))
                    self._send(("replies", worker, [(m[0], 0.0, 0.0, None, tuple(failure))], 0))
                    continue
                self._in_flight[m[0]] = worker
            ready.append(message)
        if ready:
            engine.send(worker, ready)

    # -------------------------------------------------------------------- what happens

    def _tell(self, happening: Happening) -> None:
        if isinstance(happening, Replies):
            worker = happening.worker
            messages = [self._reply(worker, m) for m in happening.messages]
            self._send(("replies", worker, messages, happening.apart))
        elif isinstance(happening, WorkerUp):
            self._send(("up", happening.worker, happening.pid))
        elif isinstance(happening, WorkerGone):
            self._gone(happening)
        elif isinstance(happening, EngineFailed):
            self._send(("failed", happening.reason))

    def _reply(self, worker: int, message: Message) -> Message:
        if message[0] > 0:
            self._in_flight.pop(message[0], None)
        elif message[0] == -wire.FINISHED:
            for step in message[1]:
                self._in_flight.pop(step, None)
        elif message[0] == -wire.RETURNED:
            self._in_flight.pop(message[1], None)
        watched = self._memory.watched.get(worker)
        if watched is not None and message[0] == watched.step:
            self._memory.end(worker)
        engine = self._engine
        assert engine is not None
        return self._blocks.reply(worker, message, lambda key: engine.send(worker, [(-wire.FREE, [key])]))

    def _gone(self, gone: WorkerGone) -> None:
        worker = gone.worker
        engine = self._engine
        assert engine is not None
        self._live.discard(worker)
        condemned = self._condemned.pop(worker, None)
        self._memory.end(worker)
        if condemned is not None and gone.began == condemned[0]:
            why = condemned[1]
        else:
            why = self._deaths.failure(gone.exitcode)
        self._send(("gone", *gone[:-1], tuple(why)))
        self._blocks.gone(worker)
        for step in [step for step, its in self._in_flight.items() if its == worker]:
            del self._in_flight[step]
            self._blocks.end(("step", step))

    def _look_at_memory(self, engine: NodeEngine) -> None:
        due = self._memory.next_look()
        if due is None or due > time.monotonic():
            return
        steps = {worker: w.step for worker, w in self._memory.watched.items()}
        for worker, used, limit in self._memory.look(time.monotonic()):
            self._condemned[worker] = (steps[worker], used_too_much(used, limit))
            engine.kill(worker, signal.SIGKILL)


class _Forward(logging.Handler):
    """What the engine has to say here is for whoever reads the coordinator's messages."""

    def __init__(self, send: Any) -> None:
        super().__init__()
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        self._send(("log", record.levelno, record.getMessage()))


def _take_import_path(path: Sequence[str]) -> None:
    """What the coordinator imports from (its script's folder, above all) goes first; a Python of another place has its
    own library and packages behind it."""
    own = list(sys.path)
    sys.path[:] = [p for p in path if os.path.exists(p)]
    sys.path.extend(p for p in own if p not in sys.path)


def _go_to(folder: str, required: bool) -> None:
    try:
        os.chdir(folder)
    except OSError as error:
        if required:
            raise EngineError(
                f"the folder {folder!r}, in which the run was started, cannot be used there ({error.strerror}): start "
                "it in a folder that all nodes see"
            ) from error


def _wait_until_seen(path: str, content: str, run: str, seconds: float) -> None:
    """Whether this node sees what the coordinator has just written into the run directory; EngineError: it does not."""
    end = time.monotonic() + seconds
    while True:
        try:
            with open(path) as f:
                if f.read() == content:
                    return
            why = "it has another file there"
        except OSError as error:
            why = str(error.strerror)
        if time.monotonic() > end:
            raise EngineError(
                f"the run directory {run!r} is not the coordinator's there ({why}): it must be on a file system that "
                "all nodes share, under the same path; choose it with --run-dir"
            )
        time.sleep(_LOOK_PAUSE)


def main(fd: int) -> NoReturn:
    """The life of an agent on an inherited socket."""
    plug_stdio()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is for the coordinator
    sock = socket.socket(fileno=fd)
    sock.set_inheritable(False)
    try:
        Agent(sock).run()
    finally:
        sock.close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
