"""How the functions of a pool's steps travel: those that a worker can import once and by number, others every time."""

from __future__ import annotations

import sys
import types
from typing import Any, Dict, List, Set, Union

from mpsteps._ipc import wire
from mpsteps.engines.base import Message

_PUBLISHABLE = frozenset({types.FunctionType, types.BuiltinFunctionType, type})


class Functions:
    """Which functions have a number, and which worker knows which numbers."""

    def __init__(self) -> None:
        self._numbers: Dict[Any, int] = {}
        self._parcels: List[bytes] = []  # by number
        self._known: Dict[int, Set[int]] = {}  # worker -> numbers of the functions it has been sent
        self._orders: List[Message] = []

    def pack(self, worker: int, fn: Any) -> Union[int, bytes]:
        """What stands for `fn` in a step message to `worker`. Raises what the pickling of `fn` raises.

        A number where the worker can import the function; else a parcel each time, since its state (closure, globals of
        __main__) may have changed since the last time.
        """
        number = self._numbers.get(fn) if type(fn) in _PUBLISHABLE else None
        if number is None:
            parcel = wire.pack(fn)
            if not _is_importable(fn):
                return parcel
            number = self._numbers[fn] = len(self._parcels)
            self._parcels.append(parcel)
        known = self._known.setdefault(worker, set())
        if number not in known:
            known.add(number)
            self._orders.append((-wire.FUNCTION, number, self._parcels[number]))
        return number

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
    return getattr(sys.modules.get(module), name, None) is fn and module not in _by_value()


def _by_value() -> Set[str]:
    """Modules whose functions the user wants to travel by value."""
    import cloudpickle

    return set(cloudpickle.list_registry_pickle_by_value())
