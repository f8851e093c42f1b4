"""The life of a step: its statuses, what moves it between them, and what it needs to run."""

from __future__ import annotations

import enum
from typing import Dict, FrozenSet, Hashable, NamedTuple, Tuple


class Status(enum.IntEnum):
    """Where a step is in its life. Normal path: BLOCKED -> READY -> DISPATCHED -> RUNNING -> FINISHED."""

    UNKNOWN = 0
    """No such step."""
    HELD = 1
    """Inserted with `wait=True`: runs only after somebody releases it (`setStatus(STATUS_NEW)`)."""
    BLOCKED = 2
    """Some prerequisite has not finished."""
    READY = 3
    """May run as soon as a worker and its slots are free."""
    DISPATCHED = 4
    """In a worker's lane, behind another step."""
    RUNNING = 5
    """At the head of a worker's lane: the worker has begun it, or does as soon as it looks."""
    FINISHED = 6
    FAILED = 7
    SKIPPED = 8
    """A prerequisite failed, so that it can never run in this run."""
    INTERACTIVE = 9
    """It ran and now waits for a person; the run stops here."""
    RESTING = 10
    """An attempt of it failed; it waits until it is time for the next one. It holds nothing meanwhile."""


class Cause(enum.IntEnum):
    """Why a step moves from one status to another."""

    ADDED = 0
    ADDED_HELD = 1
    RELEASED = 2
    HELD_AGAIN = 3
    PREREQUISITES_MET = 4
    PREREQUISITE_ADDED = 5
    PREREQUISITE_FAILED = 6
    RESTORED = 7
    ASSIGNED = 8
    BEGAN = 9
    RETURNED = 10
    SUCCEEDED = 11
    FAILED = 12
    RETRIED = 13
    AWAITS_USER = 14
    SENT_AHEAD = 15
    RETURNED_EARLY = 16
    RESTED = 17


# (from, cause) -> to. Anything else is a bug and raises InternalError with the step's story. docs/state-diagram.md is
# drawn from this table; the simulator in tests/ walks every edge of it.
TRANSITIONS: Dict[Tuple[Status, Cause], Status] = {
    (Status.UNKNOWN, Cause.ADDED): Status.BLOCKED,
    (Status.UNKNOWN, Cause.ADDED_HELD): Status.HELD,
    (Status.HELD, Cause.RELEASED): Status.BLOCKED,
    (Status.BLOCKED, Cause.HELD_AGAIN): Status.HELD,
    (Status.READY, Cause.HELD_AGAIN): Status.HELD,
    (Status.BLOCKED, Cause.PREREQUISITES_MET): Status.READY,
    (Status.READY, Cause.PREREQUISITE_ADDED): Status.BLOCKED,
    (Status.BLOCKED, Cause.PREREQUISITE_FAILED): Status.SKIPPED,
    (Status.HELD, Cause.PREREQUISITE_FAILED): Status.SKIPPED,
    (Status.SKIPPED, Cause.RELEASED): Status.SKIPPED,  # who holds and releases steps need not know that it failed
    (Status.SKIPPED, Cause.HELD_AGAIN): Status.SKIPPED,
    (Status.BLOCKED, Cause.RESTORED): Status.FINISHED,
    (Status.READY, Cause.RESTORED): Status.FINISHED,
    (Status.HELD, Cause.RESTORED): Status.FINISHED,
    (Status.READY, Cause.ASSIGNED): Status.DISPATCHED,
    (Status.BLOCKED, Cause.SENT_AHEAD): Status.DISPATCHED,
    (Status.DISPATCHED, Cause.RETURNED_EARLY): Status.BLOCKED,
    (Status.RUNNING, Cause.RETURNED_EARLY): Status.BLOCKED,
    (Status.DISPATCHED, Cause.BEGAN): Status.RUNNING,
    (Status.DISPATCHED, Cause.RETURNED): Status.READY,
    (Status.RUNNING, Cause.RETURNED): Status.READY,
    (Status.DISPATCHED, Cause.SUCCEEDED): Status.FINISHED,
    (Status.RUNNING, Cause.SUCCEEDED): Status.FINISHED,
    (Status.DISPATCHED, Cause.FAILED): Status.FAILED,
    (Status.RUNNING, Cause.FAILED): Status.FAILED,
    (Status.RUNNING, Cause.RETRIED): Status.RESTING,
    (Status.RESTING, Cause.RESTED): Status.READY,
    (Status.DISPATCHED, Cause.AWAITS_USER): Status.INTERACTIVE,
    (Status.RUNNING, Cause.AWAITS_USER): Status.INTERACTIVE,
}

FINAL: FrozenSet[Status] = frozenset({Status.FINISHED, Status.FAILED, Status.SKIPPED, Status.INTERACTIVE})
IN_FLIGHT: FrozenSet[Status] = frozenset({Status.DISPATCHED, Status.RUNNING})


class Cards(NamedTuple):
    """Graphics cards that one step gets together: their numbers, as programs there call them, and for each a name that
    is the same wherever it is the same card."""

    numbers: Tuple[int, ...]
    names: Tuple[str, ...]


class Node(NamedTuple):
    """What has workers: its number, CPU slots, bytes of memory, graphics cards. (Several may be on one machine, and
    share its cards.)"""

    number: int
    cpus: int
    memory: int = 0
    cards: Tuple[Cards, ...] = ()


class Demand(NamedTuple):
    """What a step holds while it runs.

    `cpus` worker slots, `gpus` graphics cards, `memory` bytes, `tokens` (name, amount) of named slots. `local`: it
    runs in the coordinator process and holds no worker slot. `retries`: attempts beyond the first. `alone`: nothing
    waits behind it in its lane (it has a timeout, or may talk to the coordinator while it runs). `learned`: it declares
    no memory, and what is learned of this function counts (see `needs`).
    """

    cpus: int = 1
    gpus: int = 0
    memory: int = 0
    tokens: Tuple[Tuple[str, int], ...] = ()
    local: bool = False
    retries: int = 0
    alone: bool = False
    learned: Hashable = None

    @property
    def plain(self) -> bool:
        """Whether it needs no more than one turn of any worker: such steps may share a lane."""
        return self == PLAIN


PLAIN = Demand()
LOCAL = 0
"""The id of the place where `local` steps run: the coordinator process itself. Workers are 1, 2, ..."""
