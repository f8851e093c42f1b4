"""How workers see how far the others have come: every interleaving of one that works and one that follows."""

from __future__ import annotations

import os
from typing import Any, Callable, Sequence

import pytest

from mpsteps._ipc.lane import Board, WorkerEnd
from mpsteps._ipc.standing import ENDED, PAGES, Peers, Standing
from tests.interleavings import Side, Violation, Words, explore

WORKER = 3
LANE = 10_000  # address of the lane's words
LANE_DONE = LANE + 16
REPLIED = 20_000  # address of what the ring has: the number of the last reply with a value
PLAIN, APART, BACK, VALUE = "plain", "apart", "back", "value"


# ----------------------------------------------------------------------------------------------- in every interleaving
def standing_of(side: Side) -> Standing:
    standing = Standing.__new__(Standing)
    standing._words = Words(side, WORKER * 512)
    return standing


def working(*ends: str) -> Callable[[Side], Any]:
    """The messages 1, 2 ... end in these ways, told as `_worker` tells them."""

    def program(side: Side) -> None:
        end = WorkerEnd.__new__(WorkerEnd)
        end._words, end.standing = Words(side, LANE), standing_of(side)
        for number, how in enumerate(ends, 1):
            if how == PLAIN:
                end.finish(number)
            elif how == APART:
                end.standing.end_apart()
            elif how == VALUE:
                Words(side)[REPLIED] = number
                end.standing.finish(number)
            else:
                end.standing.give_back(number)

    return program


def following(number: int, apart: int, looks: int = 2, kind: type = Peers) -> Callable[[Side], Any]:
    """What came of looking: True, False or None; and whether a death would count the message as finished then."""

    def program(side: Side) -> Any:
        peers = kind(Words(side))
        found = None
        for _ in range(looks):
            found = peers.have_finished(WORKER, number, apart, 0.0)
            if found is not None:
                break
        return found, found is not True or number <= 0 or max(Words(side)[LANE_DONE], Words(side)[REPLIED]) >= number

    return program


def may_run(ends: Sequence[str], number: int, apart: int) -> bool:
    """Whether a follower of message `number`, which was told of the first `apart` that left something, may ever run."""
    return ends[number - 1] in (PLAIN, VALUE) and ends[:number].count(APART) <= apart


@pytest.mark.parametrize(
    ("ends", "number", "apart"),
    [
        ((PLAIN, PLAIN, PLAIN), 2, 0),
        ((PLAIN, APART, PLAIN), 2, 0),
        ((APART, PLAIN, PLAIN), 2, 0),
        ((APART, PLAIN, PLAIN), 2, 1),
        ((PLAIN, PLAIN, APART), 2, 0),
        ((PLAIN, BACK, PLAIN), 2, 0),
        ((BACK, PLAIN, PLAIN), 2, 0),
        ((PLAIN, BACK, BACK, PLAIN), 2, 0),
        ((APART, APART, PLAIN), 3, 1),
        ((APART, BACK, PLAIN), 3, 1),
        ((PLAIN, VALUE, PLAIN), 2, 0),
        ((VALUE, PLAIN, PLAIN), 2, 0),
        ((VALUE, BACK, VALUE), 3, 0),
        ((APART, VALUE, APART), 2, 1),
        ((APART, VALUE, PLAIN), 2, 0),
    ],
)
def test_who_follows_misses_nothing(ends: Sequence[str], number: int, apart: int) -> None:
    """In no order does a step run behind one that left something unheard, was given back, or could be lost."""
    seen = set()

    def right(results: Sequence[Any]) -> bool:
        found, would_count = results[1]
        seen.add(found)
        return would_count and (found is not True or may_run(ends, number, apart))

    explore(right, working(*ends), following(number, apart))

    assert (True in seen) == may_run(ends, number, apart), "what may run does run in some order"
    assert None in seen


def test_who_was_told_of_the_end_looks_only_for_what_was_left() -> None:
    """ENDED: the number is not looked at, and messages that are given back later do not matter."""
    seen = set()
    explore(
        lambda results: seen.add(results[1][0]) or results[1][0] is not None,  # type: ignore[func-returns-value]
        working(PLAIN, BACK, APART),
        following(ENDED, 0),
    )
    assert seen == {True, False}


class LooksTheOtherWayRound(Peers):
    """Loads `apart` and `back` first, and `done` after them."""

    def have_finished(self, worker: int, number: int, apart: int, seconds: float) -> bool | None:
        page = worker * 512
        same = self._words[page + 8] == apart and self._words[page + 9] < number
        return same if self._words[page] >= number else None


