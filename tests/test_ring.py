"""The byte ring: messages of any size, whole and in order, and damage that is told from messages."""

from __future__ import annotations

import mmap
import os
import random
import signal
import tracemalloc
from typing import Tuple

import pytest

from mpsteps._ipc.ring import (
    HEAD,
    HEADER,
    TAIL,
    Ring,
    RingCorrupt,
    RingReader,
    RingWriter,
)
from mpsteps.errors import EngineError, InternalError

Pair = Tuple[RingWriter, RingReader]


def pair(capacity: int = 1024, ordered: bool = True) -> Pair:
    view = memoryview(bytearray(Ring.bytes_needed(capacity)))
    return RingWriter(view, ordered), RingReader(view, None, ordered)


def send(writer: RingWriter, reader: RingReader, message: bytes) -> bytes:
    """Through the ring in one process, pumping and getting in turn."""
    done = writer.begin(message)
    for _ in range(len(message) + 10):
        got = reader.get()
        if got is not None:
            assert done
            return got
        done = writer.pump()
    raise AssertionError("the message did not arrive")


@pytest.fixture
def ring() -> Pair:
    return pair()


def test_messages_come_out_as_they_went_in(ring: Pair) -> None:
    """In order, each once, with their boundaries, the empty one too."""
    writer, reader = ring
    messages = [b"", b"a", b"bc" * 50, b"", bytes(range(200))]
    assert all(writer.put(message) for message in messages)
    assert reader.pending()
    assert [reader.get() for _ in messages] == messages
    assert reader.get() is None
    assert not reader.pending()


def test_drain_takes_all_that_is_there(ring: Pair) -> None:
    """One call takes all whole messages; the next has nothing."""
    writer, reader = ring
    for number in range(9):
        writer.put(b"%d" % number)
    assert reader.drain() == [b"%d" % number for number in range(9)]
    assert reader.drain() == []


@pytest.mark.parametrize("payload", [bytearray(b"abc"), memoryview(b"abc"), memoryview(b"xabcx")[1:4]])
def test_any_bytes_like_payload_will_do(ring: Pair, payload: memoryview) -> None:
    """What comes out is bytes, whatever kind of buffer went in."""
    writer, reader = ring
    assert writer.put(payload)
    assert writer.begin(payload)
    assert reader.drain() == [b"abc", b"abc"]


def test_buffers_of_wider_items_are_measured_in_bytes(ring: Pair) -> None:
    """Three doubles are 24 bytes, not three."""
    writer, reader = ring
    doubles = memoryview(bytes(range(24))).cast("d")
    assert writer.put(doubles)
    assert reader.get() == bytes(range(24))


def test_a_full_ring_refuses_and_changes_nothing(ring: Pair) -> None:
    """False, with the ring as it was; what was put before stays right, and there is room again after a get."""
    writer, reader = ring
    count = 0
    while writer.put(b"x" * 100):
        count += 1
    before = bytes(writer._data), list(writer._words), writer.room()
    assert not writer.put(b"y" * 100)
    assert (bytes(writer._data), list(writer._words), writer.room()) == before
    assert reader.get() == b"x" * 100
    assert writer.put(b"y" * 100)
    assert reader.drain() == [b"x" * 100] * (count - 1) + [b"y" * 100]


def test_room_counts_what_can_still_be_put(ring: Pair) -> None:
    """Capacity less the frames in the ring, each with 16 bytes in front and padded to 16."""
    writer, reader = ring
    assert writer.room() == 1024
    writer.put(b"abc")
    assert writer.room() == 1024 - 32
    reader.get()
    assert writer.room() == 1024


def test_the_longest_frame_fits_and_a_longer_one_is_refused(ring: Pair) -> None:
    """`max_payload` is the limit of put; the error says what to use instead."""
    writer, reader = ring
    assert writer.put(b"m" * writer.max_payload)
    assert reader.get() == b"m" * writer.max_payload
    with pytest.raises(InternalError, match=r"begin\(\)"):
        writer.put(b"m" * (writer.max_payload + 1))


@pytest.mark.parametrize("capacity", [128, 512, 4096])
def test_every_size_around_the_limits_travels(capacity: int) -> None:
    """0, 1, one frame and one byte around it, the ring and one byte around it, ten rings: whole, from any position."""
    writer, reader = pair(capacity)
    frame = writer.max_payload
    sizes = [0, 1, frame - 1, frame, frame + 1, 2 * frame, capacity - 1, capacity, capacity + 1, 10 * capacity]
    chance = random.Random(capacity)
    for _ in range(4):
        for size in sizes:
            message = bytes(chance.getrandbits(8) for _ in range(size))
            assert send(writer, reader, message) == message
            assert send(writer, reader, b"shift") == b"shift"
    assert writer.unsent == reader.unfinished == 0


