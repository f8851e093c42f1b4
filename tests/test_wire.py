"""What crosses the process boundary comes out as it went in, or is an error that says what could not travel."""

from __future__ import annotations

import functools
import marshal
import math
import pickle
import sys
import threading
import time
from typing import Any, Callable, List, NamedTuple, NoReturn, Optional

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpsteps._ipc import wire
from mpsteps.errors import SerializationError


class Pair(NamedTuple):
    a: int
    b: int


class Text(str):
    pass


class Number(int):
    pass


# ------------------------------------------------------------------------------------------------------ plain values

ATOMS = [
    None, True, False, 0, 1, -1, 2**31, 2**63, -(2**64), 10**400, 0.0, -0.0, 1e-320, float("inf"), float("nan"), "",
    "é", "\ud800", "a\0b", b"", b"\0\xff",
]  # fmt: skip
CONTAINERS = [
    [], (), {}, [1, [2, [3]]], (1, (2, "x")), {"a": [1], 2: {"b": (None,)}}, [[]] * 3, {None: 1, True: 2, 0.5: 3},
]  # fmt: skip


@pytest.mark.parametrize("value", ATOMS + CONTAINERS, ids=repr)
def test_plain_values_travel_without_pickle_and_come_out_exactly(value: Any) -> None:
    """Same type and same value, to the sign of zero."""
    assert wire.is_plain(value)
    parcel = wire.pack(value)
    assert parcel[:1] == b"m"
    found = wire.unpack(parcel)
    assert type(found) is type(value)
    assert repr(found) == repr(value)
    if isinstance(value, float):
        assert math.copysign(1, found) == math.copysign(1, value)


@pytest.mark.parametrize(
    "value",
    [Pair(1, 2), Text("x"), Number(3), {1, 2}, frozenset(), 1j, bytearray(b"x"), range(3), object, len, Ellipsis,
     [Number(3)], (Text("x"),), {"a": Pair(1, 2)}, {Text("k"): 1}, {(1, 2): 3}],
    ids=repr,
)  # fmt: skip
def test_what_only_looks_plain_is_pickled_and_keeps_its_type(value: Any) -> None:
    """Subclasses of atoms, named tuples and sets are not what marshal would make of them."""
    assert not wire.is_plain(value)
    found = wire.unpack(wire.pack(value))
    assert type(found) is type(value)
    assert found == value
    if isinstance(value, (list, tuple)) and not isinstance(value, Pair):
        assert type(found[0]) is type(value[0])


def test_numpy_scalars_keep_their_type() -> None:
    """marshal would write a float64, a float by inheritance, as raw bytes without a word."""
    np = pytest.importorskip("numpy")
    for value in (np.float64(1.5), np.float32(1.5), np.int64(3), np.bool_(True), np.str_("x")):
        assert not wire.is_plain(value)
        assert not wire.is_plain([value])
        assert type(wire.unpack(wire.pack([value]))[0]) is type(value)


def test_deep_nesting_is_pickled_and_deeper_nesting_is_an_error_and_no_crash() -> None:
    """marshal and the C stack have limits that are reached without warning; pickle says so."""
    nested: List[Any] = []
    for _ in range(50):
        nested = [nested]
    assert not wire.is_plain(nested)
    assert wire.unpack(wire.pack(nested)) == nested
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises((pickle.PicklingError, RecursionError)):
        wire.pack(nested)
    while nested:  # taking it down recursively is what some Pythons do not survive
        nested = nested.pop()


def test_a_list_that_contains_itself_travels() -> None:
    """And is one list afterwards, too."""
    loop: List[Any] = []
    loop.append(loop)
    found = wire.unpack(wire.pack(loop))
    assert found[0] is found


def test_two_gibibytes_are_an_error_that_says_what_to_do() -> None:
    """The memory is never touched: it is only a size."""
    with pytest.raises(SerializationError, match="2 GiB or more: write it to a file"):
        wire.pack(bytes(2**31))


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=20,
)


@settings(max_examples=50, deadline=None)
@given(plain)
def test_whatever_is_called_plain_survives_marshal_exactly(value: Any) -> None:
    """The promise of `is_plain`, for values that nobody thought of; what is not plain goes through pickle."""
    if wire.is_plain(value):
        assert repr(marshal.loads(marshal.dumps(value))) == repr(value)
    assert repr(wire.unpack(wire.pack(value))) == repr(value)


