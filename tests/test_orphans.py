"""However a coordinator ends, within two seconds nothing of its run is left: no worker, no program that a step has
started, detached or not, no shared memory, no lock. And its journal can be read.

The coordinator is a process of its own, marked by a token in its environment that everything below it inherits.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any, Set

import pytest
from conftest import has_token
from engine_driver import alive, with_path
from engine_steps import SECONDS, wait_for_file

from mpsteps._journal import read_journal
from mpsteps._rundir import RunDirectory

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are found through /proc")

WITHIN = 2.0

SCRIPT = '''
import os, signal, subprocess, sys, time
import mpsteps
from mpsteps.run import run

here = sys.argv[1]

def say(name):
    open(os.path.join(here, name + ".tmp"), "w").close()
    os.rename(os.path.join(here, name + ".tmp"), os.path.join(here, name))

class Prot(mpsteps.Protocol):
    stepsExecutionMode = mpsteps.STEPS_PARALLEL

    def _insertAllSteps(self):
        first = self._insertFunctionStep(self.quickStep, prerequisites=[])
        self._insertFunctionStep(self.programStep, prerequisites=[first])
        self._insertFunctionStep(self.detachedStep, prerequisites=[first])
        self._insertFunctionStep(self.deafStep, prerequisites=[first])
        self._insertFunctionStep(self.neverStep)

    def quickStep(self):
        self.value = 5

    def programStep(self):
        subprocess.Popen(["sh", "-c", "sleep 1000 & sleep 1000"])
        say("program")
        self.runJob("sleep", "1000")

    def detachedStep(self):
        subprocess.Popen(["sleep", "1000"], start_new_session=True)
        deaf = "trap '' TERM INT HUP; sleep 1000; sleep 1000"
        subprocess.run(["sh", "-c", '(setsid sh -c "%s" &) &' % deaf], check=True)
        if os.fork() == 0:  # a daemon as the book has it
            os.setsid()
            if os.fork():
                os._exit(0)
            time.sleep(1000)
            os._exit(0)
        say("detached")
        time.sleep(1000)

    def deafStep(self):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP})
        say("deaf")
        while True:
            time.sleep(1000)

    def neverStep(self):
        raise AssertionError

protocol = Prot(numberOfThreads=3, workingDir=os.path.join(here, "run"))
run(protocol)
'''


class Coordinator:
    """A coordinator with three steps under way, and the processes of its run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.token = f"orphans-{uuid.uuid4().hex}"
        (folder / "script.py").write_text(SCRIPT)
        self.errors = open(folder / "stderr", "w+")  # noqa: SIM115  # closed in `end`
        self.shared_memory = set(os.listdir("/dev/shm"))
        self.process = subprocess.Popen(
            [sys.executable, str(folder / "script.py"), str(folder)], env={**with_path(), "ORPHANS": self.token},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self.errors, start_new_session=True,
        )  # fmt: skip
        for name in ("program", "detached", "deaf"):
            wait_for_file(folder / name)
        deadline = time.monotonic() + SECONDS
        while len(self.processes()) < 14:  # coordinator, zygote, 3 workers, 9 programs
            assert time.monotonic() < deadline, self.processes()

    def processes(self) -> Set[int]:
        return {int(n) for n in os.listdir("/proc") if n.isdigit() and has_token(int(n), self.token) and alive(int(n))}

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.errors.close()
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)

    def nothing_left(self, since: float) -> None:
        while self.processes():
            assert time.monotonic() < since + WITHIN, [open(f"/proc/{p}/cmdline").read() for p in self.processes()]  # noqa: SIM115
            time.sleep(0.005)
        assert set(os.listdir("/dev/shm")) == self.shared_memory

    def told(self) -> str:
        self.errors.seek(0)
        return self.errors.read()


@pytest.fixture
def coordinator(tmp_path: Path) -> Any:
    c = Coordinator(tmp_path)
    yield c
    c.end()


def check_run_directory(run: Path, ended: bool) -> None:
    """Nobody holds the fence or the lock; the journal knows what finished and what was under way."""
    with RunDirectory.open(str(run)) as directory:
        assert directory.lock()
        assert directory.wait_for_fence(WITHIN)  # a dying process gives its memory back first, then its files
        assert directory.fence_holders() == []
    history = read_journal(str(run / "journal.log")).replay()
    assert [r.id for r in history.steps.values() if r.status == "finished"] == [1]
    if not ended:
        assert sorted(r.id for r in history.in_doubt) == [2, 3, 4]


