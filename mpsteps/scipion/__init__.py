"""Scipion's parallel protocols in processes: the drop-in executor for `scipion-pyworkflow`.

Three ways in: the installed plug-in (with MPSTEPS_EXECUTOR=processes in the environment or in scipion.conf every
parallel protocol uses it), `class MyProt(ProcessSteps, Protocol)`, or
`protocol.setStepsExecutor(ProcessStepExecutor(hostConfig, nThreads))`. See docs/scipion.md.

This module is what Scipion imports as a plug-in in each of its processes: everything else is loaded when it is used.
"""

from __future__ import annotations

import importlib
from typing import Any, List

from mpsteps import __version__ as __version__

_HOME_OF = {
    "Plugin": "mpsteps.scipion.plugin",
    "ProcessStepExecutor": "mpsteps.scipion.executor",
    "ProcessSteps": "mpsteps.scipion.mixin",
}

__all__ = ["Plugin", "ProcessStepExecutor", "ProcessSteps"]  # loaded when first used


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'mpsteps.scipion' has no attribute {name!r}")
    try:
        importlib.import_module("pyworkflow")
    except ModuleNotFoundError as problem:
        if problem.name != "pyworkflow":
            raise
        raise ModuleNotFoundError(
            f"mpsteps.scipion.{name} needs pyworkflow: install mpsteps into Scipion's own environment, or "
            "scipion-pyworkflow (Python 3.8 to 3.11) beside it", name="pyworkflow",
        ) from None  # fmt: skip
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> List[str]:
    return sorted([*globals(), *__all__])
