"""What a step finds around itself in its worker, and is to leave as it was: directory, environment, descriptors ...

In a process of its own a step may change all that and harm nobody. But the next step runs in the same process. So what
belongs to the process, and not to Python's modules, is put back after a step, and where that is impossible (a closed
descriptor of ours, a limit that only root may raise) the worker is replaced.

To look costs as much as three empty steps. So it is done where it costs nothing that could be measured: after a step
that ends a millisecond or more after the last look, after every step that failed, and after the first `TRIALS` calls of
each function in each worker: a function that leaves things changed does so at its first call or after a while, and then
all its calls are looked after. What can pass unseen is a change by one of several short steps that a worker runs within
a millisecond, by a function that did not do it before; it is put back with the next look. (docs/decisions/0019)
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import faulthandler
import locale
import os
import signal
import sys
from typing import Any, Callable, Dict, List, Optional, Sequence, Set, Tuple

LOOK_SECONDS = 1e-3
TRIALS = 8

Identity = Tuple[int, int]
_getsignal: Callable[[int], Any] = _signal.getsignal  # `signal` makes enums of what they return: ten times the time
_sigmask: Callable[..., Set[int]] = _signal.pthread_sigmask
_LIMITS = ("RLIMIT_AS", "RLIMIT_DATA", "RLIMIT_FSIZE", "RLIMIT_NOFILE", "RLIMIT_NPROC", "RLIMIT_CPU")


class Surroundings:
    """As they are when this is made: `own` are the descriptors without which the worker cannot go on.

    `trusted`: functions after which a look is due only when the last one was `LOOK_SECONDS` ago.
    """

    def __init__(self, own: Sequence[int] = ()) -> None:
        self.trusted: Set[Any] = set()
        self._calls: Dict[Any, int] = {}
        self._own = [(fd, _identity(fd)) for fd in own]
        self._spare = [os.dup(fd) for fd in (0, 1, 2)]
        self.take()

    def take(self) -> None:
        """From now on it is to be as it is now."""
        import resource  # not there on Windows, where there are no workers

        self._resource = resource
        self._folder = _current_folder()
        self._environ, self._variables = os.environ, dict(_variables())
        self._modules = len(sys.modules)
        self._umask = os.umask(0o77)
        os.umask(self._umask)
        self._handlers = [(n, _getsignal(n)) for n in sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
                          if n < signal.SIGRTMIN]  # fmt: skip
        self._mask = _sigmask(signal.SIG_BLOCK, ())
        self._locale = locale.setlocale(locale.LC_ALL)
        self._limits = [(kind, resource.getrlimit(kind)) for kind in
                        (getattr(resource, name, None) for name in _LIMITS) if kind is not None]  # fmt: skip
        self._nice = os.getpriority(os.PRIO_PROCESS, 0)
        self._cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
        self._streams = (sys.stdin, sys.stdout, sys.stderr)
        for fd in (0, 1, 2):
            os.dup2(fd, self._spare[fd], inheritable=False)
        self._standard = [_identity(fd) for fd in (0, 1, 2)]

    def clean(self, function: Any) -> None:
        """A look after a call of `function` has found nothing changed."""
        if type(function) is bytes:
            return  # it is sent anew each time, and cannot be recognised for less than a look costs
        calls = self._calls[function] = self._calls.get(function, 0) + 1
        if calls >= TRIALS:
            self.trusted.add(function)

    def suspect(self, function: Any) -> None:
        """It left something changed: every call of it is looked after from now on."""
        self.trusted.discard(function)
        self._calls[function] = -sys.maxsize

    def put_back(self) -> Tuple[List[str], str]:
        """Look, and put back what is changed: what that was, and why the worker cannot go on ('': it can)."""
        changed: List[str] = []
        problem = ""
        for name, restore in _PARTS:
            try:
                if restore(self):
                    changed.append(name)
            except (OSError, ValueError, RuntimeError) as error:
                changed.append(name)
                problem = problem or f"its {name} cannot be put back ({type(error).__name__}: {error})"
        return changed, problem

    # ------------------------------------------------------------------------- parts

    def _put_back_folder(self) -> bool:
        if _current_folder() == self._folder:
            return False
        try:
            os.chdir(self._folder or os.curdir)
        except FileNotFoundError:
            return False  # it was removed: there is no better place than here
        return True

    def _put_back_environment(self) -> bool:
        now = _variables()
        if now == self._variables and os.environ is self._environ:
            self._modules = len(sys.modules)
            return False
        os.environ = self._environ  # noqa: B003  # it is the very object that belongs there
        imported, self._modules = len(sys.modules) > self._modules, len(sys.modules)
        before = self._variables
        if imported and all(now.get(k) == v for k, v in before.items()):
            self._variables = dict(now)  # set by a module when it was imported: that will not happen again
            return False
        changed = {k for k in {*now, *before} if now.get(k) != before.get(k)}
        for key in changed:
            name = os.fsdecode(key) if isinstance(key, bytes) else key
            if key not in before:
                os.environ.pop(name, None)
            else:
                value = before[key]
                os.environ[name] = os.fsdecode(value) if isinstance(value, bytes) else value
        return bool(changed)

    def _put_back_umask(self) -> bool:
        return os.umask(self._umask) != self._umask

    def _put_back_signals(self) -> bool:
        changed, getsignal = False, _getsignal
        for number, handler in self._handlers:
            if getsignal(number) is not handler and getsignal(number) != handler:
                changed = True
                if handler is not None:  # one that was not made by Python cannot be made again
                    signal.signal(number, handler)
        if signal.set_wakeup_fd(-1) != -1:
            changed = True
        if signal.getitimer(signal.ITIMER_REAL) != (0.0, 0.0):  # it would end a later step
            signal.setitimer(signal.ITIMER_REAL, 0)
            changed = True
        if _sigmask(signal.SIG_BLOCK, ()) != self._mask:
            _sigmask(signal.SIG_SETMASK, self._mask)
            changed = True
        return changed

    def _put_back_locale(self) -> bool:
        if locale.setlocale(locale.LC_ALL) == self._locale:
            return False
        locale.setlocale(locale.LC_ALL, self._locale)
        return True

    def _put_back_limits(self) -> bool:
        changed = False
        for kind, limits in self._limits:
            if self._resource.getrlimit(kind) != limits:
                self._resource.setrlimit(kind, limits)
                changed = True
        if os.getpriority(os.PRIO_PROCESS, 0) != self._nice:
            os.setpriority(os.PRIO_PROCESS, 0, self._nice)
            changed = True
        if self._cores is not None and os.sched_getaffinity(0) != self._cores:
            os.sched_setaffinity(0, self._cores)
            changed = True
        return changed

    def _put_back_streams(self) -> bool:
        changed = False
        for fd, was in enumerate(self._standard):
            if _identity(fd) != was:
                os.dup2(self._spare[fd], fd)
                changed = True
        stdin, stdout, stderr = self._streams
        if sys.stdin is not stdin:
            sys.stdin, changed = stdin, True
        if _is_closed(stdout) or _is_closed(stderr):
            stdout, stderr = (_reopened(fd, s) if _is_closed(s) else s for fd, s in ((1, stdout), (2, stderr)))
            self._streams = (stdin, stdout, stderr)
        if sys.stdout is not stdout or sys.stderr is not stderr:
            sys.stdout, sys.stderr, changed = stdout, stderr, True
        if changed and faulthandler.is_enabled():
            faulthandler.enable(file=2)
        return changed

    def _look_at_descriptors(self) -> bool:
        for fd, was in self._own:
            if was is not None and _identity(fd) != was:
                raise OSError(f"a descriptor of mpsteps was closed, {fd}")
        probe = os.dup(self._spare[0])  # gets the lowest number that is free
        os.close(probe)
        if probe > self._resource.getrlimit(self._resource.RLIMIT_NOFILE)[0] // 2:
            raise OSError(f"more than {probe} descriptors were left open")
        return False


_PARTS: Tuple[Tuple[str, Callable[[Surroundings], bool]], ...] = (
    ("current directory", Surroundings._put_back_folder),
    ("environment", Surroundings._put_back_environment),
    ("umask", Surroundings._put_back_umask),
    ("signal handlers", Surroundings._put_back_signals),
    ("locale", Surroundings._put_back_locale),
    ("limits", Surroundings._put_back_limits),
    ("standard streams", Surroundings._put_back_streams),
    ("descriptors", Surroundings._look_at_descriptors),
)


def _variables() -> Dict[Any, Any]:
    """The environment in the form in which it is compared fastest: as it is kept."""
    data = getattr(os.environ, "_data", None)
    return data if type(data) is dict else dict(os.environ)


def _identity(fd: int) -> Optional[Identity]:
    """Which file a descriptor is of; None: it is closed."""
    try:
        found = os.fstat(fd)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _current_folder() -> Optional[str]:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None  # it has been removed


def _is_closed(stream: Any) -> bool:
    return stream is not None and bool(getattr(stream, "closed", False))


def _reopened(fd: int, old: Any) -> Any:
    return open(fd, "w", buffering=1, encoding=getattr(old, "encoding", None), errors="backslashreplace", closefd=False)
