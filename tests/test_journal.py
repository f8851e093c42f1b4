"""The journal's writer and reader as the coordinator uses them."""

from __future__ import annotations

import os
import stat
import subprocess
import sys

import pytest

from mpsteps._journal import JournalHeader, JournalWriter, parse_journal, read_journal
from mpsteps.errors import JournalError

RECORDS = [["skipped", [1, 2], "µ"], ["aborted", [3]], ["doubt", [4]]]


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "journal.log")


def records_of(path):
    return list(read_journal(path).records)


def test_a_journal_gives_back_its_header_and_records(path):
    header = JournalHeader("ProtCtf", created=12.5)
    with JournalWriter(path, header=header) as writer:
        writer.append(RECORDS[:2])
        writer.append(RECORDS[2:])
        size = writer.size
    journal = read_journal(path)
    assert list(journal.records) == RECORDS
    assert list(journal.records) == RECORDS, "they can be read twice"
    assert (journal.header.protocol, journal.header.run_id, journal.header.created) == ("ProtCtf", header.run_id, 12.5)
    assert (journal.truncated_at, journal.valid_bytes) == (None, size)
    assert os.path.getsize(path) == size


def test_the_records_of_one_append_are_one_write(path):
    """A kill then leaves all or none of them."""
    writes = []
    with JournalWriter(path) as writer:
        writer._disk.write = lambda fd, data: writes.append(data) or os.write(fd, data)
        writer.append(RECORDS)
        writer.append([])
    assert len(writes) == 1
    assert records_of(path) == RECORDS


def test_a_reopened_journal_goes_on_where_it_ended(path):
    with JournalWriter(path, header=JournalHeader("P")) as writer:
        writer.append(RECORDS[:1])
    with JournalWriter.reopen(path) as writer:
        assert writer.header.protocol == "P"
        writer.append(RECORDS[1:])
    assert records_of(path) == RECORDS


def test_a_torn_tail_is_reported_and_cut_off_when_the_journal_is_reopened(path):
    with JournalWriter(path) as writer:
        writer.append(RECORDS[:1])
        good = writer.size
        writer.append(RECORDS[1:])
    os.truncate(path, os.path.getsize(path) - 3)
    journal = read_journal(path)
    assert (journal.truncated_at, journal.valid_bytes) == (good, good)
    with JournalWriter.reopen(path) as writer:
        assert os.path.getsize(path) == good
        writer.append([["aborted", [9]]])
    assert records_of(path) == [*RECORDS[:1], ["aborted", [9]]]


def test_a_journal_that_exists_is_not_begun_again(path):
    JournalWriter(path).close()
    with open(path, "rb") as file:
        before = file.read()
    with pytest.raises(JournalError, match="already"):
        JournalWriter(path)
    with open(path, "rb") as file:
        assert file.read() == before


def test_a_start_that_was_killed_before_the_header_does_not_matter(tmp_path, path):
    """The header is written under another name first, so that a journal that exists has one."""
    (tmp_path / "journal.log.new").write_bytes(b"mpst")
    (tmp_path / "journal.reserve").write_bytes(b"\0" * 10)
    with JournalWriter(path) as writer:
        writer.append(RECORDS)
    assert records_of(path) == RECORDS
    assert os.listdir(str(tmp_path)) == ["journal.log"]


@pytest.mark.parametrize("mask", [0o000, 0o077, 0o777])
def test_the_file_is_private_whatever_the_umask_is(path, mask):
    old = os.umask(mask)
    try:
        JournalWriter(path).close()
    finally:
        os.umask(old)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_descriptors_are_not_inherited_by_programs(path):
    with JournalWriter(path) as writer:
        assert not os.get_inheritable(writer._fd)
        assert not os.get_inheritable(writer._reserve_fd)


def test_a_fork_cannot_write_the_journal_of_its_parent(path):
    with JournalWriter(path) as writer:
        pid = os.fork()
        if pid == 0:
            try:
                writer.append(RECORDS)
            except JournalError:
                os._exit(7)
            os._exit(0)
        assert os.WEXITSTATUS(os.waitpid(pid, 0)[1]) == 7
        writer.append(RECORDS)
    assert records_of(path) == RECORDS


