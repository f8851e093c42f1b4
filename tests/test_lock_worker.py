"""`self._lock` in a real worker, on a real lane, with the test in the coordinator's place: messages that cross.

What comes with the lock is newer than what steps in the lane bring with them, and older than what they will change.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Callable, Iterator, List, Tuple

import pytest
from lock_protocols import Driven
from protocols import DEADLINE

from mpsteps._image import take_image
from mpsteps._ipc import wire
from mpsteps._ipc.lane import Board
from mpsteps._statelog import StateLog
from mpsteps._worker import Worker
from mpsteps._writes import WritesOf
from mpsteps.engines.base import Replies
from mpsteps.engines.handle import WorkerHandle
from mpsteps.protocol import FRAMEWORK_ATTRIBUTES

OTHER = 2
"""The number of a worker that there is not: the test says what it changes."""


class Driver:
    """The coordinator of one worker. `truth` is the true `self`; what steps change is merged into it."""

    def __init__(self) -> None:
        self.truth = Driven()
        writes = WritesOf(Driven)
        self.functions = {90: "setPlace", 91: "countOn"}
        self.log = StateLog(self.truth, writes=lambda step: writes(self.functions[step]))
        self.handle, self.board = WorkerHandle(1, None), Board.create()
        self.messages: List[Tuple[Any, ...]] = []
        self.pid = os.fork()
        if self.pid == 0:
            try:
                Worker(self.handle.lane.worker_side(self.board)).run()
            finally:
                os._exit(9)
        self.log.join(1)
        self.log.join(OTHER)
        image, _ = take_image(self.truth)
        self.handle.send([(-wire.SETUP, {"image": image, "ignored": list(FRAMEWORK_ATTRIBUTES)})])
        self.until(lambda: self.handle.ready)

    def close(self) -> None:
        self.handle.send([(-wire.STOP,)])
        os.waitpid(self.pid, 0)
        self.handle.close()
        self.board.close()

    def send(self, step: int, function: str, *args: Any) -> None:
        self.functions[step] = function
        self.handle.send([(step, 1, function, args, self.log.news(1, (step,)), None)])

    def other(self, step: int, *changes: Any) -> None:
        """Another worker's step has changed this."""
        self.log.news(OTHER, (step,))
        self.log.merge(OTHER, step, wire.pack(list(changes)))

    def grant(self, step: int, ticket: int, outcome: Any = True) -> None:
        self.handle.send([(-wire.GRANT, ticket, outcome, self.log.granted(1, step))])

    def until(self, condition: Callable[[], Any]) -> None:
        """Take in what the worker says until that holds."""
        end = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < end, f"waited {DEADLINE} s in vain: {self.messages}"
            found: List[Any] = []
            if not self.handle.end.receive.pending():
                time.sleep(0.001)
                continue
            assert self.handle.take(found), self.handle.damage
            for happening in found:
                for m in happening.messages if isinstance(happening, Replies) else ():
                    self._take(m)

    def _take(self, m: Tuple[Any, ...]) -> None:
        self.messages.append(m)
        if m[0] == -wire.CHANGED:
            self.log.merge(1, m[1], m[2], False, m[3])
        elif m[0] > 0 and m[3] and "changes" in m[3]:
            self.log.merge(1, m[0], m[3]["changes"])
        elif m[0] > 0:
            self.log.settle(m[0])

    def said(self, what: int) -> List[Tuple[Any, ...]]:
        """The messages of that kind so far (a positive number: the end of that step)."""
        return [m for m in self.messages if m[0] == what]

    def value(self, step: int) -> Any:
        """What a step that has ended returned."""
        (end,) = self.said(step)
        assert len(end) == 4, end
        return wire.unpack(end[3]["value"])["seen"]

    def until_asked(self, times: int = 1) -> None:
        self.until(lambda: len(self.said(-wire.LOCK)) >= times)


@pytest.fixture
def driver() -> Iterator[Driver]:
    found = Driver()
    try:
        yield found
    finally:
        found.close()


def test_what_steps_in_the_lane_bring_is_heard_before_what_comes_with_the_lock(driver: Driver) -> None:
    """Else they would bring back, when their turn comes, what has been overwritten since."""
    driver.send(1, "takeLock")
    driver.until_asked()
    driver.other(90, ("=", "place", "older"))
    driver.send(2, "lookAt", "place")
    driver.other(91, ("=", "place", "newer"))
    driver.grant(1, 1)
    driver.until(lambda: driver.said(2))

    assert driver.value(1) == ["newer"]
    assert driver.value(2) == ["newer"]


