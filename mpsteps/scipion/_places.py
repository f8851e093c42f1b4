"""Where a step runs: told from the source of its function and of all that this calls with the protocol.

In the main process run steps that do what means nothing anywhere else: register outputs, write to the project's
database or to sets that outlive the step, hold a lock that other steps share, insert steps. All others may run in a
fork. It is looked at what is written after `self.` (and after the names under which helpers receive the protocol); what
pyworkflow's own methods do is known by their names.

What this overlooks is caught where it happens (`_guard`).
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import types
from typing import Any, Dict, FrozenSet, Iterator, List, NamedTuple, Optional, Set, Tuple

_REGISTERS = (
    "_defineOutputs", "_insertChild", "_deleteChild", "_updateOutputSet", "_closeOutputSet", "_store", "deleteOutput",
    "_defineRelation", "_defineSourceRelation", "_defineTransformRelation", "_defineCtfRelation", "closeMappers",
    "loadMappers", "setFailed", "setAborted", "mapper", "getMapper", "runProtocol",
)  # fmt: skip
_INSERTS = (
    "_insertFunctionStep", "_insertRunJobStep", "_insertCopyFileStep", "_insertPreviousSteps", "updateSteps",
    "_storeSteps", "_insertAllSteps",
)  # fmt: skip
_EDITS_STEPS = frozenset({"addPrerequisites", "setPrerequisites"})
_MAKES_SETS = re.compile(r"_?create(?:Set|\w*SetOf)\w*|_define\w*Relation")
_OF_FRAMEWORK = ("pyworkflow.", "mpsteps.")
_MOST_FUNCTIONS = 400


class Finding(NamedTuple):
    """What was found in a step's code. `main`: why it must run in the main process ('': it need not); `inserts`: it
    inserts steps; `sets`: it assigns attributes; `attributes`: those of the protocol that it mentions; `codes`: of all
    functions that were looked at."""

    main: str
    inserts: bool
    sets: bool
    attributes: FrozenSet[str]
    codes: FrozenSet[types.CodeType] = frozenset()


class Places:
    """Looks at the functions of steps, at each once. `owner`: the protocol's class; `local`: names of methods, or
    'Class.method', that the user wants in the main process."""

    def __init__(self, owner: type, local: FrozenSet[str] = frozenset()) -> None:
        self._owner = owner
        self._local = local
        self._known: Dict[Any, Finding] = {}

    def of(self, function: Any) -> Finding:
        """What is known of a step's function: a bound method, or another callable."""
        key = getattr(function, "__func__", function)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._look(function, key)
        return found

    def _look(self, function: Any, plain: Any) -> Finding:
        name = getattr(plain, "__name__", "")
        scan = _Scan(self._owner)
        bound = isinstance(getattr(function, "__self__", None), self._owner)
        declared = self._declared(plain, name)
        if name in _REGISTERS or name in _INSERTS or _MAKES_SETS.fullmatch(name):
            scan.found(name)
        elif _is_framework(plain) or (not bound and not _takes_protocol(plain)):
            pass  # runJob, copyFile: they do nothing to the protocol
        elif not scan.follow(plain, bound):
            return Finding(declared or f"the source of {name or plain!r} cannot be read", False, True, frozenset())
        why = declared or ", ".join(sorted(scan.reasons))
        return Finding(why, scan.inserts, scan.sets, frozenset(scan.attributes), scan.codes())

    def is_private(self, name: str, function: Any) -> bool:
        """Whether no method of the protocol mentions this attribute, but for those that this step's function calls."""
        own = self.of(function).codes
        for cls in self._owner.__mro__:
            if not str(cls.__module__).startswith(_OF_FRAMEWORK):
                for value in vars(cls).values():
                    for f in _functions_of(value):
                        code = getattr(f, "__code__", None)
                        if code is not None and code not in own and _mentions(code, name):
                            return False
        return bool(own)

    def _declared(self, function: Any, name: str) -> str:
        options = getattr(inspect.unwrap(function), "__mpsteps__", None)
        if options is not None and options.local:
            return "it is declared @step(local=True)"
        names = {name, *(f"{cls.__name__}.{name}" for cls in self._owner.__mro__)}
        return "MPSTEPS_LOCAL names it" if names & self._local else ""


