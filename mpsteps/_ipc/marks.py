"""What an attribute of `self` was: enough to see whether it is still that, and to say how it has changed.

A mark is made of a value; `same(value)` says whether it is still what was marked, `edit(value)` how it came to be
`value` (see `edits`), `follow(edit)` that the value has taken over an edit that others made.

Looking must be cheap, since it is done after every step: plain nested containers go through marshal, small arrays are
compared with a copy, large flat dicts and lists are not looked at at all until they change (see `untouched`), and
anything else goes through pickle. Of large content only a hash is kept.
"""

from __future__ import annotations

import collections
import marshal
import zlib
from typing import Any, Dict, Optional, Type, Union

from mpsteps._ipc import wire
from mpsteps._ipc.cells import changed_cells
from mpsteps._ipc.edits import ABSENT, ATOMS, Edit, carry_out, is_number, is_scalar, raw, replaced
from mpsteps._ipc.untouched import SMALL, DictWatch, ListWatch, changed_keys, is_flat, same_items

_MARSHAL_VERSION = 2  # later versions write flags that depend on reference counts: equal values, unequal bytes
_DICTS = frozenset({dict, collections.defaultdict, collections.OrderedDict, collections.Counter})
_CELLS_KEPT = 1 << 20
"""Bytes of an array that is kept as a copy, so that single cells can be told; of a larger one, a checksum."""


def fingerprint(value: Any, anchor: Any) -> Any:
    """Equal for equal content of containers and objects; cheap enough to take after every step.

    `anchor`: see `wire`. Raises what cannot be pickled.
    """
    dtype = getattr(value, "dtype", None)
    if dtype is not None and hasattr(value, "flags") and hasattr(value, "shape"):
        return _array_fingerprint(value, dtype, anchor)
    try:
        data = marshal.dumps(dict(value) if isinstance(value, dict) else value, _MARSHAL_VERSION)
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


class Mark:
    """Of anything that can change in place: its identity and a fingerprint. `box`: see `ParamMark`."""

    __slots__ = ("anchor", "print", "value")

    box = False

    def __init__(self, value: Any, anchor: Any) -> None:
        self.value = value
        self.anchor = anchor
        self.print: Any = None  # None: it cannot travel, so that only its identity is watched
        try:
            self._look()
        except Exception:
            self.print = None

    @property
    def empty(self) -> bool:
        """Whether it is a container with nothing in it."""
        return False

    def _look(self) -> None:
        self.print = fingerprint(self.value, self.anchor)

    def same(self, value: Any) -> bool:
        """Whether `value` is still what was marked."""
        if value is not self.value:
            return False
        try:
            return self.print is None or self._unchanged()
        except Exception:  # it could be pickled before and now cannot: it changed, and sending it will say why
            return False

    def _unchanged(self) -> bool:
        return bool(fingerprint(self.value, self.anchor) == self.print)

    def edit(self, value: Any) -> Edit:
        """How it came to be `value`."""
        if value is not self.value:
            return replaced(self.value, value)
        return ("~", value) if self.print is None else self._inner_edit()

    def _inner_edit(self) -> Edit:
        return ("~", self.value)

    def follow(self, edit: Edit) -> bool:
        """Whether the mark knows its value again after this edit, which is being made on it; else it is to be made
        anew."""
        return False


class ParamMark(Mark):
    """Of the value of a param. `box`: it is its `_objValue` and nothing else: it has ours or pyworkflow's plain `get`
    (which are not imported here)."""

    __slots__ = ("box",)

    def _look(self) -> None:
        self.box = False
        self.print = self.value.get()
        self.box = getattr(type(self.value).get, "__qualname__", "") == "Scalar.get" and "_objValue" in vars(self.value)

    def same(self, value: Any) -> bool:
        if value is not self.value:
            return False
        now = value.get()
        return now is self.print or (type(now) is type(self.print) and now == self.print)

    def edit(self, value: Any) -> Edit:
        if value is self.value:
            return ("v", value.get(), self.print)
        if is_scalar(value) and is_number(raw(value)) and is_number(self.print):
            return ("#", value, self.print)
        return replaced(self.value, value)


class ContainerMark(Mark):
    """Of a list, dict or set. `watch`: says whether a large flat one was touched; None: it is looked through."""

    __slots__ = ("watch",)

    def __init__(self, value: Any, anchor: Any) -> None:
        self.watch: Any = None
        super().__init__(value, anchor)

    @property
    def empty(self) -> bool:
        """Whether it is empty now."""
        return not self.value

    def _unchanged(self) -> bool:
        return bool(self.watch.clean()) if self.watch is not None else super()._unchanged()


