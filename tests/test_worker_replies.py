"""What a worker tells, and when: with a lane that is a list, and a clock that is turned by hand."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any, Callable, Iterator, List

import pytest
from engine_driver import with_path

from mpsteps import _worker_replies
from mpsteps._ipc import wire
from mpsteps._ipc.lane import Board, Lane
from mpsteps._worker import Worker
from mpsteps._worker_replies import FLUSH_SECONDS, PUT_SECONDS, WorkerReplies


class Clock:
    """Stands for the module `time`."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class End:
    """`sent`: what was put, message by message; `calls`: what had been put when the coordinator was called."""

    def __init__(self, clock: Clock) -> None:
        self.standing = self.peers = self
        self.idle = False
        self.sent: List[Any] = []
        self.calls: List[float] = []
        self._clock = clock
        self._taken = self._seen = 0

    def put(self, frame: bytes) -> None:
        self.sent += wire.decode(frame)

    def finish(self, number: int) -> None: ...

    def end_apart(self) -> None: ...

    def give_back(self, number: int) -> None: ...

    def some_idle(self) -> bool:
        return self.idle

    def call_if_left(self) -> None:
        if self._taken < len(self.sent):
            self._call()

    def call_if_late(self) -> None:
        if self._taken < self._seen:
            self._call()
        self._seen = len(self.sent)

    def _call(self) -> None:
        self.calls.append(self._clock.now)
        self._taken = len(self.sent)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(_worker_replies, "time", clock)
    monkeypatch.setattr(_worker_replies, "ORDERED", True)
    return clock


def called_after(clock: Clock, seconds: float, first: Callable[[WorkerReplies], None], idle: bool = False) -> float:
    """The coordinator is called so long after the end of the first step, if all steps take so many seconds."""
    end = End(clock)
    end.idle = idle
    replies = WorkerReplies(end)  # type: ignore[arg-type]
    clock.now = ended = seconds
    first(replies)
    number = 1
    while not end.calls:
        clock.now += seconds
        number += 1
        replies.finished(number, number, seconds, seconds, clock.now)
        assert number < 1000
    return end.calls[0] - ended


def plain(replies: WorkerReplies) -> None:
    replies.finished(1, 1, 0.0, 0.0, _worker_replies.time.perf_counter())


def change(replies: WorkerReplies) -> None:
    replies.left(1, (1, 0.0, 0.0, {"changes": b"x"}), _worker_replies.time.perf_counter())


def value(replies: WorkerReplies) -> None:
    replies.left(1, (1, 0.0, 0.0, {"value": b"x"}), _worker_replies.time.perf_counter())


@pytest.mark.parametrize("seconds", [20e-6, 90e-6, 300e-6, 990e-6])
def test_what_nobody_waits_for_is_told_with_the_rest(clock: Clock, seconds: float) -> None:
    """The second time that the worker looks. What others must hear of, and while somebody has nothing to do, sooner."""
    assert called_after(clock, seconds, plain) <= 2 * (PUT_SECONDS + seconds)
    assert called_after(clock, seconds, value) <= 2 * (PUT_SECONDS + seconds)
    assert called_after(clock, seconds, plain, idle=True) <= FLUSH_SECONDS + seconds
    assert called_after(clock, seconds, change) <= FLUSH_SECONDS + seconds


def test_a_failure_is_told_at_once(clock: Clock) -> None:
    """With all that was kept before it, in order."""
    end = End(clock)
    replies = WorkerReplies(end)  # type: ignore[arg-type]
    replies.finished(1, 1, 0.0, 0.0, 0.0)
    replies.gave_back(2, 2)
    replies.failed((3, 0.0, 0.0, None, ()))
    assert [m[0] for m in end.sent] == [-wire.FINISHED, -wire.RETURNED, 3]
    assert end.calls == [0.0]


def test_a_fork_puts_nothing(clock: Clock) -> None:
    """Also where it was made in the middle of something."""
    end = End(clock)
    replies = WorkerReplies(end)  # type: ignore[arg-type]
    replies.add((-wire.RETURNED, 1))

    class Nobody:
        def __getattr__(self, name: str) -> Any:
            raise SystemExit

    replies.disown(Nobody())
    with pytest.raises(SystemExit):
        replies.flush()
    assert end.sent == []