def _is_framework(function: Any) -> bool:
    return str(getattr(function, "__module__", "")).startswith(_OF_FRAMEWORK)


def _takes_protocol(function: Any) -> bool:
    """A function that is no method of the protocol, and may get it all the same as an argument."""
    code = getattr(function, "__code__", None)
    return code is not None and any(name in ("self", "prot", "protocol") for name in code.co_varnames)


class _Scan:
    """Everything that a function calls, one after the other."""

    def __init__(self, owner: type) -> None:
        self._owner = owner
        self._todo: List[Tuple[Any, FrozenSet[str]]] = []
        self._seen: Set[Tuple[Any, FrozenSet[str]]] = set()
        self.reasons: Set[str] = set()
        self.attributes: Set[str] = set()
        self.inserts = False
        self.sets = False

    def found(self, name: str) -> None:
        """The code uses this method of the protocol."""
        if name in _INSERTS or name in _EDITS_STEPS:
            self.inserts = self.inserts or name in _INSERTS
            self.reasons.add(f"{name} (inserts or connects steps)")
        elif name in _REGISTERS:
            self.reasons.add(f"{name} (outputs, database)")
        elif name == "_lock":
            self.reasons.add("_lock (shared with other steps)")
        elif name == "_steps":
            self.reasons.add("_steps (the list of steps)")
        elif _MAKES_SETS.fullmatch(name):
            self.reasons.add(f"{name} (sets)")

    def follow(self, function: Any, bound: bool) -> bool:
        """Look at it and at what it calls; False: it cannot be read."""
        first = inspect.unwrap(function)
        code = getattr(first, "__code__", None)
        if code is None:
            return False
        names = {"self", "prot", "protocol"}
        if bound and code.co_argcount:
            names.add(code.co_varnames[0])
        self._todo.append((first, frozenset(names)))
        readable = True
        while self._todo and len(self._seen) < _MOST_FUNCTIONS:
            f, names_of_protocol = self._todo.pop()
            f = inspect.unwrap(f)
            code = getattr(f, "__code__", None)
            if code is None or (code, names_of_protocol) in self._seen:
                continue
            self._seen.add((code, names_of_protocol))
            tree = _tree(f)
            if tree is None:
                readable = readable and len(self._seen) > 1
                continue
            _Visitor(self, f, names_of_protocol).visit(tree)
        return readable

    def method(self, name: str, after: Optional[type] = None) -> None:
        """The code mentions a method or attribute of the protocol. `after`: the class whose super() is meant."""
        self.found(name)
        mro = self._owner.__mro__
        start = mro.index(after) + 1 if after in mro else 0
        for cls in mro[start:]:
            if name in vars(cls):
                self._follow_attribute(vars(cls)[name], cls)
                return
        self.attributes.add(name)

    def _follow_attribute(self, value: Any, cls: type) -> None:
        if str(cls.__module__).startswith(_OF_FRAMEWORK):
            return
        for plain in _functions_of(value):
            if isinstance(plain, types.FunctionType):
                first = plain.__code__.co_varnames[:1] if not isinstance(value, (staticmethod, classmethod)) else ()
                self._todo.append((plain, frozenset({"self", "prot", "protocol", *first})))

    def codes(self) -> FrozenSet[types.CodeType]:
        """Of all functions that were looked at."""
        return frozenset(code for code, _ in self._seen)

    def helper(self, function: Any, positions: List[int], keywords: List[str]) -> None:
        """The code hands the protocol to a function."""
        plain = inspect.unwrap(getattr(function, "__func__", function))
        if not isinstance(plain, types.FunctionType) or _is_framework(plain):
            return
        shift = 1 if hasattr(function, "__self__") else 0
        arguments = plain.__code__.co_varnames[: plain.__code__.co_argcount]
        names = {arguments[i + shift] for i in positions if i + shift < len(arguments)} | set(keywords)
        self._todo.append((plain, frozenset({"prot", "protocol", *names})))


