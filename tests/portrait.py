"""A picture of an object's whole state, to show that something left it as it was."""

from __future__ import annotations

import collections
from typing import Any


def portrait(thing: Any) -> Any:
    """The state of `thing` as nested tuples: equal if and only if everything in it is, also the order in queues."""
    if isinstance(thing, dict):
        return ("dict", tuple(sorted(((repr(k), portrait(v)) for k, v in thing.items()), key=lambda pair: pair[0])))
    if isinstance(thing, (set, frozenset)):
        return ("set", tuple(sorted(repr(v) for v in thing)))
    if isinstance(thing, (list, tuple, collections.deque)):
        return (type(thing).__name__, tuple(portrait(v) for v in thing))
    if isinstance(thing, (int, float, str, bytes, bytearray, type(None))):
        return repr(thing)
    state = dict(vars(thing)) if hasattr(thing, "__dict__") else {}
    for cls in type(thing).__mro__:
        state.update((name, getattr(thing, name)) for name in getattr(cls, "__slots__", ()))
    return (type(thing).__name__, portrait(state))
