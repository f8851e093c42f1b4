"""What a protocol is asked for: its form, the values of its params, and whether they are acceptable.

This half of `mpsteps.Protocol` knows of no steps: it is what a command line or a window needs before a run.
"""

from __future__ import annotations

import traceback
import typing
from typing import Any, Dict, Iterator, List, Optional, Tuple

from mpsteps._outcome import ProtocolStatus
from mpsteps._texts import listFromRange
from mpsteps.constants import BIN_THREADS_PARAM, GPU_LIST, MODE_RESTART, STEPS_PARALLEL, STEPS_SERIAL, USE_GPU
from mpsteps.errors import UsageError
from mpsteps.form import Form
from mpsteps.params import EnumParam, Param
from mpsteps.scalars import rawValue


class ProtocolInputs(ProtocolStatus):
    """Form and params. Each param of the form is an attribute of the same name: a scalar with `.get()` and `.set()`."""

    stepsExecutionMode: int = STEPS_SERIAL

    # Params that every protocol has: scalars, set from the form or by the constructor.
    runName: Any
    runMode: Any
    numberOfThreads: Any
    numberOfMpi: Any

    _definition: Optional[Form]

    # ------------------------------------------------------------ hooks for subclasses

    def _defineParams(self, form: Form) -> None:
        """Add sections and params to the form."""

    def _validate(self) -> List[str]:
        """What is wrong with the values of the params, one sentence each; empty: all is well."""
        return []

    def _warnings(self) -> List[str]:
        """What the user should think about before running, one sentence each."""
        return []

    def _summary(self) -> List[str]:
        """A few lines about what came out."""
        return ["No summary information."]

    def _methods(self) -> List[str]:
        """How it was done, as it would stand in a paper."""
        return []

    def _citations(self) -> List[str]:
        """What to cite."""
        return []

    # ------------------------------------------------------------------------- values

    def getDefinition(self) -> Form:
        """The form."""
        if self._definition is None:
            form = Form(self)
            self._definition = form
            self._defineParams(form)
        return self._definition

    def getParam(self, paramName: str) -> Optional[Param]:
        """The definition of a param; None if there is no such param."""
        return typing.cast(Optional[Param], self.getDefinition().getParam(paramName))

    def getAttributeValue(self, attrName: str, defaultValue: Any = None) -> Any:
        """The plain value of an attribute: a param's value, not its box."""
        attribute = getattr(self, attrName, None)
        return defaultValue if attribute is None else rawValue(attribute)

    def hasAttribute(self, attrName: str) -> bool:
        """Whether there is an attribute of this name."""
        return hasattr(self, attrName)

    def getEnumText(self, paramName: str) -> str:
        """The text of the choice that an EnumParam has."""
        param = self.getParam(paramName)
        if not isinstance(param, EnumParam):
            raise UsageError(f"{paramName!r} is not an EnumParam of {type(self).__name__}")
        index = getattr(self, paramName).get()
        if index is None or not 0 <= index < len(param.choices):
            raise UsageError(f"{paramName!r} of {type(self).__name__} is {index}, which is no choice: "
                             f"{param.describeExpected()}")
        return str(param.choices[index])

    def evalParamCondition(self, paramName: str) -> bool:
        """Whether a param is shown with the values that the others have."""
        return bool(self.getDefinition().evalParamCondition(paramName))

    def iterDefinitionAttributes(self) -> Iterator[Tuple[str, Any]]:
        """Names of the params and their scalars."""
        for name, _ in self.getDefinition().iterParams():
            yield name, getattr(self, name)

    def getDefinitionDict(self) -> Dict[str, Any]:
        """Names of the params and their plain values."""
        return {name: scalar.get() for name, scalar in self.iterDefinitionAttributes()}

    def modeSerial(self) -> bool:
        """Whether steps run one after another."""
        return self.stepsExecutionMode == STEPS_SERIAL

    def modeParallel(self) -> bool:
        """Whether steps run in parallel."""
        return not self.modeSerial()

    def getScipionThreads(self) -> int:
        """How many steps run at a time in parallel mode: the number of worker processes."""
        return int(self.numberOfThreads.get())

    def getBinThreads(self) -> int:
        """The threads that each program of a step is to use: 'binThreads' of the form, or, in serial mode,
        numberOfThreads."""
        if self.modeSerial():
            return self.getScipionThreads()
        return int(self.getAttributeValue(BIN_THREADS_PARAM, 1))

    def getMPIs(self) -> int:
        """Always 1: mpsteps never uses MPI. (A higher number does not pass `validate()`.)"""
        return int(self.numberOfMpi.get())

    def allowsGpu(self) -> bool:
        """Whether the form asks for graphics cards (a param 'gpuList')."""
        return hasattr(self, GPU_LIST)

    def requiresGpu(self) -> bool:
        """Whether it cannot run without: it asks for cards and has no switch 'useGpu'."""
        return self.allowsGpu() and not hasattr(self, USE_GPU)

    def usesGpu(self) -> bool:
        """Whether graphics cards are asked for and switched on."""
        return self.allowsGpu() and bool(self.getAttributeValue(USE_GPU, True))

    def getGpuList(self) -> List[int]:
        """The numbers of the graphics cards that the form names, whether they are switched on or not."""
        return listFromRange(str(getattr(self, GPU_LIST).get() or "")) if self.allowsGpu() else []

    def getRunMode(self) -> int:
        """MODE_RESUME or MODE_RESTART."""
        return int(self.runMode.get())

    def isRestart(self) -> bool:
        """Whether an earlier run in the same directory is to be deleted first."""
        return self.getRunMode() == MODE_RESTART

    def isContinued(self) -> bool:
        """Whether steps that have finished in an earlier run in the same directory are kept."""
        return not self.isRestart()

    # --------------------------------------------------------------------- validation

    def validate(self) -> List[str]:
        """What is wrong, one sentence each; empty: the protocol can run."""
        errors = self.getDefinition().validateParams(self)
        errors += self._validateParallel()
        try:
            errors += _sentences(self._validate())
        except Exception:
            errors.append(f"{type(self).__name__}._validate failed:\n{traceback.format_exc()}")
        return errors

    def _validateParallel(self) -> List[str]:
        """Threads only, never MPI: checked for every protocol, also where its author wrote no check."""
        errors = []
        mpi, threads = self.numberOfMpi.get(), self.numberOfThreads.get()
        if mpi is not None and mpi > 1:
            errors.append(
                f"*numberOfMpi* is {mpi}, but mpsteps never uses MPI: select threads instead "
                f"(numberOfThreads={mpi}); each thread is a worker process"
            )
        if (threads is None or threads < 1) and not self.getDefinition().hasParam("numberOfThreads"):
            errors.append(f"*numberOfThreads* must be at least 1, not {threads}: it is the number of worker processes")
        if self.stepsExecutionMode not in (STEPS_SERIAL, STEPS_PARALLEL):
            errors.append(f"stepsExecutionMode must be STEPS_SERIAL or STEPS_PARALLEL, not {self.stepsExecutionMode!r}")
        try:
            self.getGpuList()
        except ValueError as error:
            errors.append(f"*{GPU_LIST}* {error}")
        return errors

    def warnings(self) -> List[str]:
        """What the user should think about before running."""
        return _sentences(self._warnings())

    def summary(self) -> List[str]:
        """A few lines about what came out, and why it failed if it did."""
        try:
            lines = _sentences(self._summary()) or ["No summary information."]
        except Exception as error:
            lines = [f"_summary failed: {type(error).__name__}: {error}"]
        if self.getErrorMessage():
            lines += ["", "*ERROR:*", self.getErrorMessage()]
        return lines

    def methods(self) -> List[str]:
        """How it was done."""
        return _sentences(self._methods())

    def citations(self) -> List[str]:
        """What to cite."""
        return _sentences(self._citations())


def _sentences(found: Any) -> List[str]:
    """What a hook returned as a list: None is nothing, and one text is one sentence."""
    return [found] if isinstance(found, str) else list(found or ())
