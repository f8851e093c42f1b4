"""Some seconds of `kills.py`, which by hand is run for many minutes."""

from __future__ import annotations

import sys

import pytest
from kills import kills

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are found through /proc")


def test_five_hundred_kills_lose_nothing_and_do_nothing_twice() -> None:
    """Of workers, and of coordinators in every way in which one can be ended, each resumed until it has finished."""
    done = kills(seed=1, least=500, share=0.08)
    assert done["coordinators ended by SIGKILL"] >= 5
    assert done["coordinators killed"] >= 20
    assert done["steps lost"] > 100
