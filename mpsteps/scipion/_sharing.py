"""One protocol, several processes: what is watched of it, what forks are told, how their changes are taken in.

All by the means of mpsteps' own protocols (`mpsteps._statelog`). What is different: a fork has everything that there
was when it was made, so that what cannot travel need not; forks made before are replaced (`generation`).
"""

from __future__ import annotations

import gc
import logging
import weakref
from typing import Any, Dict, FrozenSet, Iterator, List, Optional, Sequence

import pyworkflow.object as pwobj
from pyworkflow.mapper.sqlite_db import SqliteDb

from mpsteps._ipc import state, wire
from mpsteps._ipc.edits import ABSENT, Edit, change_of, is_number, raw
from mpsteps._ipc.merge import UNKNOWN, Conflict, Writes, upon
from mpsteps._statelog import StateLog
from mpsteps._writes import WritesOf
from mpsteps.report import shorten
from mpsteps.scipion import _travel

logger = logging.getLogger(__name__)

FRAMEWORK = frozenset({
    "_steps", "_newSteps", "_stepsSet", "_prevSteps", "_stepsExecutor", "_stepsDone", "_numberOfSteps", "_cpuTime",
    "_inputs", "_outputs", "_useOutputList", "_definition", "_project", "_log", "_buffer", "_lock", "_pid", "_jobId",
    "_size", "_currentDir", "_error", "_hasExpert", "_originalRunMode", "_prerequisites", "_index", "mapper", "status",
    "initTime", "endTime", "lastStatus", "lastUpdateTimeStamp", "hostConfig", "runMode", "_resultFiles",
    "_Protocol__insertStep", "_Protocol__filenamesDict", "_objValue", "_objParent", "_objId", "_objParentId",
})  # fmt: skip
"""Attributes of a protocol that pyworkflow keeps itself; `mpsteps` and Scipion's callbacks see to them here."""
_LOCK_SECONDS = 1.0
"""Who holds the protocol's lock for longer works under it; a fork does without, and has what there is."""

_databases: weakref.WeakSet[Any] = weakref.WeakSet()
_registering = False


class Sharing:
    """Of one run. `generation` grows when forks that there are cannot be told what has changed."""

    def __init__(self, protocol: Any, steps: List[Any]) -> None:
        _travel.install()
        register_databases()
        self._protocol = protocol
        self._steps = steps
        self._adopted = _adopt_class_attributes(protocol)
        self._writes = WritesOf(type(protocol))
        self.generation = 0
        self.tracker = state.Tracker(protocol, FRAMEWORK | _pointers(protocol))
        self.tracker.changes()  # lines up what is compared
        self._log = _LastOneWins(protocol, self.tracker, self._label, self._writes_of)
        self._joined: set[int] = set()

    def close(self) -> None:
        """The run is over."""
        for name, value in self._adopted.items():
            if vars(self._protocol).get(name) is value:
                del vars(self._protocol)[name]

    def hold(self) -> bool:
        """Take the protocol's lock, for a fork; False: somebody has held it for too long, and it is not had."""
        lock = getattr(self._protocol, "_lock", None)
        return bool(lock is None or lock.acquire(timeout=_LOCK_SECONDS))

    def let_go(self) -> None:
        """Give it back."""
        lock = getattr(self._protocol, "_lock", None)
        if lock is not None:
            lock.release()

    # ------------------------------------------------------------------------ forks

    def join(self, worker: int) -> None:
        """A fork is about to be made for this place: it has everything as it is now."""
        if worker in self._joined:
            self._log.leave(worker)
        self._joined.add(worker)
        self._log.join(worker)

    def news(self, worker: int, number: int) -> List[bytes]:
        """What the fork must hear of before this step, in order."""
        found = self._log.news(worker, (number,))
        return list(found[1]) if isinstance(found, tuple) else []

    def merge(self, worker: int, number: int, parcel: Optional[bytes], goes_on: bool = False) -> None:
        """Take in what a step changed. Raises StateConflict, and what opening the parcel raises."""
        if parcel is None:
            if not goes_on:
                self._log.settle(number)
            return
        self._log.merge(worker, number, parcel, ended=not goes_on)

    # ----------------------------------------------------------- changes made here

    def collect(self, deep: bool = False) -> None:
        """Look what code in this process has changed. `deep`: it may have changed what cannot be looked into."""
        changes = self.tracker.changes()
        good: List[state.Change] = []
        for change in changes:
            try:
                wire.unpack(wire.pack(change, self._protocol), self._protocol)
                good.append(change)
            except Exception:  # it stays here; forks made from now on have it
                deep = True
        if good:
            self._log.publish(wire.pack(good, self._protocol))
        if deep:
            self.generation += 1

    # -------------------------------------------------------------------- in words

    def _label(self, number: int) -> str:
        step = self._steps[number - 1]
        return f"{number} {step.funcName.get()}{shorten(tuple(getattr(step, '_args', ())))}"

    def _writes_of(self, number: int) -> Writes:
        if number < 1:
            return UNKNOWN  # what runs here
        function = getattr(self._steps[number - 1], "_func", None)
        name = getattr(function, "__name__", "")
        return self._writes(name if getattr(function, "__self__", None) is self._protocol else function)


