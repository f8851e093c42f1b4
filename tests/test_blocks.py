"""Blocks seen by readers in other processes: found exactly, kept as long as they are read, never mistaken."""

from __future__ import annotations

import gc
import os
import random
import threading

import pytest
from arena_peer import Peer

from mpsteps._ipc import blocks
from mpsteps._ipc.arena import Arena
from mpsteps._ipc.blocks import IDLE_GETS, Attachments, BlockError, key_of
from mpsteps._ipc.users import Users
from mpsteps.errors import InternalError

pytestmark = pytest.mark.skipif(not blocks.CAN_SHARE, reason="blocks are shared where there is /proc")

MB = 1 << 20
IMPORTS = """
import os, gc, hashlib
from mpsteps._ipc.arena import Arena
from mpsteps._ipc.blocks import Attachments, BlockError, key_of
arena, attachments = Arena(1 << 26, ""), Attachments()
def maps():
    with open("/proc/self/maps") as lines:
        return sum("memfd:mpsteps" in line for line in lines)
"""


@pytest.fixture
def arena():
    """An owner of blocks in this process."""
    one = Arena(64 * MB, "")
    yield one
    one.close()


@pytest.fixture
def attachments():
    """A reader in this process."""
    one = Attachments()
    yield one
    one.close()


@pytest.fixture
def peer():
    """Another process, with an arena and a reader of its own."""
    one = Peer()
    one.do(IMPORTS)
    yield one
    one.kill()


def mappings() -> int:
    with open("/proc/self/maps") as lines:
        return sum("memfd:mpsteps" in line for line in lines)


# ------------------------------------------------------------------------------- between processes


def test_another_process_reads_what_was_put_here(arena: Arena, peer: Peer) -> None:
    """Through nothing but the reference."""
    content = os.urandom(MB)
    peer.do("views = attachments.get(r)", r=arena.put([content, b"second"]))
    assert peer.ask("bytes(views[0]) == content and bytes(views[1])", content=content) == b"second"


def test_two_readers_see_the_same_memory_at_once(arena: Arena, peer: Peer) -> None:
    """Both have it open, neither disturbs the other, and one may end first."""
    other = Peer()
    try:
        other.do(IMPORTS)
        content = os.urandom(MB)
        reference = arena.put([content])
        for reader in (peer, other):
            reader.do("view = attachments.get(r)[0]", r=reference)
        for reader in (other, peer):
            assert reader.ask("bytes(view) == content", content=content)
        other.kill()
        assert peer.ask("bytes(view) == content", content=content)
    finally:
        other.kill()


def test_what_is_open_survives_its_owner(attachments: Attachments, peer: Peer) -> None:
    """Killed by kill -9: views stay, and further blocks of the segment that is open can be opened."""
    first, second = peer.ask("[arena.put([b'one' * 1000]), arena.put([b'two' * 1000])]")
    view = attachments.get(first)[0]
    peer.kill()
    assert view == b"one" * 1000
    assert attachments.get(second)[0] == b"two" * 1000


def test_what_was_not_opened_in_time_is_a_clear_error(attachments: Attachments, peer: Peer) -> None:
    """The message names the process and says what to do."""
    reference = peer.ask("arena.put([b'x' * 1000])")
    peer.kill()
    with pytest.raises(BlockError, match=rf"process {peer.pid}\) cannot be read any more.*run the step .* again"):
        attachments.get(reference)


def test_a_forwarded_reference_survives_the_owner(attachments: Attachments, peer: Peer) -> None:
    """The coordinator has opened it: others open it through the coordinator, and know it for the same block."""
    reader = Peer()
    try:
        reader.do(IMPORTS)
        original = peer.ask("arena.put([b'result' * 1000])")
        view = attachments.get(original)[0]
        peer.kill()
        forwarded = attachments.forward(original)
        assert key_of(forwarded) == key_of(original)
        assert reader.ask("bytes(attachments.get(r)[0])", r=forwarded) == bytes(view)
    finally:
        reader.kill()


