"""Why a worker died, in words: its exit code, and whether it was the kernel that had no memory left."""

from __future__ import annotations

import signal
from typing import Optional

from mpsteps._ipc.wire import Failure
from mpsteps._memory import oom_kills
from mpsteps._spawn import describe_exit
from mpsteps.report import format_bytes


class Deaths:
    """Makes the Failure of a step whose worker died. Knows how often the kernel had ended somebody when it last looked:
    a SIGKILL is put down to it only if that number has risen since."""

    def __init__(self) -> None:
        self._oom_kills = oom_kills()

    def failure(self, exitcode: Optional[int]) -> Failure:
        """`exitcode` as `subprocess` gives it, None: unknown."""
        if exitcode is None:
            return _lost("its worker process died (the process that starts workers was killed)")
        if exitcode >= 0:
            return _lost(
                f"its worker process ended with exit code {exitcode} while the step ran (os._exit, or a library's)"
            )
        if exitcode == -signal.SIGKILL:
            before, self._oom_kills = self._oom_kills, oom_kills()
            if before is not None and self._oom_kills is not None and self._oom_kills > before:
                return Failure(
                    "memory", "StepOutOfMemory", "the kernel ran out of memory and ended its worker process (SIGKILL; "
                    f"processes that it has ended so: {before} before, {self._oom_kills} now): give the step more "
                    "memory, or fewer steps at once (@step(memory=...) keeps those from running together)",
                )  # fmt: skip
        return _lost(f"its worker process was {describe_exit(exitcode)} while the step ran")


def used_too_much(used: int, limit: int) -> Failure:
    """The Failure of a step that was ended because of its own `memory=`."""
    return Failure(
        "memory", "StepOutOfMemory", f"it used {format_bytes(used)} of memory, more than its memory of "
        f"{format_bytes(limit)}, and was killed",
    )  # fmt: skip


def _lost(message: str) -> Failure:
    return Failure("lost", "StepLost", message)
