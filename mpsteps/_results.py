"""What a step of a protocol may return: paths are result files and must exist, anything else is its value."""

from __future__ import annotations

import os
from typing import Any, List

from mpsteps.errors import MpstepsError


class MissingResultFiles(MpstepsError):
    """A step returned paths of files that do not exist."""


def result_files(value: Any) -> List[str]:
    """The paths in a step's return value: a path, or a non-empty list or tuple of nothing but paths; else []."""
    if isinstance(value, (str, os.PathLike)):
        return [os.fspath(value)] if value else []
    if isinstance(value, (list, tuple)) and value and all(isinstance(v, (str, os.PathLike)) for v in value):
        return [os.fspath(v) for v in value]
    return []


def check_result_files(value: Any) -> List[str]:
    """The same; MissingResultFiles if one does not exist."""
    if value is None:
        return []
    files = result_files(value)
    missing = [f for f in files if not os.path.exists(f)]
    if missing:
        raise MissingResultFiles(
            f"Missing filePaths: {' '.join(missing)} (a text, or a list of texts, that a step returns is taken for its "
            "result files, as in Scipion; return another type for any other value)"
        )
    return files
