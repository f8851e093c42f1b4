"""What agents must know of a run or a pool before they bring workers up."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from typing import Any, Dict, Iterator, Sequence

from mpsteps._private_files import open_private
from mpsteps._rundir import RunDirectory
from mpsteps.engines.handle import last_log

SEE_SECONDS = 10.0
"""A node may take so long to see what was just written to a shared file system: NFS keeps listings for seconds."""


@contextlib.contextmanager
def about_run(directory: RunDirectory, preload: Sequence[str], cards: Sequence[int]) -> Iterator[Dict[str, Any]]:
    """What agents must know of a run. While this lasts, there is a file by which they see that its directory is the
    same one there."""
    proof = os.path.join(directory.path, f"nodes.proof-{os.getpid()}")
    content = os.urandom(16).hex()
    fd = open_private(proof, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    with open(fd, "w") as f:
        f.write(content)
    try:
        yield {
            **_about(preload), "run": directory.path, "proof": (proof, content), "folder": directory.tmp,
            "cards": tuple(cards), "first_log": last_log(directory.logs),
        }  # fmt: skip
    finally:
        os.unlink(proof)


def about_pool(cards: Sequence[int]) -> Dict[str, Any]:
    """What agents must know of a pool: its steps need no files of ours."""
    return {**_about(()), "run": "", "proof": ("", ""), "folder": "", "first_log": 0, "cards": tuple(cards)}


def _about(preload: Sequence[str]) -> Dict[str, Any]:
    path = [os.path.abspath(entry or os.curdir) for entry in sys.path]
    return {
        "python": platform.python_version_tuple()[:2], "version": sys.modules["mpsteps"].__version__, "path": path,
        "cwd": os.getcwd(), "patience": SEE_SECONDS, "preload": tuple(preload),
    }  # fmt: skip
