"""The values that a form's params become on the protocol: `self.boxSize` is an `Integer`.

A scalar is a box for one Python value, so that a param can be changed in place (`self.boxSize.set(64)`) and can be
empty. Names and meanings are Scipion's: a protocol's source runs with either. What sources rely on is kept, quirks
included:

- only a `Boolean` has the truth of its value. Any other scalar is true, also `Integer(0)`, `String('')` and an empty
  one: write `if self.n > 0`, or use `hasValue()` and `empty()`.
- `Integer(5.7)` is 5, `Integer('5.7')` is a ValueError. (A form is stricter: its IntParam refuses 5.7.)
- `CsvList.get()` is one text with commas; the list is the object itself.

Where Scipion's meaning is an accident, ours is the plain one:

- `Integer() == None` is true, `Integer() == 5` false (Scipion: the other way round). An empty scalar is neither less
  nor greater than anything. `Integer(5) == '5'` is false (Scipion: TypeError).
- `Boolean('yes')` is true, `Boolean('maybe')` a ValueError (Scipion: both false); an empty Boolean is false in `if`
  (Scipion: TypeError).
- two `CsvList` are equal if they hold the same (Scipion: if one begins with the other).

Scipion 3.11 has no arithmetic on scalars; here `self.n * 2` gives a plain number, and `self.n += 1` puts a *new* scalar
of the same type in place of the old one, so that `n = self.n; n += 1` does not change the param.
"""

from __future__ import annotations

import copy
import datetime as dt
import math
import operator
from typing import Any, Callable, List, Optional

from mpsteps._texts import listFromRange, listFromValues, secondsOf, showValue

__all__ = [
    "ArithmeticScalar", "Boolean", "CsvList", "Float", "Integer", "Scalar", "String", "listFromRange",
    "listFromValues", "rawValue", "showValue",
]  # fmt: skip

_TRUE_WORDS = frozenset(("true", "yes", "y", "on", "t", "1"))
_FALSE_WORDS = frozenset(("false", "no", "n", "off", "f", "0", ""))  # '' is false under Scipion too


class Scalar:
    """A box for one value; None means that it is empty. This base class keeps a value as it is given.

    Keywords that begin with `obj` (`objDoStore`, `objLabel`, ...) are Scipion's bookkeeping for its database. They are
    accepted because sources pass them, and have no meaning where there is no database.
    """

    expected = "a value"  # completes the sentence "expected ..."

    def __init__(self, value: Any = None, **kwargs: Any) -> None:
        _refuseUnknown(type(self), kwargs)
        self._objValue: Any = None
        self.set(value)

    def set(self, value: Any) -> None:
        """Keep `value`, converted to this scalar's type; another scalar gives its value, None empties. ValueError."""
        raw = rawValue(value)
        self._objValue = None if raw is None else self._converted(raw)

    def get(self, default: Any = None) -> Any:
        """The value, or `default` if there is none."""
        return default if self._objValue is None else self._objValue

    def getObjValue(self) -> Any:
        """The value as it is stored."""
        return self.get()

    def hasValue(self) -> bool:
        """Whether there is a value; 0, False and '' are values."""
        return self._objValue is not None

    def empty(self) -> bool:
        """Whether there is no value, or a text of nothing but white space."""
        value = self.get()
        return value is None or (isinstance(value, str) and not value.strip())

    def isPointer(self) -> bool:
        """False: scalars are values, never references to objects of a project."""
        return False

    def hasPointer(self) -> bool:
        """False: the value is in the scalar itself."""
        return False

    def swap(self, other: Scalar) -> None:
        """Exchange the values of the two scalars."""
        mine, theirs = self.get(), other.get()
        self.set(theirs)
        other.set(mine)

    def clone(self) -> Scalar:
        """A new scalar of the same type and value."""
        return copy.deepcopy(self)

    def _convertValue(self, value: Any) -> Any:
        """`value` (never None) in this scalar's type; subclasses raise ValueError or TypeError if it does not fit."""
        return value

    def _converted(self, value: Any) -> Any:
        try:
            return self._convertValue(value)
        except (ValueError, TypeError, OverflowError):
            raise ValueError(f"expected {self.expected}, got {showValue(value)}") from None

    def __str__(self) -> str:
        return str(self.get())

    def __repr__(self) -> str:
        value = self.get()
        return f"{type(self).__name__}({'' if value is None else repr(value)})"

    def __format__(self, spec: str) -> str:
        return format(self.get(), spec) if self.hasValue() else format("None", spec)

    def __bool__(self) -> bool:
        return True  # as under Scipion: see the module's text

    def __hash__(self) -> int:
        """By value, so that `{0: 'fast'}[self.mode]` works; as a key itself, a scalar must not be changed."""
        return hash(self.get())

    def __eq__(self, other: object) -> Any:
        return self.get() == rawValue(other)

    def __ne__(self, other: object) -> Any:
        return self.get() != rawValue(other)

    def __lt__(self, other: object) -> Any:
        return self._ordered(operator.lt, other)

    def __le__(self, other: object) -> Any:
        return self._ordered(operator.le, other)

    def __gt__(self, other: object) -> Any:
        return self._ordered(operator.gt, other)

    def __ge__(self, other: object) -> Any:
        return self._ordered(operator.ge, other)

    def _ordered(self, compare: Callable[[Any, Any], Any], other: object) -> Any:
        mine, theirs = self.get(), rawValue(other)
        return False if mine is None or theirs is None else compare(mine, theirs)


