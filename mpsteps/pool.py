"""StepPool: a `concurrent.futures.Executor` whose tasks are steps with prerequisites.

::

    with mpsteps.StepPool() as pool:
        a = pool.submit(load, "x.mrc")               # a real concurrent.futures.Future
        b = pool.submit_step(align, a, after=[a])    # a Future as an argument is replaced by its result

What differs from ProcessPoolExecutor: a worker's death fails the step it was running (with StepLost) and nothing else;
lambdas, closures and classes of `__main__` work, and no `if __name__ == "__main__"` guard is needed.
"""

from __future__ import annotations

import atexit
import functools
import itertools
import threading
import weakref
from concurrent.futures import Executor, Future
from typing import Any, Callable, Iterable, Iterator, Optional, Sequence, Tuple, TypeVar, Union

from mpsteps._core.steps import PLAIN, Demand
from mpsteps._machine import usable_cores, usable_memory
from mpsteps._pool_work import PoolWork, Task
from mpsteps.errors import UsageError
from mpsteps.steps import make_options

T = TypeVar("T")

_pools: weakref.WeakSet[StepPool] = weakref.WeakSet()


class StepPool(Executor):
    """Runs calls in `max_workers` processes (default: the cores this process may use).

    Workers are started with the pool, not with the first call. `gpus`: numbers of the graphics cards that steps with
    `gpus=` share. Raises ValueError for a `max_workers` below 1, EngineError when processes cannot be started.
    """

    def __init__(self, max_workers: Optional[int] = None, *, gpus: Sequence[int] = ()) -> None:
        if max_workers is None:
            max_workers = usable_cores()
        if isinstance(max_workers, bool) or not isinstance(max_workers, int):
            raise TypeError(f"max_workers must be an integer, not {max_workers!r}")
        if max_workers < 1:
            raise ValueError("max_workers must be greater than 0")
        self._max_workers = max_workers
        self._lock = threading.Lock()  # orders `submit` before or after `shutdown`
        self._shut = False
        self._work = PoolWork(max_workers, usable_memory(), gpus)
        self._work.start()
        # Workers end when nobody holds the pool any more: the loop's thread knows the work, not the pool.
        self._finalizer = weakref.finalize(self, self._work.shut_down)
        self._finalizer.atexit = False
        _pools.add(self)

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run `fn(*args, **kwargs)` in a worker; its Future."""
        return self._submit(fn, args, kwargs, (), PLAIN, None, None)

    def submit_step(
        self,
        fn: Callable[..., T],
        /,
        *args: Any,
        after: Union[Future[Any], Iterable[Future[Any]]] = (),
        cpus: int = 1,
        memory: Union[None, int, str] = None,
        gpus: int = 0,
        timeout: Optional[float] = None,
        retries: int = 0,
        name: Optional[str] = None,
    ) -> Future[T]:
        """Run `fn(*args)` once all futures in `after`, and all that stand in `args`, are done; its Future.

        If one of them fails or is cancelled, this step is not run: its Future raises StepError (StepCancelled), whose
        cause is the failure. `cpus`, `memory`, `gpus`: what it holds while it runs; `timeout`: seconds after which its
        worker is killed and StepTimeout is raised; `retries`: further attempts after a failed one; `name`: for
        messages. UsageError for values that make no sense.
        """
        options = make_options(cpus, memory, gpus, timeout, retries)
        demand = Demand(
            cpus=options.cpus, gpus=options.gpus, memory=options.memory, retries=options.retries,
            alone=options.timeout is not None,
        )  # fmt: skip
        before = (after,) if isinstance(after, Future) else tuple(after)
        for f in before:
            if not isinstance(f, Future):
                raise UsageError(f"after= takes futures (what submit returned), not {f!r}")
        return self._submit(fn, args, {}, before, PLAIN if demand == PLAIN else demand, options.timeout, name)

    def _submit(
        self, fn: Callable[..., Any], args: Tuple[Any, ...], kwargs: Any, after: Tuple[Future[Any], ...],
        demand: Demand, timeout: Optional[float], name: Optional[str],
    ) -> Future[Any]:  # fmt: skip
        if not callable(fn):
            raise TypeError(f"a step runs a callable, not {fn!r}")
        future: Future[Any] = Future()
        task = Task(future, fn, args, kwargs, demand, timeout, name)
        with self._lock:
            if self._shut:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._work.submit(task, after)
        return future

    def map(
        self, fn: Callable[..., T], *iterables: Iterable[Any], timeout: Optional[float] = None, chunksize: int = 1
    ) -> Iterator[T]:
        """Like `map(fn, *iterables)`, run in the workers; results in order.

        `timeout`: seconds from this call after which the iterator raises TimeoutError. `chunksize`: so many calls
        form one step. (Short steps travel together anyway; a larger chunk saves the futures.)
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if chunksize == 1:
            return super().map(fn, *iterables, timeout=timeout)
        chunks = _chunks(zip(*iterables), chunksize)
        results = super().map(functools.partial(_run_chunk, fn), chunks, timeout=timeout)
        return _chain_freeing(results)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """No more steps are accepted; those submitted still run, or are cancelled if `cancel_futures`.

        `wait`: return only when all have ended and no process of the pool is left.
        """
        with self._lock:
            self._shut = True
        self._work.shut_down(cancel_futures)
        if wait:
            self._work.join()


def _chunks(items: Iterator[Tuple[Any, ...]], size: int) -> Iterator[Tuple[Tuple[Any, ...], ...]]:
    while True:
        chunk = tuple(itertools.islice(items, size))
        if not chunk:
            return
        yield chunk


def _run_chunk(fn: Callable[..., T], chunk: Tuple[Tuple[Any, ...], ...]) -> list[T]:
    return [fn(*args) for args in chunk]


def _chain_freeing(chunks: Iterator[list[T]]) -> Iterator[T]:
    """All results in order, letting go of each as it is handed out."""
    for chunk in chunks:
        chunk.reverse()
        while chunk:
            yield chunk.pop()


@atexit.register
def _at_exit() -> None:
    """Let what was submitted finish before the interpreter goes, as the standard library's executors do."""
    for pool in list(_pools):
        pool.shutdown(wait=True)
