"""The worker processes of a run: one for each place in which a step can run, made when it is needed."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from typing import Any, Dict, List, Optional

from mpsteps._deaths import Deaths
from mpsteps._ipc import wire
from mpsteps.scipion._child import Child
from mpsteps.scipion._forks import END_SIGNAL, Channel, Fork, Message, fork
from mpsteps.scipion._listing import name_of
from mpsteps.scipion._sharing import open_databases

logger = logging.getLogger(__name__)

KILL_GRACE = 1.0
"""Seconds between a worker's death by SIGKILL and its step's failure: Scipion's Stop kills the workers first, then the
main process, and then says that the run was aborted; it is not to find a failed one."""
BEGIN_SECONDS = 10.0
"""A fork that has not begun its step by then has inherited a lock that nobody will release: it is replaced."""
_TRIES = 3
_END_SECONDS = 5.0


class Workers:
    """Of one `Run`."""

    def __init__(self, run: Any) -> None:
        self._run = run
        self._forks: Dict[int, Fork] = {}
        self._leaving: List[Fork] = []
        self._deaths = Deaths()
        self._tries: Dict[int, int] = {}
        self._parent = os.getpid()

    # ------------------------------------------------------------------------ steps

    def give(self, place: int, number: int, thread_id: int, gpus: Optional[List[int]]) -> bool:
        """Have a step run there; False: there cannot be a process."""
        worker = self._forks.get(place)
        generation = self._run.sharing.generation
        if worker is not None and (worker.dead or worker.generation != generation or worker.knows < number):
            self._dismiss(place)
            worker = None
        fresh = worker is None
        if worker is None:
            worker = self._make(place)
            if worker is None:
                return False
        worker.step, worker.begun = number, False
        news = self._run.sharing.news(place, number)
        logger.info("mpsteps: step %d runs in process %d%s", number, worker.pid, " (new)" if fresh else "")
        worker.channel.send(("run", number, thread_id, gpus, news))
        if fresh and threading.active_count() > 1:
            self._run.later(BEGIN_SECONDS, lambda: self._has_begun(place, worker, number, thread_id, gpus))
        return True

    def discard(self, place: int) -> None:
        """What is there has a state that nobody else has: it gets no more steps."""
        worker = self._forks.get(place)
        if worker is not None:
            worker.generation = -1

    def _make(self, place: int) -> Optional[Fork]:
        run = self._run
        run.commit()
        run.sharing.collect()
        others = [*self._forks.values(), *self._leaving]
        held = run.sharing.hold()
        if not held:
            logger.info("mpsteps: a step in the main process works under self._lock: a process is made without it")
        try:
            run.sharing.join(place)
            with run.database:
                worker = fork(self._serve, run.sharing.generation, len(run.steps), others)
        except OSError as problem:
            logger.warning("mpsteps: no new process (%s)", problem)
            return None
        finally:
            if held:
                run.sharing.let_go()
        self._forks[place] = worker
        run.listen(worker.channel.sock, lambda: self._read(place, worker))
        worker.wait(lambda _pid, code: run.soon(lambda: self._ended(place, worker, code)))
        return worker

    def _serve(self, channel: Channel) -> None:
        """In the fork."""
        self._run.database.unguard()
        Child(self._run, channel, self._parent, open_databases()).serve()

    def _has_begun(self, place: int, worker: Fork, number: int, thread_id: int, gpus: Any) -> None:
        if worker.begun or worker.dead or worker.step != number or self._forks.get(place) is not worker:
            return
        tries = self._tries[number] = self._tries.get(number, 0) + 1
        logger.warning("mpsteps: process %d did not come up (a lock was held when it was forked?), it is replaced",
                       worker.pid)  # fmt: skip
        worker.step = None
        worker.kill()
        self._dismiss(place)
        if tries >= _TRIES or not self.give(place, number, thread_id, gpus):
            self._run.begin_in_main(number, "no process for it came up")

    # --------------------------------------------------------------------- messages

    def _read(self, place: int, worker: Fork) -> None:
        for message in worker.channel.pending():
            self._take(place, worker, message)

    def _take(self, place: int, worker: Fork, message: Message) -> None:
        kind, number = message[0], message[1]
        if worker.step != number:
            return  # of a step that was given up
        if kind == "begun":
            worker.begun = True
        elif kind == "ask":
            self._answer(place, worker, *message[1:])
        else:
            worker.step = None
            if message[-1]:
                logger.info("mpsteps: process %d is replaced: %s", worker.pid, message[-1])
                self.discard(place)
            if kind == "done":
                self._run.end(number, None, message[2], message[3])
            else:
                self._run.end(number, message[2])

    def _answer(
        self, place: int, worker: Fork, number: int, name: str, parcel: bytes, changes: Optional[bytes]
    ) -> None:  # fmt: skip
        run = self._run
        try:
            problem = run.merge(place, number, changes, goes_on=True)
            if problem is None:
                args, kwargs = wire.unpack(parcel, run.protocol)
                reply = wire.pack(run.call(place, number, name, args, kwargs), run.protocol)
        except Exception as error:
            problem = f"{name} in the main process: {type(error).__name__}: {error}"
            logger.error("mpsteps: step %d: %s", number, problem, exc_info=error)
        worker.channel.send(("answer", problem is None, problem if problem is not None else reply))

    # ------------------------------------------------------------------------- ends

    def _ended(self, place: int, worker: Fork, code: int) -> None:
        if worker in self._leaving:
            self._leaving.remove(worker)
        if self._forks.get(place) is not worker:
            return
        self._read(place, worker)  # what it said before it died
        number = worker.step
        if self._forks.get(place) is worker:
            self._forget(place)
        if number is None:
            return
        if code == -signal.SIGKILL:
            self._run.pause(KILL_GRACE, lambda: self._lost(number, worker.pid, code))
        else:
            self._lost(number, worker.pid, code)

    def _lost(self, number: int, pid: int, code: int) -> None:
        step = self._run.steps[number - 1]
        cause = self._deaths.failure(code).message.replace("its worker process", f"its process ({pid})")
        self._run.end(number, f"step {number} ({name_of(step)}): {cause}")

    def _forget(self, place: int) -> None:
        worker = self._forks.pop(place)
        self._run.listen_no_more(worker.channel.sock)
        worker.channel.sock.close()

    def _dismiss(self, place: int) -> None:
        """It ends when it sees that nobody is at the other end."""
        worker = self._forks[place]
        worker.channel.send(("stop",))
        self._forget(place)
        if not worker.dead:
            self._leaving.append(worker)

    def close(self) -> None:
        """The run is over: all processes end, also those that (after an error) still run a step."""
        workers = [*self._forks.values(), *self._leaving]
        for place in list(self._forks):
            worker = self._forks[place]
            if worker.step is not None:
                worker.kill(END_SIGNAL)  # it ends its programs, too
            self._dismiss(place)
        deadline = time.monotonic() + _END_SECONDS
        for worker in workers:
            worker.join(deadline - time.monotonic())
            worker.kill()
            worker.join(_END_SECONDS)
