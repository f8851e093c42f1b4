"""When steps that ran out of time are signalled. Pure: the test says what time it is."""

from __future__ import annotations

from signal import SIGKILL, SIGTERM

from mpsteps._deadlines import TERM_SECONDS, Deadlines


def test_a_step_is_told_to_end_and_then_killed() -> None:
    """Each once."""
    deadlines = Deadlines()
    assert deadlines.next_end() is None
    deadlines.begin(1, 7, 10.0)
    deadlines.begin(2, 8, 5.0)
    assert deadlines.next_end() == 5.0
    assert list(deadlines.due(4.9)) == []
    assert list(deadlines.due(5.0)) == [(2, 8, SIGTERM)]
    assert list(deadlines.due(5.0 + TERM_SECONDS)) == [(2, 8, SIGKILL)]
    assert deadlines.next_end() == 10.0
    assert list(deadlines.due(100.0)) == [(1, 7, SIGTERM), (1, 7, SIGKILL)]
    assert deadlines.next_end() is None


def test_the_time_of_one_attempt_is_not_that_of_the_next() -> None:
    """The same step again, in the same worker; and a step that has no deadline behind it."""
    deadlines = Deadlines()
    deadlines.begin(1, 7, 5.0)
    deadlines.begin(1, 7, 20.0)
    assert list(deadlines.due(6.0)) == []
    deadlines.end(1)
    assert list(deadlines.due(30.0)) == []
    assert deadlines.next_end() is None


def test_time_in_which_nobody_could_run_does_not_count() -> None:
    """Deadlines keep their order."""
    deadlines = Deadlines()
    for worker in (3, 1, 2):
        deadlines.begin(worker, worker, float(worker))
    deadlines.postpone(10.0)
    assert list(deadlines.due(10.5)) == []
    assert [worker for worker, _, _ in deadlines.due(12.5)] == [1, 2]
