"""What a run sends to its workers: the protocol as it is when they start, and the messages of steps."""

from __future__ import annotations

import os
from typing import Any, Dict, List, Optional, Tuple

from mpsteps._image import Image, take_image
from mpsteps._ipc import wire
from mpsteps._ipc.large import travels_plainly
from mpsteps._ipc.wire import Failure
from mpsteps._large_values import LargeValues
from mpsteps._rundir import VALUES
from mpsteps._statelog import StateLog
from mpsteps._step_values import StepValues
from mpsteps.protocol import FRAMEWORK_ATTRIBUTES, Protocol
from mpsteps.steps import Step


class Outgoing:
    """The messages for workers of the run of `protocol`; `steps` are its steps, by id.

    `sync`: what workers store is to survive a power failure.
    """

    def __init__(
        self, protocol: Protocol, steps: List[Step], values: StepValues, blocks: LargeValues, state: StateLog,
        sync: bool,
    ) -> None:  # fmt: skip
        self._protocol = protocol
        self._steps = steps
        self._values = values
        self._blocks = blocks
        self._state = state
        self._sync = sync
        self._image: Tuple[int, Image] = (-1, {})

    def setup(self, worker: int) -> Dict[str, Any]:
        """What a new worker starts from. An image is taken anew when something has changed since the last one."""
        blocks, version = self._blocks, self._state.version
        if self._image[0] != version:
            blocks.end("image")
            image, notes = take_image(self._protocol, lambda value, anchor: blocks.pack(value, "image", anchor))
            self._image = (version, image)
            for note in notes:
                self._protocol.warning(note)
        self._state.join(worker)
        image = {**self._image[1], "state": blocks.tell(self._image[1]["state"], ("image", worker))}
        return {
            "image": image, "ignored": list(FRAMEWORK_ATTRIBUTES), "halt": not self._protocol.keepGoing,
            "arena": blocks.for_workers, "values": (os.path.join(self._protocol.getWorkingDir(), VALUES), self._sync),
        }  # fmt: skip

    def message(self, worker: int, step: int, attempt: int, extras: Optional[Dict[str, Any]]) -> Any:
        """The step message, or a Failure naming the part that cannot travel."""
        s = self._steps[step - 1]
        part = "function"
        try:
            fn = s._func if isinstance(s._func, str) else wire.pack(s._func, self._protocol)
            part = ""
            args: Any = s._args
            if not travels_plainly(args):
                args = self._blocks.pack((args, {}), ("step", step), self._protocol)
        except Exception as error:
            part = part or wire.what_cannot_travel(s._args, {}, self._protocol)
            failure = wire.describe(error, "serialization", part)
            return failure._replace(
                message=f"{part} cannot travel to a worker process ({failure.type_name}: {failure.message})"
            )
        if type(args) is not tuple:
            extras = self._values.add_used(s, extras)
        return (step, attempt, fn, args, self._state.news(worker, (step,)), extras)

    def messages(self, worker: int, steps: Tuple[int, ...]) -> List[Any]:
        """Those of several ordinary steps. The first that travels tells the worker what it has to hear of."""
        made: List[Any] = []
        all_steps = self._steps
        news_due = True
        for step in steps:
            s = all_steps[step - 1]
            func, args = s._func, s._args
            if news_due or type(func) is not str or not travels_plainly(args):
                message = self.message(worker, step, 1, None)
                news_due = news_due and type(message) is Failure
                made.append(message)
            else:
                made.append((step, 1, func, args, None, None))
        self._state.sent(worker, steps)
        return made
