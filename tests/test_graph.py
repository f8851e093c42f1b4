"""The graph counts what is missing, and finds circles."""

from __future__ import annotations

import random

import pytest

from mpsteps._core.graph import Graph, find_cycle, in_order


def graph_of(prerequisites: dict[int, list[int]]) -> Graph:
    """A graph with these steps and edges."""
    graph = Graph()
    graph.grow(max(prerequisites))
    for step, needs in prerequisites.items():
        graph.link(step, needs)
    return graph


def test_a_step_misses_its_prerequisites_until_they_have_finished() -> None:
    """The last one to finish frees it."""
    graph = graph_of({1: [], 2: [], 3: [1, 2]})

    assert graph.missing[3] == 2
    assert graph.finish([1]) == []
    assert graph.finish([2]) == [3]
    assert graph.missing[3] == 0


def test_steps_are_freed_in_the_order_in_which_they_were_linked() -> None:
    """So that the same events give the same commands."""
    graph = graph_of({1: [], 5: [1], 3: [1], 4: [1]})

    assert graph.finish([1]) == [5, 3, 4]


def test_steps_that_finish_together_free_what_waits_for_all_of_them() -> None:
    """Once."""
    graph = graph_of({1: [], 2: [], 3: [1, 2], 4: [2]})

    assert graph.finish([1, 2]) == [3, 4]


def test_a_prerequisite_named_twice_is_counted_and_met_twice() -> None:
    """It costs nothing to leave duplicates in."""
    graph = graph_of({1: [], 2: [1, 1]})

    assert graph.missing[2] == 2
    assert graph.finish([1]) == [2]


def test_a_closed_step_is_missed_for_ever() -> None:
    """Those that wait for a failed step are told to the caller and never freed."""
    graph = graph_of({1: [], 2: [], 3: [1, 2]})

    assert list(graph.close(1)) == [3]
    assert graph.finish([2]) == []
    assert graph.missing[3] == 1
    assert list(graph.dependants(1)) == []


def test_edges_can_be_added_at_any_time() -> None:
    """There is no `prepare()`: streaming protocols add steps and prerequisites while others run."""
    graph = graph_of({1: [], 2: []})
    graph.finish([1])
    graph.grow(3)
    graph.link(3, [2])
    graph.link(1, [])

    assert graph.finish([2]) == [3]
    assert len(graph) == 3


def test_ids_may_have_gaps() -> None:
    """Growing makes room for all ids below."""
    graph = graph_of({10: [], 20: [10]})

    assert graph.missing[15] == 0
    assert graph.finish([10]) == [20]


def test_a_circle_is_found_before_its_last_edge_is_added() -> None:
    """As ids, each waits for the next."""
    graph = graph_of({1: [], 2: [1], 3: [2]})

    assert graph.find_cycle_through(1, [3]) == [1, 3, 2, 1]
    assert graph.find_cycle_through(3, [1]) is None
    assert graph.find_cycle_through(2, [2]) == [2, 2]


def test_no_walk_is_made_while_all_edges_point_back() -> None:
    """Steps are inserted in order: the usual edge cannot close a circle, and costs nothing."""

    class Untouchable(Graph):
        def dependants(self, step: int) -> list[int]:
            raise AssertionError("walked")

    graph = Untouchable()
    graph.grow(100)
    for step in range(2, 101):
        graph.link(step, [step - 1])

    assert graph.find_cycle_through(100, list(range(1, 100))) is None


def test_many_prerequisites_are_checked_in_one_walk() -> None:
    """Ten thousand edges to a step on which a thousand others wait: not ten million looks."""

    class Counting(Graph):
        walked = 0

        def dependants(self, step: int) -> object:
            self.walked += 1
            return super().dependants(step)

    graph = Counting()
    graph.grow(12_000)
    for step in range(2, 1002):
        graph.link(step, [1])

    assert graph.find_cycle_through(1, list(range(2000, 12_000))) is None
    assert graph.walked <= 1001


@pytest.mark.parametrize("seed", range(30))
def test_a_circle_is_found_exactly_when_there_is_one(seed: int) -> None:
    """Edge by edge into random graphs, against a search of the whole graph."""
    r = random.Random(seed)
    size = r.randint(2, 12)
    needs: dict[int, list[int]] = {step: [] for step in range(1, size + 1)}
    graph = graph_of(needs)
    for _ in range(40):
        step, added = r.randint(1, size), [r.randint(1, size) for _ in range(r.randint(1, 3))]
        found = graph.find_cycle_through(step, added)
        with_edges = {**needs, step: [*needs[step], *added]}

        assert (found is None) == (find_cycle(with_edges) is None)
        if found is None:
            graph.link(step, added)
            needs = with_edges
        else:
            assert found[0] == found[-1] == step
            assert all(p in with_edges[s] for s, p in zip(found, found[1:]))


def test_find_cycle_names_the_way_around() -> None:
    """First and last are the same; each waits for the next; what only leads into the circle is not named."""
    assert find_cycle({1: [2], 2: [3], 3: [4], 4: [2]}) == [2, 3, 4, 2]
    assert find_cycle({1: [1]}) == [1, 1]
    assert find_cycle({1: [], 2: [1], 3: [1, 2]}) is None
    assert find_cycle({}) is None


def test_find_cycle_passes_over_ids_that_are_not_there() -> None:
    """Unknown prerequisites are another error, told elsewhere."""
    assert find_cycle({1: [99], 2: [1]}) is None


def test_long_chains_and_long_circles_need_no_recursion() -> None:
    """10^5 steps in a row."""
    size = 100_000
    chain = {step: [step - 1] if step > 1 else [] for step in range(1, size + 1)}

    assert find_cycle(chain) is None
    circle = find_cycle({**chain, 1: [size]})
    assert circle is not None
    assert len(circle) == size + 1
    assert in_order(chain) == list(range(1, size + 1))
    assert graph_of(chain).find_cycle_through(1, [size]) == [1, *range(size, 0, -1)]


def test_in_order_puts_each_step_after_its_prerequisites() -> None:
    """Smallest ids first where the graph leaves a choice, duplicates and edges to larger ids included."""
    assert in_order({1: [3], 2: [], 3: [2, 2], 4: []}) == [2, 3, 1, 4]


@pytest.mark.parametrize("seed", range(10))
def test_in_order_is_a_topological_order_of_random_graphs(seed: int) -> None:
    """Every step once, none before what it waits for."""
    r = random.Random(seed)
    names = r.sample(range(1, 100), 30)
    needs = {name: r.sample(names[:i], r.randint(0, min(i, 4))) for i, name in enumerate(names)}

    order = in_order(needs)

    assert sorted(order) == sorted(names)
    assert all(order.index(p) < order.index(step) for step in names for p in needs[step])
