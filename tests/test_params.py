"""Params convert, check, read and describe one value each, and call it by name when it does not fit."""

from __future__ import annotations

import pathlib
import pickle
from typing import Any, List

import pytest

from mpsteps import constants, params
from mpsteps.errors import UsageError
from mpsteps.params import (
    BooleanParam,
    DeprecatedParam,
    DigFreqParam,
    EnumParam,
    FileParam,
    FloatParam,
    FolderParam,
    HiddenBooleanParam,
    IntParam,
    LabelParam,
    NumericListParam,
    NumericRangeParam,
    Param,
    PathParam,
    RegexParam,
    StringParam,
    TextParam,
    TupleParam,
)
from mpsteps.scalars import Boolean, CsvList, Float, Integer, Scalar, String
from mpsteps.validators import GE, NonEmpty, Positive

MODES = ["fast", "Exact", "both ways"]


def named(param: Any, name: str = "p") -> Any:
    """The param as a form would have named it."""
    param.name = name
    return param


@pytest.mark.parametrize(
    ("param", "given", "scalar", "value"),
    [
        (IntParam(), "5", Integer, 5), (IntParam(), 5.0, Integer, 5), (IntParam(), Integer(3), Integer, 3),
        (IntParam(), None, Integer, None), (FloatParam(), "0.5", Float, 0.5), (StringParam(), 5, String, "5"),
        (StringParam(), "", String, ""), (PathParam(), pathlib.PurePosixPath("a/b"), String, "a/b"),
        (BooleanParam(), "yes", Boolean, True), (BooleanParam(), 0, Boolean, False),
        (EnumParam(choices=MODES), 1, Integer, 1), (EnumParam(choices=MODES), "exact", Integer, 1),
        (EnumParam(choices=["1", "2", "4"]), "1", Integer, 1), (TupleParam(), (1, 2), Scalar, (1, 2)),
        (Param(paramClass=CsvList), "a,b", CsvList, "a,b"), (LabelParam(), True, String, "True"),
    ],
)  # fmt: skip
def test_make_value_gives_the_scalar_that_holds_the_value(param: Any, given: Any, scalar: Any, value: Any) -> None:
    """From plain values, texts and other scalars."""
    made: Any = param.makeValue(given)
    kind: Any = type(made)
    assert kind is scalar
    assert made.get() == value


