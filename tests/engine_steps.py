"""Steps and protocols of the engine's tests.

Workers import this module by its name, and nothing that only a test needs: importing pytest would be most of what a
worker does.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from typing import Any, Dict, List, NamedTuple, NoReturn, Optional, Tuple

import mpsteps
from mpsteps import STEPS_PARALLEL, IntParam, Protocol, ResultOf

SECONDS = 20.0
"""What anything may take before a test fails."""


def wait_for_file(path: Any) -> None:
    end = time.monotonic() + SECONDS
    while not os.path.exists(path):
        assert time.monotonic() < end, f"waited {SECONDS} s for {path}"
        time.sleep(0.002)


def add(a: int, b: int) -> int:
    return a + b


def my_pid() -> int:
    return os.getpid()


def touch_and_wait(path: str) -> None:
    """Say that the step runs, then run for ever."""
    open(path, "w").close()
    while True:
        time.sleep(100)


def touch_until(path: str, release: str) -> int:
    """Say that the step runs, run until `release` is there."""
    open(path, "w").close()
    wait_for_file(release)
    return os.getpid()


def blob(size: int) -> bytes:
    return b"x" * size


def start_daemon(path: str, how: str) -> int:
    """A program that has detached itself: another session, and for 'twice' no parent of ours either."""
    if how == "setsid":
        child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
        pid = child.pid
    else:
        line = f"(setsid sleep 1000 & echo $! > {path}.tmp; mv {path}.tmp {path}.pid) &"
        subprocess.run(["sh", "-c", line], check=True)
        wait_for_file(f"{path}.pid")
        with open(f"{path}.pid") as f:
            pid = int(f.read())
    return pid


def crash() -> None:
    os.abort()


def hold(path: str) -> None:
    open(path, "w").close()
    time.sleep(1000)


class LoadsForever:
    """As an image, keeps a worker from getting ready."""

    def __reduce__(self) -> Tuple[Any, ...]:
        return time.sleep, (1000,)


# ---- protocols


class Guide(Protocol):
    """The example of Scipion's parallelization guide, with a rendezvous: the first two steps wait until both run."""

    stepsExecutionMode = STEPS_PARALLEL

    def _defineParams(self, form: Any) -> None:
        form.addSection(label="Input")
        form.addParam("count", IntParam, default=4, label="Items")
        form.addParallelSection(threads=2)

    def _insertAllSteps(self) -> None:
        self.intervals: List[Tuple[int, float, float]] = []
        deps = [self._insertFunctionStep(self.processStep, i, prerequisites=[]) for i in range(self.count.get())]
        self._insertFunctionStep(self.createOutputStep, prerequisites=deps)

    def processStep(self, i: int) -> None:
        start = time.monotonic()
        if i < 2:
            open(self._getExtraPath(f"runs-{i}"), "w").close()
            wait_for_file(self._getExtraPath(f"runs-{1 - i}"))
        self.intervals.append((os.getpid(), start, time.monotonic()))

    def createOutputStep(self) -> None:
        assert len(self.intervals) == self.count.get()
        assert all(end <= time.monotonic() for _, _, end in self.intervals)


class Loud(Protocol):
    stepsExecutionMode = STEPS_PARALLEL
    keepGoing = True

    def _insertAllSteps(self) -> None:
        self._insertFunctionStep(self.speakStep, prerequisites=[])
        self._insertFunctionStep(self.dieStep, prerequisites=[])
        self._insertFunctionStep(self.localStep, prerequisites=[])

    def speakStep(self) -> None:
        self.runJob("echo", "a program's output")
        print("hello")

    def dieStep(self) -> None:
        print("goodbye", flush=True)
        os._exit(1)

    @mpsteps.step(local=True)
    def localStep(self) -> None:
        self.runJob("echo", "at home")


MODULUS = 2**61 - 1


def combine(step: int, values: List[int]) -> int:
    total = step * 1_000_003
    for i, value in enumerate(values, 1):
        total = (total * 31 + i * value) % MODULUS
    return total


class Graph(Protocol):
    stepsExecutionMode = STEPS_PARALLEL

    def _insertAllSteps(self) -> None:
        self.path = self._getExtraPath("order")
        for step, node in self.graph.items():
            arguments = [ResultOf(u) for u in node.used]
            assert step == self._insertFunctionStep(
                self.nodeStep, step, *arguments, prerequisites=list(node.prerequisites)
            )
        self.graph = None  # the workers need not know it

    def nodeStep(self, step: int, *values: int) -> Any:
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(fd, b"%d %d\n" % (step, os.getpid()))
        finally:
            os.close(fd)
        return combine(step, list(values))


class Chaos(Graph):
    """The same with steps that fail, for reasons that the graph decides."""

    keepGoing = True

    def nodeStep(self, step: int, *values: int) -> Any:
        value = super().nodeStep(step, *values)
        if step % 37 == 5:
            os._exit(1)
        if step % 23 == 7:
            raise ValueError(step)
        return value


