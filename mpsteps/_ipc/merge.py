"""Concurrent changes: how an edit goes together with those of other steps that its own step had not heard of.

    lists      what was appended goes to the end
    dicts      key by key; what two did to one key goes together by these same rules
    sets       elements come and go; one that came here and went there is a conflict
    numbers    differences add up, if both steps only do arithmetic with that attribute
    arrays     cell by cell; of a cell that two changed the differences add up, or both must agree
    all else   equal values agree; anything else is a conflict

Values alone do not say what was meant: 0 that became 1 in two steps may have been counted up twice, or set to 1 twice.
So it is asked what the code of the steps does with the attribute (`Writes`); where that is not known either, or not
one thing only, numbers conflict even if they are equal. The same goes for a list that two steps begin: `setdefault(key,
[]).append(x)` twice is a list of two items, `= [x]` twice is not.
"""

from __future__ import annotations

import collections
import typing
from typing import Any, Callable, Dict, List, Sequence, Tuple

from mpsteps._ipc import cells
from mpsteps._ipc.edits import ABSENT, Edit, added_up, is_number, raw, same_value


class Writes(typing.Protocol):
    """What the code of a step does with the attribute `name` (or, if `inside`, with what is in it)."""

    def adds(self, name: str, inside: bool) -> bool:
        """It only adds to it, or subtracts, and perhaps begins it with a zero where there was nothing."""

    def begins(self, name: str, inside: bool) -> bool:
        """It assigns nothing to it, but for empty beginnings where there was nothing."""

    def sets(self, name: str, inside: bool) -> bool:
        """It only assigns to it."""


class Unknown:
    """Writes of a step whose code cannot be looked at."""

    def adds(self, name: str, inside: bool) -> bool:
        """Not known to."""
        return False

    begins = sets = adds


UNKNOWN = Unknown()


class Conflict(Exception):
    """`step` changed the same before, and the two changes do not go together. `path`: keys inside the attribute."""

    def __init__(self, step: int, path: Tuple[Any, ...], mine: Edit, theirs: Edit) -> None:
        super().__init__(step, path)
        self.step = step
        self.path = path
        self.mine = mine
        self.theirs = theirs


class Merge:
    """Merges what `step` did to the attribute `name`. `writes`: of a step, by its id."""

    def __init__(self, name: str, step: int, writes: Callable[[int], Writes]) -> None:
        self._name = name
        self._step = step
        self._writes = writes

    def __call__(self, edit: Edit, now: Any, earlier: Sequence[Tuple[int, Edit]]) -> Edit:
        """The edit as it is to be carried out on `now`, which has those in `earlier` (with their steps' ids). Raises
        Conflict."""
        return self._merged(edit, now, earlier, (), False)

    def _merged(
        self, edit: Edit, now: Any, earlier: Sequence[Tuple[int, Edit]], path: Tuple[Any, ...], counts: bool
    ) -> Edit:
        if not earlier:
            return placed(edit, now)
        inside = bool(path)
        for step, other in earlier:
            if not self._go_together(edit, step, other, inside, counts):
                raise Conflict(step, path, edit, other)
        items = _items(edit)
        if items is None or _kind(earlier[0][1]) != "dict" or not isinstance(now, dict):
            return upon(edit, now, self._writes(self._step), self._name, inside, counts)
        theirs: Dict[Any, List[Tuple[int, Edit]]] = {}
        for step, other in earlier:
            for key, inner in (_items(other) or {}).items():
                theirs.setdefault(key, []).append((step, inner))
        counter = type(now) is collections.Counter
        return ("d", {
            key: self._merged(inner, now.get(key, ABSENT), theirs.get(key, ()), (*path, key), counter)
            for key, inner in items.items()
        })  # fmt: skip

    def _go_together(self, edit: Edit, step: int, other: Edit, inside: bool, counts: bool) -> bool:
        """Whether two edits can be merged; of dicts, whether it is worth looking key by key."""
        kind, name = _kind(edit), self._name
        mine, theirs = self._writes(self._step), self._writes(step)
        if kind and kind == _kind(other):
            if kind == "number":
                if counts or (mine.adds(name, inside) and theirs.adds(name, inside)):
                    return True
                equal = same_value(raw(edit[1]), raw(other[1]))
                return equal and mine.sets(name, inside) and theirs.sets(name, inside)
            if kind == "cells":
                if cells.overlap(edit[1:], other[1:]) is None:
                    return True
                one, two = _adds_cells(mine, name), _adds_cells(theirs, name)
                return (one and two) or (not (one or two) and cells.agree(edit[1:], other[1:]))
            begun = (edit[0] != "n" or mine.begins(name, inside)) and (other[0] != "n" or theirs.begins(name, inside))
            if begun and (kind != "set" or _sets_agree(edit, other)):
                return True
        if edit[0] == "-" or other[0] == "-":
            return bool(edit[0] == other[0])
        if edit[0] not in "=n~#v" or other[0] not in "=n~#v":
            return False
        return same_value(raw(edit[1]), raw(other[1])) and not (mine.adds(name, inside) or theirs.adds(name, inside))


