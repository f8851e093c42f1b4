"""Every interleaving of small cases of the lane (see `interleavings`), run with the real `RingWriter`, `RingReader`,
`Sleeper`, `Waker` and lane ends. The mutants at the end show that a lost message or wake-up would be found."""

from __future__ import annotations

import struct
from typing import Any, Callable

import pytest

from mpsteps._ipc.bell import Sleeper, Waker
from mpsteps._ipc.lane import CoordinatorEnd, WorkerEnd
from mpsteps._ipc.ring import BLOCKED, HEAD, HEADER, TAIL, RingReader, RingWriter
from tests.interleavings import CAPACITY, Side, Violation, Words, explore


class Data:
    """A memoryview of a ring's data; `base` is where that ring's data are in the model's."""

    def __init__(self, side: Side, base: int = 0) -> None:
        self.side, self.base = side, base

    def __getitem__(self, where: slice) -> memoryview:
        stop = CAPACITY if where.stop is None else where.stop
        return memoryview(self.side.do("read", self.base + (where.start or 0), self.base + stop))

    def __setitem__(self, where: slice, value: Any) -> None:
        self.side.do("write", self.base + (where.start or 0), bytes(value))


class ModelBell:
    """A bell; ringing and clearing are single steps in the kernel, which also empty this side's store buffer."""

    def __init__(self, side: Side, number: int) -> None:
        self.side, self.number = side, number

    def ring(self) -> None:
        self.side.do("ring", self.number)

    def clear(self) -> None:
        self.side.do("clear", self.number)

    def fileno(self) -> int:
        return 0


class ModelSleeper(Sleeper):
    """The real sleeper; only the system call that waits is replaced, by one that knows no time-out."""

    __slots__ = ("side",)

    def sleep(self, seconds: float) -> bool:
        return self.side.do("sleep", self._bell.number)


def make_writer(side: Side, kind: type = RingWriter, ordered: bool = True) -> RingWriter:
    writer = kind(memoryview(bytearray(HEADER + CAPACITY)), ordered)
    writer._words, writer._data, writer._fence = Words(side), Data(side), side.fence
    return writer


def second_ring(end: Any, side: Side) -> Any:
    """The same writer or reader, on the other ring of the model."""
    end._words, end._data = Words(side, SECOND), Data(side, CAPACITY)
    return end


def make_reader(side: Side, on_room: Any = None, kind: type = RingReader, ordered: bool = True) -> RingReader:
    reader = kind(memoryview(bytearray(HEADER + CAPACITY)), on_room, ordered)
    reader._words, reader._data, reader._fence = Words(side), Data(side), side.fence
    reader._unpack = lambda data, start: struct.unpack("=IIQ", data[start : start + 16])
    reader._settle = lambda: side.do("settle")
    return reader


ASLEEP, BEGUN, ANSWERED, SENT = 64, 72, 96, 104  # addresses outside the ring's words
SECOND = 200  # where the words of a second ring begin


def make_sleeper(side: Side, bell: int = 0, kind: type = ModelSleeper, ordered: bool = True) -> Sleeper:
    sleeper = kind(Words(side), ASLEEP, ModelBell(side, bell), ordered)
    sleeper.side, sleeper._fence = side, side.fence
    return sleeper


def make_waker(side: Side, bell: int = 0, kind: type = Waker, ordered: bool = True) -> Waker:
    waker = kind(Words(side), ASLEEP, ModelBell(side, bell), ordered)
    waker._fence = side.fence
    return waker


# --------------------------------------------------------------------------------------------------------- two puts
def putting(*messages: bytes, kind: type = RingWriter) -> Callable[[Side], Any]:
    def program(side: Side) -> list[bool]:
        writer = make_writer(side, kind)
        return [writer.put(message) for message in messages]

    return program


def getting(times: int, kind: type = RingReader) -> Callable[[Side], Any]:
    def program(side: Side) -> list[bytes]:
        reader = make_reader(side, kind=kind)
        return [message for message in (reader.get() for _ in range(times)) if message is not None]

    return program