def tells_the_other_way_round(side: Side) -> None:
    """Counts the message that left something after the next has finished."""
    standing = standing_of(side)
    standing.finish(2)
    standing.end_apart()


def finishes_the_page_first(side: Side) -> None:
    """The word for the others before that of the lane, which decides what a death costs."""
    standing_of(side).finish(1)
    Words(side)[LANE_DONE] = 1


def tells_of_a_value_too_soon(side: Side) -> None:
    """Others may follow before the value is where a death cannot lose it."""
    standing_of(side).finish(1)
    Words(side)[REPLIED] = 1


@pytest.mark.parametrize(
    ("programs", "weak"),
    [
        ((working(APART, PLAIN), following(2, 0, kind=LooksTheOtherWayRound)), False),
        ((tells_the_other_way_round, following(2, 0)), False),
        ((finishes_the_page_first, following(1, 0)), False),
        ((tells_of_a_value_too_soon, following(1, 0)), False),
        ((working(APART, PLAIN), following(2, 0)), True),
    ],
    ids=["loads", "stores", "page before lane", "page before ring", "a machine that reorders stores"],
)
def test_another_order_would_be_wrong(programs: Any, weak: bool) -> None:
    """The order of the stores and of the loads is needed, and that of the machine: elsewhere `across` is False."""

    def right(results: Sequence[Any]) -> bool:
        found, would_count = results[1]
        number = 1 if programs[0] in (finishes_the_page_first, tells_of_a_value_too_soon) else 2
        return would_count and (found is not True or number == 1)

    with pytest.raises(Violation):
        explore(right, *programs, weak=weak)


# -------------------------------------------------------------------------------------------------- in shared memory
@pytest.fixture
def board() -> Any:
    board = Board.create()
    yield board
    board.close()


def opened(board: Board) -> Board:
    """The same board, as a worker has it."""
    return Board.from_fds([os.dup(fd) for fd in board.fds()])


def test_workers_see_each_other_and_cannot_write_there(board: Board) -> None:
    """A worker has its own page; what it has of the others is for reading only."""
    board.admit(1)
    board.admit(2)
    first, second = opened(board), opened(board)
    try:
        one, peers = first.standing(1), second.peers()
        assert peers.have_finished(1, 1, 0, 0.0) is None
        one.finish(1)
        assert peers.have_finished(1, 1, 0, 0.0) is True
        assert peers.have_finished(1, 2, 0, 0.0) is None
        assert peers.have_finished(2, 1, 0, 0.0) is None
        one.end_apart()
        assert peers.have_finished(1, 1, 0, 0.0) is False
        assert peers.have_finished(1, 1, 1, 0.0) is True
        one.give_back(3)
        assert peers.have_finished(1, 3, 1, 0.0) is False
        assert peers.have_finished(1, ENDED, 1, 0.0) is True
        with pytest.raises(TypeError, match="read-only"):
            peers._words[512] = 7
    finally:
        first.close()
        second.close()


def test_a_wait_ends_when_its_time_is_up_or_the_other_has_finished(board: Board) -> None:
    """Whatever comes first; a wait of no time looks once."""
    board.admit(1)
    other = opened(board)
    try:
        standing, peers = other.standing(1), board.peers()
        assert peers.have_finished(1, 1, 0, 0.003) is None
        standing.finish(1)
        assert peers.have_finished(1, 1, 0, 1e9) is True
    finally:
        other.close()


def test_who_has_no_page_is_not_followed(board: Board) -> None:
    """Workers beyond the last page, unknown ones, and messages without a number."""
    peers = board.peers()
    for worker, number in ((PAGES, 1), (PAGES + 1, 1), (0, 1), (1, 0)):
        assert peers.have_finished(worker, number, 0, 1e9) is False
    beyond = opened(board)
    try:
        standing = beyond.standing(PAGES)
        board.admit(PAGES)
        standing.finish(1)  # into memory that nobody sees
        standing.end_apart()
        standing.give_back(2)
    finally:
        beyond.close()


def test_all_workers_see_that_one_is_idle(board: Board) -> None:
    """The coordinator's word, on its own page."""
    other = opened(board)
    try:
        peers = other.peers()
        assert not peers.some_idle()
        board.say_idle(True)
        assert peers.some_idle()
        board.say_idle(False)
        assert not peers.some_idle()
    finally:
        other.close()
