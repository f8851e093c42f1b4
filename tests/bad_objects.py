"""Objects that go wrong somewhere on their way between processes, and functions that end or break their process.

Nothing here is caught, cleaned up or polite: each class is one way in which a user's object can hurt whoever carries
it. `CrashAt...` dies of a segfault, `ExitAt...` raises SystemExit, `ErrorAt...` an ordinary exception; `...AtPickle`
where it is packed, `...AtUnpickle` where it is opened, `...Elsewhere` where it is opened in another process than packed
it.
"""



from __future__ import annotations

import faulthandler
import os
import pickle
import signal
import sys
import threading
from typing import Any, Callable, NoReturn, Tuple, Type


def crash(*_: Any) -> NoReturn:
    """End this process as a null pointer would, without a word on stderr."""
    faulthandler.disable()
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except ImportError:
        pass  # no such limits here
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError("a segfault was survived")


def exit_now(code: int = 1) -> NoReturn:
    """SystemExit, which `except Exception` does not catch."""
    sys.exit(code)


def vanish(code: int = 3) -> NoReturn:
    """End this process at once, without running anything else."""
    os._exit(code)


def raise_it(kind: Type[BaseException], *args: Any) -> NoReturn:
    """Raise an exception of this kind."""
    raise kind(*args)


def make(kind: Callable[..., Any], *args: Any) -> Any:
    """An instance made where the step runs: as a result, it has to travel home."""
    return kind(*args)


def pass_on(value: Any) -> Any:
    """What it was given."""
    return value


class CrashAtPickle:
    def __reduce__(self) -> Any:
        crash()


class CrashAtUnpickle:
    def __reduce__(self) -> Any:
        return crash, ()


class ExitAtPickle:
    def __reduce__(self) -> Any:
        exit_now()


class ExitAtUnpickle:
    def __reduce__(self) -> Any:
        return exit_now, ()


class ErrorAtPickle:
    def __reduce__(self) -> Any:
        raise pickle.PicklingError("error in pickle")


class ErrorAtUnpickle:
    def __reduce__(self) -> Any:
        return raise_it, (pickle.UnpicklingError, "error in unpickle")


def _elsewhere(home: int, kind: Type[BaseException]) -> Any:
    if os.getpid() != home:
        raise kind("opened in another process")
    return None


class ErrorElsewhere:
    """Opens where it was made, so that whoever made it believes that it travels."""

    def __reduce__(self) -> Any:
        return _elsewhere, (os.getpid(), RuntimeError)


class ExitElsewhere:
    def __reduce__(self) -> Any:
        return _elsewhere, (os.getpid(), SystemExit)


class CrashAtGC:
    """Kills the process in which it is collected, but not the one that made it."""

    def __init__(self) -> None:
        self.home = os.getpid()

    def __del__(self) -> None:
        if os.getpid() != self.home:
            crash()


class ErrorAtRepr:
    def __repr__(self) -> str:
        raise RuntimeError("error in repr")


class ErrorAtGetattr:
    """A callable that answers any question about itself with an exception that is no AttributeError."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"error in getattr of {name}")

    def __call__(self) -> int:
        return 1


class Unhashable:
    """A callable that cannot be a key of a dict."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("error in eq")

    def __call__(self, value: int) -> int:
        return value + 1


class TwoArguments(Exception):
    """Cannot be made again from its `args`, as pickle would."""

    def __init__(self, first: Any, second: Any) -> None:
        super().__init__(f"{first} and {second}")
        self.first, self.second = first, second


class KeywordOnly(Exception):
    """Likewise: its `args` are empty."""

    def __init__(self, *, path: str) -> None:
        super().__init__()
        self.path = path

    def __str__(self) -> str:
        return f"cannot read {self.path}"


class WithLock(Exception):
    """Carries what cannot be pickled."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class LockInArgs(Exception):
    """Carries it where it cannot be left out."""

    def __init__(self) -> None:
        super().__init__("held", threading.Lock())


class ErrorAtStr(Exception):
    def __str__(self) -> str:
        raise RuntimeError("error in str")


class NotAnError(BaseException):
    """Not an Exception: `except Exception` lets it through."""


class ErrorAtExceptionUnpickle(Exception):
    def __reduce__(self) -> Any:
        return raise_it, (pickle.UnpicklingError, "error in unpickle of an exception")


class CrashAtExceptionUnpickle(Exception):
    def __reduce__(self) -> Any:
        return crash, ()


class ExceptionElsewhere(Exception):
    """Loads where it was raised and raises SystemExit anywhere else."""

    def __reduce__(self) -> Any:
        return _exception_elsewhere, (os.getpid(),)


def _exception_elsewhere(home: int) -> BaseException:
    _elsewhere(home, SystemExit)
    return ExceptionElsewhere("raised at home")


ODD_EXCEPTIONS: Tuple[Tuple[Type[BaseException], Tuple[Any, ...]], ...] = (
    (TwoArguments, (1, 2)),
    (WithLock, ("held",)),
    (LockInArgs, ()),
    (ErrorAtStr, ()),
    (NotAnError, ("no error",)),
    (ErrorAtExceptionUnpickle, ("odd",)),
    (ExceptionElsewhere, ("odd",)),
)
"""Kinds of exceptions with arguments that make them, each a trial for whoever brings them home."""
