"""Runs the protocols of `parity_protocols` under one of the two frameworks, and describes the outcomes as JSON.

    python parity_run.py pyworkflow FOLDER      (in a process of its own: pyworkflow is configured by its environment)
    python parity_run.py processes FOLDER       (the same, with mpsteps' executor in the place of ThreadStepExecutor)

Under pyworkflow everything is as in a real project: a Project with a database, a domain, `hosts.conf`, and the executor
that `runProtocolMain` would choose. Only its pauses of 3 s between two looks are shortened.
"""

from __future__ import annotations

import importlib
import json
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
IMPORT_HERE, IMPORT_THERE = "from mpsteps import ", "from pyworkflow.protocol import "

# class, params: every protocol that is run
RUNS = [
    ("ParityFanOut", {}), ("ParityFanOut", {"n": 1}), ("ParityInstance", {}), ("ParitySerial", {}), ("ParityFails", {}),
    ("ParitySerialFails", {}), ("ParityMissingFile", {}), ("ParityInteractive", {}), ("ParityStreaming", {}),
    ("ParityGenerator", {}),
]  # fmt: skip
# params of ParityForm, which is only looked at and validated
FORMS = [
    {}, {"useMask": True}, {"useMask": True, "mode": 0}, {"low": 9}, {"title": "other", "low": 6}, {"radius": 0.5},
    {"useMask": True, "radius": 0.5}, {"picks": "2", "weights": "3x1"}, {"numberOfThreads": 7},
]  # fmt: skip
_ATTRIBUTES = ("failedItems", "stats", "counts", "offset", "label", "order", "items", "left")


def describe(prot):
    """What became of a protocol, as plain data in which order that threads may choose does not count."""
    attributes = {}
    for name in _ATTRIBUTES:
        value = getattr(prot, name, None)
        if name in ("failedItems", "items") and value is not None:
            value = sorted(value)
        attributes[name] = {str(k): v for k, v in value.items()} if isinstance(value, dict) else value
    graph = prot.getStepsGraph()
    found = {
        "status": prot.getStatus(),
        "steps": [_step(s) for s in prot.getSteps()],
        "error": prot.getErrorMessage(),
        "attributes": attributes,
        "outputs": {name: value.get() for name, value in prot.iterOutputAttributes()},
        "files": _files(prot._getExtraPath()),
        "graph": {n.getName(): sorted(c.getName() for c in n.getChildren()) for n in graph.getNodes()},
        "roots": [n.getName() for n in graph.getRootNodes()],
        "numberOfSteps": prot.numberOfSteps,
        "tmp": _files(prot._getTmpPath()),
    }
    return json.loads(json.dumps(found).replace(prot.getWorkingDir(), "RUN"))


def _step(s):
    """A step. The generator's argument is the time."""
    return {
        "function": s.funcName.get(),
        "status": s.getStatus(),
        "prerequisites": [int(p) for p in s.getPrerequisites()],
        "args": "time" if s.funcName == "resumableStepGeneratorStep" else json.loads(s.argsStr.get()),
        "index": s.getIndex(),
        "text": str(s),
        "needsGPU": s.needsGPU(),
        "interactive": bool(s.isInteractive()),
        "is": [s.isNew(), s.isFinished(), s.isFailed(), s.isRunning(), s.isWaiting(), s.isActive(), s.isAborted()],
        "took time": s.getElapsedTime().total_seconds() >= 0,
        "error": s.getErrorMessage(),
    }


def _files(folder):
    found = {}
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
        with open(os.path.join(folder, name)) as f:
            found[name] = f.read()
    return found


def order_holds(outcome):
    """Whether every step began after its prerequisites had ended, by the notes that steps took."""
    lines = outcome["files"].get("notes", "").split()
    events = [(lines[i], lines[i + 1]) for i in range(0, len(lines), 2)]
    for number, s in enumerate(outcome["steps"], 1):
        name = "output" if s["function"] == "createOutputStep" else str(number)
        if ("begin", name) not in events:
            continue
        for p in s["prerequisites"]:
            if ("end", str(p)) in events and events.index(("end", str(p))) > events.index(("begin", name)):
                return False
    return True


def look(prot):
    """What a form says about itself: values, conditions, messages."""
    return {"look": prot.look(), "messages": prot.validate()}


# -------------------------------------------------------------------------------------------------- pyworkflow


def translated(folder):
    """A plug-in package with the protocols' source, the import line changed; returns the module."""
    package = os.path.join(folder, "paritypackage")
    os.makedirs(package)
    with open(os.path.join(HERE, "parity_protocols.py")) as f:
        lines = f.read().split("\n")
    changed = [i for i, line in enumerate(lines) if line.startswith(IMPORT_HERE)]
    assert len(changed) == 1
    lines[changed[0]] = lines[changed[0]].replace(IMPORT_HERE, IMPORT_THERE)
    with open(os.path.join(package, "protocols.py"), "w") as f:
        f.write("\n".join(lines))
    with open(os.path.join(package, "__init__.py"), "w") as f:
        f.write("from pyworkflow.plugin import Plugin as _Plugin\n\n\nclass Plugin(_Plugin):\n    pass\n")
    sys.path.insert(0, folder)
    return importlib.import_module("paritypackage.protocols")


def run_pyworkflow(folder, kind="pyworkflow"):
    """All outcomes under pyworkflow, in a project in `folder`."""
    from pyworkflow.project import Project
    from pyworkflow.protocol import HostConfig, StepExecutor, ThreadStepExecutor, executor
    from pyworkflowtests import Domain

    if kind == "processes":
        from mpsteps.scipion import ProcessStepExecutor as ThreadStepExecutor

    class Time:
        """The `time` of pyworkflow's executor, with shorter pauses."""

        @staticmethod
        def sleep(seconds):
            real.sleep(min(seconds, 0.02))

    real, executor.time = executor.time, Time
    protocols = translated(folder)
    Domain.registerPlugin("paritypackage")
    assert "ParityFanOut" in Domain.getProtocols()  # this call tells each class its package
    hosts = os.path.join(folder, "hosts.conf")
    HostConfig.writeBasic(hosts)
    project = Project(Domain, path=os.path.join(folder, "project"))
    project.create(hostsConf=hosts)
    found = {"runs": [], "forms": []}
    for name, params in RUNS:
        prot = project.newProtocol(getattr(protocols, name), **params)
        project.saveProtocol(prot)
        prot.setHostConfig(project.getHostConfig("localhost"))
        prot.makePathsAndClean()
        threads = prot.numberOfThreads.get()
        parallel = prot.modeParallel() and threads > 1
        host = prot.getHostConfig()
        prot.setStepsExecutor(ThreadStepExecutor(host, threads - 1) if parallel else StepExecutor(host))
        prot.run()
        found["runs"].append(describe(prot))
    for params in FORMS:
        found["forms"].append(look(project.newProtocol(protocols.ParityForm, **params)))
    return found


def run_mpsteps(folder, engine):
    """All outcomes under mpsteps; runs below `folder`."""
    import parity_protocols as protocols

    found = {"runs": [], "forms": []}
    for number, (name, params) in enumerate(RUNS):
        prot = getattr(protocols, name)(workingDir=os.path.join(folder, f"run{number}"), **params)
        prot.run(engine=None if prot.modeSerial() else engine)
        found["runs"].append(describe(prot))
    for params in FORMS:
        found["forms"].append(look(protocols.ParityForm(**params)))
    return found


if __name__ == "__main__":
    answer = run_pyworkflow(sys.argv[2], sys.argv[1])
    with open(os.path.join(sys.argv[2], "outcomes.json"), "w") as out:
        json.dump(answer, out)
