"""Some seconds of `stress.py`, which by hand is run for many minutes."""

from __future__ import annotations

import pytest
from stress import stress


@pytest.mark.parametrize("seed", [1, 2])
def test_nothing_is_lost_or_doubled_under_stress(seed: int) -> None:
    """Random sizes, full rings, stalls, deaths."""
    done = stress(4.0, seed)
    assert done["finished"] > 100
