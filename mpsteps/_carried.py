"""What a function that travels by value carries with it, and whether all of that is still as it was.

A function of `__main__`, a lambda, a closure is put into its parcel together with what it refers to: globals, cells,
defaults, other such functions. To pack that for every call costs more than all else that is done for a call. So where
everything that a function carries can be compared at a glance (numbers, texts, modules, what a worker can import, and
functions for which the same is true), one parcel serves until something of it has been changed.

A worker then has one function for many calls. Functions that would see that (they assign globals or variables of the
function around them, or set attributes of functions) are packed for every call, and so is what carries a list, or any
other object, which may change without being another one.
"""

from __future__ import annotations

import sys
import types
import weakref
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Set, Tuple

_ATOMS = frozenset({int, float, complex, bool, str, bytes, type(None)})
_MISSING = object()
_MOST = 50  # functions, and names of globals in each
_REVEALING = frozenset({"globals", "vars", "locals", "setattr", "delattr", "exec", "eval", "__dict__", "__globals__"})
"""Who uses these may see what is only looked at by its names here."""


class _Function(NamedTuple):
    """One function: what it was made of, and what its cells and its globals are (`_MISSING`: there was none). Of
    functions there are weak references only: what is looked at here is not kept alive."""

    function: weakref.ref[Any]
    code: types.CodeType
    defaults: Optional[Tuple[Any, ...]]
    cells: Tuple[Any, ...]
    names: Tuple[Tuple[str, Any], ...]

    def is_unchanged(self) -> bool:
        """Whether all of it is the very same."""
        function = self.function()
        if (
            function is None
            or function.__code__ is not self.code
            or function.__defaults__ is not self.defaults
            or function.__kwdefaults__ is not None
            or function.__dict__
        ):
            return False
        names = function.__globals__
        return all(_is(names.get(name, _MISSING), value) for name, value in self.names) and all(
            _is(_content(cell), value) for cell, value in zip(function.__closure__ or (), self.cells)
        )


class Carried:
    """What `of` has found."""

    def __init__(self, functions: List[_Function]) -> None:
        self._functions = functions

    def is_unchanged(self) -> bool:
        """Whether a parcel that was made then is what would be made now."""
        return all(f.is_unchanged() for f in self._functions)


def travels_by_value(module: str) -> bool:
    """Whether the user wants what is in a module to travel by value, and the module itself, too."""
    cloudpickle = sys.modules.get("cloudpickle")  # who has not loaded it has not said so
    wanted = cloudpickle.list_registry_pickle_by_value() if cloudpickle is not None else ()
    return any(module == name or module.startswith(f"{name}.") for name in wanted)


def carried_by(function: types.FunctionType, is_importable: Callable[[Any], bool]) -> Optional[Carried]:
    """What a function carries; None if that cannot be compared at a glance."""
    found: Dict[int, _Function] = {}
    todo: List[types.FunctionType] = [function]
    while todo:
        each = todo.pop()
        if id(each) in found:
            continue
        looked_at = _look_at(each, is_importable, todo)
        if looked_at is None or len(found) >= _MOST:
            return None
        found[id(each)] = looked_at
    knows_one = len(found) > 1 or any(_is(function, value) for _, value in found[id(function)].names)
    if knows_one and any(_operations(f.code) & {"STORE_ATTR", "DELETE_ATTR"} for f in found.values()):
        return None  # of one of these functions, perhaps
    return Carried(list(found.values()))


def _look_at(
    function: types.FunctionType, is_importable: Callable[[Any], bool], todo: List[types.FunctionType]
) -> Optional[_Function]:
    """One function; those that it refers to are added to `todo`. None: it carries something else."""
    code, defaults = function.__code__, function.__defaults__
    operations, names = _operations(code), _names(code)
    if (
        function.__kwdefaults__ is not None
        or function.__dict__
        or any(type(value) not in _ATOMS for value in defaults or ())
        or "STORE_GLOBAL" in operations
        or "DELETE_GLOBAL" in operations
        or _assigned_cells(code) & set(code.co_freevars)
        or names & _REVEALING
        or len(names) > _MOST
    ):
        return None
    cells = [_content(cell) for cell in function.__closure__ or ()]
    found = {name: function.__globals__.get(name, _MISSING) for name in names}
    for value in (*cells, *found.values()):
        if value is _MISSING or type(value) in _ATOMS or is_importable(value) or _is_module(value):
            continue
        if type(value) is not types.FunctionType:
            return None
        todo.append(value)
    return _Function(
        weakref.ref(function), code, defaults, tuple(map(_held, cells)), tuple((n, _held(v)) for n, v in found.items())
    )


def _held(value: Any) -> Any:
    return weakref.ref(value) if type(value) is types.FunctionType else value


def _is(now: Any, then: Any) -> bool:
    """Whether a value is the one that was `_held`."""
    return now is then or (type(then) is weakref.ref and now is then() and now is not None)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing was assigned yet, or it was deleted
        return _MISSING


def _is_module(value: Any) -> bool:
    if type(value) is not types.ModuleType:
        return False
    name = value.__name__
    return sys.modules.get(name) is value and name != "__main__" and not travels_by_value(name)


def _codes(code: types.CodeType) -> List[types.CodeType]:
    """That of a function, and of the functions inside it."""
    found = [code]
    for each in found:
        found.extend(c for c in each.co_consts if type(c) is types.CodeType)
    return found


def _names(code: types.CodeType) -> Set[str]:
    """Of globals, and (since nobody can tell without looking closer) of attributes."""
    return {name for each in _codes(code) for name in each.co_names}


def _operations(code: types.CodeType) -> Set[str]:
    import dis  # most pools have no functions for which this is asked

    return {i.opname for each in _codes(code) for i in dis.get_instructions(each)}


def _assigned_cells(code: types.CodeType) -> Set[Any]:
    import dis

    return {
        i.argval for each in _codes(code) for i in dis.get_instructions(each)
        if i.opname in ("STORE_DEREF", "DELETE_DEREF")
    }  # fmt: skip
