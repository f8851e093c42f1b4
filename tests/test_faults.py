"""One failure costs one step: hangs, memory, programs and processes of steps, the machine around them.

Each test injects one fault of docs/reliability.md and has `oracle.survive` judge the run. How steps end by themselves
(exceptions, exits, signals) is in test_crashes.
"""

from __future__ import annotations

import logging
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, List, Type

import pytest
from engine_driver import alive, with_path
from engine_steps import SECONDS, wait_for_file
from fault_steps import Busy, OneFault, Patient, Stopped, Tried
from oracle import assert_survived, entries, survive

import mpsteps
from mpsteps import StepError, StepLost, StepOutOfMemory
from mpsteps._journal import read_journal
from mpsteps._memory_watch import MemoryWatch
from mpsteps.engines.processes import ProcessEngine
from mpsteps.errors import StepTimeout
from mpsteps.listeners import Listener
from mpsteps.run import run

pytestmark = pytest.mark.once  # what becomes of processes does not depend on the Python
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="as Linux tells it")


@pytest.fixture
def quick_kill(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL follows SIGTERM soon."""
    monkeypatch.setattr("mpsteps._deadlines.TERM_SECONDS", 0.2)


def make(cls: Type[Any], tmp_path: Path, workers: int = 2, **attributes: Any) -> Any:
    protocol = cls(numberOfThreads=workers, workingDir=str(tmp_path / "run"))
    for name, value in attributes.items():
        setattr(protocol, name, value)
    return protocol


def pid_in(path: str) -> int:
    wait_for_file(path)
    with open(path) as f:
        return int(f.read())


class Watch(Listener):
    """What happened, with its time."""

    def __init__(self) -> None:
        self.calls: List[Any] = []

    def step_running(self, run: Any, step: int) -> None:
        self.calls.append((time.monotonic(), "running", step))

    def step_retried(self, run: Any, step: int, attempt: int, message: str) -> None:
        self.calls.append((time.monotonic(), "retried", step))

    def steps_finished(self, run: Any, steps: Any) -> None:
        self.calls.extend((time.monotonic(), "finished", step) for step in steps)

    def when(self, what: str, step: int) -> List[float]:
        return [t for t, *call in self.calls if call == [what, step]]


# -------------------------------------------------------------------------------------------------------- the error


def test_an_error_names_everything_that_helps(tmp_path: Path) -> None:
    """Step, arguments, worker, cause, memory, and the last 20 lines of 30 and no more."""
    protocol = make(OneFault, tmp_path, fault="talks_and_raises")
    report = survive(protocol, {2: (StepError, "ValueError: no more lines")})
    message = protocol.getSteps()[1].getErrorMessage()
    pid = re.search(r"^step 2 guiltyStep\('talks_and_raises',\) failed in worker (\d+): ValueError", message)
    assert pid, message
    assert re.search(r"^peak memory of its worker: \d+ MB$", message, re.MULTILINE)
    assert re.findall(r"line (\d+)", message) == [str(i) for i in range(10, 30)]
    assert "guiltyStep" in report.failed[0].traceback
    failed = [r for r in read_journal(protocol._getPath("journal.log")).records if r[0] == "failed"]
    assert failed[0][2] == int(pid.group(1))
    assert failed[0][5]["peak_kib"] == report.failed[0].peak_kib


def test_a_lost_step_of_a_pool_tells_its_memory() -> None:
    """As one of a protocol does."""
    with mpsteps.StepPool(1) as pool:
        error = pool.submit_step(os._exit, 3, name="exit").exception(SECONDS)
    assert isinstance(error, StepLost)
    assert re.search(r"step exit\(3,\) failed in worker \d+: .*exit code 3", str(error))
    assert "peak memory of its worker: " in str(error)


# ----------------------------------------------------------------------------------------------------------- memory


@linux
@pytest.mark.parametrize("deed", ["fill_slowly", "program_fills", "detached_program_fills"])
def test_a_step_that_uses_more_than_its_memory_is_ended(deed: str, tmp_path: Path) -> None:
    """Itself, by a program, by a program in a session of its own: with all of them."""
    protocol = make(OneFault, tmp_path, method="smallStep", fault=deed)
    survive(protocol, {2: (StepOutOfMemory, "more than its memory of 80 MB, and was killed")})
    error = protocol.getSteps()[1]._error
    assert error.exitcode == -signal.SIGKILL
    used = float(re.search(r"it used ([\d.]+) [MG]B", str(error)).group(1))
    assert 80 < used < 450


@linux
def test_a_step_that_stays_within_its_memory_is_left_alone(tmp_path: Path) -> None:
    """Address space is no memory, shared memory is nobody's own, and forks share what their parent has."""
    survive(make(OneFault, tmp_path, method="smallStep", fault="stays_within"), {})


@linux
def test_what_a_worker_held_before_is_not_the_steps(tmp_path: Path) -> None:
    """A step of a pool that needs little, after one that left 200 MB in its worker."""
    with mpsteps.StepPool(1) as pool:
        pid = pool.submit(hold, 200 << 20).result(SECONDS)
        assert pool.submit_step(rest, 0.5, memory="50 MB").result(SECONDS) == pid
        error = pool.submit_step(hold, 100 << 20, 5, memory="50 MB").exception(SECONDS)
        assert isinstance(error, StepOutOfMemory), error
        assert pool.submit(os.getpid).result(SECONDS) != pid


_held: List[bytearray] = []


def hold(size: int, seconds: float = 0.0) -> int:
    _held.append(bytearray(b"x") * size)
    time.sleep(seconds)
    return os.getpid()


def rest(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


class Modest(mpsteps.Protocol):
    """A step with a limit, then one without, which takes long enough for three looks."""

    stepsExecutionMode = mpsteps.STEPS_PARALLEL

    def _insertAllSteps(self) -> None:
        first = self._insertFunctionStep(self.modestStep, prerequisites=[])
        self._insertFunctionStep(self.plainStep, prerequisites=[first])

    @mpsteps.step(memory="1 GB")
    def modestStep(self) -> None:
        pass

    def plainStep(self) -> None:
        time.sleep(0.35)


def test_nobody_looks_at_the_memory_of_a_step_that_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking costs a walk through all processes."""
    watch, looks, begun = Watch(), [], []
    look, begin = MemoryWatch.look, MemoryWatch.begin

    def counted(self: MemoryWatch, now: float) -> Any:
        looks.append(time.monotonic())
        return look(self, now)

    def noted(self: MemoryWatch, worker: int, step: int, *rest: Any) -> None:
        begun.append(step)
        begin(self, worker, step, *rest)

    monkeypatch.setattr(MemoryWatch, "look", counted)
    monkeypatch.setattr(MemoryWatch, "begin", noted)
    run(make(Modest, tmp_path, workers=1), listeners=[watch])
    (ended,) = watch.when("finished", 1)
    assert begun == [1]
    assert not [t for t in looks if t > ended]


@linux
def test_a_step_that_the_kernel_ended_for_memory_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counter of this process's group has risen, and the signal was SIGKILL."""
    folder = tmp_path / "cgroup" / "memory" / "job"
    folder.mkdir(parents=True)
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text("4:memory:/job\n")
    counter = folder / "memory.oom_control"
    counter.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    monkeypatch.setenv("MPSTEPS_TEST_COUNTER", str(counter))
    monkeypatch.setattr("mpsteps._machine._PROC", str(tmp_path / "proc"))
    monkeypatch.setattr("mpsteps._machine._CGROUPS", str(tmp_path / "cgroup"))
    protocol = make(OneFault, tmp_path, fault="killed_by_the_kernel")
    survive(protocol, {2: (StepOutOfMemory, "the kernel ran out of memory and ended its worker process (SIGKILL")})
    assert "3 before, 4 now" in protocol.getSteps()[1].getErrorMessage()


@linux
def test_a_kill_by_somebody_else_is_not_put_down_to_memory(tmp_path: Path) -> None:
    """No counter has risen."""
    protocol = make(OneFault, tmp_path, fault="kills_worker_with_open_children")
    survive(protocol, {2: (StepLost, "killed by SIGKILL")})
    assert type(protocol.getSteps()[1]._error) is StepLost


_GROUPS = "/sys/fs/cgroup/memory"


@linux
@pytest.mark.skipif(not os.access(f"{_GROUPS}/cgroup.procs", os.W_OK), reason="needs a memory cgroup of its own (v1)")
def test_the_kernels_own_oom_killer_takes_the_step_and_is_recognised(tmp_path: Path) -> None:
    """In a group of 300 MB: a worker is ended, not the coordinator, and the run goes on."""
    group = f"{_GROUPS}/mpsteps-test-{os.getpid()}"
    try:
        os.mkdir(group)
    except OSError as error:
        pytest.skip(f"no group can be made: {error}")
    try:
        with open(f"{group}/memory.limit_in_bytes", "w") as f:
            f.write(str(300 << 20))
        code = (
            f"import os; open({group!r} + '/cgroup.procs', 'w').write(str(os.getpid()))\n"
            "from pathlib import Path; from test_faults import *\n"
            f"protocol = make(OneFault, Path({str(tmp_path)!r}), fault='takes_all_memory')\n"
            "survive(protocol, {2: (StepOutOfMemory, 'the kernel ran out of memory')}); print('survived')"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], env=with_path(), timeout=60, check=False, capture_output=True, text=True
        )
        assert done.stdout.strip() == "survived", done.stderr
    finally:
        end = time.monotonic() + SECONDS
        while True:  # the kernel takes a moment to forget those who have ended
            try:
                os.rmdir(group)
                break
            except OSError:
                assert time.monotonic() < end
                time.sleep(0.05)


# -------------------------------------------------------------------------------------------------------- the arena


def array_and_kill(line: int, size: int) -> Any:
    """Return a large array; the process dies at that line of putting it into shared memory (0: it does not)."""
    import numpy

    from mpsteps._ipc import arena

    lines = [0]

    def count(frame: Any, event: str, _: Any) -> Any:
        if frame.f_code.co_filename != arena.__file__:
            return None
        lines[0] += event == "line"
        if lines[0] == line:
            os.kill(os.getpid(), signal.SIGKILL)
        if event == "return" and frame.f_code.co_name == "put":
            sys.settrace(None)  # it was not to be
        return count

    if line:
        sys.settrace(count)
    return numpy.full(size, 7.0)


def test_a_worker_killed_at_any_line_of_putting_a_large_result(tmp_path: Path) -> None:
    """Of the code that reserves, fills and announces a block: one step is lost, and the next has its memory."""
    size, line, lost = 1 << 17, 0, 0
    with mpsteps.StepPool(1) as pool:
        while True:
            line += 3
            future = pool.submit(array_and_kill, line, size)
            after = pool.submit(array_and_kill, 0, size).result(SECONDS)
            assert after.shape == (size,)
            assert (after == 7.0).all()
            if future.exception(SECONDS) is None:
                break
            assert isinstance(future.exception(), StepLost)
            lost += 1
    assert lost >= 10, "the lines were not those of the arena"


# ------------------------------------------------------------------------------------------------------------ hangs


@linux
@pytest.mark.usefixtures("quick_kill")
@pytest.mark.parametrize(
    "deed",
    ["sleeps", "spins", "holds_the_gil", "holds_the_gil_deaf", "raises_at_the_signal", "blocks_all_signals",
     "stops_itself", "forks_many"],
)
def test_a_step_that_hangs_is_ended_when_its_time_is_up(deed: str, tmp_path: Path) -> None:
    """However deaf it is, wherever it hangs, whatever it answers; sixty processes more of it do not outlive it."""
    protocol = make(OneFault, tmp_path, method="limitedStep", fault=deed)
    survive(protocol, {2: (StepTimeout, "ran longer than its timeout of 0.4 s and was killed")})


@linux
@pytest.mark.usefixtures("quick_kill")
@pytest.mark.parametrize(("method", "deed"), [("limitedStep", "starts_everything"),
                                              ("guiltyStep", "starts_everything_and_dies")])  # fmt: skip
def test_what_a_step_has_started_ends_with_it(method: str, deed: str, tmp_path: Path) -> None:
    """Programs in its group, in a session of their own, deaf ones, daemons: gone while the run still goes on."""
    left: List[str] = []

    class Look(Listener):
        def step_failed(self, run: Any, step: int, message: str) -> None:
            end = time.monotonic() + SECONDS
            for name in ("group", "session", "deaf", "daemon"):
                pid = pid_in(protocol._getExtraPath(f"pid-{name}"))
                while alive(pid) and time.monotonic() < end:
                    time.sleep(0.005)
                if alive(pid):
                    left.append(name)

    protocol = make(OneFault, tmp_path, method=method, fault=deed)
    kind = (StepTimeout, "timeout of 0.4 s") if method == "limitedStep" else (StepLost, "exit code 9")
    survive(protocol, {2: kind}, listeners=[Look()])
    assert left == []


def test_a_step_that_holds_the_gil_within_its_time_is_not_ended(tmp_path: Path) -> None:
    """Nobody takes silence for death."""
    with mpsteps.StepPool(1) as pool:
        assert pool.submit_step(hold_the_gil, 1.2, timeout=20).result(SECONDS) == os.getpid() or True
        pid = pool.submit(os.getpid).result(SECONDS)
        assert pool.submit_step(hold_the_gil, 0.3, timeout=20).result(SECONDS) == pid


def hold_the_gil(seconds: float) -> int:
    import ctypes

    ctypes.PyDLL(None).usleep(ctypes.c_uint(int(seconds * 1e6)))
    return os.getpid()


@linux
def test_a_stopped_worker_is_told_of_and_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It says who, in which step, and what to do; with SIGCONT the step goes on as if nothing had been."""
    protocol = make(Stopped, tmp_path)

    def stop_and_continue() -> None:
        pid = pid_in(protocol._getExtraPath("pid-stopped"))
        os.kill(pid, signal.SIGSTOP)
        until(lambda: f"kill -CONT {pid}" in caplog.text)
        open(protocol._getExtraPath("go"), "w").close()
        os.kill(pid, signal.SIGCONT)

    with caplog.at_level(logging.WARNING, "mpsteps.engine"), Beside(stop_and_continue):
        survive(protocol, {})
    assert re.search(r"worker process \d+ was stopped by a signal, in step 1: it is waited for", caplog.text)
    assert re.search(r"worker process \d+, which was stopped .*, goes on", caplog.text)


def until(condition: Any) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


class Beside:
    """Run something in a thread beside the block; what it raises is raised at the end."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._error: List[BaseException] = []
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self._call()
        except BaseException as error:
            self._error.append(error)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: Any) -> None:
        self._thread.join()
        if self._error:
            raise self._error[0]


