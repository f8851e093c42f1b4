"""The coordinator killed at every operation, and again while it recovers: see `kill_points`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from engine_driver import with_path

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes end in another order elsewhere")


@pytest.mark.parametrize(("engine", "operations", "kills"), [("inline", 20, 250), ("processes", 20, 20)])
def test_killed_at_any_operation_a_run_is_resumed(engine: str, operations: int, kills: int, tmp_path: Path) -> None:
    """Every step finishes, none runs without a reason, the journal is readable at every moment, nothing stays behind.
    Inline, each recovery is killed at each of its operations as well."""
    script = Path(__file__).parent / "kill_points.py"
    command = [sys.executable, str(script), engine, str(tmp_path), "quick"]
    ended = subprocess.run(
        command, env=with_path(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=240, check=False
    )
    assert ended.returncode == 0, ended.stdout.decode()[-3000:]
    found = [int(word) for word in ended.stdout.split()]
    assert found[0] >= operations, found
    assert found[1] >= kills, found