def test_only_what_is_held_can_be_forwarded(arena: Arena, attachments: Attachments) -> None:
    """A promise about a block that might be gone is refused."""
    reference = arena.put([b"x"])
    with pytest.raises(BlockError, match="does not hold it"):
        attachments.forward(reference)
    attachments.get(reference)
    with pytest.raises(BlockError, match="does not hold it"):
        attachments.forward(reference)


def test_a_reader_cannot_write(arena: Arena, attachments: Attachments, peer: Peer) -> None:
    """Neither through the view, nor by asking the kernel for the memory that is mapped."""
    reference = arena.put([b"x" * 100])
    view = attachments.get(reference)[0]
    with pytest.raises(TypeError):
        view[0] = 1
    peer.do("kept = attachments.get(r)", r=reference)
    rights = peer.ask("[line.split()[1] for line in open('/proc/self/maps') if 'memfd:mpsteps' in line]")
    assert rights == ["r--s"]


# ------------------------------------------------------------------------------------- what lives


def test_a_block_is_live_as_long_as_anything_made_of_it(arena: Arena, attachments: Attachments) -> None:
    """A view, a slice of it, a cast: any of them; then it is not, at once."""
    reference = arena.put([b"x" * 1000])
    views = attachments.get(reference)
    piece = views[0][10:20].cast("B")
    assert attachments.live_keys() == [key_of(reference)]
    views.clear()
    gc.collect()
    assert attachments.live_keys() == [key_of(reference)]
    del piece
    assert attachments.live_keys() == []


def test_two_looks_at_one_block_count_once(arena: Arena, attachments: Attachments) -> None:
    """And the block is live until both are gone."""
    reference = arena.put([b"x"])
    one, two = attachments.get(reference)[0], attachments.get(reference)[0]
    assert attachments.live_keys() == [key_of(reference)]
    del one
    assert attachments.live_keys() == [key_of(reference)]
    del two
    assert attachments.live_keys() == []


def test_views_keep_the_mapping_and_the_last_one_unmaps_it(peer: Peer) -> None:
    """Nobody closes a mapping: it goes with the last array in it, also when the reader is closed before."""
    arena = Arena(64 * MB, "")
    peer.do("view = attachments.get(r)[0]; attachments.close()", r=arena.put([b"x" * 5000]))
    arena.close()
    assert peer.ask("maps()") == 1
    assert peer.ask("bytes(view[:2])") == b"xx"
    peer.do("del view")
    assert peer.ask("maps()") == 0


def test_views_outlive_the_reader_itself(peer: Peer) -> None:
    """Also when nobody holds the Attachments any more."""
    arena = Arena(64 * MB, "")
    peer.do("one = Attachments(); view = one.get(r)[0]; one.close(); del one; gc.collect()", r=arena.put([b"x" * 5000]))
    arena.close()
    assert peer.ask("bytes(view) == b'x' * 5000")
    peer.do("del view")
    assert peer.ask("maps()") == 0


def test_segments_that_nobody_reads_any_more_are_let_go(attachments: Attachments, peer: Peer) -> None:
    """By count: after so many blocks elsewhere, the mapping of a dead process's segment is not kept."""
    attachments.get(peer.ask("arena.put([b'x'])"))
    peer.kill()
    with_owner = Arena(64 * MB, "")
    reference = with_owner.put([b"y"])
    for _ in range(IDLE_GETS):
        attachments.get(reference)
    attachments.sweep()
    assert len(attachments) == 2
    attachments.get(reference)
    attachments.sweep()
    assert len(attachments) == 1
    assert attachments.get(reference)[0] == b"y"
    with_owner.close()


def test_a_segment_with_a_live_view_is_never_let_go(arena: Arena, attachments: Attachments) -> None:
    """However long ago it was opened."""
    old, new = Arena(64 * MB, ""), arena.put([b"new"])
    reference = old.put([b"old"])
    view = attachments.get(reference)[0]
    for _ in range(IDLE_GETS + 2):
        attachments.get(new)
    attachments.sweep()
    assert attachments.forward(reference)
    assert view == b"old"
    old.close()


