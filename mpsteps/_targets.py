"""Finding a protocol's class from what a user wrote: 'file.py:Class', 'module:Class', or a file with one protocol.

A file is imported under a module name of its own, so that it hides nothing and nothing hides it. Workers are other
processes and cannot import that name: everything the file defines travels to them by value (cloudpickle). What the
file imports travels by name, and is found since workers have the same `sys.path`: the file's folder comes first on it,
as for `python file.py`, and the current folder next. Modules are imported as Python does it.

All errors are UsageError, in one sentence. An error that the user's own code raises while it is imported comes with
its traceback, shortened to the user's frames.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.machinery
import importlib.util
import inspect
import os
import re
import sys
import traceback
from types import CodeType, ModuleType
from typing import Any, Callable, Dict, List, Tuple, Type

import cloudpickle

from mpsteps.errors import UsageError
from mpsteps.protocol import Protocol

_OUR_FOLDER = os.path.dirname(os.path.abspath(__file__)) + os.sep
_DEMO_FOLDER = os.path.join(_OUR_FOLDER, "demo") + os.sep  # a protocol as users write them
_FRAMES = 8  # of a user's traceback: the last ones
_FORMS = "a target is file.py:Class, module:Class, or a file with one protocol"


def load_target(target: str) -> Type[Protocol]:
    """The protocol class that `target` names. UsageError says what is wrong with it and what could be meant."""
    where, class_name = _split(target)
    if not where:
        raise UsageError(f"{target!r} names no file and no module: {_FORMS}")
    module = _load_file(where) if _is_file(where) else _load_module(where)
    if class_name:
        return _named_class(module, where, class_name)
    return _only_class(module, where)


def user_traceback(error: BaseException) -> str:
    """The traceback of `error` with the frames of the user's code only, the last few of them; the text of `error`
    alone if there are none."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if is_users(f.filename)]
    lines = traceback.format_exception_only(type(error), error)
    if frames:
        lines = ["Traceback (most recent call last):\n", *traceback.format_list(frames[-_FRAMES:]), *lines]
    return "".join(lines).rstrip("\n")


def comes_from_user(error: BaseException) -> bool:
    """Whether code that is not ours raised it, or called what raised it."""
    return any(is_users(frame.filename) for frame in traceback.extract_tb(error.__traceback__))


def is_users(file: str) -> bool:
    """Whether a frame's file is neither part of mpsteps nor of the import system."""
    file = file if file.startswith("<") else os.path.abspath(file)
    ours = file.startswith(_OUR_FOLDER) and not file.startswith(_DEMO_FOLDER)
    return not ours and not file.startswith("<frozen ") and file != importlib.__file__


# ------------------------------------------------------------------------------------------------- what is meant


def _split(target: str) -> Tuple[str, str]:
    """'prot.py:Class' -> 'prot.py', 'Class'; the class is '' if none is named."""
    if os.path.isfile(target):  # also one with a colon in its name
        return target, ""
    where, colon, name = target.rpartition(":")
    if colon and name and all(part.isidentifier() for part in name.split(".")):
        return where, name
    return target, ""


def _is_file(where: str) -> bool:
    return where.endswith(".py") or os.sep in where or os.path.isfile(where)


# ------------------------------------------------------------------------------------------------------ importing


class _SourceLoader(importlib.machinery.SourceFileLoader):
    """Compiles the source each time: a .pyc is thought fresh when it is of the same second and size."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        code: CodeType = self.source_to_code(self.get_data(path), path)
        return code


def _load_file(where: str) -> ModuleType:
    path = os.path.abspath(where)
    if os.path.isdir(path):
        raise UsageError(f"{where!r} is a folder: {_FORMS}")
    if not os.path.exists(path):
        raise UsageError(f"there is no file {where!r}{_similar_file(path)}: {_FORMS}")
    name = _module_name(path)
    loader = _SourceLoader(name, path)
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    if spec is None:
        raise UsageError(f"{where!r} cannot be imported as Python code: {_FORMS}")
    module = importlib.util.module_from_spec(spec)
    module.__dict__["__mpsteps_target__"] = path
    _search(os.getcwd())
    _search(os.path.dirname(path))
    sys.modules[name] = module
    try:
        _import(where, lambda: loader.exec_module(module))
    except BaseException:
        del sys.modules[name]
        raise
    cloudpickle.register_pickle_by_value(module)
    return module


def _module_name(path: str) -> str:
    """A name that no import statement uses; the same in every session, for steps are recognised by it on resume."""
    stem = os.path.splitext(os.path.basename(path))[0]
    name = base = "mpsteps_target_" + re.sub(r"\W", "_", stem)
    number = 1
    while getattr(sys.modules.get(name), "__mpsteps_target__", path) != path:
        number += 1
        name = f"{base}_{number}"
    return name


def _load_module(where: str) -> ModuleType:
    if not all(part.isidentifier() for part in where.split(".")):
        raise UsageError(f"{where!r} is neither a file nor the name of a module: {_FORMS}")
    if where == "__main__":
        raise UsageError("a class of an interactive session cannot be found from here: put it into a file")
    _search(os.getcwd())
    importlib.invalidate_caches()
    loaded: Dict[str, ModuleType] = {}

    def load() -> None:
        try:
            loaded["module"] = importlib.import_module(where)
        except ModuleNotFoundError as error:
            if error.name and (where == error.name or where.startswith(error.name + ".")):
                raise UsageError(
                    f"there is no module {error.name!r} (looked in {os.getcwd()} and on Python's path)"
                    f"{_similar_file(os.path.abspath(where + '.py'))}: {_FORMS}"
                ) from None
            raise

    _import(where, load)
    return loaded["module"]


def _search(folder: str) -> None:
    """Put `folder` first where modules are looked for, for this process and its workers."""
    if folder in sys.path:
        sys.path.remove(folder)
    sys.path.insert(0, folder)


def _import(where: str, load: Callable[[], object]) -> None:
    """Call `load`, and tell of whatever the user's code does wrong meanwhile."""
    try:
        load()
    except UsageError as error:
        if not comes_from_user(error):
            raise  # it is about the target
        raise UsageError(f"{where!r} cannot be imported: {error}\n{user_traceback(error)}") from error
    except SyntaxError as error:
        raise UsageError(_syntax(where, error)) from error
    except SystemExit as error:
        raise UsageError(
            f"{where!r} called sys.exit({'' if error.code is None else error.code!r}) while it was imported: put what "
            "is not a definition under  if __name__ == '__main__':"
        ) from error
    except Exception as error:
        raise UsageError(
            f"{where!r} cannot be imported: {type(error).__name__}: {error}{_import_hint(where, error)}\n"
            f"{user_traceback(error)}"
        ) from error


