"""Arrays that all processes read and write in place."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import subprocess
import sys

import pytest
from arena_peer import Peer

from mpsteps import _shared_array
from mpsteps._ipc import blocks, shm
from mpsteps._shared_array import shared_array
from mpsteps.errors import EngineError, UsageError

np = pytest.importorskip("numpy")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no worker processes on Windows")

IMPORTS = """
import pickle, gc
import numpy as np
from mpsteps._shared_array import shared_array
from mpsteps._ipc import blocks
"""


@pytest.fixture(params=["descriptor", "name"])
def way(request, monkeypatch, tmp_path):
    """Both ways in which other processes open it: through /proc, and by the name of a private file (macOS)."""
    if request.param == "descriptor" and not _shared_array.BY_DESCRIPTOR:
        pytest.skip("there is no /proc")
    if request.param == "name":
        monkeypatch.setattr(_shared_array, "BY_DESCRIPTOR", False)
        monkeypatch.setattr(_shared_array.tempfile, "tempdir", str(tmp_path))
    return request.param


@pytest.fixture
def peer():
    """Another process."""
    one = Peer()
    one.do(IMPORTS)
    yield one
    one.kill()


def there_and_back(array):
    return pickle.loads(pickle.dumps(array))


# ------------------------------------------------------------------------------- one memory for all


def test_what_one_process_writes_the_other_reads(way: str, peer: Peer) -> None:
    """Both ways, in place."""
    array = shared_array((3, 4), "i4")
    peer.do("a[1, 2] = 7", a=array)
    assert array[1, 2] == 7
    array[0, 0] = 9
    assert peer.ask("a[0, 0], a.shape, a.dtype.name, a.sum()") == (9, (3, 4), "int32", 16)


def test_a_new_array_is_zeros_of_the_type_asked_for() -> None:
    """float by default; shape as a number or any sequence; also of nothing."""
    assert shared_array(5).dtype == float
    assert shared_array([2, 3], np.uint8).shape == (2, 3)
    assert not shared_array((100, 100), "f4").any()
    assert shared_array(()).shape == ()
    assert shared_array((0, 5)).shape == (0, 5)
    assert shared_array(np.int64(4), [("x", "f4"), ("y", "i8")]).dtype.names == ("x", "y")
    assert there_and_back(shared_array((0, 5))).shape == (0, 5)


def test_it_travels_as_a_reference(way: str) -> None:
    """However large it is; again in one process, it is the same memory."""
    array = shared_array((1000, 1000))
    assert len(pickle.dumps(array)) < 600
    back = there_and_back(array)
    back[3, 4] = 5.0
    assert array[3, 4] == 5.0
    assert np.shares_memory(back, array)


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a[2:5], lambda a: a[:, 3], lambda a: a[::-1, ::2], lambda a: a.T, lambda a: a.reshape(-1)[7:],
        lambda a: a[4:4], lambda a: a.view("i8"), lambda a: a[None, ..., 0], lambda a: a.ravel(),
    ],
)  # fmt: skip
def test_views_travel_as_references_too(view) -> None:
    """Same elements, same strides, same memory."""
    array = shared_array((6, 8))
    array[:] = np.arange(48.0).reshape(6, 8)
    piece = view(array)
    back = there_and_back(piece)
    assert (back.shape, back.strides, back.dtype) == (piece.shape, piece.strides, piece.dtype)
    assert np.array_equal(back, piece)
    if piece.size:
        assert piece._mpsteps_shared
        back[...] = 0
        assert not piece.any()


def test_a_read_only_view_stays_read_only() -> None:
    """What a step may only look at."""
    piece = shared_array(10)[2:5]
    piece.flags.writeable = False
    assert not there_and_back(piece).flags.writeable
    assert there_and_back(piece[:2]).base is not None


def test_two_processes_add_to_their_own_parts(peer: Peer) -> None:
    """As steps do: views are sent, sums are seen."""
    array = shared_array(1000, "i8")
    peer.do("for i in range(500): a[i] += 1", a=array[:500])
    array[500:] += 2
    assert array.sum() == 500 + 1000


# ------------------------------------------------------------------------------- what is an array


def test_the_marker_says_whether_memory_is_shared() -> None:
    """For views True; for everything that has memory of its own False: write-back must not overlook that."""
    array = shared_array((5, 5))
    for shared in (array, array[1], array[1:3, ::2], array.T, array.reshape(25)):
        assert shared._mpsteps_shared
    for own in (array.copy(), array[[1, 2]], array[array == 0], np.zeros_like(array), array.astype("f4"), array * 1.0):
        assert not getattr(own, "_mpsteps_shared", False)
    assert not copy.deepcopy(array)._mpsteps_shared
    assert not copy.copy(array)._mpsteps_shared


def test_what_is_computed_is_ordinary() -> None:
    """Arrays are plain numpy arrays, totals are numbers."""
    array = shared_array((3, 3))
    assert type(array + 1) is np.ndarray
    assert type(np.sqrt(array)) is np.ndarray
    assert isinstance(array.sum(), float)
    assert isinstance(array.max(), float)
    assert type(array[0, 0]) is np.float64
    assert type(array.mean(axis=0) + 0) is np.ndarray
    assert array.__array_wrap__(np.array(5.0)) == 5.0


def test_what_is_written_in_place_stays_shared() -> None:
    """`+=` and `out=` give the array itself."""
    array = same = shared_array(5)
    array += 3
    assert array is same
    assert np.add(array, 1, out=array) is array
    assert array._mpsteps_shared
    assert array.tolist() == [4.0] * 5


def test_copies_travel_by_value() -> None:
    """As ordinary arrays that own their memory."""
    array = shared_array(5)
    back = there_and_back(array.copy())
    assert type(back) is np.ndarray
    back[0] = 1
    assert array[0] == 0


def test_pickling_costs_nothing_and_is_constant() -> None:
    """Content does not show: the fingerprint of a shared array is the same after any change of it."""
    array = shared_array(1 << 20, "u1")
    before = pickle.dumps(array)
    array[:] = 3
    assert pickle.dumps(array) == before


# ------------------------------------------------------------------------------------------- life


def test_it_outlives_the_process_that_made_it(peer: Peer) -> None:
    """As long as an array on it is somewhere; and that process can pass it on."""
    peer.do("a = shared_array(1000); a[:] = 5")
    array = peer.ask("a")
    peer.kill()
    assert array.sum() == 5000
    other = Peer()
    try:
        other.do("import numpy", b=array[:10])
        assert other.ask("b.sum()") == 50
    finally:
        other.kill()


def test_it_outlives_its_first_array(way: str) -> None:
    """A view keeps it, a plain array on it as well; then it is gone, with descriptor, mapping and file."""
    files = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    piece = shared_array(1000)[5:10]
    gc.collect()
    piece[:] = 3
    plain = np.asarray(piece)
    assert there_and_back(piece).sum() == 15
    del piece
    gc.collect()
    assert plain.sum() == 15
    del plain
    gc.collect()
    if files:
        assert len(os.listdir("/proc/self/fd")) == len(files)
    if way == "name":
        assert os.listdir(_shared_array.tempfile.tempdir) == []


def test_what_is_gone_is_a_clear_error(way: str) -> None:
    """One sentence that names the array and says what to do."""
    told = pickle.dumps(shared_array((3, 5), "f4"))
    gc.collect()
    with pytest.raises(EngineError, match=r"shape \(3, 5\) and type float32 is no longer there.*make it again"):
        pickle.loads(told)


def test_a_worker_keeps_what_it_told_of(peer: Peer) -> None:
    """A step makes an array and returns it: it is there when it is asked for, though nothing in the worker uses it."""
    peer.do("blocks.told_kept = 2")
    told = [peer.ask("pickle.dumps(shared_array(10) + 0) and pickle.dumps(shared_array(10))") for _ in range(3)]
    peer.do("gc.collect()")
    for one in told[1:]:
        assert pickle.loads(one).shape == (10,)
    with pytest.raises(EngineError, match="no longer there"):
        pickle.loads(told[0])


def test_a_fork_shares_it_and_does_not_take_it_away(way: str, peer: Peer) -> None:
    """A child of a step writes to it, tells it on, and ends; the parent's array is whole."""
    array = shared_array(10)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            array[0] = 4
            os.write(write, pickle.dumps(array)[:4000])
            del array
            gc.collect()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    os.read(read, 4000)
    os.close(read)
    os.close(write)
    assert array[0] == 4
    assert there_and_back(array)[0] == 4
    peer.do("a[0] = 5", a=array)
    assert array[0] == 5


