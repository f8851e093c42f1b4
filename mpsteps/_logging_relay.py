"""What steps log in workers arrives at the handlers of the coordinator's process, as it would with threads.

Only where there are handlers: a worker is told which levels this process's loggers have, and hands on what they would
take. (The log of a step has it in any case.) Records travel as texts, with the exception's traceback among them, since
arguments and exceptions of a record may be anything. Our own loggers are left out: their lines are for the step's log.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections import deque
from typing import Any, Callable, Deque, Dict, List, Optional, Tuple

_OURS = "mpsteps"  # and what is below it
MOST_CHARACTERS = 20_000  # of a message, and of a traceback
_FIELDS = ("name", "levelno", "created", "pathname", "lineno", "funcName", "threadName")

Payload = Tuple[Any, ...]
"""Step, pid, the fields, message, traceback or None: plain values."""


def wanted() -> Optional[Dict[str, int]]:
    """Logger name ('': the root) -> its level, for those of this process that have one; None if no logger has a handler
    that a record of a step could reach."""
    loggers = {name: item for name, item in logging.root.manager.loggerDict.items() if isinstance(item, logging.Logger)}
    theirs = {name: item for name, item in loggers.items() if name.partition(".")[0] != _OURS}
    if not logging.root.handlers and not any(item.handlers for item in theirs.values()):
        return None
    return {"": logging.root.level, **{name: item.level for name, item in theirs.items() if item.level}}


def hand_on(payload: Payload) -> None:
    """In the coordinator: give a record to the handlers of its logger. Never raises: it is only a message."""
    step, pid, fields, message, trace = payload
    record = logging.makeLogRecord({
        **dict(zip(_FIELDS, fields)), "msg": message, "args": None, "exc_text": trace, "process": pid,
        "processName": f"mpsteps worker {pid}", "levelname": logging.getLevelName(fields[1]),
        "filename": os.path.basename(fields[3]), "module": os.path.splitext(os.path.basename(fields[3]))[0],
        "mpsteps_step": step,
    })  # fmt: skip
    logger = logging.getLogger(record.name)
    if logger.isEnabledFor(record.levelno):
        try:
            logger.handle(record)
        except Exception as error:  # a handler or filter of the user's that does not follow logging's own rule
            logging.getLogger("mpsteps.engine").warning(
                "a handler of logger %r failed with a record of step %s: %s: %s", record.name, step,
                type(error).__name__, error,
            )  # fmt: skip


class Relay(logging.Handler):
    """In a worker: the handler of its root logger. `send` is called with payloads, by the worker's main thread only:
    what other threads of a step log waits until that comes by, at the end of the step at the latest (`flush_waiting`).
    So does what `send` does not take now (False).
    """

    def __init__(self, levels: Dict[str, int], step: Callable[[], int], send: Callable[[List[Payload]], bool]) -> None:
        super().__init__()
        self._step = step
        self._send = send
        self._waiting: Deque[Payload] = deque()
        self._sending = False
        self._pid = os.getpid()
        root = logging.getLogger()
        for handler in root.handlers:  # the step's log goes on as before
            handler.setLevel(max(handler.level, root.level))
        root.setLevel(min(root.level, levels.get("", logging.WARNING) or logging.DEBUG))
        self._levels = {name: level for name, level in levels.items() if name}
        for name, level in self._levels.items():
            logging.getLogger(name).setLevel(level)
        self.setLevel(min(levels.values()) or logging.DEBUG)
        root.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record. Forks that a step has made hand on nothing."""
        if record.name.partition(".")[0] == _OURS or os.getpid() != self._pid:
            self._as_without(record)
            return
        try:
            message, trace = record.getMessage(), None
            if record.exc_info:
                trace = logging.Formatter().formatException(record.exc_info)
        except Exception:
            self.handleError(record)
            return
        fields = tuple(_plain(getattr(record, name)) for name in _FIELDS)
        told = message[:MOST_CHARACTERS], trace and trace[-MOST_CHARACTERS:]
        self._waiting.append((self._step(), self._pid, fields, *told))
        if threading.current_thread() is threading.main_thread():
            self.flush_waiting()

    @staticmethod
    def _as_without(record: logging.LogRecord) -> None:
        """Where this is the only handler, there would be none: then Python itself writes warnings to stderr."""
        last = logging.lastResort
        if last is not None and len(logging.root.handlers) == 1 and record.levelno >= last.level:
            last.handle(record)

    def flush_waiting(self) -> None:
        """Send what there is, unless that is just being done (a signal handler may log, too)."""
        if self._sending or not self._waiting or os.getpid() != self._pid:
            return
        self._sending = True
        try:
            found: List[Payload] = []
            with contextlib.suppress(IndexError):
                while True:
                    found.append(self._waiting.popleft())
            if not self._send(found):
                self._waiting.extendleft(reversed(found))
        finally:
            self._sending = False


def _plain(value: Any) -> Any:
    return value if type(value) in (int, float, str) or value is None else str(value)
