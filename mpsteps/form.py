"""The form of a protocol: its params in sections and groups, their conditions, and the values that they get.

`Protocol.__init__` makes one, hands it to `_defineParams(form)`, and lets it create the values. Whatever is wrong with
the declaration (a name used twice, an MPI field, a condition that is no expression, a default of the wrong type) is a
`UsageError` while the form is built, in front of the author; whatever is wrong with the values is a `ValidationError`
or a list of messages, for the user, all of them at once.

Conditions are Python expressions over param names and the protocol's attributes. Author and user of a condition are one
program, so the reduced set of builtins is there for clear errors, not for security.
"""

from __future__ import annotations

import ast
import builtins
import difflib
import functools
import inspect
from types import CodeType
from typing import Any, Dict, FrozenSet, Iterable, Iterator, List, Mapping, Optional, Tuple

from mpsteps import constants
from mpsteps._elements import ElementGroup, FormElement, Group, Line, Section
from mpsteps.constants import BIN_THREADS_PARAM, PARALLELIZATION
from mpsteps.errors import UsageError, ValidationError
from mpsteps.params import BooleanParam, DeprecatedParam, EnumParam, IntParam, Param, StringParam
from mpsteps.scalars import rawValue, showValue
from mpsteps.validators import GE

__all__ = ["Form"]

_SELECT_THREADS = "select threads instead: form.addParallelSection(threads=N)"
_THREADS_HELP = (
    "How many steps run at the same time, each in a worker process of its own, if the protocol's steps run in "
    "parallel; else the threads of each program that a step starts."
)
_BIN_THREADS_HELP = "The threads of each program that a step starts."

_SAFE_NAMES = (
    "abs all any bool dict enumerate float frozenset getattr hasattr int isinstance len list max min range round set "
    "sorted str sum tuple zip"
)
# What a condition may name besides params and attributes.
_NAMESPACE: Dict[str, Any] = {name: getattr(builtins, name) for name in _SAFE_NAMES.split()}
_NAMESPACE.update({name: getattr(constants, name) for name in constants.__all__})


