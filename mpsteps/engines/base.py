"""What the coordinator asks of an engine, and what an engine tells it."""

from __future__ import annotations

import typing
from typing import Any, Container, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

from mpsteps._core.steps import Node
from mpsteps._ipc.wire import Failure

Message = Tuple[Any, ...]
"""See `mpsteps._ipc.wire` for what stands in a message and in a reply."""


class WorkerUp(NamedTuple):
    """A worker is ready for steps. `node`: the machine that it is on, where there are several."""

    worker: int
    pid: int
    node: Optional[Node] = None


class Replies(NamedTuple):
    """What a worker put into its lane, in order. `apart`: how many of its steps, these and all before, left something
    or failed, as it counts them itself (see `mpsteps._ipc.standing`)."""

    worker: int
    messages: List[Message]
    apart: int = 0


class WorkerGone(NamedTuple):
    """A worker died. `done`: steps that it had finished but not reported; `began`: the step it was running (None:
    between steps). All others of its lane were never begun. `exitcode` as `subprocess` gives it; None: unknown. `why`:
    what is known of it where it died, on another node; None: the coordinator finds out itself."""

    worker: int
    pid: int
    exitcode: Optional[int]
    done: Tuple[int, ...]
    began: Optional[int]
    peak_kib: int
    log: str
    why: Optional[Failure] = None


class EngineFailed(NamedTuple):
    """No more workers can be had; `reason` is a sentence."""

    reason: str


Happening = Union[WorkerUp, Replies, WorkerGone, EngineFailed]


class Engine(typing.Protocol):
    """Runs step messages somewhere. All methods are called by the coordinator's thread, `wake` by any.

    `by_value`: messages cross a process boundary, so that everything in them must travel. `across`: workers see how far
    the others have come, so that steps can follow steps of other lanes. `elsewhere`: workers may be on other machines,
    where the coordinator cannot look at processes: `limit_memory` has it done there.
    """

    by_value: bool
    across: bool
    elsewhere: bool

    def start(self) -> None:
        """Begin to bring workers up. Raises EngineError if that cannot even be tried."""

    def send(self, worker: int, messages: List[Message]) -> None:
        """Put messages into a worker's lane. Never blocks."""

    def number_peers(
        self, outgoing: Sequence[Tuple[int, List[Message]]], apart: Mapping[int, int], ended: Container[int]
    ) -> None:
        """These messages are about to be sent to these workers, in this order: complete the `peers` in their extras,
        which have the worker of each step, to (worker, number of its message or ENDED, apart). `apart`: of workers, as
        heard of; none if not there. `ended`: the steps that have ENDED. (Only where `across`.)"""

    def revoke(self, worker: int) -> None:
        """Take the steps that a worker has not begun out of its lane: `wait` tells RETURNED for each."""

    def running(self, worker: int) -> Optional[int]:
        """The step that a worker has begun and not answered for; None: none, or it is not known."""

    def log(self, worker: int) -> Optional[str]:
        """The file that a worker's output goes to while a step runs; None: nowhere that can be read here."""

    def kill(self, worker: int, signal: int) -> None:
        """Send a signal to a worker and the programs it has started."""

    def limit_memory(self, worker: int, step: int, limit: int) -> None:
        """A worker is about to be sent a step that may use so many bytes: end it if it uses more, and say so in
        `WorkerGone.why`. (Only where `elsewhere`.)"""

    def wait(self, timeout: Optional[float]) -> List[Happening]:
        """Sleep until something happens, `wake` is called or `timeout` seconds have passed; what happened."""

    def wake(self) -> None:
        """Make a `wait` that sleeps return. May be called from any thread and from a signal handler."""

    def pid(self, worker: int) -> int:
        """The process that runs a worker's steps."""

    def stop(self, at_once: bool = False) -> None:
        """End all workers, and everything that they have started."""
