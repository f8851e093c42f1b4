"""Validators say what is wrong, never raise, and agree with Scipion's on everything that Scipion's can judge."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from mpsteps import validators
from mpsteps.validators import (
    GE,
    GT,
    LE,
    LT,
    Conditional,
    Format,
    FreqValidator,
    NonEmpty,
    NonEmptyBool,
    NumericListValidator,
    NumericRangeValidator,
    Positive,
    Range,
)

MAKERS = [
    "LT(5)", "LE(5)", "GT(5)", "GE(5)", "Range(1, 5)", "Positive", "FreqValidator", "NonEmpty", "NonEmptyBool",
    "Format(int)", "Format(float)", "NumericListValidator()", "NumericRangeValidator()",
]  # fmt: skip


def make(module: Any, text: str) -> Any:
    """The validator of that source text, from a module."""
    return eval(text, vars(module))


@pytest.mark.parametrize("text", MAKERS)
@pytest.mark.parametrize("value", [None, "text", "", [], {}, object(), float("nan"), 3, 0.1, False])
def test_no_value_makes_a_validator_raise(text: str, value: Any) -> None:
    """Every value gives a list of texts."""
    messages = make(validators, text)(value)
    assert all(isinstance(message, str) and message for message in messages)


@pytest.mark.parametrize("text", MAKERS)
def test_none_is_never_acceptable(text: str) -> None:
    """One message."""
    assert len(make(validators, text)(None)) == 1


@pytest.mark.parametrize(
    ("validator", "good", "bad"),
    [
        (LT(5), 4, 5), (LE(5), 5, 6), (GT(5), 6, 5), (GE(5), 5, 4), (Range(1, 5), 5, 5.1), (Range(1, 5), 1, 0),
        (Positive, 0.1, 0), (FreqValidator, 0.5, 0.6), (NonEmpty, "a", ""), (NonEmpty, 0, []),
        (NonEmptyBool, False, None), (Format(int), "5", "5.5"), (Format(float), "5.5", "x"),
        (NumericListValidator(), "10 2x5 -1.5", "1,2"), (NumericListValidator(), "", "2x"),
        (NumericRangeValidator(), "1,5-8 10", "1-"), (NumericRangeValidator(), "0.37,-0.1,1", "a"),
        (NumericRangeValidator(), "", "1-2-3"), (NumericRangeValidator(), "5-5", "8-5"), (GT(5), 6, "6"),
    ],
)  # fmt: skip
def test_good_values_pass_and_bad_ones_give_the_message(validator: Any, good: Any, bad: Any) -> None:
    """[] or [error]."""
    assert validator(good) == []
    assert validator(bad) == [validator.error]


def test_the_message_is_the_authors_or_names_the_limit() -> None:
    """Given by position or by keyword."""
    assert GT(3, "too small")(1) == ["too small"]
    assert Range(0, 1, error="outside")(2) == ["outside"]
    assert GE(3)(1) == ["Value should be greater than or equal to 3"]
    assert Range(0, 1)(2) == ["Value should be from 0 to 1"]


def test_allows_null_accepts_none_only() -> None:
    """The third argument of Format."""
    assert Format(int, "should be an integer", True)(None) == []
    assert Format(int, "should be an integer", True)("x") == ["should be an integer"]


class Even(Conditional):
    """An author's own."""

    def _condition(self, value: Any) -> bool:
        return bool(value % 2 == 0)


def test_authors_derive_their_own_from_conditional() -> None:
    """With `_condition` alone; forgetting it is an error of the author's, and loud."""
    assert Even("odd")(4) == []
    assert Even("odd")(3) == ["odd"]
    assert Even("odd")(None) == ["odd"]
    with pytest.raises(NotImplementedError, match="Conditional defines no _condition"):
        Conditional("x")(1)


@pytest.mark.parametrize("text", MAKERS)
def test_validators_pickle(text: str) -> None:
    """A form can travel with its protocol."""
    validator = make(validators, text)
    assert pickle.loads(pickle.dumps(validator))(None) == validator(None)


VALUES = [
    -1, 0, 1, 3, 5, 5.0, 6, 0.25, "", "a", "5", "5.5", "1 2 3", "10 2x5", "1,2", "1,5-8,10", "2 5, 6-8", "0,0,1",
    "0.37,-0.1,1", "x y", True, False,
]  # fmt: skip


@pytest.mark.parametrize("text", MAKERS)
def test_verdicts_agree_with_scipions(text: str) -> None:
    """For every value that Scipion's validator does not raise on."""
    pyworkflow = pytest.importorskip("pyworkflow.protocol.params")
    ours, theirs = make(validators, text), make(pyworkflow, text)
    judged = 0
    for value in VALUES:
        try:
            verdict = bool(theirs(value))
        except TypeError:
            continue
        judged += 1
        assert bool(ours(value)) == verdict, value
    assert judged > 0
