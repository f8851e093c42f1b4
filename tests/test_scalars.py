"""Scalars keep a value, convert it, compare and compute like it, and mean what Scipion's scalars mean."""

from __future__ import annotations

import copy
import datetime
import math
import pickle
from typing import Any, Callable, Dict, List

import pytest

import mpsteps.scalars as ours
from mpsteps.scalars import Boolean, CsvList, Float, Integer, Scalar, String, listFromRange, listFromValues, rawValue


@pytest.mark.parametrize(
    ("make", "given", "kept"),
    [
        (Integer, "5", 5), (Integer, 5.7, 5), (Integer, True, 1), (Integer, " 7 ", 7), (Integer, None, None),
        (Float, "1e3", 1000.0), (Float, 2, 2.0), (String, 5, "5"), (String, "", ""), (Boolean, "True", True),
        (Boolean, " yes ", True), (Boolean, "1", True), (Boolean, "False", False), (Boolean, "no", False),
        (Boolean, "", False), (Boolean, 0, False), (Boolean, 2.5, True), (Scalar, [1], [1]),
    ],
)  # fmt: skip
def test_set_converts_to_the_type(make: Callable[[Any], Scalar], given: Any, kept: Any) -> None:
    """`set` and the constructor convert alike; None empties."""
    assert make(given).get() == kept
    assert type(make(given).get()) is type(kept)


@pytest.mark.parametrize(
    ("make", "given", "expected"),
    [
        (Integer, "four", "expected an integer, got 'four'"), (Integer, "5.0", "an integer"),
        (Integer, [], "an integer"), (Integer, math.inf, "an integer"), (Float, "x", "expected a number, got 'x'"),
        (Boolean, "maybe", "expected true or false, got 'maybe'"),
    ],
)  # fmt: skip
def test_a_bad_value_says_what_was_expected_and_leaves_the_old_one(
    make: Callable[[Any], Scalar], given: Any, expected: str
) -> None:
    """A ValueError in one sentence, and no change."""
    scalar = make(1)
    before = scalar.get()
    with pytest.raises(ValueError, match=expected):
        scalar.set(given)
    assert scalar.get() == before


def test_a_scalar_given_to_a_scalar_gives_its_value() -> None:
    """Also None: `String(String())` is empty, and not the text 'None'."""
    assert Boolean(Integer(0)).get() is False
    assert String(String()).get() is None
    assert Float(Integer(3)).get() == 3.0


def test_only_a_boolean_has_the_truth_of_its_value() -> None:
    """Scipion's meaning, which sources rely on."""
    assert all(bool(s) for s in (Integer(0), Integer(), Float(0), String(""), String()))
    assert not Boolean(False)
    assert not Boolean()
    assert Boolean(True)


def test_get_gives_the_default_only_without_a_value() -> None:
    """0 and False are values."""
    assert Integer(0).get(7) == 0
    assert Integer().get(7) == 7
    assert Boolean(False).hasValue()
    assert not Float().hasValue()


def test_empty_means_no_text() -> None:
    """None, '' and white space are empty; 0 is not."""
    assert String().empty()
    assert String(" \n").empty()
    assert not String("x").empty()
    assert not Integer(0).empty()
    assert Integer().empty()


def test_comparison_is_by_value_with_scalars_and_plain_values() -> None:
    """On either side."""
    assert Integer(5) == Integer(5)
    assert Integer(5) == 5
    assert Integer(2) == Float(2.0)
    assert Integer(5) != 6
    assert Integer(3) < 4 <= Integer(4) < Float(4.5)
    assert Integer(3) in [1, 2, 3]
    assert String("b") > "a"
    assert max(Integer(3), Integer(4)) == 4
    assert (Integer(5) == "5") is False


def test_an_empty_scalar_equals_none_and_has_no_order() -> None:
    """Neither less nor greater, and no TypeError."""
    empty = Integer()
    assert (empty == None) is True  # noqa: E711
    assert (Integer(5) == None) is False  # noqa: E711
    assert [empty < 5, empty > 5, empty <= 5, empty >= 5, empty == 5] == [False] * 5


