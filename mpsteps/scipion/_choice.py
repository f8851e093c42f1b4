"""Which step runs in the main process, and why: what its source says, and what its objects are."""

from __future__ import annotations

import os
from typing import Any, FrozenSet

import pyworkflow.object as pwobj

from mpsteps.scipion._places import Finding, Places
from mpsteps.scipion._travel import LOCK_TYPES

LOCAL_VARIABLE = "MPSTEPS_LOCAL"


class Choice:
    """For the steps of one protocol."""

    def __init__(self, protocol: Any) -> None:
        self._protocol = protocol
        self._places = Places(type(protocol), _names(os.environ.get(LOCAL_VARIABLE, "")))

    def inserts(self, step: Any) -> bool:
        """Whether it inserts others: it runs beside the workers and takes the place of none."""
        return self._finding(step).inserts

    def why_main(self, step: Any, is_local: bool, is_alone: bool) -> str:
        """Why it is to run in the main process; '': it need not. `is_alone`: nothing can run beside it."""
        found = self._finding(step)
        if found.main:
            return f"it uses {found.main}" if not found.main.startswith(("it ", "the ", "MPSTEPS")) else found.main
        if is_local:
            return "it inserts steps"
        for name in sorted(found.attributes):
            value = vars(self._protocol).get(name)
            if isinstance(value, LOCK_TYPES):
                return f"it uses the lock self.{name}"
            if _has_lock(value):
                return f"self.{name} has a lock of its own: threads share it"
        if step.isInteractive():
            return "it is interactive"
        if is_alone and found.sets:
            return "nothing can run beside it, and it sets attributes of the protocol"
        return ""

    def is_private(self, name: str, step: Any) -> bool:
        """Whether an attribute matters to nobody but this step's function."""
        function = getattr(step, "_func", None)
        return function is not None and self._places.is_private(name, function)

    def _finding(self, step: Any) -> Finding:
        function = getattr(step, "_func", None)
        if function is None:
            return Finding(f"the step is a {type(step).__name__}", False, True, frozenset())
        return self._places.of(function)


def _names(text: str) -> FrozenSet[str]:
    return frozenset(name.strip() for name in text.split(",") if name.strip())


def _has_lock(value: Any) -> bool:
    """Whether it is an object of a class written in Python that keeps threads apart by itself."""
    if value is None or isinstance(value, pwobj.Object):
        return False
    return any(isinstance(v, LOCK_TYPES) for v in getattr(value, "__dict__", {}).values())
