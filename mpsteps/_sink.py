"""What steps may do to the graph while the run goes on: insert steps, connect them, release those that wait.

A step in a worker asks by a request, which the coordinator answers in its loop; a step in this process, and
`_stepsCheck`, call here directly, from their own thread or the loop's. Ids are given out at once, under a lock; what
the scheduler has to hear of is done in the loop's thread only.
"""

from __future__ import annotations

import concurrent.futures
import threading
import typing
from typing import Any, Callable, List, Set, Tuple

from mpsteps import _context
from mpsteps._coordinator import Coordinator
from mpsteps._core.events import Event, PrerequisitesAdded, StepHeld, StepReleased
from mpsteps._ipc import wire
from mpsteps.constants import STATUS_NEW
from mpsteps.errors import PrerequisiteError
from mpsteps.protocol import Protocol, check_prerequisites
from mpsteps.steps import Step


class Run(typing.Protocol):
    """What the sink needs of the run."""

    coordinator: Coordinator
    protocol: Protocol
    steps: List[Step]

    def take_inserted(self, step: Step) -> None:
        """A new step is in `steps`; called in the loop's thread."""

    def key(self, step: int) -> str:
        """The name of a step that is the same in every run; called in the loop's thread."""

    def keep_digest(self, step: int) -> None:
        """A step is to wait for more than it was inserted with; by that it is recognised."""


class RunSink:
    """The `StepSink` of a protocol that runs. Made in the loop's thread.

    `changed_graph`: the steps that did any of this while they ran; a resume has to know.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self.changed_graph: Set[int] = set()
        self._insert_lock = threading.Lock()  # ids are given out by one thread at a time
        self._loop_thread = threading.get_ident()

    def insert(self, step: Step) -> int:
        """Insert a step; its id."""
        run = self._run
        self._note_change()
        with self._insert_lock:
            step._id = len(run.steps) + 1
            check_prerequisites(step, len(run.steps))
            run.steps.append(step)
        run.protocol._numberOfSteps.set(len(run.steps))
        run.coordinator.post(lambda: run.take_inserted(step))
        return step._id

    def add_prerequisites(self, step_id: int, prerequisites: Tuple[int, ...]) -> None:
        """A step that has not started waits for more steps."""
        self._note_change()
        self._in_loop(lambda: self._add_prerequisites(step_id, prerequisites))

    def key(self, step_id: int) -> str:
        """The name of a step that is the same in every run."""
        found: List[str] = []
        self._in_loop(lambda: found.append(self._run.key(step_id)))
        return found[0]

    def _add_prerequisites(self, step_id: int, prerequisites: Tuple[int, ...]) -> None:
        if 0 < step_id <= len(self._run.steps):
            self._run.keep_digest(step_id)
        self._tell(step_id, PrerequisitesAdded(step_id, prerequisites))

    def set_status(self, step_id: int, status: str) -> None:
        """Release or hold a step."""
        self._note_change()
        event: Event = StepReleased(step_id) if status == STATUS_NEW else StepHeld(step_id)
        self._in_loop(lambda: self._tell(step_id, event))

    def _note_change(self) -> None:
        """Remember which step of this process does it; those in workers are noted by `answer`."""
        context = _context.current()
        if context is not None:
            self.changed_graph.add(context.step)

    def _tell(self, step_id: int, event: Event) -> None:
        run = self._run
        run.coordinator.take_inbox()  # the step may have been inserted a moment ago
        if not 0 < step_id <= len(run.steps):
            raise PrerequisiteError(f"there is no step {step_id}")
        run.coordinator.handle(event)
        run.coordinator.changes_posted += 1

    def _in_loop(self, call: Callable[[], None]) -> None:
        """Do it in the coordinator's thread, and wait for it; errors are raised here."""
        if threading.get_ident() == self._loop_thread:
            call()
            return
        done: concurrent.futures.Future[None] = concurrent.futures.Future()

        def run() -> None:
            try:
                call()
                done.set_result(None)
            except BaseException as error:
                done.set_exception(error)

        self._run.coordinator.post(run)
        done.result()

    # ------------------------------------------------------------ requests from workers

    def answer(self, step: int, name: str, parcel: bytes) -> bytes:
        """Serve a request of `step`, which runs in a worker: a parcel of (good, value or exception)."""
        protocol = self._run.protocol
        try:
            args = wire.unpack(parcel, protocol)
            if name in ("insert", "add_prerequisites", "set_status"):
                self.changed_graph.add(step)
            value = getattr(self, f"_answer_{name}")(*args)
            return wire.pack((True, value), protocol)
        except Exception as error:
            return wire.pack((False, error), protocol)

    def _answer_insert(
        self, func: Any, name: str, args: Tuple[Any, ...], prerequisites: Tuple[int, ...], wait: bool,
        interactive: bool, needs_gpu: bool,
    ) -> int:  # fmt: skip
        owner = self._run.protocol._owner
        return self.insert(Step(func, name, args, prerequisites, wait, interactive, needs_gpu, owner))

    def _answer_add_prerequisites(self, step_id: int, prerequisites: Tuple[int, ...]) -> None:
        self.add_prerequisites(step_id, prerequisites)
        step = self._run.steps[step_id - 1]
        step._prerequisites += tuple(p for p in prerequisites if p not in step._prerequisites)

    def _answer_set_status(self, step_id: int, status: str) -> None:
        self.set_status(step_id, status)
        self._run.steps[step_id - 1]._status = status

    def _answer_key(self, step_id: int) -> str:
        return self.key(step_id)

    def _answer_count(self) -> int:
        return len(self._run.steps)

    def _answer_step(self, step_id: int) -> Tuple[Any, ...]:
        s = self._run.steps[step_id - 1]
        return s._funcName, s._args, s._prerequisites, s._status, s._interactive, s._needsGPU