def test_an_integer_is_an_index_and_a_number() -> None:
    """range, lists, dicts, int, float, formats."""
    n = Integer(3)
    assert list(range(n)) == [0, 1, 2]
    assert "abcd"[n] == "d"
    assert {3: "three"}[n] == "three"  # type: ignore[index]
    assert (int(n), float(n), f"{n:03d}", "%d" % n, str(n), repr(n)) == (3, 3.0, "003", "3", "3", "Integer(3)")  # noqa: UP031
    assert f"{Float(3):.2f}" == "3.00"
    assert (str(Integer()), repr(Integer()), f"{String()!s:>5}") == ("None", "Integer()", " None")
    assert int(Float(2.5)) == 2
    assert math.sqrt(Integer(9)) == 3


def test_arithmetic_gives_plain_values() -> None:
    """Reflected and unary too."""
    n, x = Integer(7), Float(0.5)
    assert [n + 1, n - 1, n * 2, n / 2, n // 2, n % 4, n**2] == [8, 6, 14, 3.5, 3, 3, 49]
    assert [1 + n, 1 - n, 2 * n, 14 / n, 15 // n, 15 % n, 2**n] == [8, -6, 14, 2.0, 2, 1, 128]
    assert type(n + 1) is int
    assert (n * x, x + x, -n, +n, abs(-x)) == (3.5, 1.0, -7, 7, 0.5)
    assert [math.floor(Float(2.5)), math.ceil(Float(2.5)), math.trunc(Float(2.5)), round(Float(2.5))] == [2, 3, 2, 2]
    assert round(Float(2.567), 1) == 2.6
    assert sum([Integer(1), Integer(2)]) == 3
    assert String("a") + ".mrc" == "a.mrc"
    assert String("%s-%d") % ("a", Integer(2)) == "a-2"


def test_in_place_arithmetic_puts_a_new_scalar_of_the_type() -> None:
    """`n = self.n; n += 1` does not change the param; `self.n += 1` keeps `self.n` a scalar."""
    n = param = Integer(5)
    n += 1
    assert (type(n), n.get(), param.get()) == (Integer, 6, 5)
    n /= 2
    assert (type(n), n.get()) == (Integer, 3)
    text = String("a")
    text += "b"
    assert (type(text), text.get()) == (String, "ab")
    nan = Float(1)
    nan *= math.nan
    assert math.isnan(nan.get())


def test_an_in_place_result_that_does_not_fit_is_refused() -> None:
    """Nothing is cut off silently."""
    n = Integer(5)
    with pytest.raises(TypeError, match=r"Integer\(5\) /= 2 gives 2.5, which Integer cannot hold"):
        n /= 2
    with pytest.raises(TypeError, match="cannot hold"):
        n.multiply(0.5)
    assert n == 5


def test_an_empty_scalar_does_not_compute() -> None:
    """And says so."""
    for action in (lambda: Integer() + 1, lambda: int(Integer()), lambda: Integer().increment(), lambda: -Float()):
        with pytest.raises(TypeError, match="has no value to compute with"):
            action()


def test_changes_in_place() -> None:
    """increment, sum (which converts first, as Scipion's), multiply, swap."""
    a, b = Integer(3), Integer(10)
    a.increment()
    a.sum(1.7)
    a.multiply(2)
    a.swap(b)
    assert (a.get(), b.get()) == (10, 10)
    b.set(1)
    a.swap(b)
    assert (a.get(), b.get()) == (1, 10)


def test_scalars_travel_and_copy_by_value() -> None:
    """pickle, deepcopy, clone; the copy is independent."""
    for scalar in (Integer(5), Float(), String("x"), Boolean(True), Scalar([1])):
        for twin in (pickle.loads(pickle.dumps(scalar)), copy.deepcopy(scalar), scalar.clone()):
            assert type(twin) is type(scalar)
            assert twin.get() == scalar.get()
    original = Integer(1)
    original.clone().set(2)
    assert original == 1


def test_bookkeeping_keywords_are_accepted_and_others_refused() -> None:
    """Sources pass `objDoStore=False`; a misspelt `vlaue=` must not vanish."""
    assert Boolean(False, objDoStore=False).get() is False
    with pytest.raises(TypeError, match="Integer has no keyword 'vlaue'"):
        Integer(vlaue=3)
    with pytest.raises(TypeError, match="CsvList has no keyword"):
        CsvList(int, items=3)


def test_dates_lists_and_durations_in_a_string() -> None:
    """The helpers that sources call on a String."""
    moment = datetime.datetime(2020, 1, 2, 3, 4, 5)
    assert String("2020-01-02 03:04:05").datetime() == moment
    assert String("2020-01-02 03:04:05.25").datetime() == moment.replace(microsecond=250000)
    assert String("02/01/2020").datetime("%d/%m/%Y") == datetime.datetime(2020, 1, 2)
    assert String("2x3, 1").getListFromValues() == [3, 3, 1]
    assert String("1,5-8 10").getListFromRange() == [1, 5, 6, 7, 8, 10]
    assert String("1d 2h 1m 10s").toSeconds() == 93670
    with pytest.raises(ValueError, match="expected a duration"):
        String("soon").toSeconds()


def test_lists_in_text_are_read_or_refused() -> None:
    """Never guessed."""
    assert listFromValues("10 2x5, 1", length=6, caster=float) == [10, 5, 5, 1, 1, 1]
    assert listFromValues("2x3 a") == ["2x3", "a"]
    assert listFromRange("") == []
    for text in ("2x", "1x2x3", "a"):
        with pytest.raises(ValueError, match="expected values such as"):
            listFromValues(text, caster=int)
    with pytest.raises(ValueError, match="up to 3 values, got none"):
        listFromValues("", length=3)
    for text in ("8-5", "1-", "a", "1.5", "1-2-3"):
        with pytest.raises(ValueError, match="expected numbers such as"):
            listFromRange(text)


def test_a_string_is_a_path(tmp_path: Any) -> None:
    """open() and os.path take it as it is."""
    (tmp_path / "a.txt").write_text("hello")
    with open(String(tmp_path / "a.txt")) as file:
        assert file.read() == "hello"


def test_a_csv_list_is_a_list_and_reads_as_text() -> None:
    """Items of one type; `get` joins them."""
    values = CsvList(int)
    values.set("1,2")
    values.append(3)
    assert (list(values), values.get(), values.hasValue(), str(values)) == ([1, 2, 3], "1,2,3", True, "[1, 2, 3]")
    assert values == [1, 2, 3]
    assert values != [1, 2, 3, 4]
    values.set(["4"])
    assert values == [4]
    assert pickle.loads(pickle.dumps(values)) == [4]
    with pytest.raises(ValueError, match="expected a list of int, got the item 'x'"):
        values.set("5,x")
    with pytest.raises(ValueError, match="expected a text with commas or a list, got 5"):
        values.set(5)
    assert values == [4]
    values.set(None)
    assert not values
    assert (values.get(), values.get("none"), values.isEmpty(), values.empty()) == ("", "none", True, True)
    flags = CsvList(bool, value="True,False")
    assert flags == [True, False]
    assert CsvList(value=flags) == ["True", "False"]
    assert [0] + CsvList(int, "1") == [0, 1]  # noqa: RUF005
    assert isinstance(values, Scalar)
    assert isinstance(values, list)


def test_numpy_sees_the_value() -> None:
    """An array times a Float is an array of floats, and numpy's functions take scalars."""
    numpy = pytest.importorskip("numpy")
    scaled = numpy.arange(3.0) * Float(2)
    assert scaled.dtype == float
    assert scaled.tolist() == [0, 2, 4]
    assert numpy.sqrt(Float(4)) == 2
    assert numpy.zeros(Integer(3)).shape == (3,)
    assert numpy.float64(2) * Float(3) == 6


EXPRESSIONS = [
    "Integer('5').get()", "Integer(5.7).get()", "Integer(True).get()", "Integer(None).get()", "Integer().get(7)",
    "Integer(0).get(7)", "Integer('5.0')", "Integer('x')", "Float('1e3').get()", "Float('x')", "String(5).get()",
    "String().get()", "str(String())", "Boolean('TRUE ').get()", "Boolean('1').get()", "Boolean('0').get()",
    "Boolean('false').get()", "Boolean('').get()", "Boolean(2).get()", "Boolean().get()", "bool(Integer(0))",
    "bool(Integer())", "bool(String(''))", "bool(Float(0))", "bool(Boolean(False))", "bool(Boolean(True))",
    "Integer().hasValue()", "Integer(0).hasValue()", "String(' ').empty()", "String().empty()", "String('a').empty()",
    "Integer(5) == 5", "Integer(5) != 5", "Integer(5) == Float(5)", "Integer(5) < 6", "Integer(5) >= Integer(6)",
    "5 < Integer(6)", "Integer(3) in [1, 3]", "String('a') == 'a'", "String('b') > 'a'", "Boolean(True) == True",
    "Boolean(True) == 1", "'%d' % Integer(3)", "'%.2f' % Float(3)", "'%s' % String('a')", "'{}'.format(Integer(3))",
    "int(Integer(3))", "float(Integer(3))", "float(Float(3))", "max(Integer(3), Integer(4)).get()",
    "String('2020-01-02 03:04:05').datetime()", "String('2020-01-02 03:04:05.5').datetime()",
    "String('2020-01-02 03:04:05').datetime(fs=False)", "String('2020').datetime('%Y')",
    "String('2x3, 1').getListFromValues()", "String('2x3 1').getListFromValues(5, float)",
    "String('1 a').getListFromValues(caster=str)", "String('1,5-8,10').getListFromRange()",
    "String('2 5, 6-8').getListFromRange()", "String('').getListFromRange()", "String('1d 2h 1m 10s').toSeconds()",
    "CsvList(int).get()", "str(CsvList(int))", "bool(CsvList())", "csv(int, '1,2') == [1, 2]", "csv(int, [3]).get()",
    "csv(str, 'a, b') == ['a', ' b']", "len(csv(str, 'a,b'))", "csv(float, '').isEmpty()", "csv(str, ('a', 'b')).get()",
    "Integer(1).isPointer()", "Integer(1).hasPointer()", "String('a').getObjValue()", "change(Integer(3), 'increment')",
    "change(Integer(3), 'sum', 1.7)", "change(Float(3), 'multiply', 2)", "change(Integer(3), 'swap', Integer(4))",
]  # fmt: skip


def outcome(module: Any, expression: str) -> Any:
    """What an expression gives with the scalars of a module; for an error that it is one."""

    def csv(kind: Any, value: Any) -> Any:
        made = module.CsvList(kind)
        made.set(value)
        return made

    def change(scalar: Any, method: str, *args: Any) -> Any:
        getattr(scalar, method)(*args)
        return scalar.get()

    names: Dict[str, Any] = {"csv": csv, "change": change}
    names.update({n: getattr(module, n) for n in ("Integer", "Float", "String", "Boolean", "CsvList")})
    try:
        return eval(expression, names)
    except (ValueError, TypeError) as error:
        return type(error)


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_scalars_mean_what_scipions_mean(expression: str) -> None:
    """The same value or the same kind of error, for everything that protocols rely on."""
    theirs = pytest.importorskip("pyworkflow.object")
    assert outcome(ours, expression) == outcome(theirs, expression)


@pytest.mark.parametrize(
    ("expression", "here", "there"),
    [
        ("Integer() == None", True, False), ("Integer(5) == None", False, True), ("Integer() == 5", False, True),
        ("Integer() <= 5", False, True), ("bool(Boolean())", False, TypeError), ("Boolean('yes').get()", True, False),
        ("Boolean('maybe')", ValueError, None), ("String(String()).get()", None, "None"),
        ("Integer(5) == '5'", False, TypeError), ("Integer(5) + 1", 6, TypeError),
        ("list(range(Integer(1)))", [0], TypeError),
        ("csv(int, '1,2') == [1, 2, 3]", False, True), ("hash(Integer(5)) == hash(5)", True, TypeError),
    ],
)  # fmt: skip
def test_known_differences_from_scipion_are_these(expression: str, here: Any, there: Any) -> None:
    """Each is an accident of Scipion's that no source can rely on, or an addition (None: theirs gives an object)."""
    assert outcome(ours, expression) == here
    theirs = pytest.importorskip("pyworkflow.object")
    if there is not None:
        assert outcome(theirs, expression) == there


def test_raw_value_unwraps_scalars_only() -> None:
    """Anything else passes through as the same object."""
    plain: List[int] = []
    assert rawValue(Integer(3)) == 3
    assert rawValue(plain) is plain
