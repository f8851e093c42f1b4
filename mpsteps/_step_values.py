"""What steps returned: kept as parcels for steps that take them as arguments (`ResultOf`), the journal, the user."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

from mpsteps._ipc import wire
from mpsteps._local import Here
from mpsteps.constants import STATUS_FINISHED
from mpsteps.steps import Sealed, Step, results_used


class StepValues:
    """The values of the steps of `protocol`, by step id. What came from a worker stays closed until it is needed."""

    def __init__(self, protocol: Any, steps: List[Step]) -> None:
        self._protocol = protocol
        self._steps = steps
        self._values: Dict[int, Any] = {}  # a parcel, or Here

    def keep(self, step: Step, value: Any) -> Optional[bytes]:
        """A step returned `value`, a parcel or Here; its parcel for the journal, if it can be written down."""
        if value is None:
            return None
        self._values[step._id] = value
        if isinstance(value, Here):
            step._result = value.value
            try:
                return wire.pack(value.value, self._protocol)
            except Exception as error:
                self._protocol.warning(
                    f"the result of step {step} cannot be written to the journal ({type(error).__name__}: {error}): "
                    "a resumed run will run this step again"
                )
                return None
        step._result = Sealed(value, self.open)
        return value  # type: ignore[no-any-return]

    def open(self, parcel: bytes) -> Any:
        """The object in a parcel; references to the protocol mean this one."""
        return wire.unpack(parcel, self._protocol)

    def add_used(self, step: Step, extras: Optional[Dict[str, Any]]) -> Optional[Dict[str, Any]]:
        """`extras` of a step's message with the parcels of the results that stand in its arguments."""
        used = set(results_used(step._args))
        if not used:
            return extras
        return {**(extras or {}), "results": {u: self._parcel(u) for u in used}}

    def _parcel(self, step: int) -> Optional[bytes]:
        """The parcel of a step's result; None for a step that is sent just before the one that takes it."""
        if self._steps[step - 1]._status != STATUS_FINISHED:
            return None
        value = self._values.get(step)
        if isinstance(value, bytes):
            return value
        return wire.pack(value.value if isinstance(value, Here) else None, self._protocol)

    def here(self, step: int) -> Any:
        """The value of a step, for one that runs in this process."""
        value = self._values.get(step)
        if isinstance(value, Here):
            return value.value
        return None if value is None else self.open(value)
