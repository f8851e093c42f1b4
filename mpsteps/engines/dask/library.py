"""What is used of Dask, or a sentence that says how to get it."""

from __future__ import annotations

import contextlib
import logging
from typing import Any, Dict, Iterator, List, Tuple

from mpsteps.errors import UsageError

try:
    import dask
    import distributed
    from dask.utils import parse_timedelta
    from distributed.comm import CommClosedError, connect
    from distributed.core import Status
    from distributed.security import Security
    from distributed.utils import get_ip
    from tornado.iostream import StreamClosedError
except ImportError as error:
    raise UsageError(
        f"clusters need Dask, which is not installed here ({error}): pip install \"mpsteps[dask]\""
    ) from error

__all__ = [
    "NO_NEWS", "NO_PAGES", "CommClosedError", "Security", "Status", "StreamClosedError", "connect", "dask",
    "distributed", "get_ip", "new_security", "silence", "tcp_seconds",
]  # fmt: skip

NO_PAGES: Dict[str, Any] = {"distributed.scheduler.http.routes": [], "distributed.worker.http.routes": []}
"""Pages in HTTP would be there for everybody who can connect."""
NO_NEWS: Dict[str, Any] = {"distributed.client.scheduler-info-interval": "1h"}
"""A client asks the scheduler for all that it knows of its workers, every two seconds, over a connection of its own."""


def tcp_seconds() -> float:
    """How long a connection may be silent before Dask gives it up."""
    return float(parse_timedelta(dask.config.get("distributed.comm.timeouts.tcp"), default="seconds"))


def new_security() -> Security:
    """Certificates for this run only, which are nowhere but in the memory of its processes."""
    try:
        return Security.temporary()
    except ImportError as error:
        raise UsageError(
            f"the connections of a cluster are encrypted, which needs the package cryptography ({error}): pip install "
            "\"mpsteps[dask]\""
        ) from error


@contextlib.contextmanager
def silence(level: int) -> Iterator[None]:
    """Dask tells of each of its connections on standard error, in the middle of our progress, and of each that ends as
    of an error. What a user should know of them is told by us."""
    before: List[Tuple[Any, int]] = [(h, h.level) for h in logging.getLogger("distributed").handlers]
    callbacks = logging.getLogger("tornado.application")
    before.append((callbacks, callbacks.level))
    for handler, old in before:
        handler.setLevel(max(level, old))
    try:
        yield
    finally:
        for handler, old in before:
            handler.setLevel(old)