def test_two_puts_and_two_gets_give_a_prefix_in_every_order() -> None:
    """Whatever the order, the reader gets the first messages put, whole, in order, and nothing else."""
    ends = set()

    def prefix(results: list[Any]) -> bool:
        ends.add(tuple(results[1]))
        return results[0] == [True, True] and [b"one", b"two"][: len(results[1])] == results[1]

    assert explore(prefix, putting(b"one", b"two"), getting(2)).states > 50
    assert ends == {(), (b"one",), (b"one", b"two")}


def test_a_frame_is_overwritten_only_after_it_was_taken() -> None:
    """Puts into a full ring change nothing; puts into room just freed never touch a frame that is being read."""
    messages = [bytes([65 + n]) * 16 for n in range(6)]

    def kept(results: list[Any]) -> bool:
        accepted = [message for message, done in zip(messages, results[0]) if done]
        return results[1] == accepted[: len(results[1])]

    assert explore(kept, putting(*messages), getting(3)).states > 500


# --------------------------------------------------------------------------------------------------- sleep and wake
def put_and_wake(
    *messages: bytes, writing: type = RingWriter, waking: type = Waker, ordered: bool = True
) -> Callable[[Side], Any]:
    def program(side: Side) -> None:
        writer = make_writer(side, writing, ordered)
        waker = make_waker(side, kind=waking, ordered=ordered)
        for message in messages:
            assert writer.put(message)
            waker.wake()

    return program


def get_all(count: int, sleeping: type = ModelSleeper, ordered: bool = True) -> Callable[[Side], Any]:
    """Get `count` messages, sleeping on bell 0 when there is none."""

    def program(side: Side) -> list[bytes]:
        reader = make_reader(side, ordered=ordered)
        sleeper = make_sleeper(side, kind=sleeping, ordered=ordered)
        got: list[bytes] = []
        while len(got) < count:
            if sleeper.wait(reader.pending, spin_seconds=0):
                got.extend(reader.drain())
        return got

    return program


def delivers(*messages: bytes) -> Callable[[list[Any]], bool]:
    return lambda results: results[-1] == list(messages)


def test_no_wake_up_is_lost_on_x86() -> None:
    """With stores delayed as long as they like, the sleeper gets both messages and never sleeps on one."""
    assert explore(delivers(b"a", b"b"), put_and_wake(b"a", b"b"), get_all(2)).states > 1000


def test_no_wake_up_and_no_message_is_lost_where_stores_are_reordered() -> None:
    """`ordered=False` keeps its promise on a machine on which `head` may become visible before the payload."""
    programs = put_and_wake(b"a", b"b", ordered=False), get_all(2, ordered=False)
    assert explore(delivers(b"a", b"b"), *programs, weak=True).states > 500


def test_what_is_right_on_x86_is_found_wrong_where_stores_are_reordered() -> None:
    """The weak model has teeth: the x86 protocol fails on it, so passing it above means something."""
    with pytest.raises(Violation):
        explore(delivers(b"a", b"b"), put_and_wake(b"a", b"b"), get_all(2), weak=True)


def test_two_wakers_of_one_sleeper_do_not_hide_each_other() -> None:
    """The coordinator sleeps once for all lanes: two workers that finish at once wake it for both."""
    lanes = 128, 136

    def worker(address: int) -> Callable[[Side], Any]:
        def program(side: Side) -> None:
            Words(side)[address] = 1
            make_waker(side).wake()

        return program

    def coordinator(side: Side) -> bool:
        words, sleeper = Words(side), make_sleeper(side)
        done = set()
        while len(done) < len(lanes):
            found = {lane for lane in lanes if lane not in done and words[lane]}
            if not found:
                sleeper.prepare()
                found = {lane for lane in lanes if lane not in done and words[lane]}
                sleeper.awake(not found and sleeper.sleep(0))
            done |= found
        return True

    assert explore(lambda results: results[-1], worker(lanes[0]), worker(lanes[1]), coordinator).states > 500


