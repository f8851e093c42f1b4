"""What the coordinator asks of those whose steps it runs: a protocol's run, or a pool."""

from __future__ import annotations

import typing
from typing import Any, List, Optional, Tuple

from mpsteps._core.steps import Status
from mpsteps._ipc.wire import Failure
from mpsteps.engines.base import Message


class Work(typing.Protocol):
    """What the steps are: their messages, and what is to be done when they end. Called by the coordinator's thread."""

    def take_in(self, item: Any) -> None:
        """Something that was posted, and is neither Replies nor a callable."""

    def take_orders(self) -> List[Message]:
        """Orders that must reach a worker before the messages that were just made for it."""

    def message(self, worker: int, step: int, attempt: int, gpus: Tuple[int, ...]) -> Message | Failure:
        """The message that runs a step; a Failure if it cannot travel."""

    def messages(self, worker: int, steps: Tuple[int, ...]) -> List[Message | Failure]:
        """The same for several ordinary steps: this is their first attempt, and they hold no cards."""

    def dispatching(self, pid: int, attempt: int, steps: Tuple[int, ...]) -> None:
        """These steps are about to be sent."""

    def run_local(self, step: int, message: Message) -> None:
        """Run a step in this process, beside the loop; `Coordinator.post(Replies(LOCAL, [reply]))` when it is done."""

    def running(self, step: int) -> None:
        """A worker begins this step."""

    def errands(self) -> List[Tuple[int, Message]]:
        """Orders to workers, each with the worker's number, that can be sent at any time."""

    def finished(self, worker: int, pid: int, step: int, seconds: float, cpu: float, extras: Any) -> Optional[Failure]:
        """A step ended well: take in value and changes. A Failure: they could not be taken in."""

    def finished_all(
        self, worker: int, pid: int, steps: Tuple[int, ...], seconds: List[float], cpu: List[float]
    ) -> None:
        """Steps ended well that left nothing to be taken in."""

    def failed(self, worker: int, pid: int, step: int, attempt: int, seconds: float, cpu: float, extras: Any, failure: Failure) -> None:  # noqa: E501
        """An attempt failed; `closed` or `retry` follows."""

    def closed(self, steps: Tuple[int, ...], status: Status, because: Optional[int]) -> None:
        """The fate of these steps is sealed."""

    def retry(self, step: int, attempt: int) -> None:
        """Another attempt will be made after this one."""

    def returned(self, steps: Tuple[int, ...]) -> None:
        """Steps that were sent have not been begun and wait again."""

    def worker_up(self, worker: int, pid: int) -> None:
        """A worker is there."""

    def worker_gone(self, worker: int) -> None:
        """A worker is no more."""

    def answer(self, worker: int, step: int, name: str, parcel: bytes) -> bytes:
        """Answer a request of a running step with a parcel of (good, value)."""

    def told(self, worker: int, message: Message) -> None:
        """A step that runs tells what it has changed so far, or wants the lock of all steps, or leaves it (CHANGED,
        LOCK, UNLOCK). What is to be answered goes by `errands`."""

    def timeout(self, step: int) -> Optional[float]:
        """Seconds that a step may run."""

    def is_interactive(self, step: int) -> bool:
        """Whether the step, once it ran, waits for a person."""

    def commit(self) -> None:
        """Write down what was recorded since the last call."""

    def is_over(self) -> bool:
        """Whether there is nothing left to do or to wait for."""

    def next_call(self, now: float) -> Optional[float]:
        """When (monotonic seconds) `on_time` wants to be called; None: not."""

    def on_time(self, now: float) -> None:
        """The time has come."""