@pytest.mark.parametrize("victim", ["coordinator", "coordinator's group"])
def test_kill_9_of_the_coordinator(victim: str, coordinator: Coordinator, tmp_path: Path) -> None:
    """Alone, or with all that is in its process group: the zygote is in another."""
    start = time.monotonic()
    if victim == "coordinator":
        coordinator.process.kill()
    else:
        os.killpg(coordinator.process.pid, signal.SIGKILL)
    coordinator.nothing_left(start)
    assert coordinator.process.wait(SECONDS) == -signal.SIGKILL
    check_run_directory(tmp_path / "run", ended=False)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_asks_the_coordinator_to_end(
    number: signal.Signals, coordinator: Coordinator, tmp_path: Path
) -> None:
    """It ends its run in order, then itself by that signal, as whoever sent it may expect."""
    start = time.monotonic()
    coordinator.process.send_signal(number)
    assert coordinator.process.wait(SECONDS) in (-number, 128 + number)
    coordinator.nothing_left(start)
    check_run_directory(tmp_path / "run", ended=True)


def test_ctrl_c_twice_ends_what_runs(coordinator: Coordinator, tmp_path: Path) -> None:
    """The first waits for the running steps, which here would take for ever."""
    coordinator.process.send_signal(signal.SIGINT)
    time.sleep(0.05)  # two signals of one number that arrive together are one
    start = time.monotonic()
    coordinator.process.send_signal(signal.SIGINT)
    assert coordinator.process.wait(SECONDS) in (-signal.SIGINT, 128 + signal.SIGINT)
    coordinator.nothing_left(start)
    check_run_directory(tmp_path / "run", ended=True)
    assert "KeyboardInterrupt" in coordinator.told()


def test_kill_9_while_the_coordinator_is_stopped(coordinator: Coordinator, tmp_path: Path) -> None:
    """A laptop that went to sleep, an operator who looked at it first."""
    coordinator.process.send_signal(signal.SIGSTOP)
    start = time.monotonic()
    coordinator.process.kill()
    coordinator.process.wait(SECONDS)
    coordinator.nothing_left(start)
    check_run_directory(tmp_path / "run", ended=False)


def test_a_child_that_the_coordinator_forked_does_not_keep_the_run_alive(tmp_path: Path) -> None:
    """It has copies of all descriptors, but not of the socket on which the zygote waits for our end."""
    script = """
import os, sys, time
import mpsteps
pool = mpsteps.StepPool(2)
pids = pool.submit(lambda: (os.getpid(), os.getppid())).result(20)
if os.fork() == 0:
    time.sleep(1000)
    os._exit(0)
print(*pids, flush=True)
os.kill(os.getpid(), 9)
"""
    token = f"orphans-{uuid.uuid4().hex}"
    worker, zygote = map(int, _run(script, token, tmp_path).split())
    start = time.monotonic()
    while alive(worker) or alive(zygote):
        assert time.monotonic() < start + WITHIN
        time.sleep(0.005)
    for name in os.listdir("/proc"):
        if name.isdigit() and has_token(int(name), token):
            os.kill(int(name), signal.SIGKILL)


def _run(script: str, token: str, folder: Path) -> str:
    """Run it with its output in a file: a pipe would stay open as long as its child lives."""
    with open(folder / "out", "w+") as out:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", script], env={**with_path(), "ORPHANS": token}, stdout=out
        )
        assert process.wait(SECONDS) == -signal.SIGKILL
        out.seek(0)
        return out.read()


def test_the_end_of_an_ordinary_run_takes_daemons_along(tmp_path: Path) -> None:
    """Also after success: nothing that a step has started outlives its run."""
    script = """
import os, subprocess, sys, mpsteps
def daemon():
    subprocess.run(["sh", "-c", "(setsid sleep 1000 &) &"], check=True)
    return 1
with mpsteps.StepPool(2) as pool:
    assert pool.submit(daemon).result(20) == 1
with open("/proc/self/task/%d/children" % os.getpid()) as f:
    print(f.read().split())
"""
    token = f"orphans-{uuid.uuid4().hex}"
    out = subprocess.run(
        [sys.executable, "-c", script], env={**with_path(), "ORPHANS": token}, stdout=subprocess.PIPE, check=True,
        timeout=60,
    ).stdout  # fmt: skip
    assert json.loads(out) == []
    assert [n for n in os.listdir("/proc") if n.isdigit() and has_token(int(n), token) and alive(int(n))] == []


def test_a_run_that_was_killed_can_be_resumed(coordinator: Coordinator, tmp_path: Path) -> None:
    """At once: nothing has to be cleaned up or waited for."""
    coordinator.process.kill()
    coordinator.process.wait(SECONDS)
    script = SCRIPT
    for name in ("programStep", "detachedStep", "deafStep"):
        script = script.replace(f"    def {name}(self):\n", f"    def {name}(self):\n        return\n")
    script = script.replace("raise AssertionError", "assert self.value == 5")
    (tmp_path / "resume.py").write_text(script + "\nprint(protocol.getStatus(), protocol._report.kept)\n")
    command = [sys.executable, str(tmp_path / "resume.py"), str(tmp_path)]
    done = subprocess.run(command, env=with_path(), stdout=subprocess.PIPE, text=True, timeout=60, check=True)
    assert done.stdout.split()[-2:] == ["finished", "1"]