@settings(max_examples=50, deadline=None)
@given(st.lists(plain))
def test_a_frame_holds_what_was_put_into_it(values: List[Any]) -> None:
    """Messages are tuples of plain values."""
    messages = [(i, wire.pack(v)) for i, v in enumerate(values)]
    assert wire.decode(wire.encode(messages)) == messages


# ------------------------------------------------------------------------------------------------------------ anchors


class Owner:
    """Stands for a protocol: both sides have one."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seen: List[int] = []
        self.lock = threading.Lock()  # cannot be pickled: a copy would be an error

    def method(self, x: int) -> str:
        return f"{self.name}{x}"

    def closure(self) -> Callable[[int], str]:
        return lambda x: f"{self.name}{x}"


def test_what_refers_to_the_protocol_means_the_receivers_protocol() -> None:
    """Bound methods, lambdas that use self, partials, self among arguments and deep inside them: never a copy."""
    here, there = Owner("here"), Owner("there")

    def carry(value: Any) -> Any:
        return wire.unpack(wire.pack(value, here), there)

    assert carry(here) is there
    assert carry(here.method)(1) == "there1"
    assert carry(here.closure())(2) == "there2"
    assert carry(functools.partial(here.method, 3))() == "there3"
    assert carry(lambda: here.name)() == "there"
    args = carry((1, {"owner": [here]}, here.seen))
    assert args[1]["owner"][0] is there
    assert args[2] == []


def test_without_an_anchor_a_copy_is_made() -> None:
    """A pool has no protocol: its tasks' objects travel by value."""
    found = wire.unpack(wire.pack(Pair(1, 2)))
    assert found == Pair(1, 2)
    with pytest.raises(TypeError, match="pickle"):
        wire.pack(Owner("x"))


def test_lambdas_closures_and_local_classes_travel() -> None:
    """They have no name by which the other side could import them."""
    n = 3

    class Local:
        def __init__(self) -> None:
            self.x = n

    assert wire.unpack(wire.pack(lambda y: n + y))(4) == 7
    assert wire.unpack(wire.pack(Local())).x == 3


def test_arguments_stand_in_the_message_when_plain_and_in_a_parcel_else() -> None:
    """Keywords always make a parcel."""
    assert wire.pack_arguments((1, "a", [2])) == (1, "a", [2])
    assert wire.unpack(wire.pack_arguments((1,), {"k": 2})) == ((1,), {"k": 2})  # type: ignore[arg-type]
    assert wire.unpack(wire.pack_arguments(({1},))) == (({1},), {})  # type: ignore[arg-type]


def test_the_argument_that_cannot_travel_is_named() -> None:
    """By its place or its keyword, and its type."""
    lock = threading.Lock()
    assert wire.what_cannot_travel((1, lock), {}) == "argument 2 (of type lock)"
    assert wire.what_cannot_travel((1,), {"guard": lock}) == "argument guard= (of type lock)"
    assert wire.what_cannot_travel((1, 2), {}) == "an argument"


# ---------------------------------------------------------------------------------------------------- exceptions


