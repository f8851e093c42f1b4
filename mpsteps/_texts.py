"""Values as people write them in a form: lists, ranges and durations; and values as messages show them."""

from __future__ import annotations

import re
from typing import Any, Callable, List, Optional


def showValue(value: Any, limit: int = 80) -> str:
    """`repr(value)` cut to `limit` characters, for messages."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def listFromValues(text: str, length: Optional[int] = None, caster: Callable[[str], Any] = str) -> List[Any]:
    """The values of a text such as '10 2x5, 1' -> 10, 5, 5, 1, each converted by `caster`.

    Spaces and commas separate; NxV is N times V, but not where `caster` is str. If there are fewer than `length`, the
    last one is repeated. ValueError for anything else, and if there is no value to repeat.
    """
    values: List[Any] = []
    for chunk in text.replace(",", " ").split():
        times, sign, value = chunk.partition("x") if caster is not str else ("", "", chunk)
        try:
            values += [caster(value) for _ in range(int(times))] if sign else [caster(chunk)]
        except (ValueError, TypeError):
            problem = f"expected values such as '10 2x5 1', got {showValue(chunk)} in {showValue(text)}"
            raise ValueError(problem) from None
    if length is not None and length > len(values):
        if not values:
            raise ValueError(f"expected up to {length} values, got none")
        values += values[-1:] * (length - len(values))
    return values


def listFromRange(text: str) -> List[int]:
    """The integers of a text such as '1,5-8 10' -> 1, 5, 6, 7, 8, 10. ValueError, also for a range backwards."""
    values: List[int] = []
    for chunk in text.replace(",", " ").split():
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", chunk)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise ValueError(f"expected numbers such as '1,5-8,10', got {showValue(chunk)} in {showValue(text)}")
        values += range(first, last + 1)
    return values


def secondsOf(text: str) -> float:
    """Seconds in a text such as '1d 2h 5m 10s'; a number without a unit is seconds. ValueError."""
    units = {"d": 86400, "h": 3600, "m": 60, "s": 1, "": 1}
    total: float = 0
    for chunk in text.split():
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([dhms]?)", chunk)
        if match is None:
            raise ValueError(f"expected a duration such as '1h 5m 10s', got {showValue(text)}")
        number = float(match[1]) if "." in match[1] else int(match[1])
        total += number * units[match[2]]
    return total
