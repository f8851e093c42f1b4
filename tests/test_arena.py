"""The arena: one writer, memory that is used again, a limit, files beyond it, and nothing left behind."""

from __future__ import annotations

import errno
import logging
import mmap
import os
import random
import subprocess
import sys
import threading
from typing import List

import pytest

from mpsteps._ipc import arena as arena_module
from mpsteps._ipc import blocks, shm
from mpsteps._ipc.arena import PATIENCE, SEGMENT, Arena
from mpsteps._ipc.blocks import Attachments, key_of
from mpsteps.errors import EngineError, InternalError

pytestmark = pytest.mark.skipif(not blocks.CAN_SHARE, reason="blocks are shared where there is /proc")

MB = 1 << 20


@pytest.fixture
def arena(tmp_path):
    """An arena of at most 64 MB that spills to a folder of its own."""
    one = Arena(64 * MB, str(tmp_path))
    yield one
    one.close()


@pytest.fixture
def attachments():
    """A reader."""
    one = Attachments()
    yield one
    one.close()


def full(monkeypatch: pytest.MonkeyPatch, number: int = errno.ENOSPC) -> None:
    """From now on there is no shared memory to be had."""

    def refuse(size: int) -> int:
        raise EngineError(f"There is no room for {size} bytes of shared memory ({os.strerror(number)}): free some.")

    monkeypatch.setattr(arena_module.shm, "create", refuse)


def memory_of(pid_fd: int) -> int:
    """Bytes that a file really occupies."""
    return os.fstat(pid_fd).st_blocks * 512


