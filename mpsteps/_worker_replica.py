"""The protocol in a worker: what its steps have changed and others must hear of, and what it must hear from others.

What comes before what is argued in `mpsteps._statelog`, which is the other side of this.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Deque, List, Optional, Sequence, Tuple, Union

from mpsteps._ipc import state, wire
from mpsteps._ipc.wire import Failure
from mpsteps.errors import SerializationError


class Replica:
    """What a worker makes of the changes of `protocol`. None: a pool's, whose steps have no `self`.

    `ignored`: names of attributes that are the framework's own. `unheard`: news that came with steps that were given
    back, or with the lock.
    """

    def __init__(self, protocol: Any = None, ignored: Sequence[str] = ()) -> None:
        self._protocol = protocol
        self._tracker = None if protocol is None else state.Tracker(protocol, ignored)
        self._reported = 0  # how many replies told of changes of self
        # Those that may not have been taken in yet, each with the function of its step, and as it was told: what it put
        # on self may have been changed by later ones.
        self._pending: Deque[Tuple[int, Any, bytes]] = deque()
        self.unheard: List[Any] = []
        self._writes: Any = None

    @property
    def has_changed(self) -> bool:
        """Whether there is something to tell."""
        return self._tracker is not None and not self._tracker.unchanged()

    def pack_changes(self, function: Any) -> Union[None, bytes, Failure]:
        """What a step of `function` has changed since this was last asked, to be told; None: nothing.

        A Failure if it cannot travel: then there is something here that the others can never hear of.
        """
        assert self._tracker is not None
        try:
            changes = self._tracker.changes()
            if not changes:
                return None
            parcel = state.pack_changes(changes, self._protocol)
        except BaseException as error:
            part = error.part if isinstance(error, SerializationError) else "a change of self"
            return wire.describe(error, "serialization", part)
        self._reported += 1
        self._pending.append((self._reported, function if type(function) is str else None, parcel))
        return parcel

    # ------------------------------------------------------------------ what others have changed

    def hear_later(self, news: Any) -> None:
        """News are told once. These came with a step that is given back, say: the next one here must hear of them."""
        if news is not None:
            self.unheard.append(news)

    def hear(self, news: Any = None) -> None:
        """Take in what others changed, these news last. Runs the user's code: call it inside a try block."""
        unheard = self.unheard
        if news is not None:
            unheard.append(news)
        while unheard:
            taken_in, parcels = (unheard[0], ()) if type(unheard[0]) is int else unheard[0]
            pending = self._pending
            while pending and pending[0][0] <= taken_in:
                pending.popleft()
            if parcels and self._tracker is not None:
                changes = [c for parcel in parcels for c in wire.unpack(parcel, self._protocol)]
                again = [
                    (c, self._writes_of(fn)) for _, fn, own in pending for c in wire.unpack(own, self._protocol)
                ]  # fmt: skip
                self._tracker.apply(changes, again)
            del unheard[0]

    def _writes_of(self, function: Optional[str]) -> Any:
        """What the code of a step of this worker does with attributes."""
        if self._writes is None:
            from mpsteps._writes import WritesOf

            self._writes = WritesOf(type(self._protocol))
        return self._writes(function)
