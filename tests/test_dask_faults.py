"""A node that is cut off from the network, and nannies that die."""

from __future__ import annotations

import glob
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Iterator, List

import psutil
import pytest

pytest.importorskip("distributed", reason='clusters need Dask: pip install "mpsteps[dask]"')
pytest.importorskip("cryptography", reason='clusters need certificates: pip install "mpsteps[dask]"')

from dask_cluster import DaskCluster
from dask_runs import Slow, SlowAgain, insert_and_run, meanwhile, statuses, warnings_in
from engine_driver import alive
from engine_steps import wait_for_file
from island import Island, why_no_island
from protocols import meet, notes

from mpsteps import Cluster, EngineError, StepLost

pytestmark = [pytest.mark.once, pytest.mark.skipif(sys.platform != "linux", reason="looks at process trees")]

NO_ISLAND = why_no_island()
TIMEOUT = 11
"""Dask takes no time-out of TCP that is shorter, seconds."""
PATIENCE = 40.0
"""What anything may take here, time-out included."""


def within_patience(condition: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"waited {PATIENCE} s in vain {what}"
        time.sleep(0.01)


def below(pid: int) -> List[int]:
    """Everything that a process has started."""
    return [p.pid for p in psutil.Process(pid).children(recursive=True)]


class Patient(Slow):
    """Steps that can wait for longer than it takes until somebody sees that a network is cut."""

    keepGoing = True

    def hold(self, name: str, release: str) -> None:
        self.note(name)
        within_patience(lambda: os.path.exists(release), f"for {release}")
        self.note(f"end {name}")

    def meetLater(self, folder: str, name: str, count: int) -> None:
        self.note(name)
        meet(folder, name, count)


# -------------------------------------------------------------------------------------------------------- the network


@pytest.fixture
def island() -> Iterator[Island]:
    made = Island()
    yield made
    made.close()


@pytest.fixture
def divided(island: Island, tmp_path: Path, monkeypatch: Any) -> Iterator[DaskCluster]:
    """Two nodes: the first is on an island, the other one is not."""
    import dask

    (tmp_path / "cluster").mkdir()
    time_out = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": f"{TIMEOUT}s"}
    cluster = DaskCluster(tmp_path / "cluster", host=island.here, environment=time_out)
    try:
        cluster.add(1, inside=island.command, host=island.there)
        cluster.add(1)
        with dask.config.set({"distributed.comm.timeouts.tcp": f"{TIMEOUT}s"}):
            yield cluster
    finally:
        cluster.close()


def on_island(tmp_path: Path) -> str:
    """Which of two steps that meet is there: it says so itself."""
    return next(p.name for p in tmp_path.glob("where/*") if p.read_text() == "there")


class Placed(Patient):
    def hold(self, name: str, release: str) -> None:
        """Says first whether it is on the island."""
        there = psutil.net_if_addrs().keys() == {"lo", "far"}
        folder = os.path.join(os.path.dirname(self.notes.get()), "where")
        Path(folder, f".{name}").write_text("there" if there else "here")
        os.rename(os.path.join(folder, f".{name}"), os.path.join(folder, name))
        super().hold(name, f"{release}-{name}")


@pytest.mark.skipif(NO_ISLAND is not None, reason=str(NO_ISLAND))
def test_a_node_that_is_cut_off_costs_its_steps_ends_by_itself_and_may_come_back(
    divided: DaskCluster, island: Island, tmp_path: Path
) -> None:
    """First there, then here: when its steps are given up, and might be run again, they run no more. Nothing runs
    twice; the other node goes on; a Dask worker that is started on the island after that is used again, in the same
    run: two steps meet."""
    (tmp_path / "where").mkdir()
    log = tmp_path / "log"

    def insert(self: Any) -> None:
        for name in "ab":
            self._insertFunctionStep("hold", name, str(tmp_path / "go"), prerequisites=[])
        for name in "cd":
            self._insertFunctionStep("meetLater", str(tmp_path / "m"), name, 2, prerequisites=[])

    def cut() -> None:
        try:
            for name in "ab":
                wait_for_file(tmp_path / "where" / name)
            there = below(divided.workers[0].pid)
            assert there, "an agent, a zygote, a worker"
            island.cut()
            within_patience(lambda: not any(map(alive, there)), "for the end of what is on the island")
            assert "was lost" not in log.read_text()
            divided.workers[0].kill()  # its scheduler is given up somewhat later
            within_patience(lambda: "was lost" in log.read_text(), "for the end of the time-out")
            island.join()
            divided.add(1, inside=island.command, host=island.there)
            within_patience(lambda: len(notes(tmp_path / "notes")) == 3, "for a step on the node that came back")
        finally:
            for name in "ab":
                (tmp_path / f"go-{name}").touch()

    with warnings_in(log), meanwhile(cut):
        protocol = insert_and_run(tmp_path, insert, divided.address, Placed)
    lost = on_island(tmp_path)
    other = "ab".replace(lost, "")
    assert [s._args[0 if i < 2 else 1] for i, s in enumerate(protocol.getSteps()) if s.isFailed()] == [lost]
    assert isinstance(protocol.getSteps()["ab".index(lost)]._error, StepLost)
    assert "was lost" in protocol.getErrorMessage()
    assert sorted(notes(tmp_path / "notes")) == ["a", "b", "c", "d", f"end {other}"]


@pytest.mark.skipif(NO_ISLAND is not None, reason=str(NO_ISLAND))
def test_a_cut_that_is_shorter_than_the_time_out_costs_nothing(
    divided: DaskCluster, island: Island, tmp_path: Path
) -> None:
    """A step comes to its end while nobody can be told."""
    (tmp_path / "where").mkdir()

    def insert(self: Any) -> None:
        for name in "abcd":
            self._insertFunctionStep("hold", name, str(tmp_path / "go"), prerequisites=[])

    def cut() -> None:
        try:
            for name in "ab":
                wait_for_file(tmp_path / "where" / name)
            island.cut()
            name = on_island(tmp_path)
            (tmp_path / f"go-{name}").touch()
            within_patience(lambda: f"end {name}" in notes(tmp_path / "notes"), "for the end of the step")
        finally:
            island.join()
            for name in "abcd":
                (tmp_path / f"go-{name}").touch()

    with meanwhile(cut):
        protocol = insert_and_run(tmp_path, insert, divided.address, Placed)
    assert protocol.isFinished(), protocol.getErrorMessage()
    assert sorted(notes(tmp_path / "notes")) == [*"abcd", *(f"end {name}" for name in "abcd")]


# ------------------------------------------------------------------------------------------------------------ nannies


def slow_steps(tmp_path: Path, names: str) -> Callable[[Any], None]:
    (tmp_path / "slow").mkdir()

    def insert(self: Any) -> None:
        for name in names:
            self._insertFunctionStep("slow", str(tmp_path / "slow"), name, str(tmp_path / "go"), prerequisites=[])

    return insert


def kill_nannies(tmp_path: Path, find: Callable[[], List[psutil.Process]], running: str) -> Callable[[], None]:
    """Kills what `find` finds when those steps run; all that these had started must end by itself."""

    def kill() -> None:
        for name in running:
            wait_for_file(tmp_path / "slow" / name)
        for nanny in find():
            family = below(nanny.pid)
            assert len(family) >= 4, "a Dask worker, an agent, a zygote, a worker"
            nanny.kill()
            within_patience(lambda family=family: not any(map(alive, family)), "for the end of what it had started")
        (tmp_path / "go").touch()

    return kill


def test_a_nanny_that_is_killed_takes_its_dask_worker_along_and_the_others_go_on(tmp_path: Path) -> None:
    """A cluster of somebody else's, with nannies: as a node that is lost."""
    (tmp_path / "cluster").mkdir()
    cluster = DaskCluster(tmp_path / "cluster")
    try:
        nannies = [cluster.add(1, nanny=True) for _ in range(2)]
        insert = slow_steps(tmp_path, "abcd")
        with meanwhile(kill_nannies(tmp_path, lambda: [psutil.Process(nannies[0].pid)], "ab")):
            protocol = insert_and_run(tmp_path, insert, cluster.address, Slow, keep_going=True)
    finally:
        cluster.close()
    assert sorted(statuses(protocol)) == ["failed", "finished", "finished", "finished"]
    assert sorted(notes(tmp_path / "notes")) == ["a", "b", "c", "d"]


def test_a_dask_worker_that_dies_under_its_nanny_comes_back_and_is_used(tmp_path: Path) -> None:
    """One node only: its nanny starts another Dask worker, which gets an agent."""
    (tmp_path / "cluster").mkdir()
    cluster = DaskCluster(tmp_path / "cluster")
    try:
        nanny = psutil.Process(cluster.add(1, nanny=True).pid)

        def dask_worker() -> List[psutil.Process]:
            return [p for p in nanny.children() if any("agent" in " ".join(c.cmdline()) for c in p.children())]

        def kill() -> None:
            wait_for_file(tmp_path / "slow" / "a")
            (found,) = dask_worker()
            found.kill()
            (tmp_path / "go").touch()

        insert = slow_steps(tmp_path, "ab")
        with meanwhile(kill):
            protocol = insert_and_run(tmp_path, insert, cluster.address, SlowAgain)
    finally:
        cluster.close()
    assert protocol.isFinished(), protocol.getErrorMessage()
    assert sorted(notes(tmp_path / "notes")) == ["a", "a", "b"]


def our_nodes() -> List[psutil.Process]:
    """The processes that were started for engine 'dask'; each is a nanny."""
    return [p for p in psutil.Process().children() if "node_main" in " ".join(p.cmdline())]


def folders_of_nodes() -> List[str]:
    return glob.glob(os.path.join(tempfile.gettempdir(), "mpsteps-dask-*"))


def test_a_node_of_ours_that_is_killed_costs_its_steps_and_leaves_nothing(tmp_path: Path) -> None:
    """Its nanny, that is; the other one goes on."""
    before = folders_of_nodes()
    insert = slow_steps(tmp_path, "abcd")
    with meanwhile(kill_nannies(tmp_path, lambda: our_nodes()[:1], "ab")):
        protocol = insert_and_run(tmp_path, insert, Cluster("dask", workers=2, cores=1), Slow, keep_going=True)
    assert sorted(statuses(protocol)) == ["failed", "finished", "finished", "finished"]
    assert sorted(notes(tmp_path / "notes")) == ["a", "b", "c", "d"]
    assert folders_of_nodes() == before


def test_when_all_nodes_of_ours_are_killed_the_run_ends_and_resume_continues_it(tmp_path: Path) -> None:
    """Not a run that waits for ever."""
    before = folders_of_nodes()
    insert = slow_steps(tmp_path, "abcd")
    ended = pytest.raises(EngineError, match=r"all Dask workers on this machine have ended \(exit codes \[-9, -9\]\)")
    with meanwhile(kill_nannies(tmp_path, our_nodes, "ab")), ended:
        insert_and_run(tmp_path, insert, Cluster("dask", workers=2, cores=1), Slow, keep_going=True)
    assert folders_of_nodes() == before
    again = insert_and_run(tmp_path, insert, "processes", Slow)
    assert again.isFinished(), again.getErrorMessage()
    assert sorted(notes(tmp_path / "notes")) == ["a", "a", "b", "b", "c", "d"]