def _syntax(where: str, error: SyntaxError) -> str:
    file = where if error.filename and os.path.abspath(error.filename) == os.path.abspath(where) else error.filename
    line = (error.text or "").strip()
    return f"syntax error in {file or where}, line {error.lineno or '?'}: {error.msg}{': ' + line if line else ''}"


def _import_hint(where: str, error: BaseException) -> str:
    if isinstance(error, ImportError) and "relative import" in str(error):
        return " (a file of a package: name it as package.module:Class, from the folder above the package)"
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] == "pyworkflow":
        return " (a protocol for mpsteps alone says: from mpsteps import Protocol)"
    return ""


def _similar_file(path: str) -> str:
    try:
        names = [n for n in os.listdir(os.path.dirname(path)) if n.endswith(".py")]
    except OSError:
        return ""
    near = difflib.get_close_matches(os.path.basename(path), names, 1)
    return f" (did you mean {near[0]!r}?)" if near else ""


# ------------------------------------------------------------------------------------------------------ the class


def _named_class(module: ModuleType, where: str, name: str) -> Type[Protocol]:
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is None:
        names = _protocol_names(module)
        near = difflib.get_close_matches(name, names, 1) or names
        hint = f"did you mean {near[0]}?" if len(near) == 1 else f"its protocols are {', '.join(near)}"
        raise UsageError(f"{where!r} has no class {name}: {hint if names else 'it defines no protocol'}")
    if not isinstance(found, type):
        raise UsageError(f"{name} in {where!r} is no class but of type {type(found).__name__}: name a protocol's class")
    if not issubclass(found, Protocol):
        raise UsageError(f"{name} in {where!r} is no protocol: {_why_no_protocol(found)}")
    if inspect.isabstract(found):
        missing = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
        raise UsageError(f"{name} in {where!r} is abstract (it lacks {missing}): name a class that derives from it")
    return found


def _why_no_protocol(cls: type) -> str:
    if _is_scipions(cls):
        return "it derives from Scipion's Protocol; to run it here, let it import from mpsteps instead of pyworkflow"
    return "it must derive from mpsteps.Protocol"


def _only_class(module: ModuleType, where: str) -> Type[Protocol]:
    """The one protocol that the module defines."""
    defined = [cls for cls in _own_classes(module) if issubclass(cls, Protocol)]
    found = [cls for cls in defined if _can_run(cls)]
    if len(found) > 1:
        found = [cls for cls in found if not _is_base(cls, found)] or found
    if len(found) == 1:
        return found[0]
    names = [cls.__name__ for cls in found or defined]
    if found:
        raise UsageError(
            f"{where!r} defines {len(names)} protocols ({', '.join(names)}): say which, as in {where}:{names[0]}"
        )
    if defined:
        raise UsageError(
            f"{where!r} defines no protocol that can run, only base classes without steps ({', '.join(names)}): a "
            "protocol needs _insertAllSteps"
        )
    raise UsageError(f"{where!r} defines no protocol{_what_instead(module, where)}")


def _what_instead(module: ModuleType, where: str) -> str:
    for cls in _own_classes(module):
        if _is_scipions(cls):
            return f": {cls.__name__} {_why_no_protocol(cls)[3:]}"
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, Protocol) and value is not Protocol:
            return f"; to run the one that it imports: {where}:{value.__name__}"
    return ": it needs a class that derives from mpsteps.Protocol"


def _protocol_names(module: ModuleType) -> List[str]:
    return [cls.__name__ for cls in _own_classes(module) if issubclass(cls, Protocol)]


def _own_classes(module: ModuleType) -> List[Type[Any]]:
    """The classes that the module defines itself, in order, each once."""
    found = [v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__]
    return list(dict.fromkeys(found))


def _is_scipions(cls: type) -> bool:
    return any(base.__module__.split(".")[0] == "pyworkflow" for base in cls.__mro__)


def _can_run(cls: Type[Protocol]) -> bool:
    inserts: Any = cls._insertAllSteps
    checks: Any = cls._stepsCheck
    has_steps = inserts is not Protocol._insertAllSteps or checks is not Protocol._stepsCheck
    return has_steps and not inspect.isabstract(cls)


def _is_base(cls: Type[Protocol], others: List[Type[Protocol]]) -> bool:
    """Whether a class is there to be derived from: it is private, says so in Scipion's way (`_label = None`), or
    others in the file derive from it and it has no label."""
    marked = "_label" in vars(cls) and cls._label is None
    derived = any(other is not cls and issubclass(other, cls) for other in others)
    return cls.__name__.startswith("_") or marked or (derived and cls._label is None)