class ListMark(ContainerMark):
    """Of a list: whether all that was in it is still where it was."""

    __slots__ = ("count",)

    watch: Optional[ListWatch]

    def _look(self) -> None:
        value = self.value
        self.count = len(value)
        if self.count > SMALL and is_flat(value):
            self.watch = ListWatch(value)
            self.print = ()
        else:
            self.print = fingerprint(value, self.anchor)

    def _inner_edit(self) -> Edit:
        value, count = self.value, self.count
        if len(value) > count and self._begins_the_same():
            return ("+", count, value[count:])
        return ("~", value)

    def _begins_the_same(self) -> bool:
        if self.watch is not None:
            return same_items(self.value, self.watch.copy, self.count)
        return bool(fingerprint(self.value[: self.count], self.anchor) == self.print)

    def follow(self, edit: Edit) -> bool:
        watch = self.watch
        if edit[0] != "+" or watch is None or not is_flat(edit[2]):
            return False
        watch.copy[edit[1] :] = edit[2]
        self.count = len(watch.copy)
        return True


class DictMark(ContainerMark):
    """Of a dict: what each of its items was."""

    __slots__ = ("items",)

    watch: Optional[DictWatch]

    def _look(self) -> None:
        value = self.value
        if len(value) > SMALL and is_flat(value):
            self.watch = DictWatch(value)
            self.items: Dict[Any, Any] = self.watch.copy
            self.print = ()
        else:
            self.print = fingerprint(value, self.anchor)
            items = list(value.items())  # at once: a local step may be writing to it
            self.items = {k: marked(v, self.anchor) for k, v in items}

    def _inner_edit(self) -> Edit:
        old, found = self.items, {}
        keys = changed_keys(self.value, old) if self.watch is not None else None
        for key, value in list(self.value.items()) if keys is None else [(k, self.value[k]) for k in keys]:
            edit = difference(old.get(key, ABSENT), value)
            if edit is not None:
                found[key] = edit
        for key in [key for key in old if key not in self.value] if keys is None else ():
            found[key] = ("-",)
        return ("d", found)

    def follow(self, edit: Edit) -> bool:
        """Flat ones only: they are too large to be walked through again for each item that others set."""
        watch = self.watch
        if watch is None or edit[0] != "d" or not all(_is_flat_edit(inner) for inner in edit[1].values()):
            return False
        for key, inner in edit[1].items():
            carry_out(watch.copy, key, inner)
        return True

    def arm(self) -> None:
        """The edit has been made."""
        if self.watch is not None:
            self.watch.arm()


def _is_flat_edit(edit: Edit) -> bool:
    return edit[0] == "-" or (edit[0] in "=n#" and is_flat((edit[1],)))


class SetMark(ContainerMark):
    """Of a set: its elements."""

    __slots__ = ("elements",)

    def _look(self) -> None:
        self.elements = set(self.value)
        self.print = ()

    def _unchanged(self) -> bool:
        return bool(self.value == self.elements)

    def _inner_edit(self) -> Edit:
        return ("|", self.value - self.elements, self.elements - self.value)


class ArrayMark(Mark):
    """Of a writable array that is not shared: a copy of its bytes, if it is not too large."""

    __slots__ = ("shape",)

    def _look(self) -> None:
        self.print, self.shape = self.value.tobytes(), (self.value.shape, self.value.dtype)

    def _unchanged(self) -> bool:
        array = self.value
        return (array.shape, array.dtype) == self.shape and array.tobytes() == self.print

    def _inner_edit(self) -> Edit:
        array = self.value
        if (array.shape, array.dtype) != self.shape or not array.dtype.itemsize:
            return ("~", array)
        return ("a", *changed_cells(array, self.print))


def marked(value: Any, anchor: Any) -> Any:
    """A mark of a value; an atom stands for itself."""
    kind = type(value)
    if kind in ATOMS:
        return value
    if is_scalar(value):
        return ParamMark(value, anchor)
    return _mark_type(value, kind)(value, anchor)


def _mark_type(value: Any, kind: type) -> Type[Mark]:
    if kind is list:
        return ListMark
    if kind in _DICTS:
        return DictMark
    if kind is set:
        return SetMark
    dtype = getattr(value, "dtype", None)
    if (
        dtype is not None and (kind.__module__, kind.__name__) == ("numpy", "ndarray") and value.flags.writeable
        and not dtype.hasobject and value.nbytes <= _CELLS_KEPT
    ):  # fmt: skip
        return ArrayMark
    return Mark


def difference(mark: Union[Mark, Any], value: Any) -> Optional[Edit]:
    """How what was marked (ABSENT: nothing was there) came to be `value`; None: it is the same."""
    if isinstance(mark, Mark):
        return None if mark.same(value) else mark.edit(value)
    if mark is value or (type(mark) is type(value) and type(value) in ATOMS and mark == value):
        return None
    return replaced(mark, value)