def placed(edit: Edit, now: Any) -> Edit:
    """The edit with the places in the true lists that appended items get."""
    if edit[0] == "+":
        return ("+", len(now) if type(now) is list else 0, edit[2])
    if edit[0] == "d":
        items = now if isinstance(now, dict) else {}
        return ("d", {key: placed(inner, items.get(key, ABSENT)) for key, inner in edit[1].items()})
    return edit


def upon(edit: Edit, now: Any, writes: Writes, name: str, inside: bool = False, counts: bool = False) -> Edit:
    """The edit as it is to be carried out on `now`, which has changes that its step had not heard of. What does not go
    together with them overwrites them. `counts`: it is an item of a Counter."""
    kind = _kind(edit)
    if edit[0] == "n" and kind in ("list", "set", "dict") and not writes.begins(name, inside):
        return edit
    if kind == "list" and type(now) is list:
        return ("+", len(now), edit[2] if edit[0] == "+" else edit[1])
    if kind == "set" and type(now) is set:
        return edit if edit[0] == "|" else ("|", edit[1], set())
    if kind == "dict" and (isinstance(now, dict) or (now is ABSENT and edit[0] == "d")):
        counter, there = type(now) is collections.Counter, {} if now is ABSENT else now
        return ("d", {
            key: upon(inner, there.get(key, ABSENT), writes, name, True, counter)
            for key, inner in (_items(edit) or {}).items()
        })  # fmt: skip
    if kind == "number" and now is ABSENT and edit[0] == "#" and writes.adds(name, inside):
        return ("n", added_up(edit[2] - edit[2], edit))  # what it counted on is not there: from zero, then
    if kind == "number" and now is not ABSENT and is_number(raw(now)) and (counts or writes.adds(name, inside)):
        old = 0 if edit[0] == "n" else edit[2]
        if raw(now) == raw(old):
            return edit
        total = added_up(now, ("#", edit[1], old))
        return ("v", raw(total), raw(now)) if edit[0] == "v" else ("#", total, now)
    if kind == "cells" and _adds_cells(writes, name) and cells.can_add(now):
        return ("a", *cells.added_up(now, edit[1:]))
    return placed(edit, now)


def redone(
    edit: Edit, now: Any, news: Sequence[Edit], writes: Writes, name: str, inside: bool = False, counts: bool = False
) -> Edit:  # fmt: skip
    """The edit as it is to be carried out on `now`, which had it already until `news` came: only what they have written
    over is done again. (All that they say of lists begins where the truth ends that they know of, so that they have cut
    off what was appended since.)"""
    items = _items(edit)
    if items is not None and isinstance(now, dict) and all(other[0] == "d" for other in news):
        counter, again = type(now) is collections.Counter, {}
        for key, inner in items.items():
            touching = [other[1][key] for other in news if key in other[1]]
            if touching:
                again[key] = redone(inner, now.get(key, ABSENT), touching, writes, name, True, counter)
        return ("d", again)
    if edit[0] == "a" and all(other[0] == "a" for other in news):
        edit = ("a", *cells.among(edit[1:], [other[1] for other in news]))
    return upon(edit, now, writes, name, inside, counts)


def stands_on(edit: Edit, now: Any) -> bool:
    """Whether what an edit changed in place is there in `now`. (A number need not be: then it counts from zero.)"""
    if edit[0] == "d":
        return isinstance(now, dict) and all(stands_on(e, now.get(k, ABSENT)) for k, e in edit[1].items())
    return edit[0] != "~" and (edit[0] not in "+|a" or now is not ABSENT)


def _adds_cells(writes: Writes, name: str) -> bool:
    """`self.sum += image` and `self.sum[row] += line` alike."""
    return writes.adds(name, True) or writes.adds(name, False)


def _kind(edit: Edit) -> str:
    """What kind of thing grows by it; '': it does not grow."""
    op = edit[0]
    if op in "+|da":
        return {"+": "list", "|": "set", "d": "dict", "a": "cells"}[op]
    if op in "#vn" and is_number(raw(edit[1])) and (op == "n" or is_number(raw(edit[2]))):
        return "number"
    if op == "n":
        value = edit[1]
        if isinstance(value, dict):
            return "dict"
        return "list" if type(value) is list else "set" if type(value) is set else ""
    return ""


def _items(edit: Edit) -> Any:
    """A dict of edits, if it is a dict that was changed or begun."""
    if edit[0] == "d":
        return edit[1]
    if edit[0] == "n" and isinstance(edit[1], dict):
        return {key: ("n", value) for key, value in edit[1].items()}
    return None


def _sets_agree(one: Edit, two: Edit) -> bool:
    """Whether no element came by one and went by the other."""
    added1, gone1 = (one[1], one[2]) if one[0] == "|" else (one[1], ())
    added2, gone2 = (two[1], two[2]) if two[0] == "|" else (two[1], ())
    return bool(added1.isdisjoint(gone2) and added2.isdisjoint(gone1))
