"""What a worker has to tell the coordinator, and when it tells it.

Every reply goes into the ring of the lane, in the order in which things have happened. But each turn of the coordinator
costs as much as several short steps, so it is *called* (see `mpsteps._ipc`, Called, or only put) as seldom as possible:

* at once for a failure, for what a step asks, and when there is nothing more to run;
* after `FLUSH_SECONDS` for what others must hear of, and while some worker has nothing to do;
* else only for what it has not come for by itself: see `PUT_SECONDS`.

What a step leaves decides when the other workers may see that it has ended (`mpsteps._ipc.standing`), which is why they
are told here, too, in the order that is argued in the README there.
"""

from __future__ import annotations

import time
from typing import Any, List, Optional, Tuple

from mpsteps._ipc import wire
from mpsteps._ipc.lane import WorkerEnd
from mpsteps._ipc.shm import ORDERED

FLUSH_SECONDS = 400e-6
"""While there are more steps to run, replies are kept back at most about this long if they tell what others must hear
of, or if some worker has nothing to do."""
PUT_SECONDS = 1e-3
"""If all have, replies are put into the ring so often, for the coordinator to take when it comes for any worker's sake.
It is called for those that it has not taken by the next time: so, if steps are short, it hears of them in half of the
time that a lane is given ahead, and the lane does not run dry. What is told seldom, and by all workers together, costs
the coordinator little; where there are no more cores than workers, it takes the core of one."""
PUT_COUNT = 64
"""... or after so many that are kept."""


class WorkerReplies:
    """The replies of the worker at `end` of a lane. The worker's thread, or whichever has its turn.

    `since`: when (`time.perf_counter`) the coordinator was last told, or offered, all that there was. `busy`: one of
    these methods is at work; who interrupts it (a signal's handler, a finalizer that logs) must not call another one.
    """

    def __init__(self, end: WorkerEnd) -> None:
        self._end = end
        self._kept: List[Tuple[Any, ...]] = []
        self._finished: Optional[Tuple[List[int], List[float], List[float]]] = None  # the last of `_kept`, if plain
        self._owes = False  # a step was given back, and that is not told yet
        self._urgent = False  # something was put that others must hear of
        self._put_alone = 0  # how many replies were put into the ring by themselves since `since`
        self.since = 0.0
        self.busy = False

    # ------------------------------------------------------------------ what there is to tell

    def add(self, message: Tuple[Any, ...]) -> None:
        """Tell this with what is told next."""
        self.busy = True
        try:
            self._add(message)
        finally:
            self.busy = False

    def failed(self, reply: Tuple[Any, ...]) -> None:
        """A step failed: nobody runs behind it, and the coordinator hears of it at once."""
        self.busy = True
        try:
            self._end.standing.end_apart()
            self._add(reply)
            self._flush()
        finally:
            self.busy = False

    def left(self, number: int, reply: Tuple[Any, ...], now: float) -> None:
        """Message `number` was run to its end and left something. It is put where the coordinator finds it, whatever
        happens to the next one."""
        self.busy = True
        try:
            leaves = wire.leaves(reply[3])
            if leaves:
                self._end.standing.end_apart()
                self._urgent = True
            self._add(reply)
            self._put()
            self._put_alone += 1
            if not leaves:  # it cannot get lost any more: others may follow it
                self._end.standing.finish(number)
            if not ORDERED:  # without order, no lane is relieved
                self._flush()
            elif self._put_alone >= PUT_COUNT:
                self._offer()
            else:
                self._tell_in_time(now)
        finally:
            self.busy = False

    def finished(self, number: int, step: int, seconds: float, used: float, now: float) -> None:
        """Message `number` was run to its end and left nothing. Its reply may be kept back for a while: the word alone
        says that it has finished, should this process die before."""
        self.busy = True
        try:
            if self._owes:
                self._put()  # before `finish` counts messages that were given back among those that were run
            finished = self._finished
            if finished is None:
                finished = self._finished = ([], [], [])
                self._kept.append((-wire.FINISHED, *finished))
            finished[0].append(step)
            finished[1].append(seconds)
            finished[2].append(used)
            self._end.finish(number)
            if len(finished[0]) >= PUT_COUNT:
                self._offer()
            elif now - self.since > FLUSH_SECONDS:
                self._tell_in_time(now)
        finally:
            self.busy = False

    def gave_back(self, number: int, step: int) -> None:
        """Message `number` will not be run here."""
        self.busy = True
        try:
            self._end.standing.give_back(number)
            self._add((-wire.RETURNED, step))
            self._owes = True
        finally:
            self.busy = False

    # ------------------------------------------------------------------ telling it

    def flush(self) -> None:
        """Tell the coordinator all that it has not been told."""
        self.busy = True
        try:
            self._flush()
        finally:
            self.busy = False

    def offer(self) -> None:
        """Let the coordinator find what was kept. It is called if it has not come for what it was offered before, if
        others must hear of something, or if there is somebody whom it could give something to do."""
        self.busy = True
        try:
            self._offer()
        finally:
            self.busy = False

    def disown(self, nobody: Any) -> None:
        """This is a fork of the worker: nothing is put into the lane any more, wherever it was interrupted."""
        self._end = nobody

    def _flush(self) -> None:
        self._put()
        self._end.call_if_left()
        self._told()

    def _tell_in_time(self, now: float) -> None:
        """Between two steps of which the coordinator need not hear at once."""
        kept = now - self.since
        if kept > PUT_SECONDS or (kept > FLUSH_SECONDS and (self._urgent or self._end.peers.some_idle())):
            self._offer()

    def _offer(self) -> None:
        self._put()
        if self._urgent or self._end.peers.some_idle():
            self._end.call_if_left()
        else:
            self._end.call_if_late()
        self._told()

    def _told(self) -> None:
        self._urgent = False
        self._put_alone = 0
        self.since = time.perf_counter()

    def _add(self, message: Tuple[Any, ...]) -> None:
        self._kept.append(message)
        self._finished = None  # a plain reply after this one begins a new list, so that all are told in their order

    def _put(self) -> None:
        """Put what was kept into the ring. The coordinator sees it when it is next woken, or when this process dies."""
        kept = self._kept
        if kept:
            self._kept = []
            self._finished = None
            self._owes = False
            self._end.put(wire.encode(kept))
