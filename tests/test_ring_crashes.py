"""A side killed at any point: the other one sees whole messages only, and goes on.

The first half kills a real process with SIGKILL before every single bytecode of a put and of a get. The second half
cuts *inside* a copy, where a bytecode sweep cannot: after every byte, and with any subset of its 8-byte words.
"""

from __future__ import annotations

import mmap
import os
import random
import signal
import sys
from typing import Any, Callable

import pytest

from mpsteps._ipc import ring as ring_module
from mpsteps._ipc.ring import HEAD, HEADER, Ring, RingReader, RingWriter

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")

CAPACITY = 512


class PublishesFirst(RingWriter):
    """The mutant that these tests must catch: `head` is stored before the frame is complete."""

    def _frame(self, payload: Any, word: int) -> bool:
        self._words[HEAD] = self._head + ((len(payload) + 31) & -16)
        return super()._frame(payload, word)


class FreesFirst(RingReader):
    """The mutant of the other side: the room is given back before the message is copied out."""

    def _next(self) -> bytes | None:
        self._cursor, cursor = self._head, self._cursor
        self._free()
        self._cursor = cursor
        return super()._next()


def killed_at(point: int, action: Callable[[], object]) -> bool:
    """Run `action` in a child that is killed before its `point`-th bytecode in the ring's code; whether it was."""
    pid = os.fork()
    if pid == 0:
        left = [point]

        def trace(frame: Any, event: str, argument: Any) -> Any:
            if frame.f_code.co_filename not in (ring_module.__file__, __file__):
                return None
            frame.f_trace_opcodes = True
            if event == "opcode":
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        status = 3
        try:
            signal.alarm(20)
            sys._getframe().f_trace_opcodes = True  # 3.12 takes no notice of the others unless one was set before
            sys.settrace(trace)
            action()
            status = 0
        finally:
            sys.settrace(None)
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    assert status == 0, f"the child failed with status {status}"
    return False


class Scene:
    """A ring in memory shared with the children to come, with `before` in it, `skip` bytes from its beginning."""

    def __init__(self, before: list[bytes], skip: int, writing: type, reading: type) -> None:
        self.memory = mmap.mmap(-1, Ring.bytes_needed(CAPACITY))
        self.view = memoryview(self.memory)
        self.writer, self.reader = writing(self.view), reading(self.view)
        while self.writer._head < skip:
            assert self.writer.put(b"")
            assert self.reader.get() == b""
        for message in before:
            assert self.writer.put(message)

    def close(self) -> None:
        self.writer.release()
        self.reader.release()
        self.view.release()
        self.memory.close()


def sweep_put(
    action: Callable[[RingWriter], object], whole: list[bytes], skip: int, kind: type = RingWriter
) -> tuple[int, int]:
    """Kill `action` at every bytecode; (points, points at which the reader saw something that was never sent)."""
    point, wrong, alive = 0, 0, True
    while alive:
        point += 1
        scene = Scene([b"first"], skip, kind, RingReader)
        alive = killed_at(point, lambda writer=scene.writer: action(writer))
        got: list[bytes] = []
        try:
            for _ in range(4):
                got.extend(scene.reader.drain())
        except ring_module.RingCorrupt:
            got.append(b"damaged")
        # What the reader has is "first" and a prefix of what the child put; with the child alive, all of it.
        expected = [b"first", *whole]
        if got != expected[: len(got)] or not got or (not alive and got != expected):
            wrong += 1
        scene.close()
    return point - 1, wrong


SMALL, LARGE, LONG = b"second " * 5, bytes(range(112)), bytes(range(200))


@pytest.mark.parametrize(
    ("action", "whole", "skip"),
    [
        pytest.param(lambda writer: writer.put(SMALL), [SMALL], 0, id="put"),
        pytest.param(lambda writer: writer.put(LARGE), [LARGE], CAPACITY - 96, id="put around the end"),
        pytest.param(lambda writer: writer.begin(LONG), [LONG], 64, id="begin a message of two frames"),
    ],
)
def test_a_writer_killed_at_any_bytecode_leaves_whole_messages(action: Any, whole: list[bytes], skip: int) -> None:
    """The reader sees what was published before the kill, whole and in order, and can go on looking."""
    points, wrong = sweep_put(action, whole, skip)
    assert points > 60
    assert wrong == 0


def test_a_writer_that_publishes_first_is_caught() -> None:
    """The sweep has teeth: a writer that stores `head` too early is found wrong at many points."""
    points, wrong = sweep_put(lambda writer: writer.put(SMALL), [SMALL], 0, PublishesFirst)
    assert wrong > points // 4


