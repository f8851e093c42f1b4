"""The journal's writer under kills, interrupts, full and failing disks: the file is always a readable prefix."""

from __future__ import annotations

import errno
import gc
import itertools
import os
import resource
import shutil
import signal
import subprocess
import sys

import pytest

from mpsteps._journal import Disk, JournalHeader, JournalWriter, parse_journal, read_journal
from mpsteps.errors import JournalError

HEADER = JournalHeader("P", "run", 1.0)
FIRST = [["aborted", [1]]]
SECOND = [["aborted", [2]], ["skipped", [3], "because of 1"]]
LAST = ["aborted", [9]]
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "journal.log")


def records_of(path):
    return list(read_journal(path).records)


class FaultyDisk(Disk):
    """Writes `piece` bytes at most at a time; fails the write, sync or truncate calls whose numbers are planned."""

    def __init__(self, piece=1 << 30, **plan):
        self.piece = piece
        self.plan = plan  # operation -> {number of the call, from 0: errno}
        self.calls = dict.fromkeys(("write", "sync", "truncate", "allocate", "close"), 0)

    def _count(self, operation):
        number = self.calls[operation]
        self.calls[operation] += 1
        code = self.plan.get(operation, {}).get(number)
        if code:
            raise OSError(code, os.strerror(code))

    def write(self, fd, data):
        self._count("write")
        return super().write(fd, data[: self.piece])

    def sync(self, fd):
        self._count("sync")
        super().sync(fd)

    def truncate(self, fd, size):
        self._count("truncate")
        super().truncate(fd, size)

    def allocate(self, fd, size):
        self._count("allocate")
        super().allocate(fd, size)

    def close(self, fd):
        super().close(fd)
        self._count("close")


# ------------------------------------------------------------------------------------------- kills and interrupts


def at_opcode(number, act):
    """Call `act` at opcode `number` of what runs from here on; tells whether that was reached through the list."""
    seen = [0]

    def trace(frame, event, arg):
        frame.f_trace_opcodes = True
        if event == "opcode":
            seen[0] += 1
            if seen[0] == number:
                act()
        return trace

    sys._getframe().f_trace_opcodes = True  # 3.12 looks for it when settrace is called
    sys.settrace(trace)
    return seen


def kill_myself():
    os.kill(os.getpid(), signal.SIGKILL)


def append_and_die(path, number):
    """In a forked child: append, killed at opcode `number`. True if the append had ended before."""
    pid = os.fork()
    if pid == 0:
        try:
            writer = JournalWriter.reopen(path, disk=FaultyDisk(piece=11), reserve=0)
            at_opcode(number, kill_myself)
            writer.append(SECOND)
            sys.settrace(None)
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return not os.WIFSIGNALED(status)


def sweep_kills(path):
    """Kill `append` at opcode 1, 2, ... until it survives: (opcodes, torn files, files with the whole frame)."""
    with JournalWriter(path, header=HEADER, reserve=0) as writer:
        writer.append(FIRST)
    with open(path, "rb") as file:
        before = file.read()
    torn = whole = 0
    for number in itertools.count(1):
        with open(path, "wb") as file:
            file.write(before)
        survived = append_and_die(path, number)
        journal = read_journal(path)
        records = list(journal.records)
        assert records in (FIRST, FIRST + SECOND)
        torn += journal.truncated_at is not None
        whole += records != FIRST
        if survived:
            assert records == FIRST + SECOND
            return number, torn, whole
    return None


def test_killed_at_every_bytecode_of_append_it_leaves_a_readable_prefix(path):
    """Also while a frame is written piece by piece, as on a disk that makes short writes.

    In a small process of its own, since each of some hundred kills needs a fork.
    """
    script = f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); import test_journal_faults as faults"
    child = run_child(f"{script}; print(*faults.sweep_kills(sys.argv[1]))", path)
    assert child.returncode == 0, child.stderr
    opcodes, torn, whole = map(int, child.stdout.split())
    assert opcodes > 100
    assert torn > 10
    assert whole > 1


class Interrupted(BaseException):
    pass


def interrupt():
    raise Interrupted


