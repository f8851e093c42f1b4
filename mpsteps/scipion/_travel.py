"""How Scipion's objects go from one process to another, and how it is seen that they have changed.

A Set travels as its path and attributes, without its connection to the database, which it opens again where it arrives.
Other protocols, projects and databases do not travel at all.

Attributes of a protocol are watched by fingerprints (`mpsteps._ipc.marks`). Here a fingerprint is never refused: of
what cannot be pickled it has the identity and, where there are any, the attributes. So that a list with one live object
in it is watched like any other, and only a change that would have to travel and cannot is an error.
"""

from __future__ import annotations

import logging
import marshal
import sqlite3
import threading
import types
from typing import Any, Dict, List, Optional, Set, Tuple, Type

import pyworkflow.object as pwobj
from pyworkflow.mapper.mapper import Mapper
from pyworkflow.mapper.sqlite_db import SqliteDb
from pyworkflow.protocol.executor import StepExecutor
from pyworkflow.protocol.protocol import Protocol, Step

from mpsteps._ipc import pickling
from mpsteps._ipc.edits import ATOMS

LOCK_TYPES: Tuple[type, ...] = (
    type(threading.Lock()), type(threading.RLock()), threading.Condition, threading.Semaphore, threading.Event,
    threading.Barrier,
)  # fmt: skip

_PARTS_OF_PROGRAM = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType)
_LEAVES: Tuple[type, ...] = (
    Step, pwobj.Pointer, pwobj.PointerList, pwobj.Set, Mapper, SqliteDb, StepExecutor, sqlite3.Connection,
    sqlite3.Cursor, logging.Logger, threading.Thread, *LOCK_TYPES,
)  # fmt: skip
"""What a fingerprint does not look into: that would be all of the project, or what reading alone changes."""
MADE_HERE = "_mpstepsMadeHere"
"""Attribute of a Set that a fork has made itself, see `_guard`."""
_NOT_OF_OBJECTS = frozenset({"_objParent", "_objCreation"})
_NOT_OF_SETS = frozenset({"_mapper", "_classesDict", MADE_HERE})
_HEAP_TYPE = 1 << 9
_PLAIN_BASES = (object, list, dict, set, tuple)

_simple: Dict[Type[Any], bool] = {}


def install() -> None:
    """From now on this process pickles Scipion's objects so."""
    pickling.add_reducer(reduce)
    pwobj.Object._mpstepsNoScalar = True  # see `edits.is_scalar`: attributes of classes, which nobody stores
    pwobj.Scalar._mpstepsNoScalar = False


def reduce(obj: Any, for_fingerprint: bool) -> Any:
    """See `pickling.add_reducer`."""
    if for_fingerprint:
        return _print_of(obj)
    if isinstance(obj, pwobj.Set):
        return _reduce_set(obj)
    if isinstance(obj, Protocol):
        raise TypeError(f"protocol {obj.getRunName()!r} stays in the main process")
    return NotImplemented


def _reduce_set(items: Any) -> Any:
    if items._mapper is not None and MADE_HERE in vars(items):
        items._mapper.commit()
    state = {name: value for name, value in vars(items).items() if name not in _NOT_OF_SETS}
    return _make_set, (type(items), state)


def _make_set(cls: Any, state: Dict[str, Any]) -> Any:
    items = cls.__new__(cls)
    vars(items).update(state, _mapper=None, _classesDict=None)
    return items


def _print_of(obj: Any) -> Any:
    if obj is str:
        return NotImplemented  # by its name: leaves are made of it
    if isinstance(obj, (*_PARTS_OF_PROGRAM, *_LEAVES)):
        return _leaf(obj)
    if isinstance(obj, pwobj.Object):
        flat = _flat(obj)
        if flat is not None:
            return str, (marshal.dumps(flat, 2),)
    cls = type(obj)
    simple = _simple.get(cls)
    if simple is None:
        simple = _simple[cls] = _is_simple(cls)
    if simple:
        return NotImplemented
    try:
        reduced = obj.__reduce_ex__(4)
    except Exception:  # it says that it cannot be pickled, in one way or another
        return _leaf(obj)
    return reduced if isinstance(reduced, tuple) else _leaf(obj)


def _flat(obj: Any) -> Optional[Tuple[Any, ...]]:
    """One of Scipion's objects as plain values, if it has no others: a protocol may have thousands of them, which are
    looked at after each step."""
    attributes = vars(obj)
    found: List[Any] = [type(obj).__name__, *attributes]
    for name, value in attributes.items():
        if type(value) in ATOMS:
            found.append(value)
        elif name in _NOT_OF_OBJECTS:
            continue
        elif isinstance(value, pwobj.Object) and not isinstance(value, _LEAVES):
            inner = _flat_scalar(value) if isinstance(value, pwobj.Scalar) else _flat(value)
            if inner is None:
                return None
            found.append(inner)
        else:
            return None
    return tuple(found)


def _flat_scalar(value: Any) -> Optional[Tuple[Any, ...]]:
    if isinstance(value, list):  # a CsvList: it has its items twice, and only those of the list are up to date
        return tuple(value) if all(type(item) in ATOMS for item in value) else None
    return (value._objValue,) if type(value._objValue) in ATOMS and not value.hasPointer() else None


def _leaf(obj: Any) -> Any:
    inside = None if isinstance(obj, (*_PARTS_OF_PROGRAM, *_LEAVES)) else getattr(obj, "__dict__", None)
    return str, (f"{type(obj).__qualname__} at {id(obj)}",), dict(inside) if inside else None


def _is_simple(cls: Type[Any]) -> bool:
    """Whether instances are pickled by their attributes alone, which cannot fail by itself."""
    plain: Set[Any] = {object.__reduce_ex__, object.__reduce__}
    if not {cls.__reduce_ex__, cls.__reduce__} <= plain:
        return False
    if getattr(cls, "__getstate__", None) is not getattr(object, "__getstate__", None):
        return False
    return all(base.__flags__ & _HEAP_TYPE or base in _PLAIN_BASES for base in cls.__mro__)
