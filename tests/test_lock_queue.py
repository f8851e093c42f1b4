"""Who holds the lock and who waits: the pure queue, in whatever order it is asked."""

from __future__ import annotations

import random
from typing import List, Optional

import pytest

from mpsteps._lock_queue import Claim, LockQueue

A, B, C, D = Claim(1, 1, 1), Claim(2, 2, 1), Claim(3, 1, 2), Claim(2, 2, 2)


def test_who_comes_first_has_it_first() -> None:
    """In the order in which they asked."""
    queue = LockQueue()

    assert queue.ask(A)
    assert not queue.ask(B)
    assert not queue.ask(C)
    assert queue.waiting() == [B, C]
    assert [queue.give_back(claim) for claim in (A, B, C)] == [B, C, None]
    assert queue.holder is None


def test_to_ask_again_changes_nothing() -> None:
    """Who waits keeps his place, who has it has it."""
    queue = LockQueue()
    queue.ask(A)
    queue.ask(B)
    queue.ask(C)

    assert queue.ask(A)
    assert not queue.ask(B)
    assert queue.waiting() == [B, C]


def test_who_does_not_wait_is_not_in_the_queue() -> None:
    """He has it at once or not at all."""
    queue = LockQueue()

    assert queue.ask(A, wait=False)
    assert not queue.ask(B, wait=False)
    assert queue.give_back(A) is None


def test_who_waits_no_longer_is_passed_over() -> None:
    """And who never asked, or has given it back already, changes nothing."""
    queue = LockQueue()
    for claim in (A, B, C):
        queue.ask(claim)

    assert queue.give_back(B) is None
    assert queue.give_back(D) is None
    assert queue.give_back(A) == C
    assert queue.give_back(A) is None
    assert queue.holder == C


def test_all_claims_of_a_step_end_with_it() -> None:
    """Its threads may have made several."""
    queue = LockQueue()
    for claim in (B, D, A):
        queue.ask(claim)

    assert queue.end(7) is None
    assert queue.end(2) == A
    assert queue.waiting() == []
    assert queue.end(1) is None
    assert queue.holder is None


@pytest.mark.parametrize("seed", range(200))
def test_any_history_is_that_of_a_line_of_people(seed: int) -> None:
    """Compared with a plain list: its first is the holder."""
    chance, queue = random.Random(seed), LockQueue()
    line: List[Claim] = []
    claims = [Claim(step, step % 3, ticket) for step in range(5) for ticket in range(2)]
    for _ in range(200):
        claim, what = chance.choice(claims), chance.randrange(4)
        before: Optional[Claim] = line[0] if line else None
        if what < 2:
            wait = chance.random() < 0.7
            got = queue.ask(claim, wait)
            if claim not in line and (wait or not line):
                line.append(claim)
            assert got == (line[:1] == [claim])
        elif what == 2:
            passed = queue.give_back(claim)
            line = [c for c in line if c != claim]
            assert passed == (line[0] if line and line[0] != before else None)
        else:
            passed = queue.end(claim.step)
            line = [c for c in line if c.step != claim.step]
            assert passed == (line[0] if line and line[0] != before else None)
        queue.check_invariants()
        assert ([queue.holder] if queue.holder else []) + queue.waiting() == line
