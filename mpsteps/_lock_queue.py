"""Who holds `self._lock`, and who waits for it: first come, first served. Pure: no process, thread or clock.

There is one lock in a run, so that nobody can wait for somebody who waits for him.
"""

from __future__ import annotations

from typing import Dict, List, NamedTuple, Optional


class Claim(NamedTuple):
    """One wish to have the lock. `step`: for which it was made (0: none); `worker`: where that runs; `ticket`: which of
    that worker's claims it is."""

    step: int
    worker: int
    ticket: int


class LockQueue:
    """The holder, and the claims that wait, oldest first.

    Invariants: nobody waits unless somebody holds; the holder does not wait.
    """

    def __init__(self) -> None:
        self.holder: Optional[Claim] = None
        self._waiting: Dict[Claim, None] = {}

    def ask(self, claim: Claim, wait: bool = True) -> bool:
        """Whether `claim` has the lock now; if not, and it is to `wait`, it stands in the queue, at its end. Asking
        again changes nothing."""
        if self.holder is None:
            self.holder = claim
        elif wait and claim != self.holder:
            self._waiting.setdefault(claim)
        return self.holder == claim

    def give_back(self, claim: Claim) -> Optional[Claim]:
        """`claim` is over, whether it holds or waits (or neither: then nothing happens). Who has the lock by that."""
        self._waiting.pop(claim, None)
        return self._pass_on() if claim == self.holder else None

    def end(self, step: int) -> Optional[Claim]:
        """All claims of a step are over. Who has the lock by that."""
        for claim in [c for c in self._waiting if c.step == step]:
            del self._waiting[claim]
        return self._pass_on() if self.holder is not None and self.holder.step == step else None

    def waiting(self) -> List[Claim]:
        """Who waits, in the order in which they will have it."""
        return list(self._waiting)

    def _pass_on(self) -> Optional[Claim]:
        self.holder = next(iter(self._waiting), None)
        if self.holder is not None:
            del self._waiting[self.holder]
        return self.holder

    def check_invariants(self) -> None:
        """Called by tests after every call."""
        assert self.holder is not None or not self._waiting, f"free, and {self.waiting()} wait"
        assert self.holder not in self._waiting, f"{self.holder} waits for itself"
