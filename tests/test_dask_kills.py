"""Random kills on a cluster: Dask workers, agents and step workers die at any moment, until a run has come to its end.

    MPSTEPS_KILLS=200 python -m pytest tests/test_dask_kills.py       (6 kills unless told)

Every step notes that it was entered. Whatever dies: a step that finished is not entered again, one that was lost is
entered again only by a resume, and nothing is missing in the end.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List

import psutil
import pytest

pytest.importorskip("distributed", reason='clusters need Dask: pip install "mpsteps[dask]"')

from dask_cluster import DaskCluster
from protocols import Custom, notes

from mpsteps import EngineError

pytestmark = [pytest.mark.once, pytest.mark.skipif(sys.platform != "linux", reason="looks at process trees")]

KILLS = int(os.environ.get("MPSTEPS_KILLS", "6"))
NODES, STEPS = 2, 60


class Counted(Custom):
    """Steps of different lengths; each is noted when it is entered, and when it ends."""

    keepGoing = True

    def work(self, name: str, seconds: float) -> None:
        self.note(f"begin {name}")
        time.sleep(seconds)
        self.table[name] = os.getpid()
        self.note(f"end {name}")


class Killer(threading.Thread):
    """Kills one process of the cluster after another, and puts a new node in the place of one that is gone."""

    def __init__(self, cluster: DaskCluster, seed: int) -> None:
        super().__init__(name="killer")
        self.cluster = cluster
        self.random = random.Random(seed)
        self.over = threading.Event()
        self.killed: Dict[str, int] = {"node": 0, "agent": 0, "worker": 0}

    def run(self) -> None:
        while not self.over.wait(self.random.uniform(0.05, 0.5)):
            self.kill()
            for worker in [w for w in self.cluster.workers if w.poll() is not None]:
                self.cluster.workers.remove(worker)
                self.cluster.add(2)

    def kill(self) -> None:
        node = self.random.choice(self.cluster.workers)
        what = self.random.choice(list(self.killed))
        try:
            found = [psutil.Process(node.pid)]
            if what != "node":
                found = [p for p in found[0].children() if "mpsteps.engines.agent" in " ".join(p.cmdline())]
            if what == "worker":  # below the agent is its zygote, below that are the workers
                found = [w for agent in found for zygote in agent.children() for w in zygote.children()]
            if found:
                self.random.choice(found).send_signal(signal.SIGKILL)
                self.killed[what] += 1
        except psutil.Error:
            pass  # it has gone by itself


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[DaskCluster]:
    (tmp_path / "cluster").mkdir()
    cluster = DaskCluster(tmp_path / "cluster")
    for _ in range(NODES):
        cluster.add(2)
    yield cluster
    cluster.close()


@pytest.mark.timeout(60 + 4 * KILLS)
@pytest.mark.parametrize("repeatable", [False, True])
def test_whatever_dies_on_a_cluster_nothing_is_lost_and_nothing_done_twice(
    cluster: DaskCluster, tmp_path: Path, repeatable: bool
) -> None:
    killed, round_ = 0, 0
    while killed < KILLS // 2 + 1:
        round_ += 1
        killer = Killer(cluster, seed=1000 * repeatable + round_)
        killer.start()
        try:
            one_run(cluster, tmp_path / f"run-{round_}", repeatable, round_)
        finally:
            killer.over.set()
            killer.join()
        killed += sum(killer.killed.values())


def one_run(cluster: DaskCluster, folder: Path, repeatable: bool, seed: int) -> None:
    """Run and resume until all steps have finished; look at the books each time."""
    folder.mkdir()
    lengths = random.Random(seed)
    seconds = [lengths.choice([0.0, 0.0, 0.002, 0.02, 0.1]) for _ in range(STEPS)]
    path = folder / "notes"

    def insert(self: Any) -> None:
        for i in range(STEPS):
            before = [i - 10 + 1] if i >= 10 else []
            self._insertFunctionStep("work", str(i), seconds[i], prerequisites=before)

    done: List[str] = []
    for _ in range(50):
        entered = notes(path)
        protocol = Counted(insert, workingDir=str(folder / "run"), notes=str(path))
        protocol.rerunOnLoss = repeatable
        try:
            protocol.run(engine=cluster.address)
        except EngineError as error:
            if "worker processes in a row died" not in str(error):  # all of them were killed as soon as they were there
                raise
        new = notes(path)[len(entered) :]
        for name in done:
            assert f"begin {name}" not in new, f"step {name} had finished and was entered again"
        finished = [s._args[0] for s in protocol.getSteps() if s.isFinished()]
        for name in finished:
            assert f"end {name}" in notes(path), f"step {name} finished and has never come to its end"
            assert name in protocol.table, f"what step {name} has changed is missing"
        if not repeatable:
            for i in range(STEPS):
                assert new.count(f"begin {i}") <= 1, f"step {i} was entered twice in one run"
        done = finished
        if protocol.isFinished():
            break
    assert len(done) == STEPS, f"{len(done)} of {STEPS}: {protocol.getErrorMessage()}"