@pytest.fixture
def no_collection():
    """Others' garbage-collector callbacks must not be what an interrupt strikes."""
    gc.disable()
    yield
    gc.enable()


def test_interrupted_at_every_bytecode_of_append_the_writer_still_works(path, no_collection):
    """A KeyboardInterrupt may come anywhere: the frame is there or not, and the next one follows it."""
    outcomes = set()
    for number in itertools.count(1):
        writer = JournalWriter(path, header=HEADER, reserve=0, disk=FaultyDisk(piece=11))
        writer.append(FIRST)
        at_opcode(number, interrupt)
        try:
            writer.append(SECOND)
            sys.settrace(None)
            interrupted = False
        except Interrupted:
            interrupted = True
        finally:
            sys.settrace(None)
        writer.append([LAST])
        writer.close()
        journal = read_journal(path)
        records = list(journal.records)
        outcomes.add(len(records))
        assert journal.truncated_at is None
        assert records in ([*FIRST, LAST], [*FIRST, *SECOND, LAST])
        os.unlink(path)
        if not interrupted:
            break
    assert outcomes == {2, 4}
    assert number > 50


# ------------------------------------------------------------------------------------------- failing calls


def fails_cleanly(writer, path, code):
    """Append; if that fails, check that nothing was recorded and how the writer goes on. True if it failed."""
    failure = None
    try:
        writer.append(SECOND)
    except JournalError as error:
        failure = str(error)
    if failure is None:
        assert records_of(path) == FIRST + SECOND
        return False
    assert os.strerror(code) in failure
    assert records_of(path) == FIRST
    assert writer.usable == (code != errno.EIO)
    if writer.usable:
        writer.append(SECOND)
        assert records_of(path) == FIRST + SECOND
    else:
        with pytest.raises(JournalError, match="check the disk"):
            writer.append(SECOND)
    return True


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO])
def test_a_write_that_fails_at_any_piece_of_a_frame_records_nothing(path, code):
    """After a full disk the journal goes on; after any other failure it refuses more."""
    for number in itertools.count(0):
        disk = FaultyDisk(piece=11)
        writer = JournalWriter(path, header=HEADER, disk=disk, reserve=0)
        writer.append(FIRST)
        disk.plan = {"write": {disk.calls["write"] + number: code}}
        failed = fails_cleanly(writer, path, code)
        writer.close()
        os.unlink(path)
        if not failed:
            break
    assert number > 5, "every piece has failed once"


def test_a_disk_that_makes_no_progress_is_an_error_and_no_endless_loop(path):
    class Stuck(Disk):
        def write(self, fd, data):
            return super().write(fd, data[:5]) if len(data) > 40 else 0

    with JournalWriter(path, header=HEADER) as writer:
        writer._disk = Stuck()
        with pytest.raises(JournalError, match="check the disk"):
            writer.append(SECOND)
    assert records_of(path) == []


def test_where_the_frame_cannot_be_cut_back_nothing_more_is_written(path):
    """What is left is a torn tail, which the next writer removes."""
    disk = FaultyDisk(piece=11)
    writer = JournalWriter(path, header=HEADER, disk=disk, reserve=0)
    disk.plan = {"write": {disk.calls["write"] + 1: errno.ENOSPC}, "truncate": {0: errno.EIO}}
    with pytest.raises(JournalError):
        writer.append(SECOND)
    assert not writer.usable
    with pytest.raises(JournalError, match="cut"):
        writer.append(FIRST, from_reserve=True)
    assert read_journal(path).truncated_at is not None
    with JournalWriter.reopen(path) as writer:
        writer.append(FIRST)
    assert records_of(path) == FIRST


