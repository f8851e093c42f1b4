"""`Protocol`: what users subclass. A form of parameters, and steps with prerequisites.

Names and meanings are those of Scipion's `pyworkflow.protocol.Protocol`, so that a protocol's source runs under
either by changing its import line. A protocol does not know how it is run: `run()` hands it to `mpsteps.run`.
"""

from __future__ import annotations

import difflib
import logging
import operator
import os
import threading
import typing
from types import MethodType
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple, Union

from mpsteps import _programs
from mpsteps._context import current
from mpsteps._inputs import ProtocolInputs
from mpsteps._outcome import ProtocolStatus
from mpsteps._paths import ProtocolPaths
from mpsteps._result_of import as_step_ids, results_taken
from mpsteps.constants import MODE_CONTINUE, MODE_RESUME
from mpsteps.errors import PrerequisiteError, UsageError
from mpsteps.form import Form
from mpsteps.scalars import Integer, String, rawValue
from mpsteps.steps import Step, StepOwner, StepSink

logger = logging.getLogger("mpsteps.protocol")

StepFunction = Union[str, Callable[..., Any]]

_NAMES_OF_STEPS = {"_runJobForFiles": "runJob", "_copyFile": "copyFile"}
"""Framework methods that are steps under the names that Scipion gives them."""

_NOT_PARAMS = ("workingDir", "numberOfThreads", "numberOfMpi", "runMode", "objLabel", "hostName", "expertLevel")

_ALWAYS_THERE: Tuple[Tuple[str, Callable[[Any], Any], Any], ...] = (
    ("numberOfThreads", Integer, 1),
    ("numberOfMpi", Integer, 1),
    ("hostName", String, "localhost"),
    ("expertLevel", Integer, 0),
)
"""Attributes that a protocol has also where its form has no such param: name, type, default."""

FRAMEWORK_ATTRIBUTES = frozenset(
    {
        "_definition", "_endTime", "_error", "_initTime", "_lock", "_log", "_newSteps", "_numberOfSteps", "_report",
        "_owner", "_status", "_steps", "_stepMethods", "_stepsDone", "_stepsExecutor", "_currentDir", "_cpuTime",
        "_ownContainers",
    }
)  # fmt: skip
"""Attributes of a protocol that belong to the framework: they do not travel with it, and their changes do not."""


class CurrentStep:
    """What stands in `self._stepsExecutor`: the graphics cards of whichever step asks, as Scipion's executors tell."""

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol

    def getGpuList(self) -> List[int]:
        """The cards that the running step holds; outside of steps, all cards of the form."""
        context = current()
        if context is not None:
            return context.getGpuList()
        return self._protocol.getGpuList() if self._protocol.usesGpu() else []

    def getGpuListStr(self, sep: str = " ") -> str:
        """The same as text."""
        return sep.join(map(str, self.getGpuList()))

    def setCudaVisibleDevices(self) -> None:
        """Let the libraries and programs of this step see its cards only."""
        os.environ["CUDA_VISIBLE_DEVICES"] = self.getGpuListStr(",")