def test_threads_may_open_and_drop_at_once(arena: Arena, attachments: Attachments) -> None:
    """What is live is exact in the end."""
    references = [arena.put([bytes([i]) * 5000]) for i in range(8)]
    wrong = []

    def work() -> None:
        for i in range(400):
            if attachments.get(references[i % 8])[0][0] != i % 8:
                wrong.append(i)
            if i % 50 == 0:
                attachments.live_keys()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert attachments.live_keys() == []


# ------------------------------------------------------------------------------- never mistaken


def test_a_freed_block_is_not_read(arena: Arena, attachments: Attachments) -> None:
    """Also by one who has its segment open already."""
    reference = arena.put([b"x" * 1000])
    attachments.get(reference)
    arena.free(key_of(reference))
    with pytest.raises(BlockError, match="freed while it was still needed"):
        attachments.get(reference)


def test_a_block_that_took_the_place_of_another_is_not_read_for_it(arena: Arena, peer: Peer) -> None:
    """Same segment, same offset, same size: the old reference is an error, the new one is right."""
    old = arena.put([b"a" * 1000])
    peer.do("attachments.get(r)", r=old)
    arena.free(key_of(old))
    new = arena.put([b"b" * 1000])
    assert new[:5] == old[:5]
    with pytest.raises(BlockError, match="freed while it was still needed"):
        peer.do("attachments.get(r)", r=old)
    assert peer.ask("bytes(attachments.get(r)[0])", r=new) == b"b" * 1000


def test_memory_used_again_under_a_reader_is_noticed(arena: Arena, peer: Peer) -> None:
    """It takes a miscount to get there; it is not silent then."""
    reference = arena.put([b"a" * 1000])
    peer.do("view = attachments.get(r)[0]", r=reference)
    arena.free(key_of(reference))
    arena.put([b"b" * 1000])
    with pytest.raises(InternalError, match="while a step was still reading it"):
        peer.do("attachments.live_keys()")


def test_a_segment_given_back_is_not_read(arena: Arena, attachments: Attachments) -> None:
    """Its memory reads as zeros: no stamp is zero."""
    reference = arena.put([b"x" * 1000])
    attachments.get(reference)
    arena.free(key_of(reference))
    arena.trim()
    with pytest.raises(BlockError):
        attachments.get(reference)


def test_a_descriptor_that_was_used_again_is_not_taken_for_the_segment(attachments: Attachments) -> None:
    """The same process, the same number, even the same size: but not the same key."""
    arena = Arena(64 * MB, "")
    reference = arena.put([b"x"])
    arena.close()
    other = Arena(64 * MB, "")
    again = other.put([b"y"])
    assert again[:2] == reference[:2], "the system gives out the lowest free number"
    assert again[3:5] == reference[3:5]
    with pytest.raises(BlockError, match="leads to other memory"):
        attachments.get(reference)
    other.close()


@pytest.mark.parametrize("kind", ["pipe", "fifo", "socket", "closed", "empty", "text"])
def test_a_descriptor_of_something_else_is_a_clear_error_and_no_hang(
    attachments: Attachments, kind: str, tmp_path
) -> None:
    """A FIFO without a writer would block for ever."""
    import socket

    opened = []
    if kind == "pipe":
        opened = list(os.pipe())
    elif kind == "fifo":
        os.mkfifo(tmp_path / "fifo")
        opened = [os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)]
    elif kind == "socket":
        opened = [socket.socket().detach()]
    elif kind == "closed":
        opened = []
    else:
        (tmp_path / "file").write_bytes(b"x" * MB if kind == "text" else b"")
        opened = [os.open(tmp_path / "file", os.O_RDONLY)]
    with pytest.raises(BlockError, match="cannot be read any more"):
        attachments.get((os.getpid(), opened[0] if opened else 999, 12345, MB, 4096, 77, (10,)))
    for fd in opened:
        os.close(fd)