@pytest.mark.parametrize(
    ("param", "given", "message"),
    [
        (IntParam(), "four", "param 'p': expected an integer, got 'four'"),
        (IntParam(), 5.5, "param 'p': expected an integer, got 5.5"),
        (IntParam(), float("inf"), "param 'p': expected an integer, got inf"),
        (FloatParam(), [1], "param 'p': expected a number, got [1]"),
        (BooleanParam(), "maybe", "param 'p': expected true or false, got 'maybe'"),
        (BooleanParam(), 2, "param 'p': expected true or false, got 2"),
        (EnumParam(choices=["a", "b"]), "c", "param 'p': expected one of 0 (a), 1 (b), got 'c'"),
        (Param(paramClass=CsvList), 5, "param 'p': expected a value, got 5"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_converted_is_reported_by_name(param: Param, given: Any, message: str) -> None:
    """Param, expectation and value in one sentence."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        named(param).makeValue(given)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("param", "text", "value"),
    [
        (IntParam(), " 12 ", 12), (IntParam(allowsNull=True), "", None), (FloatParam(), "1e-3", 0.001),
        (StringParam(), "", ""), (StringParam(allowsNull=True), "", None), (StringParam(), " a ", " a "),
        (BooleanParam(), "No", False), (BooleanParam(), "1", True), (BooleanParam(allowsNull=True), "", None),
        (EnumParam(choices=MODES), "2", 2), (EnumParam(choices=MODES), "Both Ways", 2),
        (EnumParam(choices=["1", "2", "4"]), "2", 1), (EnumParam(choices=["a", "A"]), "A", 1),
        (EnumParam(), "7", 7), (PathParam(), "data/*.mrc", "data/*.mrc"), (NumericListParam(), "10 2x5", "10 2x5"),
    ],
)  # fmt: skip
def test_parse_reads_what_a_user_writes(param: Param, text: str, value: Any) -> None:
    """Plain values; nothing is None where that is allowed; an enum takes its choice's text first, then the index."""
    assert param.parse(text) == value
    assert type(param.parse(text)) is type(value)


@pytest.mark.parametrize(
    ("param", "text", "expected"),
    [
        (IntParam(), "four", "param 'p': expected an integer, got 'four'"), (IntParam(), "", "an integer"),
        (IntParam(), "5.0", "an integer"), (FloatParam(), "x", "a number"), (BooleanParam(), "", "true or false"),
        (BooleanParam(), "maybe", "true or false"), (EnumParam(choices=MODES), "3", "one of 0 .fast., 1 .Exact."),
        (EnumParam(choices=MODES), "-1", "one of"), (EnumParam(choices=["a", "A"]), "b", "one of"),
        (EnumParam(), "x", "the index of a choice"),
    ],
)  # fmt: skip
def test_parse_says_what_it_expected(param: Param, text: str, expected: str) -> None:
    """By name."""
    with pytest.raises(ValueError, match=expected):
        named(param).parse(text)


@pytest.mark.parametrize(
    ("param", "name"),
    [
        (IntParam(), "int"), (FloatParam(), "float"), (DigFreqParam(), "float"), (BooleanParam(), "bool"),
        (EnumParam(choices=["a", 2]), "enum: a | 2"), (StringParam(), "text"), (TextParam(), "text"),
        (PathParam(), "path"), (FileParam(), "file"), (FolderParam(), "folder"), (NumericListParam(), "number list"),
        (NumericRangeParam(), "number range"), (RegexParam(), "regular expression"), (LabelParam(), "label"),
    ],
)  # fmt: skip
def test_type_names_are_words_for_a_listing(param: Param, name: str) -> None:
    """As `mpsteps form` prints them."""
    assert param.typeName() == name


def test_keywords_become_scalars_that_a_subclass_can_change() -> None:
    """As sources do with what their base declared."""
    param = IntParam(label="Box", help="px", default=64, expertLevel=constants.LEVEL_ADVANCED, condition="useBox")
    assert (param.getLabel(), param.getHelp(), param.getDefault()) == ("Box", "px", 64)
    assert (param.label.get(), param.default.get(), param.condition.get()) == ("Box", 64, "useBox")
    assert param.isExpert()
    assert param.hasCondition()
    assert not param.isImportant()
    param.default.set(32)
    assert param.getDefault() == 32
    param.setDefault(16)
    assert param.getDefault() == 16
    param.default = Integer(8)
    assert param.getDefault() == 8
    param.condition.set("")
    assert not param.hasCondition()
    param.config(label="Box size", important=True, expertLevel=constants.LEVEL_NORMAL, default=5)
    assert (param.getLabel(), param.isImportant(), param.isExpert(), param.getDefault()) == ("Box size", True, False, 5)
    param.setExpert()
    param.setImportant(False)
    assert param.isExpert()
    assert not param.isImportant()
    with pytest.raises(UsageError, match=r"config\(\) of IntParam has no 'lable'"):
        param.config(lable="x")


def test_keywords_of_scipions_windows_are_accepted() -> None:
    """Sources pass them."""
    StringParam(label="x", readOnly=True, allowsPointers=True, pointerClass="X", wizard=None, anything=1)


def test_defaults_of_numbers_are_not_made_text() -> None:
    """Scipion keeps 'False', which is true."""
    assert BooleanParam(default=False).getDefault() is False


def test_numbers_and_answers_are_required_unless_null_is_allowed() -> None:
    """As under Scipion; a text may be missing."""
    assert IntParam().validate(None) == ["should be an integer"]
    assert FloatParam().validate(None) == ["should be a float"]
    assert BooleanParam().validate(None) == ["Boolean param needs to be set."]
    assert StringParam().validate(None) == []
    assert HiddenBooleanParam().validate(None) == []
    for param in (IntParam, FloatParam, BooleanParam):
        assert param(allowsNull=True).validate(None) == []


def test_none_is_shown_to_other_validators_only_where_it_is_not_allowed() -> None:
    """A param that may be empty but is positive otherwise; NonEmpty still has its say."""
    assert IntParam(allowsNull=True, validators=[Positive]).validate(None) == []
    assert IntParam(allowsNull=True, validators=[Positive]).validate(-1) == [Positive.error]
    assert StringParam(allowsNull=True, validators=[NonEmpty]).validate(None) == [NonEmpty.error]


def test_every_validator_is_heard() -> None:
    """All messages, in order; scalars and plain values alike."""
    param = IntParam(validators=[GE(5, "small"), lambda value: "odd" if value % 2 else [], lambda value: None])
    assert param.validate(3) == ["small", "odd"]
    assert param.validate(Integer(3)) == ["small", "odd"]
    assert param.validate(6) == []


def test_a_validator_that_raises_becomes_a_message() -> None:
    """The user gets a sentence, with the reason."""
    (message,) = StringParam(validators=[lambda value: [] if value > 0 else ["x"]]).validate("a")
    assert message.startswith("cannot be checked: TypeError: '>' not supported")


def test_a_shared_list_of_validators_does_not_grow() -> None:
    """Two params made with one list have their own checks each."""
    shared: List[Any] = [Positive]
    IntParam(validators=shared).addValidator(NonEmpty)
    assert shared == [Positive]
    assert IntParam(validators=Positive).validate(-1) == [Positive.error]


def test_numeric_texts_and_frequencies_are_checked() -> None:
    """By the validators that belong to their params."""
    assert NumericListParam().validate("1 2x3") == []
    assert NumericListParam().validate("1;2") != []
    assert NumericRangeParam().validate("1,5-8") == []
    assert NumericRangeParam().validate("a-b") != []
    assert DigFreqParam().validate(0.2) == []
    assert DigFreqParam().validate(0.7) != []


def test_an_enum_index_without_a_choice_is_a_message() -> None:
    """Found by validate, not when the value is made: choices may be filled in later."""
    param = EnumParam(choices=["a", "b"])
    assert param.makeValue(2) == 2
    assert param.validate(2) == ["should be one of 0 (a), 1 (b)"]
    assert param.validate(1) == []
    assert EnumParam().validate(9) == []
    with pytest.raises(UsageError, match="choices='ab' should be a list of texts"):
        EnumParam(choices="ab")


@pytest.mark.parametrize("name", ["PointerParam", "MultiPointerParam", "RelationParam", "ProtocolClassParam"])
def test_params_of_a_project_can_be_imported_but_not_used(name: str) -> None:
    """With the way out in the message."""
    with pytest.raises(UsageError, match=f"{name} selects an object of a Scipion project; .* use PathParam"):
        getattr(params, name)(pointerClass="SetOfMicrographs")


def test_a_deprecated_name_leads_to_the_new_one() -> None:
    """set and get."""

    class Holder:
        newName = Integer(1)

    holder = Holder()
    old = DeprecatedParam("newName", holder)
    old.set(5)
    assert holder.newName == 5
    assert old.get() == 5
    assert not old.isPointer()


def test_params_pickle() -> None:
    """A form can travel with its protocol."""
    for param in (IntParam(validators=[Positive]), EnumParam(choices=["a"]), BooleanParam(), NumericRangeParam()):
        twin = pickle.loads(pickle.dumps(param))
        assert twin.validate(None) == param.validate(None)


def test_the_module_offers_what_sources_take_from_scipions() -> None:
    """Every param class, group, validator, scalar and constant, by the same name, apart from Scipion's objects."""
    theirs = pytest.importorskip("pyworkflow.protocol.params")
    scipions = {"Form", "List", "Object", "OrderedObject", "Pointer", "PointerList", "Set", "Dict"}
    public = {
        name
        for name, value in vars(theirs).items()
        if isinstance(value, type) and value.__module__.startswith("pyworkflow") and name not in scipions
    }
    public |= {name for name in vars(theirs) if name.startswith(("STATUS_", "MODE_", "STEPS_", "LEVEL_"))}
    public |= {"Positive", "FreqValidator", "NonEmpty", "NonEmptyBool", "USE_GPU", "GPU_LIST", "VOID_GPU"}
    assert len(public) > 60
    assert {name for name in public if not hasattr(params, name)} == set()


def test_constants_have_scipions_values() -> None:
    """All of them."""
    theirs = pytest.importorskip("pyworkflow.protocol.constants")
    names = [name for name in constants.__all__ if hasattr(theirs, name)]
    assert len(names) >= 23
    assert {name: getattr(constants, name) for name in names} == {name: getattr(theirs, name) for name in names}


def test_values_agree_with_scipions() -> None:
    """The scalar made from each default, and whether it is valid."""
    theirs = pytest.importorskip("pyworkflow.protocol.params")
    cases = [
        ("IntParam", 5), ("IntParam", "5"), ("IntParam", None), ("FloatParam", 0.1), ("FloatParam", None),
        ("BooleanParam", True), ("BooleanParam", False), ("BooleanParam", 1), ("BooleanParam", None),
        ("StringParam", "a"), ("StringParam", None), ("StringParam", 5), ("PathParam", ""), ("EnumParam", 1),
        ("NumericRangeParam", "1,5-8"), ("NumericListParam", "1 2x3"), ("DigFreqParam", 0.7), ("LabelParam", True),
    ]  # fmt: skip
    for name, default in cases:
        ours, their = getattr(params, name)(default=default), getattr(theirs, name)(default=default)
        value = their.paramClass(value=their.default.get()).get()
        assert ours.makeValue(ours.getDefault()).get() == value, (name, default)
        assert bool(ours.validate(value)) == bool(their.validate(value)), (name, default)
