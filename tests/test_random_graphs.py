"""Random graphs through the real engine, against an oracle that knows what must come out.

Every step computes a number from its own id and the values of some of its prerequisites, so that a step that ran too
early, twice with effect, or with somebody else's values changes all that comes after it. When it ran is written to a
file by single appends: once per step, and after all of its prerequisites.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Dict, NamedTuple, Set, Tuple

import pytest
from engine_steps import Chaos, Graph, combine

from mpsteps.run import run


class Node(NamedTuple):
    prerequisites: Tuple[int, ...]
    used: Tuple[int, ...]  # those whose values it computes with


def random_graph(seed: int, size: int) -> Dict[int, Node]:
    """Ids from 1; long chains, wide stars, joins of many and independent steps, mixed."""
    rng = random.Random(seed)
    graph: Dict[int, Node] = {}
    for i in range(1, size + 1):
        kind = rng.random()
        if i == 1 or kind < 0.15:
            before: Set[int] = set()
        elif kind < 0.5:
            before = {i - 1}
        elif kind < 0.7:
            before = {max(1, i - rng.randint(1, 30)) for _ in range(rng.randint(1, 4))}
        elif kind < 0.98:
            before = {rng.randint(1, i - 1) for _ in range(rng.randint(1, 3))}
        else:
            before = set(rng.sample(range(1, i), min(i - 1, 200)))
        used = tuple(sorted(b for b in before if rng.random() < 0.5))[:5]
        graph[i] = Node(tuple(sorted(before)), used)
    return graph


def oracle(graph: Dict[int, Node]) -> Dict[int, int]:
    values: Dict[int, int] = {}
    for step, node in graph.items():
        values[step] = combine(step, [values[u] for u in node.used])
    return values


@pytest.mark.parametrize(
    ("seed", "size", "workers"), [(1, 5000, 2), (2, 1500, 3), (3, 700, 1), (4, 300, 8), (5, 60, 4)]
)
def test_order_once_and_values(seed: int, size: int, workers: int, tmp_path: Path) -> None:
    """The promises C1 and C2, and the right value for every step."""
    graph = random_graph(seed, size)
    protocol = Graph(numberOfThreads=workers, workingDir=str(tmp_path / "run"))
    protocol.graph = graph
    report = run(protocol)
    assert report.ok, report.message
    assert report.finished == size
    lines = [line.split() for line in Path(protocol._getExtraPath("order")).read_text().splitlines()]
    order = [int(step) for step, _ in lines]
    assert sorted(order) == list(range(1, size + 1)), "not once each"
    place = {step: i for i, step in enumerate(order)}
    for step, node in graph.items():
        for before in node.prerequisites:
            assert place[before] < place[step], f"seed {seed}: step {step} began before {before}"
    expected = oracle(graph)
    for step in protocol.getSteps():
        assert step.result == expected[step.getObjId()], f"seed {seed}: step {step.getObjId()}"
    assert 1 <= len({pid for _, pid in lines}) <= workers


@pytest.mark.parametrize(("seed", "size"), [(11, 400), (12, 150)])
def test_what_does_not_depend_on_a_failure_still_has_the_right_value(seed: int, size: int, tmp_path: Path) -> None:
    """Steps that die or raise take exactly their descendants with them; nothing runs twice."""
    graph = random_graph(seed, size)
    protocol = Chaos(numberOfThreads=2, workingDir=str(tmp_path / "run"))
    protocol.graph = graph
    report = run(protocol)
    failed, skipped = set(), set()
    for step, node in graph.items():
        if any(b in failed or b in skipped for b in node.prerequisites):
            skipped.add(step)
        elif step % 37 == 5 or step % 23 == 7:
            failed.add(step)
    assert {f.step for f in report.failed} == failed
    assert report.skipped == len(skipped)
    order = [int(line.split()[0]) for line in Path(protocol._getExtraPath("order")).read_text().splitlines()]
    assert sorted(order) == sorted(set(graph) - skipped)
    expected = oracle(graph)
    for step in protocol.getSteps():
        number = step.getObjId()
        if number not in failed and number not in skipped:
            assert step.result == expected[number], f"seed {seed}: step {number}"
