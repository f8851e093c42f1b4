"""How the functions of a pool's steps travel: once and by number, or every time, if they may differ each time."""

from __future__ import annotations

import sys
import types
import weakref
from typing import Any, Dict, List, Optional, Set, Union

from mpsteps._carried import Carried, carried_by, travels_by_value
from mpsteps._ipc import wire
from mpsteps.engines.base import Message

MOST_BY_VALUE = 1000
"""So many parcels of functions that workers cannot import are kept, here and in each worker; what comes then, and what
is larger than"""
LARGEST_BY_VALUE = 1 << 20
"""bytes, travels every time."""
MOST_CHANGES = 8
"""So does a function that has been found changed so often."""
_PUBLISHABLE = frozenset({types.FunctionType, types.BuiltinFunctionType, type})


class _ByValue:
    """A function that workers cannot import. `number`: its parcel's, as long as `carried` is unchanged."""

    def __init__(self) -> None:
        self.number = -1
        self.carried: Optional[Carried] = None
        self.chances = MOST_CHANGES


class Functions:
    """Which functions have a number, and which worker knows which numbers."""

    def __init__(self) -> None:
        self._numbers: Dict[Any, int] = {}
        self._parcels: List[bytes] = []  # by number
        self._known: Dict[int, Set[int]] = {}  # worker -> numbers of the functions it has been sent
        self._orders: List[Message] = []
        # Those that were packed before: the first time nobody knows whether there will be a second.
        self._by_value: weakref.WeakKeyDictionary[Any, _ByValue] = weakref.WeakKeyDictionary()
        self._count_by_value = 0

    def pack(self, worker: int, fn: Any) -> Union[int, bytes]:
        """What stands for `fn` in a step message to `worker`. Raises what the pickling of `fn` raises.

        A number where the worker can import the function, or where what it carries (closure, globals of __main__) is
        as it was the last time, which only some functions tell at a glance; else a parcel.
        """
        number = self._numbers.get(fn) if type(fn) in _PUBLISHABLE else None
        if number is None and type(fn) is types.FunctionType:
            number = self._number_by_value(fn)
        if number is None:
            if not _is_importable(fn):
                return wire.pack(fn)
            parcel = wire.pack_name(fn)
            number = self._numbers[fn] = len(self._parcels)
            self._parcels.append(parcel)
        known = self._known.setdefault(worker, set())
        if number not in known:
            known.add(number)
            self._orders.append((-wire.FUNCTION, number, self._parcels[number]))
        return number

    def _number_by_value(self, fn: types.FunctionType) -> Optional[int]:
        kept = self._by_value.get(fn)
        if kept is None:
            self._by_value[fn] = _ByValue()
            return None
        if kept.carried is not None and kept.carried.is_unchanged():
            return kept.number
        if not kept.chances or self._count_by_value >= MOST_BY_VALUE or _is_importable(fn):
            return None
        kept.chances -= 1
        carried = carried_by(fn, _is_importable)
        if carried is None:
            kept.carried, kept.chances = None, 0
            return None
        parcel = wire.pack(fn)
        if len(parcel) > LARGEST_BY_VALUE or not carried.is_unchanged():  # in another thread, meanwhile
            return None
        kept.carried, kept.number = carried, len(self._parcels)
        self._parcels.append(parcel)
        self._count_by_value += 1
        return kept.number

    def take_orders(self) -> List[Message]:
        """Orders that must reach the worker before the messages that were made since the last call."""
        if not self._orders:
            return []
        orders, self._orders = self._orders, []
        return orders

    def forget_worker(self, worker: int) -> None:
        """A worker is no more."""
        self._known.pop(worker, None)


def _is_importable(fn: Any) -> bool:
    """Whether a worker finds this very function under its module and name; not so for what is in __main__."""
    if type(fn) not in _PUBLISHABLE:
        return False
    module, name = getattr(fn, "__module__", None), getattr(fn, "__qualname__", "")
    if type(module) is not str or module == "__main__" or "." in name:
        return False
    return getattr(sys.modules.get(module), name, None) is fn and not travels_by_value(module)
