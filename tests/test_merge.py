"""Concurrent changes of one attribute: merged where the meaning is clear, else a StateConflict.

The reference is what the same steps give one after another, in one process.
"""

from __future__ import annotations

import copy
import os
from typing import Any, Dict, List

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from merging_protocol import Merges

from mpsteps import STATUS_FAILED, STATUS_FINISHED, StateConflict
from mpsteps._ipc import untouched
from mpsteps._ipc.edits import carry_out
from mpsteps._ipc.marks import difference, marked
from mpsteps._ipc.merge import Merge
from mpsteps._writes import WritesOf


def run(tmp_path: Any, insert: Any, engine: str = "processes", threads: int = 2, **options: Any) -> Merges:
    """One run, to its end."""
    prot = Merges(insert, workingDir=str(tmp_path / "run"), numberOfThreads=threads)
    prot.run(engine=engine, **options)
    return prot


def work(steps: int) -> Any:
    """Inserts so many independent steps that change everything."""
    return lambda self: [self._insertFunctionStep("work", i, prerequisites=[]) for i in range(steps)]


@pytest.mark.parametrize("threads", [2, 4])
def test_forty_parallel_steps_leave_what_they_leave_one_after_another(tmp_path: Any, threads: int) -> None:
    """Appends, fills, counters, sets, params, nested containers. (`tests/stress_state.py` does it many times.)"""
    expected = run(tmp_path / "a", work(40), "inline").plain()
    prot = run(tmp_path / "b", work(40), threads=threads)

    assert prot.isFinished(), prot.getErrorMessage()
    assert prot.plain() == expected


def test_a_resumed_run_has_the_same(tmp_path: Any) -> None:
    """Sums are made again from the differences in the journal."""
    first = run(tmp_path, work(20))
    again = run(tmp_path, work(20))

    assert again._report.kept == 20
    assert again.plain() == first.plain()


def conflicting(tmp_path: Any, method: str, **options: Any) -> Merges:
    """Two steps that run at the same time."""

    def insert(self: Any) -> None:
        for i in (1, 2):
            self._insertFunctionStep(method, str(tmp_path / "m"), i, prerequisites=[])

    return run(tmp_path, insert, keep_going=True, **options)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("setBest", ["attribute 'best'", "set it to 1", "set it to 2"]),
        ("setItem", ["attribute 'table'", "self.table['k']"]),
        ("setLast", ["attribute 'value'", "'1'", "'2'"]),
        ("sortAndAppend", ["attribute 'items'", "appended to it", "changed its content"]),
        ("replaceAndFill", ["attribute 'table'", "changed items of it"]),
        ("multiply", ["attribute 'best'"]),
        ("helped", ["attribute 'counts'", "self.counts['k']"]),
    ],
)
def test_what_cannot_be_merged_fails_the_later_step_and_names_both(
    tmp_path: Any, method: str, words: List[str]
) -> None:
    """With the attribute, what each did, and the ways out."""
    prot = conflicting(tmp_path, method)

    steps = prot.getSteps()
    assert sorted(s.getStatus() for s in steps) == sorted([STATUS_FAILED, STATUS_FINISHED])
    failed = next(s for s in steps if s.isFailed())
    assert isinstance(failed.error, StateConflict)
    message = prot.getErrorMessage()
    for word in [*words, "step 1 " + method, "step 2 " + method, "prerequisites"]:
        assert word in message


def test_the_first_one_stays_and_nothing_of_the_second_is_taken(tmp_path: Any) -> None:
    """Also for the worker of the second, which hears of the truth again."""

    def insert(self: Any) -> None:
        pair = [self._insertFunctionStep("setBest", str(tmp_path / "m"), i, prerequisites=[]) for i in (1, 2)]
        assert pair
        for _ in range(6):
            self._insertFunctionStep("look", "best", prerequisites=[])

    prot = run(tmp_path, insert, keep_going=True)
    winner = 1 if prot.getSteps()[0].isFinished() else 2
    assert prot.best == winner