def test_payloads_wrap_around_at_every_position() -> None:
    """A frame may begin at any multiple of 16 and go on at the beginning of the ring."""
    writer, reader = pair(256)
    for number in range(200):
        message = bytes([number]) * (1 + number * 7 % writer.max_payload)
        assert writer.put(message)
        assert reader.get() == message


def test_what_does_not_fit_waits_in_order() -> None:
    """Messages begun on a full ring follow each other as it is pumped; put does not overtake them."""
    writer, reader = pair(128)
    messages = [b"%d" % number * 30 for number in range(8)]
    done = [writer.begin(message) for message in messages]
    assert not done[-1]
    assert not writer.put(b"!")
    assert writer.unsent > 0
    got: list[bytes] = []
    for _ in range(100):
        got.extend(reader.drain())
        if writer.pump() and not reader.pending():
            break
    assert got == messages
    assert writer.put(b"!")


def test_pending_is_true_for_a_part_of_a_message() -> None:
    """A part gives no message yet, but taking it makes room: a sleeper must not sleep on it."""
    writer, reader = pair(128)
    assert not writer.begin(b"z" * 300)
    assert reader.pending()
    assert reader.get() is None
    assert reader.unfinished > 0
    assert not reader.pending()


def test_the_reader_rings_for_room_once_for_each_time_the_writer_waits() -> None:
    """No ring while nobody waits, one when half of the ring is free, none again until the writer waits anew."""
    view = memoryview(bytearray(Ring.bytes_needed(512)))
    rings: list[int] = []
    writer, reader = RingWriter(view, True), RingReader(view, lambda: rings.append(1), True)
    for _ in range(20):
        assert writer.put(b"x" * 20)
        reader.get()
    assert rings == []
    assert not writer.begin(b"x" * 1000)
    reader.get()
    assert len(rings) == 1
    for _ in range(3):
        reader.get()
    assert len(rings) == 1
    assert not writer.pump()
    reader.get()
    assert len(rings) == 2


def test_without_fences_the_reader_rings_whenever_it_frees() -> None:
    """Where stores are reordered nobody can be sure that the writer does not wait."""
    view = memoryview(bytearray(Ring.bytes_needed(512)))
    rings: list[int] = []
    writer, reader = RingWriter(view, False), RingReader(view, lambda: rings.append(1), False)
    writer.put(b"x")
    assert reader.get() == b"x"
    assert reader.get() is None
    assert rings == [1]


def test_a_message_of_100_mb_passes_a_ring_of_256_kib() -> None:
    """Whole, the reader holding it once (and what its growing buffer has in reserve), not twice."""
    writer, reader = pair(1 << 18)
    message = bytes(bytearray(range(250)) * 400_000)
    assert send(writer, reader, message) == message
    short = message[: 16 << 20]
    tracemalloc.start()
    try:
        assert send(writer, reader, short) == short
        assert tracemalloc.get_traced_memory()[1] < 1.5 * len(short)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("capacity", [0, 64, 100, 1000, 3 << 20])
def test_a_capacity_that_cannot_be_is_refused(capacity: int) -> None:
    """Powers of two only: a position is found by a mask."""
    with pytest.raises(InternalError, match="power of two"):
        RingWriter(memoryview(bytearray(HEADER + capacity)))


def test_released_sides_let_the_mapping_close() -> None:
    """A view left over would make closing a BufferError."""
    memory = mmap.mmap(-1, Ring.bytes_needed(4096))
    view = memoryview(memory)
    writer, reader = RingWriter(view), RingReader(view)
    writer.put(b"x")
    reader.get()
    writer.release()
    reader.release()
    view.release()
    memory.close()


# ------------------------------------------------------------------------------------------------------- damage
def test_cleared_memory_is_not_an_empty_message(ring: Pair) -> None:
    """A head without a frame, as a reordering machine may show it, is not taken for a message of zero bytes."""
    writer, reader = ring
    writer._words[HEAD] = 16
    with pytest.raises(RingCorrupt, match="frame 1 at byte 0 is damaged: it says sequence 0"):
        reader.get()


