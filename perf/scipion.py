"""What does Scipion gain? One protocol, launched as the interface launches it, in threads and in processes.

::

    $ launch -> python pw_protocol_run.py -> load the project -> runSteps: o o o ... -> finished

Two times of each launch: of `runSteps`, steps.sqlite and run.db written as Scipion does, and of all, from the launch to
the end of its process. `threads` is Scipion's own ThreadStepExecutor, `processes` is mpsteps' plug-in, on one and the
same protocol, which knows nothing of it. With `--workers 2` the form has 3 threads: Scipion counts its main thread.
Threads take seconds for some steps, so they run fewer of those that do nothing; the table says how many.

It needs scipion-pyworkflow, and makes a project in a temporary folder.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from typing import List, NamedTuple, Optional, Sequence

from perf._harness import Job, Result, Timing, check, interleaved, rate_table, runs_of, script

KINDS = ("threads", "processes")
PATIENCE = 1800
PLUGIN = '''
import time
import pyworkflow.object as pwobj
import pyworkflow.protocol as pwprot
from pyworkflow.protocol import params


class ProtMeasure(pwprot.Protocol):
    _label = "measure"
    stepsExecutionMode = pwprot.STEPS_PARALLEL

    def _defineParams(self, form):
        form.addSection(label="Input")
        form.addParam("steps", params.IntParam, default=1, label="Steps")
        form.addParam("sleep", params.FloatParam, default=0.0, label="Seconds that each sleeps")
        form.addParam("loops", params.IntParam, default=0, label="Turns of a loop that each makes")
        form.addParallelSection(threads=3, mpi=0)

    def _insertAllSteps(self):
        self.found = {}
        deps = [self._insertFunctionStep(self.workStep, i, prerequisites=[]) for i in range(self.steps.get() - 1)]
        self._insertFunctionStep(self.createOutputStep, prerequisites=deps)

    def workStep(self, i):
        if self.sleep.get():
            time.sleep(self.sleep.get())
        if self.loops.get():
            total = 0
            for k in range(self.loops.get()):
                total += k * i % 7
            self.found[i] = total

    def createOutputStep(self):
        self._defineOutputs(outputSum=pwobj.Integer(sum(self.found.values())))

    def _runSteps(self, doneSteps):
        began = time.monotonic()
        super()._runSteps(doneSteps)
        with open(self._getExtraPath("seconds"), "w") as f:
            f.write(str(time.monotonic() - began))
'''


class Work(NamedTuple):
    """A protocol: how many steps it has in threads and in processes, and what each does."""

    name: str
    title: str
    steps: Sequence[int]
    sleep: float = 0.0
    loops: int = 0


WORKS = (
    Work("empty", "empty steps", (40, 500)),
    Work("sleep", "steps that sleep 0.5 s, as a short program does", (25, 25), sleep=0.5),
    Work("cpu", "12 steps of pure Python, 4,000,000 turns of a loop each, and an output", (13, 13), loops=4_000_000),
    Work("thousand", "a protocol of 1,000 steps of 10 ms", (40, 1000), sleep=0.01),
)
SMOKE = (Work("empty", "empty steps", (4, 8)),)


def measure(args: argparse.Namespace) -> List[Result]:
    """A table for each kind of step."""
    if importlib.util.find_spec("pyworkflow") is None:
        print("\nscipion: left out, scipion-pyworkflow is not installed (pip install '.[scipion]')")
        return []
    results = []
    with tempfile.TemporaryDirectory() as folder:
        prepare(folder)
        for work in SMOKE if args.smoke else WORKS:
            jobs = [_job(folder, kind, work, args.workers) for kind in KINDS]
            rows = interleaved(jobs, runs_of(args, usual=3), warm=False)
            results.append(rate_table(f"scipion, {work.name}", f"scipion: {work.title}", rows))
            for what in ("runSteps", "launch to finished"):
                slow, fast = (rows[f"{kind}: {what}"].per_step() for kind in KINDS)
                print(f"  {what}: processes are {slow / fast:.1f} times as fast as threads, by step")
    return results


def _job(folder: str, kind: str, work: Work, workers: int) -> Job:
    steps = work.steps[KINDS.index(kind)]

    def once() -> Timing:
        values = {"steps": steps, "sleep": work.sleep, "loops": work.loops, "numberOfThreads": workers + 1}
        env = {
            **os.environ, "SCIPION_HOME": folder, "SCIPION_USER_DATA": os.path.join(folder, "user"),
            "SCIPION_DOMAIN": "pyworkflowtests", "SCIPION_PYTHON": sys.executable, "PYTHONWARNINGS": "ignore",
            "PYTHONPATH": os.pathsep.join([folder, *sys.path[1:], os.getcwd()]),
            "MPSTEPS_EXECUTOR": "processes" if kind == "processes" else "",
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "perf.scipion", "--launch", folder, json.dumps(values)], env=env, timeout=PATIENCE,
            check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        check(done.returncode == 0, done.stdout[-3000:])
        found = json.loads(done.stdout.splitlines()[-1])
        check(found["status"] == "finished" and found["sum"] == _sum(work.loops, steps), str(found))
        check(found["processes"] == (kind == "processes"), f"not run in {kind}")
        return {f"{kind}: runSteps": found["steps"], f"{kind}: launch to finished": found["all"]}

    return Job(once, steps)


def _sum(loops: int, steps: int) -> int:
    """What the steps of pure Python add up to: k * i % 7 goes round in seven turns."""
    return sum(sum(k * i % 7 for k in range(7)) * (loops // 7) + sum(k * i % 7 for k in range(loops % 7))
               for i in range(steps - 1))  # fmt: skip


def prepare(folder: str) -> None:
    """The plug-in with the protocol, as pip would install it, and mpsteps' entry point, which a checkout lacks."""
    package = os.path.join(folder, "perfshapes")
    os.makedirs(package)
    os.makedirs(os.path.join(folder, "config"))
    with open(os.path.join(package, "protocols.py"), "w") as f:
        f.write(PLUGIN)
    with open(os.path.join(package, "__init__.py"), "w") as f:
        f.write("from pyworkflow.plugin import Plugin as _Plugin\n\n\nclass Plugin(_Plugin):\n    pass\n")
    for name in ("perfshapes", "mpsteps.scipion"):
        info = os.path.join(folder, f"{name.replace('.', '_')}_perf-1.0.dist-info")
        os.makedirs(info)
        with open(os.path.join(info, "METADATA"), "w") as f:
            f.write(f"Metadata-Version: 2.1\nName: {name.replace('.', '-')}-perf\nVersion: 1.0\n")
        with open(os.path.join(info, "entry_points.txt"), "w") as f:
            f.write(f"[pyworkflow.plugin]\n{name} = {name}\n")


