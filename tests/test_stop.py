"""`mpsteps stop`: a run of another process ends, and can be resumed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Iterator, List

import pytest
from protocols import wait_until

from mpsteps._rundir import RunDirectory
from mpsteps.cli import main
from mpsteps.cli.stop import _coordinator
from mpsteps.errors import UsageError

pytestmark = [pytest.mark.once, pytest.mark.skipif(sys.platform == "win32", reason="there are no runs")]

SOURCE = """
import os, time
from mpsteps import STEPS_PARALLEL, Protocol

class Gates(Protocol):
    stepsExecutionMode = STEPS_PARALLEL
    def _defineParams(self, form):
        form.addSection(label='Gates')
        form.addParallelSection(threads=2)
    def _insertAllSteps(self):
        for i in range(6):
            self._insertFunctionStep(self.gateStep, i, prerequisites=[])
    def gateStep(self, i):
        open(self._getExtraPath(f'begun{i}'), 'w').close()
        deadline = time.monotonic() + 120
        while not os.path.exists(self._getExtraPath('go')):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        open(self._getExtraPath(f'ended{i}'), 'w').close()
"""


@pytest.fixture
def running(tmp_path: Path) -> Iterator[subprocess.Popen]:
    """A run in tmp_path/run whose first two steps wait for extra/go."""
    (tmp_path / "gates.py").write_text(SOURCE)
    command = [sys.executable, "-m", "mpsteps", "run", "gates.py:Gates", "--run-dir", "run", "--quiet"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: len(list((tmp_path / "run" / "extra").glob("begun*"))) == 2, "for two steps")
        yield process
    finally:
        process.kill()
        process.wait()


def names(folder: Path, kind: str) -> List[str]:
    return sorted(path.name for path in (folder / "run" / "extra").glob(f"{kind}*"))


def test_running_steps_come_to_their_end_and_no_other_starts(running, tmp_path, capsys):
    """As after one Ctrl-C; a resumed run does what is left, and nothing twice."""
    run = str(tmp_path / "run")
    assert main(["stop", run, "--no-wait"]) == 0
    assert f"pid {running.pid} is told to stop" in capsys.readouterr().err
    assert running.poll() is None
    (tmp_path / "run" / "extra" / "go").touch()
    assert running.wait(60) == -signal.SIGINT or running.returncode == 130
    assert names(tmp_path, "ended") == ["ended0", "ended1"]
    assert names(tmp_path, "begun") == ["begun0", "begun1"]

    assert main(["stop", run]) == 0
    assert "does not run any more: it is aborted" in capsys.readouterr().err
    assert main(["resume", run, "--quiet"]) == 0
    assert len(names(tmp_path, "ended")) == 6


def test_now_ends_the_running_steps_too(running, tmp_path):
    """As SIGTERM does; it waits for the end and says what became of the run."""
    run = str(tmp_path / "run")
    command = [sys.executable, "-m", "mpsteps", "stop", run, "--now"]  # not here: it would reap our child
    stop = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert stop.stdout == f"{run}: aborted\n"
    assert running.wait(60) == -signal.SIGTERM or running.returncode == 143
    assert names(tmp_path, "ended") == []


def test_a_run_that_was_killed_needs_no_stop(running, tmp_path, capsys):
    """Nobody is there who could be told."""
    running.kill()
    running.wait()
    assert main(["stop", str(tmp_path / "run")]) == 0
    assert "does not run any more: it was killed" in capsys.readouterr().err


def test_nobody_else_is_stopped(tmp_path):
    """Not a process that has got the pid since, and none on another host."""
    (tmp_path / "run").mkdir()
    directory = RunDirectory(str(tmp_path / "run"))
    directory.lock()
    directory.close()
    with pytest.raises(UsageError, match="runs on host 'elsewhere', as pid 1: stop it there"):
        _coordinator(directory, {"host": "elsewhere", "pid": 1})
    with pytest.raises(UsageError, match="is not there"):
        _coordinator(directory, {"host": socket.gethostname(), "pid": 2**22 + 1})
    if directory.holds_lock(os.getpid()) is not None:
        with pytest.raises(UsageError, match=f"names pid {os.getpid()}, which does not run it"):
            _coordinator(directory, {"host": socket.gethostname(), "pid": os.getpid()})
        with RunDirectory(str(tmp_path / "run")) as again:
            again.lock()
            assert _coordinator(again, {"host": socket.gethostname(), "pid": os.getpid()}).pid == os.getpid()


def test_what_is_no_run_is_told(tmp_path, capsys):
    """With exit code 2, as for every command."""
    assert main(["stop", str(tmp_path / "nothing")]) == 2
    assert "nothing" in capsys.readouterr().err