def test_the_error_is_an_engine_error_and_stays(ring: Pair) -> None:
    """After damage the ring gives nothing any more: it is not guessed where the next frame starts."""
    writer, reader = ring
    writer.put(b"abcd")
    writer._data[17] ^= 1
    for _ in range(3):
        with pytest.raises(RingCorrupt, match="damaged") as caught:
            reader.get()
        assert isinstance(caught.value, EngineError)


def test_good_messages_in_front_of_the_damage_are_delivered(ring: Pair) -> None:
    """drain gives them, the next one raises."""
    writer, reader = ring
    for message in (b"one", b"two", b"three"):
        writer.put(message)
    writer._data[2 * 32 + 16] ^= 4
    assert reader.drain() == [b"one", b"two"]
    with pytest.raises(RingCorrupt, match="frame 3"):
        reader.drain()


def test_a_flipped_flag_is_found(ring: Pair) -> None:
    """Every bit of a frame's 16 header bytes matters, also the one that says whether more follows."""
    writer, reader = ring
    writer.put(b"payload")
    clean = bytes(writer._data[:16])
    for bit in range(128):
        writer._data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(RingCorrupt):
            reader.get()
        writer._data[:16] = clean
    assert reader.get() == b"payload"


@pytest.mark.parametrize("tail", [16, 5000, 2**64 - 16])
def test_a_writer_does_not_believe_an_impossible_tail(ring: Pair, tail: int) -> None:
    """The coordinator's writer reads a word that a worker may have overwritten."""
    writer, _ = ring
    writer._words[TAIL] = tail
    with pytest.raises(RingCorrupt, match="tail"):
        writer.room()


def test_a_frame_that_arrives_late_is_waited_for_where_stores_are_reordered() -> None:
    """With `ordered=False` a frame that does not hold together yet is looked at again."""
    writer, reader = pair(ordered=False)
    writer.put(b"late")
    content = bytes(writer._data[:32])
    writer._data[:32] = bytes(32)
    looks = []

    def settle() -> None:
        looks.append(1)
        if len(looks) == 5:
            writer._data[:32] = content

    reader._settle = settle
    assert reader.get() == b"late"
    assert len(looks) == 5


def filled(chance: random.Random) -> tuple[bytearray, RingReader, list[bytes]]:
    """(memory, its reader, the messages it has not taken yet) with some history, parts of long messages included."""
    memory = bytearray(Ring.bytes_needed(512))
    writer, reader = RingWriter(memoryview(memory), True), RingReader(memoryview(memory), lambda: None, True)
    for _ in range(chance.randrange(40)):
        writer.put(bytes(chance.randrange(30)))
        reader.get()
    messages = [bytes([n + 1]) * chance.choice([0, 1, 20, 110, 200, 700]) for n in range(8)]
    for message in messages:
        writer.begin(message)
    return memory, reader, messages


@pytest.mark.parametrize("seed", range(8))
def test_random_damage_gives_right_messages_or_an_error(seed: int) -> None:
    """Whatever bytes are changed: a prefix of what was sent, then RingCorrupt or nothing. Never other data, no hang.

    (Damage that keeps all CRCs and sequence numbers right has a chance of 1 in 2**32 at most.)
    """
    chance = random.Random(seed)
    damaged = 0
    for _ in range(250):
        memory, reader, messages = filled(chance)
        first = HEADER * chance.randrange(2)
        for _ in range(chance.choice([1, 1, 2, 8, 100])):
            memory[chance.randrange(first, len(memory))] = chance.randrange(256)
        got: list[bytes] = []
        try:
            for _ in range(20):
                message = reader.get()
                got.extend([] if message is None else [message])
        except RingCorrupt:
            damaged += 1
        assert got == messages[: len(got)]
    assert damaged > 50


# ------------------------------------------------------------------------------------------------- two processes
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a second process")
def test_words_are_never_seen_torn() -> None:
    """A word that another process stores all the time holds one of the values stored, at every load.

    What the whole design stands on: an aligned item of a view cast to 'Q' is one 8-byte move in this Python.
    """
    memory = mmap.mmap(-1, 4096)
    words = memoryview(memory).cast("Q")
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        values = [byte * 0x0101010101010101 for byte in range(1, 256)]
        try:
            while not words[8]:
                for value in values:
                    words[0] = value
        finally:
            os._exit(0)
    seen = set()
    for _ in range(300_000):
        seen.add(words[0])
    words[8] = 1
    os.waitpid(pid, 0)
    assert {value % 0x0101010101010101 for value in seen} == {0}
    words.release()
    memory.close()
