"""One worker process as the coordinator sees it: its lane, what it was sent and has not answered, its log.

Nothing that a worker writes is trusted further than this module: a frame that does not hold together, or an answer for
a step that it was not sent, makes the lane *damaged*. Then nothing in it is believed any more, the two words included,
and every step in it is reported lost: it may have run or not.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections import deque
from typing import Deque, Dict, List, Optional, Tuple

from mpsteps._ipc import wire
from mpsteps._ipc.lane import NEVER, Lane
from mpsteps._output import step_log
from mpsteps._private_files import open_private
from mpsteps.engines.base import EngineFailed, Happening, Message, Replies, WorkerGone, WorkerUp
from mpsteps.errors import InternalError, MpstepsError

LOG_TAIL = 16_384
"""Bytes of a dead worker's output that travel with the news of its death."""


class WorkerHandle:
    """A worker with its lane. The owner calls `close` once the worker is dead, and only then.

    `in_lane`: step -> number of its message, for what was sent and is not answered; numbers rise from 1 without gaps.
    `backlog` holds frames that the ring has had no room for: no more than the scheduler's lane depth of step messages,
    and at most one answer. `held`: step messages that came while others were being taken back; they have no number yet.
    `_told`: steps whose fate was told before the worker's own reply, which is then passed over: `True`, it finished;
    `False`, it was taken back.
    `damage`: what was found to be wrong with the lane ('': nothing).
    `apart`: how many of the worker's own replies told of a failure, or of what a step left (`wire.leaves`); the worker
    counts them, too.
    """

    __slots__ = (
        "_first_revoked", "_next_number", "_told", "apart", "backlog", "damage", "end", "held", "in_lane", "lane",
        "log", "number", "pid", "ready", "unfit",
    )  # fmt: skip

    def __init__(self, number: int, log: Optional[str]) -> None:
        self.number = number
        self.lane = Lane.create()
        self.end = self.lane.coordinator_side()
        self.pid = 0
        self.log = log
        self.ready = False
        self.unfit = False
        self.damage = ""
        self._next_number = 1
        self._first_revoked = NEVER
        self._told: Dict[int, bool] = {}
        self.apart = 0
        self.in_lane: Dict[int, int] = {}
        self.backlog: Deque[bytes] = deque()
        self.held: List[Message] = []

    def close(self) -> None:
        """Let go of the lane."""
        self.lane.close()

    # ----------------------------------------------------------------------- sending

    def send(self, messages: List[Message]) -> List[Message]:
        """Send messages, or keep them until there is room. Returns replies in place of the worker's, for steps whose
        messages are too large to be written."""
        if self.damage:
            return []  # it is being killed: what it does not get, it has never begun
        if self._first_revoked != NEVER:
            self.held.extend(m for m in messages if m[0] > 0)
            messages = [self._with_held_news(m) if m[0] == -wire.GRANT else m for m in messages if m[0] < 0]
        try:
            frame = wire.encode(messages)
        except ValueError:  # one of them holds more than marshal's 2 GiB
            return self._send_one_by_one(messages)
        steps = [message[0] for message in messages if message[0] > 0]
        self.in_lane.update(zip(steps, range(self._next_number, self._next_number + len(steps))))
        self._next_number += len(steps)
        if messages:
            self._put(frame)
        return []

    def _with_held_news(self, grant: Message) -> Message:
        """What steps that are held would tell is older than what a grant tells: it goes first."""
        held = [m[4] for m in self.held if m[4] is not None]
        self.held = [(*m[:4], None, *m[5:]) for m in self.held]
        return (*grant[:3], [*held, *grant[3]])

    def _send_one_by_one(self, messages: List[Message]) -> List[Message]:
        if len(messages) > 1:
            return [reply for message in messages for reply in self.send([message])]
        step = messages[0][0]
        if step < 0:
            raise InternalError(f"worker {self.number} cannot be sent order {step}: it holds more than 2 GiB")
        self.end.refuse()
        failure = wire.Failure(
            "serialization", "ValueError", "an argument cannot travel to a worker process: it holds 2 GiB or more; "
            "write it to a file and pass the path", part="an argument",
        )  # fmt: skip
        return [(step, 0.0, 0.0, None, tuple(failure))]

    def _put(self, frame: bytes) -> None:
        if self.backlog or self.end.send.unsent:
            self.backlog.append(frame)
        else:
            self.end.send.begin(frame)
        self.end.wake.wake()

    def pump(self) -> None:
        """Send what was kept, as far as there is room now."""
        while self.end.pump() and self.backlog:
            self.end.send.begin(self.backlog.popleft())

    @property
    def choked(self) -> bool:
        """Whether something is kept back for want of room."""
        return bool(self.backlog) or self.end.send.unsent > 0

    def running(self) -> Optional[int]:
        """The step that the worker has begun and not finished, as its words say it now."""
        done, begun = self.end.done(), self.end.begun()
        if begun <= done:
            return None
        return next((step for step, n in self.in_lane.items() if n == begun), None)

    def revoke(self, found: List[Happening]) -> None:
        """Take back what is not begun, and append what that tells: steps that are back, and those that have finished
        and whose replies the worker still keeps, since a long step came in between. What is sent from now on is held
        until the worker has answered for all that it has."""
        if not self.in_lane or self._first_revoked != NEVER or self.damage:
            return
        first = self.end.revoke(self.end.begun() + 1)
        if first == NEVER:
            return  # a machine that reorders stores: then `done` says nothing of what is in the ring, either
        self._first_revoked = first
        # After that: whatever ends until then is found, and the one that may begin until then has all others before it.
        done = self.end.done()
        # Replies with a content were put into the ring before the worker stored that `done`.
        if not self.take(found) or not self.in_lane:
            return  # nothing is left that the worker could answer for: it was restored, and what is held is sent
        finished = [step for step, n in self.in_lane.items() if n <= done]
        back = [step for step, n in self.in_lane.items() if n >= first]
        replies: List[Message] = []
        if finished:
            nothing = [0.0] * len(finished)
            replies.append((-wire.FINISHED, finished, nothing, nothing))
        replies.extend((-wire.RETURNED, step) for step in back)
        for steps, fate in ((finished, True), (back, False)):
            for step in steps:
                del self.in_lane[step]
                self._told[step] = fate
        if replies:
            found.append(Replies(self.number, replies, self.apart))

    def _restore(self) -> List[Message]:
        self._first_revoked = NEVER
        self.end.restore()
        held, self.held = self.held, []
        return self.send(held) if held else []

    @property
    def next_number(self) -> int:
        """The number of the next step message; 0: it will have to wait for one."""
        return 0 if self.damage or self._first_revoked != NEVER else self._next_number

    # --------------------------------------------------------------------- receiving

    def take(self, found: List[Happening]) -> bool:
        """Append what the worker has said; False: up to the first damage, see `damage`."""
        replies: List[Message] = []
        in_lane = self.in_lane
        try:
            for frame in self.end.drain():
                for message in wire.decode(frame):
                    first = message[0]
                    if first > 0:
                        del in_lane[first]
                        if len(message) != 4 or wire.leaves(message[3]):
                            self.apart += 1
                        replies.append(message)
                    elif first == -wire.FINISHED:
                        self._finished(message, replies)
                    else:
                        self._hear(message, replies, found)
        except Exception as error:  # RingCorrupt, or whatever reading nonsense raises
            self.damage = f"{type(error).__name__}: {error}"
        if self._first_revoked != NEVER and not in_lane and not self._told and not self.damage:
            replies += self._restore()
        if replies:
            found.append(Replies(self.number, replies, self.apart))
        return not self.damage

    def _finished(self, message: Message, replies: List[Message]) -> None:
        """Several steps, without those of which that has been told."""
        _, steps, seconds, cpu_seconds = message
        if not len(steps) == len(seconds) == len(cpu_seconds) > 0:
            raise ValueError(f"message {message}")
        if self._told:
            new = [t for t in zip(steps, seconds, cpu_seconds) if not self._told.pop(t[0], False)]
            if not new:
                return
            steps, seconds, cpu_seconds = map(list, zip(*new))
        for step in steps:
            del self.in_lane[step]
        replies.append((-wire.FINISHED, steps, seconds, cpu_seconds))

    def _hear(self, message: Message, replies: List[Message], found: List[Happening]) -> None:
        what = -message[0]
        if what == wire.READY:
            self.ready, self.pid = True, message[1]
            found.append(WorkerUp(self.number, self.pid))
        elif what == wire.UNFIT:
            self.unfit = True
            found.append(EngineFailed(_unfit(wire.Failure(*message[1]))))
        elif what in (wire.RETURNED, wire.REQUEST, wire.CHANGED, wire.LOCK, wire.UNLOCK, wire.LOGGED):
            if what == wire.RETURNED:
                if self._told.get(message[1]) is False:
                    del self._told[message[1]]
                    return
                del self.in_lane[message[1]]
            replies.append(message)
        else:
            raise ValueError(f"message {message[0]}")

    # ------------------------------------------------------------------------- death

    def bury(
        self, logs: Optional[str], exitcode: Optional[int], peak_kib: int, found: List[Happening]
    ) -> WorkerGone:  # fmt: skip
        """The worker is dead: append what it said last, and what became of the rest, which is also returned. To be
        followed by `close`."""
        if not self.damage:
            self.take(found)
        finished, began = self._fates()
        if self.damage:
            found.extend(self._all_lost(exitcode))
        log = self.keep_log(logs, began)
        gone = WorkerGone(self.number, self.pid, exitcode, finished, began, peak_kib, log)
        found.append(gone)
        return gone

    def _fates(self) -> Tuple[Tuple[int, ...], Optional[int]]:
        """What had finished without a reply, and what was running; all else in the lane was never begun."""
        begun, done = self.end.begun(), self.end.done()
        if not done <= begun < self._next_number:
            self.damage = self.damage or f"it says that it began message {begun} and finished message {done}"
        if self.damage:
            return (), None
        finished = tuple(step for step, n in self.in_lane.items() if n <= done)
        for step, n in self.in_lane.items():
            if n == begun and n > done and n < self._first_revoked:
                return finished, step
        return finished, None

    def _all_lost(self, exitcode: Optional[int]) -> List[Happening]:
        failure = tuple(
            wire.Failure(
                "lost", "StepLost", f"its worker process has written over shared memory ({self.damage}) and was ended; "
                "whether this step has run is not known", pid=self.pid, exitcode=exitcode,
            )
        )  # fmt: skip
        replies: List[Message] = [(step, 0.0, 0.0, None, failure) for step in self.in_lane]
        self.in_lane.clear()
        return [Replies(self.number, replies, self.apart)] if replies else []

    def keep_log(self, logs: Optional[str], step: Optional[int] = None) -> str:
        """Move the worker's output to the log of the step that it was running; its last part as text."""
        if not self.log or not logs:
            return ""
        try:
            with open(self.log, "rb") as source:
                size = source.seek(0, os.SEEK_END)
                source.seek(max(0, size - LOG_TAIL))
                tail = source.read().decode("utf-8", "replace")
                if step is not None and size:
                    import shutil  # takes as long to load as all other modules of this package

                    source.seek(0)
                    fd = open_private(step_log(logs, step), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
                    with open(fd, "ab") as target:
                        shutil.copyfileobj(source, target)
        except FileNotFoundError:
            return ""  # it died before it opened its log
        except (OSError, MpstepsError) as error:
            return f"(the worker's output stays in {self.log}: {error})"
        with contextlib.suppress(OSError):  # read-only by now, or removed by somebody else: it is only a leftover
            os.unlink(self.log)
        return tail


def _unfit(failure: wire.Failure) -> str:
    return f"the protocol cannot be loaded in a worker process: {failure.cause()}\n{failure.traceback}".rstrip()


def last_log(logs: Optional[str]) -> int:
    """The highest number of the logs that workers of a coordinator that was killed have left: they are kept, since they
    say what the steps wrote that were cut in the middle."""
    if not logs:
        return 0
    found = (re.match(r"worker-(\d+)\.log$", name) for name in os.listdir(logs))
    return max((int(match.group(1)) for match in found if match), default=0)
