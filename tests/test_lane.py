"""Lanes: both rings, the words and the bells together, within one process and between two."""

from __future__ import annotations

import mmap
import os
import random
import select
import signal
import sys
import time
from typing import Callable, Iterator, Tuple

import pytest

from mpsteps._ipc import lane as lane_module
from mpsteps._ipc import shm
from mpsteps._ipc.bell import Bell
from mpsteps._ipc.lane import NEVER, Board, CoordinatorEnd, Lane, WorkerEnd
from mpsteps.errors import EngineError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="worker processes need Linux or macOS")
Setup = Tuple[Lane, Board, CoordinatorEnd, WorkerEnd]
LIMIT = 60.0  # seconds for anything that involves a second process


def dup(fds: tuple[int, ...]) -> list[int]:
    return [os.dup(fd) for fd in fds]


@pytest.fixture
def ends() -> Iterator[Setup]:
    """Both ends in this process, the worker's made from descriptors, as it would be elsewhere."""
    lane, board = Lane.create(4096), Board.create()
    worker_lane, worker_board = Lane.from_fds(dup(lane.fds())), Board.from_fds(dup(board.fds()))
    yield lane, board, lane.coordinator_side(True), worker_lane.worker_side(worker_board, True)
    for item in (worker_lane, worker_board, lane, board):
        item.close()


def test_requests_go_one_way_and_replies_the_other(ends: Setup) -> None:
    """What the coordinator sends the worker receives, and the other way round, without mixing."""
    _, _, coordinator, worker = ends
    assert coordinator.send.put(b"request")
    assert worker.send.put(b"reply")
    assert worker.receive.drain() == [b"request"]
    assert coordinator.receive.drain() == [b"reply"]
    assert worker.receive.get() is None
    assert coordinator.receive.get() is None


def test_the_capacity_is_found_from_the_block(ends: Setup) -> None:
    """The worker needs nothing but the descriptors."""
    _, _, coordinator, worker = ends
    assert worker.send.capacity == worker.receive.capacity == coordinator.send.capacity == 4096


def test_the_workers_words_reach_the_coordinator(ends: Setup) -> None:
    """What it has begun, and where in its log."""
    _, _, coordinator, worker = ends
    assert (coordinator.begun(), coordinator.done()) == (0, 0)
    worker.finish(1)
    assert worker.begin(1)
    assert (coordinator.begun(), coordinator.done()) == (1, 1)


def test_messages_taken_back_are_not_begun(ends: Setup) -> None:
    """From the number that `revoke` returns on; `restore` lets later ones run."""
    _, _, coordinator, worker = ends
    assert worker.begin(1)
    assert coordinator.revoke(3) == 3
    assert [worker.begin(number) for number in (2, 3, 4)] == [True, False, False]
    coordinator.restore()
    assert worker.begin(5)


def test_what_has_begun_is_not_taken_back(ends: Setup) -> None:
    """The number returned lies behind what the worker has announced."""
    _, _, coordinator, worker = ends
    assert worker.begin(4)
    assert coordinator.revoke(2) == 5
    assert not worker.begin(5)


def test_a_later_revocation_does_not_loosen_an_earlier_one(ends: Setup) -> None:
    """Revoking 3 and then 7 leaves 3 to 6 revoked."""
    _, _, coordinator, worker = ends
    coordinator.revoke(3)
    coordinator.revoke(7)
    assert not worker.begin(4)


def test_nothing_is_taken_back_where_there_is_no_fence(ends: Setup) -> None:
    """Without one it would be a guess: the answer is that nothing is certain, and the worker runs all."""
    lane, _, _, worker = ends
    coordinator = lane.coordinator_side(ordered=False)
    assert coordinator.revoke(1) == NEVER
    assert worker.begin(1)


def test_a_worker_cannot_write_the_board(ends: Setup) -> None:
    """A wild worker damages its own lane; the page that all share is read-only to it."""
    _, board, _, _ = ends
    worker_board = Board.from_fds(dup(board.fds()))
    with pytest.raises(TypeError):
        worker_board._word()[0] = 1
    worker_board.close()


def test_the_worker_wakes_the_coordinator_only_when_it_sleeps(ends: Setup) -> None:
    """Through the board's word and bell."""
    _, board, coordinator, worker = ends
    sleeper = board.sleeper(True)
    assert not worker.call()
    sleeper.prepare()
    assert not coordinator.receive.pending()
    worker.send.put(b"done")
    assert worker.call()
    assert sleeper.sleep(0)
    sleeper.awake()
    assert coordinator.drain() == [b"done"]


def test_what_is_put_without_a_call_is_no_work_yet(ends: Setup) -> None:
    """The coordinator may sleep on it; it is taken with whatever is taken next. Without order, it is work at once."""
    lane, _, coordinator, worker = ends
    unordered = lane.coordinator_side(ordered=False)
    worker.put(b"one")
    assert not coordinator.has_work()
    assert unordered.has_work()
    worker.call()
    assert coordinator.has_work()
    worker.put(b"two")
    assert coordinator.drain() == [b"one", b"two"]
    assert not coordinator.has_work()