def test_what_held_steps_would_bring_is_heard_before_what_comes_with_the_lock(driver: Driver) -> None:
    """They are sent once all that was taken back has been answered for, which is after the lock was granted."""
    driver.send(1, "takeLock")
    driver.send(2, "lookAt", "place")
    driver.until_asked()
    found: List[Any] = []
    driver.handle.revoke(found)
    assert found, "step 2 is taken back"
    driver.log.settle(2)
    driver.other(90, ("=", "place", "older"), ("=", "value", "older"))
    driver.send(3, "lookAt", "place", "value")
    assert driver.handle.held
    driver.other(91, ("=", "place", "newer"))
    driver.grant(1, 1)
    driver.until(lambda: driver.said(3))

    assert driver.value(1) == ["newer"]
    assert driver.value(3) == ["newer", "older"]


def test_what_steps_in_the_lane_set_is_on_top_of_what_came_with_the_lock(driver: Driver) -> None:
    """They have seen it, since it is there before they begin: no conflict."""
    driver.send(1, "takeLock")
    driver.send(2, "setPlace", "mine")
    driver.until_asked()
    driver.other(90, ("=", "place", "theirs"))
    driver.grant(1, 1)
    driver.until(lambda: driver.said(2))

    assert driver.truth.place == "mine"


def test_what_another_thread_changes_while_the_lock_is_waited_for_is_older_than_what_comes_with_it(
    driver: Driver, tmp_path: Path
) -> None:
    """And is merged as such: both have counted."""
    begin, done = str(tmp_path / "begin"), str(tmp_path / "done")
    driver.send(1, "countMeanwhile", begin, done)
    driver.until_asked()
    open(begin, "w").close()
    driver.until(lambda: os.path.exists(done))
    driver.other(91, ("#", "count", 3, 0))
    driver.grant(1, 1)
    driver.until(lambda: driver.said(1))

    assert (driver.truth.count, driver.truth.value) == (4, 3)  # it saw the 3 of the other, and that of its thread
    driver.send(2, "lookAt", "count")
    driver.until(lambda: driver.said(2))
    assert driver.value(2) == [4]


def test_a_time_out_is_settled_with_the_coordinator(driver: Driver) -> None:
    """It asks again, at once or not at all, and waits for the answer: which may be that it has it after all."""
    for step, outcome in ((1, False), (2, True)):
        driver.send(step, "tryLock", 0.01)
        driver.until_asked(2 * step)
        first, second = driver.said(-wire.LOCK)[-2:]
        assert (first[2:], second[2:]) == ((step, True), (step, False))
        driver.other(90, ("=", "place", f"news {step}"))
        driver.grant(step, step, outcome)
        driver.until(lambda step=step: driver.said(step))  # type: ignore[misc]

        assert driver.value(step) == [outcome, f"news {step}"]
    assert [m[1:] for m in driver.said(-wire.UNLOCK)] == [(2, 2)]


def test_an_exception_of_a_signal_leaves_no_claim_behind(driver: Driver) -> None:
    """Raised by the step's own handler while it waits: the claim is settled, and what came with it is heard."""
    driver.send(1, "takeLockWithAlarm")
    driver.until_asked(2)
    assert driver.said(-wire.LOCK)[1][2:] == (1, False)
    driver.other(90, ("=", "place", "news"))
    driver.grant(1, 1)
    driver.until(lambda: driver.said(1))

    assert driver.value(1) == ["alarm", "news"]
    assert [m[1:] for m in driver.said(-wire.UNLOCK)] == [(1, 1)]


def test_two_threads_that_ask_for_steps_get_each_their_own_answer(driver: Driver) -> None:
    """The coordinator answers in the order in which it was asked."""
    driver.send(1, "askInThreads", 8)
    answered = 0
    while not driver.said(1):
        driver.until(lambda: len(driver.said(-wire.REQUEST)) > answered or driver.said(1))
        for m in driver.said(-wire.REQUEST)[answered:]:
            (number,) = wire.unpack(m[3])
            driver.handle.send([(-wire.ANSWER, wire.pack((True, number * number)))])
            answered += 1

    assert answered == 8
    assert driver.value(1) == [True]


def test_who_sleeps_is_told_that_another_thread_has_taken_in_his_answer(driver: Driver) -> None:
    """It slept on with its answer at hand: the ring that had woken it was empty again when it looked."""
    driver.send(1, "askBesideASleeper")
    driver.until(lambda: len(driver.said(-wire.REQUEST)) == 2)
    driver.handle.send([(-wire.ANSWER, wire.pack((True, n))) for n in (1, 4)])
    driver.until(lambda: driver.said(1))

    assert driver.value(1) == [{1: 1, 2: 4}]


def test_a_replica_that_has_heard_all_is_the_truth(driver: Driver) -> None:
    """After all of this, once more."""
    driver.send(1, "takeLock")
    driver.until_asked()
    driver.other(90, ("=", "place", "a"), ("#", "count", 5, 0))
    driver.grant(1, 1)
    driver.until(lambda: driver.said(1))
    driver.send(2, "lookAt", "place", "count")
    driver.until(lambda: driver.said(2))

    assert driver.value(2) == [driver.truth.place, driver.truth.count]
