"""A coordinator that is killed at its n-th operation on the outside world, for every n, and again while it recovers.

    python tests/kill_points.py inline FOLDER [quick]
    python tests/kill_points.py processes FOLDER [quick]

And two relatives: the disk fails at any operation of the journal's; a signal comes at any bytecode of the loop::

    python tests/kill_points.py disk FOLDER [quick]
    python tests/kill_points.py signals FOLDER [quick]

Operations are those after which something outside has changed: the journal's (write, sync, truncate, allocate, close),
what goes to the zygote and into the lanes, and the removal of files. At each the process is killed before it, after it
and, where it is a write, in the middle. It runs in forks of a small process, so that each costs a hundredth of a
second. Prints how many operations there were, and how many kills.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any, Callable, List, Optional, Tuple

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

from kills import check_once

from mpsteps import STEPS_PARALLEL, Protocol, StringParam
from mpsteps._coordinator import Coordinator
from mpsteps._ipc.link import Link
from mpsteps._journal import read_journal
from mpsteps._private_files import Disk
from mpsteps.engines.processes import ProcessEngine
from mpsteps.errors import JournalError
from mpsteps.run import run

STEPS = 7
FULL, STOPPED = 3, 4  # exit codes: ended by a JournalError, by Ctrl-C
WHEN = ("before", "in the middle", "after")


class Small(Protocol):
    """Seven steps, two of them at a time, with changes of self."""

    stepsExecutionMode = STEPS_PARALLEL

    def _defineParams(self, form: Any) -> None:
        form.addSection(label="Input")
        form.addParam("entered", StringParam, default="", label="File")
        form.addParallelSection(threads=2)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.log: List[int] = []

    def _insertAllSteps(self) -> None:
        first = self._insertFunctionStep(self.workStep, 0, prerequisites=[])
        ids = [self._insertFunctionStep(self.workStep, i, prerequisites=[first]) for i in range(1, STEPS - 1)]
        self._insertFunctionStep(self.lastStep, STEPS - 1, prerequisites=ids)

    def workStep(self, number: int) -> Any:
        fd = os.open(self.entered.get(), os.O_WRONLY | os.O_APPEND)
        os.write(fd, f"{number}\n".encode())
        os.close(fd)
        self.log.append(number)
        return {"number": number}

    def lastStep(self, number: int) -> None:
        self.workStep(number)
        assert sorted(self.log) == list(range(STEPS)), self.log


class Killer:
    """Kills this process at operation `number`, from 1; or makes it fail there, "once" or "from then on"."""

    def __init__(self, number: int, when: str) -> None:
        self.number, self.when, self.count = number, when, 0
        if when == "signal":
            self._signal_at(number)
            return
        if when in ("once", "from then on"):
            for name, code in (("write", errno.ENOSPC), ("allocate", errno.ENOSPC), ("sync", errno.EIO)):
                setattr(Disk, name, self._failing(getattr(Disk, name), code))
            return
        for owner, name in (
            (Disk, "write"), (Disk, "sync"), (Disk, "truncate"), (Disk, "allocate"), (Disk, "close"),
            (ProcessEngine, "send"), (Link, "send"), (os, "unlink"), (os, "rename"),
        ):  # fmt: skip
            setattr(owner, name, self._watched(getattr(owner, name), name == "write"))

    def _failing(self, function: Callable[..., Any], code: int) -> Callable[..., Any]:
        def failing(*args: Any) -> Any:
            self.count += 1
            if self.count == self.number or (self.when == "from then on" and 0 < self.number < self.count):
                raise OSError(code, os.strerror(code))
            return function(*args)

        return failing

    def _signal_at(self, number: int) -> None:
        """SIGINT or SIGTERM, by turns, at this bytecode of the loop and of what it calls in the modules around it."""
        watched = tuple(f"{name}.py" for name in ("_coordinator", "_protocol_run", "scheduler", "inline", "_recorder"))

        def trace(frame: Any, event: str, _: Any) -> Any:
            if not frame.f_code.co_filename.endswith(watched):
                return None
            frame.f_trace_opcodes = True
            if event == "opcode":
                self.count += 1
                if self.count == number:
                    signal.raise_signal(signal.SIGINT if number % 2 else signal.SIGTERM)
            return trace

        def traced(coordinator: Coordinator) -> None:
            sys._getframe().f_trace_opcodes = True  # 3.12 looks for it when settrace is called
            sys.settrace(trace)
            try:
                loop(coordinator)
            finally:
                sys.settrace(None)

        loop, Coordinator.run = Coordinator.run, traced  # type: ignore[method-assign]

    def _watched(self, function: Callable[..., Any], writes: bool) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            if self.count != self.number:
                return function(*args, **kwargs)
            if self.when == "after":
                function(*args, **kwargs)
            elif self.when == "in the middle" and writes:
                disk, fd, data = args
                function(disk, fd, data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError("killed, and goes on")

        return watched


def life(engine: str, folder: str, durability: str, number: int = 0, when: str = "") -> Optional[int]:
    """One coordinator in a fork; None: it came to its end before it should, else how many operations it took to finish
    the run."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(reader)
            killer = Killer(number, when)
            protocol = Small(workingDir=os.path.join(folder, "run"), entered=os.path.join(folder, "entered"))
            report = run(protocol, engine, durability=durability)
            assert report.ok, report.message
            os.write(writer, str(killer.count).encode())
            code = 0
        except JournalError:
            code = FULL
            if when not in ("once", "from then on"):
                raise
        except KeyboardInterrupt:
            code = STOPPED
            if when != "signal":
                raise
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(code)
    os.close(writer)
    with open(reader, "rb") as f:
        told = f.read()
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == (signal.SIGTERM if when == "signal" else signal.SIGKILL):
        return None
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) in (FULL, STOPPED):
        return None
    assert os.WEXITSTATUS(status) == 0, f"killed {when} operation {number}, it ended with status {status}"
    return int(told)


