"""What local steps and `_stepsCheck` add, beside steps in workers that add to the same: it adds up, without a lock."""

from __future__ import annotations

import pytest
from lock_protocols import AddsHere


@pytest.mark.parametrize("attempt", range(3))
def test_what_is_added_here_and_there_adds_up(tmp_path, attempt):
    """Each pair meets before it adds: a step in a worker, and one in the coordinator's process."""

    def insert(protocol):
        for pair in range(10):
            folder = str(tmp_path / f"pair{pair}")
            protocol._insertFunctionStep("addTogether", folder, 0, prerequisites=[])
            protocol._insertFunctionStep("addTogetherHere", folder, 1, prerequisites=[])

    protocol = AddsHere(insert, workingDir=str(tmp_path / "run"), numberOfThreads=2)
    protocol.run(engine="processes")

    assert protocol.isFinished(), protocol.getErrorMessage()
    assert protocol.sum == 10 * 1 + 10 * 10 + 100 * protocol.checks
    assert protocol.counts == {"all": 20}


def test_what_is_set_here_and_there_is_a_conflict_that_names_both(tmp_path):
    """The step of this process by its name."""
    folder = str(tmp_path / "pair")

    def insert(protocol):
        protocol._insertFunctionStep("setTogether", folder, 1, prerequisites=[])
        protocol._insertFunctionStep("setTogetherHere", folder, 2, "told", prerequisites=[])

    for attempt in range(10):  # whose change comes first is not in our hands: only then is it a conflict
        folder = str(tmp_path / f"pair{attempt}")
        protocol = AddsHere(insert, workingDir=str(tmp_path / f"run{attempt}"), numberOfThreads=2)
        protocol.run(engine="processes")
        if protocol.isFailed():
            break
    else:
        pytest.skip("the local step was always the later one")
    assert "and step 2 setTogetherHere(" in protocol.getErrorMessage()