def test_a_file_by_name_is_private(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """The folder 0700, the file 0600, both gone with the array."""
    monkeypatch.setattr(_shared_array, "BY_DESCRIPTOR", False)
    monkeypatch.setattr(_shared_array.tempfile, "tempdir", str(tmp_path))
    old = os.umask(0)
    try:
        array = shared_array(10)
    finally:
        os.umask(old)
    (folder,) = tmp_path.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [f.stat().st_mode & 0o777 for f in folder.iterdir()] == [0o600]
    del array
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_a_link_in_place_of_the_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """Also one that leads to the right file."""
    monkeypatch.setattr(_shared_array, "BY_DESCRIPTOR", False)
    array = shared_array(10)
    pid, path, key, size = array._memory.tell()
    os.symlink(path, tmp_path / "link")
    monkeypatch.setattr(_shared_array, "_known", {})
    with pytest.raises(blocks.BlockError):
        _shared_array._Memory.open(pid, str(tmp_path / "link"), key, size)


# ------------------------------------------------------------------------------------------ errors


def test_bad_requests_are_refused() -> None:
    """Objects and negative sizes, by a sentence."""
    with pytest.raises(UsageError, match="cannot hold objects"):
        shared_array(5, object)
    with pytest.raises(UsageError, match="no dimension may be negative"):
        shared_array((2, -1))


def test_no_room_is_a_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """In memory, and in files; nothing is left."""
    with pytest.raises(EngineError, match="there is no room for"):
        shared_array(1 << 55)
    monkeypatch.setattr(_shared_array, "BY_DESCRIPTOR", False)
    monkeypatch.setattr(_shared_array.tempfile, "tempdir", str(tmp_path))

    def refuse(fd: int, size: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(shm, "_reserve", refuse)
    with pytest.raises(EngineError, match=r"cannot be made in .*No space left"):
        shared_array(10)
    assert list(tmp_path.iterdir()) == []


def test_without_numpy_the_error_says_what_to_install() -> None:
    """When it is called; importing is no error."""
    code = (
        "import sys; sys.modules['numpy'] = None\n"
        "from mpsteps._shared_array import shared_array\n"
        "try: shared_array(5)\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("UsageError")
    assert "pip install numpy" in done.stdout
