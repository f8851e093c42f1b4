"""What the steps do, in which order they must, and the board on which they prove that they did.

A step is a call of `step(index, prerequisites, iterations)`. It looks on the board whether its prerequisites have been
there, adds up small numbers in `iterations` of a loop, and leaves its mark. So whatever a system says of itself, each
run is verified: every step ran exactly once, and none before its prerequisites had finished. The board is a file that
all processes map; looking and marking take a fraction of a microsecond.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import tempfile
import time
from typing import Any, Iterator, List, NamedTuple, Tuple, Union

from perf._harness import check

_VARIABLE = "MPSTEPS_PERF_BOARD"
"""In the environment, since that is what processes inherit however they are started."""

_mapped: List[mmap.mmap] = []  # this process's view of the board, once it has looked

Call = Tuple[int, Tuple[int, ...], Any]
"""Arguments of a step: its index, those of its prerequisites, and a third that is up to its function."""


def step(index: int, prerequisites: Tuple[int, ...] = (), iterations: int = 0) -> int:
    """A step: RuntimeError if one of its prerequisites has not finished. Returns its index."""
    if not _mapped:
        _mapped.append(_map_board(os.environ[_VARIABLE]))
    board = _mapped[0]
    for p in prerequisites:
        if not board[p]:
            raise RuntimeError(f"step {index} runs before step {p} has finished")
    busy(iterations)
    board[index] += 1
    return index


def busy(iterations: int) -> None:
    """Pure Python that computes: it holds the GIL. Only small numbers: others would be made anew in each round, and how
    fast that goes depends on where a process happens to have its memory (by 15 percent, measured)."""
    x = 0
    for _ in itertools.repeat(None, iterations):
        x = (x + 7) & 127


def iterations_per_second() -> float:
    """How fast `busy` is here: the best of several measurements, so that a disturbance does not count."""
    iterations = 200_000
    best = float("inf")
    for _ in range(7):
        started = time.perf_counter()
        busy(iterations)
        best = min(best, time.perf_counter() - started)
    return iterations / best


class Board:
    """Room for the marks of `size` steps. Make it before the systems: their processes must inherit where it is."""

    def __init__(self, folder: str, size: int) -> None:
        path = os.path.join(folder, "board")
        with open(path, "wb") as f:
            f.truncate(size)
        os.environ[_VARIABLE] = path
        self._marks = _map_board(path)
        _mapped.append(self._marks)  # for steps that run in this process, in threads

    def verify(self, count: int, who: str) -> None:
        """Steps 0 to `count` - 1 have run once each, and no others. Wipes the board."""
        marks = self._marks[:]
        check(marks[:count] == b"\1" * count, f"{who}: {count - marks.count(1)} of {count} steps ran not exactly once")
        check(not any(marks[count:]), f"{who}: more steps ran than there are")
        self._marks[:] = bytes(len(self._marks))


@contextlib.contextmanager
def board(size: int) -> Iterator[Board]:
    """A board for as long as the block lasts."""
    with tempfile.TemporaryDirectory(prefix="mpsteps-perf-") as folder:
        try:
            yield Board(folder, size)
        finally:
            os.environ.pop(_VARIABLE, None)
            _mapped.clear()


def _map_board(path: str) -> mmap.mmap:
    with open(path, "r+b") as f:
        return mmap.mmap(f.fileno(), 0)


# ---------------------------------------------------------------------------------------------------- graphs


class Layers(NamedTuple):
    """`layers` of `width` steps. A step waits for three of the layer before: above it, and left and right of that.

    At the sides there are two, or, if `round`, those of the other side. One layer: no edges. Width 1: a chain.
    """

    width: int
    layers: int
    round: bool = False

    @property
    def size(self) -> int:
        """How many steps."""
        return self.width * self.layers

    def prerequisites(self, index: int) -> Tuple[int, ...]:
        """Indices of the steps that step `index` waits for."""
        layer, column = divmod(index, self.width)
        if not layer:
            return ()
        above = index - column - self.width  # the first step of the layer before
        columns = range(column - 1, column + 2)
        if self.round:
            return tuple(above + c % self.width for c in columns)
        return tuple(above + c for c in columns if 0 <= c < self.width)


class Random(NamedTuple):
    """Each step waits for up to two of all before it, drawn by a hash: the same graph each time."""

    size: int

    def prerequisites(self, index: int) -> Tuple[int, ...]:
        """Indices of the steps that step `index` waits for."""
        if index < 2:
            return ()
        first, second = (index * 2_654_435_761 >> 8) % index, (index * 2_246_822_519 >> 7) % index
        return (first, second) if first != second else (first,)


class Late(NamedTuple):
    """`wide` steps without prerequisites, and after them a chain of `chain`."""

    wide: int
    chain: int

    @property
    def size(self) -> int:
        """How many steps."""
        return self.wide + self.chain

    def prerequisites(self, index: int) -> Tuple[int, ...]:
        """Indices of the steps that step `index` waits for."""
        return (index - 1,) if index > self.wide else ()


Graph = Union[Layers, Random, Late]


def calls(graph: Graph, iterations: int = 0) -> List[Call]:
    """The arguments of all steps, in an order in which each comes after its prerequisites."""
    return [(i, graph.prerequisites(i), iterations) for i in range(graph.size)]
