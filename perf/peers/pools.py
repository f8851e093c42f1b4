"""Pools of workers on this machine. None of them knows prerequisites."""

from __future__ import annotations

import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any, Callable, Dict, Iterable, Iterator, List, Sequence, Tuple

from perf._systems import CallbackSystem, Done, System
from perf._work import Call, step


class Loop(System):
    """No workers, nothing to hand out: what the steps themselves cost, one after another in this process."""

    title = "plain loop, one process"

    def run_all(self, calls: Sequence[Call]) -> List[int]:
        """One after another."""
        return [step(*call) for call in calls]

    def run_graph(self, calls: Sequence[Call], fn: Callable[..., Any]) -> None:
        """They come in an order that suits their prerequisites."""
        for call in calls:
            fn(*call)

    def stream(self, fn: Callable[..., Any], calls: Iterable[Tuple[Any, ...]], window: int) -> Iterator[Any]:
        """One after another."""
        for call in calls:
            yield fn(*call)


class FuturesSystem(CallbackSystem):
    """Anything whose `submit(fn, *args)` returns a future."""

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self.executor = self.make()
        # Several of them start a worker only when a call finds no idle one: these calls find none.
        for future in [self.submit(time.sleep, 0.1) for _ in range(2 * workers)]:
            future.result()

    def make(self) -> Any:
        """The executor."""
        raise NotImplementedError

    def submit(self, fn: Callable[..., Any], *args: Any) -> Any:
        """One call; its future."""
        return self.executor.submit(fn, *args)

    def run_all(self, calls: Sequence[Call]) -> List[int]:
        """Submitted all at once, and waited for in order."""
        futures = [self.submit(step, *call) for call in calls]
        return [future.result() for future in futures]

    def start(self, fn: Callable[..., Any], args: Tuple[Any, ...], done: Done) -> None:
        """A future's callback is called by the thread that sets its result."""

        def call_back(future: Future[Any]) -> None:
            error = future.exception()
            done(None if error else future.result(), error)

        self.submit(fn, *args).add_done_callback(call_back)

    def close(self) -> None:
        """Wait for its workers, too."""
        self.executor.shutdown(wait=True)


class Threads(FuturesSystem):
    """concurrent.futures.ThreadPoolExecutor: cheap to hand out, but one step at a time computes."""

    title = "ThreadPoolExecutor"

    def make(self) -> Executor:
        """As many threads as others have processes."""
        return ThreadPoolExecutor(self.workers)


class ProcessPool(FuturesSystem):
    """concurrent.futures.ProcessPoolExecutor."""

    title = "ProcessPoolExecutor"

    def make(self) -> Executor:
        """With the platform's usual start method."""
        return ProcessPoolExecutor(self.workers)


class Loky(FuturesSystem):
    """loky: a more robust ProcessPoolExecutor."""

    title = "loky"
    package = "loky"

    def make(self) -> Any:
        """Its workers would leave after ten idle seconds."""
        from loky import get_reusable_executor

        return get_reusable_executor(max_workers=self.workers, timeout=3600)


class Pebble(FuturesSystem):
    """pebble.ProcessPool: with timeouts for each call."""

    title = "pebble"
    package = "pebble"

    def make(self) -> Any:
        """Its method is called schedule."""
        from pebble import ProcessPool as PebblePool

        return PebblePool(max_workers=self.workers)

    def submit(self, fn: Callable[..., Any], *args: Any) -> Any:
        """`schedule` makes the same kind of future."""
        return self.executor.schedule(fn, args=args)

    def close(self) -> None:
        """In two steps."""
        self.executor.close()
        self.executor.join()


class MultiprocessingPool(CallbackSystem):
    """multiprocessing.Pool, one `apply_async` a step."""

    title = "multiprocessing.Pool"

    def __init__(self, workers: int) -> None:
        import multiprocessing

        super().__init__(workers)
        self.pool: Any = multiprocessing.Pool(workers)
        self.pool.map(time.sleep, [0.05] * workers, chunksize=1)

    def run_all(self, calls: Sequence[Call]) -> List[int]:
        """Submitted all at once, and waited for in order."""
        results = [self.pool.apply_async(step, call) for call in calls]
        return [r.get() for r in results]

    def start(self, fn: Callable[..., Any], args: Tuple[Any, ...], done: Done) -> None:
        """Callbacks come from its result thread."""
        self.pool.apply_async(
            fn, args, callback=lambda result: done(result, None), error_callback=lambda error: done(None, error)
        )

    def close(self) -> None:
        """In two steps."""
        self.pool.close()
        self.pool.join()


class Mpire(MultiprocessingPool):
    """mpire.WorkerPool: multiprocessing.Pool made faster and friendlier; `apply_async` as there."""

    title = "mpire"
    package = "mpire"

    def __init__(self, workers: int) -> None:
        from mpire import WorkerPool

        System.__init__(self, workers)
        self.pool = WorkerPool(n_jobs=workers, keep_alive=True)
        for result in [self.pool.apply_async(time.sleep, (0.05,)) for _ in range(workers)]:
            result.get()

    def close(self) -> None:
        """In two steps, which have other names."""
        self.pool.stop_and_join()


class Joblib(System):
    """joblib.Parallel with its usual backend, batches of one: it has no way to wait for single steps.

    A graph is run layer by layer, each layer when the one before has finished.
    """

    title = "joblib"
    package = "joblib"
    graph_scale = 10

    def __init__(self, workers: int) -> None:
        from joblib import Parallel, delayed

        super().__init__(workers)
        self._delayed = delayed
        self._parallel = Parallel(n_jobs=workers, batch_size=1)
        self._parallel.__enter__()  # keeps its workers from call to call
        self._parallel(delayed(time.sleep)(0.05) for _ in range(workers))

    def run_all(self, calls: Sequence[Call]) -> List[int]:
        """One call of Parallel."""
        return list(self._parallel(self._delayed(step)(*call) for call in calls))

    def run_graph(self, calls: Sequence[Call], fn: Callable[..., Any]) -> None:
        """A layer: the steps that have their longest way from the beginning in common."""
        depth: Dict[int, int] = {}
        layers: Dict[int, List[Call]] = {}
        for call in calls:
            depth[call[0]] = own = 1 + max((depth[p] for p in call[1]), default=0)
            layers.setdefault(own, []).append(call)
        for number in sorted(layers):
            self._parallel(self._delayed(fn)(*call) for call in layers[number])

    def stream(self, fn: Callable[..., Any], calls: Iterable[Tuple[Any, ...]], window: int) -> Iterator[Any]:
        """By its generator; arrays of more than a megabyte go through files that workers map."""
        from joblib import Parallel

        with Parallel(n_jobs=self.workers, batch_size=1, pre_dispatch=window, return_as="generator") as parallel:
            yield from parallel(self._delayed(fn)(*call) for call in calls)

    def close(self) -> None:
        """The workers belong to a pool behind all Parallel objects."""
        from joblib.externals.loky import get_reusable_executor

        self._parallel.__exit__(None, None, None)
        get_reusable_executor().shutdown(wait=True)
