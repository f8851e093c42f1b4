"""The one table at the end of `python -m perf`: for each question mpsteps, threads, and the best of the others."""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, Optional, Tuple

from perf._harness import Result, brief, brief_time, grid
from perf._ours import ENGINE, WHOLE, Pool
from perf._systems import FLOORS
from perf.peers.pools import Threads

COLUMNS = {"StepPool": Pool.title, "protocol, engine": ENGINE, "protocol, whole": WHOLE, "threads": Threads.title}


def print_summary(results: List[Result]) -> None:
    """A line for each question."""
    cells = {}
    for result in results:
        values, unit = result["values"], result["unit"]
        own = [text_of(values[title], unit) if title in values else "" for title in COLUMNS.values()]
        best = next(ranked(result), None)
        others = ["", ""] if best is None else [text_of(best[1], unit), best[0]]
        if any(own + others):
            cells[f"{result['question']}{'' if unit == 's' else f' [{unit}]'}"] = own + others
    title = "summary: medians. Pools are up and warm; a whole run of a protocol starts and ends its workers"
    grid(title, [*COLUMNS, "best of the others", ""], cells, of="question")


def ranked(result: Result) -> Iterator[Tuple[str, float]]:
    """The peers other than threads that have a value, best first."""
    peers: Dict[str, Any] = {
        title: value
        for title, value in result["values"].items()
        if value is not None and title not in FLOORS and not title.startswith("mpsteps") and title != Threads.title
    }
    yield from sorted(peers.items(), key=lambda item: item[1], reverse=result["unit"] != "s")


def text_of(value: Optional[float], unit: str) -> str:
    """A value; times with their unit."""
    if value is None:
        return "none"
    return brief_time(value) if unit == "s" else brief(value)
