"""Write-back: which attributes of `self` a step changed, told as small operations that others can apply.

A `Tracker` watches one object. `changes()` compares the object's attributes with what they were at the last call:
atoms by identity, containers by a fingerprint of their content. The result is a list of operations:

    ("=", name, value)            the attribute was set: other names keep what it was before
    ("~", name, value)            its content was changed in a way that has no smaller description
    ("-", name)                   it was deleted
    ("+", name, start, items)     a list that was `start` long grew by `items`: the list is now what it was up to
                                  `start`, then `items`
    ("k", name, items, gone)      keys of a dict were set or deleted
    ("|", name, added, gone)      elements of a set were added or discarded
    ("v", name, value)            a param was `.set()`

`apply()` carries them out in place, so that other names for the same list or dict see them too.
What is never carried: the attributes that the framework itself keeps (`ignored`), and objects that cannot be pickled
(`Absent` stands for them in a worker and says so when it is used).
"""

from __future__ import annotations

import marshal
import operator
import zlib
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

from mpsteps._ipc import wire
from mpsteps.errors import SerializationError

Change = Tuple[Any, ...]

_ATOMS = frozenset({type(None), bool, int, float, str, bytes, complex})
_MARSHAL_VERSION = 2  # later versions write flags that depend on reference counts: equal values, unequal bytes


class Absent:
    """Stands in a worker for an attribute that could not travel; any use of it raises SerializationError."""

    def __init__(self, name: str, reason: str) -> None:
        self.__dict__["_absent"] = (name, reason)

    def _refuse(self, *_args: Any, **_kwargs: Any) -> Any:
        name, reason = self.__dict__["_absent"]
        error = SerializationError(
            f"attribute '{name}' of the protocol cannot travel to a worker process ({reason}): make it inside the "
            "step that uses it, or run that step with @step(local=True)"
        )
        error.part = f"attribute '{name}'"
        raise error

    def __reduce__(self) -> Tuple[Any, ...]:
        return Absent, self.__dict__["_absent"]

    def __repr__(self) -> str:
        return "<attribute '{}' that cannot travel>".format(self.__dict__["_absent"][0])

    __getattr__ = __setattr__ = __call__ = __enter__ = __exit__ = __iter__ = __len__ = __getitem__ = _refuse
    __setitem__ = __delitem__ = __contains__ = __bool__ = __int__ = __float__ = __add__ = __next__ = _refuse


def _fingerprint(value: Any, anchor: Any) -> Any:
    """Equal for equal content of containers and objects; cheap enough to take after every step.

    Plain nested containers go through marshal; arrays through a checksum of their buffer, anything else through
    pickle. Of large content only the hash is kept.
    """
    dtype = getattr(value, "dtype", None)
    if dtype is not None and hasattr(value, "flags") and hasattr(value, "shape"):
        return _array_fingerprint(value, dtype, anchor)
    try:
        data = marshal.dumps(value, _MARSHAL_VERSION)
    except ValueError:  # an object marshal does not know, somewhere inside
        data = wire.fingerprint(value, anchor)
    return data if len(data) < 512 else (len(data), hash(data))


def _array_fingerprint(array: Any, dtype: Any, anchor: Any) -> Any:
    if getattr(array, "_mpsteps_shared", False):  # all look at the same memory: what is written there need not travel
        return ("shared", array.shape, array.strides, array.__array_interface__["data"][0])
    if getattr(dtype, "hasobject", False):
        return wire.fingerprint(array, anchor)
    if not array.flags.writeable:
        return (array.shape, str(dtype), "read-only")
    data = array if array.flags.c_contiguous else array.copy()
    return (array.shape, str(dtype), zlib.crc32(memoryview(data).cast("B") if array.size else b""))


def _detail(value: Any, anchor: Any) -> Any:
    """What is needed to describe a later change of a container as a small operation."""
    kind = type(value)
    if kind is list:
        return len(value), _fingerprint(value, anchor)
    if kind is dict:
        items = list(value.items())  # at once: a local step may be writing to it
        return {k: v if type(v) in _ATOMS else _Mark(v, anchor) for k, v in items}
    if kind is set:
        return set(value)
    return None


class _Mark:
    """What an attribute was: its identity, and for what can change in place a fingerprint. `anchor`: see `wire`."""

    __slots__ = ("anchor", "box", "detail", "empty", "print", "scalar", "value")

    def __init__(self, value: Any, anchor: Any) -> None:
        self.anchor = anchor
        self.value = value
        self.scalar = _is_scalar(value)
        self.box = self.scalar and _is_box(value)
        self.empty = type(value) in (list, dict, set) and not value
        if self.scalar:
            self.print: Any = value.get()
            self.detail: Any = None
        else:
            try:
                self.print = _fingerprint(value, anchor)
                self.detail = _detail(value, anchor)
            except Exception:  # it cannot travel: only its identity can be watched
                self.print = self.detail = None

    def same(self, value: Any) -> bool:
        """Whether `value` is still what was marked."""
        if value is not self.value:
            return False
        if self.scalar:
            now = value.get()
            return now is self.print or (type(now) is type(self.print) and now == self.print)
        try:
            return self.print is None or bool(_fingerprint(value, self.anchor) == self.print)
        except Exception:  # it could be pickled before and now cannot: it changed, and sending it will say why
            return False


