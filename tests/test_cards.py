"""Which graphics cards a machine has, as its environment and its devices say."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any, Dict

import pytest

from mpsteps import _cards
from mpsteps._cards import cards_here

pytestmark = pytest.mark.once
HERE = socket.gethostname()


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({"CUDA_VISIBLE_DEVICES": "2,0"}, {0: f"{HERE}/2", 1: f"{HERE}/0"}),
        ({"CUDA_VISIBLE_DEVICES": "GPU-ab12, MIG-3"}, {0: f"{HERE}/GPU-ab12", 1: f"{HERE}/MIG-3"}),
        ({"CUDA_VISIBLE_DEVICES": "1,-1,2"}, {0: f"{HERE}/1"}),
        ({"CUDA_VISIBLE_DEVICES": ""}, {}),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, {}),
        (
            {"CUDA_VISIBLE_DEVICES": "0", "SLURM_JOB_GPUS": "3", "SLURM_JOB_ID": "17"},
            {0: f"{HERE}/job 17/0"},
        ),
    ],
)
def test_what_is_visible_counts_in_its_order(environment: Dict[str, str], found: Dict[int, str]) -> None:
    """What a job of Slurm was given is its own, though another job calls its card by the same number."""
    assert cards_here([0, 1, 2], environment) == found


@pytest.mark.parametrize(
    ("devices", "found"),
    [(["nvidia0", "nvidia2", "nvidiactl", "nvidia-uvm"], [0, 2]), ([], [0, 1, 2])],
)
def test_devices_count_and_where_there_are_none_the_run_is_believed(
    tmp_path: Path, monkeypatch: Any, devices: Any, found: Any
) -> None:
    for name in devices:
        (tmp_path / name).touch()
    monkeypatch.setattr(_cards, "DEVICES", str(tmp_path / "nvidia*"))
    assert cards_here([0, 1, 2], {}) == {n: f"{HERE}/{n}" for n in found}