class TwoArgumentsError(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code


class KeywordOnlyError(Exception):
    def __init__(self, *, path: str) -> None:
        super().__init__(path)
        self.path = path


class CarriesLockError(Exception):
    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.lock = threading.Lock()
        self.code = 7


class EvilStrError(Exception):
    def __str__(self) -> str:
        raise SystemExit(9)

    __repr__ = __str__


class EvilReduceError(Exception):
    def __reduce__(self) -> Any:
        raise SystemExit(9)


class EvilLoadError(Exception):
    def __setstate__(self, state: Any) -> None:
        raise SystemExit(9)

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.state = 1


class EvilMeta(type):
    def __getattribute__(cls, name: str) -> Any:
        if name in ("__module__", "__qualname__"):
            raise SystemExit(9)
        return super().__getattribute__(name)


class EvilClassError(Exception, metaclass=EvilMeta):
    pass


class NotStrError(Exception):
    def __str__(self) -> Any:
        return 5  # noqa: PLE0307


def caught(make: Callable[[], BaseException], depth: int = 0) -> BaseException:
    """The exception with a traceback, as a worker sees it."""
    try:
        throw(make, depth)
    except BaseException as error:
        return error


def throw(make: Callable[[], BaseException], depth: int) -> NoReturn:
    if depth:
        throw(make, depth - 1)
    raise make()


def deep_cause(levels: int) -> BaseException:
    error: BaseException = ValueError("deepest")
    for i in range(levels):
        outer = ValueError(i)
        outer.__cause__ = error
        error = outer
    return error


def cyclic_context() -> BaseException:
    a, b = ValueError("a"), KeyError("b")
    a.__context__, b.__context__ = b, a
    return a


def local_class() -> BaseException:
    class LocalError(Exception):
        pass

    return LocalError("local")


def deleted_class() -> BaseException:
    cls = type("Deleted", (Exception,), {"__module__": __name__})
    return cls("deleted")


def of_main() -> BaseException:
    cls = type("OfMain", (Exception,), {"__module__": "__main__"})
    return cls("main")


def recursion() -> BaseException:
    def down(n: int) -> int:
        return down(n + 1) + 1

    try:
        down(0)
    except RecursionError as error:
        return error
    raise AssertionError("no recursion limit")


ZOO = {  # make, type name, part of the message, whether the object must travel
    "plain": (lambda: ValueError("bad"), "ValueError", "bad", True),
    "two arguments": (lambda: TwoArgumentsError(3, "odd"), "TwoArgumentsError", "3: odd", True),
    "keyword only": (lambda: KeywordOnlyError(path="/x"), "KeywordOnlyError", "/x", True),
    "a lock among its attributes": (lambda: CarriesLockError("locked"), "CarriesLockError", "locked", True),
    "a lock among its arguments": (lambda: ValueError("args", threading.Lock()), "ValueError", "args", True),
    "__str__ exits": (lambda: EvilStrError("x"), "EvilStrError", "cannot be read: SystemExit", True),
    "__str__ gives no text": (lambda: NotStrError("x"), "NotStrError", "cannot be read: TypeError", True),
    "__reduce__ exits": (lambda: EvilReduceError("evil"), "EvilReduceError", "evil", None),
    "loading exits": (lambda: EvilLoadError("evil"), "EvilLoadError", "evil", None),
    "its class has no name": (lambda: EvilClassError("evil"), "EvilClassError", "evil", None),
    "3000 causes": (lambda: deep_cause(3000), "ValueError", "2999", True),
    "a circle of contexts": (cyclic_context, "ValueError", "a", True),
    "a local class": (local_class, "LocalError", "local", True),
    "a class that is nowhere": (deleted_class, "Deleted", "deleted", None),
    "a class of __main__": (of_main, "OfMain", "main", True),
    "100 MB": (lambda: ValueError("x" * 100_000_000), "ValueError", "characters left out", False),
    "no UTF-8": (lambda: ValueError("\udcff name"), "ValueError", "\\udcff name", True),
    "bytes": (lambda: ValueError(b"\xff\xfe"), "ValueError", "\\xff", True),
    "SystemExit": (lambda: SystemExit(3), "SystemExit", "3", True),
    "KeyboardInterrupt": (KeyboardInterrupt, "KeyboardInterrupt", "", True),
    "GeneratorExit": (GeneratorExit, "GeneratorExit", "", True),
    "StopIteration": (lambda: StopIteration(5), "StopIteration", "5", True),
    "OSError": (lambda: FileNotFoundError(2, "No such file", "/x"), "FileNotFoundError", "/x", True),
    "UnicodeDecodeError": (lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), "UnicodeDecode", "bad", True),
    "recursion": (recursion, "RecursionError", "recursion", True),
}


@pytest.mark.versions
@pytest.mark.parametrize("name", ZOO)
def test_every_exception_is_told_by_type_message_and_traceback(name: str) -> None:
    """Whatever its methods do, text always travels, quickly and of bounded size; the object where it can."""
    make, type_name, message, travels = ZOO[name]
    error = caught(make, depth=2)
    start = time.perf_counter()
    failure = wire.describe(error)
    assert time.perf_counter() - start < 5
    assert type_name in failure.type_name
    assert message in failure.message
    assert len(failure.message) < 25_000
    assert type_name in failure.traceback
    assert len(failure.traceback) < 25_000
    assert wire.decode(wire.encode([tuple(failure)])) == [tuple(failure)]  # it travels
    for text in (failure.type_name, failure.message, failure.traceback):
        text.encode("utf-8")
    if travels is None:
        return  # either way will do
    assert (failure.parcel is not None) == travels
    if failure.parcel is not None:
        found = wire.unpack(failure.parcel)
        assert type(found) is type(error)
        assert isinstance(found, BaseException)


