"""Protocols that the tests run. At the top level of a module, so that worker processes can import them.

Nothing here sleeps to let others catch up: steps that must overlap meet at a `meet` (files in a directory), steps that
must wait for somebody poll for a file with a deadline.
"""

from __future__ import annotations

import os
import time
from typing import Any, Callable, Dict, List, Optional

from mpsteps import STEPS_PARALLEL, IntParam, Protocol, StringParam

DEADLINE = 20.0  # seconds that anything may take before a test fails


def wait_until(condition: Callable[[], Any], what: str = "") -> None:
    """Poll until it holds; fails loudly after DEADLINE."""
    end = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {DEADLINE} s in vain {what}")
        time.sleep(0.002)


def meet(folder: str, name: Any, count: int) -> None:
    """Return when `count` parties are here: proof that they ran at the same time."""
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, f"here-{name}"), "w"):
        pass
    wait_until(lambda: len(os.listdir(folder)) >= count, f"for {count} parties in {folder}")


def note(path: str, line: Any) -> None:
    """Append one line in one write, which other processes cannot tear."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(fd, f"{line}\n".encode())
    finally:
        os.close(fd)


def notes(path: Any) -> List[str]:
    """The lines of `note`; [] if there are none."""
    try:
        with open(path) as f:
            return f.read().split("\n")[:-1]
    except FileNotFoundError:
        return []


class Parallel(Protocol):
    """Base: parallel, two workers, a file to take notes in."""

    stepsExecutionMode = STEPS_PARALLEL

    def _defineParams(self, form: Any) -> None:
        form.addSection(label="Input")
        form.addParam("notes", StringParam, default="", label="Notes")
        form.addParam("n", IntParam, default=4, label="Number")
        form.addParallelSection(threads=2)

    def note(self, line: Any) -> None:
        note(self.notes.get(), line)


class Custom(Parallel):
    """What a test wants: `insert(protocol)` inserts the steps. Its steps are in the class for all to use."""

    def __init__(self, insert: Optional[Callable[[Any], None]] = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._insert = insert
        self.log: List[Any] = []
        self.table: Dict[Any, Any] = {}
        self.seen: Any = None
        self.value: Any = 0

    def __getstate__(self) -> Dict[str, Any]:
        return {k: v for k, v in super().__getstate__().items() if k != "_insert"}  # a test's closure stays at home

    def _insertAllSteps(self) -> None:
        if self._insert is not None:
            self._insert(self)

    def nothing(self, *_args: Any) -> None:
        """Does nothing."""

    def add(self, item: Any) -> None:
        self.log.append(item)

    def put(self, key: Any, value: Any) -> None:
        self.table[key] = value

    def look(self, name: str) -> None:
        self.seen = getattr(self, name)

    def give(self, value: Any) -> Any:
        return value

    def keepValue(self, value: Any) -> None:
        self.value = value

    def takeNote(self, line: Any) -> None:
        self.note(line)

    def fail(self, text: str = "it went wrong") -> None:
        raise ValueError(text)

    def pids(self) -> None:
        self.log.append(os.getpid())

    def meetOthers(self, folder: str, name: Any, count: int) -> None:
        meet(folder, name, count)

    def waitForFile(self, path: str) -> None:
        wait_until(lambda: os.path.exists(path), f"for {path}")

    def makeFile(self, path: str, text: str = "") -> str:
        with open(path, "w") as f:
            f.write(text)
        return path

    def meetAndFail(self, folder: str, name: Any, count: int) -> None:
        meet(folder, name, count)
        raise RuntimeError(f"failure {name}")

    def meetThenWaitForFile(self, folder: str, name: Any, count: int, path: str) -> None:
        meet(folder, name, count)
        wait_until(lambda: os.path.exists(path), f"for {path}")
        self.log.append(name)
