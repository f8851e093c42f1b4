"""How a value of `self` came to be another one, told as small operations that others can carry out.

An *edit* is a tuple, its first element says what happened:

    ("=", value)                 it was set: other names keep what it was before
    ("n", value)                 it was set where there had been nothing, or None
    ("~", value)                 its content was changed in a way that has no smaller description
    ("#", value, old)            a number (or a param with one) that was `old` was replaced by `value`
    ("v", value, old)            a param was `.set()`
    ("-",)                       it was deleted
    ("+", start, items)          a list that was `start` long grew by `items`: it is now what it was up to `start`, then
                                 `items`
    ("|", added, gone)           elements of a set were added or discarded
    ("d", {key: edit})           items of a dict
    ("a", cells, values, olds)   elements of an array, by their positions in it when it is flattened

A *change* is an edit of an attribute of `self`, whose name comes second: ("=", name, value), ("-", name), and so on.
Edits are carried out in place, so that other names for the same list, dict, set, array or param see them too.
"""

from __future__ import annotations

import copy
import numbers
from typing import Any, Dict, Iterable, List, Tuple

Edit = Tuple[Any, ...]
Change = Tuple[Any, ...]

ATOMS = frozenset({type(None), bool, int, float, str, bytes, complex})


class _NotThere:
    """The type of ABSENT, which stands for what is not there: an attribute, an item."""

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Any = _NotThere()


def edit_of(change: Change) -> Edit:
    """A change without the name of the attribute."""
    return (change[0], *change[2:])


def change_of(name: str, edit: Edit) -> Change:
    """An edit of that attribute."""
    return (edit[0], name, *edit[1:])


def apply(target: Any, change: Change) -> None:
    """Carry out one change of `target`."""
    attributes: Dict[str, Any] = target.__dict__
    carry_out(attributes, change[1], edit_of(change))


def carry_out(holder: Any, key: Any, edit: Edit) -> None:
    """Carry out one edit of the item `key` of a dict."""
    if edit[0] == "-":
        holder.pop(key, None)
        return
    now = holder.get(key, ABSENT)
    value = edited(now, edit)
    if value is not now:
        holder[key] = value


def edited(now: Any, edit: Edit) -> Any:
    """`now` after an edit: the same object where there is one that can be changed. Where it is no longer of the type
    that was edited (another step has replaced it), it is begun anew."""
    op = edit[0]
    if op == "~":
        return _with_content(now, edit[1])
    if op == "+":
        if type(now) is not list:
            return list(edit[2])
        now[edit[1] :] = edit[2]
    elif op == "d":
        now = now if isinstance(now, dict) else {}
        for key, inner in edit[1].items():
            carry_out(now, key, inner)
    elif op == "k":  # items set, keys deleted: so it stands in journals of version 0.1
        now = now if isinstance(now, dict) else {}
        now.update(edit[1])
        for key in edit[2]:
            now.pop(key, None)
    elif op == "|":
        now = now if type(now) is set else set()
        now |= edit[1]
        now -= edit[2]
    elif op == "v":
        if not is_scalar(now):
            return edit[1]
        now.set(edit[1])
    elif op == "a":
        return _with_cells(now, edit)
    else:
        return edit[1]
    return now


def _with_content(now: Any, value: Any) -> Any:
    if type(now) is not type(value):
        return value
    if type(value) is list:
        now[:] = value
    elif type(value) is set or isinstance(value, dict):
        now.clear()
        now.update(value)
    else:
        return value
    return now


def _with_cells(now: Any, edit: Edit) -> Any:
    if not now.flags.writeable:
        now = now.copy()
    now.flat[edit[1]] = edit[2]
    return now


def is_scalar(value: Any) -> bool:
    """Whether it is the value of a param, told by its methods so that scalars of pyworkflow count as well. (Its other
    objects, an image say, have these methods, too: they are marked as such by `scipion._travel`.)"""
    return (
        hasattr(value, "get") and hasattr(value, "set") and hasattr(value, "hasValue")
        and not getattr(value, "_mpstepsNoScalar", False)
    )  # fmt: skip


def raw(value: Any) -> Any:
    """What a param holds; other values as they are."""
    return value.get() if type(value) not in ATOMS and is_scalar(value) else value


def is_number(value: Any) -> bool:
    """Whether differences of it mean something: an int, float, complex, one of numpy or decimal; no bool."""
    kind = type(value)
    return kind is int or kind is float or (kind is not bool and isinstance(value, numbers.Number))


def replaced(old: Any, value: Any) -> Edit:
    """The edit by which `value` took the place of another object, or of ABSENT."""
    if old is ABSENT or old is None:
        return ("n", value)
    if is_number(raw(value)) and is_number(raw(old)):
        return ("#", value, old)
    return ("=", value)


def added_up(now: Any, edit: Edit) -> Any:
    """A number, or a param with one, after the difference that an edit makes has been added."""
    _, value, old = edit
    total = raw(now) + (raw(value) - raw(old))
    if value is raw(value):
        return total
    param = copy.copy(now if is_scalar(now) else value)
    param.set(total)
    return param


def same_value(a: Any, b: Any) -> bool:
    """Whether two values are equal in type and content; False where that cannot be said."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    try:
        if hasattr(a, "dtype") and hasattr(a, "tobytes"):
            return bool(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(same_value(v, b[k]) for k, v in a.items())
        if isinstance(a, (list, tuple)):
            return len(a) == len(b) and all(map(same_value, a, b))
        return bool(a == b) or repr(a) == repr(b) == "nan"
    except Exception:  # the user's own __eq__: then they are not known to be equal
        return False


def names_of(changes: Iterable[Change]) -> List[str]:
    """The attributes that are changed, each once, in order."""
    return list(dict.fromkeys(change[1] for change in changes))
