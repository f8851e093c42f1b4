"""The exceptions of mpsteps, split by blame.

::

    MpstepsError
    ├── UsageError (ValueError)        you asked for something that cannot be done
    │   ├── ValidationError            the form's values, found before anything runs
    │   ├── PrerequisiteError          an unknown, self-referring or circular prerequisite
    │   └── RunDirectoryError          a run directory in use, unwritable, or of another protocol
    ├── StepError                      a step failed; `step`, `cause` and `traceback` say which, why and where
    │   ├── StepLost                   its worker died (pid, exit code or signal)
    │   │   └── StepOutOfMemory        of too much memory: more than `memory=`, or the kernel had no more
    │   ├── StepTimeout                it ran longer than it was given
    │   ├── StepCancelled              it was stopped on request
    │   └── SerializationError         a function, argument, result or change could not travel; `part` names it
    ├── StateConflict                  two concurrent steps changed one attribute in ways that cannot be merged
    ├── RemoteTraceback                the text of a traceback in a worker, as the cause of the exception there
    ├── ProgramError                   an external program ended with a non-zero exit code
    ├── JournalError                   the journal cannot be written, or is corrupt in the middle
    ├── EngineError                    workers cannot be started or kept alive
    └── InternalError                  a bug of ours: an impossible transition, with the step's story

A message is one sentence that names the thing and, where there is one, the way out.
"""

from __future__ import annotations

from typing import Optional, Sequence


class MpstepsError(Exception):
    """Base of all exceptions that mpsteps raises itself."""


class UsageError(MpstepsError, ValueError):
    """You asked for something that cannot be done; nothing was started."""


class ValidationError(UsageError):
    """The values of a form are not acceptable; `messages` has one sentence for each problem."""

    def __init__(self, messages: Sequence[str]) -> None:
        self.messages = list(messages)
        super().__init__("\n".join(self.messages))

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.messages,)


class PrerequisiteError(UsageError):
    """A prerequisite that does not exist, is the step itself, or closes a cycle."""


class RunDirectoryError(UsageError):
    """A run directory that is in use, cannot be written, or belongs to another protocol or user."""


class StepError(MpstepsError):
    """A step failed.

    `step` is its 1-based id (None outside a protocol), `cause` the sentence that says why, `traceback` the text of
    the remote traceback ('' where there is none). The original exception, where it could travel, is `__cause__`.
    """

    def __init__(self, message: str, step: Optional[int] = None, cause: str = "", traceback: str = "") -> None:
        super().__init__(message)
        self.step = step
        self.cause = cause or message
        self.traceback = traceback

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (str(self), self.step, self.cause, self.traceback), self.__dict__


class StepLost(StepError):
    """The worker that ran the step died; `pid`, and `exitcode` as `subprocess` gives it (negative: a signal)."""

    pid: Optional[int] = None
    exitcode: Optional[int] = None


class StepOutOfMemory(StepLost):
    """The step used more than its `memory`, or the kernel ran out of memory and ended its worker."""


class StepTimeout(StepError):
    """The step ran longer than its `timeout`."""


class StepCancelled(StepError):
    """The step was stopped on request before it finished."""


class SerializationError(StepError):
    """A part of a step (its function, an argument, its result, a change of self) could not travel; `part` names it."""

    part: str = ""


class StateConflict(MpstepsError):
    """Two steps that ran at the same time changed one attribute in ways that cannot be merged."""


class RemoteTraceback(MpstepsError):
    """The cause of an exception that came from a worker: `tb` is the text of its traceback there."""

    def __init__(self, tb: str) -> None:
        super().__init__(tb)
        self.tb = tb

    def __str__(self) -> str:
        return f'\n"""\n{self.tb}"""'


class ProgramError(MpstepsError):
    """An external program ended with a non-zero exit code; the message has its last lines."""


class JournalError(MpstepsError):
    """The journal cannot be written, or a record in its middle is corrupt."""


class EngineError(MpstepsError):
    """Workers cannot be started, or keep dying before they do any work."""


class InternalError(MpstepsError):
    """A bug of mpsteps: please report it with the story in the message."""
