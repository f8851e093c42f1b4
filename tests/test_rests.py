"""The rests between attempts: how long, in which order they end."""

from __future__ import annotations

import pytest

from mpsteps._rests import FIRST_SECONDS, LONGEST_SECONDS, Rests, rest_seconds


@pytest.mark.parametrize("step", [1, 2, 17, 10**6])
def test_each_rest_is_about_twice_as_long_up_to_a_limit(step: int) -> None:
    """Never longer than a quarter more than the longest."""
    for attempt in range(1, 40):
        middle = min(FIRST_SECONDS * 2 ** (attempt - 1), LONGEST_SECONDS)
        assert 0.75 * middle <= rest_seconds(step, attempt) <= 1.25 * middle


def test_steps_that_failed_together_do_not_come_back_together() -> None:
    """A hundred of them are spread over the whole width; and in the same way in each run."""
    rests = sorted(rest_seconds(step, 1) for step in range(1, 101))
    gaps = [b - a for a, b in zip(rests, rests[1:])]
    assert max(gaps) < 4 * (rests[-1] - rests[0]) / 100
    assert rests == sorted(rest_seconds(step, 1) for step in range(1, 101))


def test_rests_end_in_time_and_once() -> None:
    """Whoever asks late hears of all that have ended meanwhile."""
    rests = Rests()
    assert rests.next_end() is None
    rests.begin(1, attempt=5, now=100.0)
    rests.begin(2, attempt=1, now=100.0)
    first = rests.next_end()
    assert first == 100.0 + rest_seconds(2, 1)
    assert rests.ended(first - 0.001) == []
    assert rests.ended(first) == [2]
    assert rests.ended(1000.0) == [1]
    assert rests.next_end() is None