class Protocol(ProtocolInputs, ProtocolPaths):
    """Base of all protocols.

    Subclasses define `_defineParams(form)` and `_insertAllSteps()`, and whichever of the other hooks they need. Each
    param of the form becomes an attribute of the same name: a scalar with `.get()` and `.set()`.

    `stepsExecutionMode`: STEPS_SERIAL (steps run one after another, in this process) or STEPS_PARALLEL (in worker
    processes). `keepGoing`: after a failed step everything that does not depend on it still runs.
    `rerunOnLoss`: on a cluster, steps that were on a node that is lost run again elsewhere, although they may have run
    there, in part or to their end.
    `_stepsCheckSecs`: seconds between two calls of `_stepsCheck` while steps run.
    """

    _label: Optional[str] = None
    keepGoing: bool = False
    rerunOnLoss: bool = False
    _stepsCheckSecs: float = 5

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self._start_afresh()
        self._outputs: List[str] = []  # a plain list, since steps that run at the same time may define outputs
        self.workingDir = String(kwargs.pop("workingDir", None))
        self._label_of_run = kwargs.pop("objLabel", None)
        if rawValue(kwargs.get("runMode")) == MODE_CONTINUE:
            kwargs["runMode"] = MODE_RESUME
        form = self.getDefinition()
        self._refuse_unknown(form, kwargs)
        form.createValues(self, kwargs)
        for name, kind, default in _ALWAYS_THERE:
            if not form.hasParam(name):
                setattr(self, name, kind(kwargs.get(name, default)))

    def _start_afresh(self) -> None:
        """What belongs to the framework of this process: FRAMEWORK_ATTRIBUTES."""
        self._definition: Optional[Form] = None
        self._steps: typing.MutableSequence[Step] = []
        self._newSteps = False
        self._owner = StepOwner()
        self._ownContainers: List[str] = []  # lists, dicts and sets of the class that this object has for itself now
        self._stepMethods: Dict[Any, str] = {}  # functions that are known to be methods of this object: their names
        self._stepsExecutor: Any = CurrentStep(self)
        self._log = logger
        self._lock: Any = threading.RLock()  # while it runs: that of the run, see `_protocol_lock`
        self._currentDir: Optional[str] = None
        self._stepsDone = Integer(0)
        self._numberOfSteps = Integer(0)
        self._cpuTime = 0.0
        self._report: Any = None

    def _refuse_unknown(self, form: Form, kwargs: Dict[str, Any]) -> None:
        unknown = form.unknown({k: v for k, v in kwargs.items() if k not in _NOT_PARAMS})
        if unknown:
            raise UsageError(f"{type(self).__name__}: " + "; ".join(str(u) for u in unknown))

    @property
    def _sink(self) -> Optional[StepSink]:
        """Where steps turn to while the protocol runs; None: it does not run."""
        return self._owner.sink

    @_sink.setter
    def _sink(self, sink: Optional[StepSink]) -> None:
        self._owner.sink = sink

    def __getstate__(self) -> Dict[str, Any]:
        """A protocol travels without what belongs to the framework of the process it lives in."""
        return {k: v for k, v in vars(self).items() if k not in FRAMEWORK_ATTRIBUTES}

    def __setstate__(self, state: Dict[str, Any]) -> None:
        ProtocolStatus.__init__(self)
        self._start_afresh()
        self.__dict__.update(state)

    # ------------------------------------------------------------ hooks for subclasses

    def _insertAllSteps(self) -> None:
        """Insert the steps with `_insertFunctionStep`. Runs before any of them."""

    def _stepsCheck(self) -> None:
        """Called every `_stepsCheckSecs` while steps run: insert steps for input that has arrived since."""

    # ------------------------------------------------------------------------- steps

    def _insertFunctionStep(
        self,
        func: StepFunction,
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
        name = self._stepMethods.get(func.__func__) if type(func) is MethodType and func.__self__ is self else None
        function: StepFunction = name or func
        if name is None:
            function, name = self._stepFunction(func)
        return self._insertStep(
            Step(function, name, funcArgs, (), bool(wait), bool(interactive), bool(needsGPU), self._owner),
            prerequisites,
        )

    def _insertRunJobStep(
        self, progName: str, progArguments: _programs.Arguments, resultFiles: Sequence[str] = [], **kwargs: Any
    ) -> int:
        """Insert a step that runs a program; `resultFiles` must exist afterwards. Other arguments as above."""
        if not resultFiles:
            return self._insertFunctionStep("runJob", progName, progArguments, **kwargs)
        files = [resultFiles] if isinstance(resultFiles, str) else list(resultFiles)
        return self._insertFunctionStep("_runJobForFiles", progName, progArguments, files, **kwargs)

    def _insertCopyFileStep(self, sourceFile: str, targetFile: str, **kwargs: Any) -> int:
        """Insert a step that copies a file. Other arguments as for `_insertFunctionStep`."""
        return self._insertFunctionStep("_copyFile", sourceFile, targetFile, **kwargs)

    def _stepFunction(self, func: StepFunction) -> Tuple[StepFunction, str]:
        """What a step keeps of its function (a method: its name alone), and how it is called in messages."""
        owner = type(self).__name__
        if isinstance(func, str):
            if not hasattr(self, func):
                raise UsageError(f"{owner} has no method {func!r} to make a step of{self._nearMethod(func)}")
            if not callable(getattr(self, func)):
                raise UsageError(f"{func!r} of {owner} is not callable: a step is made of a method")
            return func, _NAMES_OF_STEPS.get(func, func)
        if not callable(func):
            raise UsageError(f"a step is made of a method, its name or a callable, not of {func!r}")
        name = getattr(func, "__name__", type(func).__name__)
        if getattr(func, "__self__", None) is self and getattr(getattr(self, name, None), "__func__", None) is getattr(
            func, "__func__", func
        ):
            if type(func) is MethodType:
                self._stepMethods[func.__func__] = name
            return name, name
        return func, name

    def _nearMethod(self, name: str) -> str:
        near = difflib.get_close_matches(name, [n for n in dir(type(self)) if callable(getattr(type(self), n))], 1)
        return f" (did you mean {near[0]!r}?)" if near else ""

    def _insertStep(self, step: Step, prerequisites: Union[None, int, Iterable[int]]) -> int:
        used = results_taken(step._args)
        known = len(self._steps)
        if prerequisites is None:
            ids: Tuple[int, ...] = (known,) if known and not used else used
            if known and used and known not in used:
                ids = (known, *used)
        else:
            ids = as_step_ids(prerequisites)
            if used:
                ids += tuple(u for u in used if u not in ids)
        step._prerequisites = ids
        if self._owner.sink is not None:
            return self._owner.sink.insert(step)
        step._id = known + 1
        if ids and max(ids) > known:
            check_prerequisites(step, known)
        self._steps.append(step)
        self._newSteps = True
        return known + 1

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
        return len(self._steps)

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
        executable: Optional[str] = None,
    ) -> None:
        """Run an external program and wait for its end; its output goes to the step's log.

        `arguments`: text with shell words, or a sequence that is quoted for you; `%(GPU)s` in it becomes the numbers
        of the step's graphics cards. `cwd`: where it runs; `env`: its whole environment. `numberOfThreads` is told to
        it as OMP_NUM_THREADS. `executable`: another shell than /bin/sh. Raises ProgramError with the program's last
        lines when its exit code is not 0.
        """
        if numberOfMpi is not None and numberOfMpi > 1:
            raise UsageError(f"runJob(numberOfMpi={numberOfMpi}): mpsteps never uses MPI; use numberOfThreads instead")
        if env is None:
            env = self._getEnviron()
        if numberOfThreads is None and self.modeSerial() and self.getDefinition().hasParam("numberOfThreads"):
            numberOfThreads = self.numberOfThreads.get()
        _programs.run(program, arguments, cwd=cwd, env=env, threads=numberOfThreads, shell=executable)

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

    def getExecutor(self) -> Any:
        """What code of a step may ask about its graphics cards: `getGpuList()`, `getGpuListStr(sep)`."""
        return self._stepsExecutor

    def _defineOutputs(self, **outputs: Any) -> None:
        """Make these the outputs: attributes of the protocol by these names, listed by `iterOutputAttributes`."""
        for name, value in outputs.items():
            if name not in self._outputs:
                self._outputs.append(name)
            setattr(self, name, value)

    def iterOutputAttributes(self, outputClass: Optional[type] = None) -> Iterator[Tuple[str, Any]]:
        """Names and values of the outputs."""
        for name in dict.fromkeys(self._outputs):
            value = getattr(self, name, None)
            if value is not None and (outputClass is None or isinstance(value, outputClass)):
                yield name, value

    def getOutputsSize(self) -> int:
        """How many outputs there are."""
        return sum(1 for _ in self.iterOutputAttributes())

    def _store(self, *objs: Any) -> None:
        """In Scipion: write to the project's database. Here the journal has it all; kept for its callers."""

    # ------------------------------------------------------------------------- chance

    def stepSeed(self, salt: int = 0, bits: int = 63) -> int:
        """For a step: a number from 0 to 2**bits - 1 to seed its random generator with.

        Every step has its own, and the same one in every run and attempt, whatever worker it lands on: it follows from
        the step's function, arguments and prerequisites (and, of steps that are alike in those, from which one it is).
        `salt`: another one gives another number: a param for users who want other random numbers, or 1, 2, ... for
        several generators in one step. `bits`: 1 to 64; numpy.random.seed takes 32.
        """
        sink, context = self._sink, current()
        if sink is None or context is None:
            raise UsageError("stepSeed() belongs to a running step: call it in the step's method")
        if not 1 <= bits <= 64:
            raise UsageError(f"bits must be from 1 to 64, not {bits!r}")
        import hashlib  # not with the module: workers load that when they start

        text = f"{sink.key(context.step)}/{operator.index(salt)}"
        return int.from_bytes(hashlib.sha256(text.encode("ascii")).digest()[:8], "big") >> (64 - bits)

    # -------------------------------------------------------------------------- logs

    def info(self, message: str, extra: Optional[Dict[str, Any]] = None) -> None:
        """A line for the log: of the step, if one calls it in a worker, else of the run."""
        self._log.info("%s", message, extra=extra)

    def warning(self, message: str, redirectStandard: bool = True) -> None:
        """A warning for the log."""
        self._log.warning("%s", message)

    def error(self, message: str, redirectStandard: bool = True) -> None:
        """An error for the log."""
        self._log.error("%s", message)

    def debug(self, message: str) -> None:
        """A line for the log when debugging is on."""
        self._log.debug("%s", message)

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

    def run(self, engine: Any = None, **options: Any) -> Any:
        """Validate, insert the steps and run them; returns the RunReport.

        Raises UsageError (ValidationError, PrerequisiteError, ...) for what is wrong before any step starts, and then
        the protocol is failed as well. A failing step raises nothing: `isFailed()` and `getErrorMessage()` tell.
        `engine`: 'inline', 'processes' or a cluster (default: by `stepsExecutionMode`). More of it, and other options:
        see `mpsteps.run.run`.
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