@pytest.mark.parametrize("oversleeps", [True, False])
def test_time_in_which_the_whole_run_was_stopped_is_not_the_steps(
    oversleeps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop wakes 1.5 s later than it wanted: it was stopped, and a step of 0.6 s is not ended for that."""
    monkeypatch.setattr("mpsteps._coordinator.AWAKE_SECONDS", 0.1 if oversleeps else 60.0)
    protocol = make(Patient, tmp_path, workers=1)
    wait, stopped = ProcessEngine.wait, []

    def wait_as_if_stopped(engine: ProcessEngine, timeout: Any) -> Any:
        found = wait(engine, timeout)
        if not stopped and os.path.exists(protocol._getExtraPath("pid-patient")) and not found:
            stopped.append(time.sleep(1.5))
            if oversleeps:  # the other one must still be there when its signal comes, however late that is
                open(protocol._getExtraPath("go"), "w").close()
        return found

    monkeypatch.setattr(ProcessEngine, "wait", wait_as_if_stopped)
    if oversleeps:
        survive(protocol, {})
    else:  # the test sees the difference
        assert [f.step for f in run(protocol, keep_going=True).failed] == [1]
    assert stopped


@pytest.mark.parametrize("jump", [86_400.0, -86_400.0])
def test_jumps_of_the_clock_change_nothing(jump: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Timers, rests and timeouts go by the monotonic clock: a day forwards and back at each look at the other one."""
    real, looks = time.time, [0]

    def jumping() -> float:
        looks[0] += 1
        return real() + (jump if looks[0] % 2 else 0.0)

    monkeypatch.setattr(time, "time", jumping)
    monkeypatch.setattr("mpsteps._deadlines.TERM_SECONDS", 0.2)
    protocol = make(OneFault, tmp_path, method="limitedStep", fault="sleeps")
    survive(protocol, {2: (StepTimeout, "timeout of 0.4 s")})
    assert looks[0] > 10


def test_nothing_that_decides_looks_at_the_wall_clock() -> None:
    """`time.time` is for the journal and for people."""
    package = Path(mpsteps.__file__).parent
    for_people = {"_protocol_run.py", "_recorder.py", "_outcome.py", "run.py", "_journal_format.py", "steps.py",
                  "streaming.py", "_event_lines.py", "_report_data.py"}  # fmt: skip
    files = [p for p in package.rglob("*.py") if p.parent.name not in ("cli", "demo")]
    found = {p.name for p in files if re.search(r"\btime\.time\(|datetime\.now|utcnow", p.read_text("utf-8"))}
    assert found == for_people


# ---------------------------------------------------------------------------------------------------------- retries


def test_each_attempt_is_recorded_and_the_rests_grow(tmp_path: Path) -> None:
    """An exception, then a death, then success; meanwhile the only worker does something else."""
    watch = Watch()
    protocol = make(Tried, tmp_path, workers=1)
    survive(protocol, {}, listeners=[watch])
    assert entries(protocol)[1] == 3
    assert protocol.getSteps()[0].result == [3]
    records = read_journal(protocol._getPath("journal.log")).records
    attempts = [(r[0], r[2] if r[0] == "started" else r[3]) for r in records
                if (r[0] == "started" and 1 in r[4]) or (r[0] in ("failed", "lost") and r[1] == 1)]  # fmt: skip
    assert attempts == [("started", 1), ("failed", 1), ("started", 2), ("lost", 2), ("started", 3)]
    failed, ran = watch.when("retried", 1), watch.when("running", 1)
    rests = [later - before for before, later in zip(failed, ran[1:])]
    assert len(rests) == 2
    assert rests[0] >= 0.15, rests
    assert rests[1] >= 0.3, rests
    assert watch.when("finished", 3)[0] < ran[1], "others waited for a step that rested"


def test_a_run_that_ends_does_not_wait_for_a_step_that_rests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another step fails and the run stops: the one that rests is not run any more, and not waited for."""
    monkeypatch.setattr("mpsteps._rests.FIRST_SECONDS", 1000.0)
    monkeypatch.setattr("mpsteps._rests.LONGEST_SECONDS", 1000.0)
    protocol = make(OneFault, tmp_path, method="stubbornStep", fault="talks_and_raises")
    began = time.monotonic()

    class Stop(Listener):
        def step_retried(self, run: Any, step: int, attempt: int, message: str) -> None:
            run.coordinator.post(run.coordinator.stop_starting)
            run.interrupted = "stopped by the test"

    report = run(protocol, keep_going=True, listeners=[Stop()])
    assert time.monotonic() - began < SECONDS
    assert report.status == "aborted"
    assert entries(protocol)[2] == 1
    assert protocol.getSteps()[1].getStatus() == "new"


def test_what_is_declared_is_what_is_tried(tmp_path: Path) -> None:
    """Three attempts, all of which fail: the error is that of the last."""
    protocol = make(OneFault, tmp_path, method="stubbornStep", fault="talks_and_raises")
    survive(protocol, {2: (StepError, "no more lines")})
    assert entries(protocol)[2] == 3


# -------------------------------------------------------------------------------------------------- other resources


@linux
@pytest.mark.parametrize("workers", [1, 2, 8])
def test_a_step_that_opens_all_descriptors_fails_alone(workers: int, tmp_path: Path) -> None:
    """With "too many open files"; its worker, which has none left, is replaced."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        protocol = make(OneFault, tmp_path, workers=workers, fault="opens_all")
        survive(protocol, {2: (StepError, "Too many open files")})
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_an_overflow_of_the_c_stack_is_one_step(tmp_path: Path) -> None:
    """RecursionError or SIGSEGV, as the version of Python has it."""
    protocol = make(OneFault, tmp_path, fault="overflows_the_stack")
    report = run(protocol, keep_going=True)
    words = "SIGSEGV" if isinstance(protocol.getSteps()[1]._error, StepLost) else "RecursionError"
    assert_survived(protocol, report, {2: (StepError, words)})


_SMALL_SHM = """
set -e
mount -t tmpfs -o size=1m none /dev/shm
exec "$0" -c 'import numpy, mpsteps, os
with mpsteps.StepPool(2) as pool:
    a = numpy.arange(4_000_000.0)
    total = [pool.submit(numpy.cumsum, a) for _ in range(4)]
    assert all(f.result(30)[-1] == a.sum() for f in total)
    shared = mpsteps.shared_array((1_000_000,))
print(os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize, "survived")'
"""


@linux
@pytest.mark.skipif(
    subprocess.call(["unshare", "-m", "true"], stderr=subprocess.DEVNULL) != 0 if sys.platform == "linux" else True,
    reason="needs the right to mount",
)
def test_a_full_dev_shm_does_not_matter(tmp_path: Path) -> None:
    """1 MB of it, and arrays of 32 MB: no SIGBUS, since it is not used."""
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", _SMALL_SHM, sys.executable], env=with_path(), capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout.split() == [str(1 << 20), "survived"], done.stderr


# ------------------------------------------------------------------------------------------ surroundings of the run


_STORM = """
import os, sys
pids = [int(p) for p in sys.argv[1:]]
while True:
    for pid in pids:
        try:
            os.kill(pid, {number})
        except ProcessLookupError:
            pass
"""


@linux
@pytest.mark.parametrize("name", ["SIGWINCH", "SIGCHLD"])
def test_a_storm_of_signals_disturbs_nobody(name: str, tmp_path: Path) -> None:
    """To the coordinator and to the process that starts workers, as fast as another process can send them."""
    number = getattr(signal, name)
    storms: List[Any] = []

    class Begin(Listener):
        def run_started(self, run: Any, kept: int) -> None:
            pids = [str(os.getpid()), str(run.coordinator.engine._zygote.pid)]
            storms.append(subprocess.Popen([sys.executable, "-c", _STORM.format(number=int(number)), *pids]))

    before, hits = signal.getsignal(number), [0]

    def count(*_: Any) -> None:
        hits[0] += 1

    signal.signal(number, count)
    try:
        survive(make(Busy, tmp_path, count=600), {}, listeners=[Begin()])
    finally:
        for storm in storms:
            storm.kill()
            storm.wait()
        signal.signal(number, before)
    assert hits[0] > 10, "there was no storm"


def test_a_lock_that_is_held_in_the_coordinator_is_free_in_workers() -> None:
    """Another thread holds the lock of logging, and a lock of its own, all the time: workers come up and log."""
    from fault_steps import log_something

    held, done = threading.Event(), threading.Event()
    handler = logging.StreamHandler()

    def hold_locks() -> None:
        with logging._lock:  # type: ignore[attr-defined]
            handler.acquire()
            held.set()
            done.wait(SECONDS)
            handler.release()

    thread = threading.Thread(target=hold_locks)
    thread.start()
    try:
        assert held.wait(SECONDS)
        with mpsteps.StepPool(2) as pool:
            assert pool.submit(log_something, "free").result(SECONDS) != os.getpid()
    finally:
        done.set()
        thread.join()


def test_blas_before_and_in_steps(tmp_path: Path) -> None:
    """Its threads run in the coordinator when workers are made, and in the workers: no dead lock, the same numbers."""
    import numpy

    a = numpy.arange(250_000.0).reshape(500, 500) / 250_000
    expected = float((a @ a).sum())
    protocol = make(Busy, tmp_path, count=4)
    survive(protocol, {})
    for step in protocol.getSteps():
        if step.funcName == "dotStep":
            assert step.result[0] == pytest.approx(expected)
    assert float((a @ a).sum()) == expected


_PROGRAM = """
import os, mpsteps
with mpsteps.StepPool(2) as pool:
    assert [f.result(30) for f in [pool.submit(abs, -i) for i in range(50)]] == list(range(50))
    assert pool.submit(os.getpid).result(30) != os.getpid()
print("survived")
"""


@linux
@pytest.mark.parametrize(
    ("options", "environment", "umask"),
    [
        ((), {"TMPDIR": "/no/such/folder"}, None),
        ((), {"TMPDIR": "/proc"}, None),
        ((), {"HOME": None, "USER": None, "LOGNAME": None}, None),
        ((), {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, None),
        ((), {"PYTHONSAFEPATH": "1"}, None),
        ((), {"PYTHONDEVMODE": "1"}, None),
        ((), {"PYTHONHASHSEED": "0", "PYTHONOPTIMIZE": "0"}, None),
        (("-W", "error"), {}, None),
        (("-B", "-s", "-u"), {}, None),
        ((), {}, 0o000),
        ((), {}, 0o777),
        ((), {"TERM": None, "PATH": "/nowhere"}, None),
    ],
    ids=str,
)
def test_odd_environments(options: Any, environment: Any, umask: Any) -> None:
    """Of the whole program: no home, no temporary folder, another locale, any umask, warnings as errors."""
    env = {k: v for k, v in {**with_path(), **environment}.items() if v is not None}
    prefix = f"import os; os.umask({umask})\n" if umask is not None else ""
    done = subprocess.run(
        [sys.executable, *options, "-c", prefix + _PROGRAM], env=env, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert (done.stdout.strip(), done.returncode) == ("survived", 0), done.stderr
    assert "Traceback" not in done.stderr, done.stderr
