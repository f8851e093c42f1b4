"""Protocols whose steps do to themselves, to their worker or to the machine what real ones do now and then.

Workers import this module by its name, and nothing that only a test needs.
"""

from __future__ import annotations

import ctypes
import gc
import locale
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from typing import Any, Dict, List

from engine_steps import SECONDS, wait_for_file

import mpsteps
from mpsteps import STEPS_PARALLEL, Protocol, _context


class Witnessed(Protocol):
    """Its steps say when they are entered. `oracle.survive` judges the run; the last step must be `freshStep`."""

    stepsExecutionMode = STEPS_PARALLEL

    def enter(self) -> None:
        context = _context.current()
        fd = os.open(self._getExtraPath("entered"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(fd, b"%d %d %d\n" % (context.step, context.attempt, os.getpid()))
        os.close(fd)

    def retriesOf(self, step: Any) -> int:
        options = getattr(getattr(self, step._funcName), "__mpsteps__", None)
        return options.retries if options else 0

    def siblingStep(self, name: str) -> List[int]:
        self.enter()
        return [os.getpid()]

    def freshStep(self, name: str) -> List[int]:
        self.enter()
        return [os.getpid()]


class OneFault(Witnessed):
    """`fault(name)` between siblings, and one that depends on it. `method` is the guilty step's; it is step 2."""

    method = "guiltyStep"
    fault = ""

    def _insertAllSteps(self) -> None:
        before = self._insertFunctionStep(self.siblingStep, "before", prerequisites=[])
        guilty = self._insertFunctionStep(getattr(self, self.method), self.fault, prerequisites=[])
        self._insertFunctionStep(self.siblingStep, "after", prerequisites=[guilty])
        others = [self._insertFunctionStep(self.siblingStep, f"beside {i}", prerequisites=[]) for i in range(6)]
        self._insertFunctionStep(self.freshStep, "last", prerequisites=[before, *others])

    def guiltyStep(self, name: str) -> Any:
        self.enter()
        return DEEDS[name](self)

    @mpsteps.step(timeout=0.4)
    def limitedStep(self, name: str) -> Any:
        self.enter()
        return DEEDS[name](self)

    @mpsteps.step(memory="80 MB")
    def smallStep(self, name: str) -> Any:
        self.enter()
        return DEEDS[name](self)

    @mpsteps.step(retries=2)
    def stubbornStep(self, name: str) -> Any:
        self.enter()
        return DEEDS[name](self)


# ------------------------------------------------------------------------------------------- deeds of a guilty step


def fill(count: int) -> bytearray:
    """Take this much memory, for good."""
    data = bytearray(count)
    for i in range(0, count, 4096):
        data[i] = 1
    return data


def fill_slowly(_: Any) -> None:
    kept = []
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:  # 20 MB in 10 ms: it is to be caught, not to hurt the machine
        if len(kept) < 20:
            kept.append(fill(20 << 20))
        time.sleep(0.01)
    raise AssertionError("nobody has noticed")


FILL = "import time; data = bytearray(b'x') * (200 << 20); time.sleep(1000)"


def program_fills(_: Any) -> None:
    subprocess.run([sys.executable, "-c", FILL], check=False)


def detached_program_fills(_: Any) -> None:
    subprocess.run([sys.executable, "-c", FILL], check=False, start_new_session=True)


def stays_within(_: Any) -> List[int]:
    """Much address space, a little memory; forks that share what they have with their parent; shared memory."""
    kept = fill(30 << 20)
    space = [bytearray(0), mmap_untouched(1 << 30)]
    array = mpsteps.shared_array((96 << 20,), "uint8")
    array[:] = 1
    pids = []
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            time.sleep(0.6)
            os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)
    return [len(kept), len(space)]


def mmap_untouched(size: int) -> Any:
    import mmap

    return mmap.mmap(-1, size)


def sleeps(_: Any) -> None:
    time.sleep(1000)


def holds_the_gil(_: Any) -> None:
    ctypes.PyDLL(None).usleep(ctypes.c_uint(20_000_000))


def holds_the_gil_deaf(_: Any) -> None:
    signal.signal(signal.SIGTERM, lambda *_: None)  # Python would run it only after the call
    while True:
        ctypes.PyDLL(None).usleep(ctypes.c_uint(20_000_000))


def raises_at_the_signal(_: Any) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
    time.sleep(1000)


def blocks_all_signals(_: Any) -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    time.sleep(1000)


def spins(_: Any) -> None:
    while True:
        pass


def stops_itself(_: Any) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(1000)


def note_pid(protocol: Any, name: str, pid: int) -> None:
    path = protocol._getExtraPath(f"pid-{name}")
    with open(path + ".new", "w") as f:
        f.write(str(pid))
    os.rename(path + ".new", path)


def starts_everything(protocol: Any) -> None:
    """Programs of every kind: in the group, in a session of their own, deaf, detached twice; then hang."""
    note_pid(protocol, "group", subprocess.Popen(["sleep", "1000"]).pid)
    note_pid(protocol, "session", subprocess.Popen(["sleep", "1000"], start_new_session=True).pid)
    note_pid(protocol, "deaf", subprocess.Popen(["sh", "-c", "trap '' TERM; while :; do sleep 1000; done"]).pid)
    path = protocol._getExtraPath("pid-daemon")
    subprocess.run(["sh", "-c", f"(setsid sleep 1000 & echo $! > {path}.new; mv {path}.new {path}) &"], check=True)
    wait_for_file(path)
    time.sleep(1000)


def starts_everything_and_dies(protocol: Any) -> None:
    dying = threading.Timer(0.3, os._exit, (9,))
    dying.start()
    starts_everything(protocol)


def forks_many(protocol: Any) -> None:
    """Sixty processes, half of them in sessions of their own, each of which would fork more if it could."""
    for i in range(60):
        if os.fork() == 0:
            if i % 2:
                os.setsid()
            while True:
                time.sleep(1000)
    time.sleep(1000)


def overflows_the_stack(_: Any) -> None:
    """By Python: an error. In C, it depends on the version: RecursionError or SIGSEGV."""
    nested: Any = []
    for _i in range(10**6):
        nested = [nested]
    try:
        repr(nested)
    finally:
        gc.disable()  # to take it apart would overflow as well
        nested = None


def kills_worker_with_open_children(_: Any) -> None:
    subprocess.Popen(["sleep", "1000"])
    os.kill(os.getpid(), signal.SIGKILL)


def opens_all(_: Any) -> None:
    kept = []
    while True:
        kept.append(os.open(os.devnull, os.O_RDONLY))
        keep_for_ever.append(kept[-1])


keep_for_ever: List[Any] = []


def talks_and_raises(_: Any) -> None:
    for i in range(30):
        print(f"line {i}")
    raise ValueError("no more lines")


def killed_by_the_kernel(protocol: Any) -> None:
    """As far as one can see: the counter has risen, and the signal comes."""
    with open(os.environ["MPSTEPS_TEST_COUNTER"], "w") as f:
        f.write("oom_kill_disable 0\nunder_oom 0\noom_kill 4\n")
    os.kill(os.getpid(), signal.SIGKILL)


def takes_all_memory(_: Any) -> None:
    kept = []
    while True:
        kept.append(fill(10 << 20))


DEEDS: Dict[str, Any] = {f.__name__: f for f in (
    fill_slowly, program_fills, detached_program_fills, stays_within, sleeps, holds_the_gil, holds_the_gil_deaf,
    raises_at_the_signal, blocks_all_signals, spins, stops_itself, starts_everything, starts_everything_and_dies,
    forks_many, overflows_the_stack, kills_worker_with_open_children, opens_all, talks_and_raises,
    killed_by_the_kernel, takes_all_memory,
)}  # fmt: skip


class Stopped(Witnessed):
    """Its step 1 is stopped by the test, and goes on."""

    def _insertAllSteps(self) -> None:
        self._insertFunctionStep(self.waitStep, "stopped", prerequisites=[])
        self._insertFunctionStep(self.siblingStep, "beside", prerequisites=[])
        self._insertFunctionStep(self.freshStep, "last", prerequisites=[1])

    def waitStep(self, name: str) -> List[int]:
        self.enter()
        note_pid(self, "stopped", os.getpid())
        wait_for_file(self._getExtraPath("go"))
        return [os.getpid()]


class Patient(Witnessed):
    """A step with a timeout, which ends well when the test says so."""

    def _insertAllSteps(self) -> None:
        self._insertFunctionStep(self.waitStep, "patient", prerequisites=[])
        self._insertFunctionStep(self.freshStep, "last", prerequisites=[1])

    @mpsteps.step(timeout=0.6)
    def waitStep(self, name: str) -> List[int]:
        self.enter()
        note_pid(self, "patient", os.getpid())
        wait_for_file(self._getExtraPath("go"))
        return [os.getpid()]


class Tried(Witnessed):
    """Fails twice, then succeeds. Its worker has other things to do meanwhile."""

    def _insertAllSteps(self) -> None:
        self._insertFunctionStep(self.tryStep, "tried", prerequisites=[])
        others = [self._insertFunctionStep(self.siblingStep, f"{i}", prerequisites=[]) for i in range(3)]
        self._insertFunctionStep(self.freshStep, "last", prerequisites=[1, *others])

    @mpsteps.step(retries=2)
    def tryStep(self, name: str) -> Any:
        self.enter()
        attempt = _context.current().attempt
        if attempt == 1:
            raise ValueError("not yet")
        if attempt == 2:
            os._exit(9)
        return [attempt]


# ------------------------------------------------------------------------------------------------- surroundings


def look() -> Dict[str, Any]:
    """What a step finds around itself."""
    return {
        "directory": os.getcwd(),
        "environment": dict(os.environ),
        "umask": _umask(),
        "handlers": [str(signal.getsignal(n)) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGALRM)],
        "mask": sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ()))),
        "timer": signal.getitimer(signal.ITIMER_REAL),
        "locale": locale.setlocale(locale.LC_ALL),
        "files": resource.getrlimit(resource.RLIMIT_NOFILE),
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "cores": sorted(os.sched_getaffinity(0)),
        "output": [os.fstat(fd).st_ino for fd in (1, 2)],
        "streams": [type(s).__name__ for s in (sys.stdin, sys.stdout, sys.stderr)],
        "descriptors": len(os.listdir("/proc/self/fd")) < 100,
    }


