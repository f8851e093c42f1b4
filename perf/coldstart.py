"""What does a program wait for four empty steps? A fresh process each time: imports, workers, steps, exit.

::

    $ python program.py        import -> start workers -> o o o o -> end workers -> exit

In the time: all of it, from the start of the interpreter to the end of its process, files of the modules in the
system's cache. Each program is the shortest one that a user would write; what it prints is checked. The first row is
the interpreter alone. A protocol also makes a run directory with its journal, and is itself a module of a few lines.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Dict, List, NamedTuple, Optional, Sequence

from perf._harness import Job, Result, Timing, brief, check, grid, interleaved, runs_of, script
from perf._systems import chosen, kind

USUAL = ("pool", "ppe", "mpire", "pebble", "loky", "joblib", "threads", "dask", "ray", "steppool", "protocol")
PATIENCE = 120
SUM = "6"  # of 0, 1, 2 and 3: what every program prints


class Program(NamedTuple):
    """The text of a program, in which WORKERS stands for their number, and the module that it needs."""

    text: str
    needs: str = "concurrent"


PROGRAMS: Dict[str, Program] = {
    "threads": Program("""
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(WORKERS) as pool:
    print(sum(pool.map(abs, range(4))))
"""),
    "ppe": Program("""
from concurrent.futures import ProcessPoolExecutor
if __name__ == "__main__":
    with ProcessPoolExecutor(WORKERS) as pool:
        print(sum(pool.map(abs, range(4))))
"""),
    "pool": Program("""
import multiprocessing
if __name__ == "__main__":
    with multiprocessing.Pool(WORKERS) as pool:
        print(sum(pool.map(abs, range(4), chunksize=1)))
"""),
    "loky": Program("""
from loky import get_reusable_executor
print(sum(get_reusable_executor(max_workers=WORKERS).map(abs, range(4))))
""", "loky"),
    "joblib": Program("""
from joblib import Parallel, delayed
print(sum(Parallel(n_jobs=WORKERS)(delayed(abs)(i) for i in range(4))))
""", "joblib"),
    "pebble": Program("""
from pebble import ProcessPool
if __name__ == "__main__":
    with ProcessPool(max_workers=WORKERS) as pool:
        print(sum(pool.map(abs, range(4)).result()))
""", "pebble"),
    "mpire": Program("""
from mpire import WorkerPool
if __name__ == "__main__":
    with WorkerPool(n_jobs=WORKERS) as pool:
        print(sum(pool.map(abs, range(4), chunk_size=1)))
""", "mpire"),
    "dask": Program("""
from distributed import Client
if __name__ == "__main__":
    with Client(n_workers=WORKERS, threads_per_worker=1, dashboard_address=":0") as client:
        print(sum(client.gather(client.map(abs, range(4)))))
""", "distributed"),
    "ray": Program("""
import ray
ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
distance = ray.remote(lambda i: abs(i))
print(sum(ray.get([distance.remote(i) for i in range(4)])))
""", "ray"),
    "steppool": Program("""
import mpsteps
with mpsteps.StepPool(WORKERS) as pool:
    print(sum(pool.map(abs, range(4))))
"""),
    "protocol": Program("""
from mpsteps import STEPS_PARALLEL, Protocol
class Four(Protocol):
    stepsExecutionMode = STEPS_PARALLEL
    def _defineParams(self, form):
        form.addSection(label="Input")
        form.addParallelSection(threads=WORKERS)
    def _insertAllSteps(self):
        for i in range(4):
            self._insertFunctionStep(self.absStep, i, prerequisites=[])
    def absStep(self, i):
        return abs(i)
protocol = Four(workingDir="run")
protocol.run()
print(sum(step.result for step in protocol.getSteps()))
"""),
}  # fmt: skip


def measure(args: argparse.Namespace) -> List[Result]:
    """One table."""
    names = [name for name in chosen(args, USUAL) if name in PROGRAMS]
    folder = tempfile.mkdtemp(prefix="mpsteps-perf-")
    try:
        jobs = [_job("the interpreter alone", "print(6)", folder)]
        for name in names:
            if importlib.util.find_spec(PROGRAMS[name].needs) is None:
                print(f"note: {name} is left out: there is no module {PROGRAMS[name].needs!r}")
                continue
            text = PROGRAMS[name].text.replace("WORKERS", str(args.workers))
            jobs.append(_job(kind(name).title, text, folder))
        rows = interleaved(jobs, runs_of(args), warm=not args.smoke)
    finally:
        shutil.rmtree(folder)
    cells = {}
    for name, row in sorted(rows.items(), key=lambda item: item[1].median):
        cells[name] = [brief(row.median), f"{brief(min(row.seconds))}..{brief(max(row.seconds))}"]
    title = "coldstart: a fresh process, 4 empty steps, exit"
    grid(title, ["seconds", "min..max"], cells)
    values = {name: row.median for name, row in rows.items()}
    seconds = {name: row.seconds for name, row in rows.items()}
    return [{"question": "coldstart", "title": title, "unit": "s", "values": values, "seconds": seconds}]


def _job(title: str, text: str, folder: str) -> Job:
    """A program as a file of its own, run in a folder of its own."""
    home = tempfile.mkdtemp(dir=folder)
    path = os.path.join(home, "program.py")
    with open(path, "w", encoding="utf-8") as f:
        f.write(text)
    # This checkout's mpsteps, wherever the script was started.
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # else our modules would be compiled each time, and no others

    def run() -> Timing:
        shutil.rmtree(os.path.join(home, "run"), ignore_errors=True)  # of a protocol: each time a new one
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, path], cwd=home, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=PATIENCE, check=False,
        )  # fmt: skip
        took = time.perf_counter() - started
        check(done.returncode == 0 and done.stdout.strip() == SUM, f"{title} prints {done.stdout!r}: {done.stderr}")
        return {title: took}

    return Job(run, 4)


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Measure, print, save."""
    script(argv, __doc__, measure)


if __name__ == "__main__":
    main()