def test_the_coordinator_is_called_for_what_it_does_not_come_for(ends: Setup) -> None:
    """By the second time that the worker asks; when it has nothing more to do, for all that is left. Not for what has
    been taken: that would be a turn for nothing."""
    _, _, coordinator, worker = ends
    worker.put(b"one")
    worker.call_if_late()
    assert not coordinator.has_work()
    worker.put(b"two")
    worker.call_if_late()
    assert coordinator.has_work()
    assert coordinator.drain() == [b"one", b"two"]
    worker.call_if_left()
    worker.put(b"three")
    worker.call_if_late()
    assert not coordinator.has_work()
    assert coordinator.drain() == [b"three"]
    worker.put(b"four")
    worker.call_if_late()
    assert not coordinator.has_work()
    worker.call_if_left()
    assert coordinator.has_work()


def test_without_order_the_coordinator_is_always_called(ends: Setup) -> None:
    """What the words say is certified by the bell only, and it rings for each frame."""
    lane, board, coordinator, _ = ends
    worker = lane.worker_side(board, ordered=False)
    for call in (worker.call_if_late, worker.call_if_left):
        call()
        assert coordinator.is_called()
        coordinator.drain()


def test_send_all_gives_up_at_its_timeout_and_keeps_the_rest(ends: Setup) -> None:
    """With nobody receiving it returns False; the rest follows once there is room, in front of what comes later."""
    _, _, coordinator, worker = ends
    message = bytes(range(256)) * 100
    assert not worker.send_all(message, timeout=0.02)
    got: list[bytes] = []
    done = False
    for _ in range(100):
        got.extend(coordinator.drain())
        done = done or worker.send_all(b"next", timeout=0) or worker.send.pump()
        if got and not coordinator.receive.pending() and done:
            break
    assert got[0] == message
    assert set(got[1:]) == {b"next"}


def test_the_coordinators_last_look_sees_messages_and_room(ends: Setup) -> None:
    """`has_work`: a call, or a backlog that could move; not a backlog that could not."""
    _, _, coordinator, worker = ends
    assert not coordinator.has_work()
    assert not coordinator.send.begin(bytes(10_000))
    assert not coordinator.has_work()
    worker.receive.drain()
    assert coordinator.has_work()
    coordinator.send.pump()
    assert not coordinator.has_work()
    assert worker.send_all(b"x")
    assert coordinator.has_work()


def test_pumping_a_part_wakes_the_worker(ends: Setup) -> None:
    """Also when not all of it fits: the worker, asleep on an empty ring, must take it for the rest to get room."""
    lane, _, coordinator, worker = ends
    assert not coordinator.send.begin(bytes(10_000))
    worker.receive.drain()
    lane.bell.clear()
    worker.sleeper.prepare()
    assert not worker.receive.pending()
    assert not coordinator.pump()
    assert worker.receive.pending()
    assert worker.sleeper.sleep(0)
    worker.sleeper.awake()
    worker.receive.drain()
    assert coordinator.pump()
    assert worker.receive.drain() == [bytes(10_000)]


# ------------------------------------------------------------------------------------------------------ two processes
class Worker:
    """A forked worker that sends back what it gets, until an empty message; and the coordinator's loop for it."""

    def __init__(self, capacity: int, portable: bool, ordered: bool, work: Callable[[WorkerEnd], None]) -> None:
        self.lane, self.board = Lane.create(capacity), Board.create()
        if portable:
            for owner in (self.lane, self.board):
                owner.bell.close()
                owner.bell = Bell.create(portable=True)
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                signal.alarm(int(LIMIT))
                work(self.lane.worker_side(self.board, ordered))
                status = 0
            finally:
                os._exit(status)
        self.end = self.lane.coordinator_side(ordered)
        self.sleeper = self.board.sleeper(ordered)
        self.poll = select.poll()
        self.poll.register(self.board.bell.fileno(), select.POLLIN)
        self.deadline = time.monotonic() + LIMIT

    def exchange(self, messages: Iterator[bytes], count: int, check: Callable[[int, bytes], None]) -> None:
        """Send all messages, never blocking, with at most 64 on their way, and check the `count` answers."""
        end, sent, got, done = self.end, 0, 0, True
        while got < count:
            assert time.monotonic() < self.deadline, f"{got} of {count} answers"
            answers = end.drain()
            for answer in answers:
                check(got, answer)
                got += 1
            done = done or end.send.pump()
            while done and sent < count and sent - got < 64:
                done = end.send.begin(next(messages))
                sent += 1
            end.wake.wake()
            if not answers:
                self.sleep()

    def sleep(self) -> None:
        self.sleeper.prepare()
        busy = self.end.has_work()
        rung = not busy and bool(self.poll.poll(5000))
        self.sleeper.awake(rung)
        assert busy or rung or not self.end.has_work(), "a wake-up was lost"

    def finish(self) -> None:
        assert self.end.send.begin(b"")
        self.end.wake.wake()
        _, status = os.waitpid(self.pid, 0)
        self.lane.close()
        self.board.close()
        assert status == 0


