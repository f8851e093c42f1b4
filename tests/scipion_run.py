"""Runs the protocols of `scipion_shapes` in a real pyworkflow project, in threads or in processes, and says what came
of them as JSON.

    python scipion_run.py threads|processes FOLDER [RUN ...]

In a process of its own: pyworkflow is configured by its environment. Of ThreadStepExecutor only the pauses of 3 s
between two looks are shortened, unless SHAPES_REAL_TIME is set.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import shutil
import sqlite3
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))

RUNS = {
    "fills": ("ShapeFills", {"n": 6}),
    "lock": ("ShapeLockOutputs", {"n": 5}),
    "generator": ("ShapeGenerator", {"n": 5}),
    "check": ("ShapeCheck", {"n": 4}),
    "gpu": ("ShapeGpu", {"n": 4}),
    "raise": ("ShapeFails", {"mode": "raise"}),
    "job": ("ShapeFails", {"mode": "job"}),
    "set": ("ShapeReadsSet", {"n": 6}),
    "pool": ("ShapePool", {"n": 3}),
    "functions": ("ShapeFunctions", {}),
    "live": ("ShapeLive", {}),
    "cpu": ("ShapeCpu", {}),
    "scratch": ("ShapeScratch", {"n": 6}),
}
# what threads do not survive, or take for success
ONLY_PROCESSES = {mode: ("ShapeFails", {"mode": mode}) for mode in ("sysexit", "osexit", "segv", "kill")}

MIXED = {"mixed": ("ShapeMixed", {"n": 6})}
# what threads survive only as long as the loop sleeps
BUSY = {"outputs": ("ShapeOutputs", {"n": 40})}
# what only the guard in a fork sees
HIDDEN = {
    "hidden-" + mode: ("ShapeHides", {"mode": mode})
    for mode in ("insert", "define", "store", "lock", "unpicklable", "close", "live")
}
TIMELY = (
    "initTime", "endTime", "_cpuTime", "_pid", "hostFullName", "lastUpdateTimeStamp", "inputImages", "workingDir",
)  # fmt: skip


def install(folder):
    """A plug-in package with the shapes, as pip would install it; and mpsteps' own entry point."""
    package = os.path.join(folder, "scipionshapes")
    os.makedirs(package, exist_ok=True)
    shutil.copy(os.path.join(HERE, "scipion_shapes.py"), os.path.join(package, "protocols.py"))
    with open(os.path.join(package, "__init__.py"), "w") as f:
        f.write("from pyworkflow.plugin import Plugin as _Plugin\n\n\nclass Plugin(_Plugin):\n    pass\n")
    for name in ("scipionshapes", "mpsteps.scipion"):
        info = os.path.join(folder, name.replace(".", "_") + "_shapes-1.0.dist-info")
        os.makedirs(info, exist_ok=True)
        with open(os.path.join(info, "METADATA"), "w") as f:
            f.write(f"Metadata-Version: 2.1\nName: {name.replace('.', '-')}-shapes\nVersion: 1.0\n")
        with open(os.path.join(info, "entry_points.txt"), "w") as f:
            f.write(f"[pyworkflow.plugin]\n{name} = {name}\n")


def environment(folder, **more):
    """For a process that uses pyworkflow with these plug-ins."""
    home = os.path.join(folder, "home")
    os.makedirs(os.path.join(home, "config"), exist_ok=True)
    path = os.pathsep.join([folder, os.path.dirname(HERE), os.environ.get("PYTHONPATH", "")])
    return {
        **os.environ, "SCIPION_HOME": home, "SCIPION_USER_DATA": os.path.join(folder, "user"),
        "SCIPION_DOMAIN": "pyworkflowtests", "SCIPION_PYTHON": sys.executable, "PYTHONPATH": path.rstrip(os.pathsep),
        "PYTHONWARNINGS": "ignore", **more,
    }  # fmt: skip


def open_project(folder):
    """A new project; call it in a process that has `environment`."""
    from pyworkflow.project import Project
    from pyworkflow.protocol import HostConfig
    from pyworkflowtests import Domain

    hosts = os.path.join(folder, "home", "config", "hosts.conf")
    if not os.path.exists(hosts):
        HostConfig.writeBasic(hosts)
    project = Project(Domain, path=os.path.join(folder, "project"))
    project.create()
    assert "ShapeFills" in Domain.getProtocols()
    return project, importlib.import_module("scipionshapes.protocols")


