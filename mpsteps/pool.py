"""StepPool: a `concurrent.futures.Executor` whose tasks are steps with prerequisites.

::

    with mpsteps.StepPool() as pool:
        a = pool.submit(load, "x.mrc")               # a real concurrent.futures.Future
        b = pool.submit_step(align, a, after=[a])    # a Future as an argument is replaced by its result

What differs from ProcessPoolExecutor: a worker's death fails the step it was running (with StepLost) and nothing else;
lambdas, closures and classes of `__main__` work, and no `if __name__ == "__main__"` guard is needed.
"""

from __future__ import annotations

import itertools
import operator
import time
import weakref
from collections import deque
from concurrent.futures import Executor, Future
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Deque,
    Iterable,
    Iterator,
    List,
    Optional,
    Sequence,
    Tuple,
    TypeVar,
    Union,
)  # fmt: skip

from mpsteps._machine import usable_cores, usable_memory
from mpsteps._spawn import start_zygote
from mpsteps.engines.choice import Cluster, engine_of, shares
from mpsteps.errors import UsageError

if TYPE_CHECKING:
    from mpsteps._pool_work import PoolWork  # when there is a pool: see StepPool.__init__

T = TypeVar("T")
Call = Tuple[Callable[..., Any], Tuple[Any, ...], Optional[Callable[..., Any]]]
"""A function, its arguments and, if these are several calls of another function, that."""

