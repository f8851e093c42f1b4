"""What steps returned: kept for steps that take them as arguments (`ResultOf`), for the journal, for the user.

What came from a worker stays closed until it is needed. A large value lies in a block of its worker's arena, where
other workers read it, and in a file of the run directory, which the worker has written: that is what the journal names,
what a resumed run finds, and what is left when the block has to make room for newer ones.
"""

from __future__ import annotations

import os
from collections import deque
from typing import Any, Deque, Dict, List, Optional, Tuple, Union

from mpsteps._ipc import wire
from mpsteps._ipc.blocks import BlockError, size_of
from mpsteps._ipc.large import Parcel
from mpsteps._large_values import LargeValues
from mpsteps._local import Here
from mpsteps._private_files import open_private
from mpsteps._result_of import results_used
from mpsteps._rundir import VALUES
from mpsteps.constants import STATUS_FINISHED
from mpsteps.steps import Sealed, Step


class Stored:
    """The file of the run directory in which a large value is: a parcel as `wire` writes it."""

    __slots__ = ("path",)

    def __init__(self, path: str) -> None:
        self.path = path

    def read(self) -> bytes:
        """The parcel. RunDirectoryError if the file is gone, or is not only ours."""
        with open(open_private(self.path, os.O_RDONLY), "rb") as f:
            return f.read()


_Value = Union[Parcel, Stored, Here]


class StepValues:
    """The values of the steps of `protocol`, by step id."""

    def __init__(
        self, protocol: Any, steps: List[Step], blocks: Optional[LargeValues] = None, run_dir: str = ""
    ) -> None:  # fmt: skip
        self._protocol = protocol
        self._steps = steps
        self._blocks = blocks
        self._run_dir = run_dir
        self._values: Dict[int, _Value] = {}
        self._in_blocks: Deque[Tuple[int, int, Stored]] = deque()  # step, bytes, file; oldest first
        self._held = 0  # bytes of them
        self._room = blocks.for_workers[0] // 2 if blocks else 0  # bytes that may stay in blocks

    def keep(self, step: Step, worker: int, value: Any, stored: Optional[str]) -> Optional[Dict[str, Any]]:
        """A step returned `value`, a parcel or Here; what the journal is to say of it, if it can be written down."""
        if value is None:
            return None
        if isinstance(value, Here):
            self._values[step._id], step._result = value, value.value
            return self._written(step, value.value)
        if stored is None:
            self._values[step._id], step._result = value, Sealed(value, self.open)
            return {"value": value}
        file = Stored(self._path(stored))
        self._values[step._id], step._result = file, Sealed(file, self.open)
        self._keep_block(step._id, worker, value, file)
        return {"stored": stored}

    def restore(self, step: Step, result: Dict[str, Any]) -> None:
        """A step finished in an earlier session, with this result in the journal."""
        if "stored" in result:
            value: Any = Stored(self._path(result["stored"]))
        elif "value" in result:
            value = result["value"]
        else:
            return
        self._values[step._id], step._result = value, Sealed(value, self.open)

    def open(self, value: Any) -> Any:
        """The object in a parcel, or in a file; references to the protocol mean this one."""
        return wire.unpack(value.read() if isinstance(value, Stored) else value, self._protocol)

    def add_used(self, step: Step, extras: Optional[Dict[str, Any]]) -> Optional[Dict[str, Any]]:
        """`extras` of a step's message with the parcels of the results that stand in its arguments."""
        used = set(results_used(step._args))
        if not used:
            return extras
        return {**(extras or {}), "results": {u: self._parcel(u, step._id) for u in used}}

    def here(self, step: int) -> Any:
        """The value of a step, for one that runs in this process."""
        value = self._values.get(step)
        if isinstance(value, Here):
            return value.value
        if isinstance(value, list) and self._blocks is not None:
            return self._blocks.open(value, self._protocol)
        return None if value is None else self.open(value)

    def _path(self, stored: str) -> str:
        return os.path.join(self._run_dir, VALUES, os.path.basename(stored))

    def _written(self, step: Step, value: Any) -> Optional[Dict[str, Any]]:
        try:
            return {"value": wire.pack(value, self._protocol)}
        except Exception as error:
            self._protocol.warning(
                f"the result of step {step} cannot be written to the journal ({type(error).__name__}: {error}): "
                "a resumed run will run this step again"
            )
            return None

    def _keep_block(self, step: int, worker: int, value: Parcel, file: Stored) -> None:
        """As long as there is room, a large value is told to others by its block."""
        if self._blocks is None or isinstance(value, bytes):
            return
        try:
            self._blocks.hold(worker, value, ("value", step))
        except BlockError:
            return  # its worker has died meanwhile: the file has it
        self._values[step] = value
        self._in_blocks.append((step, size_of(value[1]), file))
        self._held += size_of(value[1])
        while self._held > self._room and len(self._in_blocks) > 1:
            old, size, its_file = self._in_blocks.popleft()
            self._held -= size
            self._values[old] = its_file
            self._blocks.end(("value", old))

    def _parcel(self, used: int, step: int) -> Optional[Parcel]:
        """The parcel of a result for `step`; None for one that is sent just before it."""
        if self._steps[used - 1]._status != STATUS_FINISHED:
            return None
        value = self._values.get(used)
        if isinstance(value, list) and self._blocks is not None:
            return self._blocks.tell(value, ("step", step))
        if isinstance(value, Stored):
            return value.read()
        if isinstance(value, bytes):
            return value
        return wire.pack(value.value if isinstance(value, Here) else None, self._protocol)