@pytest.mark.versions
def test_an_exception_keeps_what_it_carries_and_where_it_was_raised() -> None:
    """Arguments, attributes that can travel, the frames of its traceback, its cause."""
    error = caught(lambda: CarriesLockError("locked"), depth=2)
    found = unpacked(error)
    assert found.args == ("locked",)
    assert found.code == 7
    assert not hasattr(found, "lock")
    assert frames(found).count("throw") == 3

    def with_cause() -> None:
        try:
            raise KeyError("inner")
        except KeyError as inner:
            raise TwoArgumentsError(1, "outer") from inner

    with pytest.raises(TwoArgumentsError) as info:
        with_cause()
    found = unpacked(info.value)
    assert found.code == 1
    assert "with_cause" in frames(found)


def test_the_cause_of_an_ordinary_exception_travels_with_it() -> None:
    """With its own traceback."""

    def fail() -> None:
        try:
            raise KeyError("inner")
        except KeyError as inner:
            raise ValueError("outer") from inner

    with pytest.raises(ValueError, match="outer") as info:
        fail()
    found = unpacked(info.value)
    assert type(found.__cause__) is KeyError
    assert "fail" in frames(found.__cause__)


def test_an_argument_that_cannot_travel_is_replaced_and_named() -> None:
    """The exception arrives all the same."""
    found = unpacked(caught(lambda: ValueError("args", threading.Lock())))
    assert found.args[0] == "args"
    assert repr(found.args[1]) == "<lock that could not travel>"


@pytest.mark.versions
@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups and notes are of Python 3.11")
def test_exception_groups_and_notes_travel() -> None:
    """All members, with their notes."""
    error = caught(lambda: ExceptionGroup("several", [ValueError("a"), KeyError("b")]))  # type: ignore[name-defined]  # noqa: F821
    error.add_note("a note")  # type: ignore[attr-defined]
    failure = wire.describe(error)
    assert "several" in failure.message
    assert "a note" in failure.traceback
    found = unpacked(error)
    assert [type(e) for e in found.exceptions] == [ValueError, KeyError]
    assert found.__notes__ == ["a note"]


def test_a_group_with_a_member_that_cannot_travel_is_told_by_text() -> None:
    """And, if at all, by what can."""
    if sys.version_info < (3, 11):
        pytest.skip("exception groups are of Python 3.11")
    error = caught(lambda: ExceptionGroup("g", [EvilReduceError("evil")]))  # type: ignore[name-defined]  # noqa: F821
    failure = wire.describe(error)
    assert "EvilReduceError" in failure.traceback


def test_the_frame_of_the_caller_is_left_out_of_a_traceback() -> None:
    """It is the worker's own loop and says nothing to a user."""

    def users() -> None:
        raise ValueError("bad")

    try:
        users()
    except ValueError as error:
        failure: Optional[wire.Failure] = wire.describe(error)
    assert failure is not None
    assert "in users" in failure.traceback
    assert "test_the_frame_of_the_caller" not in failure.traceback


def test_a_failure_says_its_cause_in_one_sentence() -> None:
    """Type and message of an exception; the message alone of anything else."""
    assert wire.Failure("exception", "ValueError", "bad").cause() == "ValueError: bad"
    assert wire.Failure("exception", "KeyboardInterrupt", "").cause() == "KeyboardInterrupt"
    assert wire.Failure("lost", "StepLost", "its worker died").cause() == "its worker died"


def unpacked(error: BaseException) -> Any:
    parcel = wire.pack_exception(error)
    assert parcel is not None
    return wire.unpack(parcel)


def frames(error: BaseException) -> List[str]:
    found = []
    tb = error.__traceback__
    while tb is not None:
        found.append(tb.tb_frame.f_code.co_name)
        tb = tb.tb_next
    return found
