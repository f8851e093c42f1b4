"""What a step needs, as its author declares it: `@step(cpus=..., memory=..., ...)`."""

from __future__ import annotations

import math
import re
from typing import Any, Callable, NamedTuple, Optional, TypeVar, Union

from mpsteps.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS.update({"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40, "K": 2**10, "M": 2**20, "G": 2**30})


class StepOptions(NamedTuple):
    """What `@step(...)` declares; see there."""

    cpus: int = 1
    memory: int = 0
    gpus: int = 0
    timeout: Optional[float] = None
    retries: int = 0
    local: bool = False


NO_OPTIONS = StepOptions()


def step(
    cpus: int = 1,
    memory: Union[None, int, str] = None,
    gpus: int = 0,
    timeout: Optional[float] = None,
    retries: int = 0,
    local: bool = False,
) -> Callable[[F], F]:
    """Declare what the steps of a method need; put it above the method.

    `cpus`: worker slots it holds (a step that starts threads of its own); `memory`: bytes or '4 GB', held while it
    runs: if it and its programs use more, it is killed; `gpus`: graphics cards; `timeout`: seconds after which it is
    killed (both in worker processes only: nothing else can be killed); `retries`: attempts after the first one (0: a
    step that fails has failed), each after a rest; `local`: it runs in the coordinator process, beside the workers.
    Raises UsageError for values that make no sense.
    """
    if callable(cpus):
        raise UsageError("@step needs parentheses: write @step(), or @step(cpus=2, ...), above the method")
    options = make_options(cpus, memory, gpus, timeout, retries, local)

    def declare(function: F) -> F:
        if not callable(function):
            raise UsageError(f"@step(...) goes above a method, not above {function!r}")
        function.__mpsteps__ = options  # type: ignore[attr-defined]  # functions take attributes
        return function

    return declare


def make_options(
    cpus: int = 1,
    memory: Union[None, int, str] = None,
    gpus: int = 0,
    timeout: Optional[float] = None,
    retries: int = 0,
    local: bool = False,
) -> StepOptions:
    """StepOptions from what a user wrote; UsageError names the value that makes no sense."""
    for name, value, least in (("cpus", cpus, 1), ("gpus", gpus, 0), ("retries", retries, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UsageError(f"{name} of a step must be an integer of at least {least}, not {value!r}")
    number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if timeout is not None and not (number and 0 < timeout < math.inf):
        raise UsageError(f"timeout of a step must be a number of seconds above 0, not {timeout!r}")
    return StepOptions(cpus, parse_memory(memory), gpus, timeout, retries, bool(local))


def parse_memory(text: Union[None, int, str]) -> int:
    """Bytes from 4000000000, '4 GB' or '512 MiB'; 0 for None. Raises UsageError."""
    if text is None:
        return 0
    if isinstance(text, int) and not isinstance(text, bool) and text >= 0:
        return text
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(text))
    unit = match.group(2).upper() if match else None
    if match is None or unit not in _UNITS:
        raise UsageError(f"memory of a step must be bytes or a text such as '4 GB' or '512 MiB', not {text!r}")
    return int(float(match.group(1)) * _UNITS[unit])
