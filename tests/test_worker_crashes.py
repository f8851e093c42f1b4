"""A worker that is killed at any bytecode of its loop: the coordinator tells exactly what became of each step.

The worker is a fork that runs the real loop on a real lane; the other side is the engine's own `WorkerHandle`. Each
step appends a byte to a file when it is entered. What must hold, wherever the worker dies: what was answered, or counts
as done, was entered once; at most one step is the victim, and nothing after it was entered; what goes back was not.
What the other workers see as finished, so that steps may follow it, counts as finished after the death, too.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, List, Tuple

import pytest
from engine_driver import with_path

import mpsteps._worker
import mpsteps._worker_replies
from mpsteps._ipc import wire
from mpsteps._ipc.lane import Board
from mpsteps._worker import Worker
from mpsteps.engines.base import Replies
from mpsteps.engines.handle import WorkerHandle

WATCHED = (
    "_worker.py", "_worker_replies.py", "_worker_recent.py", "with a bug", "lane.py", "ring.py", "bell.py",
    "test_worker_crashes.py",
)  # fmt: skip
STRIDE = 7
"""Bytecodes between two kills. (All of them: ``python tests/test_worker_crashes.py FILE 1``.)"""


class Plain:
    """Enters and leaves nothing."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, number: int) -> Any:
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        os.write(fd, bytes([number]))
        os.close(fd)
        return None


class Valued(Plain):
    """... returns something."""

    def __call__(self, number: int) -> Any:
        super().__call__(number)
        return [number]


class Failing(Plain):
    """... raises."""

    def __call__(self, number: int) -> Any:
        super().__call__(number)
        raise ValueError(number)


KINDS = (Plain, Plain, Valued, Plain, Failing, Plain, Plain, Valued)


def life(path: str, at: int) -> bool:
    """One worker, killed at bytecode `at` of its loop; whether it died of that. Checks what is told of it."""
    open(path, "wb").close()
    handle, board = WorkerHandle(1, None), Board.create()
    board.admit(1)
    pid = os.fork()
    if pid == 0:
        try:
            _work(handle, board, at)
        finally:
            os._exit(9)
    found: List[Any] = []
    try:
        handle.send([(-wire.SETUP, {})])
        handle.send([(-wire.FUNCTION, n, wire.pack(kind(path))) for n, kind in enumerate(KINDS)])
        steps = range(1, len(KINDS) + 1)
        handle.send([(s, 1, s - 1, (s,), None, None) for s in steps])
        handle.send([(-wire.STOP,)])
        status = os.waitpid(pid, 0)[1]
        gone = handle.bury(None, None, 0, found)
        seen = [n for n in steps if any(board.peers().have_finished(1, n, apart, 0.0) for apart in (0, 1))]
    finally:
        handle.close()
        board.close()
    killed = os.WIFSIGNALED(status)
    assert killed or os.WEXITSTATUS(status) == 0, status
    assert not handle.damage, handle.damage
    _check(path, found, gone, list(steps), killed, seen)
    return killed


def _check(path: str, found: List[Any], gone: Any, steps: List[int], killed: bool, seen: List[int]) -> None:
    with open(path, "rb") as f:
        entered = list(f.read())
    told: List[int] = list(gone.done)
    back: List[int] = []
    for happening in found:
        for message in happening.messages if isinstance(happening, Replies) else ():
            if message[0] == -wire.RETURNED:
                back.append(message[1])
            else:
                told += message[1] if message[0] == -wire.FINISHED else [message[0]]
    assert not set(back) & set(entered), f"entered {entered}, given back {back}"
    assert len(told) == len(set(told)), f"told twice: {told}"
    assert entered == sorted(set(entered)), f"entered: {entered}"
    assert set(told) <= set(entered), f"told {told}, entered {entered}"
    assert set(entered) - set(told) <= {gone.began}, f"entered {entered}, told {told}, blamed {gone.began}"
    assert gone.began not in told
    assert set(seen) & set(entered) <= set(told), f"others have seen the end of {seen}, told {told}"
    if not killed:
        assert sorted(told + back) == steps
        assert back, "a worker that is to leave gives back what is behind a failure"


def _work(handle: WorkerHandle, board: Board, at: int) -> None:
    seen = [0]

    def trace(frame: Any, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.endswith(WATCHED):
            return None  # pickling and the like takes most of the bytecodes, and touches nothing that is shared
        frame.f_trace_opcodes = True
        if event == "opcode":
            seen[0] += 1
            if seen[0] == at:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    def begins(worker: Worker, message: Any) -> None:
        Worker._next = following  # type: ignore[method-assign]
        sys._getframe().f_trace_opcodes = True
        sys._getframe(1).f_trace = trace
        sys.settrace(trace)
        following(worker, message)

    following, Worker._next = Worker._next, begins  # type: ignore[method-assign]
    Worker(handle.lane.worker_side(board, number=1)).run()
    sys.settrace(None)
    os._exit(0)


def sweep(path: str, stride: int) -> int:
    """How many kills it took to get through."""
    kills = 0
    while life(path, 1 + kills * stride):
        kills += 1
    return kills


def test_killed_at_any_bytecode_of_its_loop_a_worker_is_told_of_exactly(tmp_path: Path) -> None:
    """In a small process of its own, since each kill needs a fork."""
    assert sweep_in_child(tmp_path)[0] > 50


def sweep_in_child(folder: Path, *mutation: str) -> Tuple[int, str]:
    """The number of kills, or -1 and what went wrong."""
    command = [sys.executable, __file__, str(folder / "entered"), str(STRIDE), *mutation]
    ended = subprocess.run(
        command, env=with_path(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=240, check=False
    )
    text = ended.stdout.decode()
    return (int(text), "") if ended.returncode == 0 else (-1, text)


MUTANTS = {
    "finishes before it has run": (
        mpsteps._worker,
        "        extras, failure = self._run_step(message)\n",
        "        self._end.finish(self._number)\n        extras, failure = self._run_step(message)\n",
    ),
    "begins after it has run": (
        mpsteps._worker,
        "        if not self._end.begin(self._number) or",
        "        self._run_step(message)\n        if not self._end.begin(self._number) or",
    ),
    "lets others follow before the value is safe": (
        mpsteps._worker_replies,
        "            leaves = wire.leaves(reply[3])\n",
        "            leaves = wire.leaves(reply[3])\n            self._end.standing.finish(number)\n",
    ),
    "keeps back a reply with a content": (
        mpsteps._worker_replies,
        "            self._add(reply)\n            self._put()\n",
        "            self._add(reply)\n",
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_worker_that_tells_in_the_wrong_order_is_caught(name: str, tmp_path: Path) -> None:
    """Each of these bugs breaks a promise at some bytecode."""
    kills, text = sweep_in_child(tmp_path, name)
    assert kills < 0, f"nobody notices after {kills} kills"
    assert "AssertionError" in text


def _with_bug(name: str) -> None:
    module, old, new = MUTANTS[name]
    source = Path(module.__file__).read_text()
    assert source.count(old) == 1, f"{old!r} stands {source.count(old)} times in {module.__name__}"
    exec(compile(source.replace(old, new), f"{module.__name__} with a bug", "exec"), module.__dict__)
    mpsteps._worker.WorkerReplies = mpsteps._worker_replies.WorkerReplies  # type: ignore[attr-defined]
    globals()["Worker"] = mpsteps._worker.Worker


if __name__ == "__main__":
    if sys.argv[3:]:
        _with_bug(sys.argv[3])
    print(sweep(sys.argv[1], int(sys.argv[2])))
