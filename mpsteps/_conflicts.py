"""StateConflict in words: which two steps, which attribute, what each did, and the ways out."""

from __future__ import annotations

from typing import Any, Tuple

from mpsteps._ipc import wire
from mpsteps._ipc.edits import Edit
from mpsteps._ipc.merge import Conflict
from mpsteps.errors import StateConflict
from mpsteps.report import shorten


def state_conflict(conflict: Conflict, step: str, other: str, partly: bool = False) -> StateConflict:
    """The exception for `step`, which changed what `other` (with the word 'step', if it is one) had changed without its
    knowledge. The first item of the conflict's path is the attribute. `partly`: what it had changed before it last took
    or left the lock is there."""
    place = _place(conflict.path)
    since = " since it last took or left self._lock" if partly else ""
    return StateConflict(
        f"step {step} and {other} ran at the same time and both changed {place}: the latter {_did(conflict.theirs)}, "
        f"the former {_did(conflict.mine)}. Nothing of what step {step} changed on self{since} was taken over. Make "
        "one wait for the other (prerequisites), or let both do it under 'with self._lock:', or let each step write "
        "under a key of its own, append to a list or add with += (for arrays, mpsteps.shared_array)"
    )


def conflict_failure(error: StateConflict) -> wire.Failure:
    """How a step fails by it."""
    return wire.Failure("exception", "StateConflict", str(error), parcel=wire.pack_exception(error))


def called(step: Any) -> str:
    """How a step is called in such messages."""
    return f"{step._id} {step._funcName}{shorten(step._args)}"


def _place(path: Tuple[Any, ...]) -> str:
    return f"attribute '{path[0]}'" + (
        f" (self.{path[0]}{''.join(f'[{key!r}]' for key in path[1:])})" if path[1:] else ""
    )


def _did(edit: Edit) -> str:
    op = edit[0]
    if op == "-":
        return "deleted it"
    if op in "=n#v":
        return f"set it to {_short(edit[1])}" + (f" (it was {_short(edit[2])})" if op in "#v" else "")
    return {"+": "appended to it", "|": "added or discarded elements", "d": "changed items of it",
            "a": "changed cells of it"}.get(op, "changed its content")  # fmt: skip


def _short(value: Any) -> str:
    text: str = shorten((value,))
    return text[1:-1].rstrip(",")