def _is_scalar(value: Any) -> bool:
    """Whether it is the value of a param, told by its methods so that scalars of pyworkflow count as well."""
    return hasattr(value, "get") and hasattr(value, "set") and hasattr(value, "hasValue")


def _is_box(value: Any) -> bool:
    """Whether a scalar is its `_objValue` and nothing else: it has ours or pyworkflow's plain `get` (which are not
    imported here)."""
    return getattr(type(value).get, "__qualname__", "") == "Scalar.get" and "_objValue" in vars(value)


_raw = operator.attrgetter("_objValue")


class Tracker:
    """Remembers the attributes of `target` and tells what has changed since.

    `ignored`: names of attributes that belong to the framework.
    """

    def __init__(self, target: Any, ignored: Iterable[str]) -> None:
        self._target = target
        self._ignored = frozenset(ignored)
        self._marks: Dict[str, Any] = {}
        for name, value in vars(target).items():
            self._remember(name, value)
        # What is compared after every step, in columns: names and values of all attributes, scalars with their raw
        # values, empty containers, and all else that can change in place. Mostly nothing has changed, and that must
        # cost next to nothing.
        self._names: List[str] = []
        self._values: List[Any] = []
        self._boxes: List[Any] = []
        self._raws: List[Any] = []
        self._empty: List[Any] = []
        self._watched: List[_Mark] = []

    def _remember(self, name: str, value: Any) -> None:
        if name in self._ignored or type(value) is Absent:
            return
        self._marks[name] = value if type(value) in _ATOMS else _Mark(value, self._target)

    def changes(self) -> List[Change]:
        """The operations that lead from the state at the last call to the state now; then now is remembered."""
        if self.unchanged():
            return []
        found = self._compare()
        self._line_up()
        return found

    def unchanged(self) -> bool:
        """Whether `changes` would surely find nothing: everything is as it was when it was lined up last."""
        attributes = vars(self._target)
        if (
            list(attributes) != self._names
            or not all(map(operator.is_, attributes.values(), self._values))
            or not all(map(operator.is_, map(_raw, self._boxes), self._raws))
            or any(self._empty)
        ):
            return False
        for mark in self._watched:  # noqa: SIM110  # a generator would cost half as much again
            if not mark.same(mark.value):
                return False
        return True

    def _line_up(self) -> None:
        """All from the marks, not from what is there now: another thread may have changed it meanwhile."""
        self._names, self._values = [], []
        watched: List[_Mark] = []
        for name, value in list(vars(self._target).items()):
            expected = value
            if name not in self._ignored and type(value) is not Absent:
                if name not in self._marks:
                    self._names = []  # it has just come: compare all next time
                    return
                expected = self._marks[name]
                if type(expected) is _Mark:
                    watched.append(expected)
                    expected = expected.value
            self._names.append(name)
            self._values.append(expected)
        boxes = [m for m in watched if m.box]
        self._boxes, self._raws = [m.value for m in boxes], [m.print for m in boxes]
        rest = [m for m in watched if not m.box]
        self._empty = [m.value for m in rest if m.empty]
        self._watched = [m for m in rest if not m.empty]

    def _compare(self) -> List[Change]:
        marks, ignored = self._marks, self._ignored
        attributes = vars(self._target)
        found: List[Change] = []
        missing = object()
        for name, value in list(attributes.items()):
            mark = marks.get(name, missing)
            if mark is value or name in ignored or type(value) is Absent:
                continue
            if type(mark) is _Mark and mark.same(value):
                continue
            if type(mark) is type(value) and type(value) in _ATOMS and mark == value:
                marks[name] = value
                continue
            found.extend(_difference(name, mark, value))
            self._remember(name, value)
        if not marks.keys() <= attributes.keys():
            for name in [n for n in marks if n not in attributes]:
                del marks[name]
                found.append(("-", name))
        return found

    def apply(self, changes: Iterable[Change], pending: Sequence[Change] = ()) -> None:
        """Carry out changes that others made, without reporting them as this object's own.

        `pending`: changes reported from here that those others had not heard of. They come after `changes` in the
        truth: what they appended to the same lists is set aside meanwhile, and they are carried out again.
        """
        changes = list(changes)
        names = {change[1] for change in changes}
        again = [change for change in pending if change[1] in names]
        if again:
            self._set_aside(again)
        for change in changes:
            apply(self._target, change)
        for change in again:
            self._redo(change)
        attributes = vars(self._target)
        for name in names:
            if name in attributes:
                self._remember(name, attributes[name])
            else:
                self._marks.pop(name, None)
        self._names.clear()  # the next comparison lines everything up anew

    def _set_aside(self, pending: Sequence[Change]) -> None:
        """Take what was appended off the ends of lists, where nothing but appending happened to them."""
        replaced = {change[1] for change in pending if change[0] in "=~-"}
        for name in {change[1] for change in pending} - replaced:
            value = vars(self._target).get(name)
            count = sum(len(change[3]) for change in pending if change[0] == "+" and change[1] == name)
            if count and type(value) is list:
                del value[-count:]

    def _redo(self, change: Change) -> None:
        value = vars(self._target).get(change[1])
        if change[0] == "+" and type(value) is list:
            value.extend(change[3])
        else:
            apply(self._target, change)


