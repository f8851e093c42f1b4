"""`Protocol`: what users subclass. A form of parameters, and steps with prerequisites.

Names and meanings are those of Scipion's `pyworkflow.protocol.Protocol`, so that a protocol's source runs under
either by changing its import line. A protocol does not know how it is run: `run()` hands it to `mpsteps.run`.
"""

from __future__ import annotations

import logging
import os
import threading
import traceback
import typing
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple, Union

from mpsteps import _programs
from mpsteps._context import StepContext, current
from mpsteps._outcome import ProtocolStatus
from mpsteps.constants import (
    GPU_LIST,
    MODE_RESTART,
    MODE_RESUME,
    STEPS_PARALLEL,
    STEPS_SERIAL,
    USE_GPU,
)
from mpsteps.errors import PrerequisiteError, UsageError
from mpsteps.form import Form
from mpsteps.params import EnumParam, Param
from mpsteps.scalars import CsvList, Integer, String, listFromRange
from mpsteps.steps import Step, StepSink, as_step_ids, results_used

logger = logging.getLogger("mpsteps.protocol")

_NOT_PARAMS = ("workingDir", "numberOfThreads", "numberOfMpi", "runMode", "objLabel", "hostName", "expertLevel")

FRAMEWORK_ATTRIBUTES = frozenset(
    {
        "_definition", "_endTime", "_error", "_initTime", "_lock", "_log", "_newSteps", "_numberOfSteps", "_report",
        "_sink", "_status", "_steps", "_stepsDone", "_stepsExecutor", "_currentDir", "_cpuTime",
    }
)  # fmt: skip
"""Attributes of a protocol that belong to the framework: they do not travel with it, and their changes do not."""


