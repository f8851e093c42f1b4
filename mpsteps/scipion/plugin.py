"""The plug-in: what Scipion imports by the entry point group `pyworkflow.plugin`, in each of its processes.

It has no protocols of its own. If it is switched on it puts a ProcessStepExecutor in the place of every
ThreadStepExecutor that a protocol is given. If it is not, nothing of pyworkflow is touched.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import pyworkflow.plugin
from pyworkflow.protocol.protocol import Protocol

VARIABLE = "MPSTEPS_EXECUTOR"
LOCAL_VARIABLE = "MPSTEPS_LOCAL"
PROCESSES = "processes"

logger = logging.getLogger(__name__)


class Plugin(pyworkflow.plugin.Plugin):  # type: ignore[misc]  # pyworkflow is not typed
    """Runs steps of parallel protocols in processes, if MPSTEPS_EXECUTOR is 'processes'."""

    _url = "https://pypi.org/project/mpsteps"

    @classmethod
    def _defineVariables(cls) -> None:
        cls._defineVar(
            VARIABLE, "", description="'processes': steps of parallel protocols run in processes. Empty: in threads, "
            "as ever.",
        )  # fmt: skip
        cls._defineVar(
            LOCAL_VARIABLE, "", description="Steps that are to stay in the main process, separated by commas: names "
            "of methods (computeStep), or of a protocol's (ProtX.computeStep).",
        )  # fmt: skip
        value = str(cls.getVar(VARIABLE, "") or "").strip().lower()
        if value == PROCESSES:
            switch_on()
        elif value not in ("", "threads"):
            logger.warning("%s is %r: it can be 'processes', or 'threads' (or empty), which is what is used now",
                           VARIABLE, value)  # fmt: skip

    @classmethod
    def getEnviron(cls) -> None:
        """It starts no programs."""

    @classmethod
    def defineBinaries(cls, env: Any) -> None:
        """It has none."""

    @classmethod
    def validateInstallation(cls) -> list[str]:
        """Nothing is needed."""
        return []


def switch_on() -> None:
    """From now on every protocol of this process that is given a ThreadStepExecutor uses a ProcessStepExecutor."""
    theirs = Protocol.setStepsExecutor
    if getattr(theirs, "_mpsteps", False):
        return

    @functools.wraps(theirs)
    def setStepsExecutor(self: Any, executor: Any = None) -> None:
        from mpsteps.scipion.executor import in_processes  # only a process that runs a protocol needs it

        theirs(self, in_processes(executor))

    setStepsExecutor._mpsteps = theirs  # type: ignore[attr-defined]  # functions take attributes
    Protocol.setStepsExecutor = setStepsExecutor


def switch_off() -> None:
    """Undo `switch_on`."""
    theirs = getattr(Protocol.setStepsExecutor, "_mpsteps", None)
    if theirs is not None:
        Protocol.setStepsExecutor = theirs
