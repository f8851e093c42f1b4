"""What has finished in a worker lately: whether a step that was sent ahead may run, and what it takes from others."""

from __future__ import annotations

import itertools
import time
from typing import Any, Dict, Optional, Tuple

from mpsteps._ipc.lane import WorkerEnd
from mpsteps._ipc.large import Parcel
from mpsteps._worker_replies import FLUSH_SECONDS, PUT_SECONDS, WorkerReplies

RECENT_STEPS = 1024
"""So many finished steps a worker remembers, for those that are sent ahead: several times the depth of a lane."""
RECENT_BYTES = 65_536
"""... with what they returned, up to this size."""
PEER_SECONDS = 20e-3
"""A step of another lane is waited for so long; then the one that follows it is given back. Several times what lanes
are given ahead of time."""
_NOT_HERE = b""
"""In place of a value that this worker does not keep, or has never had: who takes it gives itself back."""


class RecentSteps:
    """The last steps that finished in the worker at `end`, and those of other lanes that it has waited for.

    `patient`: it has not waited in vain for another lane since it had nothing to do; set by the worker when it has
    nothing to do.
    """

    def __init__(self, end: WorkerEnd, replies: WorkerReplies) -> None:
        self._end = end
        self._replies = replies
        self._values: Dict[int, Optional[bytes]] = {}  # step -> parcel of its value
        self.patient = True

    def may_run(self, extras: Dict[str, Any]) -> bool:
        """Whether a step that was sent ahead can run: its prerequisites have finished here, or left nothing elsewhere,
        and what it takes from them is still known. If in doubt, not: the coordinator then sends it again, with
        everything."""
        peers = extras.get("peers")
        if peers is not None:
            for step, peer in peers.items():
                if not self._has_finished(peer):
                    return False
                self.add(step, _NOT_HERE)  # its value, if it has one, is not known here
        values, results = self._values, extras.get("results", {})
        taken = [p for p, parcel in results.items() if parcel is None]
        return all(p in values for p in extras["ahead"]) and all(values.get(p, _NOT_HERE) != _NOT_HERE for p in taken)

    def _has_finished(self, peer: Tuple[int, int, int]) -> bool:
        """Wait, not for long, until a step in another lane has finished; whether it has, and left nothing."""
        have_finished, replies = self._end.peers.have_finished, self._replies
        finished = have_finished(*peer, 0.0)
        if finished is None and self.patient:
            idle = self._end.peers.some_idle()
            most = FLUSH_SECONDS if idle else PUT_SECONDS
            finished = have_finished(*peer, replies.since + most - time.perf_counter())
            if finished is None and not idle:
                replies.offer()
                finished = have_finished(*peer, PUT_SECONDS)
            if finished is None:
                replies.flush()
                finished = have_finished(*peer, PEER_SECONDS)
            self.patient = finished is not None
        return bool(finished)

    def add(self, step: int, parcel: Optional[Parcel]) -> None:
        """A step has finished here: those sent ahead behind it may run."""
        values = self._values
        small = parcel is None or (isinstance(parcel, bytes) and len(parcel) <= RECENT_BYTES)
        values[step] = parcel if small else _NOT_HERE  # type: ignore[assignment]  # a list is not small
        if len(values) > 2 * RECENT_STEPS:
            for old in list(itertools.islice(values, RECENT_STEPS)):
                del values[old]

    def disown(self, nobody: Any) -> None:
        """This is a fork of the worker: nothing is asked of the lane any more."""
        self._end = self._replies = nobody

    def forget(self, step: int) -> None:
        """A step with this number is about to run: an earlier one of a pool may have had it."""
        self._values.pop(step, None)

    def value(self, step: int) -> Optional[bytes]:
        """The parcel of what a step that `may_run` has named returned; None: it returned None."""
        return self._values[step]
