"""Ends as a user causes them, at a terminal: Ctrl-C once, twice, three times, in a hurry; the window is closed.

The command line runs in a session of its own on a pseudo-terminal, with two steps that wait for external programs.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any, List, Tuple

import pytest
from conftest import has_token
from engine_driver import alive, with_path

from mpsteps._journal import read_journal

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are found through /proc")

SECONDS = 30.0
WITHIN = 2.0

SOURCE = """
import os
from mpsteps import Protocol, STEPS_PARALLEL, step

class ProtPrograms(Protocol):
    stepsExecutionMode = STEPS_PARALLEL

    def _defineParams(self, form):
        form.addSection(label="Input")
        form.addParallelSection(threads=2)

    def _insertAllSteps(self):
        first = self._insertFunctionStep(self.quickStep, prerequisites=[])
        for i in range(4):
            self._insertFunctionStep(self.programStep, i, prerequisites=[first])

    def quickStep(self):
        self.value = 5

    def programStep(self, i):
        assert self.value == 5
        self.runJob("sh", "-c 'touch %s; while test ! -e go; do sleep 0.02; done'" % f"begun-{i}")
"""


class Terminal:
    """`mpsteps run` on a terminal, with two programs under way."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.token = uuid.uuid4().hex
        self.shown = b""
        (folder / "programs.py").write_text(SOURCE)
        self.leader, follower = os.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", LEAD, sys.executable, "-m", "mpsteps", "run", "programs.py", "--run-dir", "run"],
            stdin=follower, stdout=follower, stderr=follower, cwd=folder, start_new_session=True,
            env={**with_path(), "TERM": "xterm", "ENDS": self.token},
        )  # fmt: skip
        os.close(follower)
        self.wait_for(lambda: len(list(folder.glob("begun-*"))) == 2, "two programs")

    def wait_for(self, condition: Any, what: str) -> None:
        deadline = time.monotonic() + SECONDS
        while not condition():
            self.read(0.01)
            assert time.monotonic() < deadline, f"no {what}: {self.shown.decode()}"

    def read(self, seconds: float) -> bool:
        """Take in what is shown; False: the terminal is closed."""
        if select.select([self.leader], [], [], seconds)[0]:
            try:
                self.shown += os.read(self.leader, 65536)
            except OSError:
                return False
        return True

    def ctrl_c(self) -> None:
        os.write(self.leader, b"\x03")

    def end(self) -> Tuple[int, str]:
        """How it ended, within two seconds and with nothing left; what was shown."""
        deadline = time.monotonic() + WITHIN
        while self.process.poll() is None:
            assert time.monotonic() < deadline, "it goes on"
            if self.leader >= 0:
                self.read(0.01)
        while self.leader >= 0 and select.select([self.leader], [], [], 0)[0] and self.read(0):
            pass
        while self.processes():
            assert time.monotonic() < deadline, [Path(f"/proc/{p}/cmdline").read_bytes() for p in self.processes()]
            time.sleep(0.005)
        return self.process.returncode, self.shown.decode()

    def processes(self) -> List[int]:
        return [int(n) for n in os.listdir("/proc") if n.isdigit() and has_token(int(n), self.token) and alive(int(n))]

    def close(self) -> None:
        if self.leader >= 0:
            os.close(self.leader)
        self.leader = -1

    def resumed(self) -> Any:
        """The report of a resume, whose programs end at once."""
        (self.folder / "go").touch()
        command = [sys.executable, "-m", "mpsteps", "resume", "run", "--json", "--quiet"]
        ended = subprocess.run(
            command, cwd=self.folder, env=with_path(), stdout=subprocess.PIPE, timeout=SECONDS, check=True
        )
        return json.loads(ended.stdout)


# The terminal becomes that of the new session, as a terminal window does it for a shell.
LEAD = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"


@pytest.fixture
def terminal(tmp_path: Path) -> Any:
    t = Terminal(tmp_path)
    yield t
    t.process.kill()
    t.process.wait()
    t.close()
    for pid in t.processes():
        os.kill(pid, signal.SIGKILL)


def status_of(terminal: Terminal) -> Tuple[str, int]:
    history = read_journal(str(terminal.folder / "run" / "journal.log")).replay()
    assert history.steps[1].status == "finished"
    return history.status, len(history.in_doubt)


def test_ctrl_c_once_waits_for_the_programs(terminal: Terminal) -> None:
    """They are not hit by the terminal's signal: two more steps have finished when the run stops, with code 130."""
    terminal.ctrl_c()
    terminal.wait_for(lambda: b"Ctrl-C again ends them" in terminal.shown, "answer")
    assert len(terminal.processes()) > 3
    (terminal.folder / "go").touch()
    code, shown = terminal.end()
    assert code == 130
    assert "Traceback" not in shown
    assert status_of(terminal) == ("aborted", 0)
    report = terminal.resumed()
    assert (report["status"], report["kept"], report["in_doubt"]) == ("finished", 3, [])