def describe(prot):
    """What became of a run, without what is different each time, from its files: outputs in run.db, rows of sets,
    statuses of steps, results."""
    from pyworkflow.object import Set

    found = {"status": prot.getStatus(), "error": prot.getErrorMessage(), "steps": [], "rows": {}, "stored": {}}
    for step in prot.loadSteps():
        args = "time" if "Generator" in step.funcName.get() else step.argsStr.get()
        prerequisites = sorted(int(p) for p in step.getPrerequisites())
        found["steps"].append([step.funcName.get(), args, step.getStatus(), prerequisites, step.getErrorMessage()])
    stored = rows(prot.getDbPath(), "name, value")
    names = [(name.split("."), value) for name, value in stored if name]
    own = {parts[1]: value for parts, value in names if len(parts) == 2 and parts[0] == str(prot.getObjId())}
    found["stored"] = {k: v for k, v in own.items() if k not in TIMELY and not k.startswith("output")}
    for name, output in prot.iterOutputAttributes():
        if isinstance(output, Set):
            found["stored"][name] = output.getSize()
            found["rows"][name] = len(rows(output.getFileName(), "id"))
        else:
            found["stored"][name] = str(output)
    found["result"] = json.loads(content(prot._getExtraPath("result.json")) or "null")
    marks = sorted(name for name in os.listdir(prot._getExtraPath()) if name.startswith("ran"))
    found["ran"] = {name: len(content(prot._getExtraPath(name))) for name in marks}
    return json.loads(json.dumps(found).replace(prot.getWorkingDir(), "RUN"))


def rows(path, columns):
    """What a database of pyworkflow's has."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        return db.execute(f"select {columns} from Objects").fetchall()


def content(path):
    """Of a file, '' if it is not there."""
    if not os.path.exists(path):
        return ""
    with open(path) as f:
        return f.read()


def executor_for(prot, kind):
    """As runProtocolMain chooses it."""
    from pyworkflow.protocol import STEPS_SERIAL, StepExecutor, ThreadStepExecutor

    from mpsteps.scipion import ProcessStepExecutor

    if prot.stepsExecutionMode == STEPS_SERIAL or prot.numberOfThreads.get() < 2:
        return StepExecutor(prot.getHostConfig(), gpuList=prot.getGpuList())
    cls = {"threads": ThreadStepExecutor, "processes": ProcessStepExecutor}[kind]
    return cls(prot.getHostConfig(), prot.numberOfThreads.get() - 1, gpuList=prot.getGpuList())


def run_one(project, protocols, kind, name, values):
    """One protocol, in this process; a failed one is mended and resumed."""
    cls = getattr(protocols, name)
    values = dict(values)
    if name == "ShapeReadsSet":
        maker = project.newProtocol(protocols.ShapeMakesSet)
        _run(project, maker, kind)
        values["inputImages"] = maker.outputImages
    for _ in range(5):
        prot = project.newProtocol(cls, **values)
        done, seconds = _run(project, prot, kind)
        found = [describe(done)]
        if kind == "processes" or name == "ShapeFails" or is_told(found[0]):
            break  # else ThreadStepExecutor has stumbled, or left its loop before it was told of the last step's end
    if name == "ShapeFails":
        open(prot._getExtraPath("mended"), "w").close()
        done, _ = _run(project, prot, kind, again=True)
        found.append(describe(done))
    return found, seconds


def is_told(found):
    """Whether all that a finished run did is recorded."""
    stored = found["stored"]
    finished = found["status"] == "finished" and all(s[2] == "finished" for s in found["steps"])
    return finished and stored["_stepsDone"] == stored["_numberOfSteps"]


def _run(project, prot, kind, again=False):
    """As launchProtocol and runProtocolMain do it, but in this process; the protocol as it was loaded for the run."""
    from pyworkflow.protocol.protocol import getProtocolFromDb

    if not again:
        project._setupProtocol(prot)
        prot.makePathsAndClean()
        project.mapper.commit()
        shutil.copy(project.dbPath, prot.getDbPath())
    run = getProtocolFromDb(project.path, prot.getDbPath(), prot.getObjId(), chdir=True)
    run.setStepsExecutor(executor_for(run, kind))
    began = time.monotonic()
    run.run()
    seconds = time.monotonic() - began
    project._updateProtocol(prot)
    return run, seconds


def shorten_pauses():
    """Of pyworkflow's executors."""
    from pyworkflow.protocol import executor

    class Time:
        @staticmethod
        def sleep(seconds):
            time.sleep(min(seconds, 0.02))

    executor.time = Time


def main(kind, folder, names):
    if kind == "threads" and not os.environ.get("SHAPES_REAL_TIME"):
        shorten_pauses()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    project, protocols = open_project(folder)
    found, seconds = {}, {}
    for name in names or RUNS:
        what = {**RUNS, **ONLY_PROCESSES, **HIDDEN, **MIXED, **BUSY}[name]
        found[name], seconds[name] = run_one(project, protocols, kind, *what)
    with open(os.path.join(folder, "outcomes.json"), "w") as f:
        json.dump(found, f, sort_keys=True, indent=1)
    print(json.dumps(seconds))


if __name__ == "__main__":
    if os.environ.get("SCIPION_DOMAIN") != "pyworkflowtests":
        install(sys.argv[2])
        os.execve(sys.executable, [sys.executable, *sys.argv], environment(sys.argv[2]))
    main(sys.argv[1], os.path.abspath(sys.argv[2]), sys.argv[3:])