class OddError(Exception):
    """Its __init__ wants other arguments than `args` has."""

    def __init__(self, code: int, *, path: str) -> None:
        super().__init__(f"{code} at {path}")
        self.code = code


def no_memory() -> NoReturn:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()  # noqa: SIM115
    resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), hard))
    try:
        bytearray(1 << 30)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    raise AssertionError("there was memory")


def recursion(n: int = 0) -> int:
    return recursion(n + 1) + 1


def fault(name: str) -> Any:
    """End badly."""
    if name in SIGNALS:
        os.kill(os.getpid(), getattr(signal, name))
    elif name == "segfault":
        ctypes.string_at(0)
    elif name == "abort":
        os.abort()
    elif name.startswith("os._exit"):
        os._exit(int(name.split()[1]))
    elif name.startswith("sys.exit"):
        sys.exit({"None": None, "0": 0, "3": 3, "text": "text"}[name.split()[1]])
    elif name == "KeyboardInterrupt":
        raise KeyboardInterrupt
    elif name == "odd exception":
        raise OddError(7, path="/x")
    elif name == "recursion":
        recursion()
    else:
        assert name == "no memory"
        no_memory()


SIGNALS = ("SIGKILL", "SIGTERM", "SIGBUS", "SIGILL")


class Ends(NamedTuple):
    """What a fault does to the process (`exitcode`) or raises (`error`, `message`)."""

    exitcode: Optional[int] = None
    text: str = ""
    error: str = ""


FAULTS: Dict[str, Ends] = {
    "SIGKILL": Ends(-9, "killed by SIGKILL"),
    "SIGTERM": Ends(-15, "killed by SIGTERM"),
    "SIGBUS": Ends(-7, "killed by SIGBUS"),
    "SIGILL": Ends(-4, "killed by SIGILL"),
    "segfault": Ends(-11, "killed by SIGSEGV"),
    "abort": Ends(-6, "killed by SIGABRT"),
    "os._exit 0": Ends(0, "exit code 0"),
    "os._exit 3": Ends(3, "exit code 3"),
    "os._exit 255": Ends(255, "exit code 255"),
    "sys.exit None": Ends(error="SystemExit"),
    "sys.exit 0": Ends(error="SystemExit", text="0"),
    "sys.exit 3": Ends(error="SystemExit", text="3"),
    "sys.exit text": Ends(error="SystemExit", text="text"),
    "KeyboardInterrupt": Ends(error="KeyboardInterrupt"),
    "odd exception": Ends(error="OddError", text="7 at /x"),
    "recursion": Ends(error="RecursionError", text="recursion"),
    "no memory": Ends(error="MemoryError"),
}
MOMENTS = ("opening the arguments", "in the step", "packing the result", "collecting garbage")

if not sys.platform.startswith("linux"):
    del FAULTS["no memory"]


class Opened:
    """An argument that ends badly when the worker opens it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> Tuple[Any, ...]:
        return fault, (self.name,)

    def __repr__(self) -> str:
        return f"Opened({self.name!r})"


class Packed:
    """A result that ends badly when the worker packs it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> Tuple[Any, ...]:
        fault(self.name)
        return str, ("it survived",)


