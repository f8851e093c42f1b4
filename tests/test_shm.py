"""Blocks of shared memory: reserved, private, of fixed size, and gone when the last descriptor is."""

from __future__ import annotations

import errno
import mmap
import os
import stat
import subprocess
import sys
import tempfile

import pytest

from mpsteps._ipc import shm
from mpsteps.errors import EngineError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="worker processes need Linux or macOS")
linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memfd and /proc are Linux's")


@pytest.fixture
def block():
    """A block of three pages."""
    fd = shm.create(3 * mmap.PAGESIZE)
    yield fd
    os.close(fd)


def test_what_one_mapping_stores_another_sees(block: int) -> None:
    """Two mappings of one block are the same memory, zero at first."""
    with shm.attach(block) as one, shm.attach(block, touch=True) as other:
        assert len(one) == 3 * mmap.PAGESIZE
        assert other[:] == bytes(3 * mmap.PAGESIZE)
        one[5000] = 7
        assert other[5000] == 7


def test_a_readonly_mapping_refuses_stores(block: int) -> None:
    """A worker cannot write what it may only look at."""
    with shm.attach(block, readonly=True) as memory:
        with pytest.raises(TypeError):
            memory[0] = 1
        with memoryview(memory) as view:
            assert view.readonly


def test_a_block_is_private_and_not_inherited_by_programs(block: int) -> None:
    """Nobody else may open it through /proc, and an external program that a step starts does not get it."""
    assert stat.S_IMODE(os.fstat(block).st_mode) == 0o600
    assert not os.get_inheritable(block)
    assert block > 2


@linux_only
def test_a_block_cannot_change_its_size(block: int) -> None:
    """A sealed block cannot be truncated under a process that reads it, which would be a SIGBUS there."""
    for size in (0, 1 << 20):
        with pytest.raises(PermissionError):
            os.ftruncate(block, size)


@linux_only
def test_the_pages_are_reserved_at_once(block: int) -> None:
    """What was created is there: a machine that fills up later cannot make a store fail."""
    assert os.fstat(block).st_blocks * 512 >= 3 * mmap.PAGESIZE


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "no room"), (errno.ENOMEM, "no room"), (errno.EMFILE, "too many files"), (errno.EACCES, "denied")],
)
def test_a_block_that_cannot_be_had_is_one_clear_sentence(
    monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    """Whatever the system says, the error names the size and the reason, and no descriptor stays open."""

    def refuse(fd: int, size: int) -> None:
        raise OSError(number, os.strerror(number))

    before = open_fds()
    monkeypatch.setattr(shm, "_reserve", refuse)
    with pytest.raises(EngineError, match=f"(?i)4096.*{words}|{words}.*4096"):
        shm.create(4096)
    assert open_fds() == before


@linux_only
def test_more_than_the_machine_has_is_refused_at_creation() -> None:
    """Really asked for, in a process with a limit on file sizes: an error there and then, no signal later."""
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "from mpsteps._ipc import shm\n"
        "try: shm.create(1 << 24)\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert result.stdout.startswith("EngineError There is no room for 16777216 bytes of shared memory")


def test_the_temporary_file_of_systems_without_memfd_is_as_good(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """The portable path: same mode, same memory, and no name left."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    fd = shm.create((1 << 20) + 8192)
    try:
        assert os.listdir(tmp_path) == []
        assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o600
        with shm.attach(fd) as one, shm.attach(fd) as other:
            one[1 << 20] = 9
            assert other[1 << 20] == 9
    finally:
        os.close(fd)


@linux_only
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM, errno.EINVAL])
def test_kernels_and_sandboxes_that_refuse_a_memfd_are_served(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """An old kernel (EINVAL: unknown flag) and a sandbox (ENOSYS, EPERM) end in working memory all the same."""
    original = os.memfd_create

    def refuse(name: str, flags: int) -> int:
        if number != errno.EINVAL or flags & 8:
            raise OSError(number, os.strerror(number))
        return original(name, flags)

    monkeypatch.setattr(os, "memfd_create", refuse)
    fd = shm.create(4096)
    with shm.attach(fd) as memory:
        memory[0] = 1
    os.close(fd)


def test_a_descriptor_among_stdin_stdout_and_stderr_is_moved() -> None:
    """With stdin closed the next descriptor is 0: a block must not be what a step's `input()` reads."""
    code = "import os; os.close(0); os.close(1)\nfrom mpsteps._ipc import shm\nassert shm.create(4096) > 2\n"
    subprocess.run([sys.executable, "-c", code], timeout=30, check=True)


def test_attaching_what_is_no_block_says_so() -> None:
    """A descriptor of something else is a clear error."""
    receive, send = os.pipe()
    with pytest.raises(EngineError, match=f"descriptor {receive} cannot be mapped"):
        shm.attach(receive)
    os.close(receive)
    os.close(send)


@linux_only
def test_nothing_stays_open() -> None:
    """Creating, mapping and closing a hundred blocks leaves no descriptor and no mapping."""
    before, maps = open_fds(), mappings()
    for _ in range(100):
        fd = shm.create(4096)
        shm.attach(fd).close()
        os.close(fd)
    assert open_fds() == before
    assert mappings() == maps


def open_fds() -> int:
    folder = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    return len(os.listdir(folder))


def mappings() -> int:
    with open("/proc/self/maps") as lines:
        return sum("memfd:mpsteps" in line for line in lines)
