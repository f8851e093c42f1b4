"""The zygote and what it stands on: the link with its descriptors, the process tree, forks, burials, the end of all."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Iterator, List, Tuple

import pytest
from engine_driver import Driver, alive, at_start, with_path
from engine_steps import SECONDS, crash, hold, start_daemon, wait_for_file

import mpsteps.engines.processes as processes_module
from mpsteps import _proctree
from mpsteps._ipc.link import Link, plug_stdio
from mpsteps._spawn import Spawner
from mpsteps.engines.base import WorkerGone

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc and what hangs on it")


@pytest.fixture
def pair() -> Iterator[Tuple[Link, Link]]:
    a, b = (Link(s) for s in socket.socketpair())
    yield a, b
    a.close()
    b.close()


@contextlib.contextmanager
def files(count: int) -> Iterator[Tuple[int, ...]]:
    fds = tuple(os.open(os.devnull, os.O_RDONLY) for _ in range(count))
    try:
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


# --------------------------------------------------------------------------------------------------------------- link


def test_messages_arrive_whole_and_in_order_however_they_are_cut(pair: Tuple[Link, Link]) -> None:
    """Many in one read, one in many reads."""
    a, b = pair
    sent = [("kill", i, "x" * (i % 7) * 1000) for i in range(100)]
    found: List[Tuple[object, ...]] = []
    for i, message in enumerate(sent):
        a.send(message)
        if i % 3 == 0:
            found += b.receive() or []
    while len(found) < len(sent):
        found += b.receive() or []
    assert found == sent


def test_a_message_cut_anywhere_waits_for_its_rest() -> None:
    """A sender that was interrupted in the middle sends the rest later."""
    raw, other = socket.socketpair()
    with raw:
        link = Link(other)
        whole = socket.socketpair()
        with whole[0], whole[1]:
            Link(whole[0]).send(("forked", 1, 2))
            data = whole[1].recv(1000)
        for i in range(len(data) - 1):
            raw.sendall(data[i : i + 1])
            assert link.receive() == []
        raw.sendall(data[-1:])
        assert link.receive() == [("forked", 1, 2)]
        link.close()


def test_descriptors_arrive_with_their_message_and_are_not_inherited(pair: Tuple[Link, Link]) -> None:
    """In the order of sending, also when several messages wait."""
    a, b = pair
    with files(2) as first, files(3) as second:
        a.send(("fork", 1), first)
        a.send(("kill", 1, 9))
        a.send(("fork", 2), second)
        messages: List[Tuple[object, ...]] = []
        while len(messages) < 3:
            messages += b.receive() or []
        assert [m[0] for m in messages] == ["fork", "kill", "fork"]
        for count in (2, 3):
            fds = b.take_fds(count)
            assert len(fds) == count
            assert not any(os.get_inheritable(fd) for fd in fds)
            for fd in fds:
                os.close(fd)


@linux
@pytest.mark.parametrize("room", [0, 1])
def test_a_receiver_without_room_says_so_and_loses_none_of_the_next(room: int, pair: Tuple[Link, Link]) -> None:
    """What did arrive of the first message is closed; the second message's are its own."""
    a, b = pair
    with files(4) as fds:
        a.send(("fork", 1), fds)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        spare = os.open(os.devnull, os.O_RDONLY)
        os.close(spare)  # the next number that is free
        resource.setrlimit(resource.RLIMIT_NOFILE, (spare + room, hard))
        try:
            assert b.receive() == [("fork", 1)]
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        a.send(("fork", 2), fds[:2])
        assert b.receive() == [("fork", 2)]
        with pytest.raises(OSError, match="Too many open files"):
            b.take_fds(4)
        good = b.take_fds(2)
        for fd in good:
            os.close(fd)


def test_the_end_of_one_side_is_seen_by_the_other(pair: Tuple[Link, Link]) -> None:
    """Also with descriptors that nobody took."""
    a, b = pair
    with files(2) as fds:
        a.send(("fork", 1), fds)
        assert b.receive() == [("fork", 1)]
    a.close()
    assert b.receive() is None
    b.close()
    with pytest.raises(OSError, match="descriptor"):
        a.send(("x",))


def test_plugging_puts_the_null_device_where_a_stream_is_closed(tmp_path: Path) -> None:
    """And touches nothing else."""
    script = f"""
import os, sys
os.close(0); os.close(2)
from mpsteps._ipc.link import plug_stdio
plug_stdio()
open({str(tmp_path / "out")!r}, "w").write(" ".join(os.readlink("/proc/self/fd/%d" % i) for i in (0, 2)))
assert os.get_inheritable(0) and os.get_inheritable(2)
"""
    subprocess.run([sys.executable, "-c", script], check=True, env=with_path())
    assert (tmp_path / "out").read_text() == f"{os.devnull} {os.devnull}"
    before = len(os.listdir("/proc/self/fd"))
    plug_stdio()
    assert len(os.listdir("/proc/self/fd")) == before


