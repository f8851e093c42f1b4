"""The run directory: made for one user, used by one coordinator, entered only when old workers are gone."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import stat
import time

import pytest

from mpsteps import _private_files, _rundir
from mpsteps._rundir import RunDirectory
from mpsteps.errors import RunDirectoryError


def mode_of(path):
    return stat.S_IMODE(os.stat(path).st_mode)


class Child:
    """A forked process that does something, says so, and lives until it is told to end or `stop` is called."""

    def __init__(self, act):
        told_r, self.tell = os.pipe()
        self.hear, hears_w = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.close(self.tell)
                kept = act()
                os.write(hears_w, b"!")
                os.read(told_r, 1)
                code = 0 if kept is not False else 1
            finally:
                os._exit(code)
        os.close(told_r)
        os.close(hears_w)
        assert os.read(self.hear, 1) == b"!"

    def stop(self):
        os.close(self.tell)
        status = os.waitpid(self.pid, 0)[1]
        os.close(self.hear)
        return status


# ------------------------------------------------------------------------------------------------- making


def test_runs_are_numbered_one_after_the_other(tmp_path):
    parent = tmp_path / "Runs"
    names = [os.path.basename(RunDirectory.create(parent, name).path) for name in ("ProtA", "ProtB", "ProtA")]
    assert names == ["000001_ProtA", "000002_ProtB", "000003_ProtA"]
    os.mkdir(str(parent / "000041_ProtImported"))
    os.mkdir(str(parent / "not_a_run"))
    assert os.path.basename(RunDirectory.create(parent, "ProtA").path) == "000042_ProtA"


def test_a_new_run_has_its_folders_and_paths(tmp_path):
    run = RunDirectory.create(tmp_path, "P")
    assert (run.extra, run.tmp, run.logs) == tuple(os.path.join(run.path, name) for name in ("extra", "tmp", "logs"))
    assert run.journal_path == os.path.join(run.path, "journal.log")
    assert os.path.isabs(run.path)
    assert sorted(os.listdir(run.path)) == ["extra", "logs", "tmp"]


@pytest.mark.parametrize("mask", [0o000, 0o077, 0o777])
def test_everything_is_private_whatever_the_umask_is(tmp_path, mask):
    parent = tmp_path / "Runs"
    parent.mkdir()
    old = os.umask(mask)
    try:
        run = RunDirectory.create(parent, "P")
        other = RunDirectory.create_at(tmp_path / "explicit")
        run.lock()
        os.close(run.open_fence())
    finally:
        os.umask(old)
    for path in (run.path, other.path, run.extra, run.tmp, run.logs):
        assert mode_of(path) == 0o700
    for name in ("run.lock", "workers.fence"):
        assert mode_of(os.path.join(run.path, name)) == 0o600
    run.close()


def test_several_processes_never_share_a_number(tmp_path):
    """Also when their protocols have different names, so that mkdir alone would not notice."""

    def make(worker):
        for n in range(6):
            RunDirectory.create(tmp_path, f"Prot{worker}x{n}")

    pids = []
    for worker in range(5):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                make(worker)
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 5
    numbers = [name.split("_")[0] for name in os.listdir(tmp_path)]
    assert len(numbers) == 30
    assert len(set(numbers)) == 30
    assert all(re.fullmatch(r"\d{6}_Prot\dx\d", name) for name in os.listdir(tmp_path))


@pytest.mark.parametrize("name", ["", "a/b", "nul\0", "x" * 300])
def test_a_name_that_is_no_file_name_is_refused(tmp_path, name):
    with pytest.raises(RunDirectoryError, match="cannot be part of"):
        RunDirectory.create(tmp_path, name)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EIO])
def test_a_directory_that_cannot_be_made_leaves_nothing_behind(tmp_path, monkeypatch, code):
    """At whichever mkdir it fails; the sentence tells why and what to do."""
    real = os.mkdir
    for failing in range(4):
        for make in (lambda: RunDirectory.create(tmp_path, "P"), lambda: RunDirectory.create_at(tmp_path / "at")):
            calls = iter(range(100))

            def mkdir(path, mode=0o777, calls=calls, failing=failing):
                if path != str(tmp_path) and next(calls) == failing:
                    raise OSError(code, os.strerror(code), path)
                real(path, mode)

            with monkeypatch.context() as patch:
                patch.setattr(os, "mkdir", mkdir)
                with pytest.raises(RunDirectoryError, match=rf"{os.strerror(code)}; .") as caught:
                    make()
            assert "\n" not in str(caught.value)
            assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_parent_that_may_not_be_written_is_told(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(RunDirectoryError, match="Permission denied; choose a place"):
            RunDirectory.create(tmp_path, "P")
    finally:
        tmp_path.chmod(0o700)


def test_a_file_in_the_way_is_told(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunDirectoryError, match="is not a directory"):
        RunDirectory.create_at(tmp_path / "file")
    with pytest.raises(RunDirectoryError, match=r"part of this path is a file|File exists"):
        RunDirectory.create(tmp_path / "file", "P")


def test_an_explicit_directory_keeps_what_is_in_it(tmp_path):
    place = tmp_path / "mine"
    RunDirectory.create_at(place)
    (place / "extra" / "result").write_text("x")
    RunDirectory.create_at(place)
    assert (place / "extra" / "result").read_text() == "x"


def test_an_empty_directory_that_the_group_may_write_becomes_private(tmp_path):
    """Where the umask is 002, `mkdir out` makes such a directory."""
    place = tmp_path / "out"
    place.mkdir()
    place.chmod(0o775)
    assert mode_of(RunDirectory.create_at(place).path) == 0o700


# ------------------------------------------------------------------------------------------------- opening


def test_a_run_is_opened_again(tmp_path):
    made = RunDirectory.create(tmp_path, "P")
    assert RunDirectory.open(made.path).path == made.path
    os.symlink(made.path, str(tmp_path / "latest"))
    assert RunDirectory.open(tmp_path / "latest").path == made.path


def test_no_run_is_told(tmp_path):
    with pytest.raises(RunDirectoryError, match=r"missing'.*check the path"):
        RunDirectory.open(tmp_path / "missing")


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
def test_a_directory_that_others_may_write_is_refused(tmp_path, mode):
    """They could put a pickle there, which a resume would load."""
    run = RunDirectory.create(tmp_path, "P")
    os.chmod(run.path, mode)
    for use in (RunDirectory.open, RunDirectory.create_at):
        with pytest.raises(RunDirectoryError, match="chmod go-w"):
            use(run.path)


def test_a_directory_of_another_user_is_refused(tmp_path, monkeypatch):
    run = RunDirectory.create(tmp_path, "P")
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    for use in (RunDirectory.open, RunDirectory.create_at):
        with pytest.raises(RunDirectoryError, match=f"belongs to user {me}, not to you"):
            use(run.path)


def plant_symlink(path):
    with open(path + ".target", "w"):
        os.symlink(path + ".target", path)


def plant_hard_link(path):
    with open(path + ".target", "w"):
        os.link(path + ".target", path)


def plant_shared_file(path):
    with open(path, "w"):
        os.chmod(path, 0o622)


PLANTS = [
    (plant_symlink, "symbolic link"),
    (plant_hard_link, "hard links"),
    (os.mkfifo, "not a regular file"),
    (os.mkdir, "not a regular file|Is a directory"),
    (plant_shared_file, "written by others"),
]


@pytest.mark.parametrize(("plant", "says"), PLANTS)
def test_what_was_put_in_place_of_the_journal_is_refused(tmp_path, plant, says):
    run = RunDirectory.create(tmp_path, "P")
    plant(run.journal_path)
    with pytest.raises(RunDirectoryError, match=says):
        RunDirectory.open(run.path)


@pytest.mark.parametrize(("plant", "says"), PLANTS)
def test_what_was_put_in_place_of_the_locks_is_refused(tmp_path, plant, says):
    run = RunDirectory.create(tmp_path, "P")
    plant(os.path.join(run.path, "run.lock"))
    plant(os.path.join(run.path, "workers.fence"))
    for use in (run.lock, run.open_fence, lambda: run.wait_for_fence(0.0)):
        with pytest.raises(RunDirectoryError, match=says):
            use()
    assert not run.locked


# ------------------------------------------------------------------------------------------------- the lock


def test_a_second_coordinator_is_told_who_the_first_is(tmp_path):
    run = RunDirectory.create(tmp_path, "P")

    directories = []

    def first():
        directories.append(RunDirectory.open(run.path))
        directories[0].lock()

    child = Child(first)
    with pytest.raises(RunDirectoryError, match=rf"in use by pid {child.pid} on host '.*' since '20\d\d-.*'"):
        run.lock()
    assert not run.locked
    child.stop()
    assert run.lock()
    run.close()


def test_two_coordinators_of_one_process_exclude_each_other_too(tmp_path):
    first = RunDirectory.create(tmp_path, "P")
    with first:
        assert first.lock()
        assert first.lock(), "it has it already"
        with pytest.raises(RunDirectoryError, match=f"pid {os.getpid()}"):
            RunDirectory.open(first.path).lock()
    second = RunDirectory.open(first.path)
    assert second.lock()
    second.close()


def test_a_forked_worker_does_not_hold_the_lock(tmp_path):
    """Otherwise a run would be in use by a dead coordinator for as long as one of its workers lives."""
    run = RunDirectory.create(tmp_path, "P")
    run.lock()
    child = Child(lambda: not run.locked)
    run.close()
    second = RunDirectory.open(run.path)
    assert second.lock()
    second.close()
    assert child.stop() == 0


def test_a_fork_that_ends_leaves_the_lock_to_its_parent(tmp_path):
    run = RunDirectory.create(tmp_path, "P")
    run.lock()
    Child(run.close).stop()
    with pytest.raises(RunDirectoryError, match="in use"):
        RunDirectory.open(run.path).lock()
    run.close()


def test_programs_do_not_inherit_the_lock(tmp_path):
    run = RunDirectory.create(tmp_path, "P")
    run.lock()
    assert not os.get_inheritable(run._lock_fd)
    assert run._lock_fd > 2
    run.close()


@pytest.mark.parametrize("content", [b"", b"\xff\x00", b"[]", b'{"pid": "x"}', b"[" * 4000])
def test_a_lock_with_strange_content_still_locks(tmp_path, content):
    run = RunDirectory.create(tmp_path, "P")
    with open(os.path.join(run.path, "run.lock"), "wb") as file:
        file.write(content)
        os.chmod(file.name, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX)
        file.flush()
        with pytest.raises(RunDirectoryError, match="in use by another process"):
            run.lock()
    assert run.lock()
    run.close()


def test_the_lock_tells_who_has_it_in_json(tmp_path):
    run = RunDirectory.create(tmp_path, "P")
    run.lock()
    with open(os.path.join(run.path, "run.lock"), encoding="ascii") as file:
        who = json.load(file)
    assert who["pid"] == os.getpid()
    assert set(who) == {"host", "boot", "pid", "since"}
    run.close()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_refused_unless_the_caller_takes_the_risk(tmp_path, monkeypatch, code):
    run = RunDirectory.create(tmp_path, "P")
    with open(os.path.join(run.path, "workers.fence"), "w") as file:
        os.chmod(file.name, 0o600)

    def flock(fd, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(_private_files.fcntl, "flock", flock)
    for use in (run.lock, run.open_fence, lambda: run.wait_for_fence(1.0)):
        with pytest.raises(RunDirectoryError, match="has no file locks"):
            use()
    assert not run.locked
    with pytest.warns(RuntimeWarning, match="second coordinator"):
        assert run.lock(required=False) is False
    assert run.locked
    with pytest.warns(RuntimeWarning, match="has no file locks"):
        os.close(run.open_fence(required=False))
    with pytest.warns(RuntimeWarning, match="has no file locks"):
        assert run.wait_for_fence(1.0, required=False)
    run.close()


# ------------------------------------------------------------------------------------------------- the fence


def test_a_run_that_never_had_workers_has_no_fence(tmp_path):
    run = RunDirectory.create(tmp_path, "P")
    assert run.wait_for_fence(0.0)
    assert run.fence_holders() == []
    assert not os.path.exists(os.path.join(run.path, "workers.fence"))


def test_an_old_worker_keeps_a_new_coordinator_waiting(tmp_path):
    """The coordinator has closed its own descriptor (or died); the worker that inherited it lives on."""
    run = RunDirectory.create(tmp_path, "P")
    fence = run.open_fence()
    worker = Child(lambda: os.fstat(fence))
    os.close(fence)
    new = RunDirectory.open(run.path)
    assert not new.wait_for_fence(0.0)
    begin = time.monotonic()
    assert not new.wait_for_fence(0.05)
    assert time.monotonic() - begin >= 0.05
    if os.path.isdir("/proc/self/fd"):
        assert new.fence_holders() == [worker.pid]
    worker.stop()
    assert new.wait_for_fence(30.0)
    assert new.wait_for_fence(0.0), "it was released again"
    assert new.fence_holders() == []


def test_the_fence_opens_while_the_new_coordinator_waits(tmp_path, monkeypatch):
    """The worker ends between two looks."""
    run = RunDirectory.create(tmp_path, "P")
    fence = run.open_fence()
    worker = Child(lambda: os.fstat(fence))
    os.close(fence)
    pauses = []

    def sleep(seconds):
        pauses.append(seconds)
        if len(pauses) == 3:
            worker.stop()

    monkeypatch.setattr(_rundir.time, "sleep", sleep)
    assert run.wait_for_fence(60.0)
    assert len(pauses) == 3
    assert pauses == sorted(pauses)


def test_all_workers_of_one_run_share_the_fence(tmp_path):
    run = RunDirectory.create(tmp_path, "P")
    first, second = run.open_fence(), run.open_fence()
    os.close(first)
    assert not run.wait_for_fence(0.0)
    os.close(second)
    assert run.wait_for_fence(0.0)


def test_programs_that_workers_start_do_not_inherit_the_fence(tmp_path):
    run = RunDirectory.create(tmp_path, "P")
    fence = run.open_fence()
    assert not os.get_inheritable(fence)
    assert fence > 2
    os.close(fence)


# ------------------------------------------------------------------------------------------------- restart


def fill(run):
    with open(run.journal_path, "w") as file:
        file.write("journal")
    os.makedirs(os.path.join(run.extra, "deep", "er"))
    for place in (run.path, run.tmp, run.logs, os.path.join(run.extra, "deep", "er")):
        with open(os.path.join(place, "file"), "w") as file:
            file.write("x")


def test_cleaning_removes_everything_and_makes_the_folders_anew(tmp_path):
    run = RunDirectory.create(tmp_path, "P")
    fill(run)
    with run:
        run.lock()
        run.clean()
        with pytest.raises(RunDirectoryError, match="in use"):
            RunDirectory.open(run.path).lock()
    assert sorted(os.listdir(run.path)) == ["extra", "logs", "run.lock", "tmp"]
    assert [os.listdir(folder) for folder in (run.extra, run.tmp, run.logs)] == [[], [], []]


def test_cleaning_follows_no_link(tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "data").write_text("x")
    run = RunDirectory.create(tmp_path, "P")
    fill(run)
    os.rmdir(os.path.join(RunDirectory.create(tmp_path, "Q").path, "tmp"))
    os.symlink(str(precious), os.path.join(run.extra, "deep", "link"))
    os.symlink(str(precious), os.path.join(run.path, "link"))
    os.symlink(str(precious / "data"), os.path.join(run.path, "link2"))
    for name in os.listdir(run.logs):
        os.unlink(os.path.join(run.logs, name))
    os.rmdir(run.logs)
    os.symlink(str(precious), run.logs)
    with run:
        run.lock()
        run.clean()
    assert (precious / "data").read_text() == "x"
    assert os.path.isdir(run.logs)
    assert not os.path.islink(run.logs)
    assert sorted(os.listdir(run.path)) == ["extra", "logs", "run.lock", "tmp"]


def test_cleaning_needs_the_lock(tmp_path):
    run = RunDirectory.create(tmp_path, "P")
    fill(run)
    with pytest.raises(RunDirectoryError, match="lock run"):
        run.clean()
    assert os.path.exists(run.journal_path)


@pytest.mark.parametrize("treasure", ["thesis.tex", "tmp/file"])
def test_a_home_given_as_run_directory_by_mistake_survives(tmp_path, treasure):
    home = tmp_path / "home"
    (home / "tmp").mkdir(parents=True)
    (home / treasure).write_text("x")
    with RunDirectory.create_at(home) as run:
        run.lock()
        with pytest.raises(RunDirectoryError, match="no journal, so it is no run directory"):
            run.clean()
    assert (home / treasure).read_text() == "x"


def test_cleaning_that_was_cut_short_can_be_done_again(tmp_path, monkeypatch):
    run = RunDirectory.create(tmp_path, "P")
    fill(run)
    real = _rundir._remove
    removed = []

    def remove(path):
        if len(removed) == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        removed.append(path)
        real(path)

    with run:
        run.lock()
        with monkeypatch.context() as patch:
            patch.setattr(_rundir, "_remove", remove)
            with pytest.raises(RunDirectoryError, match="cannot clean"):
                run.clean()
        assert os.path.exists(run.journal_path)
        run.clean()
    assert sorted(os.listdir(run.path)) == ["extra", "logs", "run.lock", "tmp"]


def test_a_start_that_was_killed_before_its_journal_can_be_cleaned(tmp_path):
    run = RunDirectory.create(tmp_path, "P")
    (tmp_path / os.path.basename(run.path) / "journal.log.new").write_bytes(b"mpst")
    with run:
        run.lock()
        run.clean()
    assert sorted(os.listdir(run.path)) == ["extra", "logs", "run.lock", "tmp"]
