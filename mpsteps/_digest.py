"""By which content a step is recognised when a run is resumed: its function, its arguments, its prerequisites.

Not by its position: a step inserted in the middle must not make later ones run again. Prerequisites count by their
own digests, so that a changed argument changes everything downstream. Code does not count (as in Scipion): whoever
changes a method restarts the run.
"""

from __future__ import annotations

import functools
import hashlib
import os
from typing import Any, Callable, Iterable, Union

from mpsteps._ipc import wire
from mpsteps.steps import ResultOf

SIZE = 12  # bytes: a million steps collide with a probability of 10^-17


def step_digest(function: Union[str, Callable[..., Any]], args: Any, prerequisites: Iterable[str], anchor: Any) -> str:
    """The digest as hexadecimal text. `prerequisites`: their digests; `anchor`: the protocol itself, if it stands in
    the arguments."""
    h = _begun(function if isinstance(function, str) else _function_name(function)).copy()
    h.update(repr(args).encode("utf-8", "surrogatepass") if wire.is_plain(args) else _canonical(args, anchor))
    for p in prerequisites:
        h.update(p.encode())
    return h.hexdigest()


@functools.lru_cache(maxsize=1024)
def _begun(name: str) -> Any:
    """A hash that has taken in the name of a function: most steps share theirs with many others."""
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=SIZE)


def _function_name(function: Callable[..., Any]) -> str:
    name = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__qualname__)}"
    code = getattr(function, "__code__", None)
    if code is not None and "<" in name:  # lambdas and local functions share their names: tell them by what they do
        name += hashlib.blake2b(code.co_code + repr(code.co_names).encode(), digest_size=SIZE).hexdigest()
    return name


def _canonical(value: Any, anchor: Any) -> bytes:
    """Equal bytes for equal content in another process: sets sorted, arrays by their bytes."""
    kind = type(value)
    if value is anchor and anchor is not None:
        return b"self"
    if kind in (tuple, list):
        return b"[" + b",".join(_canonical(v, anchor) for v in value) + b"]"
    if kind is dict:
        return b"{" + b",".join(_canonical(k, anchor) + b":" + _canonical(v, anchor) for k, v in value.items()) + b"}"
    if kind in (set, frozenset):
        return b"<" + b",".join(sorted(_canonical(v, anchor) for v in value)) + b">"
    if kind is ResultOf or wire.is_plain(value):
        return repr(value).encode("utf-8", "surrogatepass")
    if isinstance(value, os.PathLike):
        return os.fsencode(value)
    if kind.__module__ == "numpy" and hasattr(value, "dtype") and not value.dtype.hasobject:
        return f"{value.dtype}{value.shape}".encode() + hashlib.blake2b(value.tobytes(), digest_size=SIZE).digest()
    if hasattr(value, "hasValue") and hasattr(value, "get"):
        return _canonical(value.get(), anchor)
    try:
        return wire.pack(value, anchor)
    except Exception:
        return os.urandom(SIZE)  # it cannot be written down, so it cannot be recognised: such a step always runs