def launch(folder: str, values: str) -> None:
    """In a process of its own: a project, a launch; prints what came of it."""
    import time

    from pyworkflow.project import Project
    from pyworkflow.protocol import HostConfig
    from pyworkflowtests import Domain

    hosts = os.path.join(folder, "config", "hosts.conf")
    if not os.path.exists(hosts):
        HostConfig.writeBasic(hosts)
    project = Project(Domain, path=tempfile.mkdtemp(dir=folder))
    project.create()
    prot = project.newProtocol(Domain.getProtocols()["ProtMeasure"], **json.loads(values))
    began = time.monotonic()
    project.launchProtocol(prot, wait=True)
    took = time.monotonic() - began
    with open(prot.getStdoutLog()) as f, open(prot.getStderrLog()) as g:
        log = f.read()
        check(prot.isFinished(), f"{prot.getStatus()} {prot.getErrorMessage()}\n{log[-2000:]}\n{g.read()[-2000:]}")
    with open(prot._getExtraPath("seconds")) as f:
        seconds = float(f.read())
    print(json.dumps({
        "status": prot.getStatus(), "all": took, "steps": seconds, "sum": int(prot.outputSum),
        "processes": "mpsteps: step 1 runs in process" in log,
    }))  # fmt: skip


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Measure, print, save."""
    script(argv, __doc__, measure)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--launch"]:
        launch(*sys.argv[2:])
    else:
        main()