# ------------------------------------------------------------------------------------------------------ a full ring
LONG = bytes(range(80))  # five frames, through a ring of four: the writer waits once
LONGER = bytes(range(112))  # seven: it may have to wait three times


def full_ring(message: bytes) -> tuple[dict[int, int], bytes]:
    """(words, data) of a ring after a real writer has begun `message`: full, with the writer waiting for room."""
    memory = bytearray(HEADER + CAPACITY)
    writer = RingWriter(memoryview(memory), True)
    assert not writer.begin(message)
    return {HEAD: writer._words[HEAD], BLOCKED: writer._words[BLOCKED]}, bytes(writer._data)


def continued(writer: RingWriter, message: bytes) -> RingWriter:
    """A model writer in the state in which `full_ring` leaves its writer."""
    writer._head = writer._limit = CAPACITY
    writer._sequence, writer._epoch = 5, 1
    writer._backlog.append(memoryview(message)[4 * 16 :])
    return writer


def send_long(
    kind: type = RingWriter, ordered: bool = True, message: bytes = LONG, full: bool = False
) -> Callable[[Side], Any]:
    """Begin a message longer than the ring and pump the rest as the reader rings bell 1 for room.

    `full`: go on from `full_ring`, which spares the explorer the orders in which the first four frames go in.
    """

    def program(side: Side) -> None:
        writer, bell = make_writer(side, kind, ordered), ModelBell(side, 1)
        done = continued(writer, message).pump() if full else writer.begin(message)
        while not done:
            side.do("sleep", 1)
            bell.clear()
            done = writer.pump()

    return program


def get_long(kind: type = RingReader, ordered: bool = True) -> Callable[[Side], Any]:
    """Drain until the message is there, ringing bell 1 for room. It never misses a message: that is shown above."""

    def program(side: Side) -> list[bytes]:
        reader = make_reader(side, ModelBell(side, 1).ring, kind, ordered)
        got: list[bytes] = []
        while not got:
            side.do("await", HEAD, reader._cursor + 1)
            got = reader.drain()
        return got

    return program


def test_a_writer_that_waits_for_room_is_woken_on_x86() -> None:
    """A message longer than the ring arrives whole; neither side ever waits for one that waits for it."""
    assert explore(delivers(LONG), send_long(), get_long()).states > 1000


@pytest.mark.parametrize(("ordered", "frames"), [(True, 7), (False, 6)], ids=["x86", "reordered"])
def test_a_writer_that_waits_for_room_again_and_again_is_woken(ordered: bool, frames: int) -> None:
    """From a full ring on, with some frames to go: also with `ordered=False`, on a machine that reorders stores."""
    message = LONGER[: frames * 16]
    programs = send_long(ordered=ordered, message=message, full=True), get_long(ordered=ordered)
    assert explore(delivers(message), *programs, weak=not ordered, start=full_ring(message)).states > 1000


def coordinate(ordered: bool, looks_for_room: bool = True) -> Callable[[Side], Any]:
    """The coordinator's loop: a backlog going out, an answer to come, one sleep for both. All is rung on bell 1."""

    def program(side: Side) -> list[bytes]:
        writer = continued(make_writer(side, ordered=ordered), LONG)
        reader = second_ring(make_reader(side, ordered=ordered), side)
        sleeper = make_sleeper(side, 1, ordered=ordered)
        got: list[bytes] = []
        done = False
        while True:
            got.extend(reader.drain())
            done = done or writer.pump()
            if done and got:
                return got
            sleeper.prepare()
            busy = reader.pending() or (looks_for_room and writer.can_pump())
            sleeper.awake(not busy and sleeper.sleep(0))

    return program


def answer_long(ordered: bool) -> Callable[[Side], Any]:
    """The worker: takes the long message, ringing bell 1 for room, answers, and wakes."""

    def program(side: Side) -> list[bytes]:
        got = get_long(ordered=ordered)(side)
        assert second_ring(make_writer(side, ordered=ordered), side).put(b"answer")
        make_waker(side, 1, ordered=ordered).wake()
        return got

    return program


def both_arrive(results: list[Any]) -> bool:
    return results == [[b"answer"], [LONG]]