def test_what_has_happened_is_recorded_from_the_reserve(path):
    """A full disk refuses new steps, but the ends of running ones find the space that was set aside."""
    disk = FaultyDisk()
    writer = JournalWriter(path, header=HEADER, disk=disk)
    reserve = writer._reserve_fd
    assert os.fstat(reserve).st_blocks * 512 >= 64 * 1024
    first = disk.calls["write"]
    disk.plan = {"write": {first: errno.ENOSPC, first + 1: errno.ENOSPC}}
    with pytest.raises(JournalError, match="free some space"):
        writer.append([["started", 1, 1, 0.0, [1]]])
    copy = os.dup(reserve)
    writer.append(FIRST, from_reserve=True)
    assert os.fstat(copy).st_blocks == 0, "also where a child of ours has inherited it"
    os.close(copy)
    with pytest.raises(OSError, match=r"."):
        os.fstat(reserve)
    writer.append(SECOND, from_reserve=True)
    assert records_of(path) == FIRST + SECOND
    disk.plan = {"write": {disk.calls["write"]: errno.ENOSPC}}
    with pytest.raises(JournalError, match="free some space"):
        writer.append(FIRST, from_reserve=True)
    writer.close()
    assert records_of(path) == FIRST + SECOND


def test_a_disk_without_room_for_the_reserve_is_told_before_anything_runs(tmp_path, path):
    with pytest.raises(JournalError, match=r"65536 bytes aside.*free some space"):
        JournalWriter(path, disk=FaultyDisk(allocate={0: errno.ENOSPC}))
    assert os.listdir(str(tmp_path)) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_journal_whose_header_cannot_be_written_leaves_no_file(tmp_path, path, code):
    for durability, plan in (("process", {"write": {1: code}}), ("power", {"sync": {0: code}})):
        with pytest.raises(JournalError, match="cannot write the journal"):
            JournalWriter(path, durability, disk=FaultyDisk(piece=20, **plan))
        assert os.listdir(str(tmp_path)) == []


def test_a_failed_fsync_is_final(path):
    """The kernel drops the pages it could not write: a second fsync would succeed, and lie."""
    disk = FaultyDisk()
    writer = JournalWriter(path, "power", header=HEADER, disk=disk)
    writer.append(FIRST)
    disk.plan = {"sync": {disk.calls["sync"]: errno.EIO}}
    with pytest.raises(JournalError, match="failed to store"):
        writer.append(SECOND)
    syncs = disk.calls["sync"]
    with pytest.raises(JournalError, match="failed to store"):
        writer.append(SECOND, from_reserve=True)
    writer.close()
    assert disk.calls["sync"] == syncs
    assert records_of(path)[:1] == FIRST


def test_only_power_durability_waits_for_the_disk(tmp_path):
    counts = {}
    for durability in ("process", "power"):
        disk = FaultyDisk()
        with JournalWriter(str(tmp_path / durability), durability, disk=disk) as writer:
            opened = disk.calls["sync"]
            writer.append(FIRST)
            writer.append(SECOND)
        counts[durability] = (opened > 0, disk.calls["sync"] - opened)
    assert counts == {"process": (False, 0), "power": (True, 2)}


def test_power_durability_stores_the_file_and_its_directories(path, monkeypatch):
    synced = []
    name = "fdatasync" if hasattr(os, "fdatasync") else "fsync"
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
    monkeypatch.setattr(os, name, lambda fd: synced.append(os.fstat(fd).st_ino))
    with JournalWriter(path, "power") as writer:
        places = {path, os.path.dirname(path), os.path.dirname(os.path.dirname(path))}
        assert set(synced) == {os.stat(place).st_ino for place in places}
        del synced[:]
        writer.append(FIRST)
        assert synced == [os.stat(path).st_ino]


def test_an_error_at_close_is_told(path):
    """Network file systems keep the bad news until then."""
    writer = JournalWriter(path, disk=FaultyDisk(close={0: errno.EDQUOT}))
    with pytest.raises(JournalError, match="end may be missing"):
        writer.close()
    assert not writer.usable


# ------------------------------------------------------------------------------------------- power loss


class RecordingDisk(Disk):
    def __init__(self):
        self.log = []

    def write(self, fd, data):
        self.log.append(("write", data))
        return super().write(fd, data)

    def truncate(self, fd, size):
        self.log.append(("truncate", size))
        super().truncate(fd, size)

    def sync(self, fd):
        self.log.append(("sync", None))
        super().sync(fd)


