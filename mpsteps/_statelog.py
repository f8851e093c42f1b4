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

The lock. A step that takes `self._lock` tells what it has changed before it enters and when it leaves, and hears of all
that there is when it is let in (`granted`). What it changes under the lock is so concurrent only with changes that
others made without.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, FrozenSet, List, Optional, Sequence, Set, Tuple, Union

from mpsteps._conflicts import state_conflict
from mpsteps._ipc import state, wire
from mpsteps._ipc.edits import ABSENT, Edit, change_of, edit_of
from mpsteps._ipc.merge import UNKNOWN, Conflict, Merge, Writes, stands_on, upon

News = Union[None, int, Tuple[int, List[bytes]]]


_HERE = -1
"""Stands for this process where there is a worker's number, and where there is a step's for what runs here unknown."""
CHECK = -2
"""Stands for `_stepsCheck` where there is a step's number."""
_TRIES = 20
"""How often it is worked out what a change comes to, while code in this process changes the same."""
_SEVERAL = -3
"""So do numbers from here downwards for several of these."""


class _Several:
    """What is known of the code of several that ran at the same time: which of them it was, nobody knows. Of each, all
    must be known."""

    def __init__(self, writes: Sequence[Writes]) -> None:
        self._all = writes
        self._known = all(w is not UNKNOWN for w in writes)

    def adds(self, name: str, inside: bool) -> bool:
        """Those that write to it add."""
        return self._any_adds(name, inside) and not self._any_sets(name, inside)

    def begins(self, name: str, inside: bool) -> bool:
        """Those that write to it assign nothing but empty beginnings."""
        return all(w.begins(name, inside) for w in self._all)

    def sets(self, name: str, inside: bool) -> bool:
        """Those that write to it only assign."""
        return self._any_sets(name, inside) and not self._any_adds(name, inside)

    def _any_adds(self, name: str, inside: bool) -> bool:
        return self._known and any(w.adds(name, inside) for w in self._all)

    def _any_sets(self, name: str, inside: bool) -> bool:
        return self._known and any(w.sets(name, inside) for w in self._all)


class _Entry:
    """What a step changed. `told`: the parcel in which it came; `parcel`: the one by which others hear of it;
    `echo`: its own worker is to hear of it, too; `correction`: only its own worker is. `by`: who it may have been, of
    those that run in this process."""

    __slots__ = ("_edits", "by", "correction", "echo", "names", "parcel", "step", "told", "worker")

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
        self.by: Tuple[int, ...] = ()
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
        self._base: Dict[int, Tuple[int, int]] = {}  # step in flight -> (worker, what it has heard)
        self.collect_own: Callable[[], bool] = bool  # publishes what local steps are changing; whether there was any
        self._several: List[Tuple[int, ...]] = []  # for which several steps _SEVERAL and the numbers below it stand now
        self._published: Set[int] = set()  # steps in flight that have told of changes already
        self._before: Dict[int, int] = {}  # step that was let in by the lock -> what it had heard before that

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
            self.settle(step)
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

    def granted(self, worker: int, step: int) -> List[News]:
        """What `worker` must hear of in the middle of `step`, which it runs: all that there is. Also the steps that it
        has been sent and has not begun will have heard of that."""
        if step in self._base:
            self._before[step] = self._base[step][1]
        news = self.news(worker, tuple(step for step, (w, _) in self._base.items() if w == worker))
        return [] if news is None else [news]

    def merge(self, worker: int, step: int, parcel: bytes, ended: bool = True, late: bool = False) -> bytes:
        """Apply the changes that `step` made on `worker`; the parcel as it is to be journaled. `ended`: it will make no
        others; `late`: it made these before it heard what `granted` told last.

        Raises StateConflict, and what loading the parcel raises: nothing is applied then.
        """
        self._merged[worker] += 1  # also if it cannot be opened: the worker has counted it
        heard = self._base.get(step, (worker, self.version))[1]
        before = self._before.pop(step, heard)
        if late:
            heard = before
        partly = step in self._published
        changes: Optional[List[state.Change]] = None
        self._several.clear()
        if ended:
            self.settle(step)
        told = wire.unpack(parcel, self._target)
        edits = {change[1]: edit_of(change) for change in told}
        try:
            for _ in range(_TRIES):
                if not self.collect_own() and changes is not None:
                    break  # nobody here has changed anything since it was worked out
                unseen = self._entries[max(0, heard - self._offset) :]
                changes = [self._placed(step, name, edit, worker, unseen) for name, edit in edits.items()]
        except Conflict as conflict:
            self._correct(worker, step, list(edits))
            raise state_conflict(conflict, self._label(step), self._name(conflict.step), partly) from None
        assert changes is not None
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
        if not ended:
            self._published.add(step)
        return placed

    def _placed(self, step: int, name: str, edit: Edit, worker: int, unseen: List[_Entry]) -> state.Change:
        earlier = [
            (self._number(e), e.edit(name, self._target))
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
        if step <= _SEVERAL:
            return _Several([self._writes_of(one) for one in self._several[_SEVERAL - step]])
        return UNKNOWN if step == _HERE else self._writes_of(step)

    def _number(self, entry: _Entry) -> int:
        if len(entry.by) < 2:
            return entry.step
        self._several.append(entry.by)
        return _SEVERAL - len(self._several) + 1

    def _name(self, step: int) -> str:
        if step > 0:
            return f"step {self._label(step)}"
        return "_stepsCheck" if step == CHECK else "the main process"

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

    def publish(self, parcel: bytes, by: Tuple[int, ...] = ()) -> bytes:
        """Changes that code in this process made, in place already: for the workers to hear of. `by`: which it may have
        been, steps and CHECK; (): that is not known."""
        names = frozenset(change[1] for change in wire.unpack(parcel, self._target))
        entry = _Entry(_HERE, by[0] if len(by) == 1 else _HERE, names, parcel, parcel)
        entry.by = by
        self._entries.append(entry)
        return parcel

    def settle(self, step: int) -> None:
        """A step ended without changes of self."""
        self._base.pop(step, None)
        self._before.pop(step, None)
        self._published.discard(step)

    def settle_all(self, steps: Sequence[int]) -> None:
        """The same for several."""
        base = self._base
        for step in steps:
            base.pop(step, None)

    def _forget(self) -> None:
        """Drop entries of which every worker has heard; in larger pieces, since a list is cut from its front."""
        done = min(self._heard.values(), default=self.version) - self._offset
        in_use = [base for _, base in self._base.values()] + list(self._before.values())
        if in_use:
            done = min(done, min(in_use) - self._offset)
        if done > 64:
            del self._entries[:done]
            self._offset += done
