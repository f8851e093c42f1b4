"""One interface for everything that runs steps, so that a script asks for systems by name and treats them alike."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import queue
import threading
import time
from collections import deque
from typing import Any, Callable, Deque, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

from perf._harness import Job, Row, Timing, check, interleaved
from perf._work import Board, Call, Graph, Layers, calls, step

PATIENCE = 900
"""Seconds after which a run that has not come to its end is called hung."""

# In the order in which they are brought up: those that fork go first, while this process has no threads yet.
SYSTEMS: Dict[str, str] = {
    "loop": "perf.peers.pools:Loop",
    "pool": "perf.peers.pools:MultiprocessingPool",
    "ppe": "perf.peers.pools:ProcessPool",
    "mpire": "perf.peers.pools:Mpire",
    "pebble": "perf.peers.pools:Pebble",
    "loky": "perf.peers.pools:Loky",
    "joblib": "perf.peers.pools:Joblib",
    "threads": "perf.peers.pools:Threads",
    "dask": "perf.peers.clusters:Dask",
    "ray": "perf.peers.clusters:Ray",
    "scipion": "perf.peers.scipion:Scipion",
    "steppool": "perf._ours:Pool",
    "steppool_dask": "perf._ours:ClusterPool",
    "shared_array": "perf._ours:SharedArrayPool",
    "protocol": "perf._ours:ProtocolRun",
}

FLOORS = ("plain loop, one process", "bare processes", "the interpreter alone")
"""Titles of rows that are no systems: they show what there is to gain, or to lose."""

ALL = tuple(name for name in SYSTEMS if name not in ("shared_array", "steppool_dask"))
"""Each system once."""

OURS = ("steppool", "protocol")

QUICK = ("loop", "threads", "ppe", "pool", "steppool", "protocol")
"""Those that need no other package and start at once: all that a smoke test runs, unless it is told."""


class System:
    """Something that runs steps in `workers` workers, which are up when it is made.

    `name`: what SYSTEMS calls it; `title`: what tables do.
    `scale`, `graph_scale`: how many times fewer independent steps, or steps with prerequisites, it is given, because
    it takes that much longer for each. `runs`: how many rounds at most. `package`: what to install to have it.
    `restless`: its servers take a part of the cores also when they have nothing to do, as clusters' do (beside an idle
    one, ProcessPoolExecutor is a third slower).
    """

    name = ""
    title = ""
    package = ""
    scale = 1
    graph_scale = 1
    runs: Optional[int] = None
    restless = False

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def independent(self, calls: Sequence[Call]) -> Timing:
        """Seconds from the first submission to the last result, each call a message of its own."""
        started = time.perf_counter()
        results = self.run_all(calls)
        took = time.perf_counter() - started
        check(sum(results) == sum(c[0] for c in calls), f"{self.title}: results are not those of the calls")
        return {self.title: took}

    def graph(self, calls: Sequence[Call], fn: Callable[..., Any] = step) -> Timing:
        """Seconds for `fn(*call)` of all calls, none before those whose indices are `call[1]` have finished."""
        started = time.perf_counter()
        self.run_graph(calls, fn)
        return {self.title: time.perf_counter() - started}

    def run_all(self, calls: Sequence[Call]) -> List[int]:
        """The results of `step(*call)`."""
        raise NotImplementedError

    def run_graph(self, calls: Sequence[Call], fn: Callable[..., Any]) -> None:
        """See `graph`. Raises what a step raised."""
        raise NotImplementedError

    def stream(self, fn: Callable[..., Any], calls: Iterable[Tuple[Any, ...]], window: int) -> Iterator[Any]:
        """Results of `fn(*call)` as they come, with at most about `window` of them on their way: for large data."""
        raise SystemExit(f"{self.title} cannot be asked this: it has no way to give results back one by one")

    def share(self, array: Any) -> Any:
        """What to give `stream` as an argument of many calls in place of this array."""
        return array

    def close(self) -> None:
        """End the workers."""


Done = Callable[[Any, Optional[BaseException]], None]
"""Takes a result, or an exception."""


class CallbackSystem(System):
    """A pool that knows nothing of prerequisites: what becomes ready is submitted by the callback of what finished.

    That is the fastest way to run a graph on such a pool: no thread has to be woken between two steps.
    """

    def start(self, fn: Callable[..., Any], args: Tuple[Any, ...], done: Done) -> None:
        """Submit one call; `done` is called when it has ended, in whichever thread."""
        raise NotImplementedError

    def run_graph(self, calls: Sequence[Call], fn: Callable[..., Any]) -> None:
        """By counting down prerequisites."""
        _GraphRun(self, fn, calls).run()

    def stream(self, fn: Callable[..., Any], calls: Iterable[Tuple[Any, ...]], window: int) -> Iterator[Any]:
        """In the order in which they end."""
        ended: queue.SimpleQueue[Tuple[Any, Optional[BaseException]]] = queue.SimpleQueue()
        on_their_way = 0
        for call in calls:
            self.start(fn, call, lambda result, error: ended.put((result, error)))
            on_their_way += 1
            if on_their_way == window:
                yield _result(*ended.get(timeout=PATIENCE))
                on_their_way -= 1
        for _ in range(on_their_way):
            yield _result(*ended.get(timeout=PATIENCE))


class _GraphRun:
    """One graph on one CallbackSystem."""

    def __init__(self, system: CallbackSystem, fn: Callable[..., Any], calls: Sequence[Call]) -> None:
        self._system = system
        self._fn = fn
        self._calls = calls
        self._waits_for = [len(c[1]) for c in calls]
        self._successors: List[List[int]] = [[] for _ in calls]
        for call in calls:
            for p in call[1]:
                self._successors[p].append(call[0])
        self._left = len(calls)
        self._ended: Deque[int] = deque()  # and not yet counted down
        self._counting = threading.Lock()
        self._over = threading.Event()
        self._error: Optional[BaseException] = None

    def run(self) -> None:
        """Until all have ended, or one has failed."""
        with self._counting:
            for i in [i for i, n in enumerate(self._waits_for) if not n]:
                self._start(i)
        self._count_down()
        check(self._over.wait(PATIENCE), f"{self._system.title} has not come to an end in {PATIENCE} s")
        if self._error is not None:
            raise self._error

    def _start(self, index: int) -> None:
        self._system.start(self._fn, self._calls[index], lambda _, error: self._done(index, error))

    def _done(self, index: int, error: Optional[BaseException]) -> None:
        if error is not None:
            self._error = error
            self._over.set()
            return
        self._ended.append(index)
        self._count_down()

    def _count_down(self) -> None:
        """One thread at a time, and never from within itself: a call may end before `start` returns."""
        while self._ended and self._counting.acquire(blocking=False):
            try:
                while self._ended:
                    self._left -= 1
                    for s in self._successors[self._ended.popleft()]:
                        self._waits_for[s] -= 1
                        if not self._waits_for[s]:
                            self._start(s)
            finally:
                self._counting.release()
        if not self._left:
            self._over.set()


def _result(result: Any, error: Optional[BaseException]) -> Any:
    if error is not None:
        raise error
    return result


def independent_job(system: System, board: Board, count: int) -> Job:
    """`count` empty steps without prerequisites, or as many as are reasonable for the system."""
    return _job(system, board, Layers(max(4, count // system.scale), 1), system.independent)


def graph_job(system: System, board: Board, graph: Graph, iterations: int = 0) -> Job:
    """All steps of a graph, `iterations` of `busy` each."""
    return _job(system, board, graph, system.graph, iterations)


def _job(
    system: System, board: Board, graph: Graph, run: Callable[[Sequence[Call]], Timing], iterations: int = 0
) -> Job:
    todo = calls(graph, iterations)

    def measure() -> Timing:
        timing = run(todo)
        board.verify(len(todo), system.title)
        return timing

    return Job(measure, len(todo), system.runs)


def in_turn(
    args: argparse.Namespace, names: Sequence[str], jobs: Callable[[System], Sequence[Job]], runs: int,
    also: Sequence[Job] = (),
) -> Dict[str, Row]:  # fmt: skip
    """The rows of the jobs of these systems, and of those in `also`, which need none: brought up, run in turn, ended.

    Systems that are restless come after the others have ended.
    """
    rows: Dict[str, Row] = {}
    for restless in (False, True):
        group = [name for name in names if kind(name).restless is restless]
        with opened(args, group) as systems:
            todo = [*([] if restless else also), *(job for system in systems for job in jobs(system))]
            rows.update(interleaved(todo, runs, warm=not args.smoke))
    return rows


@contextlib.contextmanager
def opened(args: argparse.Namespace, names: Sequence[str]) -> Iterator[List[System]]:
    """The systems of these names, brought up; ended with the block."""
    with contextlib.ExitStack() as stack:
        systems = []
        for name in names:
            try:
                system = kind(name)(args.workers)
            except ImportError as error:
                note_missing(name, error)
                continue
            stack.callback(system.close)
            system.name = name
            systems.append(system)
        yield systems


def chosen(args: argparse.Namespace, usual: Sequence[str]) -> List[str]:
    """Names of the systems that were asked for, `usual` ones by default, in the order to bring them up."""
    names = args.systems.split(",") if args.systems else usual
    unknown = [name for name in names if name not in SYSTEMS]
    if unknown:
        raise SystemExit(f"there is no system {unknown[0]!r}: choose of {', '.join(SYSTEMS)}")
    if args.smoke and not args.systems:
        names = [name for name in names if name in QUICK]
    return [name for name in SYSTEMS if name in names]


def kind(name: str) -> Any:
    """The class of a system; its packages are loaded when one is made."""
    module, _, cls = SYSTEMS[name].partition(":")
    return getattr(importlib.import_module(module), cls)


def note_missing(name: str, error: ImportError) -> None:
    """A system is left out, and whoever reads the figures knows why."""
    package = error.name or name
    if (package or "").startswith(("perf", "mpsteps")):
        raise error  # a mistake of ours
    print(f"note: {name} is left out: there is no module {package!r} (pip install {kind(name).package})")
