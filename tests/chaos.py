"""Whole runs under random signals: workers and the process that starts them are killed, stopped, let go on, terminated.

    python tests/chaos.py --seconds 300

Each round is one protocol with a random graph, `keepGoing` and some retries. A thread sends signals at random moments.
What must hold, whatever is hit: every step has one fate; those that finished ran after all they wait for; none was
entered more often than it may be tried; what has not finished was lost, or depends on a lost one; there are no more
lost attempts than there were workers to lose; and when the run is over nothing is left of it.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, Dict, List

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

from engine_driver import alive
from fault_steps import Witnessed

import mpsteps
from mpsteps.errors import EngineError, StepLost
from mpsteps.run import run

DEADLY = (signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGABRT)
BOUND = 60.0


class Random(Witnessed):
    """Steps of random length; each checks that those it waits for have finished."""

    keepGoing = True
    graph: Dict[int, List[int]] = {}

    def _insertAllSteps(self) -> None:
        for step, needs in self.graph.items():
            method = self.stubbornStep if step % 4 == 0 else self.plainStep
            self._insertFunctionStep(method, step, needs, prerequisites=needs)

    def plainStep(self, number: int, needs: List[int]) -> None:
        self.enter()
        for other in needs:
            assert os.path.exists(self._getExtraPath(f"done-{other}")), f"{number} runs before {other}"
        if number % 3 == 0:
            time.sleep(number % 7 * 0.001)
        open(self._getExtraPath(f"done-{number}"), "w").close()

    @mpsteps.step(retries=2)
    def stubbornStep(self, number: int, needs: List[int]) -> None:
        self.plainStep(number, needs)


class Storm:
    """Sends signals to a run's processes from a thread of its own until it is told to stop."""

    def __init__(self, r: random.Random, done: Counter[str]) -> None:
        self._r, self._done = r, done
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._rage, args=(r.random() * 0.05, r.random() < 0.2))
        self.engine: Any = None
        self.lives = 0  # workers that may have been lost
        self.pids: List[int] = []

    def __enter__(self) -> Storm:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        self._thread.join()

    def _rage(self, pause: float, zygote_too: bool) -> None:
        r = self._r
        while not self._over.wait(pause * r.random() + 0.005):
            engine = self.engine
            zygote = engine._zygote if engine is not None else None
            if zygote is None or not zygote.up:
                continue  # one that is hit while it starts is an error by itself, and so it should be
            pids = [w.pid for w in list(engine._workers.values()) if w.pid and w.ready]
            self.pids += pids
            if zygote_too and r.random() < 0.1 and self._done["zygotes"] < 3 + 2 * self._done["runs"]:
                self._send(zygote.pid, signal.SIGKILL, "zygotes")
                self.lives += len(pids) + 1
            elif pids and r.random() < 0.5:
                self._send(r.choice(pids), r.choice(DEADLY), "workers")
                self.lives += 1
            elif pids:
                pid = r.choice(pids)
                self._send(pid, signal.SIGSTOP, "stops")
                self._over.wait(r.random() * 0.05)
                self._send(pid, signal.SIGCONT, "")

    def _send(self, pid: int, number: int, what: str) -> None:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        if what:
            self._done[what] += 1


def chaos(seconds: float, seed: int, workers: int = 3) -> Dict[str, int]:
    """Run for so long; what was done. AssertionError if a promise was broken."""
    r = random.Random(seed)
    done: Counter[str] = Counter()
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="mpsteps-") as folder:
        while time.monotonic() < end:
            _round(r, os.path.join(folder, str(done["runs"])), workers, done)
            done["runs"] += 1
    return dict(done)


class _Tell(mpsteps.Listener):
    def __init__(self, storm: Storm) -> None:
        self._storm = storm

    def run_started(self, run: Any, kept: int) -> None:
        self._storm.engine = run.coordinator.engine


def _round(r: random.Random, folder: str, workers: int, done: Counter[str]) -> None:
    protocol = Random(numberOfThreads=workers, workingDir=folder)
    count = r.randint(20, 200)
    graph: Dict[int, List[int]] = {}
    for step in range(1, count + 1):
        near = range(max(1, step - 10), step)
        graph[step] = sorted(r.sample(near, min(len(near), r.choice((0, 0, 1, 1, 2, 3)))))
    protocol.graph = graph
    began = time.monotonic()
    with Storm(r, done) as storm:
        try:
            run(protocol, listeners=[_Tell(storm)])
        except EngineError as error:  # three workers in a row, or three zygotes, were hit before they were ready
            if not re.search("in a row died before they were ready|keeps dying", str(error)):
                raise
            done["given up"] += 1
    assert time.monotonic() - began < BOUND, "the run took too long"
    _judge(protocol, storm, done)


def _judge(protocol: Any, storm: Storm, done: Counter[str]) -> None:
    with open(protocol._getExtraPath("entered"), "a+") as f:
        f.seek(0)
        entered = Counter(int(line.split()[0]) for line in f)
    lost = 0
    bad = set()
    for step in protocol.getSteps():
        number = step.getObjId()
        assert entered[number] <= 1 + protocol.retriesOf(step), f"step {number} was entered {entered[number]} times"
        if step.isFinished():
            assert entered[number]
            assert os.path.exists(protocol._getExtraPath(f"done-{number}"))
            done["finished"] += 1
        elif step.isFailed():
            assert isinstance(step._error, StepLost), step.getErrorMessage()
            bad.add(number)
            lost += 1
        else:
            assert not entered[number] or protocol.retriesOf(step), f"step {number} ran and is {step.getStatus()}"
            if not done["given up"]:
                assert bad & set(step._prerequisites), f"step {number} was not run, and nobody knows why"
            bad.add(number)
    done["lost"] += lost
    assert lost <= storm.lives, f"{lost} steps are lost, {storm.lives} workers were hit"
    deadline = time.monotonic() + 2.0
    while any(map(alive, set(storm.pids))):
        assert time.monotonic() < deadline, "a worker is left"
        time.sleep(0.01)


def main() -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--workers", type=int, default=3)
    args = parser.parse_args()
    print(f"seed {args.seed}: ", chaos(args.seconds, args.seed, args.workers))


if __name__ == "__main__":
    main()