@pytest.mark.parametrize(
    "change",
    [
        {4: 0}, {4: 4097}, {4: 2**40}, {4: -4096}, {5: 0}, {5: -1}, {3: 2**50}, {0: 2**70}, {1: "1"}, {2: 1.5},
        {6: (2**62,)}, {6: (-1,)}, {6: [10]}, {6: ("a",)}, {0: True}, {2: None},
    ],
)  # fmt: skip
def test_forged_references_are_refused(arena: Arena, attachments: Attachments, change) -> None:
    """Whatever stands in them: an error that shows them, no crash, no other memory."""
    reference = list(arena.put([b"x" * 100]))
    for index, value in change.items():
        reference[index] = value
    with pytest.raises(BlockError):
        attachments.get(tuple(reference))


@pytest.mark.parametrize("what", [None, (), (1, 2, 3), "abc", [1, 2, 3, 4, 5, 6, ()], 7])
def test_what_is_no_reference_is_refused(attachments: Attachments, what) -> None:
    """By name."""
    with pytest.raises(BlockError, match="does not name a block"):
        attachments.get(what)


@pytest.mark.parametrize("sizes", [(101,), (5000,), (100, 1), (), (36,)])
def test_a_reference_with_other_sizes_is_refused(arena: Arena, attachments: Attachments, sizes) -> None:
    """A right stamp does not open more, or something else, than was put."""
    arena.put([b"secret" * 1000])
    reference = arena.put([b"x" * 100])
    forged = (*reference[:6], sizes)
    if blocks.layout(sizes)[1] == blocks.layout((100,))[1]:
        assert len(attachments.get(forged)[0]) <= 128
    else:
        with pytest.raises(BlockError):
            attachments.get(forged)


def test_a_reference_to_a_known_segment_with_another_size_is_refused(arena: Arena, attachments: Attachments) -> None:
    """Also when it is not opened anew."""
    reference = arena.put([b"x"])
    attachments.get(reference)
    with pytest.raises(BlockError, match="size of the segment is another"):
        attachments.get((*reference[:3], 2 * reference[3], *reference[4:]))


def test_too_many_open_files_is_an_error_of_this_one_block(arena: Arena, peer: Peer) -> None:
    """And the next one can be read when there is room again."""
    reference = arena.put([b"x" * 10])
    peer.do("import resource; before = resource.getrlimit(resource.RLIMIT_NOFILE)")
    peer.do("resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))")
    with pytest.raises(BlockError, match="Too many open files"):
        peer.do("attachments.get(r)", r=reference)
    peer.do("resource.setrlimit(resource.RLIMIT_NOFILE, before)")
    assert peer.ask("bytes(attachments.get(r)[0])", r=reference) == b"x" * 10


def test_a_lock_of_somebody_else_does_not_stop_a_reader(arena: Arena, tmp_path) -> None:
    """`certify` never waits."""
    import fcntl

    reference = arena.put([b"x"])
    fd = blocks.open_segment(*reference[:4])
    fcntl.flock(fd, fcntl.LOCK_EX)
    reader = Attachments(ordered=False)
    assert reader.get(reference)[0] == b"x"
    reader.close()
    os.close(fd)


# ------------------------------------------------------------------------------- all of it together

WORKER = """
import random
from mpsteps._ipc.large import pack_large, unpack_large
randomly, kept = random.Random(seed), []
def step(parcels):
    views = [attachments.get(r)[0] for r in parcels]
    wrong = sum(any(byte != view[0] for byte in view[::997]) for view in views)
    for view, first in kept:
        wrong += any(byte != first for byte in view[::997])
    result = arena.put([bytes([randomly.randrange(256)]) * randomly.randrange(1, 300_000)])
    if randomly.random() < 0.3:
        kept.append((views[0][5:], views[0][0]))
    if kept and randomly.random() < 0.25:
        kept.pop(randomly.randrange(len(kept)))
    return wrong, result
def answer(parcels, free):
    for key in free:
        arena.free(key)
    wrong, result = step(parcels)
    return wrong, result, attachments.live_keys()
"""