# -------------------------------------------------------------------------------------------------------- process tree


@pytest.fixture(params=["proc", "psutil"])
def table(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "psutil":  # as on macOS
        real = os.path.exists
        monkeypatch.setattr(_proctree.os.path, "exists", lambda p: p != "/proc/self/stat" and real(p))
    elif not os.path.exists("/proc/self/stat"):
        pytest.skip("no /proc")
    return str(request.param)


def test_descendants_are_found_over_generations(table: str) -> None:
    """Children, their children, and nobody else."""
    child = subprocess.Popen(["sh", "-c", "sleep 1000 & sleep 1000 & wait"])
    try:
        deadline = time.monotonic() + SECONDS
        while len(_proctree.descendants(child.pid)) < 2:
            assert time.monotonic() < deadline
        below = _proctree.descendants(child.pid)
        assert len(below) == 2
        assert set(below) | {child.pid} <= set(_proctree.descendants(os.getpid()))
        assert _proctree.process_table()[below[0]].parent == child.pid
    finally:
        for pid in [*_proctree.descendants(child.pid), child.pid]:
            _proctree.send_signal(pid, signal.SIGKILL)
        child.wait()


def test_the_dead_are_told_from_the_living(table: str) -> None:
    """A zombie has ended; so has a pid that nobody has."""
    child = subprocess.Popen(["true"])
    deadline = time.monotonic() + SECONDS
    while not _proctree.has_ended(child.pid):
        assert time.monotonic() < deadline
    assert _proctree.process_table()[child.pid].zombie
    assert child.pid not in _proctree.descendants(os.getpid())
    child.wait()
    assert _proctree.has_ended(child.pid)
    assert not _proctree.has_ended(os.getpid())
    _proctree.send_signal(child.pid, signal.SIGKILL)  # nobody there: nothing happens


def test_a_session_is_ended_but_for_its_leader(table: str) -> None:
    """The leader is ours to wait for; it may be dead already, as long as it has not been waited for."""
    leader = subprocess.Popen(["sh", "-c", "sleep 1000 & sleep 1000 & exit 0"], start_new_session=True)
    deadline = time.monotonic() + SECONDS
    while not _proctree.has_ended(leader.pid):
        assert time.monotonic() < deadline
    members = [p for p, e in _proctree.process_table().items() if e.session == leader.pid and not e.zombie]
    assert len(members) == 2
    assert _proctree.end_session(leader.pid)
    assert not any(alive(pid) for pid in members)
    leader.wait()


def test_a_process_name_with_spaces_and_parentheses_does_not_confuse(tmp_path: Path) -> None:
    """/proc writes it unescaped in the middle of the line."""
    program = tmp_path / ") S 1 (x y"
    program.symlink_to("/bin/sleep")
    child = subprocess.Popen([str(program), "1000"])
    try:
        assert _proctree.process_table()[child.pid].parent == os.getpid()
        assert child.pid in _proctree.descendants(os.getpid())
    finally:
        child.kill()
        child.wait()


# ------------------------------------------------------------------------------------------------------------- burials


@linux
@pytest.mark.parametrize("how", ["setsid", "twice"])
@pytest.mark.parametrize("at_once", [True, False])
def test_the_end_of_the_engine_takes_detached_programs_along(how: str, at_once: bool, tmp_path: Path) -> None:
    """They came to the zygote as their subreaper, wherever they went."""
    with Driver(1) as d:
        (w,) = d.up()
        pid = d.call(w, start_daemon, str(tmp_path / "d"), how)
        assert alive(pid)
        d.engine.stop(at_once)
        assert not alive(pid)


@linux
def test_a_killed_worker_takes_all_its_programs_along(tmp_path: Path) -> None:
    """By `kill` (a timeout, a Ctrl-C), also those that left its process group; programs of others stay."""
    with Driver(2) as d:
        a, b = d.up()
        ours = [d.call(a, start_daemon, str(tmp_path / "a"), "setsid")]
        others = d.call(b, start_daemon, str(tmp_path / "b"), "setsid")
        d.send(a, (1, hold, str(tmp_path / "held")))
        wait_for_file(tmp_path / "held")
        d.engine.kill(a, signal.SIGKILL)
        assert d.gone(a).exitcode == -signal.SIGKILL
        deadline = time.monotonic() + 2
        while any(alive(pid) for pid in ours):
            assert time.monotonic() < deadline
        assert alive(others)


def test_a_worker_that_dies_by_itself_takes_its_process_group_along(tmp_path: Path) -> None:
    """Programs that it had started and that went on."""

    def leave_program_and_die() -> None:
        child = subprocess.Popen(["sleep", "1000"])
        (tmp_path / "pid").write_text(str(child.pid))
        os.kill(os.getpid(), signal.SIGSEGV)

    with Driver(1) as d:
        (w,) = d.up()
        d.send(w, (1, leave_program_and_die))
        assert d.gone(w).exitcode == -signal.SIGSEGV
        deadline = time.monotonic() + 2
        while alive(int((tmp_path / "pid").read_text())):
            assert time.monotonic() < deadline


@pytest.mark.versions
def test_burials_without_waitid_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS has it from Python 3.13 only: forced here by taking it away from zygote and coordinator."""
    at_start(monkeypatch, tmp_path, "import os; os.__dict__.pop('waitid', None)")
    monkeypatch.delattr(os, "waitid", raising=False)
    with Driver(2) as d:
        workers = d.up()
        assert d.call(workers[0], hasattr, os, "waitid") is False
        pid = d.call(workers[0], start_daemon, str(tmp_path / "d"), "twice") if sys.platform == "linux" else 0
        for w in workers:
            d.send(w, (w, crash))
        for w in workers:
            gone = d.gone(w)
            assert (gone.exitcode, gone.began) == (-signal.SIGABRT, w)
            assert gone.peak_kib > 1000
        new = d.up(2)
        assert d.engine._zygote is not None
        os.kill(d.engine._zygote.pid, signal.SIGKILL)
        for w in new:
            d.gone(w)
        d.up(2)
        d.engine.stop()
    if pid:
        with contextlib.suppress(ProcessLookupError):  # its zygote was killed: what detached itself is nobody's
            os.kill(pid, signal.SIGKILL)


@linux
def test_orphans_are_reaped_and_no_zombie_stays(tmp_path: Path) -> None:
    """Detached programs that end while the run goes on."""
    with Driver(1) as d:
        (w,) = d.up()
        pids = [d.call(w, start_daemon, str(tmp_path / str(i)), "twice") for i in range(5)]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 2
        while any(os.path.exists(f"/proc/{pid}") for pid in pids):
            assert time.monotonic() < deadline, "not reaped"


@linux
def test_a_system_without_subreapers_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Everything else works; the user is told what does not."""
    at_start(
        monkeypatch,
        tmp_path,
        """
        import ctypes
        class NoPrctl:
            def __init__(self, *args, **options):
                raise OSError("no libc")
        ctypes.CDLL = NoPrctl
        """,
    )
    monkeypatch.setattr(processes_module, "_said_unguarded", False)
    for _ in range(2):
        with Driver(1) as d:
            (w,) = d.up()
            assert d.call(w, abs, -1) == 1
    assert caplog.text.count("PR_SET_CHILD_SUBREAPER") == 1


def test_a_death_while_others_are_being_born_is_heard() -> None:
    """SIGCHLD and requests come in any order."""
    with Driver(4) as d:
        for _ in range(3):
            victims = d.up(4)
            for w in victims:
                d.engine.kill(w, signal.SIGKILL)
                d.turn(0)
            for w in victims:
                assert d.gone(w).exitcode == -signal.SIGKILL
        d.up(4)
        assert len(d.all(WorkerGone)) == 12


def test_a_coordinator_that_dies_while_the_zygote_starts_leaves_nothing(tmp_path: Path) -> None:
    """The socket has ended by the time it is ready to listen."""
    script = """
import os, signal
from mpsteps._spawn import Spawner
spawner = Spawner({})
print(spawner.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, env=with_path())
    assert done.returncode == -signal.SIGKILL
    pid = int(done.stdout)
    deadline = time.monotonic() + SECONDS
    while alive(pid):
        assert time.monotonic() < deadline


def test_a_zygote_alone_can_be_stopped_at_any_time() -> None:
    """At once, or after it has come up."""
    Spawner({}).stop()
    spawner = Spawner({})
    while not spawner.up:
        assert spawner.receive() is not None
    assert spawner.guards == sys.platform.startswith("linux")
    spawner.stop()
    assert _proctree.has_ended(spawner.pid)


def test_the_interpreters_flags_reach_the_workers() -> None:
    """-O, -W and their like: a worker is the same Python as the coordinator."""
    script = """
import sys, mpsteps
with mpsteps.StepPool(1) as pool:
    print(pool.submit(lambda: (sys.flags.optimize, sys.warnoptions)).result(20))
"""
    done = subprocess.run(
        [sys.executable, "-O", "-W", "error::UserWarning", "-c", script], stdout=subprocess.PIPE, check=True,
        env=with_path(), text=True,
    )  # fmt: skip
    assert done.stdout.startswith("(1, ['error::UserWarning'")
