"""Launches protocols of `scipion_shapes` as Scipion's interface does, by Project.launchProtocol, and ends some.

    python scipion_launch.py FOLDER WHAT

WHAT: `finish` (fills, waits for it), `stop`, `sigterm`, `sigkill` (sleeps, ended in that way when its programs run).
Prints what came of it as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time

import scipion_run

PATIENCE = 30.0


def wait_for(condition):
    """True as soon as it holds; False if it does not in time."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def alive(pid):
    """Whether a process runs (a zombie does not)."""
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def pids(prot):
    """Of the two steps that run, and of their programs."""
    found = []
    for name in ("pid1", "pid2", "program1", "program2"):
        path = prot._getExtraPath(name)
        text = scipion_run.content(path).strip()
        if text:
            found.append(int(text))
    return found


def end(project, prot, what):
    """Launch, wait until both programs run, end it; what is left then."""
    project.launchProtocol(prot)
    assert wait_for(lambda: len(pids(prot)) == 4)
    project._updateProtocol(prot)
    main = prot.getPid()
    if what == "stop":
        project.stopProtocol(prot)
    else:
        os.kill(main, signal.SIGTERM if what == "sigterm" else signal.SIGKILL)
    gone = wait_for(lambda: not any(map(alive, [main, *pids(prot)])))
    return {"gone": gone, "status": prot.getStatus(), "main": main, "pids": pids(prot)}


def main(folder, what):
    project, protocols = scipion_run.open_project(folder)
    if what == "finish":
        prot = project.newProtocol(protocols.ShapeFills, n=4)
        began = time.monotonic()
        project.launchProtocol(prot, wait=True)
        found = scipion_run.describe(prot)
        found["seconds"] = time.monotonic() - began
    else:
        prot = project.newProtocol(protocols.ShapeSleeps, n=3)
        found = end(project, prot, what)
    with open(prot.getStdoutLog()) as f:
        found["log"] = f.read()
    with open(prot.getStderrLog()) as f:
        found["errors"] = f.read()
    with open(os.path.join(folder, "launched.json"), "w") as f:
        json.dump(found, f)


if __name__ == "__main__":
    main(os.path.abspath(sys.argv[1]), sys.argv[2])
