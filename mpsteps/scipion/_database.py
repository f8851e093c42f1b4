"""One thread at a time in the mapper of a protocol, while its steps run.

A mapper of pyworkflow has one cursor, whichever thread uses it. `_store` holds the protocol's lock meanwhile; other
methods that steps call (`_defineOutputs`, `_insertChild`, `_defineRelation`) do not. If the loop records the end of
another step at that moment, sqlite says "Recursive use of cursors not allowed", or one of the two reads what the other
has asked for. Scipion's own loop looks every three seconds, and so seldom meets a step there; ours looks at once.

The lock is the innermost one: whoever holds it waits for no other lock.
"""

from __future__ import annotations

import functools
import threading
from typing import Any, Callable


class Database:
    """Of one protocol. As a context manager: nobody is in its mapper, and nobody can get there."""

    def __init__(self, protocol: Any) -> None:
        self._mapper = getattr(protocol, "mapper", None)
        self._lock = threading.RLock()
        self._guarded: list[str] = []

    def guard(self) -> None:
        """From now on: one at a time. A protocol that another one runs in a step has its mapper guarded already."""
        mapper = self._mapper
        if mapper is None or _GUARD in vars(mapper):
            return
        setattr(mapper, _GUARD, self)
        for name in dir(type(mapper)):
            if not name.startswith("_") and callable(getattr(type(mapper), name)) and name not in vars(mapper):
                setattr(mapper, name, self._alone(getattr(mapper, name)))
                self._guarded.append(name)

    def _alone(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                return method(*args, **kwargs)

        return call

    def unguard(self) -> None:
        """As it was before."""
        for name in self._guarded:
            delattr(self._mapper, name)
        if self._guarded:
            delattr(self._mapper, _GUARD)
        self._guarded.clear()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_problem: object) -> None:
        self._lock.release()


_GUARD = "_mpsteps_guard"
