"""The coordinator killed at every operation, and again while it recovers; a disk that fails at any of them; a signal at
the bytecodes of the loop: see `kill_points`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from engine_driver import with_path

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes end in another order elsewhere")


@pytest.mark.parametrize(
    ("what", "operations", "ends"),
    [("inline", 15, 250), ("processes", 20, 20), ("disk", 15, 20), ("signals", 3000, 50)],
)
def test_ended_at_any_point_a_run_is_resumed(what: str, operations: int, ends: int, tmp_path: Path) -> None:
    """Every step finishes, none runs without a reason, the journal is readable at every moment, nothing stays behind.
    Inline, each recovery is killed at each of its operations as well. A signal leaves nothing in doubt, either."""
    script = Path(__file__).parent / "kill_points.py"
    command = [sys.executable, str(script), what, str(tmp_path), "quick"]
    ended = subprocess.run(
        command, env=with_path(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=240, check=False
    )
    assert ended.returncode == 0, ended.stdout.decode()[-3000:]
    found = [int(word) for word in ended.stdout.split()]
    assert found[0] >= operations, found
    assert found[1] >= ends, found
