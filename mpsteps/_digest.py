"""By which content a step is recognised when a run is resumed: its function, its arguments, its prerequisites.

Not by its position: a step inserted in the middle must not make later ones run again. Prerequisites count by their
own digests, so that a changed argument changes everything downstream; so does the step that a `ResultOf` names. The
code of methods and functions does not count (as in Scipion): whoever changes a method restarts the run. Lambdas and
local functions share their names, so they count by what they do and what they hold.
"""

from __future__ import annotations

import functools
import hashlib
import json
import marshal
import math
import os
import types
from typing import Any, Callable, Iterable, Union

from mpsteps._ipc import wire
from mpsteps._result_of import ResultOf

TEXT_LIMIT = 200
"""Longer texts stand in the journal shortened: they serve its reader, and the digest the resume."""
ITEM_LIMIT = 64
"""So many items a list, tuple or dict has at most that stands in the journal as it is."""

SIZE = 12  # bytes: a million steps collide with a probability of 10^-17

DigestOf = Callable[[int], str]


def step_digest(
    function: Union[str, Callable[..., Any]], args: Any, prerequisites: Iterable[int], anchor: Any, digest_of: DigestOf
) -> str:
    """The digest as hexadecimal text. `anchor`: the protocol itself, which may stand in the arguments; `digest_of`
    gives the digest of a step that comes before."""
    canonical = _Canonical(anchor, digest_of)
    name = function if isinstance(function, str) else canonical.function(function)
    h = _begun(name).copy()
    h.update(_json_bytes(args) if is_json(args) else canonical.bytes_of(args))
    for p in prerequisites:
        h.update(digest_of(p).encode())
    return str(h.hexdigest())


def is_json(args: Any) -> bool:
    """Whether arguments are short, and JSON brings them back so that they have the same text again: numbers, texts,
    None, and lists, tuples and dicts of them. (A tuple comes back as a list; its text is the same.)"""
    for a in args:
        kind = type(a)
        if kind is int:
            if not -_LARGE < a < _LARGE:
                return False
        elif kind is str:
            if len(a) > TEXT_LIMIT:
                return False
        elif kind is float:
            if not math.isfinite(a):
                return False
        elif not (a is None or kind is bool or _is_json_container(a, kind)):
            return False
    return True


def _is_json_container(value: Any, kind: type, depth: int = 4) -> bool:
    if kind not in (tuple, list, dict) or len(value) > ITEM_LIMIT or not depth:
        return False
    if kind is dict:
        if not all(type(k) is str and len(k) <= TEXT_LIMIT for k in value):
            return False
        value = value.values()
    return all(
        _is_json_container(v, type(v), depth - 1) if type(v) in (tuple, list, dict) else is_json((v,)) for v in value
    )


def _json_bytes(args: Any) -> bytes:
    return _encode(args).encode("utf-8", "surrogatepass")


_encode = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":")).encode
_LARGE = 2**63  # larger integers are not for every reader of JSON


def _plain_bytes(value: Any) -> bytes:
    try:
        return repr(value).encode("utf-8", "surrogatepass")
    except ValueError:  # an integer of more than 4300 digits
        return marshal.dumps(value, 2)  # later versions depend on reference counts


@functools.lru_cache(maxsize=1024)
def _begun(name: str) -> Any:
    """A hash that has taken in the name of a function: most steps share theirs with many others."""
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=SIZE)


class _Canonical:
    """Equal bytes for equal content in another process: sets sorted, arrays by their bytes, functions by name."""

    def __init__(self, anchor: Any, digest_of: DigestOf) -> None:
        self._anchor = anchor
        self._digest_of = digest_of

    def bytes_of(self, value: Any) -> bytes:
        """What cannot be written down cannot be recognised: its bytes are new each time, and its step always runs."""
        try:
            return self._write(value)
        except Exception:
            return os.urandom(SIZE)

    def function(self, function: Any) -> str:
        """A text for a function that is no method of the protocol."""
        if isinstance(function, types.MethodType):
            return f"{self.function(function.__func__)} of {self._hash(function.__self__)}"
        if isinstance(function, types.FunctionType):
            name = f"{function.__module__}.{function.__qualname__}"
            return name if "<" not in name else name + self._hash_of_code(function)
        if isinstance(function, (types.BuiltinFunctionType, type)):
            owner = getattr(function, "__self__", None)
            held = "" if owner is None or isinstance(owner, types.ModuleType) else self._hash(owner)
            return f"{function.__module__}.{function.__qualname__}{held}"
        if isinstance(function, functools.partial):
            return f"partial {self.function(function.func)} {self._hash((function.args, function.keywords))}"
        return f"{type(function).__module__}.{type(function).__qualname__}{self._hash(function)}"

    def _hash(self, value: Any) -> str:
        return hashlib.blake2b(self.bytes_of(value), digest_size=SIZE).hexdigest()

    def _hash_of_code(self, function: types.FunctionType) -> str:
        held = [cell.cell_contents for cell in function.__closure__ or ()]
        return _code_text(function.__code__) + self._hash((held, function.__defaults__, function.__kwdefaults__))

    def _write(self, value: Any) -> bytes:
        kind = type(value)
        if value is self._anchor and value is not None:
            return b"self"
        if kind is ResultOf:
            return f"result of {self._digest_of(value.stepId)}".encode()
        if kind in (tuple, list, dict, set, frozenset):
            return self._write_container(kind, value)
        if wire.is_plain(value):
            return _plain_bytes(value)
        if isinstance(value, os.PathLike):
            return os.fsencode(value)
        if kind.__module__ == "numpy" and hasattr(value, "dtype") and not value.dtype.hasobject:
            return f"{value.dtype}{value.shape}".encode() + hashlib.blake2b(value.tobytes(), digest_size=SIZE).digest()
        if hasattr(value, "hasValue") and hasattr(value, "get"):
            return self._write(value.get())
        if callable(value) and hasattr(value, "__qualname__"):
            return self.function(value).encode("utf-8", "surrogatepass")
        return wire.pack(value, self._anchor)

    def _write_container(self, kind: type, value: Any) -> bytes:
        if kind is dict:
            return b"{" + b",".join(self._write(k) + b":" + self._write(v) for k, v in value.items()) + b"}"
        parts = [self._write(v) for v in value]
        if kind in (set, frozenset):
            return b"<" + b",".join(sorted(parts)) + b">"
        return b"[" + b",".join(parts) + b"]"


def _code_text(code: types.CodeType) -> str:
    """What code does: its instructions, names and constants, those of functions inside it included."""
    constants = [_code_text(c) if isinstance(c, types.CodeType) else _constant_text(c) for c in code.co_consts]
    return hashlib.blake2b(repr((code.co_code, code.co_names, constants)).encode(), digest_size=SIZE).hexdigest()


def _constant_text(constant: Any) -> str:
    return repr(sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant)