class Coordinator:
    """What the coordinator does with blocks, and nothing else: workers' results are arguments of later steps."""

    def __init__(self) -> None:
        self.arena, self.attachments, self.users = Arena(64 * MB, ""), Attachments(), Users()
        self.workers = {number: self.start(number) for number in (1, 2)}
        self.results = []  # (reference, owner, view)
        self.last = 2
        self.turn = 0  # the worker that the next step goes to
        self.waiting = {}  # worker -> keys of its blocks that it is to free with its next step

    def start(self, number: int) -> Peer:
        worker = Peer()
        worker.do(IMPORTS + WORKER, seed=number)
        return worker

    def step(self, number: int, worker: int, randomly: random.Random) -> int:
        """One step on a worker; how many views there had wrong content."""
        content = bytes([randomly.randrange(256)]) * randomly.randrange(1, 300_000)
        arguments = [(self.arena.put([content]), 0)]
        if self.results:
            reference, owner, _ = randomly.choice(self.results)
            arguments.append((self.attachments.forward(reference), owner))
        for reference, owner in arguments:
            self.users.add(key_of(reference), owner, ("step", number))
        wrong, result, live = self.workers[worker].ask("answer(p, f)", p=[r for r, _ in arguments], f=self.free())
        view = self.attachments.get(result)[0]
        self.users.add(key_of(result), worker, "result")
        self.results.append((result, worker, view))
        self.users.keeps(worker, live)
        for reference, _ in arguments:
            self.users.drop(key_of(reference), ("step", number))
        if len(self.results) > 6:
            reference, _, view = self.results.pop(randomly.randrange(6))
            del view
            self.users.drop(key_of(reference), "result")
        assert all(not any(byte != view[0] for byte in view[::997]) for _, _, view in self.results)
        self.attachments.live_keys()
        return wrong

    def free(self) -> list:
        """Free what has no users: here at once, elsewhere with the next step."""
        for owner, key in self.users.take_free():
            if owner == 0:
                self.arena.free(key)
            elif owner in self.workers:
                self.waiting.setdefault(owner, []).append(key)
        return self.waiting.pop(self.turn, [])

    def replace(self, worker: int) -> None:
        """Kill a worker; its results stay readable as long as they are held here."""
        self.workers.pop(worker).kill()
        self.users.gone(worker)
        self.last += 1
        self.workers[self.last] = self.start(self.last)

    def close(self) -> None:
        for worker in self.workers.values():
            worker.kill()
        self.attachments.close()
        self.arena.close()


@pytest.mark.parametrize("seed", [1, 2])
def test_no_reader_ever_sees_a_block_being_used_again(seed: int) -> None:
    """Steps on two workers that keep some of their arguments for long, results passed on, workers killed: every view
    holds what was put, at any time, and in the end everything is free."""
    randomly = random.Random(seed)
    coordinator = Coordinator()
    try:
        for number in range(400):
            coordinator.turn = randomly.choice(list(coordinator.workers))
            assert coordinator.step(number, coordinator.turn, randomly) == 0
            if number % 150 == 149:
                coordinator.replace(coordinator.turn)
        assert coordinator.arena.statistics()["segments"] <= 2
        for worker in coordinator.workers.values():
            worker.do("kept.clear()")
        for number, worker in coordinator.workers.items():
            coordinator.users.keeps(number, worker.ask("attachments.live_keys()"))
        for reference, _, _ in coordinator.results:
            coordinator.users.drop(key_of(reference), "result")
        coordinator.turn = 0
        coordinator.free()
        for number, worker in coordinator.workers.items():
            left = set(coordinator.waiting.get(number, []))
            assert worker.ask("set(arena._slots)") == left
        assert coordinator.arena.statistics()["blocks"] == 0
        assert len(coordinator.users) == 0
    finally:
        coordinator.close()