@pytest.mark.parametrize("ordered", [True, False])
def test_the_coordinator_sleeps_for_messages_and_room_at_once(ordered: bool) -> None:
    """It never blocks on a full ring: one sleep ends when there is room, or an answer, in every order."""
    explore(both_arrive, coordinate(ordered), answer_long(ordered), weak=not ordered, start=full_ring(LONG))


def test_a_coordinator_that_looks_for_messages_only_sleeps_on_room() -> None:
    """Why the last look must be at all it is rung for: `prepare` may just have cleared the ring for room."""
    programs = coordinate(False, looks_for_room=False), answer_long(False)
    with pytest.raises(Violation, match="for ever"):
        explore(both_arrive, *programs, weak=True, start=full_ring(LONG))


# ------------------------------------------------------------------------------------------- called, or only put
def putting_and_calling(side: Side) -> None:
    """Three replies, one of them without a call."""
    end = worker_end(side)
    end.send, end._wake, end._calls = make_writer(side), make_waker(side, 1), 0
    end.put(b"one")
    end.call()
    end.put(b"two")
    end.put(b"three")
    end.call()


def called(kind: type = CoordinatorEnd) -> Callable[[Side], Any]:
    """Take replies until all are there, and sleep when the worker has not called since they were last taken."""

    def program(side: Side) -> list[bytes]:
        end = coordinator_end(side, kind)
        end._heard, end.receive = 0, make_reader(side)
        sleeper = make_sleeper(side, 1)
        got: list[bytes] = []
        while True:
            if end.is_called():
                got.extend(end.drain())
            if len(got) == 3:
                return got
            sleeper.prepare()
            sleeper.awake(not end.is_called() and sleeper.sleep(0))

    return program


class HearsAfterwards(CoordinatorEnd):
    """Takes the replies first, and then what the word says."""

    def drain(self) -> list[bytes]:
        found = self.receive.drain()
        self._heard = self._words[9]
        return found


def calls_too_soon(side: Side) -> None:
    """Before the replies are in the ring."""
    end = worker_end(side)
    end.send, end._wake, end._calls = make_writer(side), make_waker(side, 1), 0
    end.call()
    for reply in (b"one", b"two", b"three"):
        end.put(reply)


def offering(kind: type = WorkerEnd) -> Callable[[Side], None]:
    """Three replies, with a call only for those that the coordinator has not come for by itself."""

    def program(side: Side) -> None:
        end = worker_end(side, kind)
        end.send, end._wake, end._calls, end._seen_put = make_writer(side), make_waker(side, 1), 0, 0
        end.put(b"one")
        end.call_if_late()
        end.put(b"two")
        end.call_if_late()
        end.put(b"three")
        end.call_if_left()

    return program


class ThinksOfTheLastTime(WorkerEnd):
    """At the end, it asks for what it had put when it asked last."""

    def call_if_left(self) -> None:
        if self.send.taken() < self._seen_put:
            self.call()


def test_who_is_called_takes_all_that_was_put_before() -> None:
    """What was put without a call comes with the next one, and no call is lost."""
    assert explore(delivers(b"one", b"two", b"three"), putting_and_calling, called()).states > 1000


def test_who_has_taken_everything_need_not_be_called() -> None:
    """What the worker sees as taken has been, and for the rest it calls, so that nobody sleeps on it."""
    assert explore(delivers(b"one", b"two", b"three"), offering(), called()).states > 1000


@pytest.mark.parametrize(
    "programs",
    [(putting_and_calling, called(HearsAfterwards)), (calls_too_soon, called()),
     (offering(ThinksOfTheLastTime), called())],
    ids=["hears", "calls", "asks"],
)  # fmt: skip
def test_another_order_of_calling_would_lose_replies(programs: Any) -> None:
    """The word is loaded before the ring is looked at, and stored after the replies are there."""
    with pytest.raises(Violation, match="for ever"):
        explore(delivers(b"one", b"two", b"three"), *programs)


