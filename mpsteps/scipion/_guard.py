"""What is changed in a fork before its first step, so that nothing of the main process is harmed and nothing is lost.

Everything here happens in a process that is used for nothing else: methods of pyworkflow's classes are replaced there.

- Connections to databases that the main process has open are kept, never used by sets, and never closed: closing one
  would delete the journal of a transaction that the main process is in. Sets open a connection of their own.
- What registers outputs, stores or inserts is carried to the main process, or refused.
- What writes to a set of the main process is refused. Sets that the step makes itself are its own.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, NoReturn

import pyworkflow.object as pwobj
from pyworkflow.mapper.sqlite_db import SqliteDb
from pyworkflow.protocol.protocol import Protocol, Step

from mpsteps.errors import MpstepsError
from mpsteps.scipion._travel import MADE_HERE

CARRIED = ("_insertFunctionStep", "_defineOutputs", "_store")
REFUSED = (
    "_insertChild", "_deleteChild", "_updateOutputSet", "_closeOutputSet", "_defineRelation", "_storeSteps",
    "updateSteps", "deleteOutput", "runProtocol", "_Protocol__insertStep", "_Protocol__tryUpdateOutputSet",
    "_insertPreviousSteps", "setFailed", "setAborted", "appendJobId", "removeJobId",
)  # fmt: skip
_REFUSED_STEP = ("addPrerequisites", "setPrerequisites")
_REFUSED_SET = ("append", "_insertItem", "update", "write", "clear", "enableAppend")

_kept: List[Any] = []
"""What must not be released in this process."""


def keep(obj: Any) -> None:
    """Never release it in this process."""
    _kept.append(obj)


class Refused(MpstepsError):
    """A step did in a worker process what can be done in the main process only."""


def install(protocol: Any, databases: List[Any], carry: Callable[..., Any], where: Callable[[], str]) -> None:
    """`databases`: all that are open; `carry(name, *args, **kwargs)` does it in the main process; `where()`: the step
    that runs."""
    _kept.extend(databases)
    _kept.extend(getattr(db, "connection", None) for db in databases)
    inherited = {id(db) for db in databases}
    _guard_databases(inherited)
    _guard_sets(inherited, where)
    for name in CARRIED:
        setattr(Protocol, name, _carrying(name, getattr(Protocol, name), protocol, carry))
    for name in REFUSED:
        if hasattr(Protocol, name):
            setattr(Protocol, name, _refusing(f"self.{name.replace('_Protocol__', '__')}", where))
    for name in _REFUSED_STEP:
        setattr(Step, name, _refusing(f"{name} of a step", where))
    protocol.__dict__.pop("_Protocol__insertStep", None)
    protocol._lock = _Lock(where)


def explain(what: str, where: str, why: str = "where it would be lost; nothing was stored") -> str:
    """The message for something that cannot be done in a worker process."""
    step = where.partition(" ")[2].split("(", maxsplit=1)[0] or "the step"
    return (
        f"step {where} used {what} in a worker process, {why}. Have it run in the main process: put "
        "@mpsteps.step(local=True) above the method, or, where the code is not yours, set "
        f"MPSTEPS_LOCAL={step} (names separated by commas) in the environment or in scipion.conf"
    )


def _refusing(what: str, where: Callable[[], str]) -> Callable[..., NoReturn]:
    def refuse(*_args: Any, **_kwargs: Any) -> NoReturn:
        raise Refused(explain(what, where()))

    return refuse


def _carrying(name: str, theirs: Any, protocol: Any, carry: Callable[..., Any]) -> Callable[..., Any]:
    def carried(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self is protocol:
            return carry(name, *args, **kwargs)
        return theirs(self, *args, **kwargs)

    return carried


def _guard_databases(inherited: set[int]) -> None:
    close = SqliteDb.close

    def closing(self: Any) -> None:
        if id(self) not in inherited:
            close(self)

    SqliteDb.close = closing
    SqliteDb.OPEN_CONNECTIONS = {}  # those in it are the main process's: nobody is to find them there


def _guard_sets(inherited: set[int], where: Callable[[], str]) -> None:
    cls = pwobj.Set
    theirs: Dict[str, Any] = {name: getattr(cls, name) for name in ("__init__", "_getMapper", "close")}

    def made_here(self: Any, *args: Any, **kwargs: Any) -> None:
        object.__setattr__(self, MADE_HERE, True)
        theirs["__init__"](self, *args, **kwargs)

    def let_go(self: Any) -> None:
        mapper = self._mapper
        if mapper is not None and id(getattr(mapper, "db", None)) in inherited:
            _kept.append(mapper)
            self._mapper = None

    def own_mapper(self: Any) -> Any:
        let_go(self)
        return theirs["_getMapper"](self)

    def close_own(self: Any) -> None:
        let_go(self)
        theirs["close"](self)

    cls.__init__, cls._getMapper, cls.close = made_here, own_mapper, close_own
    for name in _REFUSED_SET:
        setattr(cls, name, _for_own_sets(name, getattr(cls, name), where))


def _for_own_sets(name: str, theirs: Any, where: Callable[[], str]) -> Callable[..., Any]:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.__dict__.get(MADE_HERE):
            raise Refused(explain(f"{name} of a {type(self).__name__} of the main process", where()))
        return theirs(self, *args, **kwargs)

    return call


class _Lock:
    """In the place of the protocol's `_lock`: it keeps other steps out only in the main process."""

    def __init__(self, where: Callable[[], str]) -> None:
        self._where = where

    def acquire(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Not here."""
        raise Refused(explain("self._lock", self._where(), "where it keeps no other step out"))

    __enter__ = acquire

    def release(self) -> None:
        """Nothing was acquired."""

    def __exit__(self, *_problem: object) -> None:
        """Nothing was acquired."""
