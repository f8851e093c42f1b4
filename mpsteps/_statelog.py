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

Conflicts. What a step changed is merged (`_ipc.merge`) with what others changed and its worker had not heard of when
the step was sent. If that cannot be done, nothing of what the step changed is taken: `merge` raises StateConflict, the
step fails, and its worker, which believes otherwise, hears of the truth again (a *correction*, for it alone).
"""

from __future__ import annotations

from typing import Any, Callable, Dict, FrozenSet, List, Optional, Sequence, Tuple, Union

from mpsteps._conflicts import state_conflict
from mpsteps._ipc import state, wire
from mpsteps._ipc.edits import ABSENT, Edit, change_of, edit_of
from mpsteps._ipc.merge import UNKNOWN, Conflict, Merge, Writes, stands_on, upon

News = Union[None, int, Tuple[int, List[bytes]]]


_HERE = -1
"""Stands for this process where there is a worker's number, and for what runs here where there is a step's."""


class _Entry:
    """What a step changed. `told`: the parcel in which it came; `parcel`: the one by which others hear of it;
    `echo`: its own worker is to hear of it, too; `correction`: only its own worker is."""

    __slots__ = ("_edits", "correction", "echo", "names", "parcel", "step", "told", "worker")

    def __init__(
        self, worker: int, step: int, names: FrozenSet[str], told: bytes, parcel: bytes, echo: bool = False,
        correction: bool = False,
    ) -> None:  # fmt: skip
        self.worker = worker
        self.step = step
        self.names = names
        self.told = told
        self.parcel = parcel
        self.echo = echo
        self.correction = correction
        self._edits: Dict[str, Edit] = {}

    def edit(self, name: str, anchor: Any) -> Edit:
        """What it did to an attribute. Opened when somebody asks, and apart from what was put on the target: that is
        changed by others later on."""
        if not self._edits:
            self._edits = {change[1]: edit_of(change) for change in wire.unpack(self.told, anchor)}
        return self._edits[name]


class StateLog:
    """Applies changes to `target` and remembers, per worker, which ones it has not heard of.

    `label`: how a step is called in messages, by its id; `writes`: what is known of its code.
    """

    def __init__(
        self, target: Any, tracker: Optional[state.Tracker] = None, label: Callable[[int], str] = str,
        writes: Callable[[int], Writes] = lambda step: UNKNOWN,
    ) -> None:  # fmt: skip
        self._target = target
        self._label = label
        self._writes_of = writes
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
            found = [e.parcel for e in fresh if (e.echo if e.worker == worker else not e.correction)] or None
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

    def merge(self, worker: int, step: int, parcel: bytes, goes_on: bool = False) -> bytes:
        """Apply the changes that `step` made on `worker`; the parcel as it is to be journaled. `goes_on`: the step has
        not ended and may come with more.

        Raises StateConflict, and what loading the parcel raises: nothing is applied then.
        """
        self._merged[worker] += 1  # also if it cannot be opened: the worker has counted it
        heard = self._base.get(step, (worker, self.version))[1]
        if not goes_on:
            self.settle(step)
        unseen = self._entries[max(0, heard - self._offset) :]
        told = wire.unpack(parcel, self._target)
        edits = {change[1]: edit_of(change) for change in told}
        try:
            changes = [self._placed(step, name, edit, worker, unseen) for name, edit in edits.items()]
        except Conflict as conflict:
            self._correct(worker, step, list(edits))
            other = "the main process" if conflict.step == _HERE else self._label(conflict.step)
            raise state_conflict(conflict, self._label(step), other) from None
        if self._tracker is not None:
            self._tracker.apply(changes)
        else:
            for change in changes:
                state.apply(self._target, change)
        placed = wire.pack(changes, self._target)
        echo = any(
            (e.echo if e.worker == worker else not e.correction) and not e.names.isdisjoint(edits) for e in unseen
        )  # fmt: skip
        self._entries.append(_Entry(worker, step, frozenset(edits), parcel, placed, echo))
        return placed

    def _placed(self, step: int, name: str, edit: Edit, worker: int, unseen: List[_Entry]) -> state.Change:
        earlier = [
            (e.step, e.edit(name, self._target))
            for e in unseen if e.worker != worker and not e.correction and name in e.names
        ]  # fmt: skip
        now = self._target.__dict__.get(name, ABSENT)
        try:
            corrected = [e for e in unseen if e.worker == worker and e.correction and name in e.names]
            if corrected and not stands_on(edit, now):
                raise Conflict(corrected[0].step, (), edit, corrected[0].edit(name, self._target))
            if corrected and not earlier:  # it was made on top of what was not taken over
                return change_of(name, upon(edit, now, self._writes(step), name))
            return change_of(name, Merge(name, step, self._writes)(edit, now, earlier))
        except Conflict as conflict:
            conflict.path = (name, *conflict.path)
            raise

    def _writes(self, step: int) -> Writes:
        return UNKNOWN if step == _HERE else self._writes_of(step)

    def _correct(self, worker: int, step: int, names: List[str]) -> None:
        """Tell `worker` what these attributes really are."""
        attributes = self._target.__dict__
        truth: List[state.Change] = []
        for name in names:
            change: state.Change = ("~", name, attributes[name]) if name in attributes else ("-", name)
            try:
                wire.pack(change, self._target)
            except Exception as error:  # a local step's: workers have it as absent anyway
                change = ("=", name, state.Absent(name, f"{type(error).__name__}: {error}"))
            truth.append(change)
        parcel = wire.pack(truth, self._target)
        self._entries.append(_Entry(worker, step, frozenset(names), parcel, parcel, True, True))

    def publish(self, parcel: bytes) -> bytes:
        """Changes that code in this process made, in place already: for the workers to hear of."""
        names = frozenset(change[1] for change in wire.unpack(parcel, self._target))
        self._entries.append(_Entry(_HERE, _HERE, names, parcel, parcel))
        return parcel

    def settle(self, step: int) -> None:
        """A step ended without changes of self."""
        self._base.pop(step, None)

    def settle_all(self, steps: Sequence[int]) -> None:
        """The same for several."""
        base = self._base
        for step in steps:
            base.pop(step, None)

    def _forget(self) -> None:
        """Drop entries of which every worker has heard; in larger pieces, since a list is cut from its front."""
        done = min(self._heard.values(), default=self.version) - self._offset
        in_use = [base for _, base in self._base.values()]
        if in_use:
            done = min(done, min(in_use) - self._offset)
        if done > 64:
            del self._entries[:done]
            self._offset += done