def echo(end: WorkerEnd) -> None:
    while True:
        assert end.wait(LIMIT)
        for message in end.receive.drain():
            if not message:
                return
            assert end.send_all(message, LIMIT)


def stress(count: int, capacity: int, portable: bool, ordered: bool, longest: int) -> None:
    """`count` messages of random sizes there and back, most of them short, contents compared."""
    pool = bytes(random.Random(5).getrandbits(8) for _ in range(1 << 16)) * 2
    sizes, starts = random.Random(7), random.Random(9)
    expected: list[bytes] = []

    def messages() -> Iterator[bytes]:
        while True:
            size = sizes.randrange(longest) if sizes.random() < 0.02 else sizes.randrange(1, 120)
            start = starts.randrange(1 << 16)
            expected.append(pool[start : start + size + 1])
            yield expected[-1]

    def check(number: int, answer: bytes) -> None:
        assert answer == expected[number]
        expected[number] = b""

    worker = Worker(capacity, portable, ordered, echo)
    worker.exchange(messages(), count, check)
    worker.finish()


@pytest.mark.parametrize(
    ("count", "portable", "ordered"),
    [(100_000, False, True), (20_000, True, True), (10_000, False, False), (10_000, True, False)],
    ids=["native", "pipes", "no fences", "pipes, no fences"],
)
def test_random_messages_go_there_and_back_through_full_rings(count: int, portable: bool, ordered: bool) -> None:
    """200,000 messages (both ways together) through rings that are full most of the time, compared byte by byte."""
    stress(count, 2048, portable, ordered, longest=6000)


def test_messages_of_all_sizes_around_the_rings_go_there_and_back() -> None:
    """1 byte, the ring and one around it, ten rings, 5 MB: whole."""
    capacity = 1 << 14
    sizes = [1, capacity // 4 - 16, capacity // 4 - 15, capacity - 1, capacity, capacity + 1, 10 * capacity, 5_000_000]
    content = bytes(range(251)) * 20_000
    worker = Worker(capacity, False, shm.ORDERED, echo)

    def check(number: int, answer: bytes) -> None:
        assert answer == content[: sizes[number]]

    worker.exchange((content[:size] for size in sizes), len(sizes), check)
    worker.finish()


def die_in_the_middle(end: WorkerEnd) -> None:
    end.send_all(b"whole", LIMIT)
    assert not end.send.begin(bytes(100_000))
    end.call()
    os.kill(os.getpid(), signal.SIGKILL)


def test_the_half_sent_message_of_a_dead_worker_is_dropped() -> None:
    """What it sent before comes out, the rest never does, and draining goes on without error."""
    worker = Worker(4096, False, shm.ORDERED, die_in_the_middle)
    assert os.WTERMSIG(os.waitpid(worker.pid, 0)[1]) == signal.SIGKILL
    got: list[bytes] = []
    while worker.end.receive.pending():
        got.extend(worker.end.receive.drain())
    assert got == [b"whole"]
    assert worker.end.receive.unfinished > 0
    worker.lane.close()
    worker.board.close()


# ------------------------------------------------------------------------------------------------------- left behind
def open_fds() -> int:
    return len(os.listdir("/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"))


def mappings() -> int:
    if not os.path.exists("/proc/self/maps"):
        return 0
    with open("/proc/self/maps") as lines:
        return sum("memfd:mpsteps" in line for line in lines)


def test_closed_lanes_leave_no_descriptor_and_no_mapping() -> None:
    """A hundred lanes and boards, used and closed (twice): as many open files as before."""
    before = open_fds(), mappings()
    for _ in range(100):
        lane, board = Lane.create(256), Board.create()
        other = Lane.from_fds(dup(lane.fds()))
        coordinator, worker = lane.coordinator_side(), other.worker_side(board)
        sleeper = board.sleeper()
        coordinator.send.begin(bytes(1000))
        worker.receive.drain()
        sleeper.prepare()
        sleeper.awake()
        for item in (lane, other, board, lane):
            item.close()
    assert (open_fds(), mappings()) == before


@pytest.mark.parametrize("failing", ["bell", "mapping"])
def test_a_lane_that_cannot_be_made_leaves_nothing(monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    """Whichever part fails, what was made before it is closed."""

    def refuse(*arguments: object, **named: object) -> mmap.mmap:
        raise EngineError("no more")

    before = open_fds(), mappings()
    if failing == "bell":
        monkeypatch.setattr(lane_module.Bell, "create", refuse)
    else:
        monkeypatch.setattr(shm, "attach", refuse)
    for make in (Lane.create, Board.create):
        with pytest.raises(EngineError, match="no more"):
            make()
    assert (open_fds(), mappings()) == before
