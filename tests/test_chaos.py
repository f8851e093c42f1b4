"""Some seconds of `chaos.py`, which by hand is run for many minutes."""

from __future__ import annotations

import sys

import pytest
from chaos import chaos


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="stopped workers are told by Linux")
def test_whole_runs_under_random_signals_keep_every_promise() -> None:
    """Workers killed, stopped, let go on; now and then the process that starts them."""
    done = chaos(4.0, seed=3)
    assert done["finished"] > 100
    assert done["workers"] > 3