# ----------------------------------------------------------------------------------------------------- taking back
def coordinator_end(side: Side, kind: type = CoordinatorEnd) -> CoordinatorEnd:
    end = kind.__new__(kind)
    end._words, end._ordered, end._fence = Words(side, ASLEEP), True, side.fence
    return end


def worker_end(side: Side, kind: type = WorkerEnd) -> WorkerEnd:
    end = kind.__new__(kind)
    end._words, end._ordered, end._fence = Words(side, ASLEEP), True, side.fence
    return end


def beginning(*numbers: int, kind: type = WorkerEnd) -> Callable[[Side], Any]:
    def program(side: Side) -> list[int]:
        end = worker_end(side, kind)
        return [number for number in numbers if end.begin(number)]

    return program


def revoking(number: int, kind: type = CoordinatorEnd) -> Callable[[Side], Any]:
    return lambda side: coordinator_end(side, kind).revoke(number)


def taken_back_is_not_run(results: list[Any]) -> bool:
    taken, ran = results
    return 1 in ran and all(number < taken for number in ran)


def test_what_was_taken_back_never_runs() -> None:
    """Of revoke(2), with three messages in the lane: those it says are taken back do not run, the first one does."""
    outcomes = set()

    def check(results: list[Any]) -> bool:
        outcomes.add((results[0], tuple(results[1])))
        return taken_back_is_not_run(results)

    explore(check, revoking(2), beginning(1, 2, 3))
    assert (2, (1,)) in outcomes
    assert (4, (1, 2, 3)) in outcomes
    assert (3, (1,)) in outcomes, "in doubt to the coordinator, passed over by the worker: its answer tells"


def restoring(await_what: int) -> Callable[[Side], Any]:
    """Take back 2, wait until the worker is past 2 by what `await_what` says, restore, send 3."""

    def program(side: Side) -> int:
        end = coordinator_end(side)
        taken = end.revoke(2)
        side.do("await", await_what, 2)
        end.restore()
        Words(side)[SENT] = 3
        return taken

    return program


def answering(side: Side) -> list[int]:
    end, words, ran = worker_end(side), Words(side), []
    for number in (1, 2, 3):
        if number == 3:
            side.do("await", SENT, 3)
        if end.begin(number):
            ran.append(number)
        words[ANSWERED] = number
    return ran


def three_runs_and_two_is_never_both(results: list[Any]) -> bool:
    taken, ran = results
    return 3 in ran and (taken > 2 or 2 not in ran)


def test_restoring_after_the_answers_lets_later_messages_run() -> None:
    """After the answers to all that was sent, `restore` brings nothing taken back to life."""
    explore(three_runs_and_two_is_never_both, restoring(ANSWERED), answering)


def test_restoring_on_the_announcement_would_be_wrong() -> None:
    """Why `restore` asks for answers: a worker may have announced 2 and not yet looked whether it is revoked."""
    with pytest.raises(Violation):
        explore(three_runs_and_two_is_never_both, restoring(BEGUN), answering)


# ---------------------------------------------------------------------------------------------------------- mutants
class PublishesFirst(RingWriter):
    """Stores `head` before the frame."""

    def _frame(self, payload: Any, word: int) -> bool:
        words, self._words = self._words, {TAIL: self._words[TAIL]}
        words[HEAD] = self._head + ((len(payload) + 31) & -16)
        done = super()._frame(payload, word)
        self._words = words
        return done


class IgnoresTheTail(RingWriter):
    """Writes whether there is room or not."""

    def _look(self) -> int:
        return self._head + self.capacity


class DoesNotFenceForRoom(RingWriter):
    def pump(self) -> bool:
        self._fence = lambda: None
        return super().pump()


class NeverFrees(RingReader):
    """Takes messages and does not advance the tail."""

    def _free(self) -> None:
        self._freed = self._cursor


class FreesBeforeCopying(RingReader):
    """Gives the room back before it has the message."""

    def _load(self) -> Any:
        self._words[TAIL] = self._head
        return super()._load()


class DoesNotRingForRoom(RingReader):
    def _free(self) -> None:
        self._on_room = None
        super()._free()


