"""Write-back: which attributes of `self` a step changed, told as small operations that others can apply.

A `Tracker` watches one object. `changes()` compares the object's attributes with what they were at the last call:
atoms by identity, all else by its mark (`marks`). The result is a list of changes (`edits` has their forms), which
`apply` carries out elsewhere.

What is never carried: the attributes that the framework itself keeps (`ignored`), and objects that cannot be pickled
(`Absent` stands for them in a worker and says so when it is used).
"""

from __future__ import annotations

import operator
from typing import Any, Dict, Iterable, List, Optional, Sequence, Set, Tuple

from mpsteps._ipc import wire
from mpsteps._ipc.edits import ABSENT, ATOMS, Change, Edit, apply, carry_out, change_of, edit_of
from mpsteps._ipc.marks import DictMark, Mark, difference, marked
from mpsteps._ipc.merge import Writes, redone
from mpsteps.errors import SerializationError

__all__ = ["Absent", "Change", "Tracker", "apply", "pack_changes"]

class Absent:
    """Stands in a worker for an attribute that could not travel; any use of it raises SerializationError."""

    def __init__(self, name: str, reason: str) -> None:
        self.__dict__["_absent"] = (name, reason)

    def _refuse(self, *_args: Any, **_kwargs: Any) -> Any:
        name, reason = self.__dict__["_absent"]
        error = SerializationError(
            f"attribute '{name}' of the protocol cannot travel to a worker process ({reason}): make it inside the "
            "step that uses it, or run that step with @step(local=True)"
        )
        error.part = f"attribute '{name}'"
        raise error

    def __reduce__(self) -> Tuple[Any, ...]:
        return Absent, self.__dict__["_absent"]

    def __repr__(self) -> str:
        return "<attribute '{}' that cannot travel>".format(self.__dict__["_absent"][0])

    __getattr__ = __setattr__ = __call__ = __enter__ = __exit__ = __iter__ = __len__ = __getitem__ = _refuse
    __setitem__ = __delitem__ = __contains__ = __bool__ = __int__ = __float__ = __add__ = __next__ = _refuse


_raw = operator.attrgetter("_objValue")


