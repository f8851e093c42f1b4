"""Where a protocol keeps its files: paths in its run directory, and the current directory.

Paths are made of `workingDir` as it was given, relative ones stay relative, as under Scipion.
"""

from __future__ import annotations

import os
from typing import Any, Optional

from mpsteps.errors import UsageError


class ProtocolPaths:
    """Paths of a protocol with a `workingDir`."""

    workingDir: Any  # a String
    _currentDir: Optional[str]  # where `_enterDir` was called; None: not inside

    def getWorkingDir(self) -> str:
        """The run directory; '' before the run if none was given."""
        return str(self.workingDir.get(""))

    def setWorkingDir(self, path: str) -> None:
        """Use this run directory."""
        self.workingDir.set(path)

    def _getPath(self, *paths: str) -> str:
        """A path in the run directory."""
        return os.path.join(self.getWorkingDir(), *paths)

    def getPath(self, *paths: str) -> str:
        """A path in the run directory."""
        return self._getPath(*paths)

    def _getExtraPath(self, *paths: str) -> str:
        """A path in its folder `extra`, for files to keep."""
        return self._getPath("extra", *paths)

    def _getTmpPath(self, *paths: str) -> str:
        """A path in its folder `tmp`, which is emptied when the protocol has finished."""
        return self._getPath("tmp", *paths)

    def _getLogsPath(self, *paths: str) -> str:
        """A path in its folder `logs`."""
        return self._getPath("logs", *paths)

    def _getBasePath(self, path: str) -> str:
        """A path in the run directory with the file name of another path."""
        return self._getPath(os.path.basename(path))

    def _enterDir(self, path: str) -> None:
        """Change the current directory, until `_leaveDir`; not nested."""
        self._currentDir = os.getcwd()
        os.chdir(path)

    def _leaveDir(self) -> None:
        """Back to where `_enterDir` was called."""
        if self._currentDir is None:
            raise UsageError("_leaveDir was called without _enterDir")
        os.chdir(self._currentDir)
        self._currentDir = None

    def _enterWorkingDir(self) -> None:
        """Change to the run directory, until `_leaveWorkingDir`."""
        self._enterDir(self.getWorkingDir())

    def _leaveWorkingDir(self) -> None:
        """Back to where `_enterWorkingDir` was called."""
        self._leaveDir()