class StepPool(Executor):
    """Runs calls in `max_workers` processes (default: the cores this process may use).

    Workers are started with the pool, not with the first call. `gpus`: numbers of the graphics cards that steps with
    `gpus=` share. `engine`: 'processes', or a cluster ('dask', 'slurm', the address of a Dask scheduler, its scheduler
    file, a `Cluster`); there, `max_workers` is for 'dask' only. Raises ValueError for a `max_workers` below 1,
    EngineError when processes cannot be started.
    """

    def __init__(
        self, max_workers: Optional[int] = None, *, gpus: Sequence[int] = (), engine: Union[str, Cluster] = "processes"
    ) -> None:
        self._max_workers = usable_cores() if max_workers is None else _whole_number(max_workers, "max_workers")
        if self._max_workers < 1:
            raise ValueError("max_workers must be greater than 0")
        self._gpus = tuple(_whole_number(g, "the number of a graphics card") for g in gpus)
        self._work = self._start(_cluster_of(engine, max_workers))
        # Workers end when nobody holds the pool any more: the loop's thread knows the work, not the pool.
        weakref.finalize(self, self._work.shut_down).atexit = False

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run `fn(*args, **kwargs)` in a worker; its Future.

        Futures in the arguments (also inside lists, tuples and dicts) are prerequisites, and replaced by their results.
        """
        if not callable(fn):
            raise TypeError(f"a step runs a callable, not {fn!r}")
        return self._work.call(fn, args, kwargs)

    def submit_step(
        self,
        fn: Callable[..., T],
        /,
        *args: Any,
        after: Union[Future[Any], Iterable[Future[Any]]] = (),
        cpus: int = 1,
        memory: Union[int, str, None] = None,
        gpus: int = 0,
        timeout: Optional[float] = None,
        retries: int = 0,
        name: Optional[str] = None,
    ) -> Future[T]:
        """Run `fn(*args)` once all futures in `after`, and all that stand in `args`, are done; its Future.

        If one of them fails or is cancelled, this step is not run: its Future raises StepError (StepCancelled), whose
        cause is the failure. `cpus`, `memory`, `gpus`: what it holds while it runs; if it uses more memory, its worker
        is killed and StepOutOfMemory is raised; `timeout`: seconds after which its worker is killed and StepTimeout is
        raised; `retries`: further attempts after a failed one, each after a rest; `name`: for messages. UsageError for
        values that make no sense.
        """
        if not callable(fn):
            raise UsageError(f"a step runs a callable, not {fn!r}")
        if name is not None and not isinstance(name, str):
            raise UsageError(f"name of a step must be a text, not {name!r}")
        from mpsteps._core.steps import PLAIN, Demand
        from mpsteps._step_options import make_options

        options = make_options(cpus, memory, gpus, timeout, retries)
        if options.gpus > len(self._gpus):
            have = len(self._gpus) or "none: StepPool(gpus=[0]) would give it the first one"
            raise UsageError(f"the step needs {options.gpus} graphics cards and this pool has {have}")
        demand = Demand(
            cpus=options.cpus, gpus=options.gpus, memory=options.memory, retries=options.retries,
            alone=options.timeout is not None,
        )  # fmt: skip
        demand = PLAIN if demand == PLAIN else demand
        return self._work.call(fn, args, {}, demand, options.timeout, name, _futures(after))

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: Optional[float] = None,
        chunksize: int = 1,
        buffersize: Optional[int] = None,
    ) -> Iterator[T]:
        """Like `map(fn, *iterables)`, run in the workers; results in order.

        `timeout`: seconds from this call after which the iterator raises TimeoutError. `chunksize`: so many calls
        form one step. (Short steps travel together anyway; a larger chunk saves the futures.) `buffersize`: the
        iterables are read no further than so many steps ahead of the results taken; None: to their end, now.
        """
        if not callable(fn):
            raise TypeError(f"a step runs a callable, not {fn!r}")
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if buffersize is not None and _whole_number(buffersize, "buffersize") < 1:
            raise ValueError("buffersize must be None or > 0")
        end = None if timeout is None else time.monotonic() + timeout
        calls: Iterator[Call]
        if chunksize == 1:
            calls = ((fn, args, None) for args in zip(*iterables))
        else:
            calls = ((_run_chunk, (fn, chunk), fn) for chunk in _chunks(zip(*iterables), chunksize))
        futures = deque(self._call(call) for call in itertools.islice(calls, buffersize))
        results = _take_in_order(futures, None if buffersize is None else (weakref.ref(self), calls), end)
        return results if chunksize == 1 else _one_by_one(results)

    def _start(self, cluster: Optional[Cluster]) -> PoolWork:
        """Start the workers. The new process loads its modules while this one loads the rest of its own."""
        zygote = start_zygote(self._max_workers) if cluster is None else None
        try:
            from mpsteps._pool_work import PoolWork

            work = PoolWork(self._max_workers, usable_memory(), self._gpus, cluster, zygote)
        except BaseException:
            if zygote is not None:
                zygote.stop()
            raise
        work.start()
        return work

    def _call(self, call: Call) -> Future[Any]:
        fn, args, calls = call
        return self._work.call(fn, args, {}, calls=calls)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """No more steps are accepted; those submitted still run, or are cancelled if `cancel_futures`.

        `wait`: return only when all have ended and no process of the pool is left.
        """
        self._work.shut_down(cancel_futures)
        if wait:
            self._work.join()


def _cluster_of(engine: Union[str, Cluster], max_workers: Optional[int]) -> Optional[Cluster]:
    """The cluster of an engine; None: the workers are processes of this machine."""
    chosen = engine_of(engine)
    if isinstance(chosen, Cluster):
        if chosen.where == "dask":
            return shares(chosen, usable_cores() if max_workers is None else max_workers)
        if max_workers is not None:
            raise UsageError(f"max_workers is not for engine {chosen.where!r}: the cluster says how many there are")
        return chosen
    if chosen != "processes":
        raise UsageError(f"a pool cannot run steps on engine {chosen!r}: choose 'processes' or a cluster")
    return None


def _whole_number(value: Any, what: str) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{what} must be an integer, not {value!r}") from None


def _futures(after: Any) -> Tuple[Future[Any], ...]:
    if isinstance(after, Future):
        return (after,)
    try:
        futures = tuple(after)
    except TypeError:
        raise UsageError(f"after= takes futures (what submit returned), not {after!r}") from None
    for f in futures:
        if not isinstance(f, Future):
            raise UsageError(f"after= takes futures (what submit returned), not {f!r}")
    return futures


def _take_in_order(
    futures: Deque[Future[Any]], more: Optional[Tuple[weakref.ref[StepPool], Iterator[Call]]], end: Optional[float]
) -> Iterator[Any]:
    """Results of `futures`, in order; no reference to a result or its future is kept once it is handed out.

    `more`: a reference to the pool, and calls: one is submitted for each result taken, while somebody holds the pool.
    """
    try:
        while futures:
            pool = more[0]() if more else None
            if more and pool is not None:
                futures.extend(pool._call(call) for call in itertools.islice(more[1], 1))
            del pool
            yield _first_result(futures, end)
    finally:
        for future in futures:
            future.cancel()


def _first_result(futures: Deque[Future[Any]], end: Optional[float]) -> Any:
    result = futures[0].result(None if end is None else end - time.monotonic())
    futures.popleft()
    return result


def _chunks(calls: Iterator[Tuple[Any, ...]], size: int) -> Iterator[List[Tuple[Any, ...]]]:
    while True:
        chunk = list(itertools.islice(calls, size))
        if not chunk:
            return
        yield chunk


def _run_chunk(fn: Callable[..., T], chunk: List[Tuple[Any, ...]]) -> List[T]:
    return [fn(*args) for args in chunk]


def _one_by_one(chunks: Iterator[List[T]]) -> Iterator[T]:
    """All results in order, letting go of each as it is handed out."""
    for chunk in chunks:
        chunk.reverse()
        while chunk:
            yield chunk.pop()