def crash_states(log):
    """Every file that a power cut may leave: what was synced, and any of eight pieces of what was not, or zeros."""
    stored = pending = b""
    for operation, argument in log:
        if operation == "write":
            pending += argument
        else:
            assert operation == "sync"
            stored, pending = stored + pending, b""
        size = -(-len(pending) // 8) or 1
        pieces = [pending[n : n + size] for n in range(0, len(pending), size)]
        for kept in itertools.product((True, False), repeat=len(pieces)):
            tail = b"".join(piece if keep else b"\0" * len(piece) for piece, keep in zip(pieces, kept))
            yield stored, stored + tail
            yield stored, stored + tail.rstrip(b"\0")


def test_no_power_cut_loses_what_was_acknowledged(path):
    """With durability 'power': whatever the disk made of the unsynced bytes, all earlier frames are there."""
    disk = RecordingDisk()
    with JournalWriter(path, "power", header=HEADER, disk=disk) as writer:
        for frame in (FIRST, SECOND, FIRST):
            writer.append(frame)
    states = 0
    for stored, state in crash_states(disk.log):
        if not stored:
            continue  # the file has its name only after its header was synced
        states += 1
        promised = list(parse_journal(stored).records)
        found = list(parse_journal(state).records)
        assert found[: len(promised)] == promised
        assert found == (FIRST + SECOND + FIRST)[: len(found)]
    assert states > 500


# ------------------------------------------------------------------------------------------- real limits


def run_child(script, *arguments, wrapper=()):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([ROOT, os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(
        [*wrapper, sys.executable, "-c", script, *arguments],
        timeout=120,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


LIMITED = """
import os, resource, sys
from mpsteps._journal import JournalWriter
from mpsteps.errors import JournalError
writer = JournalWriter(sys.argv[1], reserve=0)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
appended = 0
resource.setrlimit(resource.RLIMIT_FSIZE, (writer.size + 1000, hard))
try:
    while True:
        writer.append([["skipped", [appended], "x" * 50]])
        appended += 1
except JournalError as error:
    assert os.path.getsize(sys.argv[1]) == writer.size, error
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
writer.append([["skipped", [appended], "after"]])
print(appended)
"""


def test_a_file_size_limit_leaves_whole_frames_only(path):
    if resource.getrlimit(resource.RLIMIT_FSIZE)[1] != resource.RLIM_INFINITY:
        pytest.skip("there is a limit on file sizes already")
    child = run_child(LIMITED, path)
    assert child.returncode == 0, child.stderr
    count = int(child.stdout)
    assert count > 3
    journal = read_journal(path)
    assert journal.truncated_at is None
    assert [record[1][0] for record in journal.records] == list(range(count + 1))


FULL = """
import errno, os, subprocess, sys
place = sys.argv[1]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "none", place], check=True)
from mpsteps._journal import JournalWriter, read_journal
from mpsteps.errors import JournalError
path = os.path.join(place, "journal.log")
writer = JournalWriter(path)
with open(os.path.join(place, "ballast"), "wb", buffering=0) as ballast:
    try:
        while True:
            ballast.write(b"x" * 4096)
    except OSError as error:
        assert error.errno == errno.ENOSPC
recorded, refused = [], 0
number = 0
while not refused:
    number += 1
    try:
        writer.append([["skipped", [number], "x" * 3000]])
        recorded.append(number)
    except JournalError:
        refused = number
for number in range(refused, refused + 15):
    writer.append([["skipped", [number], "y" * 3000]], from_reserve=True)
    recorded.append(number)
writer.close()
journal = read_journal(path)
assert journal.truncated_at is None
assert [record[1][0] for record in journal.records] == recorded
print("recorded", len(recorded))
"""


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root to mount a small disk")
def test_on_a_disk_that_is_really_full_the_reserve_takes_the_last_records(tmp_path):
    probe = subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", str(tmp_path)], check=False, timeout=60)
    if probe.returncode:
        pytest.skip("may not mount")
    child = run_child(FULL, str(tmp_path), wrapper=("unshare", "-m"))
    assert child.returncode == 0, child.stderr
    assert "recorded" in child.stdout
