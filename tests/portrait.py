"""A picture of an object's whole state, to show that something left it as it was."""

from __future__ import annotations

import collections
from typing import Any, Dict, Optional


def portrait(thing: Any, seen: Optional[Dict[int, int]] = None) -> Any:
    """The state of `thing` as nested tuples: equal if and only if everything in it is, also the order in queues.
    `seen`: objects that are in the picture already, by id, with their numbers: they are not painted twice."""
    seen = {} if seen is None else seen
    if isinstance(thing, dict):
        items = sorted(((repr(k), v) for k, v in thing.items()), key=lambda pair: pair[0])
        return ("dict", tuple((k, portrait(v, seen)) for k, v in items))
    if isinstance(thing, (set, frozenset)):
        return ("set", tuple(sorted(repr(v) for v in thing)))
    if isinstance(thing, (list, tuple, collections.deque)):
        return (type(thing).__name__, tuple(portrait(v, seen) for v in thing))
    if isinstance(thing, (int, float, str, bytes, bytearray, type(None))):
        return repr(thing)
    if id(thing) in seen:
        return (type(thing).__name__, seen[id(thing)])
    seen[id(thing)] = len(seen)
    state = dict(vars(thing)) if hasattr(thing, "__dict__") else {}
    for cls in type(thing).__mro__:
        state.update((name, getattr(thing, name)) for name in getattr(cls, "__slots__", ()))
    return (type(thing).__name__, portrait(state, seen))