class Form:
    """The params of `protocol`, which needs to offer no more than its type's name and its attributes.

    A section 'General' with `runName` and `runMode` is there from the start, as under Scipion.

    Invariants: a param name is in `_paramsDict` once; `_elements` has every param and group once, in order of
    declaration; a group's name never hides a param.
    """

    def __init__(self, protocol: Any) -> None:
        self.protocolName = type(protocol).__name__
        self._protocol = protocol
        self._sectionList: List[Section] = []
        self._paramsDict: Dict[str, Param] = {}
        self._groups: Dict[str, ElementGroup] = {}
        self._elements: List[Tuple[str, FormElement]] = []
        self._general = self.addSection(label="General")
        self._addGeneralParams()

    # -- sections and groups ------------------------------------------------------------------------------------

    def addSection(self, label: str = "", updateSection: bool = True, **kwargs: Any) -> Section:
        """Add a section, to which what follows belongs (unless not `updateSection`); returns it."""
        section = Section(self, label=label, **kwargs)
        self._sectionList.append(section)
        if updateSection:
            self.lastSection = section
        return section

    def getSection(self, label: str) -> Optional[Section]:
        """The first section with that label, or None."""
        return next((section for section in self._sectionList if section.label == label), None)

    def hasSection(self, label: str) -> bool:
        """Whether there is a section with that label."""
        return self.getSection(label) is not None

    def iterSections(self) -> Iterator[Section]:
        """The sections, in order."""
        return iter(list(self._sectionList))

    def addGroup(self, groupName: str, **kwargs: Any) -> Group:
        """Add a group with that label to the last section; returns it."""
        return self._openSection(f"group {groupName!r}").addGroup(groupName, **kwargs)

    def addLine(self, lineName: str, **kwargs: Any) -> Line:
        """Add a line with that label to the last section; returns it."""
        return self._openSection(f"line {lineName!r}").addLine(lineName, **kwargs)

    # -- params -------------------------------------------------------------------------------------------------

    def addParam(self, paramName: str, ParamClass: Any, **kwargs: Any) -> Any:
        """Add a param to the last section; returns it.

        UsageError without a section, and for a name or class that cannot be used. `binThreads` always goes to the
        section for parallel params.
        """
        if paramName == BIN_THREADS_PARAM:
            return self.getParallelSection(updateSection=False).addParam(paramName, ParamClass, **kwargs)
        return self._openSection(f"param {paramName!r}").addParam(paramName, ParamClass, **kwargs)

    def addBooleanParam(self, name: str, label: str, help: str, default: bool = True, **kwargs: Any) -> Any:
        """Add a BooleanParam; returns it."""
        return self.addParam(name, BooleanParam, label=label, help=help, default=default, **kwargs)

    def addHidden(self, paramName: str, ParamClass: Any, **kwargs: Any) -> Any:
        """Add a param that no window shows and no validator checks; returns it. It needs no section."""
        return self.lastSection.addHidden(paramName, ParamClass, **kwargs)

    def addParallelSection(
        self,
        threads: int = 1,
        mpi: Optional[int] = 0,
        binThreads: Optional[int] = 0,
        binThreadsHelp: Optional[str] = None,
    ) -> None:
        """Add the section for parallel params: `numberOfThreads` with the default `threads`, at least 1.

        `binThreads` > 0 adds a param of that name and default, for the threads of each program. Calling it again, from
        a subclass, changes the defaults. UsageError for `mpi` above 1: there is no MPI here.
        """
        self._refuseMpi(mpi)
        self._requireCount("threads", threads, 1)
        self._requireCount("binThreads", binThreads or 0, 0)
        self.lastSection = self.getParallelSection()
        atLeastOne = GE(1, error="should be an integer of 1 or more")
        self._addCount("numberOfThreads", threads, "Threads", _THREADS_HELP, atLeastOne)
        if binThreads:
            label = "Threads per program"
            self._addCount(BIN_THREADS_PARAM, binThreads, label, binThreadsHelp or _BIN_THREADS_HELP, atLeastOne)

    def getParallelSection(self, updateSection: bool = True) -> Section:
        """The section for parallel params, which is added if it is missing."""
        return self.getSection(PARALLELIZATION) or self.addSection(label=PARALLELIZATION, updateSection=updateSection)

    def registerParam(self, paramName: str, param: FormElement) -> None:
        """Take an element of a section or group into the form. UsageError if its declaration cannot work."""
        param.name = paramName
        if isinstance(param, ElementGroup):
            self._groups[paramName] = param
        elif isinstance(param, Param):
            self._checkName(paramName)
            self._checkDefault(param)
            self._paramsDict[paramName] = param
        else:
            raise UsageError(f"param {paramName!r} of {self.protocolName}: {type(param).__name__} is no param")
        if param.hasCondition():
            self._compiled(paramName, param)
        self._elements.append((paramName, param))

    def getParam(self, paramName: str) -> Any:
        """The param (or else the group or line) of that name, or None."""
        return self._paramsDict.get(paramName) or self._groups.get(paramName)

    def hasParam(self, paramName: str) -> bool:
        """Whether there is a param, group or line of that name."""
        return paramName in self._paramsDict or paramName in self._groups

    def iterParams(self) -> Iterator[Tuple[str, Param]]:
        """(name, param) of every param, without groups and lines, in order."""
        return iter(list(self._paramsDict.items()))

    def iterAllParams(self) -> Iterator[Tuple[str, FormElement]]:
        """(name, element) of every param, group and line, in order."""
        return iter(list(self._elements))

    # -- values -------------------------------------------------------------------------------------------------

    def createValues(self, protocol: Any, kwargs: Mapping[str, Any]) -> None:
        """Set one scalar for each param on `protocol`: the value in `kwargs`, or else the default.

        Values given under a deprecated name go to the new one. ValidationError with one message for each value that
        cannot be converted; then nothing has been set. Names that are no params are left to the caller (`unknown`).
        """
        newNames = {name: self._newName(protocol, name) for name in kwargs}
        given = {new: kwargs[old] for old, new in newNames.items() if new == old or new not in kwargs}
        values: Dict[str, Any] = {}
        messages: List[str] = []
        for name, param in self._paramsDict.items():
            try:
                values[name] = param.makeValue(given[name] if name in given else param.getDefault())
            except ValueError as error:
                messages.append(str(error))
        if messages:
            raise ValidationError(messages)
        for name, scalar in values.items():
            setattr(protocol, name, scalar)

    def unknown(self, kwargs: Iterable[str]) -> List[str]:
        """One message for each name in `kwargs` that is neither a param nor a deprecated name of one; [] if all are.

        "there is no param 'boxsize' (did you mean 'boxSize'?)"
        """
        names = [name for name in kwargs if self._newName(self._protocol, name) not in self._paramsDict]
        return [f"there is no param {name!r}{self.suggest(name)}" for name in names]

    def suggest(self, name: str) -> str:
        """" (did you mean 'boxSize'?)" for a name near to a param's, else ''; to be put after the name in a message."""
        return _nearest(name, self._paramsDict)

    def validateParams(self, protocol: Any) -> List[str]:
        """One message for each value on `protocol` that its validators refuse; [] if all is well.

        A param whose condition is false is not asked. A condition that cannot be evaluated is a message too.
        """
        messages: List[str] = []
        for name, param in self.iterParams():
            try:
                if not self._evaluate(name, param, protocol):
                    continue
            except UsageError as error:
                messages.append(str(error))
                continue
            value = rawValue(getattr(protocol, name, None))
            label = param.getLabel() or name
            messages += [f"*{label}* {found} ({name}={showValue(value)})" for found in param.validate(value)]
        return messages

    def evalParamCondition(self, paramName: str) -> bool:
        """Whether the condition of that param (or group) holds for the protocol's values; true if it has none.

        UsageError names param and condition when it cannot be evaluated.
        """
        param = self.getParam(paramName)
        if param is None:
            raise UsageError(f"{self.protocolName} has no param {paramName!r}{self.suggest(paramName)}")
        return self._evaluate(paramName, param, self._protocol)

    # -- how ----------------------------------------------------------------------------------------------------

    def _addGeneralParams(self) -> None:
        self._general.addParam(
            "runName",
            StringParam,
            label="Run name",
            important=True,
            help="A name by which this run can be told from others.",
        )
        self._general.addParam(
            "runMode",
            EnumParam,
            choices=["resume", "restart"],
            default=constants.MODE_RESUME,
            label="Run mode",
            help="resume: keep the steps that finished, go on. restart: delete what an earlier run made, start anew.",
        )

    def _openSection(self, what: str) -> Section:
        if self.lastSection is self._general:
            raise UsageError(f"{what} of {self.protocolName} is in no section: call form.addSection(label=...) first")
        return self.lastSection

    def _refuseMpi(self, mpi: Any) -> None:
        if mpi is None or (isinstance(mpi, int) and mpi <= 1):
            return
        raise UsageError(f"{self.protocolName} asks for mpi={showValue(mpi)}, but there is no MPI: {_SELECT_THREADS}")

    def _requireCount(self, name: str, value: Any, least: int) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            problem = f"{name}={showValue(value)} of {self.protocolName} should be an integer of {least} or more"
            hint = "; leave addParallelSection() out if nothing runs in parallel" if name == "threads" else ""
            raise UsageError(problem + hint)

    def _addCount(self, name: str, default: int, label: str, help: str, validator: GE) -> None:
        if name in self._paramsDict:
            self._paramsDict[name].setDefault(default)
        else:
            self.lastSection.addParam(name, IntParam, default=default, label=label, help=help, validators=[validator])

    def _checkName(self, name: str) -> None:
        if not (isinstance(name, str) and name.isidentifier()):
            raise UsageError(f"param {name!r} of {self.protocolName}: a name is made of letters, digits and _")
        if name in self._paramsDict:
            raise UsageError(f"param {name!r} of {self.protocolName} is defined twice")
        existing = inspect.getattr_static(type(self._protocol), name, None)
        if callable(existing) or isinstance(existing, (property, staticmethod, classmethod)):
            raise UsageError(f"param {name!r} of {self.protocolName} would hide a method of that name: rename it")

    def _checkDefault(self, param: Param) -> None:
        try:
            default = rawValue(param.makeValue(param.getDefault()))
        except ValueError as error:
            raise UsageError(f"the default of {error} (in {self.protocolName})") from None
        if param.name == "numberOfMpi":
            self._refuseMpi(default)

    @staticmethod
    def _newName(protocol: Any, name: str) -> str:
        attribute = vars(protocol).get(name)
        return attribute.newParamName if isinstance(attribute, DeprecatedParam) else name

    def _compiled(self, name: str, param: FormElement) -> Tuple[CodeType, FrozenSet[str], FrozenSet[str]]:
        try:
            return _compile(str(param.condition).strip())
        except (SyntaxError, ValueError) as error:
            raise self._conditionError(name, param, f"it is no Python expression ({error})") from None

    def _evaluate(self, name: str, param: FormElement, protocol: Any) -> bool:
        if not param.hasCondition():
            return True
        code, names, called = self._compiled(name, param)
        known: Dict[str, Any] = {}
        try:
            known.update((each, value) for each in names for value in _meanings(protocol, each, each in called))
            return bool(rawValue(eval(code, {"__builtins__": {}, **known})))
        except NameError as error:  # only now: `useMask and maskSize > 3` is right without maskSize if not useMask
            unknown = ", ".join(each + self.suggest(each) for each in sorted(names - set(known)))
            reason = f"unknown name: {unknown}" if unknown else str(error)
            raise self._conditionError(name, param, reason) from error
        except Exception as error:  # whatever an expression can raise; it is raised again with the param's name
            raise self._conditionError(name, param, f"{type(error).__name__}: {error}") from error

    def _conditionError(self, name: str, param: FormElement, reason: str) -> UsageError:
        where = f"param {name!r} of {self.protocolName}"
        return UsageError(f"{where}: the condition {str(param.condition)!r} does not evaluate: {reason}")


