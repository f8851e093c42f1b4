"""Bells, sleepers and wakers: a wake-up reaches who sleeps, costs nothing when nobody does, and is never lost."""

from __future__ import annotations

import mmap
import os
import select
import signal
import sys
import time
from typing import Iterator

import pytest

from mpsteps._ipc import bell as bell_module
from mpsteps._ipc.bell import Bell, Sleeper, Waker
from mpsteps.errors import EngineError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="worker processes need Linux or macOS")


@pytest.fixture(params=[False, True], ids=["native", "pipe"])
def bell(request: pytest.FixtureRequest) -> Iterator[Bell]:
    one = Bell.create(portable=request.param)
    yield one
    one.close()


@pytest.fixture
def words() -> Iterator[memoryview]:
    memory = mmap.mmap(-1, 4096)
    view = memoryview(memory).cast("Q")
    yield view
    view.release()
    memory.close()


def readable(bell: Bell) -> bool:
    poll = select.poll()
    poll.register(bell.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def test_a_bell_is_readable_from_ringing_to_clearing(bell: Bell) -> None:
    """Ringing twice is ringing once; clearing what was not rung does nothing."""
    assert not readable(bell)
    bell.clear()
    bell.ring()
    bell.ring()
    assert readable(bell)
    bell.clear()
    assert not readable(bell)


def test_ringing_never_blocks(bell: Bell) -> None:
    """Also when nobody has cleared the bell for 200,000 rings and its pipe is full."""
    for _ in range(200_000):
        bell.ring()
    assert readable(bell)
    bell.clear()
    assert not readable(bell)


def test_an_eventfd_at_its_limit_is_as_good_as_rung() -> None:
    """The counter can be full: ringing still returns."""
    bell = Bell.create()
    if len(bell.fds()) == 1:
        os.write(bell.fileno(), (2**64 - 2).to_bytes(8, sys.byteorder))
    bell.ring()
    assert readable(bell)
    bell.close()


def test_the_other_side_is_made_from_the_descriptors(bell: Bell) -> None:
    """What is rung through a bell made from passed descriptors arrives at the first one."""
    other = Bell.from_fds([os.dup(fd) for fd in bell.fds()])
    other.ring()
    assert readable(bell)
    other.close()
    bell.clear()


def test_descriptors_are_private_and_closed_once(bell: Bell) -> None:
    """Not inherited by programs; a second close does not close what has the number by then; no ring goes astray."""
    fds = bell.fds()
    assert not any(os.get_inheritable(fd) for fd in fds)
    bell.close()
    bell.close()
    assert bell.fds() == ()
    with pytest.raises(OSError, match="descriptor"):
        bell.ring()


def test_ringing_for_a_sleeper_that_is_gone_is_no_error() -> None:
    """Its death is reported by others; the waker must not die of it."""
    bell = Bell.create(portable=True)
    receive, _ = bell.fds()
    closed_side = Bell.from_fds((os.open(os.devnull, os.O_RDONLY), bell.fds()[1]))
    os.close(receive)
    closed_side.ring()
    closed_side.close()


def test_a_bell_that_cannot_be_made_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of descriptors is one sentence with a way out."""

    def refuse() -> tuple[int, int]:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "pipe", refuse)
    with pytest.raises(EngineError, match="ulimit"):
        Bell.create(portable=True)


# ------------------------------------------------------------------------------------------------ sleep and wake
def test_the_waker_rings_only_a_sleeper_and_once_for_each_sleep(bell: Bell, words: memoryview) -> None:
    """The word is odd while it sleeps; the waker remembers the sleep it rang for."""
    sleeper, waker = Sleeper(words, 8, bell, ordered=True), Waker(words, 8, bell, ordered=True)
    assert not waker.wake()
    sleeper.prepare()
    assert words[8] == 1
    assert [waker.wake(), waker.wake()] == [True, False]
    assert sleeper.sleep(0)
    sleeper.awake()
    assert words[8] == 2
    assert not readable(bell)
    assert not waker.wake()
    sleeper.prepare()
    assert waker.wake()


def test_without_fences_the_waker_always_rings(bell: Bell, words: memoryview) -> None:
    """Where it cannot know whether somebody sleeps, it rings; the sleeper clears before its last look."""
    sleeper, waker = Sleeper(words, 8, bell, ordered=False), Waker(words, 8, bell, ordered=False)
    assert waker.wake()
    assert waker.wake()
    sleeper.prepare()
    assert not readable(bell)
    assert waker.wake()
    assert sleeper.sleep(0)
    sleeper.awake()
    assert not readable(bell)


@pytest.mark.parametrize("ordered", [True, False])
def test_wait_returns_at_once_when_there_is_work(bell: Bell, words: memoryview, ordered: bool) -> None:
    """No sleep, whatever the time-out, and the word says awake."""
    sleeper = Sleeper(words, 8, bell, ordered)
    assert sleeper.wait(lambda: True, None)
    assert words[8] % 2 == 0


@pytest.mark.parametrize("ordered", [True, False])
def test_wait_ends_at_its_timeout(bell: Bell, words: memoryview, ordered: bool) -> None:
    """False, not before the time is over, and awake again; also with no time at all."""
    sleeper = Sleeper(words, 8, bell, ordered)
    start = time.monotonic()
    assert not sleeper.wait(lambda: False, 0.03)
    assert time.monotonic() - start >= 0.03
    assert not sleeper.wait(lambda: False, 0)
    assert words[8] % 2 == 0


def test_wait_spins_before_it_sleeps(bell: Bell, words: memoryview) -> None:
    """Work that comes within the spin costs no sleep: the word was never stored."""
    looks: list[int] = []

    def ready() -> bool:
        looks.append(1)
        return len(looks) > 3

    assert Sleeper(words, 8, bell, ordered=True).wait(ready, 1, spin_seconds=10)
    assert words[8] == 0


def test_a_wait_without_limit_looks_by_itself(bell: Bell, words: memoryview, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were a wake-up lost, it would cost `LONGEST_SLEEP` and not a run: nobody rings here."""
    monkeypatch.setattr(bell_module, "LONGEST_SLEEP", 0.01)
    looks: list[int] = []

    def ready() -> bool:
        looks.append(1)
        return len(looks) > 8

    assert Sleeper(words, 8, bell, ordered=True).wait(ready, None, spin_seconds=0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a second process")
@pytest.mark.parametrize("ordered", [True, False])
def test_two_processes_wake_each_other_for_every_message(words: memoryview, ordered: bool) -> None:
    """Ping-pong over two words, sleeping each time: 3,000 rounds without one that needed the time-out.

    A lost wake-up would show as a sleep of `LONGEST_SLEEP`, and the whole as far too slow.
    """
    rounds, to_child, to_parent = 3000, Bell.create(), Bell.create()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(60)
            play(words, rounds, (to_child, to_parent), True, ordered)
            status = 0
        finally:
            os._exit(status)
    start = time.monotonic()
    play(words, rounds, (to_parent, to_child), False, ordered)
    assert os.waitpid(pid, 0)[1] == 0
    assert time.monotonic() - start < bell_module.LONGEST_SLEEP
    to_child.close()
    to_parent.close()


def play(words: memoryview, rounds: int, bells: tuple[Bell, Bell], second: bool, ordered: bool) -> None:
    """Answer the other side's number with the same in one's own word; words 0 and 8 count, 16 and 24 say asleep."""
    mine, other = bells
    own, its = (8, 0) if second else (0, 8)
    sleeper = Sleeper(words, 16 + own, mine, ordered)
    waker = Waker(words, 16 + its, other, ordered)
    for number in range(1, rounds + 1):
        if not second:
            words[own] = number
            waker.wake()
        assert sleeper.wait(lambda number=number: words[its] >= number, 30, spin_seconds=0)
        if second:
            words[own] = number
            waker.wake()


def test_an_exception_in_a_sleep_does_not_turn_sleep_and_wake_round(bell: Bell, words: memoryview) -> None:
    """Raised by the handler of a signal, in a step that waits: else nobody would ring for the sleep after that."""
    sleeper, waker = Sleeper(words, 0, bell), Waker(words, 0, bell)

    def interrupted() -> bool:
        if words[0] & 1:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        sleeper.wait(interrupted, 1.0, 0.0)
    sleeper.prepare()
    assert words[0] & 1
    assert waker.wake()
    sleeper.awake()
    assert not words[0] & 1
