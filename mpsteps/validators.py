"""Checks that a param's author attaches to it: `validators=[Positive, LE(512)]`.

A validator is any callable that takes a value and returns a list of messages, empty if all is well. The ones here have
Scipion's names and signatures. None and values of a wrong type are never acceptable and never an exception: a form with
an empty field is a sentence to the user, not a traceback. Everything here pickles.
"""

from __future__ import annotations

import re
from typing import Any, Callable, List, Optional

__all__ = [
    "GE", "GT", "LE", "LT", "Conditional", "Format", "FreqValidator", "NonEmpty", "NonEmptyBool",
    "NonEmptyBoolCondition", "NonEmptyCondition", "NumericListValidator", "NumericRangeValidator", "Positive", "Range",
    "Validator",
]  # fmt: skip

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_NUMBER_OR_RANGE = re.compile(rf"({_NUMBER})(?:-({_NUMBER}))?")

# What a comparison or conversion of a value of a wrong type raises.
_WRONG_TYPE = (TypeError, ValueError, AttributeError, ArithmeticError, LookupError)


class Validator:
    """Base of the validators of this module."""


class Conditional(Validator):
    """One condition, one message. Subclasses define `_condition(value) -> bool`.

    None is accepted without a question if `allowsNull`. A condition that raises because the value has a wrong type is
    not met.
    """

    def __init__(self, error: str, allowsNull: bool = False) -> None:
        self.error = error
        self._allowsNull = allowsNull

    def __call__(self, value: Any) -> List[str]:
        """[] if the condition is met, else [error]."""
        if value is None and self._allowsNull:
            return []
        try:
            met = bool(self._condition(value))
        except _WRONG_TYPE:
            met = False
        return [] if met else [self.error]

    def _condition(self, value: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} defines no _condition(value)")


class Format(Conditional):
    """`valueType(value)` works: `Format(int, error='should be an integer')`."""

    def __init__(
        self, valueType: Callable[[Any], Any], error: str = "Value has the wrong format", allowsNull: bool = False
    ) -> None:
        super().__init__(error, allowsNull)
        self.valueType = valueType

    def _condition(self, value: Any) -> bool:
        self.valueType(value)
        return True


class NonEmptyCondition(Conditional):
    """Not None and, for what has a length, longer than 0. A number is not empty."""

    def __init__(self, error: str = "Value cannot be empty") -> None:
        super().__init__(error)

    def _condition(self, value: Any) -> bool:
        return value is not None and (not hasattr(value, "__len__") or len(value) > 0)


class NonEmptyBoolCondition(Conditional):
    """Not None: False is an answer."""

    def __init__(self, error: str = "Boolean param needs to be set.") -> None:
        super().__init__(error)

    def _condition(self, value: Any) -> bool:
        return value is not None


class _Threshold(Conditional):
    """A comparison with one threshold."""

    relation = ""

    def __init__(self, threshold: Any, error: Optional[str] = None) -> None:
        super().__init__(f"Value should be {self.relation} {threshold}" if error is None else error)
        self.threshold = threshold


class LT(_Threshold):
    """Less than the threshold."""

    relation = "less than"

    def _condition(self, value: Any) -> Any:
        return value < self.threshold


class LE(_Threshold):
    """Less than or equal to the threshold."""

    relation = "less than or equal to"

    def _condition(self, value: Any) -> Any:
        return value <= self.threshold


class GT(_Threshold):
    """Greater than the threshold."""

    relation = "greater than"

    def _condition(self, value: Any) -> Any:
        return value > self.threshold


class GE(_Threshold):
    """Greater than or equal to the threshold."""

    relation = "greater than or equal to"

    def _condition(self, value: Any) -> Any:
        return value >= self.threshold


class Range(Conditional):
    """From `minValue` to `maxValue`, both included."""

    def __init__(self, minValue: Any, maxValue: Any, error: Optional[str] = None) -> None:
        super().__init__(f"Value should be from {minValue} to {maxValue}" if error is None else error)
        self.minValue = minValue
        self.maxValue = maxValue

    def _condition(self, value: Any) -> Any:
        return self.minValue <= value <= self.maxValue


class NumericListValidator(Conditional):
    """Numbers separated by spaces, NxV for N times V: '10 2x5 1'. An empty text is an empty list."""

    def __init__(self, error: str = "Incorrect format for numeric list: expected numbers such as '10 2x5 1'") -> None:
        super().__init__(error)

    def _condition(self, value: Any) -> bool:
        for chunk in value.split():
            times, sign, number = chunk.partition("x")
            if sign:
                int(times)
            float(number if sign else chunk)
        return True


class NumericRangeValidator(Conditional):
    """Numbers and ranges separated by commas or spaces: '1,5-8,10'. An empty text is an empty list.

    A range of whole numbers that runs backwards ('8-5') is refused: it would be read as nothing at all.
    """

    def __init__(self, error: str = "Incorrect format for numeric range: expected numbers such as '1,5-8,10'") -> None:
        super().__init__(error)

    def _condition(self, value: Any) -> bool:
        matches = [_NUMBER_OR_RANGE.fullmatch(chunk) for chunk in value.replace(",", " ").split()]
        return all(match is not None and self._forwards(match[1], match[2]) for match in matches)

    @staticmethod
    def _forwards(first: str, last: Optional[str]) -> bool:
        return not (last and first.isdigit() and last.isdigit()) or int(first) <= int(last)


Positive = GT(0.0, error="Value should be greater than zero")
FreqValidator = Range(0.001, 0.5, error="Digital frequencies should be between 0.001 and 0.5")
NonEmpty = NonEmptyCondition()
NonEmptyBool = NonEmptyBoolCondition()
