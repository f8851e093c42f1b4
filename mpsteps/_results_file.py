"""Files that a command writes for its user: all or nothing, private, and never over something that is not ours."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from typing import Iterator, TextIO

from mpsteps.errors import UsageError


@contextlib.contextmanager
def new_text_file(path: str, begins: str, what: str) -> Iterator[TextIO]:
    """A text file that takes the place of `path` when the block ends well.

    A file that begins with `begins`, as this one will, is replaced, as is an empty one; anything else is refused with
    a UsageError, like every failure. `what` names the file in messages: 'the trace'.
    """
    path = os.path.abspath(path)
    draft = ""
    try:
        _check_replaceable(path, begins, what)
        fd, draft = tempfile.mkstemp(prefix=f".{os.path.basename(path)[:100]}.", dir=os.path.dirname(path))
        with open(fd, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            file.write(begins)
            yield file
        os.replace(draft, path)
        draft = ""
    except OSError as error:
        raise UsageError(f"cannot write {what} to {path!r}: {error.strerror}; choose another file with -o") from error
    finally:
        if draft:
            os.unlink(draft)


def _check_replaceable(path: str, begins: str, what: str) -> None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISREG(found.st_mode):
        raise UsageError(f"{path!r} is not a regular file, so it is not overwritten: choose another file with -o")
    if not found.st_size:
        return
    expected = begins.encode("utf-8")
    with open(path, "rb") as file:
        if file.read(len(expected)) != expected:
            raise UsageError(f"{path!r} is not {what} of a run, so it is not overwritten: choose another file with -o")