class Protocol(ProtocolStatus):
    """Base of all protocols.

    Subclasses define `_defineParams(form)` and `_insertAllSteps()`, and whichever of the other hooks they need. Each
    param of the form becomes an attribute of the same name: a scalar with `.get()` and `.set()`.

    `stepsExecutionMode`: STEPS_SERIAL (steps run one after another, in this process) or STEPS_PARALLEL (in worker
    processes). `keepGoing`: after a failed step everything that does not depend on it still runs.
    `_stepsCheckSecs`: seconds between two calls of `_stepsCheck` while steps run.
    """

    _label: Optional[str] = None
    stepsExecutionMode: int = STEPS_SERIAL
    keepGoing: bool = False
    _stepsCheckSecs: float = 5

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self._steps: typing.MutableSequence[Step] = []
        self._newSteps = False
        self._sink: Optional[StepSink] = None
        self._stepsExecutor: Optional[StepContext] = None
        self._log = logger
        self._lock = threading.RLock()
        self._currentDir: Optional[str] = None
        self._outputs = CsvList()
        self._stepsDone = Integer(0)
        self._numberOfSteps = Integer(0)
        self._cpuTime = 0.0
        self._report: Any = None
        self.workingDir = String(kwargs.pop("workingDir", None))
        self._label_of_run = kwargs.pop("objLabel", None)
        self._definition: Optional[Form] = None
        form = self.getDefinition()
        self._refuse_unknown(form, kwargs)
        form.createValues(self, kwargs)
        if not form.hasParam("numberOfThreads"):
            self.numberOfThreads = Integer(kwargs.get("numberOfThreads", 1))
        if not form.hasParam("numberOfMpi"):
            self.numberOfMpi = Integer(kwargs.get("numberOfMpi", 1))
        if not form.hasParam("hostName"):
            self.hostName = String(kwargs.get("hostName", "localhost"))
        if not form.hasParam("expertLevel"):
            self.expertLevel = Integer(kwargs.get("expertLevel", 0))

    def _refuse_unknown(self, form: Form, kwargs: Dict[str, Any]) -> None:
        unknown = form.unknown({k: v for k, v in kwargs.items() if k not in _NOT_PARAMS})
        if unknown:
            raise UsageError(f"{type(self).__name__}: " + "; ".join(str(u) for u in unknown))

    def __getstate__(self) -> Dict[str, Any]:
        """A protocol travels without what belongs to the framework of the process it lives in."""
        return {k: v for k, v in vars(self).items() if k not in FRAMEWORK_ATTRIBUTES}

    def __setstate__(self, state: Dict[str, Any]) -> None:
        ProtocolStatus.__init__(self)
        self._steps = []
        self._newSteps = False
        self._sink = None
        self._stepsExecutor = None
        self._log = logger
        self._lock = threading.RLock()
        self._currentDir = None
        self._stepsDone = Integer(0)
        self._numberOfSteps = Integer(0)
        self._cpuTime = 0.0
        self._report = None
        self._definition = None
        self.__dict__.update(state)

    # ------------------------------------------------------------ hooks for subclasses

    def _defineParams(self, form: Form) -> None:
        """Add sections and params to the form."""

    def _insertAllSteps(self) -> None:
        """Insert the steps with `_insertFunctionStep`. Runs before any of them."""

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

    def _stepsCheck(self) -> None:
        """Called every `_stepsCheckSecs` while steps run: insert steps for input that has arrived since."""

    # -------------------------------------------------------------------------- form

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
        if attribute is None:
            return defaultValue
        return attribute.get() if hasattr(attribute, "hasValue") else attribute

    def hasAttribute(self, attrName: str) -> bool:
        """Whether there is an attribute of this name."""
        return hasattr(self, attrName)

    def getEnumText(self, paramName: str) -> str:
        """The text of the choice that an EnumParam has."""
        param = self.getParam(paramName)
        if not isinstance(param, EnumParam):
            raise UsageError(f"{paramName!r} is not an EnumParam of {type(self).__name__}")
        return str(param.choices[getattr(self, paramName).get()])

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

    def getMPIs(self) -> int:
        """Always 1: mpsteps never uses MPI. (A higher number does not pass `validate()`.)"""
        return int(self.numberOfMpi.get())

    def allowsGpu(self) -> bool:
        """Whether the form asks for graphics cards (a param 'gpuList')."""
        return hasattr(self, GPU_LIST)

    def usesGpu(self) -> bool:
        """Whether graphics cards are asked for and switched on."""
        return self.allowsGpu() and bool(getattr(self, USE_GPU, True))

    def getGpuList(self) -> List[int]:
        """The numbers of the graphics cards that the form names; empty when none are used."""
        if not self.usesGpu():
            return []
        return listFromRange(str(getattr(self, GPU_LIST).get() or ""))

    def getRunMode(self) -> int:
        """MODE_RESUME or MODE_RESTART."""
        return int(self.runMode.get())

    def isContinued(self) -> bool:
        """Whether steps that have finished in an earlier run in the same directory are kept."""
        return self.getRunMode() == MODE_RESUME

    # -------------------------------------------------------------------- validation

    def validate(self) -> List[str]:
        """What is wrong, one sentence each; empty: the protocol can run."""
        errors = self.getDefinition().validateParams(self)
        errors += self._validateParallel()
        try:
            errors += list(self._validate() or [])
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
        return errors

    def warnings(self) -> List[str]:
        """What the user should think about before running."""
        return list(self._warnings() or [])

    def summary(self) -> List[str]:
        """A few lines about what came out, and why it failed if it did."""
        try:
            lines = self._summary() or ["No summary information."]
            lines = [lines] if isinstance(lines, str) else list(lines)
        except Exception as error:
            lines = [f"_summary failed: {type(error).__name__}: {error}"]
        if self.getErrorMessage():
            lines += ["", "*ERROR:*", self.getErrorMessage()]
        return lines

    def methods(self) -> List[str]:
        """How it was done."""
        return list(self._methods() or [])

    def citations(self) -> List[str]:
        """What to cite."""
        return list(self._citations() or [])

    # ------------------------------------------------------------------------- steps

    def _insertFunctionStep(
        self,
        func: Union[str, Callable[..., Any]],
        *funcArgs: Any,
        prerequisites: Union[None, int, Iterable[int]] = None,
        wait: bool = False,
        interactive: bool = False,
        needsGPU: bool = True,
    ) -> int:
        """Insert a step; returns its 1-based id.

        `func`: a method of this protocol, its name, or any callable; `funcArgs` are given to it when it runs.
        `prerequisites`: the id or ids of the steps that must finish first; None (left out) means the step inserted
        before it, `[]` none. `wait`: it stays 'waiting' until `setStatus(STATUS_NEW)`. `interactive`: after it ran,
        the protocol stops and waits for a person. `needsGPU`: it takes a graphics card, if the run has any.
        """
        function, name = self._stepFunction(func)
        return self._insertStep(
            Step(function, name, funcArgs, (), bool(wait), bool(interactive), bool(needsGPU)), prerequisites
        )

    def _insertRunJobStep(
        self, progName: str, progArguments: _programs.Arguments, resultFiles: Sequence[str] = [], **kwargs: Any  # noqa: B006
    ) -> int:
        """Insert a step that runs a program; `resultFiles` must exist afterwards. Other arguments as above."""
        if not resultFiles:
            return self._insertFunctionStep("runJob", progName, progArguments, **kwargs)
        return self._insertFunctionStep("_runJobForFiles", progName, progArguments, list(resultFiles), **kwargs)

    def _insertCopyFileStep(self, sourceFile: str, targetFile: str, **kwargs: Any) -> int:
        """Insert a step that copies a file. Other arguments as for `_insertFunctionStep`."""
        return self._insertFunctionStep("_copyFile", sourceFile, targetFile, **kwargs)

    def _stepFunction(self, func: Union[str, Callable[..., Any]]) -> Tuple[Union[str, Callable[..., Any]], str]:
        """What a step keeps of its function (a method: its name alone), and how it is called in messages."""
        owner = type(self).__name__
        if isinstance(func, str):
            if not hasattr(self, func):
                raise UsageError(f"{owner} has no method '{func}' to make a step of")
            if not callable(getattr(self, func)):
                raise UsageError(f"'{func}' of {owner} is not callable: a step is made of a method")
            return func, func
        if not callable(func):
            raise UsageError(f"a step is made of a method, its name or a callable, not of {func!r}")
        name = getattr(func, "__name__", type(func).__name__)
        if getattr(func, "__self__", None) is self and getattr(getattr(self, name, None), "__func__", None) is getattr(
            func, "__func__", func
        ):
            return name, name
        return func, name

    def _insertStep(self, step: Step, prerequisites: Union[None, int, Iterable[int]]) -> int:
        used = tuple(dict.fromkeys(results_used(step._args)))
        if prerequisites is None:
            count = len(self._steps)
            ids: Tuple[int, ...] = (count,) if count and not used else used
            if count and used and count not in used:
                ids = (count, *used)
        else:
            ids = as_step_ids(prerequisites)
            ids += tuple(u for u in used if u not in ids)
        step._prerequisites = ids
        if self._sink is not None:
            return self._sink.insert(step)
        step._id = len(self._steps) + 1
        check_prerequisites(step, len(self._steps))
        self._steps.append(step)
        self._newSteps = True
        return step._id

    def getSteps(self) -> Sequence[Step]:
        """The steps, in the order of their ids."""
        return self._steps

    def getStepsGraph(self, refresh: bool = True) -> Any:
        """The graph of the steps: see `mpsteps.stepsgraph.StepsGraph`."""
        from mpsteps.stepsgraph import StepsGraph

        return StepsGraph(self._steps)

    def updateSteps(self) -> None:
        """In Scipion: store the steps after inserting some. Here they are known at once; kept for its callers."""
        self._newSteps = False

    @property
    def numberOfSteps(self) -> int:
        """How many steps there are so far."""
        return int(self._numberOfSteps.get(0))

    @property
    def stepsDone(self) -> int:
        """How many steps have finished, in this run or in an earlier one that it continues."""
        return int(self._stepsDone.get(0))

    @property
    def cpuTime(self) -> float:
        """CPU seconds of all finished steps, their programs included."""
        return self._cpuTime

    # -------------------------------------------------------------- for code in steps

    def runJob(
        self,
        program: str,
        arguments: _programs.Arguments,
        cwd: Optional[str] = None,
        env: Optional[Dict[str, str]] = None,
        numberOfThreads: Optional[int] = None,
        numberOfMpi: int = 1,
    ) -> None:
        """Run an external program and wait for its end; its output goes to the step's log.

        `arguments`: text with shell words, or a sequence that is quoted for you. Raises ProgramError with the
        program's last lines when its exit code is not 0. `numberOfThreads` is told to it as OMP_NUM_THREADS.
        """
        if numberOfMpi is not None and numberOfMpi > 1:
            raise UsageError(f"runJob(numberOfMpi={numberOfMpi}): mpsteps never uses MPI; use numberOfThreads instead")
        if env is None:
            env = self._getEnviron()
        if numberOfThreads is None and self.modeSerial() and self.getDefinition().hasParam("numberOfThreads"):
            numberOfThreads = self.numberOfThreads.get()
        _programs.run(program, arguments, cwd=cwd, env=env, threads=numberOfThreads)

    def _runJobForFiles(self, program: str, arguments: _programs.Arguments, resultFiles: List[str]) -> List[str]:
        self.runJob(program, arguments)
        return resultFiles

    def _copyFile(self, sourceFile: str, targetFile: str) -> str:
        import shutil

        shutil.copyfile(sourceFile, targetFile)
        return targetFile

    def _getEnviron(self) -> Optional[Dict[str, str]]:
        """The environment for programs; None: that of this process."""
        return None

    def getExecutor(self) -> Optional[StepContext]:
        """What the running step may ask about its graphics cards; None outside of steps."""
        return current()

    def _defineOutputs(self, **outputs: Any) -> None:
        """Make these the outputs: attributes of the protocol by these names, listed by `iterOutputAttributes`."""
        for name, value in outputs.items():
            if name not in self._outputs:
                self._outputs.append(name)
            setattr(self, name, value)

    def iterOutputAttributes(self, outputClass: Optional[type] = None) -> Iterator[Tuple[str, Any]]:
        """Names and values of the outputs."""
        for name in list(self._outputs):
            value = getattr(self, str(name), None)
            if value is not None and (outputClass is None or isinstance(value, outputClass)):
                yield str(name), value

    def _store(self, *objs: Any) -> None:
        """In Scipion: write to the project's database. Here the journal has it all; kept for its callers."""

    # ------------------------------------------------------------------------- paths

    def getWorkingDir(self) -> str:
        """The run directory."""
        return str(self.workingDir.get(""))

    def setWorkingDir(self, path: str) -> None:
        """Use this run directory."""
        self.workingDir.set(path)

    def _getPath(self, *paths: str) -> str:
        """A path in the run directory."""
        return os.path.join(self.getWorkingDir(), *paths)

    getPath = _getPath

    def _getExtraPath(self, *paths: str) -> str:
        """A path in its folder `extra`, for files to keep."""
        return self._getPath("extra", *paths)

    def _getTmpPath(self, *paths: str) -> str:
        """A path in its folder `tmp`, which is emptied when the protocol has finished."""
        return self._getPath("tmp", *paths)

    def _getLogsPath(self, *paths: str) -> str:
        """A path in its folder `logs`."""
        return self._getPath("logs", *paths)

    def _getBasePath(self, path: str) -> str:
        """A path in the run directory with the file name of another path."""
        return self._getPath(os.path.basename(path))

    def _enterDir(self, path: str) -> None:
        """Change the current directory, until `_leaveDir`."""
        self._currentDir = os.getcwd()
        os.chdir(path)

    def _leaveDir(self) -> None:
        """Back to where `_enterDir` was called."""
        if self._currentDir is None:
            raise UsageError("_leaveDir was called without _enterDir")
        os.chdir(self._currentDir)
        self._currentDir = None

    def _enterWorkingDir(self) -> None:
        """Change to the run directory, until `_leaveWorkingDir`."""
        self._enterDir(self.getWorkingDir())

    def _leaveWorkingDir(self) -> None:
        """Back to where `_enterWorkingDir` was called."""
        self._leaveDir()

    # -------------------------------------------------------------------------- logs

    def info(self, message: str, *args: Any, **kwargs: Any) -> None:
        """A line for the run's log."""
        self._log.info(message)

    def warning(self, message: str, *args: Any, **kwargs: Any) -> None:
        """A warning for the run's log."""
        self._log.warning(message)

    def error(self, message: str, *args: Any, **kwargs: Any) -> None:
        """An error for the run's log."""
        self._log.error(message)

    def debug(self, message: str, *args: Any, **kwargs: Any) -> None:
        """A line for the run's log when debugging is on."""
        self._log.debug(message)

    # --------------------------------------------------------------------------- run

    @classmethod
    def getClassLabel(cls, prependPackageName: bool = True) -> str:
        """The name for people: `_label`, or the class name."""
        return cls._label or cls.__name__

    def getClassName(self) -> str:
        """The name of the class."""
        return type(self).__name__

    def getRunName(self) -> str:
        """The name of this run: the form's, or the class label."""
        name = getattr(self, "runName", None)
        return str((name.get() if name is not None else None) or self._label_of_run or self.getClassLabel())

    def isRestart(self) -> bool:
        """Whether an earlier run in the same directory is to be deleted first."""
        return self.getRunMode() == MODE_RESTART

    def run(self, engine: Optional[str] = None, **options: Any) -> Any:
        """Validate, insert the steps and run them; returns the RunReport.

        Raises UsageError (ValidationError, PrerequisiteError, ...) for what is wrong before any step starts, and then
        the protocol is failed as well. A failing step raises nothing: `isFailed()` and `getErrorMessage()` tell.
        `engine`: 'inline' or 'processes' (default: by `stepsExecutionMode`). Other options: see `mpsteps.run.run`.
        """
        from mpsteps.run import run

        return run(self, engine=engine, **options)

    def __str__(self) -> str:
        return f"{self.getClassLabel()} ({self.getStatus()})"


def check_prerequisites(step: Step, known: int) -> None:
    """PrerequisiteError if `step` waits for itself or for an id above `known`, naming both."""
    for p in step._prerequisites:
        if p == step._id:
            raise PrerequisiteError(f"step {step} cannot wait for itself (prerequisite {p} is its own id)")
        if p > known:
            raise PrerequisiteError(
                f"step {step} waits for step {p}, which does not exist: {known} steps have been inserted so far; "
                "use the id that _insertFunctionStep returned"
            )
