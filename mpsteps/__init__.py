"""mpsteps: protocols and steps in true parallel, in worker processes.

Everything public is here. Names are loaded when they are first used, so that `import mpsteps` costs next to nothing
and a worker loads only what it needs.
"""

from __future__ import annotations

import importlib
import typing

__version__ = "0.1.0"

_HOMES = {
    "mpsteps.protocol": ("Protocol",),
    "mpsteps.streaming": ("ProtStreamingBase",),
    "mpsteps.steps": ("ResultOf", "Step", "step"),
    "mpsteps.pool": ("StepPool",),
    "mpsteps._shared_array": ("shared_array",),
    "mpsteps.engines.choice": ("Cluster",),
    "mpsteps.report": ("RunReport", "StepReport"),
    "mpsteps.listeners": ("Listener",),
    "mpsteps.form": ("Form",),
    "mpsteps.errors": (
        "MpstepsError", "UsageError", "ValidationError", "PrerequisiteError", "RunDirectoryError", "StepError",
        "StepLost", "StepOutOfMemory", "StepTimeout", "StepCancelled", "SerializationError", "StateConflict",
        "ProgramError",
        "JournalError", "EngineError", "InternalError",
    ),
    "mpsteps.constants": (
        "STATUS_SAVED", "STATUS_LAUNCHED", "STATUS_NEW", "STATUS_RUNNING", "STATUS_FAILED", "STATUS_FINISHED",
        "STATUS_ABORTED", "STATUS_INTERACTIVE", "STATUS_WAITING", "STATUS_SCHEDULED", "ACTIVE_STATUS",
        "STEPS_SERIAL", "STEPS_PARALLEL", "MODE_RESUME", "MODE_RESTART", "MODE_CONTINUE", "MODE_CHOICES",
        "LEVEL_NORMAL", "LEVEL_ADVANCED", "LEVEL_CHOICES", "USE_GPU", "GPU_LIST", "VOID_GPU",
    ),
    "mpsteps.scalars": ("Boolean", "CsvList", "Float", "Integer", "Scalar", "String"),
    "mpsteps.params": (
        "Param", "StringParam", "TextParam", "RegexParam", "PathParam", "FileParam", "FolderParam", "LabelParam",
        "IntParam", "EnumParam", "FloatParam", "BooleanParam", "HiddenBooleanParam", "DigFreqParam",
        "NumericListParam", "NumericRangeParam", "PointerParam", "MultiPointerParam", "RelationParam",
        "ProtocolClassParam", "DeprecatedParam", "Group", "Line", "Section",
    ),
    "mpsteps.validators": (
        "Validator", "Conditional", "Format", "NonEmpty", "NonEmptyBool", "NonEmptyCondition", "LT", "LE", "GT", "GE",
        "Range", "Positive", "FreqValidator", "NumericListValidator", "NumericRangeValidator",
    ),
}  # fmt: skip
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = ["__version__", *sorted(_HOME_OF)]  # noqa: PLE0604  # names, all of them


def __getattr__(name: str) -> typing.Any:
    try:
        home = _HOME_OF[name]
    except KeyError:
        raise AttributeError(f"module 'mpsteps' has no attribute {name!r}") from None
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME_OF])


if typing.TYPE_CHECKING:
    from mpsteps._shared_array import shared_array as shared_array
    from mpsteps.constants import *  # noqa: F403
    from mpsteps.engines.choice import Cluster as Cluster
    from mpsteps.errors import *  # noqa: F403
    from mpsteps.form import Form as Form
    from mpsteps.listeners import Listener as Listener
    from mpsteps.params import *  # noqa: F403
    from mpsteps.pool import StepPool as StepPool
    from mpsteps.protocol import Protocol as Protocol
    from mpsteps.report import RunReport as RunReport
    from mpsteps.report import StepReport as StepReport
    from mpsteps.scalars import *  # noqa: F403
    from mpsteps.steps import ResultOf as ResultOf
    from mpsteps.steps import Step as Step
    from mpsteps.steps import step as step
    from mpsteps.streaming import ProtStreamingBase as ProtStreamingBase
    from mpsteps.validators import *  # noqa: F403