def open_files() -> List[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:
            continue  # the one that listed them
    return sorted(found)


def mappings() -> int:
    with open("/proc/self/maps") as lines:
        return sum("memfd:mpsteps" in line or "mpsteps-" in line for line in lines)


# ------------------------------------------------------------------------------------- one block


def test_what_was_put_is_read(arena: Arena, attachments: Attachments) -> None:
    """Several buffers of any size and type, the empty one included, come back as they were, in order."""
    buffers = [b"a" * 100, b"", bytearray(range(256)), memoryview(b"xyz"), memoryview(bytes(8)).cast("Q")]
    views = attachments.get(arena.put(buffers))
    assert [bytes(view) for view in views] == [bytes(memoryview(b).cast("B")) if len(b) else b"" for b in buffers]
    assert all(view.readonly and view.contiguous for view in views)


def test_buffers_are_aligned_for_any_array(arena: Arena, attachments: Attachments) -> None:
    """Each buffer begins at a multiple of 64 bytes, whatever the size of the one before it."""
    reference = arena.put([b"1", b"22", b"333" * 50])
    starts, total = blocks.layout(reference[6])
    assert [start % 64 for start in starts] == [0, 0, 0]
    assert reference[4] % blocks.PAGE == 0
    assert total <= blocks.slot_size(total)


def test_a_reference_is_made_of_plain_numbers(arena: Arena) -> None:
    """It travels by marshal, within any frame."""
    import marshal

    reference = arena.put([b"x", b"y"])
    assert marshal.loads(marshal.dumps(reference)) == reference
    assert blocks.size_of(reference) == 2


def test_a_buffer_that_is_not_contiguous_is_refused_and_takes_nothing(arena: Arena) -> None:
    """Copying it piece by piece is for whoever has it; no half-made block is left."""
    with pytest.raises(TypeError):
        arena.put([memoryview(bytes(100))[::2]])
    assert arena.statistics()["blocks"] == 0


def test_freeing_twice_is_a_loud_error(arena: Arena) -> None:
    """Somebody has miscounted: the second time it might be another's block."""
    key = key_of(arena.put([b"x"]))
    arena.free(key)
    with pytest.raises(InternalError, match="freed twice"):
        arena.free(key)


# -------------------------------------------------------------------------------- memory used again


def test_freed_memory_is_used_again(arena: Arena) -> None:
    """A thousand blocks, one at a time, lie in the same pages: nothing is touched for the first time twice."""
    places = set()
    for i in range(1000):
        reference = arena.put([bytes([i % 256]) * 300_000])
        places.add(reference[1:5])
        arena.free(key_of(reference))
    assert len(places) == 1


def test_a_thousand_rounds_are_flat_in_descriptors_and_memory(arena: Arena, attachments: Attachments) -> None:
    """Putting, reading and freeing leave nothing: not in the owner, not in the reader."""
    randomly = random.Random(1)
    data = os.urandom(3 * MB)

    def rounds(count: int) -> None:
        held = []
        for _ in range(count):
            size = randomly.choice([10, 5000, 300_000, MB, 3 * MB])
            held.append((arena.put([data[:size]]), size))
            if len(held) > 5:
                reference, size = held.pop(randomly.randrange(6))
                assert attachments.get(reference)[0] == data[:size]
                arena.free(key_of(reference))
        for reference, _ in held:
            arena.free(key_of(reference))

    rounds(50)
    attachments.live_keys()
    files, maps, reserved = open_files(), mappings(), arena.statistics()["bytes"]
    rounds(1000)
    attachments.live_keys()
    assert (open_files(), mappings(), arena.statistics()["bytes"]) == (files, maps, reserved)
    assert arena.statistics()["blocks"] == arena.statistics()["used"] == 0


def test_blocks_of_nearly_one_size_take_each_others_place(arena: Arena) -> None:
    """Sizes fall into classes: a block 1 % larger than the freed one fits where that was, also between neighbours."""
    first = arena.put([bytes(MB)])
    arena.put([bytes(MB)])
    arena.free(key_of(first))
    again = arena.put([bytes(MB + MB // 100)])
    assert again[4] == first[4]


@pytest.mark.parametrize("size", [1, 4096, 4097, 65_536, 65_537, 300_000, 8 * MB, 8 * MB + 64, 200 * MB])
def test_a_class_wastes_at_most_an_eighth_or_a_page(size: int) -> None:
    """Whole pages, at least as large, and not much larger."""
    slot = blocks.slot_size(size)
    assert slot % blocks.PAGE == 0
    assert size <= slot < size + max(blocks.PAGE, size / 8 + 1)
    assert blocks.slot_size(slot) == slot


def test_classes_are_few() -> None:
    """Eight per power of two, so that holes of one kind serve many sizes."""
    assert len({blocks.slot_size(size) for size in range(MB + 1, 2 * MB + 1, 1000)}) == 8


def test_neighbouring_holes_join(arena: Arena) -> None:
    """Sixteen small blocks freed in any order make room for one large one in the same segment."""
    randomly = random.Random(2)
    small = [arena.put([bytes(900_000)]) for _ in range(16)]
    assert arena.statistics()["segments"] == 1
    randomly.shuffle(small)
    for reference in small:
        arena.free(key_of(reference))
    arena.put([bytes(14 * MB)])
    assert arena.statistics()["segments"] == 1


def test_blocks_never_overlap(arena: Arena, attachments: Attachments) -> None:
    """Random puts and frees: every block in use holds what was put there, at any time."""
    randomly = random.Random(3)
    held = {}
    for step in range(600):
        if held and randomly.random() < 0.45:
            reference, _ = held.pop(randomly.choice(list(held)))
            arena.free(key_of(reference))
        else:
            content = step.to_bytes(4, "little") * randomly.randrange(1, 50_000)
            reference = arena.put([content])
            held[key_of(reference)] = reference, content
        if step % 100 == 99:
            assert all(attachments.get(r)[0] == content for r, content in held.values())
    assert arena.statistics()["blocks"] == len(held)


def test_empty_segments_go_back_by_count(arena: Arena) -> None:
    """A segment that has been empty for so many blocks is closed; the one in use stays."""
    kept = arena.put([b"x"])
    large = arena.put([bytes(20 * MB)])
    arena.free(key_of(large))
    assert arena.statistics()["segments"] == 2
    for _ in range(PATIENCE - 1):
        arena.free(key_of(arena.put([b"y"])))
    assert arena.statistics()["segments"] == 2
    arena.put([b"y"])
    assert arena.statistics()["segments"] == 1
    assert arena.statistics()["blocks"] == 2
    arena.free(key_of(kept))


def test_memory_given_back_is_gone_even_where_it_is_still_mapped(arena: Arena, attachments: Attachments) -> None:
    """A reader that has not noticed yet holds a mapping, but no memory; and lets go of it when it looks."""
    reference = arena.put([bytes(8 * MB)])
    attachments.get(reference)
    fd = os.dup(reference[1])
    assert memory_of(fd) > 8 * MB
    arena.free(key_of(reference))
    arena.trim()
    assert memory_of(fd) <= 2 * blocks.PAGE
    os.close(fd)
    assert len(attachments) == 1
    attachments.sweep()
    assert len(attachments) == 0
    assert mappings() == 0


def test_segments_are_reserved_private_and_of_fixed_size(arena: Arena) -> None:
    """What the arena has cannot run out, nobody else may look at it, and nobody can cut it under a reader."""
    fd = arena.put([b"x"])[1]
    status = os.fstat(fd)
    assert status.st_blocks * 512 >= status.st_size >= SEGMENT
    assert status.st_mode & 0o777 == 0o600
    assert not os.get_inheritable(fd)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)


# -------------------------------------------------------------------------------- limit and files


def test_the_limit_is_kept_and_the_rest_goes_to_files(
    arena: Arena, attachments: Attachments, caplog: pytest.LogCaptureFixture, tmp_path
) -> None:
    """Never more than the limit in shared memory; what is beyond it is read as well; one warning, no file name left."""
    references = []
    for i in range(12):
        references.append(arena.put([bytes([i]) * (8 * MB)]))
        assert arena.statistics()["bytes"] <= 64 * MB
    assert 0 < arena.statistics()["spilled"] <= 6
    assert [attachments.get(r)[0][-1] for r in references] == list(range(12))
    assert all(view.readonly for view in attachments.get(references[-1]))
    assert [r.levelno for r in caplog.records] == [logging.WARNING]
    assert str(tmp_path) in caplog.text
    assert "67108864" in caplog.text
    assert os.listdir(tmp_path) == []


def test_a_block_larger_than_the_limit_goes_to_a_file(arena: Arena, attachments: Attachments) -> None:
    """At once, and what follows is in shared memory again."""
    large = arena.put([bytes(65 * MB)])
    assert len(attachments.get(large)[0]) == 65 * MB
    assert arena.statistics()["bytes"] == 0
    arena.put([b"x"])
    assert arena.statistics()["spilled"] == 1


def test_idle_memory_makes_room_before_anything_is_spilled(arena: Arena) -> None:
    """A limit that is full of holes of the wrong size is not full."""
    for reference in [arena.put([bytes(14 * MB)]) for _ in range(3)]:
        arena.free(key_of(reference))
    arena.put([bytes(50 * MB)])
    assert arena.statistics()["spilled"] == 0


def test_a_freed_file_is_gone(arena: Arena, attachments: Attachments, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its descriptor at once, its space with the last mapping."""
    full(monkeypatch)
    files, maps = open_files(), mappings()
    for _ in range(50):
        reference = arena.put([bytes(MB)])
        attachments.get(reference)
        arena.free(key_of(reference))
        attachments.live_keys()
    assert (open_files(), mappings()) == (files, maps)
    assert arena.statistics()["spilled"] == 50


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOMEM, errno.EMFILE])
def test_without_memory_values_go_through_files(
    arena: Arena,
    attachments: Attachments,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: int,
) -> None:
    """When the system refuses, nothing fails: a file, and one sentence with the reason for any number of blocks."""
    full(monkeypatch, number)
    for i in range(5):
        assert attachments.get(arena.put([bytes([i]) * 500_000]))[0] == bytes([i]) * 500_000
    assert len(caplog.records) == 1
    assert os.strerror(number) in caplog.text


def test_memory_that_was_refused_is_asked_for_again_later(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not each time, which would press a full machine further, but after some blocks."""
    asked = []

    def refuse(size: int) -> int:
        asked.append(size)
        raise EngineError("There is no room.")

    with monkeypatch.context() as patch:
        patch.setattr(arena_module.shm, "create", refuse)
        for _ in range(PATIENCE):
            arena.free(key_of(arena.put([b"x"])))
    assert len(asked) == 2
    arena.put([b"x"])
    assert arena.statistics()["segments"] == 1


def test_a_machine_without_free_memory_is_not_pressed(
    arena: Arena, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The kernel would reserve until the OOM killer comes: the arena looks first, and asks for nothing."""
    monkeypatch.setattr(arena_module.room, "available", lambda: 5 * MB)
    monkeypatch.setattr(arena_module.shm, "create", lambda size: pytest.fail(f"{size} bytes were asked for"))
    arena.put([bytes(6 * MB)])
    assert arena.statistics()["spilled"] == 1
    assert "only 5242880 bytes of memory are free" in caplog.text


def test_a_small_segment_is_tried_where_a_large_one_is_refused(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nearly full is not full: there may be room for this one block."""
    create = shm.create

    def tight(size: int) -> int:
        if size > 2 * MB:
            raise EngineError("There is no room.")
        return create(size)

    monkeypatch.setattr(arena_module.shm, "create", tight)
    arena.put([bytes(MB)])
    assert arena.statistics()["segments"] == 1
    assert arena.statistics()["spilled"] == 0


def test_no_memory_and_no_folder_means_by_value(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """`put` says None; the value then travels like any other."""
    full(monkeypatch)
    arena = Arena(64 * MB)
    assert arena.put([bytes(MB)]) is None
    assert arena.put([bytes(MB)]) is None
    assert "through the lanes" in caplog.text
    assert len(caplog.records) == 1
    arena.close()


def test_no_memory_and_no_disk_means_by_value(
    arena: Arena, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A disk that is full, or a folder that is gone, is no error either; no descriptor stays open."""
    full(monkeypatch)
    files = open_files()

    def refuse(fd: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(arena_module.shm, "_reserve", refuse)
    assert arena.put([bytes(MB)]) is None
    assert "No space left" in caplog.text
    gone = Arena(0, "/nonexistent/folder")
    assert gone.put([b"x"]) is None
    assert "/nonexistent/folder" in caplog.text
    assert open_files() == files


def test_a_disk_that_fails_while_writing_means_by_value(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    """An I/O error in the middle of a block leaves no block."""
    full(monkeypatch)
    files = open_files()

    def fail(fd: int, data: bytes, offset: int) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", fail)
        assert arena.put([bytes(MB)]) is None
    assert arena.statistics()["blocks"] == 0
    assert open_files() == files


def test_files_are_written_in_pieces(arena: Arena, attachments: Attachments, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may write less than it was asked to."""
    full(monkeypatch)
    monkeypatch.setattr(arena_module, "_LARGEST_WRITE", 1000)
    content = os.urandom(54_321)
    assert attachments.get(arena.put([b"a", content]))[1] == content


def test_a_process_with_a_limit_on_files_falls_back_to_by_value() -> None:
    """Really limited (RLIMIT_FSIZE holds for memfd and files alike): None for what is larger, no signal, no hang."""
    code = (
        "import logging, resource; logging.basicConfig(format='%(message)s')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "from mpsteps._ipc.arena import Arena\n"
        "arena = Arena(1 << 30, '')\n"
        "print(arena.put([bytes(1 << 22)]), arena.put([bytes(1000)]) is not None)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "None True\n"
    assert "There is no room" in done.stderr
    assert "File too large" in done.stderr


# ------------------------------------------------------------------------------------------ its life


def test_where_blocks_cannot_be_shared_put_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without /proc (macOS) or ctypes nothing is shared, by decision, and nothing is made."""
    monkeypatch.setattr(blocks, "CAN_SHARE", False)
    arena = Arena(64 * MB, "")
    assert arena.put([bytes(MB)]) is None
    assert arena.statistics()["segments"] == arena.statistics()["spilled"] == 0


def test_after_its_end_an_arena_refuses_and_readers_keep_what_they_have(arena: Arena, attachments: Attachments) -> None:
    """Closing is not freeing: views stay valid. It may be done twice."""
    view = attachments.get(arena.put([b"still here"]))[0]
    arena.close()
    arena.close()
    assert arena.put([b"x"]) is None
    assert view == b"still here"
    view.release()
    attachments.live_keys()
    assert len(attachments) == 0


def test_nothing_is_left_after_closing(tmp_path) -> None:
    """No descriptor, no mapping, no file: with blocks in use, in memory and in files."""
    files, maps = open_files(), mappings()
    arena = Arena(20 * MB, str(tmp_path))
    for _ in range(4):
        arena.put([bytes(8 * MB)])
    assert arena.statistics()["spilled"] > 0
    arena.close()
    assert (open_files(), mappings()) == (files, maps)
    assert os.listdir(tmp_path) == []


def test_a_fork_can_neither_write_nor_destroy_what_its_parent_has(arena: Arena, attachments: Attachments) -> None:
    """A step may fork: the child's copy of the arena is dead, and its end leaves the parent's memory alone."""
    reference = arena.put([b"parent's"])
    empty = arena.put([bytes(20 * MB)])
    arena.free(key_of(empty))
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            refused = arena.put([b"child's"]) is None
            arena.free(key_of(reference))
            arena.trim()
            arena.close()
            code = 0 if refused else 2
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert attachments.get(reference)[0] == b"parent's"
    assert arena.statistics()["segments"] == 2
    assert memory_of(empty[1]) > 20 * MB
    assert arena.put([bytes(18 * MB)])[1] == empty[1]


def test_threads_may_put_and_free_at_once(arena: Arena, attachments: Attachments) -> None:
    """Four threads, each sees its own blocks whole."""
    wrong = []

    def work(number: int) -> None:
        for i in range(100):
            content = bytes([number, i]) * 20_000
            reference = arena.put([content])
            if attachments.get(reference)[0] != content:
                wrong.append((number, i))
            arena.free(key_of(reference))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert arena.statistics()["blocks"] == 0


def test_memory_without_a_way_to_punch_holes_still_goes_with_the_last_mapping(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The portable path: no MADV_REMOVE."""
    monkeypatch.delattr(mmap, "MADV_REMOVE")
    arena.free(key_of(arena.put([bytes(MB)])))
    arena.trim()
    assert arena.statistics()["segments"] == 0


def test_unordered_machines_take_the_kernels_lock(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """Where stores may be seen out of order, writer and reader both certify each block, around what they do."""
    calls = []
    certify = blocks.certify
    monkeypatch.setattr(blocks, "certify", lambda fd: (calls.append(fd), certify(fd)))
    arena, attachments = Arena(64 * MB, str(tmp_path), ordered=False), Attachments(ordered=False)
    reference = arena.put([b"x" * 1000])
    assert calls == [reference[1]] * 2
    view = attachments.get(reference)[0]
    assert len(calls) == 3
    assert view == b"x" * 1000
    attachments.live_keys()
    assert len(calls) == 4
    attachments.close()
    arena.close()
