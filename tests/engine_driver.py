"""Drives a ProcessEngine by hand, in place of the coordinator: for tests of what happens between two events."""

from __future__ import annotations

import os
import sys
import textwrap
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple, Type, TypeVar

import psutil
import pytest
from engine_steps import SECONDS

from mpsteps._ipc import wire
from mpsteps._ipc.wire import Failure
from mpsteps.engines.base import EngineFailed, Happening, Replies, WorkerGone, WorkerUp
from mpsteps.engines.processes import ProcessEngine

H = TypeVar("H")


class Driver:
    """An engine and all that it has told. Steps are plain callables with arguments."""

    def __init__(self, workers: int = 1, setup: Optional[Dict[str, Any]] = None, **options: Any) -> None:
        self.engine = ProcessEngine(workers, lambda number: dict(setup or {}), **options)
        self.workers = workers
        self.told: List[Happening] = []
        self.replies: Dict[int, Tuple[Any, ...]] = {}  # step -> its last reply

    def __enter__(self) -> Driver:
        self.engine.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.engine.stop(at_once=True)

    def turn(self, timeout: float = 0.2) -> List[Happening]:
        found = self.engine.wait(timeout)
        for happening in found:
            if isinstance(happening, Replies):
                self.replies.update({m[0]: m for m in happening.messages if m[0] > 0})
                for m in happening.messages:
                    if m[0] == -wire.FINISHED:
                        self.replies.update({reply[0]: reply for reply in zip(*m[1:])})
        self.told += found
        return found

    def until(self, condition: Callable[[], Any], what: str = "something") -> Any:
        end = time.monotonic() + SECONDS
        while True:
            value = condition()
            if value:
                return value
            assert time.monotonic() < end, f"waited {SECONDS} s for {what}; told: {self.told}"
            self.turn()

    def all(self, kind: Type[H]) -> List[H]:
        return [h for h in self.told if isinstance(h, kind)]

    def up(self, count: Optional[int] = None) -> List[int]:
        """Wait for (that many, or all) workers; the numbers of those that are up and not gone."""
        wanted = count or self.workers
        self.until(lambda: len(self.live()) >= wanted, f"{wanted} workers")
        return self.live()

    def live(self) -> List[int]:
        gone = {g.worker for g in self.all(WorkerGone)}
        return [u.worker for u in self.all(WorkerUp) if u.worker not in gone]

    def pid(self, worker: int) -> int:
        """Of a worker that lives: a signal to pid 0 would end this very process."""
        pid = self.engine.pid(worker)
        assert pid > 1, self.told
        return pid

    def send(self, worker: int, *steps: Tuple[Any, ...]) -> None:
        """Send (id, function, *arguments), together."""
        self.engine.send(worker, [step_message(*s) for s in steps])

    def value(self, step: int) -> Any:
        """Wait for a step's reply and take its value."""
        reply = self.until(lambda: self.replies.get(step), f"step {step}")
        assert len(reply) < 5, Failure(*reply[4])
        extras = reply[3] if len(reply) > 3 else None
        return wire.unpack(extras["value"]) if extras and "value" in extras else None

    def failure(self, step: int) -> Failure:
        reply = self.until(lambda: self.replies.get(step), f"step {step}")
        assert len(reply) == 5, reply
        return Failure(*reply[4])

    def call(self, worker: int, function: Callable[..., Any], *args: Any) -> Any:
        """Run a function on a worker, as step 900000 and up."""
        step = 900_000 + len(self.told)
        self.send(worker, (step, function, *args))
        return self.value(step)

    def gone(self, worker: int) -> WorkerGone:
        found: WorkerGone = self.until(
            lambda: next((g for g in self.all(WorkerGone) if g.worker == worker), None), f"the end of worker {worker}"
        )
        return found

    def failed(self) -> str:
        found: EngineFailed = self.until(lambda: next(iter(self.all(EngineFailed)), None), "the engine to give up")
        return found.reason


def step_message(step: int, function: Callable[..., Any], *args: Any) -> Tuple[Any, ...]:
    return (step, 1, wire.pack(function), wire.pack_arguments(args), None, None)


def at_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str) -> None:
    """Have every Python that is started from now on run `code` first: to break what it finds there."""
    folder = tmp_path / "at-start"
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(textwrap.dedent(code))
    monkeypatch.setenv("PYTHONPATH", str(folder))


def alive(pid: int) -> bool:
    """Whether a process runs: a zombie that its parent has not collected yet does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def with_path() -> Dict[str, str]:
    """An environment in which a new Python imports what this one does."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
