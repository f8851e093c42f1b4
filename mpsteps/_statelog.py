"""The one true state of `self`, and what each worker still has to hear of it.

Every worker has a replica of the protocol. When a step finishes, the changes it made come here, are applied to the
protocol of the coordinator in the order in which they arrive (that order is the truth), and are kept until every
worker has been told. A worker hears of changes only together with a step, before that step runs.

Echo. A worker that appended `a` to a list does not know that `b`, by another worker, came in before it: the truth is
[b, a], its replica [a]. It needs to hear not only of `b` but of its own `a` again. Rule: an entry is echoed to its own
worker if another that this worker will hear of after the step, be it by somebody else or itself an echo, changed the
same attribute before it. Since list growth is rewritten with its place in the truth ("at 0: b", "at 1: a"), hearing of
them in order leads every replica to the truth, whatever it held.

Pending. A worker may have appended more since, in steps whose replies are not here yet. News says how many of its
replies have been taken in; what it changed in later ones comes after the news in the truth, and it puts it there
(`state.Tracker.apply`).
"""

from __future__ import annotations

from typing import Any, Dict, FrozenSet, List, NamedTuple, Optional, Sequence, Tuple, Union

from mpsteps._ipc import state, wire

News = Union[None, int, Tuple[int, List[bytes]]]


class _Entry(NamedTuple):
    worker: int
    names: FrozenSet[str]
    parcel: bytes
    echo: bool


class StateLog:
    """Applies changes to `target` and remembers, per worker, which ones it has not heard of."""

    def __init__(self, target: Any, tracker: Optional[state.Tracker] = None) -> None:
        self._target = target
        self._tracker = tracker  # of changes made in this process; it must not take merged ones for its own
        self._entries: List[_Entry] = []
        self._offset = 0  # number of entries forgotten, because every worker has heard of them
        self._heard: Dict[int, int] = {}  # worker -> it has heard of all entries with a smaller number
        self._merged: Dict[int, int] = {}  # worker -> number of its replies with changes that have been taken in
        self._confirmed: Dict[int, int] = {}  # worker -> how many of them it knows to be taken in
        self._base: Dict[int, Tuple[int, int]] = {}  # step in flight -> (worker, what it had heard when it was sent)

    def watch(self, tracker: state.Tracker) -> state.Tracker:
        """From now on code in this process changes `target`, too, and this tracker tells what."""
        self._tracker = tracker
        return tracker

    @property
    def version(self) -> int:
        """How many entries there have been."""
        return self._offset + len(self._entries)

    def join(self, worker: int) -> None:
        """A worker starts from an image of the protocol as it is now."""
        self._heard[worker] = self.version
        self._merged[worker] = self._confirmed[worker] = 0

    def leave(self, worker: int) -> None:
        """A worker is gone; its steps' changes that did not arrive are lost with it."""
        self._heard.pop(worker, None)
        self._merged.pop(worker, None)
        self._confirmed.pop(worker, None)
        for step in [s for s, (w, _) in self._base.items() if w == worker]:
            del self._base[step]
        self._forget()

    def news(self, worker: int, steps: Tuple[int, ...]) -> News:
        """What `worker` must hear of before it runs `steps`, which are being sent to it now.

        None: nothing; a number: so many of its own replies with changes have been taken in; or that number and the
        parcels to apply, in order.
        """
        version = self.version
        heard = self._heard[worker]
        found: Optional[List[bytes]] = None
        if heard < version:
            fresh = self._entries[heard - self._offset :]
            found = [e.parcel for e in fresh if e.worker != worker or e.echo] or None
            self._heard[worker] = version
            self._forget()
        self.sent(worker, steps)
        merged = self._merged[worker]
        if found is None and merged == self._confirmed[worker]:
            return None
        self._confirmed[worker] = merged
        return merged if found is None else (merged, found)

    def sent(self, worker: int, steps: Tuple[int, ...]) -> None:
        """These steps go to `worker` behind one that brings it all news."""
        self._base.update(dict.fromkeys(steps, (worker, self.version)))

    def merge(self, worker: int, step: int, parcel: bytes) -> bytes:
        """Apply the changes that `step` made on `worker`; the parcel as it is to be journaled.

        Raises what loading the parcel raises: nothing is applied then.
        """
        self._merged[worker] += 1  # also if it cannot be opened: the worker has counted it
        changes = [self._place(c) for c in wire.unpack(parcel, self._target)]
        if self._tracker is not None:
            self._tracker.apply(changes)
        else:
            for change in changes:
                state.apply(self._target, change)
        names = frozenset(c[1] for c in changes)
        placed = wire.pack(changes, self._target)
        heard = self._base.pop(step, (worker, self.version))[1]
        unseen = self._entries[max(0, heard - self._offset) :]
        echo = any((e.worker != worker or e.echo) and e.names & names for e in unseen)
        self._entries.append(_Entry(worker, names, placed, echo))
        return placed

    def publish(self, parcel: bytes) -> bytes:
        """Changes that code in this process made, in place already: for the workers to hear of."""
        names = frozenset(c[1] for c in wire.unpack(parcel, self._target))
        self._entries.append(_Entry(-1, names, parcel, False))
        return parcel

    def settle(self, step: int) -> None:
        """A step ended without changes of self."""
        self._base.pop(step, None)

    def settle_all(self, steps: Sequence[int]) -> None:
        """The same for several."""
        base = self._base
        for step in steps:
            base.pop(step, None)

    def _place(self, change: state.Change) -> state.Change:
        """Say where in the true list an appended piece goes."""
        if change[0] != "+":
            return change
        now = self._target.__dict__.get(change[1])
        return ("+", change[1], len(now) if type(now) is list else 0, change[3])

    def _forget(self) -> None:
        """Drop entries of which every worker has heard; in larger pieces, since a list is cut from its front."""
        done = min(self._heard.values(), default=self.version) - self._offset
        in_use = [base for _, base in self._base.values()]
        if in_use:
            done = min(done, min(in_use) - self._offset)
        if done > 64:
            del self._entries[:done]
            self._offset += done