def test_a_process_without_stdio_never_writes_its_output_into_the_journal(path):
    """Where 0, 1 and 2 are closed, the next file that is opened gets their numbers."""
    script = (
        "import os, sys\n"
        "from mpsteps._journal import JournalWriter\n"
        "path = sys.argv[1]\n"
        "for fd in (0, 1, 2): os.close(fd)\n"
        "writer = JournalWriter(path)\n"
        "assert min(writer._fd, writer._reserve_fd) > 2\n"
        "other = JournalWriter(os.open(path + '2', os.O_RDWR | os.O_CREAT))\n"
        "assert other._fd > 2\n"
        "writer.append([['aborted', [1]]])\n"
        "other.append([['aborted', [2]]])\n"
    )
    subprocess.run([sys.executable, "-c", script, path], check=True, timeout=60, env=environment())
    assert records_of(path) == [["aborted", [1]]]
    assert records_of(path + "2") == [["aborted", [2]]]


def environment():
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}


def test_a_journal_can_be_written_to_a_descriptor(tmp_path):
    fd = os.open(str(tmp_path / "anonymous"), os.O_RDWR | os.O_CREAT)
    copy = os.dup(fd)
    with JournalWriter(fd, header=JournalHeader("P")) as writer:
        os.lseek(fd, 0, os.SEEK_SET)
        writer.append(RECORDS)
    data = os.pread(copy, 1 << 20, 0)
    os.close(copy)
    assert list(parse_journal(data).records) == RECORDS
    with pytest.raises(OSError, match=r"."):
        os.fstat(fd)


def test_a_descriptor_that_cannot_hold_a_journal_is_refused_and_left_open(tmp_path):
    (tmp_path / "full").write_bytes(b"x")
    reader, pipe = os.pipe()
    full = os.open(str(tmp_path / "full"), os.O_RDWR)
    readonly = os.open(str(tmp_path / "empty"), os.O_RDONLY | os.O_CREAT)
    for fd in (pipe, full, readonly):
        with pytest.raises(JournalError, match="journal cannot begin there"):
            JournalWriter(fd)
    for fd in (reader, pipe, full, readonly):
        os.close(fd)
    assert (tmp_path / "full").read_bytes() == b"x"


def plant_link(path):
    JournalWriter(path + ".real").close()
    os.symlink(path + ".real", path)


def plant_hard_link(path):
    JournalWriter(path + ".real").close()
    os.link(path + ".real", path)


@pytest.mark.parametrize(
    ("plant", "says"),
    [(plant_link, "symbolic link"), (plant_hard_link, "hard link"), (os.mkfifo, "not a regular file")],
)
def test_a_link_or_a_fifo_in_place_of_the_journal_is_refused(path, plant, says):
    plant(path)
    for use in (read_journal, JournalWriter.reopen):
        with pytest.raises(JournalError, match=says):
            use(path)
    with pytest.raises(JournalError, match="already"):
        JournalWriter(path)


def test_a_journal_that_others_may_write_is_not_continued(path):
    JournalWriter(path).close()
    os.chmod(path, 0o620)
    with pytest.raises(JournalError, match="written by others"):
        JournalWriter.reopen(path)


def test_a_closed_journal_says_so(path):
    writer = JournalWriter(path)
    writer.close()
    writer.close()
    assert not writer.usable
    with pytest.raises(JournalError, match="closed"):
        writer.append(RECORDS)


def test_a_record_that_is_no_json_leaves_the_journal_as_it_was(path):
    with JournalWriter(path) as writer:
        with pytest.raises(JournalError, match="object"):
            writer.append([["aborted", [1]], ["result", 1, {"value": object()}]])
        writer.append(RECORDS)
    assert records_of(path) == RECORDS


def test_an_unknown_durability_is_refused(path):
    with pytest.raises(JournalError, match="'process' or 'power'"):
        JournalWriter(path, durability="always")
    assert not os.path.exists(path)


def test_a_missing_journal_or_directory_is_named(path):
    with pytest.raises(JournalError, match=r"journal\.log"):
        read_journal(path)
    with pytest.raises(JournalError, match="nowhere"):
        JournalWriter(os.path.join(path, "nowhere", "journal.log"))