class Collected:
    """Ends badly when the garbage collector finds it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.myself = self

    def __del__(self) -> None:
        fault(self.name)


class Guilty(Protocol):
    stepsExecutionMode = STEPS_PARALLEL
    keepGoing = True

    def _insertAllSteps(self) -> None:
        self.ids: Dict[str, int] = {}
        for name in FAULTS:
            self._insertFunctionStep(self.siblingStep, name, prerequisites=[])
            if self.moment == MOMENTS[0]:
                step = self._insertFunctionStep(self.openingStep, Opened(name), prerequisites=[])
            else:
                method = {MOMENTS[1]: self.runningStep, MOMENTS[2]: self.packingStep, MOMENTS[3]: self.gcStep}
                step = self._insertFunctionStep(method[self.moment], name, prerequisites=[])
            self.ids[name] = step
            self._insertFunctionStep(self.afterStep, name, prerequisites=[step])
        self._insertFunctionStep(self.lastStep, prerequisites=list(range(1, 3 * len(FAULTS), 3)))

    def siblingStep(self, name: str) -> List[int]:
        return [len(name)]

    def openingStep(self, argument: Any) -> None:
        raise AssertionError("it could be opened")

    def runningStep(self, name: str) -> None:
        print(f"about to end by {name}", flush=True)
        fault(name)

    def packingStep(self, name: str) -> Any:
        return [Packed(name)]

    def gcStep(self, name: str) -> None:
        Collected(name)
        gc.collect()

    def afterStep(self, name: str) -> None:
        """Depends on the guilty one."""

    def lastStep(self) -> List[int]:
        return [os.getpid()]


class Counting(Protocol):
    """Its steps change attributes; some of its workers die."""

    stepsExecutionMode = STEPS_PARALLEL
    keepGoing = True

    def _insertAllSteps(self) -> None:
        self.done: List[int] = []
        self.total = 0
        last = []
        for i in range(12):
            step = self._insertFunctionStep(self.countStep, i, prerequisites=last)
            self._insertFunctionStep(self.dieStep, i, prerequisites=[step])
            last = [step]
        self._insertFunctionStep(self.lookStep, prerequisites=last)

    def countStep(self, i: int) -> None:
        assert self.done == list(range(i)), self.done
        self.done.append(i)
        self.total += i

    def dieStep(self, i: int) -> None:
        self.done.append(-1)  # goes with it
        os.kill(os.getpid(), signal.SIGKILL)

    def lookStep(self) -> Tuple[List[int], int]:
        return self.done, self.total


class Hidden:
    """Lets the process die when it is loaded, or packed, as an attribute of the protocol."""

    def __init__(self, when: str) -> None:
        self.when = when

    def __getstate__(self) -> Dict[str, Any]:
        if self.when == "packed" and os.getppid() != int(os.environ["MPSTEPS_TEST_PARENT"]):
            os._exit(5)
        return {"when": self.when}


class Attribute(Protocol):
    stepsExecutionMode = STEPS_PARALLEL
    keepGoing = True

    def _insertAllSteps(self) -> None:
        self.kept = None
        self._insertFunctionStep(self.changeStep, prerequisites=[])
        self._insertFunctionStep(self.otherStep, prerequisites=[])

    def changeStep(self) -> None:
        self.kept = Hidden("packed")

    def otherStep(self) -> List[int]:
        return [1]


class LastWords(Protocol):
    """Its first worker answers, then dies, while the coordinator looks away."""

    stepsExecutionMode = STEPS_PARALLEL

    def _insertAllSteps(self) -> None:
        self._insertFunctionStep(self.answerAndDieStep, prerequisites=[])
        self._insertFunctionStep(self.otherStep, prerequisites=[])
        for _ in range(6):
            self._insertFunctionStep(self.laterStep, prerequisites=[1])

    def answerAndDieStep(self) -> List[int]:
        wait_for_file(self._getExtraPath("go"))

        def die() -> None:
            time.sleep(0.03)
            os._exit(4)

        threading.Thread(target=die).start()
        return [os.getpid()]

    def otherStep(self) -> None:
        """Its end is what the coordinator is busy with."""

    def laterStep(self) -> None:
        """For which the dead worker would be the next in line."""


class Limited(Protocol):
    stepsExecutionMode = STEPS_PARALLEL
    keepGoing = True

    def _insertAllSteps(self) -> None:
        self._insertFunctionStep(self.hangStep, prerequisites=[])
        self._insertFunctionStep(self.deafStep, prerequisites=[])
        for _ in range(10):
            self._insertFunctionStep(self.quickStep, prerequisites=[])

    @mpsteps.step(timeout=0.2)
    def hangStep(self) -> None:
        signal.pause()

    @mpsteps.step(timeout=0.2)
    def deafStep(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.pause()

    def quickStep(self) -> None:
        """Not concerned."""


class JustInTime(Protocol):
    """Its first step ends when its time is up already and the signal is on its way."""

    stepsExecutionMode = STEPS_PARALLEL

    def _insertAllSteps(self) -> None:
        self._insertFunctionStep(self.lateStep, prerequisites=[])
        self._insertFunctionStep(self.nextStep)

    @mpsteps.step(timeout=0.05)
    def lateStep(self) -> None:
        wait_for_file(self._getExtraPath("expired"))

    def nextStep(self) -> List[int]:
        time.sleep(0.3)  # long enough for the signal to hit it, were it on the same worker
        return [os.getpid()]


class Stubborn(Protocol):
    stepsExecutionMode = STEPS_PARALLEL

    def _insertAllSteps(self) -> None:
        self._insertFunctionStep(self.dieTwiceStep, prerequisites=[])

    @mpsteps.step(retries=2)
    def dieTwiceStep(self) -> List[int]:
        path = self._getExtraPath("attempts")
        with open(path, "ab") as f:
            f.write(b"x")
        attempts = os.path.getsize(path)
        if attempts < 3:
            os._exit(9)
        return [attempts]


class CannotBeLoaded:
    """Travels well and cannot be opened."""

    def __reduce__(self) -> Tuple[Any, ...]:
        return int, ("no number",)


class HeldAttributes(Protocol):
    """Some of its attributes cannot travel; one step uses them, the other does not."""

    stepsExecutionMode = STEPS_PARALLEL
    keepGoing = True

    def _insertAllSteps(self) -> None:
        self.guard = threading.Lock()
        self.odd = CannotBeLoaded()
        self.evil = ExitsWhenPacked()
        for name in ("guard", "odd", "evil"):
            self._insertFunctionStep(self.useStep, name, prerequisites=[])
        self._insertFunctionStep(self.otherStep, prerequisites=[])

    def useStep(self, name: str) -> None:
        getattr(self, name).acquire()

    def otherStep(self) -> List[int]:
        return [5]


class ExitsWhenPacked:
    def __reduce__(self) -> Tuple[Any, ...]:
        raise SystemExit(3)
