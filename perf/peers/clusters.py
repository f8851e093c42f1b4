"""Schedulers made for clusters, here on one machine. They know prerequisites, and take milliseconds for each step."""

from __future__ import annotations

import time
import warnings
from typing import Any, Callable, Iterable, Iterator, List, Sequence, Tuple

from perf._systems import System
from perf._work import Call, step


def run_after(fn: Callable[..., Any], call: Call, *_results: Any) -> Any:
    """A call whose prerequisites stand in its arguments: so both systems know that it must wait."""
    return fn(*call)


class Dask(System):
    """dask.distributed: a local cluster of processes with one thread each."""

    title = "dask.distributed"
    package = "distributed"
    scale = 10
    graph_scale = 10
    restless = True

    def __init__(self, workers: int) -> None:
        from distributed import Client, LocalCluster

        super().__init__(workers)
        # It advises against arrays as arguments, rightly; how it takes them is one of the questions.
        warnings.filterwarnings("ignore", message="Sending large graph")
        # Port 0: any that is free. Its usual one is taken while another cluster is up, and it warns of that each time.
        self._cluster = LocalCluster(n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=":0")
        self._client = Client(self._cluster)
        self._client.wait_for_workers(workers)

    def run_all(self, calls: Sequence[Call]) -> List[int]:
        """Submitted all at once; `pure=False`, or a call with arguments that it knows would not run again."""
        futures = [self._client.submit(step, *call, pure=False) for call in calls]
        return list(self._client.gather(futures))

    def run_graph(self, calls: Sequence[Call], fn: Callable[..., Any]) -> None:
        """Futures as arguments are prerequisites."""
        futures: List[Any] = []
        for call in calls:
            after = [futures[p] for p in call[1]]
            futures.append(self._client.submit(run_after, fn, call, *after, pure=False))
        self._client.gather(futures)

    def stream(self, fn: Callable[..., Any], calls: Iterable[Tuple[Any, ...]], window: int) -> Iterator[Any]:
        """In order."""
        futures: List[Any] = []
        for call in calls:
            futures.append(self._client.submit(fn, *call, pure=False))
            if len(futures) == window:
                yield futures.pop(0).result()
        while futures:
            yield futures.pop(0).result()

    def share(self, array: Any) -> Any:
        """A copy for each worker, once."""
        return self._client.scatter(array, broadcast=True)

    def close(self) -> None:
        """Client first."""
        self._client.close()
        self._cluster.close()


class Ray(System):
    """ray: tasks on a local cluster with as many CPUs as there are workers."""

    title = "ray"
    package = "ray"
    scale = 10
    graph_scale = 10
    restless = True

    def __init__(self, workers: int) -> None:
        import ray

        super().__init__(workers)
        self._ray = ray
        ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        self._step = ray.remote(step)
        self._after = ray.remote(run_after)
        ray.get([self._after.remote(time.sleep, (0.1,)) for _ in range(2 * workers)])  # its workers start with these

    def run_all(self, calls: Sequence[Call]) -> List[int]:
        """Submitted all at once."""
        return list(self._ray.get([self._step.remote(*call) for call in calls]))

    def run_graph(self, calls: Sequence[Call], fn: Callable[..., Any]) -> None:
        """References as arguments are prerequisites."""
        references: List[Any] = []
        for call in calls:
            references.append(self._after.remote(fn, call, *[references[p] for p in call[1]]))
        self._ray.get(references)

    def stream(self, fn: Callable[..., Any], calls: Iterable[Tuple[Any, ...]], window: int) -> Iterator[Any]:
        """In order."""
        remote = self._ray.remote(fn)
        references: List[Any] = []
        for call in calls:
            references.append(remote.remote(*call))
            if len(references) == window:
                yield self._ray.get(references.pop(0))
        while references:
            yield self._ray.get(references.pop(0))

    def share(self, array: Any) -> Any:
        """A copy in its object store, which workers map."""
        return self._ray.put(array)

    def close(self) -> None:
        """All its servers."""
        self._ray.shutdown()