def _functions_of(value: Any) -> List[Any]:
    """The functions that an attribute of a class is made of."""
    found: List[Any] = [value.fget, value.fset] if isinstance(value, property) else [getattr(value, "__func__", value)]
    return [inspect.unwrap(f) if callable(f) else f for f in found]


def _mentions(code: types.CodeType, name: str) -> bool:
    """Also as a text, for getattr; and in functions inside of it."""
    if name in code.co_names or name in code.co_consts:
        return True
    return any(_mentions(inner, name) for inner in code.co_consts if isinstance(inner, types.CodeType))


def _tree(function: Any) -> Optional[ast.AST]:
    try:
        lines, _ = inspect.getsourcelines(function.__code__)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, SyntaxError, TypeError, ValueError):  # typed at a prompt, made by exec
        return None
    name = function.__code__.co_name
    return tree if any(getattr(node, "name", name) == name for node in tree.body) else None


class _Visitor(ast.NodeVisitor):
    """One function. `names`: those that stand for the protocol in it."""

    def __init__(self, scan: _Scan, function: Any, names: FrozenSet[str]) -> None:
        self._scan = scan
        self._function = function
        self._names = set(names)

    def _is_protocol(self, node: Optional[ast.AST]) -> bool:
        return isinstance(node, ast.Name) and node.id in self._names

    def visit_Attribute(self, node: ast.Attribute) -> None:
        """self.name, super().name, x.addPrerequisites, SetOfX.create."""
        if self._is_protocol(node.value):
            self._scan.method(node.attr)
            if isinstance(node.ctx, (ast.Store, ast.Del)):
                self._scan.sets = True
        elif isinstance(node.value, ast.Call) and getattr(node.value.func, "id", "") == "super":
            self._scan.method(node.attr, self._own_class())
        elif node.attr in _EDITS_STEPS:
            self._scan.found(node.attr)
        elif node.attr == "enableAppend":
            self._scan.reasons.add("enableAppend (sets)")
        elif node.attr == "create" and str(getattr(node.value, "id", "")).startswith("Set"):
            self._scan.reasons.add(f"{node.value.id}.create (sets)")  # type: ignore[attr-defined]  # it has one
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        """`prot = self` gives the protocol another name; self.x = 1 sets nothing that could not travel."""
        if self._is_protocol(node.value):
            self._names.update(t.id for t in node.targets if isinstance(t, ast.Name))
        plain = isinstance(node.value, ast.Constant)
        before = self._scan.sets
        self.generic_visit(node)
        if plain:
            self._scan.sets = before

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        """self.n += 1 needs no main process."""
        before = self._scan.sets
        self.generic_visit(node)
        self._scan.sets = before

    def visit_Call(self, node: ast.Call) -> None:
        """setattr(self, ...), getattr(self, 'name'), helper(self)."""
        name = getattr(node.func, "id", "")
        if name == "setattr" and node.args and self._is_protocol(node.args[0]):
            self._scan.sets = True
        elif name in ("getattr", "hasattr") and len(node.args) > 1 and self._is_protocol(node.args[0]):
            if isinstance(node.args[1], ast.Constant):
                self._scan.method(str(node.args[1].value))
        else:
            positions = [i for i, a in enumerate(node.args) if self._is_protocol(a)]
            keywords = [k.arg for k in node.keywords if k.arg and self._is_protocol(k.value)]
            if positions or keywords:
                self._scan.helper(self._resolve(node.func), positions, keywords)
        self.generic_visit(node)

    def _resolve(self, node: ast.AST) -> Any:
        """What a name or a dotted name of the module stands for; None: not known."""
        if isinstance(node, ast.Name):
            return self._function.__globals__.get(node.id)
        if isinstance(node, ast.Attribute):
            base = self._resolve(node.value)
            return None if base is None else inspect.getattr_static(base, node.attr, None) and getattr(base, node.attr)
        return None

    def _own_class(self) -> Optional[type]:
        """The class in which the function stands."""
        qualname = self._function.__qualname__.rsplit(".", 1)[0]
        for cls in self._owner_mro():
            if cls.__qualname__ == qualname and cls.__module__ == self._function.__module__:
                return cls
        return None

    def _owner_mro(self) -> Iterator[type]:
        return iter(self._scan._owner.__mro__)