def _umask() -> int:
    mask = os.umask(0o77)
    os.umask(mask)
    return mask


def changes_directory() -> None:
    os.chdir("/")


def changes_environment() -> None:
    os.environ["MPSTEPS_TEST_NEW"] = "1"
    os.environ["HOME"] = "/nowhere"
    del os.environ["PATH"]


def replaces_environment() -> None:
    os.environ = {"A": "b"}  # type: ignore[assignment]


def changes_umask() -> None:
    os.umask(0o123)


def changes_handlers() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, lambda *_: None)


def ignores_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def changes_mask() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGUSR1))


def sets_an_alarm() -> None:
    signal.setitimer(signal.ITIMER_REAL, 0.5)  # which would end the next step but one


def changes_wakeup() -> None:
    _, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write)


def changes_locale() -> None:
    locale.setlocale(locale.LC_ALL, "C")


def changes_limits() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard // 2, hard))


def changes_priority() -> None:
    os.nice(5)


def changes_cores() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def closes_streams() -> None:
    sys.stdout.close()
    sys.stderr.close()


def replaces_streams() -> None:
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def redirects_output() -> None:
    fd = os.open(os.devnull, os.O_WRONLY)
    os.dup2(fd, 1)
    os.dup2(fd, 2)


def closes_descriptors() -> None:
    os.closerange(0, 256)


