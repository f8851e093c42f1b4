"""A plugin for pytest: what tests run on worker processes of this machine, they run on Dask clusters instead.

    PYTHONPATH=tests python -m pytest -p on_cluster tests/test_run_processes.py tests/test_pool.py ...

There is one cluster for each number of workers that tests ask for, so that a run has as many as it would have here.
With MPSTEPS_ON=slurm in the environment each run and each pool has a job of Slurm instead, with as many cores; that
takes some seconds a test.
"""

from __future__ import annotations

import os
from typing import Any, Dict, Iterator, Optional

import pytest

COUNTS = (1, 2, 3, 4)
JOBS = os.environ.get("MPSTEPS_ON") == "slurm"


@pytest.fixture(scope="session", autouse=True)
def clusters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dict[int, str]]:
    """Addresses of schedulers, by the number of steps that their workers run at a time."""
    from dask_cluster import DaskCluster

    made = {count: DaskCluster(tmp_path_factory.mktemp("cluster")) for count in COUNTS if not JOBS}
    try:
        for count, cluster in made.items():
            cluster.add(count)
        yield {count: cluster.address for count, cluster in made.items()}
    finally:
        for cluster in made.values():
            cluster.close()


@pytest.fixture(scope="session", autouse=True)
def on_cluster(clusters: Dict[int, str]) -> Iterator[None]:
    """Runs and pools for which worker processes of this machine are meant get those of a cluster."""
    import mpsteps.pool
    import mpsteps.run
    from mpsteps import Cluster, StepPool

    chosen, init = mpsteps.run._chosen, StepPool.__init__

    def of(threads: int) -> Cluster:
        count = min(threads, max(COUNTS))
        if JOBS:
            return Cluster("slurm", workers=1, cores=count, memory="500 MB", walltime="00:10:00")
        return Cluster(clusters[count])

    def chosen_cluster(protocol: Any, engine: Any) -> Any:
        if engine == "processes" or (engine is None and not protocol.modeSerial()):
            engine = of(protocol.getScipionThreads())
        return chosen(protocol, engine)

    def made_pool(pool: Any, max_workers: Optional[int] = None, **options: Any) -> None:
        if type(max_workers) is not int or max_workers < 1:
            init(pool, max_workers, **options)
        else:
            init(pool, engine=of(max_workers), **options)

    patch = pytest.MonkeyPatch()
    patch.setattr(mpsteps.run, "_chosen", chosen_cluster)
    patch.setattr(StepPool, "__init__", made_pool)
    yield
    patch.undo()
