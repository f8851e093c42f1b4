"""Runs as records of a journal, for the tests of the report: no process is started."""

from __future__ import annotations

import os

from mpsteps._history import replay
from mpsteps._report_data import report_data
from mpsteps._rundir import RunDirectory
from mpsteps._timeline import timeline

NASTY = "</script><script>window.hurt = 1</script><img src=x onerror='window.hurt = 1'>&\u2028\udce9"


def session(pid=1, threads=4, began=100.0, **info):
    return ["protocol", {"class": "ProtTest", "name": NASTY, "threads": threads, "pid": pid, "started": began,
                         "params": {"glob": NASTY, "empty": None}, "host": "h", "cores": 8, **info}]  # fmt: skip


def small():
    """Nine steps: two loads, five fits of which one fails, a join and a step that is skipped."""
    records = [session(), ["steps", 1, "load", [["a"], [NASTY]], [[], []]],
               ["steps", 3, "fit", [[i, NASTY] for i in range(5)], [[1], [1], [2], [2], [1, 2]]],
               ["steps", 8, "join", [[]], [[3, 4, 5, 6]]], ["steps", 9, "last", [[]], [[7, 8]]]]  # fmt: skip
    for step, pid, begin, end in ((1, 7, 100.2, 101), (2, 8, 100.2, 102), (3, 7, 101, 103), (4, 9, 101, 102.5),
                                  (5, 8, 102, 104), (6, 10, 102, 103)):  # fmt: skip
        records.append(["started", pid, 1, begin, [step]])
        records.append(["finished", pid, end, [[step, end - begin - 0.01, 0.5, 100_000 * step]]])
    error = {"type": "ValueError", "message": NASTY, "cause": f"ValueError: {NASTY}", "traceback": f"Trace {NASTY}",
             "log": f"said {NASTY}"}  # fmt: skip
    records += [["started", 7, 1, 103.0, [7]], ["failed", 7, 7, 1, 103.5, error], ["started", 8, 1, 104.0, [8]],
                ["finished", 8, 105.0, [[8, 0.99, 0.5, None]]], ["skipped", [9], "step 7 failed"],
                ["ended", "failed", 105.1, NASTY]]  # fmt: skip
    return records


def large(count):
    """Three functions in `count` / 3 chains, and a join; batches of ten on four workers."""
    third = count // 3
    records = [session(threads=4)]
    for k, func in enumerate(("alignStep", "ctfStep", "pickStep")):
        needs = [[i - third] if k else [] for i in range(k * third + 1, (k + 1) * third + 1)]
        records.append(["steps", k * third + 1, func, [[f"mic_{i:06d}.mrc", 300, i] for i in range(third)], needs])
    join = 3 * third + 1
    records.append(["steps", join, "joinStep", [[]], [list(range(2 * third + 1, join))]])
    now = 100.0
    for first in range(1, join, 10):
        ids = list(range(first, min(first + 10, join)))
        pid = 7 + first // 10 % 4
        records.append(["started", pid, 1, now, ids])
        records.append(["done", pid, now + 0.04, ids, [3500] * len(ids), [3000] * len(ids)])
        now += 0.01
    records += [["started", 7, 1, now + 0.1, [join]], ["finished", 7, now + 1.1, [[join, 1.0, 1.0, None]]],
                ["ended", "finished", now + 1.2, ""]]  # fmt: skip
    return records


def data_of(records, folder):
    """What the report of these records shows; `folder` becomes the run directory."""
    with RunDirectory.create_at(os.path.join(str(folder), "run")) as directory:
        return report_data(directory, replay(records), timeline(records), False)