def _binary(function: Callable[[Any, Any], Any]) -> Callable[[Any, object], Any]:
    def method(self: ArithmeticScalar, other: object) -> Any:
        return function(self._operand(), rawValue(other))

    return method


def _reflected(function: Callable[[Any, Any], Any]) -> Callable[[Any, object], Any]:
    def method(self: ArithmeticScalar, other: object) -> Any:
        return function(rawValue(other), self._operand())

    return method


def _inPlace(function: Callable[[Any, Any], Any], sign: str) -> Callable[[Any, object], Any]:
    def method(self: ArithmeticScalar, other: object) -> ArithmeticScalar:
        return self._sameType(function(self._operand(), rawValue(other)), f"{sign}= {showValue(rawValue(other))}")

    return method


class ArithmeticScalar(Scalar):
    """A scalar that computes like its value. Results are plain values; `+=` and its kin give a new scalar of its type.

    An empty scalar in an operation is a TypeError, as is an in-place result that the type cannot hold exactly.
    """

    __add__ = _binary(operator.add)
    __sub__ = _binary(operator.sub)
    __mul__ = _binary(operator.mul)
    __truediv__ = _binary(operator.truediv)
    __floordiv__ = _binary(operator.floordiv)
    __mod__ = _binary(operator.mod)
    __pow__ = _binary(operator.pow)
    __radd__ = _reflected(operator.add)
    __rsub__ = _reflected(operator.sub)
    __rmul__ = _reflected(operator.mul)
    __rtruediv__ = _reflected(operator.truediv)
    __rfloordiv__ = _reflected(operator.floordiv)
    __rmod__ = _reflected(operator.mod)
    __rpow__ = _reflected(operator.pow)
    __iadd__ = _inPlace(operator.add, "+")
    __isub__ = _inPlace(operator.sub, "-")
    __imul__ = _inPlace(operator.mul, "*")
    __itruediv__ = _inPlace(operator.truediv, "/")
    __ifloordiv__ = _inPlace(operator.floordiv, "//")
    __imod__ = _inPlace(operator.mod, "%")
    __ipow__ = _inPlace(operator.pow, "**")

    def __neg__(self) -> Any:
        return -self._operand()

    def __pos__(self) -> Any:
        return +self._operand()

    def __abs__(self) -> Any:
        return abs(self._operand())

    def __round__(self, ndigits: Optional[int] = None) -> Any:
        return round(self._operand(), ndigits)

    def __trunc__(self) -> Any:
        return math.trunc(self._operand())

    def __floor__(self) -> Any:
        return math.floor(self._operand())

    def __ceil__(self) -> Any:
        return math.ceil(self._operand())

    def __int__(self) -> int:
        return int(self._operand())

    def __float__(self) -> float:
        return float(self._operand())

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        """numpy's operators and functions see the value: `array * self.scale` is an array of floats, not of objects."""
        return getattr(ufunc, method)(*[rawValue(each) for each in inputs], **kwargs)

    def sum(self, value: Any) -> None:
        """Add `value`, converted to this scalar's type first, in place."""
        self.set(self._operand() + self._converted(rawValue(value)))

    def multiply(self, value: Any) -> None:
        """Multiply by `value` in place; a result that the type cannot hold exactly is a TypeError."""
        self.set(self._sameType(self._operand() * rawValue(value), f"*= {showValue(rawValue(value))}"))

    def _operand(self) -> Any:
        value = self.get()
        if value is None:
            name = type(self).__name__
            raise TypeError(f"this {name} has no value to compute with: set one, or use get(default)")
        return value

    def _sameType(self, result: Any, operation: str) -> ArithmeticScalar:
        new = copy.copy(self)
        try:
            new.set(result)
            exact = new.get() == result or (isinstance(result, float) and math.isnan(result))
        except ValueError:
            exact = False
        if not exact:
            raise TypeError(f"{self!r} {operation} gives {showValue(result)}, which {type(self).__name__} cannot hold: "
                            f"use set() with the value that you mean")
        return new


class Integer(ArithmeticScalar):
    """An integer; works as an index and in `range`."""

    expected = "an integer"

    def increment(self) -> None:
        """Add 1 in place."""
        self.set(self._operand() + 1)

    def __index__(self) -> int:
        return int(self._operand())

    def _convertValue(self, value: Any) -> int:
        return int(value)