def _journal_or_nothing(folder: str) -> None:
    journal, entered = os.path.join(folder, "run", "journal.log"), os.path.join(folder, "entered")
    if os.path.exists(journal):
        check_once(journal, entered)
    else:
        assert os.path.getsize(entered) == 0, "steps ran before there was a journal"


def sweep(engine: str, folder: str, again: bool, whole: bool = True) -> Tuple[int, int]:
    """Every operation; and then, if `again`, every operation of the recovery. Operations, kills. `whole`: in every way,
    else one of them at each, by turns."""
    kills = survived = number = 0
    for number in itertools.count(1):
        ways = list(zip(WHEN, ("process", "power", "process")))
        ways = ways if whole else [ways[number % 3]]
        for when, durability in ways:
            first = os.path.join(folder, f"{number}-{WHEN.index(when)}")
            os.mkdir(first)
            Path(first, "entered").touch()
            if life(engine, first, durability, number, when) is not None:
                survived += 1
            else:
                survived = 0
                kills += 1
                _journal_or_nothing(first)
                if again:
                    kills += _recoveries(engine, first, durability, WHEN[(number + 1) % 3])
                else:
                    _finish(engine, first, durability)
            shutil.rmtree(first)
        if survived == len(WHEN):  # in a row: the ways differ in how many operations there are
            return number - 1, kills
    return number, kills


def disk_faults(folder: str, whole: bool) -> Tuple[int, int]:
    """Every write, reservation and sync of the journal fails, once or from then on. Operations, failed runs."""
    failed = survived = number = 0
    for number in itertools.count(1):
        for when, durability in itertools.product(("once", "from then on"), ("process", "power")):
            if not whole and number % 2 == (durability == "power"):
                continue
            here = os.path.join(folder, f"{number}-{len(when)}-{durability}")
            os.mkdir(here)
            Path(here, "entered").touch()
            if life("inline", here, durability, number, when) is None:
                survived = 0
                failed += 1
                _journal_or_nothing(here)
            else:  # also: the reserve has helped
                survived += 1
            _finish("inline", here, "process")
            shutil.rmtree(here)
        if survived >= 8:
            break
    return number, failed


def signals(folder: str, whole: bool) -> Tuple[int, int]:
    """A signal at every bytecode, or at every 61st: the run ends by it, in order: nothing is in doubt."""
    stopped, number = 0, 1
    while True:
        here = os.path.join(folder, str(number))
        os.mkdir(here)
        Path(here, "entered").touch()
        count = life("inline", here, "process", number, "signal")
        history = read_journal(os.path.join(here, "run", "journal.log")).replay()
        if count is None:
            stopped += 1
            assert history.status in ("aborted", "finished"), f"bytecode {number}: {history.status}"
        assert history.in_doubt == [], f"bytecode {number}: {history.in_doubt}"
        _finish("inline", here, "process")
        shutil.rmtree(here)
        if count is not None and count < number:
            return count, stopped
        number += 1 if whole else 61


def _recoveries(engine: str, first: str, durability: str, when: str) -> int:
    """A copy of what the first kill has left is recovered, and killed at each operation of that."""
    for number in itertools.count(1):
        second = f"{first}-again"
        shutil.copytree(first, second)
        killed = life(engine, second, durability, number, when) is None
        _finish(engine, second, durability)
        shutil.rmtree(second)
        if not killed:
            return number - 1
    return 0


def _finish(engine: str, folder: str, durability: str) -> None:
    _journal_or_nothing(folder)
    life(engine, folder, durability)
    _, finished = check_once(os.path.join(folder, "run", "journal.log"), os.path.join(folder, "entered"))
    assert finished == set(range(STEPS)), finished
    left = set(os.listdir(os.path.join(folder, "run")))
    assert left <= {"extra", "tmp", "logs", "journal.log", "run.lock", "workers.fence"}, left


def main(what: str, folder: str, whole: bool) -> Tuple[int, int]:
    """From the command line."""
    if what == "disk":
        return disk_faults(folder, whole)
    if what == "signals":
        return signals(folder, whole)
    return sweep(what, folder, what == "inline", whole)


if __name__ == "__main__":
    print(*main(sys.argv[1], sys.argv[2], sys.argv[3:] != ["quick"]))
