"""What the journal says of a session: who runs what, where, with which software."""

from __future__ import annotations

import os
import platform
import socket
import sys
from typing import Any, Dict

from mpsteps._ipc import wire
from mpsteps.protocol import Protocol


def about_session(protocol: Protocol, started: float) -> Dict[str, Any]:
    """Plain data about the protocol, this process and this machine. `started`: seconds since the epoch."""
    return {
        "name": protocol.getRunName(),
        "class": type(protocol).__name__,
        "target": target_of(protocol),
        "params": {k: v if wire.is_plain(v) else str(v) for k, v in protocol.getDefinitionDict().items()},
        "python": platform.python_version(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "cwd": os.getcwd(),
        "workingDir": protocol.getWorkingDir(),
        "started": started,
        "mpsteps": sys.modules["mpsteps"].__version__,  # which stands above this module, and is always loaded
        "platform": " ".join((platform.system(), platform.release(), platform.machine())),
    }


def target_of(protocol: Protocol) -> str:
    """How `mpsteps resume` finds the class again: 'file.py:Class' or 'module:Class'."""
    cls = type(protocol)
    module = sys.modules.get(cls.__module__)
    target = getattr(module, "__mpsteps_target__", None)
    if target:
        return f"{target}:{cls.__qualname__}"
    path = getattr(module, "__file__", None)
    if cls.__module__ == "__main__" and path:
        return f"{os.path.abspath(path)}:{cls.__qualname__}"
    return f"{cls.__module__}:{cls.__qualname__}"