def leaves_descriptors_open() -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    keep_for_ever.extend(os.open(os.devnull, os.O_RDONLY) for _ in range(soft // 2 + 10))


def moves_the_process() -> None:
    """Several at once."""
    changes_directory()
    changes_environment()
    changes_umask()
    changes_mask()


CHANGES = [
    changes_directory, changes_environment, replaces_environment, changes_umask, changes_handlers, ignores_signals,
    changes_mask, sets_an_alarm, changes_wakeup, changes_locale, changes_limits, changes_priority, changes_cores,
    closes_streams, replaces_streams, redirects_output, closes_descriptors, leaves_descriptors_open, moves_the_process,
]  # fmt: skip
REPLACED = ("closes_descriptors", "leaves_descriptors_open")
"""After these there is nothing to be put back: the worker is replaced."""


class Tidy(Witnessed):
    """Looks, changes, looks again, in one worker. Short steps, which are told in lanes, and several of each."""

    change = ""
    rounds = 3

    def _insertAllSteps(self) -> None:
        for _ in range(self.rounds):
            self._insertFunctionStep(self.lookStep, "first")
            self._insertFunctionStep(self.changeStep, self.change)
            self._insertFunctionStep(self.lookStep, "again")
        self._insertFunctionStep(self.freshStep, "last")

    def lookStep(self, when: str) -> Dict[str, Any]:
        self.enter()
        print("I can speak")
        found = look()
        found["environment"].pop("MPSTEPS_WORKER")
        return {"pid": os.getpid(), **found}

    def changeStep(self, name: str) -> List[int]:
        self.enter()
        print("before")
        pid = os.getpid()
        next(f for f in CHANGES if f.__name__ == name)()
        return [pid]


class ForksAndReturns(Witnessed):
    """A child of a step comes back from the step as its parent does: there must not be two workers then."""

    def _insertAllSteps(self) -> None:
        for how in ("returns", "exits", "raises", "asks"):
            self._insertFunctionStep(self.forkStep, how)
        self._insertFunctionStep(self.freshStep, "last")

    def forkStep(self, how: str) -> List[int]:
        self.enter()
        pid = os.fork()
        if pid == 0:
            if how == "exits":
                sys.exit(3)
            if how == "raises":
                raise KeyError("in the child")
            if how == "asks":
                self._insertFunctionStep(self.siblingStep, "never")
            return [0]
        _, status = os.waitpid(pid, 0)
        return [os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)]


class SetByImport(Witnessed):
    """A module that sets a variable when it is imported: it is imported once, and the variable must stay."""

    def _insertAllSteps(self) -> None:
        for _ in range(3):
            self._insertFunctionStep(self.importStep, "import")
        self._insertFunctionStep(self.freshStep, "last")

    def importStep(self, name: str) -> List[Any]:
        self.enter()
        sys.path.insert(0, self.folder)
        try:
            import sets_a_variable  # noqa: F401
        finally:
            sys.path.pop(0)
        return [os.environ.get("MPSTEPS_TEST_SET_BY_IMPORT"), os.getpid()]


# ---------------------------------------------------------------------------------------------------- environment


class Busy(Witnessed):
    """Many short steps and some that compute with numpy."""

    count = 200

    def _insertAllSteps(self) -> None:
        deps = [self._insertFunctionStep(self.siblingStep, str(i), prerequisites=[]) for i in range(self.count)]
        deps += [self._insertFunctionStep(self.dotStep, "dot", prerequisites=[]) for _ in range(4)]
        self._insertFunctionStep(self.freshStep, "last", prerequisites=deps)

    def dotStep(self, name: str) -> List[float]:
        self.enter()
        import numpy

        a = numpy.arange(250_000.0).reshape(500, 500) / 250_000
        return [float((a @ a).sum())]


def log_something(text: str) -> int:
    logging.getLogger("steps").warning(text)
    return os.getpid()