class _LastOneWins(StateLog):
    """Where two steps that ran at the same time have set one attribute, the one that ends last has set it, as in
    threads; and it is said. Where they may have counted or collected, it is a conflict still."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._said: set[str] = set()

    def _placed(self, step: int, name: str, edit: Edit, worker: int, unseen: List[Any]) -> state.Change:
        try:
            return super()._placed(step, name, edit, worker, unseen)
        except Conflict as conflict:
            inside = len(conflict.path) > 1
            both = (self._writes(step), self._writes(conflict.step))
            if not _only_set(conflict.mine, inside, name, both) or not _only_set(conflict.theirs, inside, name, both):
                raise
            place = name + "".join(f"[{key!r}]" for key in conflict.path[1:])
            if name not in self._said:
                self._said.add(name)
                logger.warning(
                    "mpsteps: step %s and %s ran at the same time and both set self.%s: the last one wins, as in "
                    "threads (this is said once)", self._label(step), self._name(conflict.step), place,
                )  # fmt: skip
            now = vars(self._target).get(name, ABSENT)
            return change_of(name, upon(edit, now, self._writes(step), name))


def _only_set(edit: Edit, inside: bool, name: str, both: Sequence[Writes]) -> bool:
    """Whether an edit puts a value in the place of another, and nothing that the two steps do to it adds up."""
    if edit[0] not in "=nv#":
        return False
    if isinstance(raw(edit[1]), (list, dict, set)) or is_number(raw(edit[1])):
        return all(writes.sets(name, inside) for writes in both)
    return not any(writes.adds(name, inside) for writes in both)


def _pointers(protocol: Any) -> FrozenSet[str]:
    """Names of attributes that are inputs: no step changes those, and to look at them may open databases."""
    return frozenset(n for n, v in vars(protocol).items() if isinstance(v, (pwobj.Pointer, pwobj.PointerList)))


def _adopt_class_attributes(protocol: Any) -> Dict[str, Any]:
    """Lists, dicts and sets that are attributes of the protocol's classes, and that steps may change through self:
    as attributes of the protocol they are watched like all others. They are the same objects still."""
    found: Dict[str, Any] = {}
    for name, value in _mutable_class_attributes(type(protocol)):
        if name not in vars(protocol) and name not in found:
            found[name] = value
    vars(protocol).update(found)
    return found


def _mutable_class_attributes(owner: type) -> Iterator[Any]:
    for cls in owner.__mro__:
        if not str(cls.__module__).startswith(("pyworkflow.", "mpsteps.")) and cls is not object:
            for name, value in vars(cls).items():
                if type(value) in (list, dict, set) and not name.startswith("__"):
                    yield name, value


def register_databases() -> None:
    """From now on all databases that pyworkflow opens in this process are known, and those that are open already."""
    global _registering
    if _registering:
        return
    _registering = True
    _databases.update(o for o in gc.get_objects() if SqliteDb in type(o).__mro__)
    create = SqliteDb._createConnection

    def creating(self: Any, *args: Any, **kwargs: Any) -> Any:
        _databases.add(self)
        return create(self, *args, **kwargs)

    SqliteDb._createConnection = creating


def open_databases() -> List[Any]:
    """All that may have a connection."""
    return list(_databases)