class Tracker:
    """Remembers the attributes of `target` and tells what has changed since.

    `ignored`: names of attributes that belong to the framework.
    """

    def __init__(self, target: Any, ignored: Iterable[str]) -> None:
        self._target = target
        self._ignored = frozenset(ignored)
        self._marks: Dict[str, Any] = {}
        for name, value in vars(target).items():
            self._remember(name, value)
        # What is compared after every step, in columns: names and values of all attributes, scalars with their raw
        # values, empty containers, and all else that can change in place. Mostly nothing has changed, and that must
        # cost next to nothing.
        self._names: List[str] = []
        self._values: List[Any] = []
        self._boxes: List[Any] = []
        self._raws: List[Any] = []
        self._empty: List[Any] = []
        self._watched: List[Mark] = []

    def _remember(self, name: str, value: Any) -> None:
        if name in self._ignored or type(value) is Absent:
            return
        self._marks[name] = value if type(value) in ATOMS else marked(value, self._target)

    def changes(self) -> List[Change]:
        """The operations that lead from the state at the last call to the state now; then now is remembered."""
        if self.unchanged():
            return []
        found = self._compare()
        self._line_up()
        return found

    def look_again(self) -> None:
        """Attributes that could not be looked at before (another thread was writing to them) are, as they are now."""
        attributes = vars(self._target)
        for name, mark in list(self._marks.items()):
            if isinstance(mark, Mark) and mark.print is None and name in attributes:
                self._remember(name, attributes[name])
        self._names.clear()

    def unchanged(self) -> bool:
        """Whether `changes` would surely find nothing: everything is as it was when it was lined up last."""
        attributes = vars(self._target)
        if (
            list(attributes) != self._names
            or not all(map(operator.is_, attributes.values(), self._values))
            or not all(map(operator.is_, map(_raw, self._boxes), self._raws))
            or any(self._empty)
        ):
            return False
        for mark in self._watched:  # noqa: SIM110  # a generator would cost half as much again
            if not mark.same(mark.value):
                return False
        return True

    def _line_up(self) -> None:
        """All from the marks, not from what is there now: another thread may have changed it meanwhile."""
        self._names, self._values = [], []
        watched: List[Mark] = []
        for name, value in list(vars(self._target).items()):
            expected = value
            if name not in self._ignored and type(value) is not Absent:
                if name not in self._marks:
                    self._names = []  # it has just come: compare all next time
                    return
                expected = self._marks[name]
                if isinstance(expected, Mark):
                    watched.append(expected)
                    expected = expected.value
            self._names.append(name)
            self._values.append(expected)
        boxes = [m for m in watched if m.box]
        self._boxes, self._raws = [m.value for m in boxes], [m.print for m in boxes]
        rest = [m for m in watched if not m.box]
        self._empty = [m.value for m in rest if m.empty]
        self._watched = [m for m in rest if not m.empty]

    def _compare(self) -> List[Change]:
        marks, ignored = self._marks, self._ignored
        attributes = vars(self._target)
        found: List[Change] = []
        for name, value in list(attributes.items()):
            mark = marks.get(name, ABSENT)
            if mark is value or name in ignored or type(value) is Absent:
                continue
            edit = difference(mark, value)
            if edit is not None:
                found.append(change_of(name, edit))
                self._follow(name, value, edit)
            elif type(value) in ATOMS:
                marks[name] = value  # equal: to be told by identity the next time
        if not marks.keys() <= attributes.keys():
            for name in [n for n in marks if n not in attributes]:
                del marks[name]
                found.append(("-", name))
        return found

    def _follow(self, name: str, value: Any, edit: Edit) -> None:
        """`value` is what it was and that edit: bring the mark up to that, or make it anew."""
        mark = self._marks.get(name)
        if isinstance(mark, Mark) and mark.value is value and mark.follow(edit):
            if isinstance(mark, DictMark):
                mark.arm()
        else:
            self._remember(name, value)

    def apply(
        self, changes: Iterable[Change], pending: Sequence[Tuple[Change, Writes]] = ()
    ) -> None:  # fmt: skip
        """Carry out changes that others made, without reporting them as this object's own.

        `pending`: changes reported from here that those others had not heard of, each with what is known of its
        step's code. They come after `changes` in the truth: what they appended to the same lists is set aside
        meanwhile, and they are carried out again.
        """
        changes = list(changes)
        names = {change[1] for change in changes}
        again = [(change, writes) for change, writes in pending if change[1] in names]
        if again:
            self._set_aside([change for change, _ in again])
        attributes = vars(self._target)
        clean = set() if again else {n for n in names if self._is_clean(n, attributes.get(n, ABSENT))}
        for change in changes:
            apply(self._target, change)
            if change[1] in clean:
                self._follow_quietly(change, clean)
        for change, writes in again:
            name = change[1]
            news = [edit_of(other) for other in changes if other[1] == name]
            carry_out(attributes, name, redone(edit_of(change), attributes.get(name, ABSENT), news, writes, name))
        for name in names:
            mark = self._marks.get(name)
            if name in clean:
                if isinstance(mark, DictMark):
                    mark.arm()
            elif name in attributes:
                self._remember(name, attributes[name])
            else:
                self._marks.pop(name, None)
        self._names.clear()  # the next comparison lines everything up anew

    def _is_clean(self, name: str, value: Any) -> bool:
        mark = self._marks.get(name)
        return isinstance(mark, Mark) and getattr(mark, "watch", None) is not None and mark.same(value)

    def _follow_quietly(self, change: Change, clean: Set[str]) -> None:
        name = change[1]
        mark = self._marks[name]
        if mark.value is not vars(self._target).get(name) or not mark.follow(edit_of(change)):
            clean.discard(name)  # made anew at the end

    def _set_aside(self, pending: Sequence[Change]) -> None:
        """Take what was appended off the ends of lists, where nothing but appending happened to them."""
        replaced = {change[1] for change in pending if change[0] in "=~-n"}
        for name in {change[1] for change in pending} - replaced:
            value = vars(self._target).get(name)
            count = sum(len(change[3]) for change in pending if change[0] == "+" and change[1] == name)
            if count and type(value) is list:
                del value[-count:]


def pack_changes(changes: List[Change], anchor: Any) -> bytes:
    """A parcel of changes, checked to load again; SerializationError names the attribute that cannot travel."""
    try:
        parcel = wire.pack(changes, anchor)
        if parcel[:1] == b"p":
            wire.unpack(parcel, anchor)
        return parcel
    except BaseException as problem:
        raise _blame(changes, problem, anchor) from problem


def _blame(changes: List[Change], problem: BaseException, anchor: Any) -> SerializationError:
    guilty: Optional[str] = None
    for change in changes:
        try:
            wire.unpack(wire.pack(change, anchor), anchor)
        except BaseException as reason:
            guilty, problem = change[1], reason
            break
    error = SerializationError(
        f"the step changed attribute '{guilty}' of the protocol to something that cannot travel back from a worker "
        f"process ({type(problem).__name__}: {problem}): keep a path or plain data there, or run the step with "
        "@step(local=True)"
    )
    error.part = f"attribute '{guilty}'"
    return error