def test_equal_assignments_agree(tmp_path: Any) -> None:
    """Of texts, of numbers that are only ever set, of items."""
    prot = conflicting(tmp_path, "agree")

    assert prot.isFinished(), prot.getErrorMessage()
    assert (prot.value, prot.best, prot.table) == ("same", 7, {"k": [1, 2]})


def test_who_has_heard_of_a_change_may_overwrite_it(tmp_path: Any) -> None:
    """Steps that depend on each other are never in conflict."""

    def insert(self: Any) -> None:
        for i in range(6):
            self._insertFunctionStep("keepValue", i)

    prot = run(tmp_path, insert)
    assert prot.isFinished(), prot.getErrorMessage()
    assert prot.value == 5


def test_cells_of_arrays(tmp_path: Any) -> None:
    """Different cells are all kept, `+=` adds up, and one cell that was set twice is a conflict."""
    np = pytest.importorskip("numpy")

    def insert(method: str) -> Any:
        def inserts(self: Any) -> None:
            self.array, self.sums = np.zeros(4), np.zeros(3, "i4")
            for i in (1, 2):
                self._insertFunctionStep(method, str(tmp_path / method), i, prerequisites=[])

        return inserts

    prot = run(tmp_path / "a", insert("cells"))
    assert prot.isFinished(), prot.getErrorMessage()
    assert prot.array.tolist() == [0, 2, 3, 0]
    assert prot.sums.tolist() == [5, 5, 5]
    prot = run(tmp_path / "b", insert("sameCell"))
    assert "attribute 'array'" in prot.getErrorMessage()


@pytest.mark.versions
def test_news_that_came_with_a_step_that_was_given_back_are_heard_with_the_next(tmp_path: Any) -> None:
    """A long step, another behind it that brings news and is taken back: the next one there must know of them."""
    from mpsteps._ipc import wire
    from mpsteps._ipc.lane import Board, Lane
    from mpsteps._worker import Worker

    lane, board = Lane.create(), Board.create()
    worker = Worker(lane.worker_side(board))
    try:
        heard: List[Any] = []
        replica = worker._replica
        replica.hear = lambda news: heard.extend([*replica.unheard, news])  # type: ignore[method-assign]
        worker._protocol = Merges()
        news = (0, [wire.pack([("=", "value", 5)])])
        worker._next((1, 1, "nothing", (), news, {"ahead": (9,)}))  # step 9 has not finished here: given back
        worker._next((2, 1, "nothing", (), None, None))
        assert heard[0] == news
    finally:
        for fd in worker._surroundings._spare:  # a worker keeps them until its process ends
            os.close(fd)
        lane.close()
        board.close()


# ------------------------------------------------------------------------------------------------------- the source


def test_what_the_source_of_a_step_says() -> None:
    """Counting, beginning and setting are told apart, through helpers as well."""
    writes = WritesOf(Merges)
    w = writes("work")
    assert all(w.adds(*place) for place in (("total", False), ("spent", False), ("counts", True), ("guarded", True)))
    assert w.begins("groups", True)
    assert w.sets("shape", False)
    assert writes("setBest").sets("best", False)
    assert not w.adds("done", False)
    assert not writes("multiply").adds("best", False)
    assert not writes("helped").adds("counts", True)
    assert not writes("helped").sets("counts", True)
    assert not writes("no such method").sets("best", False)


# ------------------------------------------------------------------------------------------- against a sequential run

KEYS = st.sampled_from("abc")
ACTIONS = st.one_of(
    st.tuples(st.just("append"), KEYS, st.integers(0, 9)),
    st.tuples(st.just("count"), KEYS, st.integers(-5, 5)),
    st.tuples(st.just("put"), st.integers(0, 10**6), st.integers(0, 9)),
    st.tuples(st.just("union"), KEYS, st.integers(0, 9)),
)


class Counts:
    """Code that counts and begins, and sets nothing."""

    def adds(self, name: str, inside: bool) -> bool:
        return True

    def begins(self, name: str, inside: bool) -> bool:
        return True

    def sets(self, name: str, inside: bool) -> bool:
        return False


