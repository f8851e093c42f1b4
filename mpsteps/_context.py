"""What the code of a running step may ask about itself: which step it is, its graphics cards, where its output goes."""

from __future__ import annotations

import contextvars
from typing import Optional, Tuple


class StepContext:
    """One attempt of one step, as its own code sees it. Stands for Scipion's executor in `self._stepsExecutor`.

    `step`: its 1-based id; `attempt`: 1 for the first; `gpus`: numbers of the cards it holds; `log`: path of the file
    that its standard output and error go to (None: they are not captured).
    """

    def __init__(self, step: int, attempt: int = 1, gpus: Tuple[int, ...] = (), log: Optional[str] = None) -> None:
        self.step = step
        self.attempt = attempt
        self.gpus = gpus
        self.log = log

    def getGpuList(self) -> list[int]:
        """The graphics cards that this step holds (empty: none), as Scipion's executors offer it."""
        return list(self.gpus)

    def getGpuListStr(self, sep: str = " ") -> str:
        """The same as text."""
        return sep.join(str(gpu) for gpu in self.gpus)


_here: contextvars.ContextVar[Optional[StepContext]] = contextvars.ContextVar("mpsteps_step", default=None)
_everywhere: Optional[StepContext] = None


def enter(context: StepContext) -> contextvars.Token[Optional[StepContext]]:
    """This thread runs that step now; give the token to `leave`."""
    return _here.set(context)


def leave(token: contextvars.Token[Optional[StepContext]]) -> None:
    """This thread is done with its step."""
    _here.reset(token)


def enter_process(context: Optional[StepContext]) -> None:
    """The whole process (a worker) runs that step now, so that threads the step starts can ask as well."""
    global _everywhere
    _everywhere = context


def current() -> Optional[StepContext]:
    """The step that the caller's code belongs to, or None outside of any."""
    return _here.get() or _everywhere