def test_ctrl_c_twice_ends_the_programs(terminal: Terminal) -> None:
    """At once and with code 130; nothing is in doubt, since the journal was told."""
    terminal.ctrl_c()
    terminal.wait_for(lambda: b"Ctrl-C again ends them" in terminal.shown, "answer")
    terminal.ctrl_c()
    code, shown = terminal.end()
    assert code == 130
    assert "Traceback" not in shown
    assert status_of(terminal) == ("aborted", 0)
    report = terminal.resumed()
    assert (report["status"], report["kept"], report["in_doubt"]) == ("finished", 1, [])


def test_ctrl_c_three_times_is_out_at_once_whatever_hangs(terminal: Terminal) -> None:
    """Even where the coordinator cannot get on: its zygote is stopped. The process ends by the signal (a shell says
    130), the cursor is shown again, the journal can be read, and the two programs' steps are in doubt."""
    zygote = _children(terminal.process.pid)[0]
    os.kill(zygote, signal.SIGSTOP)
    terminal.ctrl_c()
    terminal.wait_for(lambda: b"Ctrl-C again ends them" in terminal.shown, "answer")
    presses, deadline = 1, time.monotonic() + SECONDS
    while terminal.process.poll() is None:  # two that arrive together are one: as often as it takes
        assert time.monotonic() < deadline
        terminal.ctrl_c()
        presses += 1
        pause = time.monotonic() + 0.02
        while time.monotonic() < pause:
            terminal.read(0.005)
    assert terminal.process.returncode == -signal.SIGINT
    assert presses > 2
    os.kill(zygote, signal.SIGCONT)
    code, shown = terminal.end()
    assert code == -signal.SIGINT
    assert "Traceback" not in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h")
    assert status_of(terminal) == ("running", 2)
    report = terminal.resumed()
    assert (report["status"], report["kept"], report["in_doubt"]) == ("finished", 1, [2, 3])


def test_a_terminal_window_that_is_closed_ends_the_run(terminal: Terminal) -> None:
    """SIGHUP, and nowhere to write any more."""
    terminal.read(0.1)
    terminal.close()
    code, _ = terminal.end()
    assert code == -signal.SIGHUP
    assert status_of(terminal) == ("aborted", 0)
    assert terminal.resumed()["status"] == "finished"


def test_a_reader_that_takes_one_line_does_not_end_the_run(tmp_path: Path) -> None:
    """`mpsteps run ... 2>&1 | head -1`."""
    (tmp_path / "programs.py").write_text(SOURCE)
    (tmp_path / "go").touch()
    command = f"({sys.executable} -m mpsteps run programs.py --run-dir run 2>&1; echo $? > code) | head -1"
    subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, env=with_path(), timeout=SECONDS, check=True, stdout=subprocess.DEVNULL
    )
    assert (tmp_path / "code").read_text() == "0\n"
    assert read_journal(str(tmp_path / "run" / "journal.log")).replay().status == "finished"


def test_a_late_ctrl_c_does_not_keep_the_end_from_being_recorded(tmp_path: Path) -> None:
    """It comes while the run is closed, in a listener: the end is recorded, and then told to the caller."""
    script = f"""
import os, signal, sys
sys.path[:0] = {[p or os.getcwd() for p in sys.path]!r}
from protocols import Custom
from mpsteps.listeners import Listener
from mpsteps.run import run

class Late(Listener):
    def run_ended(self, run, report):
        os.kill(os.getpid(), signal.SIGINT)
        print("closed", flush=True)

class Early(Late):
    def steps_finished(self, run, steps):
        if run.done == run.total:
            run.coordinator.engine.stop_ = run.coordinator.engine.stop
            def stop(at_once=False):
                os.kill(os.getpid(), signal.SIGINT)
                run.coordinator.engine.stop_(at_once)
            run.coordinator.engine.stop = stop

for name, listener in (("late", Late()), ("early", Early())):
    for engine in ("inline", "processes"):
        p = Custom(lambda p: p._insertFunctionStep("add", 1), workingDir=os.path.join({str(tmp_path)!r}, name + engine))
        try:
            run(p, engine, (listener,))
        except KeyboardInterrupt:
            print("interrupted", p.getStatus(), flush=True)
"""
    ended = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, timeout=SECONDS, check=False)
    assert ended.stdout.decode().split("\n")[:-1] == ["closed", "interrupted finished"] * 4
    for name in ("lateinline", "lateprocesses", "earlyinline", "earlyprocesses"):
        assert read_journal(str(tmp_path / name / "journal.log")).replay().status == "finished"


def _children(pid: int) -> List[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
