"""`ResultOf`: the value of an earlier step as an argument of a later one; and ids of steps as authors write them."""

from __future__ import annotations

import operator
from typing import Any, Callable, Iterable, Iterator, Tuple

from mpsteps.errors import PrerequisiteError

_ATOMS = frozenset({type(None), bool, int, float, str, bytes})  # arguments in which no ResultOf can stand


class ResultOf:
    """As an argument of a step: the value that an earlier step returned, put in its place when the step runs.

    It is a prerequisite by itself. It may stand inside lists, tuples and dicts.
    """

    __slots__ = ("stepId",)

    def __init__(self, stepId: int) -> None:
        self.stepId = as_step_id(stepId)

    def __repr__(self) -> str:
        return f"ResultOf({self.stepId})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ResultOf) and other.stepId == self.stepId

    def __hash__(self) -> int:
        return hash(("ResultOf", self.stepId))


_INT = {int}


def as_step_id(value: Any) -> int:
    """A 1-based step id from what a protocol's author wrote; PrerequisiteError otherwise."""
    try:
        if isinstance(value, (bool, str)):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise PrerequisiteError(
            f"a prerequisite is the id (an integer) that _insertFunctionStep returned, not {value!r}"
        ) from None
    if number < 1:
        raise PrerequisiteError(f"step ids start at 1: there is no step {number}")
    return number


def as_step_ids(value: Any) -> Tuple[int, ...]:
    """Ids, each once and in order, from one id or any iterable of them."""
    if type(value) is list:  # nearly always of plain integers
        if not value:
            return ()
        if {*map(type, value)} == _INT and min(value) > 0:
            return tuple(value) if len(value) == 1 else tuple(dict.fromkeys(value))
    several = hasattr(value, "__iter__") and not isinstance(value, (str, bytes))
    if several and getattr(value, "ndim", None) != 0:  # an array of no dimension is one number
        return tuple(dict.fromkeys(as_step_id(v) for v in value))
    return (as_step_id(value),)


def results_used(args: Iterable[Any]) -> Iterator[int]:
    """The ids of all steps whose results stand in `args`, at any depth of lists, tuples and dicts."""
    for a in args:
        kind = type(a)
        if kind is ResultOf:
            yield a.stepId
        elif kind is list or kind is tuple:
            yield from results_used(a)
        elif kind is dict:
            yield from results_used(a.values())


def results_taken(args: Tuple[Any, ...]) -> Tuple[int, ...]:
    """The same, each once; quick where there are none."""
    for a in args:
        if type(a) not in _ATOMS:
            return tuple(dict.fromkeys(results_used(args)))
    return ()


def put_results(value: Any, result: Callable[[int], Any]) -> Any:
    """`value` with every ResultOf replaced by `result(its step id)`."""
    kind = type(value)
    if kind is ResultOf:
        return result(value.stepId)
    if kind is list or kind is tuple:
        return kind(put_results(v, result) for v in value)
    if kind is dict:
        return {k: put_results(v, result) for k, v in value.items()}
    return value