def act(state: Dict[str, Any], action: Any, who: int) -> None:
    kind, key, number = action
    if kind == "append":
        state["lists"].setdefault(key, []).append((who, number))
    elif kind == "count":
        state["counts"][key] = state["counts"].get(key, 0) + number
    elif kind == "put":
        state["table"][(who, key)] = number
    else:
        state["sets"].setdefault(key, set()).add(number)


def normal(state: Dict[str, Any]) -> Any:
    return {
        name: {k: sorted(v) if isinstance(v, (list, set)) else v for k, v in d.items()} for name, d in state.items()
    }


@settings(deadline=None, max_examples=150)
@given(st.lists(st.lists(ACTIONS, max_size=4), min_size=1, max_size=6), st.booleans())
def test_merging_equals_doing_one_after_another(steps: List[List[Any]], filled: bool) -> None:
    """All steps begin with the same state and know nothing of each other; zero counts may or may not be there."""
    begin: Dict[str, Any] = {"lists": {}, "counts": {}, "table": {}, "sets": {}}
    if filled:
        begin = {"lists": {"a": [(0, 0)]}, "counts": {"a": 5}, "table": {}, "sets": {"a": {1}}}
    expected, truth = copy.deepcopy(begin), copy.deepcopy(begin)
    log: List[Any] = []
    for who, actions in enumerate(steps, 1):
        mine = copy.deepcopy(begin)
        marks = {name: marked(value, None) for name, value in mine.items()}
        for action in actions:
            act(expected, action, who)
            act(mine, action, who)
        edits = {n: e for n, e in ((n, difference(marks[n], mine[n])) for n in mine) if e is not None}
        for name, edit in edits.items():
            earlier = [(s, copy.deepcopy(e[name])) for s, e in log if name in e]
            merged = Merge(name, who, lambda step: Counts())(edit, truth[name], earlier)
            carry_out(truth, name, copy.deepcopy(merged))
        log.append((who, copy.deepcopy(edits)))
    touched = {k for actions in steps for kind, k, _ in actions if kind == "count"}
    assert normal(truth)["lists"] == normal(expected)["lists"]
    assert all(truth["counts"].get(k, 0) == expected["counts"].get(k, 0) for k in touched)
    assert truth["table"] == expected["table"]
    assert truth["sets"] == expected["sets"]


# ------------------------------------------------------------------------------------------------ large containers


def test_a_large_dict_is_not_walked_through_to_see_that_it_is_the_same() -> None:
    """Counted, not timed: its items are not asked for."""

    class Watched(Exception):
        pass

    value = {i: str(i) for i in range(5000)}
    mark = marked(value, None)
    before = untouched.is_flat
    untouched.is_flat = lambda c: (_ for _ in ()).throw(Watched())  # type: ignore[assignment]
    try:
        assert all(mark.same(value) for _ in range(3))
    finally:
        untouched.is_flat = before


@pytest.mark.versions
@pytest.mark.parametrize("size", [untouched.SMALL + 1, 5000])
def test_every_change_of_a_large_flat_container_is_seen(size: int) -> None:
    """By whatever operation, and told as a small one; two marks of one dict do not disturb each other."""
    ways = [
        lambda d: d.update(x=1), lambda d: d.pop(3), lambda d: d.__setitem__(4, "new"), lambda d: d.clear(),
        lambda d: d.update({size - 1: "last", 0: "first", "y": 2}), lambda d: d.__setitem__(1, d.pop(1)),
        lambda d: d.popitem(), lambda d: d.setdefault("s", 1), lambda d: d.__setitem__(5, ["a list"]),
    ]  # fmt: skip
    for way in ways:
        value = {i: (i, str(i)) for i in range(size)}
        mark, other = marked(value, None), marked(value, None)
        copied = copy.deepcopy(value)
        assert mark.same(value)
        del other
        assert mark.same(value)
        way(value)
        edit = difference(mark, value)
        assert edit is not None
        assert edit[0] == "d"
        holder = {"k": copied}
        carry_out(holder, "k", edit)
        assert holder["k"] == value
    numbers = list(range(size))
    mark = marked(numbers, None)
    assert mark.same(numbers)
    numbers.append(7)
    assert difference(mark, numbers) == ("+", size, [7])
    numbers[0] = -1
    assert difference(mark, numbers) == ("~", numbers)