class DoesNotFenceAfterFreeing(RingReader):
    def _free(self) -> None:
        self._fence = lambda: None
        super()._free()


class SleepsWithoutFence(ModelSleeper):
    __slots__ = ()

    def prepare(self) -> None:
        self._fence = lambda: None
        super().prepare()


class SleepsWithoutLookingAgain(ModelSleeper):
    __slots__ = ()

    def wait(self, ready: Any, timeout: float | None = None, spin_seconds: float = 0) -> bool:
        if not ready():
            self.prepare()
            self.awake(self.sleep(0))
        return True


class WakesWithoutFence(Waker):
    def wake(self) -> bool:
        self._fence = lambda: None
        return super().wake()


class RingsOnceForGood(Waker):
    """Remembers that it rang, and not for which sleep."""

    def wake(self) -> bool:
        return not self._rung and super().wake()


class WakesBeforePutting(RingWriter):
    """Looks whether the reader sleeps, and publishes after that."""

    def put(self, payload: Any) -> bool:
        make_waker(self._words.side).wake()
        return super().put(payload)


class WakesNever(Waker):
    def wake(self) -> bool:
        return False


class BeginsWithoutFence(WorkerEnd):
    def begin(self, number: int) -> bool:
        self._fence = lambda: None
        return super().begin(number)


class RevokesWithoutFence(CoordinatorEnd):
    def revoke(self, number: int) -> int:
        self._fence = lambda: None
        return super().revoke(number)


FULL = [bytes([65 + n]) * 16 for n in range(6)]
TWO = delivers(b"a", b"b")


def prefix_of_full(results: list[Any]) -> bool:
    return results[1] == FULL[: len(results[1])]


MUTANTS = {
    "head before payload": (prefix_of_full, [putting(*FULL[:2], kind=PublishesFirst), getting(2)]),
    "overrun": (prefix_of_full, [putting(*FULL, kind=IgnoresTheTail), getting(2)]),
    "room before copy": (prefix_of_full, [putting(*FULL), getting(2, kind=FreesBeforeCopying)]),
    "no fence for room": (delivers(LONG), [send_long(DoesNotFenceForRoom), get_long()]),
    "no room": (delivers(LONG), [send_long(), get_long(NeverFrees)]),
    "no ring for room": (delivers(LONG), [send_long(), get_long(DoesNotRingForRoom)]),
    "no fence after freeing": (delivers(LONG), [send_long(), get_long(DoesNotFenceAfterFreeing)]),
    "no fence before sleep": (TWO, [put_and_wake(b"a", b"b"), get_all(2, SleepsWithoutFence)]),
    "no look before sleep": (TWO, [put_and_wake(b"a", b"b"), get_all(2, SleepsWithoutLookingAgain)]),
    "no fence before ringing": (TWO, [put_and_wake(b"a", b"b", waking=WakesWithoutFence), get_all(2)]),
    "rings once for good": (TWO, [put_and_wake(b"a", b"b", waking=RingsOnceForGood), get_all(2)]),
    "wakes too early": (
        TWO,
        [put_and_wake(b"a", b"b", waking=WakesNever, writing=WakesBeforePutting), get_all(2)],
    ),
    "begins without fence": (taken_back_is_not_run, [revoking(2), beginning(1, 2, kind=BeginsWithoutFence)]),
    "revokes without fence": (taken_back_is_not_run, [revoking(2, RevokesWithoutFence), beginning(1, 2)]),
}


@pytest.mark.parametrize("name", list(MUTANTS))
def test_each_guard_is_needed(name: str) -> None:
    """With one guard of the protocol taken out, some interleaving goes wrong, and the explorer finds it."""
    check, programs = MUTANTS[name]
    with pytest.raises(Violation):
        explore(check, *programs)


def test_the_words_lie_where_the_models_think() -> None:
    """The model's addresses are those of the ring's header: three words, each on a cache line of its own."""
    assert (HEAD * 8, TAIL * 8, BLOCKED * 8, HEADER) == (0, 64, 128, 192)
