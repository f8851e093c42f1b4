"""A pool under stress: random sizes, full rings, short and long steps, chains, and workers killed in the middle.

    python tests/stress.py --seconds 600

Every step writes its number into a file when it is entered, and checks what it was given; every result is checked.
What must hold, whatever happens: no step is entered twice, every future ends, with the right value or with `StepLost`,
there are no more of these than workers that were killed, and no step that depends on a lost one was entered.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
import zlib
from collections import Counter
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

import mpsteps._ipc.lane as lane_module
from mpsteps import StepError, StepLost, StepPool

CAPACITY = 1 << 14
"""Bytes of a ring: a few dozen messages fill it, and many do not fit into it as a whole."""
SIZES = (0, 1, 10, 100, 1000, 5000, 20_000, 100_000, 400_000, 1_500_000)
PATIENCE = 120


class Sent(NamedTuple):
    """One step: its future, what it must return, and the step whose result it takes."""

    future: Future[Any]
    crc: int
    size: int
    after: Optional[int]


def work(path: str, number: int, data: bytes, crc: int, size: int, seconds: float, before: Any = None) -> Any:
    """Enter, check, take some time, return `size` bytes."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.write(fd, number.to_bytes(8, "little"))
    os.close(fd)
    if zlib.crc32(data) != crc:
        raise AssertionError(f"step {number} was given something else")
    if before is not None and before[1] != zlib.crc32(before[2]):
        raise AssertionError(f"step {number} was given another result than step {before[0]} returned")
    if seconds:
        time.sleep(seconds)
    out = random.Random(number).randbytes(size) if hasattr(random.Random, "randbytes") else os.urandom(size)
    return number, zlib.crc32(out), out


def stress(seconds: float, seed: int, workers: int = 3) -> Dict[str, int]:
    """Run for so long; what was done. AssertionError if anything was lost, doubled or wrong."""
    r = random.Random(seed)
    done: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="mpsteps-") as folder:
        path = os.path.join(folder, "entered")
        Path(path).touch(mode=0o600)
        create = lane_module.Lane.create.__func__
        normal, create.__defaults__ = create.__defaults__, (CAPACITY,)
        try:
            with StepPool(workers) as pool:
                end = time.monotonic() + seconds
                number = 0
                while time.monotonic() < end:
                    number = _round(pool, r, path, number, done)
        finally:
            create.__defaults__ = normal
        _check_entered(path, done)
    return dict(done)


def _round(pool: StepPool, r: random.Random, path: str, number: int, done: Counter[str]) -> int:
    sent: Dict[int, Sent] = {}
    small = r.random() < 0.5  # a flood of small steps, or fewer of any size
    sizes = SIZES[:5] if small else SIZES
    kills = r.choice((0, 0, 1, 2, 5))
    count = r.randint(50, 600) if small else r.randint(10, 120)
    kill_at = sorted(r.sample(range(count), min(kills, count)))
    for i in range(count):
        number += 1
        data = r.getrandbits(8 * 8).to_bytes(8, "little") * (r.choice(sizes) // 8)
        size = r.choice(sizes)
        took = r.choice((0,) * 60 + (0.001, 0.003, 0.015))
        after = r.choice(list(sent)[-20:]) if sent and r.random() < 0.4 else None
        crc = zlib.crc32(data)
        args: List[Any] = [path, number, data, crc, size, took]
        if after is not None:
            args.append(sent[after].future)
        sent[number] = Sent(pool.submit_step(work, *args), crc, size, after)
        if kill_at and kill_at[0] == i:
            kill_at.pop(0)
            done["killed"] += _kill_one(pool, r)
    _take(sent, done)
    return number


def _kill_one(pool: StepPool, r: random.Random) -> int:
    """Some worker dies, at whatever it is doing."""
    time.sleep(r.random() * 0.01)
    pids = [w.pid for w in list(pool._work._coordinator.engine._workers.values()) if w.pid and w.ready]
    if not pids:
        return 0
    try:
        os.kill(r.choice(pids), signal.SIGKILL)
    except ProcessLookupError:
        return 0
    return 1


def _take(sent: Dict[int, Sent], done: Counter[str]) -> None:
    lost = set()
    for number, step in sent.items():
        try:
            back, crc, out = step.future.result(PATIENCE)
        except StepLost:
            lost.add(number)
            done["lost"] += 1
        except StepError:
            if step.after not in lost:
                raise
            lost.add(number)
            done["not run"] += 1
        else:
            assert step.after not in lost, f"step {number} ran after one that was lost"
            assert (back, len(out), zlib.crc32(out)) == (number, step.size, crc), f"step {number}: another result"
            done["finished"] += 1
            done["bytes"] += len(out)
    assert done["lost"] <= done["killed"], f"{done['lost']} steps are lost and {done['killed']} workers were killed"


def _check_entered(path: str, done: Counter[str]) -> None:
    entered: Counter[bytes] = Counter()
    with open(path, "rb") as f:
        for record in iter(lambda: f.read(8), b""):
            entered[record] += 1
    twice = [int.from_bytes(k, "little") for k, n in entered.items() if n > 1]
    assert not twice, f"steps were entered twice: {twice[:10]}"
    assert done["finished"] <= len(entered) <= done["finished"] + done["lost"]


def main() -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--workers", type=int, default=3)
    args = parser.parse_args()
    print(f"seed {args.seed}: ", stress(args.seconds, args.seed, args.workers))


if __name__ == "__main__":
    main()