def _meanings(protocol: Any, name: str, called: bool) -> List[Any]:
    """What `name` means in a condition, [] if nothing; a method that is not called there stands for what it returns."""
    if hasattr(protocol, name):
        value = rawValue(getattr(protocol, name))
        return [value() if callable(value) and not called else value]
    return [_NAMESPACE[name]] if name in _NAMESPACE else []


@functools.lru_cache(maxsize=1024)
def _compile(text: str) -> Tuple[CodeType, FrozenSet[str], FrozenSet[str]]:
    """The code of an expression, the names it reads from outside, those that it calls. SyntaxError, ValueError."""
    tree = ast.parse(text, "<condition>", "eval")
    nodes = list(ast.walk(tree))
    named = [node for node in nodes if isinstance(node, ast.Name)]
    own = {node.id for node in named if isinstance(node.ctx, ast.Store)}  # the variables of a comprehension
    own |= {node.arg for node in nodes if isinstance(node, ast.arg)}  # and of a lambda
    called = {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    return compile(tree, "<condition>", "eval"), frozenset(node.id for node in named) - own, frozenset(called)


def _nearest(name: str, names: Iterable[str]) -> str:
    near = [each for each in names if each.lower() == name.lower()]
    near = near or difflib.get_close_matches(name, list(names), 1, 0.7)
    return f" (did you mean {near[0]!r}?)" if near else ""
