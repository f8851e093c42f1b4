"""The status of a protocol as a whole, with Scipion's names: what became of it, when, and why it failed."""

from __future__ import annotations

import datetime
from typing import Optional

from mpsteps.constants import (
    ACTIVE_STATUS,
    STATUS_ABORTED,
    STATUS_FAILED,
    STATUS_FINISHED,
    STATUS_INTERACTIVE,
    STATUS_NEW,
    STATUS_RUNNING,
    STATUS_SAVED,
)


class ProtocolStatus:
    """Status, times and error message of a protocol."""

    def __init__(self) -> None:
        self._status = STATUS_NEW
        self._error = ""
        self._initTime: Optional[datetime.datetime] = None
        self._endTime: Optional[datetime.datetime] = None

    def getStatus(self) -> str:
        """One of the STATUS_ constants."""
        return self._status

    def setStatus(self, value: str) -> None:
        """Set the status, without any other effect."""
        self._status = value

    def getErrorMessage(self) -> str:
        """Why it failed; '' if it did not."""
        return self._error

    def setRunning(self) -> None:
        """It runs from now on."""
        self._status, self._error = STATUS_RUNNING, ""
        self._initTime, self._endTime = datetime.datetime.now(), None

    def setFinished(self) -> None:
        """It has finished."""
        self._end(STATUS_FINISHED, "")

    def setFailed(self, msg: str) -> None:
        """It has failed, for this reason."""
        self._end(STATUS_FAILED, str(msg))

    def setAborted(self) -> None:
        """The user stopped it."""
        self._end(STATUS_ABORTED, "Aborted by user.")

    def setInteractive(self) -> None:
        """A step ran and now waits for a person."""
        self._end(STATUS_INTERACTIVE, "")

    def _end(self, status: str, message: str) -> None:
        self._status, self._error = status, message
        self._endTime = datetime.datetime.now()

    def getElapsedTime(self, default: datetime.timedelta = datetime.timedelta()) -> datetime.timedelta:
        """How long it ran, or has run up to now."""
        if self._initTime is None:
            return default
        return (self._endTime or datetime.datetime.now()) - self._initTime

    def isNew(self) -> bool:
        return self._status == STATUS_NEW

    def isSaved(self) -> bool:
        return self._status == STATUS_SAVED

    def isRunning(self) -> bool:
        return self._status == STATUS_RUNNING

    def isFinished(self) -> bool:
        return self._status == STATUS_FINISHED

    def isFailed(self) -> bool:
        return self._status == STATUS_FAILED

    def isAborted(self) -> bool:
        return self._status == STATUS_ABORTED

    def isInteractive(self) -> bool:
        return self._status == STATUS_INTERACTIVE

    def isActive(self) -> bool:
        return self._status in ACTIVE_STATUS
