"""An engine whose workers run in a time of their own: what they do takes none of this machine's.

It stands in for `ProcessEngine`, so that what is left of a run is the coordinator. A worker takes the messages of its
lane one after another; a step lasts as long as it is told, and begins when those that it was sent behind have ended. As
real workers do, all of them tell what they have finished every `TURN_SECONDS`, and sooner while one of them has nothing
to do. Frames are written and read as they are between processes; there are no rings, no sleep and no wake-up.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any, Deque, Dict, List, Tuple

from mpsteps._ipc import wire
from mpsteps._ipc.standing import ENDED
from mpsteps.engines.base import Happening, Replies, WorkerUp

TURN_SECONDS = 1.5e-3
IDLE_SECONDS = 0.4e-3
OWN_SECONDS = 4e-6
"""What a worker does for a step beside running it."""


class VirtualWorker:
    """`lane`: (step, those that it was sent behind), in order; `now`: how far it has come, virtual seconds."""

    def __init__(self) -> None:
        self.lane: Deque[Tuple[int, Tuple[int, ...]]] = deque()
        self.numbers: Dict[int, int] = {}  # step in the lane -> number of its message
        self.sent = 0
        self.now = 0.0


class VirtualEngine:
    """`step_seconds`: what a step takes, for all engines that are made from then on. `spent`: seconds in which the
    coordinator of the last one did not wait; `turns`: how often it did."""

    by_value, across, elsewhere = True, True, False
    step_seconds = 0.0
    spent = 0.0
    turns = 0

    def __init__(self, workers: int, setup: Any, *_: Any, **__: Any) -> None:
        self._setup = setup
        self._workers = {number: VirtualWorker() for number in range(1, workers + 1)}
        self._ended: Dict[int, float] = {}  # step -> when, virtual
        self._now = 0.0
        self._left = 0.0
        self._in_here = 0.0
        self._happened: List[Happening] = []
        VirtualEngine.spent, VirtualEngine.turns = 0.0, 0

    def prepare(self) -> None:
        """There is nothing to prepare."""

    def start(self) -> None:
        """All workers are there at once."""
        for number in self._workers:
            self._setup(number)
            self._happened.append(WorkerUp(number, self.pid(number)))

    def send(self, worker: int, messages: List[Any]) -> None:
        """Into the lane. Writing the frame is the coordinator's, reading it is not."""
        frame = wire.encode(messages)
        began = time.perf_counter()
        w = self._workers[worker]
        if not w.lane:
            w.now = max(w.now, self._now)
        for m in wire.decode(frame):
            if m[0] > 0:
                w.sent += 1
                w.numbers[m[0]] = w.sent
                w.lane.append((m[0], (m[5] or {}).get("ahead", ())))
        self._in_here += time.perf_counter() - began

    def number_peers(self, outgoing: Any, apart: Any, ended: Any) -> None:
        """As `ProcessEngine` does it."""
        new: Dict[int, int] = {}
        for worker, messages in outgoing:
            first = self._workers[worker].sent + 1
            steps = [m[0] for m in messages if m[0] > 0]
            new.update(zip(steps, range(first, first + len(steps))))
        for _, messages in outgoing:
            for m in messages:
                if m[0] > 0 and m[5] and "peers" in m[5]:
                    m[5]["peers"] = {
                        p: (w, ENDED if p in ended else new.get(p) or self._workers[w].numbers.get(p, 0), 0)
                        for p, w in m[5]["peers"].items()
                    }

    def wait(self, timeout: Any) -> List[Happening]:
        """Let the workers run until they would tell what they have done."""
        began = time.perf_counter()
        if self._left:
            VirtualEngine.spent += began - self._left - self._in_here
            VirtualEngine.turns += 1
        self._in_here = 0.0
        found, self._happened = self._happened, []
        if not found:
            told = self._run()
            self._left = time.perf_counter()  # from here on it is the coordinator's
            for worker, frame in told:
                found.append(Replies(worker, wire.decode(frame)))
        else:
            self._left = time.perf_counter()
        return found

    def _run(self) -> List[Tuple[int, bytes]]:
        idle = any(not w.lane for w in self._workers.values())
        self._now += IDLE_SECONDS if idle else TURN_SECONDS
        done: Dict[int, List[int]] = {number: [] for number in self._workers}
        moved = True
        while moved:
            moved = False
            for number, w in self._workers.items():
                while w.lane and self._step(w, done[number]):
                    moved = True
        times = {number: [self.step_seconds] * len(steps) for number, steps in done.items()}
        return [
            (number, wire.encode([(-wire.FINISHED, steps, times[number], times[number])]))
            for number, steps in done.items()
            if steps
        ]

    def _step(self, w: VirtualWorker, done: List[int]) -> bool:
        """Whether the next step of a lane could be run by now."""
        step, behind = w.lane[0]
        if any(p not in self._ended for p in behind):
            return False
        began = max([w.now, *(self._ended[p] for p in behind)])
        if began >= self._now:
            return False
        w.now = self._ended[step] = began + self.step_seconds + OWN_SECONDS
        w.lane.popleft()
        del w.numbers[step]
        done.append(step)
        return True

    def pid(self, worker: int) -> int:
        """A number."""
        return 1_000_000 + worker

    def running(self, worker: int) -> None:
        """It is not asked: nothing stalls."""

    def revoke(self, worker: int) -> None:
        """Nor this."""

    def log(self, worker: int) -> None:
        """Steps write nothing."""

    def kill(self, worker: int, signal: int) -> None:
        """There is nobody to be killed."""

    def limit_memory(self, worker: int, step: int, limit: int) -> None:
        """Nor to be watched."""

    def wake(self) -> None:
        """Nobody sleeps."""

    def stop(self, at_once: bool = False) -> None:
        """Nothing is left."""
        self._workers.clear()
