"""Whether a large dict or list has been changed since it was looked at last, without walking through it.

Only for *flat* ones, of which every key and value is an atom or a tuple of atoms: these can change in no other way
than by the container's own operations. What says so is CPython itself:

- dicts, from 3.12 on: a watcher (`PyDict_AddWatcher`) is called before the first change, and sets a flag;
- dicts, before: a version tag in the dict's header, which every change sets to a number never used before;
- lists: the pointers of their items are compared as one block of memory with those of a copy. The copy holds the
  items, so that no other object can have the address of one of them.

Each way is tried out when it is first needed. Where none works (another Python, no ctypes), the container is compared
with its copy, item by item: right, and as slow as it is long.
"""

from __future__ import annotations

import atexit
import itertools
import operator
from typing import Any, Callable, ClassVar, Dict, List, Optional

from mpsteps._ipc.edits import ATOMS

SMALL = 128
"""Up to this many items it is cheaper to look at all of them."""
_BLOCK = 4096


def is_flat(container: Any) -> bool:
    """Whether all that is in a dict, list or tuple is an atom, or a tuple of such."""
    if isinstance(container, dict):
        return is_flat(list(container)) and is_flat(list(container.values()))
    kinds = set(map(type, container))
    if kinds <= ATOMS:
        return True
    if not kinds <= ATOMS | {tuple}:
        return False
    inner = [item for item in container if type(item) is tuple]
    return is_flat(list(itertools.chain.from_iterable(inner)))


class DictWatch:
    """Watches a flat dict. `copy` is what it was when it was armed last."""

    __slots__ = ("_clean", "copy", "value")

    def __init__(self, value: Dict[Any, Any]) -> None:
        self.value = value
        self.copy = dict(value)
        self._clean: Callable[[], bool] = self._equal
        self.arm()

    def arm(self) -> None:
        """`value` and `copy` are the same now: look out for changes from here on."""
        self._clean = self._equal  # lets go of the last watcher, before the next one is there
        self._clean = _watcher(self.value) or self._equal

    def clean(self) -> bool:
        """Whether nothing has been changed since."""
        return self._clean()

    def _equal(self) -> bool:
        value, copy = self.value, self.copy
        return (
            len(value) == len(copy)
            and all(map(operator.is_, value, copy))
            and all(map(operator.is_, value.values(), copy.values()))
        )


def _watcher(value: Dict[Any, Any]) -> Optional[Callable[[], bool]]:
    """A function that says whether the dict is untouched since now; None: this Python has no means."""
    global _make
    if _make is None:
        _make = _find_means()
    return _make(value)


def _find_means() -> Callable[[Dict[Any, Any]], Optional[Callable[[], bool]]]:
    for candidate in (_by_version_tag, _Watchers.make):
        try:
            if _works(candidate):
                return candidate
        except Exception:  # no ctypes, or a Python that is made in another way
            continue
    return lambda value: None


_make: Optional[Callable[[Dict[Any, Any]], Optional[Callable[[], bool]]]] = None


def _works(candidate: Callable[[Dict[Any, Any]], Optional[Callable[[], bool]]]) -> bool:
    """Try it: reading must leave it clean, and each way to change a dict must be noticed."""
    ways: List[Callable[[Dict[Any, Any]], Any]] = [
        lambda d: d.__setitem__(1, "other"), lambda d: d.__setitem__("new", 1), lambda d: d.pop(2),
        lambda d: d.popitem(), lambda d: d.update({3: "x"}), lambda d: d.clear(), lambda d: d.setdefault("s", 0),
        lambda d: d.__delitem__(4), lambda d: d.update(fresh=1),
    ]  # fmt: skip
    for way in ways:
        probe = {i: str(i) for i in range(SMALL)}
        clean = candidate(probe)
        if clean is None or not clean() or probe.get(1) != "1" or len(list(probe.items())) != SMALL or not clean():
            return False
        way(probe)
        if clean():
            return False
    return True


def _by_version_tag(value: Dict[Any, Any]) -> Optional[Callable[[], bool]]:
    """PyDictObject up to 3.11: reference count, type, number of items, version tag."""
    import ctypes
    import sys

    if sys.implementation.name != "cpython" or sys.version_info >= (3, 12):
        return None
    tag = ctypes.c_uint64.from_address(id(value) + 3 * ctypes.sizeof(ctypes.c_void_p))
    seen = tag.value
    return lambda: tag.value == seen


