"""Large values in parcels: what was put in comes out, arrays without a copy and read-only, with numpy or without."""

from __future__ import annotations

import array
import gc
import os
import pickle
import subprocess
import sys

import pytest

from mpsteps._ipc import blocks, wire
from mpsteps._ipc.arena import Arena
from mpsteps._ipc.blocks import Attachments, key_of
from mpsteps._ipc.large import THRESHOLD, pack_large, unpack_large
from mpsteps.errors import InternalError

pytestmark = pytest.mark.skipif(not blocks.CAN_SHARE, reason="blocks are shared where there is /proc")

KB = 1 << 10


class Trip:
    """There and back: `trip(value)` packs and unpacks; `reference` and `parcel` of the last one."""

    def __init__(self) -> None:
        self.arena = Arena(64 << 20)
        self.attachments = Attachments()

    def __call__(self, value, **how):
        self.parcel, self.reference = pack_large(value, self.arena, **how)
        return unpack_large(self.parcel, self.reference, self.attachments, how.get("anchor"))


@pytest.fixture
def trip():
    """An arena and a reader."""
    one = Trip()
    yield one
    one.attachments.close()
    one.arena.close()


@pytest.fixture
def np():
    """numpy, for the tests that need it."""
    return pytest.importorskip("numpy")


# ----------------------------------------------------------------------------------------- arrays


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["float32", ">i2", "complex128", "bool", "U5", "datetime64[s]", "i4,f8"])
def test_arrays_come_back_as_they_were(trip: Trip, np, order: str, dtype: str) -> None:
    """Type, shape, order of elements in memory, and every value; read-only."""
    count = 300 * KB
    made = np.arange(count).astype("i4").astype(dtype) if dtype != "i4,f8" else np.zeros(count, dtype)
    made = np.asarray(made.reshape(4, 100, -1), order=order)
    back = trip(made)
    assert trip.reference is not None
    assert len(trip.parcel) < 1000
    assert (back.dtype, back.shape, back.strides) == (made.dtype, made.shape, made.strides)
    assert np.array_equal(back, made)
    if made.dtype.kind != "M":  # dates have no buffers: numpy itself pickles them by value
        assert not back.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            back[0] = made[0]


def test_an_array_lies_in_the_block_itself(trip: Trip, np) -> None:
    """No copy is made for the reader: two readers' arrays are at one address; and aligned."""
    made = np.ones(THRESHOLD)
    one = trip(made)
    two = unpack_large(trip.parcel, trip.reference, trip.attachments)
    assert one.__array_interface__["data"] == two.__array_interface__["data"]
    assert one.__array_interface__["data"][0] % 64 == 0


def test_non_contiguous_arrays_are_copied(trip: Trip, np) -> None:
    """Pickle does so: equal values, and no view of the whole."""
    made = np.arange(400 * KB).reshape(400, -1)[:, ::2]
    back = trip(made)
    assert np.array_equal(back, made)
    assert trip.reference is not None


