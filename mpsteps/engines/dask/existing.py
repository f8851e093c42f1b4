"""A Dask cluster that somebody else has started."""

from __future__ import annotations

import json
import time
from typing import Dict, Optional, Tuple

from mpsteps.engines.choice import Cluster
from mpsteps.engines.dask.library import Security
from mpsteps.errors import UsageError

LONELY_SECONDS = 600.0
"""A cluster of somebody else's that has had no Dask worker of use for so long will not get one."""


class ExistingCluster:
    """A cluster that somebody else has started."""

    def __init__(self, cluster: Cluster) -> None:
        self._where = cluster.where
        self._lonely_since = time.monotonic()

    async def open(self) -> Tuple[str, Optional[Security]]:
        """Its scheduler's address; certificates are those of Dask's own configuration."""
        if "://" in self._where:
            return self._where, None
        try:
            with open(self._where) as f:
                return str(json.load(f)["address"]), None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{self._where!r} is no scheduler file of Dask ({type(error).__name__}: {error})"
            ) from error

    def check(self, any_used: bool) -> Optional[str]:
        """Why there will be no more Dask workers; None: nobody knows."""
        now = time.monotonic()
        if any_used:
            self._lonely_since = now
        elif self._lonely_since + LONELY_SECONDS < now:
            return f"the cluster {self._where} has had no Dask worker of use for {LONELY_SECONDS / 60:g} minutes"
        return None

    def scale(self, open_steps: int, idle: Dict[str, float]) -> None:
        """It is not ours to scale."""

    def left(self, name: str) -> bool:
        """Whether a node may get another agent: nobody else ends it."""
        return True

    def seconds_until_drain(self) -> Optional[float]:
        """Not known."""
        return None

    async def close(self) -> None:
        """It stays."""
