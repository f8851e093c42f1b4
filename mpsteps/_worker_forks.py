"""Forks of a worker, which steps make: they can do what they like, but they are no workers."""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn, Optional


class NotOurs:
    """The lane, as a fork of the worker sees it: who comes back from a step there has nothing to do here."""

    def __getattr__(self, name: str) -> NoReturn:
        end_fork(None)


def end_fork(error: Optional[BaseException]) -> NoReturn:
    """End a process that a step has forked, as Python would have ended it: by what it raised."""
    code: Any = 0
    if isinstance(error, SystemExit):
        code = 0 if error.code is None else error.code
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    elif error is not None:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code & 0xFF)