class Float(ArithmeticScalar):
    """A float."""

    expected = "a number"

    def _convertValue(self, value: Any) -> float:
        return float(value)


class Boolean(ArithmeticScalar):
    """True or False. Texts: true, yes, y, on, t, 1 and false, no, n, off, f, 0, '', in any case; else `bool(value)`."""

    expected = "true or false"

    def __bool__(self) -> bool:
        return bool(self.get(False))

    def _convertValue(self, value: Any) -> bool:
        if not isinstance(value, str):
            return bool(value)
        word = value.strip().lower()
        if word not in _TRUE_WORDS and word not in _FALSE_WORDS:
            raise ValueError(word)
        return word in _TRUE_WORDS


class String(ArithmeticScalar):
    """A text; anything else is kept as its `str()`. Works as a path (`open(self.fileName)`)."""

    DATETIME_FORMAT = "%Y-%m-%d %H:%M:%S"
    FS = ".%f"  # the fraction of a second, in `DATETIME_FORMAT + FS`
    expected = "a text"

    @classmethod
    def getDatetime(cls, strValue: str, formatStr: Optional[str] = None, fs: bool = True) -> dt.datetime:
        """The date and time in a text: in `formatStr`, or in DATETIME_FORMAT with (if `fs`) or without a fraction."""
        if formatStr is None and fs:
            try:
                return dt.datetime.strptime(strValue, cls.DATETIME_FORMAT + cls.FS)
            except ValueError:  # a time on the full second was written without the fraction
                return dt.datetime.strptime(strValue, cls.DATETIME_FORMAT)
        return dt.datetime.strptime(strValue, formatStr or cls.DATETIME_FORMAT)

    def datetime(self, formatStr: Optional[str] = None, fs: bool = True) -> dt.datetime:
        """`getDatetime` of this text."""
        return self.getDatetime(self._operand(), formatStr, fs)

    def getListFromValues(self, length: Optional[int] = None, caster: Callable[[str], Any] = int) -> List[Any]:
        """`listFromValues` of this text."""
        return listFromValues(self._operand(), length, caster)

    def getListFromRange(self) -> List[int]:
        """`listFromRange` of this text."""
        return listFromRange(self._operand())

    def toSeconds(self) -> float:
        """Seconds in a duration such as '1d 2h 5m 10s'; a number without a unit is seconds. ValueError."""
        return secondsOf(self._operand())

    def __fspath__(self) -> str:
        return str(self._operand())

    def _convertValue(self, value: Any) -> str:
        return str(value)


class CsvList(List[Any], Scalar):  # type: ignore[misc]  # a list has its own comparison and no hash: meant
    """A list of values of one type (`pType`: str, int, float, bool, ...) that reads and writes as 'a,b,c'."""

    def __init__(self, pType: Callable[[Any], Any] = str, value: Any = None, **kwargs: Any) -> None:
        _refuseUnknown(type(self), kwargs)
        list.__init__(self)
        self._pType = pType
        self.set(value)

    def set(self, value: Any) -> None:
        """Replace the items by those of a text with commas, a list or a tuple; None and '' leave none. ValueError."""
        if not isinstance(value, (list, tuple)):
            value = rawValue(value)
        if value is not None and not isinstance(value, (str, list, tuple)):
            raise ValueError(f"expected a text with commas or a list, got {showValue(value)}")
        items = value.split(",") if isinstance(value, str) and value else (value or ())
        self[:] = [self._item(item) for item in items]

    def get(self, default: Any = None) -> Any:
        """The items as one text with commas ('' for none, as under Scipion), or `default` if it is given and none."""
        return ",".join(map(str, self)) if self or default is None else default

    def hasValue(self) -> bool:
        """Whether there are items."""
        return len(self) > 0

    def isEmpty(self) -> bool:
        """Whether there are no items."""
        return len(self) == 0

    def empty(self) -> bool:
        """Whether there are no items."""
        return len(self) == 0

    def __bool__(self) -> bool:
        return len(self) > 0

    def __str__(self) -> str:
        return repr(list(self))

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)

    def _item(self, item: Any) -> Any:
        raw = rawValue(item)
        try:
            return Boolean(raw).get() if self._pType is bool else self._pType(raw)
        except (ValueError, TypeError, OverflowError):
            kind = getattr(self._pType, "__name__", str(self._pType))
            raise ValueError(f"expected a list of {kind}, got the item {showValue(item)}") from None


def rawValue(value: Any) -> Any:
    """The plain value of a scalar, or `value` itself if it is none."""
    return value.get() if isinstance(value, Scalar) else value


def _refuseUnknown(kind: type, kwargs: Any) -> None:
    for name in kwargs:
        if not name.startswith("obj"):
            raise TypeError(f"{kind.__name__} has no keyword {name!r}")