def _difference(name: str, mark: Any, value: Any) -> List[Change]:
    """The smallest description of how an attribute came to be `value`."""
    if type(mark) is not _Mark or mark.value is not value or mark.print is None:
        return [("=", name, value)]
    if mark.scalar:
        return [("v", name, value.get())]
    kind = type(value)
    if kind is list:
        start, old_print = mark.detail
        if len(value) > start and _fingerprint(value[:start], mark.anchor) == old_print:
            return [("+", name, start, value[start:])]
    elif kind is dict:
        return _dict_difference(name, mark.detail, value)
    elif kind is set:
        return [("|", name, value - mark.detail, mark.detail - value)]
    return [("~", name, value)]


def _dict_difference(name: str, old: Dict[Any, Any], value: Dict[Any, Any]) -> List[Change]:
    missing = object()
    items = {}
    for k, v in list(value.items()):  # at once: a local step may be writing to it
        before = old.get(k, missing)
        if before is v or (type(before) is _Mark and before.same(v)):
            continue
        if type(before) is type(v) and type(v) in _ATOMS and before == v:
            continue
        items[k] = v
    return [("k", name, items, [k for k in old if k not in value])]


def apply(target: Any, change: Change) -> None:
    """Carry out one operation on `target`, in place where there is a place."""
    op, name = change[0], change[1]
    if op == "-":
        target.__dict__.pop(name, None)
        return
    now = target.__dict__.get(name)
    if op == "+" and type(now) is list:
        now[change[2] :] = change[3]
    elif op == "k" and type(now) is dict:
        now.update(change[2])
        for k in change[3]:
            now.pop(k, None)
    elif op == "|" and type(now) is set:
        now |= change[2]
        now -= change[3]
    elif op == "v" and _is_scalar(now):
        now.set(change[2])
    elif op == "=":
        target.__dict__[name] = change[2]
    elif op == "~":
        _replace_content(target, name, now, change[2])
    else:
        _rebuild(target, name, change)


def _replace_content(target: Any, name: str, now: Any, value: Any) -> None:
    """A container keeps its identity, so that other names for it see the change; anything else is replaced."""
    if type(now) is type(value) and type(value) is list:
        now[:] = value
    elif type(now) is type(value) and type(value) in (dict, set):
        now.clear()
        now.update(value)
    else:
        target.__dict__[name] = value


def _rebuild(target: Any, name: str, change: Change) -> None:
    """A change of a container that is no longer there (another step replaced or deleted it): start it anew."""
    op = change[0]
    if op == "+":
        target.__dict__[name] = list(change[3])
    elif op == "k":
        target.__dict__[name] = dict(change[2])
    elif op == "|":
        target.__dict__[name] = set(change[2])
    else:
        target.__dict__[name] = change[2]


def pack_changes(changes: List[Change], anchor: Any) -> bytes:
    """A parcel of changes, checked to load again; SerializationError names the attribute that cannot travel."""
    try:
        parcel = wire.pack(changes, anchor)
        if parcel[:1] == b"p":
            wire.unpack(parcel, anchor)
        return parcel
    except BaseException as problem:
        raise _blame(changes, problem, anchor) from problem


def _blame(changes: List[Change], problem: BaseException, anchor: Any) -> SerializationError:
    guilty: Optional[str] = None
    for change in changes:
        try:
            wire.unpack(wire.pack(change, anchor), anchor)
        except BaseException as reason:
            guilty, problem = change[1], reason
            break
    error = SerializationError(
        f"the step changed attribute '{guilty}' of the protocol to something that cannot travel back from a worker "
        f"process ({type(problem).__name__}: {problem}): keep a path or plain data there, or run the step with "
        "@step(local=True)"
    )
    error.part = f"attribute '{guilty}'"
    return error
