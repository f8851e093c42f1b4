"""The steps of a protocol as its replica in a worker sees them: whatever is asked of them, or done to them, is asked of
the coordinator."""

from __future__ import annotations

import typing
from typing import Any, Tuple


class Asks(typing.Protocol):
    """Who can ask the coordinator: the worker."""

    def request(self, name: str, *args: Any) -> Any:
        """Ask and wait for the answer; raises what the coordinator answers with."""


class RemoteSink:
    """Where the protocol of a worker inserts steps: the coordinator, by a request."""

    def __init__(self, worker: Asks) -> None:
        self._worker = worker

    def insert(self, step: Any) -> int:
        """Insert a step; its real id."""
        return int(
            self._worker.request(
                "insert", step._func, step._funcName, step._args, step._prerequisites, step.isWaiting(),
                step._interactive, step._needsGPU,
            )
        )  # fmt: skip

    def add_prerequisites(self, step_id: int, prerequisites: Tuple[int, ...]) -> None:
        """A step that has not started waits for more steps."""
        self._worker.request("add_prerequisites", step_id, prerequisites)

    def set_status(self, step_id: int, status: str) -> None:
        """Release or hold a step."""
        self._worker.request("set_status", step_id, status)

    def key(self, step_id: int) -> str:
        """The name of a step that is the same in every run."""
        return str(self._worker.request("key", step_id))


class RemoteSteps:
    """`protocol._steps` in a worker: its length and its steps are asked of the coordinator when they are needed."""

    def __init__(self, worker: Asks) -> None:
        self._worker = worker

    def __len__(self) -> int:
        return int(self._worker.request("count"))

    def __getitem__(self, index: int) -> Any:
        count = len(self)
        position = index + count if index < 0 else index
        if not 0 <= position < count:
            raise IndexError(f"there is no step {position + 1}: the protocol has {count} steps")
        from mpsteps.steps import Step, StepOwner

        func_name, args, prerequisites, status, interactive, needs_gpu = self._worker.request("step", position + 1)
        owner = StepOwner(RemoteSink(self._worker))
        step = Step(func_name, func_name, args, tuple(prerequisites), False, interactive, needs_gpu, owner)
        step._id, step._status = position + 1, status
        return step