@pytest.mark.versions
@pytest.mark.skipif(sys.gettrace() is not None, reason="somebody else is tracing")
def test_who_interrupts_at_any_bytecode_loses_nothing(clock: Clock) -> None:
    """A signal's handler, or a finalizer, that logs between two steps, as `Worker._send_records` does it."""
    at = 1
    while _interrupted(clock, at):
        at += 1
    assert at > 300


def _interrupted(clock: Clock, at: int) -> bool:
    """Some replies, with something logged before bytecode `at`; whether it came to that."""
    clock.now = 0.0
    end = End(clock)
    replies = WorkerReplies(end)  # type: ignore[arg-type]
    seen = 0

    def trace(frame: Any, event: str, _: Any) -> Any:
        nonlocal seen
        if not frame.f_code.co_filename.endswith("_worker_replies.py"):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            seen += 1
            if seen == at and not replies.busy:
                sys.settrace(None)
                replies.add((-wire.LOGGED, []))
                replies.flush()
                sys.settrace(trace)
        return trace

    before = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # Python 3.12 wants to know before
    sys.settrace(trace)
    try:
        for number in range(1, 9):
            clock.now += FLUSH_SECONDS
            if number == 3:
                replies.gave_back(3, 3)
            elif number == 5:
                replies.left(5, (5, 0.5, 0.5, {"value": b"x"}), clock.now)
            else:
                replies.finished(number, number, 0.5, 0.5, clock.now)
        replies.flush()
    finally:
        sys.settrace(before)
    told: List[int] = []
    for m in end.sent:
        if m[0] == -wire.FINISHED:
            assert len(m[1]) == len(m[2]) == len(m[3]), m
            told += m[1]
        elif m[0] != -wire.LOGGED:
            told.append(m[1] if m[0] < 0 else m[0])
    assert told == list(range(1, 9)), f"interrupted at {at}"
    return seen >= at


@pytest.fixture
def worker() -> Iterator[Worker]:
    """On a lane of its own, in this process."""
    lane, board = Lane.create(), Board.create()
    worker = Worker(lane.worker_side(board))
    yield worker
    for fd in worker._surroundings._spare:  # a worker keeps them until its process ends
        os.close(fd)
    lane.close()
    board.close()


def test_what_is_logged_in_the_middle_of_a_reply_waits(worker: Worker) -> None:
    """The handler of its logger keeps it, and tries again."""
    worker._replies.busy = True
    assert not worker._send_records([])
    worker._replies.busy = False
    assert worker._send_records([])


def test_what_waits_is_told_before_the_worker_sleeps(worker: Worker) -> None:
    """Nobody knows when the next step comes."""
    order: List[str] = []

    class Waiting:
        def flush_waiting(self) -> None:
            order.append("records")

    worker._relay = Waiting()  # type: ignore[assignment]
    flush = worker._replies.flush
    worker._replies.flush = lambda: (order.append("replies"), flush())[1]  # type: ignore[method-assign]
    worker._leaving = True
    assert worker.run() == 0
    assert order == ["records", "replies"]


def test_a_fork_of_a_fork_goes_on(worker: Worker) -> None:
    """As daemons are made: what the first one has given up is not asked of again."""
    ended = subprocess.run([sys.executable, "-c", FORKS_TWICE], env=with_path(), timeout=60, check=True,
                           stdout=subprocess.PIPE)  # fmt: skip
    assert ended.stdout == b"goes on"
    assert not worker.turns.forked


FORKS_TWICE = """
import os
from mpsteps import _worker
from mpsteps._ipc.lane import Board, Lane
board = Board.create()
worker = _worker.Worker(Lane.create().worker_side(board))
os.register_at_fork(after_in_child=worker.forked)
if os.fork():
    os.wait()
elif os.fork():
    os.wait()
    os._exit(0)
else:
    os.write(1, b"goes on")
    os._exit(0)
"""
