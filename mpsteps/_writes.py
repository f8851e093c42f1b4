"""What the code of a step does with an attribute of `self`, told from its source: does it count, or does it set?

Asked only when two steps that ran at the same time have changed the same attribute (see `_ipc.merge`). It looks at the
step's function and at all methods and functions whose names stand in it, and in those, and so on.

    self.n += x, self.n = self.n + x, self.d[k] = self.d.get(k, 0) + x    adds
    self.d[k] = 0, [], {} under an `if` or `except`                       begins, where there was nothing
    any other assignment, setattr                                          sets

Local names for (a part of) an attribute are followed: `stats = self.stats[key]; stats['n'] += 1`. What is given to
another function under another name is not: then it is not known what happens there, and numbers conflict.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
import types
from typing import Any, Callable, Dict, Iterator, List, Optional, Set, Tuple, Union

from mpsteps._ipc.merge import UNKNOWN, Writes

_MOST_FUNCTIONS = 300
_Place = Tuple[str, bool]
"""Name of an attribute, and whether what is inside of it is meant."""
_ANY = "*"
_PARTS = frozenset({"get", "setdefault", "pop", "values", "items"})


class StepWrites:
    """What was found for one function: for each place, how it is written."""

    def __init__(self, ways: Dict[_Place, Set[str]]) -> None:
        self._ways = ways

    def _of(self, name: str, inside: bool) -> Set[str]:
        return self._ways.get((name, inside)) or self._ways.get((_ANY, False), set())

    def adds(self, name: str, inside: bool) -> bool:
        """It only adds or subtracts, and perhaps begins with a zero."""
        ways = self._of(name, inside)
        return "add" in ways and "set" not in ways

    def begins(self, name: str, inside: bool) -> bool:
        """It assigns nothing but empty beginnings."""
        return "set" not in self._of(name, inside)

    def sets(self, name: str, inside: bool) -> bool:
        """It only assigns."""
        ways = self._of(name, inside)
        return bool(ways) and "add" not in ways


class WritesOf:
    """Finds it out, once for each function, for steps of protocols of the class `owner`."""

    def __init__(self, owner: type) -> None:
        self._owner = owner
        self._known: Dict[Any, Writes] = {}

    def __call__(self, function: Union[str, Callable[..., Any], Any]) -> Writes:
        """`function`: the name of a method, or what else a step is made of."""
        key = function if isinstance(function, str) else getattr(function, "__func__", function)
        try:
            found = self._known.get(key)
            if found is None:
                found = self._known[key] = self._look(key)
            return found
        except Exception:  # code that nobody can read: it is treated as not known, and conflicts say so
            return UNKNOWN

    def _look(self, function: Any) -> Writes:
        todo = list(self._methods(function)) if isinstance(function, str) else [function]
        seen: Set[Any] = set()
        ways: Dict[_Place, Set[str]] = {}
        readable = False
        while todo and len(seen) < _MOST_FUNCTIONS:
            f = inspect.unwrap(todo.pop())
            code = getattr(f, "__code__", None)
            if code is None or code in seen or str(getattr(f, "__module__", "")).split(".")[0] == "mpsteps":
                continue
            seen.add(code)
            tree = _tree(f)
            if tree is None:
                if len(seen) == 1:
                    return UNKNOWN
                continue
            readable = True
            scan = _Scan(ways)
            scan.visit(tree)
            for name in scan.names:
                todo.extend(self._methods(name))
                other = f.__globals__.get(name)
                if isinstance(other, types.FunctionType):
                    todo.append(other)
        return StepWrites(ways) if readable else UNKNOWN

    def _methods(self, name: str) -> Iterator[Any]:
        """All functions of this name in the class and its bases."""
        for cls in self._owner.__mro__:
            found = vars(cls).get(name)
            found = getattr(found, "__func__", found)  # of a static or class method
            for f in (found.fget, found.fset) if isinstance(found, property) else (found,):
                if isinstance(f, types.FunctionType):
                    yield f


def _tree(function: Any) -> Optional[ast.AST]:
    try:
        lines, _ = inspect.getsourcelines(function.__code__)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, SyntaxError, TypeError, ValueError):  # typed at a prompt; a lambda in the middle of a call
        return None
    name = function.__code__.co_name
    return tree if any(getattr(node, "name", name) == name for node in tree.body) else None  # else: another file by now


class _Scan(ast.NodeVisitor):
    """One function. `names`: what it mentions and may call."""

    def __init__(self, ways: Dict[_Place, Set[str]]) -> None:
        self._ways = ways
        self._aliases: Dict[str, _Place] = {}
        self._guards = 0
        self.names: Set[str] = set()
        self._looks: Dict[type, Callable[[Any], None]] = {
            ast.Assign: self._assignment, ast.AnnAssign: self._annotated, ast.AugAssign: self._augmented,
            ast.For: self._loop, ast.If: self._guard, ast.ExceptHandler: self._handler, ast.Call: self._call,
            ast.Attribute: self._attribute, ast.Name: self._name,
        }  # fmt: skip

    def visit(self, node: ast.AST) -> None:
        """Look at a node and at what is in it."""
        look = self._looks.get(type(node))
        if look is not None:
            look(node)
        else:
            self.generic_visit(node)

    # ------------------------------------------------------------------ where

    def _place(self, node: Optional[ast.AST]) -> Optional[_Place]:
        """The attribute that an expression is (a part of)."""
        if isinstance(node, ast.Attribute):
            return node.attr, False
        if isinstance(node, ast.Name):
            return self._aliases.get(node.id)
        if isinstance(node, (ast.Subscript, ast.Starred)):
            place = self._place(node.value)
            return (place[0], True) if place else None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _PARTS:
            place = self._place(node.func.value)
            return (place[0], True) if place else None
        if isinstance(node, ast.BoolOp):
            return self._place(node.values[0])
        if isinstance(node, ast.Call) and len(node.args) == 1:  # int(self.n), list(self.d.values())
            return self._place(node.args[0])
        return None

    def _write(self, place: Optional[_Place], way: str) -> None:
        if place is not None:
            self._ways.setdefault(place, set()).add(way)

    # -------------------------------------------------------------------- how

    def _way(self, place: _Place, value: ast.AST) -> str:
        if self._is_sum_with(place, value):
            return "add"
        if self._guards and _is_empty(value):
            return "begin"
        return "set"

    def _is_sum_with(self, place: _Place, value: ast.AST) -> bool:
        if not isinstance(value, ast.BinOp) or not isinstance(value.op, (ast.Add, ast.Sub)):
            return False
        left, right = value.left, value.right
        if self._place(left) == place or self._is_sum_with(place, left):
            return True
        return isinstance(value.op, ast.Add) and (self._place(right) == place or self._is_sum_with(place, right))

    def _assign(self, target: ast.AST, value: Optional[ast.AST]) -> None:
        if isinstance(target, (ast.Tuple, ast.List)):
            values: List[Optional[ast.AST]] = [None] * len(target.elts)
            if isinstance(value, (ast.Tuple, ast.List)) and len(value.elts) == len(values):
                values = list(value.elts)
            for inner, one in zip(target.elts, values):
                self._assign(inner, one)
        elif isinstance(target, ast.Name):
            place = self._place(value)
            if place is not None:
                self._aliases[target.id] = place
            else:
                self._aliases.pop(target.id, None)
        elif isinstance(target, (ast.Attribute, ast.Subscript)):
            place = self._place(target)
            if place is not None:
                self._write(place, self._way(place, value) if value is not None else "set")

    def _assignment(self, node: ast.Assign) -> None:
        for target in node.targets:
            self._assign(target, node.value)
        self.generic_visit(node)

    def _annotated(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self._assign(node.target, node.value)
        self.generic_visit(node)

    def _augmented(self, node: ast.AugAssign) -> None:
        if not isinstance(node.target, ast.Name):  # `n = self.n; n += 1` changes no attribute
            self._write(self._place(node.target), "add" if isinstance(node.op, (ast.Add, ast.Sub)) else "set")
        self.generic_visit(node)

    def _loop(self, node: ast.For) -> None:
        place = self._place(node.iter)
        for name in ast.walk(node.target):
            if isinstance(name, ast.Name) and place is not None:
                self._aliases[name.id] = (place[0], True)
            elif isinstance(name, (ast.Attribute, ast.Subscript)):
                self._write(self._place(name), "set")
        self.generic_visit(node)

    def _guard(self, node: ast.If) -> None:
        self._guards += 1
        self.generic_visit(node)
        self._guards -= 1

    def _handler(self, node: ast.ExceptHandler) -> None:
        self._guards += 1
        self.generic_visit(node)
        self._guards -= 1

    def _call(self, node: ast.Call) -> None:
        func, args = node.func, node.args
        if isinstance(func, ast.Name) and func.id == "setattr" and len(args) == 3:
            name = args[1].value if isinstance(args[1], ast.Constant) else _ANY
            self._write((str(name), False), "set")
        elif isinstance(func, ast.Attribute):
            place = self._place(func.value)
            if place is not None and func.attr == "increment":
                self._write(place, "add")
            elif place is not None and func.attr == "set" and len(args) == 1:
                adds = self._is_sum_with(place, args[0]) or self._is_sum_with((place[0], True), args[0])  # .get() + 1
                self._write(place, "add" if adds else "set")
            elif place is not None and func.attr == "update":
                self._write((place[0], True), "set")
        self.generic_visit(node)

    def _attribute(self, node: ast.Attribute) -> None:
        self.names.add(node.attr)
        self.generic_visit(node)

    def _name(self, node: ast.Name) -> None:
        self.names.add(node.id)


def _is_empty(node: ast.AST) -> bool:
    """0, '', [], {}, list(), dict(), defaultdict(...), or a dict or list of such."""
    if isinstance(node, ast.Constant):
        return not node.value and node.value is not None and node.value is not False
    if isinstance(node, (ast.List, ast.Tuple)):
        return all(_is_empty(item) for item in node.elts)
    if isinstance(node, ast.Dict):
        return all(_is_empty(item) for item in node.values)
    if isinstance(node, ast.Call) and isinstance(node.func, (ast.Name, ast.Attribute)):
        name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
        return name == "defaultdict" or (name in ("list", "dict", "set", "Counter", "OrderedDict") and not node.args)
    return False