def test_small_arrays_stay_in_the_parcel(trip: Trip, np) -> None:
    """Below the threshold, as ever: no block, writeable."""
    back = trip({"a": np.zeros(THRESHOLD // 8 - 100)})
    assert trip.reference is None
    assert back["a"].flags.writeable
    assert wire.unpack(trip.parcel)["a"].shape == back["a"].shape


def test_the_threshold_is_a_size_in_bytes(trip: Trip, np) -> None:
    """Exactly there it begins, and it can be given; what stays in the parcel together is never larger either."""
    trip({"a": np.zeros(THRESHOLD // 8)})
    assert blocks.size_of(trip.reference) == THRESHOLD
    trip([np.zeros(1000)], threshold=8000)
    assert blocks.size_of(trip.reference) == 8000
    back = trip([np.zeros(999)] * 2 + [np.ones(500)], threshold=8000)
    assert blocks.size_of(trip.reference) > 12_000
    assert len(trip.parcel) < 8000
    assert back[2].flags.writeable, "it was part of the pickle"
    assert trip.attachments.live_keys() == []


def test_many_arrays_share_one_block(trip: Trip, np) -> None:
    """Each comes back in its place; one array in two places is one array again."""
    big, small, other = np.arange(100 * KB), np.arange(5), np.ones((500, 700), "f4", order="F")
    back = trip({"x": [big, small, {"y": other}], "again": big})
    assert trip.arena.statistics()["blocks"] == 1
    assert np.array_equal(back["x"][0], big)
    assert np.array_equal(back["x"][1], small)
    assert np.array_equal(back["x"][2]["y"], other)
    assert back["again"] is back["x"][0]


def test_the_block_is_live_as_long_as_any_array(trip: Trip, np) -> None:
    """A slice, a transposed view, what was made without copying: each keeps it; a copy does not."""
    piece = trip(np.ones((1000, 500)))[10:20, ::5].T
    gc.collect()
    assert trip.attachments.live_keys() == [key_of(trip.reference)]
    copied = piece.copy()
    del piece
    assert trip.attachments.live_keys() == []
    assert copied.sum() == 1000


def test_arrays_survive_the_end_of_reader_and_owner(trip: Trip, np) -> None:
    """The mapping goes with the last array, not before."""
    back = trip(np.full(100 * KB, 7.0))
    trip.attachments.close()
    trip.arena.close()
    assert back.sum() == 7.0 * 100 * KB


def test_arrays_of_objects_travel_by_value(trip: Trip, np) -> None:
    """Their elements live in one process only."""
    made = np.array([{"a": i} for i in range(10)], dtype=object)
    assert trip(made).tolist() == made.tolist()
    assert trip.reference is None


# ----------------------------------------------------------------------------------- other values


@pytest.mark.parametrize(
    "value",
    [
        None, 5, "text", [1, 2.5, "x"], {"a": (1, 2)}, os.urandom(300 * KB), "é" * 300 * KB, list(range(200_000)),
        {"k": b"x" * 300 * KB, 5: None}, [os.urandom(1000) for _ in range(400)],
    ],
)  # fmt: skip
def test_plain_values_come_back(trip: Trip, value) -> None:
    """Exactly, whether they are large or not; the parcel is short in any case."""
    back = trip(value)
    assert back == value
    assert type(back) is type(value)
    assert len(trip.parcel) < THRESHOLD


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_large_bytes_inside_of_objects(trip: Trip, kind) -> None:
    """They own their memory again; one object in two places is one object again; a bytearray can be changed."""
    content = kind(os.urandom(400 * KB))
    back = trip([content, {1, 2}, content, kind(content[:-1])])
    assert back[0] == content
    assert type(back[0]) is kind
    assert back[2] is back[0]
    assert back[3] == content[:-1]
    assert len(trip.parcel) < 1000
    if kind is bytearray:
        back[0].append(1)
        content.append(1)  # and packing has let go of the original
        assert back[2][-1] == 1
    assert trip.attachments.live_keys() == []


def test_bytes_and_arrays_in_any_order(trip: Trip, np) -> None:
    """Each finds its own buffer."""
    first, second = os.urandom(300 * KB), bytearray(os.urandom(300 * KB))
    back = trip([np.arange(50 * KB), first, {3}, np.ones(60 * KB), second])
    assert np.array_equal(back[0], np.arange(50 * KB))
    assert back[1] == first
    assert np.array_equal(back[3], np.ones(60 * KB))
    assert back[4] == second


def test_arrays_of_the_standard_library(trip: Trip) -> None:
    """array.array: equal, of its type, and its own."""
    made = array.array("d", range(100_000))
    back = trip((made, {1}))[0]
    assert back == made
    assert trip.reference is not None
    back.append(1.0)


def test_buffers_of_other_types(trip: Trip) -> None:
    """Whatever hands pickle a PickleBuffer: a stored image, a matrix of some library."""
    back = trip(Image(b"x" * 300 * KB))
    assert bytes(back.data) == b"x" * 300 * KB
    assert type(back) is Image
    assert len(trip.parcel) < 1000


class Image:
    """A class that takes part in protocol 5."""

    def __init__(self, data) -> None:
        self.data = data

    def __reduce_ex__(self, protocol):
        return Image, (pickle.PickleBuffer(self.data),)


def test_a_pickle_that_is_itself_large_goes_through_the_arena(trip: Trip, np) -> None:
    """A set of many texts, with an array among them."""
    value = [{f"text number {i}" for i in range(30_000)}, np.arange(100 * KB), b"y" * 300 * KB]
    back = trip(value)
    assert back[0] == value[0]
    assert np.array_equal(back[1], value[1])
    assert back[2] == value[2]
    assert len(trip.parcel) < 10


@pytest.mark.parametrize("many", [1, 30_000])
def test_an_anchor_is_the_receivers_own(trip: Trip, many: int) -> None:
    """A bound method travels as one of the receiver's protocol, also in a large parcel."""
    anchor = Image([])
    back = trip(
        {"method": anchor.__reduce_ex__, "texts": {f"text {i}" for i in range(many)}, "none": None}, anchor=anchor
    )
    assert back["method"].__self__ is anchor
    assert back["none"] is None
    assert back["texts"] == {f"text {i}" for i in range(many)}


def test_functions_and_classes_travel_as_ever(trip: Trip) -> None:
    """Lambdas with large things in them, by cloudpickle."""
    content = os.urandom(300 * KB)
    assert trip(lambda: (content, Image))() == (content, Image)
    assert len(trip.parcel) < 10_000


# ----------------------------------------------------------------------------------- when it cannot


@pytest.mark.parametrize("arena", [None, "refuses"])
def test_without_an_arena_everything_travels_by_value(np, arena) -> None:
    """A parcel as `wire` writes it, whole."""
    refusing = Arena(0) if arena else None
    for value in (
        np.arange(100 * KB),
        os.urandom(300 * KB),
        [{1}, os.urandom(300 * KB)],
        {str(i) for i in range(50_000)},
    ):
        parcel, reference = pack_large(value, refusing)
        assert reference is None
        back = wire.unpack(parcel)
        assert np.array_equal(back, value) if isinstance(value, np.ndarray) else back == value
        assert type(unpack_large(parcel, None, None)) is type(value)


def test_a_reference_without_a_reader_is_a_loud_error(trip: Trip) -> None:
    """Not an attempt to read a parcel that is not whole."""
    trip(os.urandom(300 * KB))
    with pytest.raises(InternalError, match="no blocks can be read"):
        unpack_large(trip.parcel, trip.reference, None)


def test_what_cannot_be_pickled_leaves_no_block(trip: Trip) -> None:
    """The error is pickle's own."""
    import threading

    with pytest.raises(TypeError, match="lock"):
        pack_large([os.urandom(300 * KB), threading.Lock()], trip.arena)
    assert trip.arena.statistics()["blocks"] == 0


def test_it_works_where_numpy_is_not_installed() -> None:
    """In a process that cannot import it."""
    code = (
        "import sys, os, array; sys.modules['numpy'] = None\n"
        "from mpsteps._ipc.arena import Arena\n"
        "from mpsteps._ipc.blocks import Attachments\n"
        "from mpsteps._ipc.large import pack_large, unpack_large\n"
        "arena, reader = Arena(1 << 26), Attachments()\n"
        "value = [os.urandom(1 << 20), {1}, array.array('d', range(100000))]\n"
        "parcel, reference = pack_large(value, arena)\n"
        "assert reference and unpack_large(parcel, reference, reader) == value\n"
        "arena.close(); reader.close(); print('good')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("good\n", "")