class _Watchers:
    """The one watcher of this process. `flags`: for each dict that is watched, by address, a list for each who watches
    it; an item in that list means that the dict has been changed.

    An address is ours as long as its `_Watched` lives, which holds the dict. The callback takes itself off at the first
    change, so that filling a dict calls it once.
    """

    number = -1
    flags: ClassVar[Dict[int, List[List[bool]]]] = {}
    watch: Any = None
    unwatch: Any = None
    _callback: Any = None

    @classmethod
    def make(cls, value: Dict[Any, Any]) -> Optional[Callable[[], bool]]:
        """Watch it from now on."""
        if cls.number < 0:
            cls._start()
        return _Watched(value).clean

    @classmethod
    def _start(cls) -> None:
        import ctypes
        import sys

        if not getattr(sys, "_is_gil_enabled", lambda: True)():
            raise RuntimeError("another thread could change the dict while its watcher is asked")
        kind = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
        of_dict = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p)
        unwatch = of_dict(("PyDict_Unwatch", ctypes.pythonapi))
        flags = cls.flags

        def before_change(_event: int, address: int, _key: Any, _value: Any) -> int:
            for flag in flags.pop(address, ()):
                flag.append(True)
            unwatch(cls.number, address)
            return 0

        cls._callback = kind(before_change)
        cls.watch, cls.unwatch = of_dict(("PyDict_Watch", ctypes.pythonapi)), unwatch
        clear = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_int)(("PyDict_ClearWatcher", ctypes.pythonapi))
        cls.number = ctypes.PYFUNCTYPE(ctypes.c_int, kind)(("PyDict_AddWatcher", ctypes.pythonapi))(cls._callback)
        atexit.register(clear, cls.number)  # before the callback goes


class _Watched:
    """A dict that is watched by one, from here to its first change."""

    __slots__ = ("_flag", "_value")

    def __init__(self, value: Dict[Any, Any]) -> None:
        self._value = value
        self._flag: List[bool] = []
        _Watchers.flags.setdefault(id(value), []).append(self._flag)
        _Watchers.watch(_Watchers.number, id(value))

    def clean(self) -> bool:
        return not self._flag

    def __del__(self) -> None:
        address = id(self._value)
        left = [flag for flag in _Watchers.flags.get(address, ()) if flag is not self._flag]
        if left:
            _Watchers.flags[address] = left
        elif _Watchers.flags.pop(address, None) is not None:
            _Watchers.unwatch(_Watchers.number, address)


class ListWatch:
    """Watches a flat list. `copy` is what it was when it was armed last."""

    __slots__ = ("copy", "value")

    def __init__(self, value: List[Any]) -> None:
        self.value = value
        self.copy = list(value)

    def clean(self) -> bool:
        """Whether it has the very items that it had."""
        return len(self.value) == len(self.copy) and same_items(self.value, self.copy, len(self.copy))


def same_items(one: List[Any], two: List[Any], count: int) -> bool:
    """Whether the first `count` items of two lists (which must be that long) are the same objects."""
    global _same
    if _same is None:
        _same = _find_comparison()
    return _same(one, two, count)


def changed_keys(value: Dict[Any, Any], old: Dict[Any, Any]) -> Optional[List[Any]]:
    """The keys of `value` that `old` has not, or with another object; None if that is not all: keys were deleted, or
    stand in another order. Compares blocks of pointers, and looks only into those that differ."""
    keys, values, old_keys, old_values = list(value), list(value.values()), list(old), list(old.values())
    count = len(old_keys)
    if len(keys) < count or not same_items(keys, old_keys, count):
        return None
    changed: List[Any] = []
    for start in range(0, count, _BLOCK):
        now, before = values[start : min(start + _BLOCK, count)], old_values[start : start + _BLOCK]
        if not same_items(now, before, len(before)):
            changed.extend(itertools.compress(keys[start : start + _BLOCK], map(operator.is_not, now, before)))
    return changed + keys[count:]


_same: Optional[Callable[[Any, Any, int], bool]] = None


def _by_items(one: List[Any], two: List[Any], count: int) -> bool:
    return all(map(operator.is_, one[:count], two[:count]))


def _find_comparison() -> Callable[[Any, Any, int], bool]:
    try:
        import ctypes
        import sys

        if sys.implementation.name != "cpython":
            return _by_items
        width = ctypes.sizeof(ctypes.c_void_p)
        pointer = ctypes.c_void_p.from_address
        compare = ctypes.PyDLL(None).memcmp  # with the interpreter lock held: nobody can resize the lists meanwhile
        compare.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
        compare.restype = ctypes.c_int

        def by_memory(one: List[Any], two: List[Any], count: int) -> bool:
            """PyListObject: reference count, type, number of items, address of the items."""
            a, b = pointer(id(one) + 3 * width).value, pointer(id(two) + 3 * width).value
            return count == 0 or compare(a, b, count * width) == 0

        probe, other = [object() for _ in range(9)], object()
        changed = [*probe[:8], other]
        if by_memory(probe, list(probe), 9) and by_memory(probe, changed, 8) and not by_memory(probe, changed, 9):
            return by_memory
    except Exception:  # no ctypes, or none that finds memcmp
        return _by_items
    return _by_items
