"""Functions and objects that steps of the tests of StepPool are made of.

In a module of their own, so that a worker that runs them need not import the tests, and pytest with them.
"""

from __future__ import annotations

import contextlib
import os
import time
from concurrent import futures
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Iterator, List, Tuple

if TYPE_CHECKING:
    from mpsteps import StepPool

SOON = 20.0
"""Seconds after which a future that is not done never will be."""


class Thing:
    """An object that can be weakly referenced, in either process."""

    def __init__(self, value: Any = None) -> None:
        self.value = value

    def method(self) -> Any:
        return self.value

    @classmethod
    def of_class(cls) -> str:
        return cls.__name__

    @staticmethod
    def static(value: int) -> int:
        return value + 1

    def __call__(self, value: int) -> int:
        return value * 2


def capture(*args: Any, **kwargs: Any) -> Tuple[Tuple[Any, ...], Any]:
    return args, kwargs


def wait_for(path: str) -> str:
    """Return when the file exists: a step that ends when the test says so."""
    until(lambda: os.path.exists(path))
    return path


def arrive_and_wait(here: str, path: str) -> int:
    """Say that this step runs, then wait for the file; the process it runs in."""
    Path(here).touch()
    wait_for(path)
    return os.getpid()


def until(condition: Callable[[], Any], seconds: float = SOON) -> None:
    """Wait until something outside of this process is so; AssertionError if it never is."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.002)


class Gate:
    """Keeps steps running until it is opened; knows when they run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.path = str(folder / "open")
        self._count = 0

    def hold(self, pool: futures.Executor) -> futures.Future[int]:
        """Occupy one worker; returns once it is occupied."""
        self._count += 1
        here = self._folder / f"here-{self._count}"
        future = pool.submit(arrive_and_wait, str(here), self.path)
        until(here.exists)
        return future

    def wait(self) -> str:
        """In this process: until it is open."""
        return wait_for(self.path)

    def open(self) -> None:
        Path(self.path).touch()


@contextlib.contextmanager
def full_pool(folder: Path) -> Iterator[StepPool]:
    """A pool of two workers, both of which are up: tests that share it find the same processes before and after."""
    from mpsteps import StepPool

    with StepPool(2) as pool:
        gate = Gate(folder)
        held = [gate.hold(pool), gate.hold(pool)]
        gate.open()
        futures.wait(held, SOON)
        yield pool


class LeavesTrace:
    """Writes a file when it is collected in another process than it was made in."""

    def __init__(self, path: str) -> None:
        self.path, self.home = path, os.getpid()

    def __del__(self) -> None:
        if os.getpid() != self.home:
            Path(self.path).touch()


def fail_with_a_cause() -> None:
    try:
        raise KeyError("inner")  # the inner line
    except KeyError as error:
        raise ValueError("outer") from error  # the outer line


def open_all() -> None:
    """Until there is no descriptor left, and then raises OSError."""
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    held = []
    while True:
        held.append(open(os.devnull))  # noqa: SIM115


def fail_plainly() -> None:
    raise RuntimeError(123)  # the line that raised


def nested_pool(n: int) -> List[int]:
    from mpsteps import StepPool

    with StepPool(2) as pool:
        return list(pool.map(abs, range(-n, 0)))


def nested_executor(n: int) -> List[int]:
    with futures.ProcessPoolExecutor(2) as pool:
        return list(pool.map(abs, range(-n, 0)))


def nested_mp_pool(n: int) -> List[int]:
    import multiprocessing

    with multiprocessing.Pool(2) as pool:
        found = pool.map(abs, range(-n, 0))
        pool.close()
        pool.join()
    return found


def note(path: str, word: str) -> None:
    """Append a word to a file, in one write."""
    with open(path, "a") as f:
        f.write(f"{word}\n")


def slow_note(path: str, word: str) -> None:
    """Note when this step begins and when it ends, some time later."""
    note(path, f"<{word}")
    time.sleep(0.03)
    note(path, f"{word}>")


def mul(x: int, y: int) -> int:
    return x * y


def fan_in(*values: int) -> int:
    return sum(values)


def pass_unless(value: int, forbidden: int) -> int:
    """What it was given, in no time; ValueError for one value."""
    if value == forbidden:
        raise ValueError(value)
    return value


def count_to(path: str, goal: int, seconds: float = 0, die: bool = False) -> int:
    """The number of this attempt, counted in a file; fails (or dies) before `goal` is reached."""
    with open(path, "a") as f:
        f.write("x")
    attempt = os.path.getsize(path)
    time.sleep(seconds)
    if attempt < goal:
        if die:
            os._exit(9)
        raise RuntimeError(f"attempt {attempt}")
    return attempt


def stubborn_sleep() -> None:
    """Sleep a minute whatever anybody says."""
    import signal

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        time.sleep(1)


def cards(folder: str) -> List[int]:
    """The graphics cards of this step. Fails if another step holds one of them at the same time."""
    from mpsteps import _context

    context = _context.current()
    held = context.getGpuList() if context else []
    for card in held:
        os.mkdir(os.path.join(folder, str(card)))
    time.sleep(0.02)
    for card in held:
        os.rmdir(os.path.join(folder, str(card)))
    return held