def sweep_get(kind: type = RingReader) -> tuple[int, int]:
    """Kill a get at every bytecode; (points, points at which its writer could overrun what was not taken)."""
    point, wrong, alive = 0, 0, True
    while alive:
        point += 1
        scene = Scene([b"first", b"second"], CAPACITY - 32, RingWriter, kind)
        tail_before = scene.writer._head - 64
        alive = killed_at(point, lambda reader=scene.reader: check_first(reader.get()))
        room = scene.writer.room()  # raises if the tail makes no sense
        taken = (room - (CAPACITY - 64)) // 32
        if taken not in (0, 1) or (not alive and taken != 1):
            wrong += 1
        # The writer goes on, up to the room there is, and not one byte further.
        count = 0
        while scene.writer.put(b"more"):
            count += 1
        if count * 32 != room or scene.writer._head - CAPACITY != tail_before + 32 * taken:
            wrong += 1
        scene.close()
    return point - 1, wrong


def check_first(message: bytes | None) -> None:
    assert message == b"first"


def test_a_reader_killed_at_any_bytecode_leaves_a_ring_its_writer_can_use() -> None:
    """The tail is the old or the new one, so that the writer neither overruns nor fails nor waits in vain."""
    points, wrong = sweep_get()
    assert points > 60
    assert wrong == 0


def test_a_reader_that_frees_first_is_caught() -> None:
    """The sweep of get has teeth: giving back the room of everything before taking one message is found."""
    _, wrong = sweep_get(FreesFirst)
    assert wrong > 10


# --------------------------------------------------------------------------------------------- cuts inside a copy
class Recorder:
    """Memory of which every store is kept, in order."""

    def __init__(self, view: memoryview, log: list[tuple[int, bytes]], offset: int, item: int) -> None:
        self.view, self.log, self.offset, self.item = view, log, offset, item

    def __getitem__(self, where: Any) -> Any:
        return self.view[where]

    def __setitem__(self, where: Any, value: Any) -> None:
        self.view[where] = value
        start = where * self.item if isinstance(where, int) else where.start or 0
        content = value.to_bytes(8, sys.byteorder) if isinstance(where, int) else bytes(value)
        self.log.append((self.offset + start, content))


def recorded_puts(messages: list[bytes], skip: int) -> tuple[bytearray, list[tuple[int, bytes]], RingReader]:
    """(the ring before, the stores that the puts make, a reader at the place where they start)."""
    memory = bytearray(random.Random(3).randbytes(Ring.bytes_needed(CAPACITY)) if hasattr(random, "randbytes") else b"")
    memory = memory or bytearray(b"\xa5" * Ring.bytes_needed(CAPACITY))
    memory[:HEADER] = bytes(HEADER)
    writer, reader = RingWriter(memoryview(memory)), RingReader(memoryview(memory))
    while writer._head < skip:
        writer.put(b"")
        reader.get()
    before = bytearray(memory)
    log: list[tuple[int, bytes]] = []
    words, data = writer._words, writer._data
    writer._words, writer._data = Recorder(words, log, 0, 8), Recorder(data, log, HEADER, 1)  # type: ignore[assignment]
    for message in messages:
        writer.put(message)
    return before, log, reader


def read_all(memory: bytearray, like: RingReader) -> list[bytes]:
    reader = RingReader(memoryview(memory))
    reader._cursor = reader._head = reader._freed = like._cursor
    reader._sequence = like._sequence
    return reader.drain()


MESSAGES = [b"", b"one", bytes(range(100)), b"two" * 20]


@pytest.mark.parametrize("skip", [0, CAPACITY - 96])
def test_a_copy_cut_after_any_byte_is_never_seen(skip: int) -> None:
    """Every byte prefix of every store: the reader sees the messages whose `head` was stored before it, and no other.

    (The 8-byte store of a word is one instruction and is not cut.)
    """
    before, log, reader = recorded_puts(MESSAGES, skip)
    memory, published = bytearray(before), 0
    for offset, content in log:
        if offset >= HEADER:
            for cut in range(len(content)):
                torn = bytearray(memory)
                torn[offset : offset + cut] = content[:cut]
                assert read_all(torn, reader) == MESSAGES[:published]
        else:
            published += 1
        memory[offset : offset + len(content)] = content
        assert read_all(memory, reader) == MESSAGES[:published]
    assert published == len(MESSAGES)


@pytest.mark.versions
def test_a_frame_of_which_some_words_have_not_arrived_is_never_taken_for_a_message() -> None:
    """Where stores are reordered, `head` may be seen before parts of the frame: that is damage, never a message."""
    before, log, reader = recorded_puts([bytes(range(1, 101))], 0)
    chance = random.Random(11)
    final = bytearray(before)
    for offset, content in log:
        final[offset : offset + len(content)] = content
    changed = [at for at in range(HEADER, len(final), 8) if final[at : at + 8] != before[at : at + 8]]
    for _ in range(500):
        late = chance.sample(changed, chance.randrange(1, len(changed) + 1))
        memory = bytearray(final)
        for at in late:
            memory[at : at + 8] = before[at : at + 8]
        with pytest.raises(ring_module.RingCorrupt, match="frame 1"):
            read_all(memory, reader)
