"""What the command line writes: results on stdout, all else on stderr, and neither ever fails with a traceback."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Iterator, List, Sequence, TextIO

from mpsteps.errors import MpstepsError


class OutputError(MpstepsError):
    """A result could not be written to stdout."""


def make_robust() -> None:
    """Names of files need not be UTF-8, and the terminal need not show all of Unicode: such characters are escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def put(text: str) -> None:
    """Write a result and a line end to stdout. That nobody reads on (`| head -1`) is no error; OutputError for others."""
    stream = sys.stdout
    if stream is None:  # closed by who started us: no result is wanted
        return
    try:
        stream.write(text + "\n")
        stream.flush()
    except BrokenPipeError:
        _drop(stream)
    except OSError as error:
        _drop(stream)
        raise OutputError(f"the result cannot be written to standard output: {error.strerror}") from error


def note(text: str) -> None:
    """Write a line to stderr, if there is somebody to read it."""
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):  # closed: there is no better place to say so
        return


def finish() -> None:
    """Write out what Python has kept back, so that it does not fail at exit."""
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except OSError:  # `put` has told already; what argparse wrote is help, which nobody reads on
            _drop(sys.stdout)


def _drop(stream: TextIO) -> None:
    """Let what is left in the buffer, and all that follows, go nowhere."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, ValueError):  # it has no descriptor
        return


@contextlib.contextmanager
def users_output_aside() -> Iterator[None]:
    """While it is entered, what the user's code prints in this process goes to stderr: stdout is for results.

    Also what its programs write, which know descriptors only.
    """
    if sys.stdout is not None:
        sys.stdout.flush()
    kept = _redirect()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        if kept is not None:
            os.dup2(kept, 1)
            os.close(kept)


def _redirect() -> int | None:
    """Let descriptor 1 be what 2 is; returns a copy of what 1 was, None if it is closed."""
    try:
        kept = os.dup(1)
    except OSError:
        return None
    try:
        os.dup2(2, 1)
    except OSError:  # 2 is closed
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)
    return kept


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int], elastic: int, width: int) -> str:
    """Lines of aligned columns. `right`: the columns that are numbers; `elastic`: the one that is cut, to no less than
    its title or 12 characters, where a line would be longer than `width`; width 0: never."""
    widths = [max(map(len, column)) for column in zip(titles, *rows)]
    over = sum(widths) + 2 * (len(widths) - 1) - width
    if width and over > 0:
        widths[elastic] = max(12, len(titles[elastic]), widths[elastic] - over)
    return "\n".join(_line(line, widths, right, elastic) for line in [titles, *rows])


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[int], elastic: int) -> str:
    texts: List[str] = []
    for column, (cell, width) in enumerate(zip(cells, widths)):
        cut = f"{cell[: width - 3]}..." if column == elastic and len(cell) > width else cell
        texts.append(cut.rjust(width) if column in right else cut.ljust(width))
    return "  ".join(texts).rstrip()


def printable(text: str) -> str:
    """`text` on one line, without control characters: they must not steer the terminal that shows it."""
    return "".join(c if c.isprintable() else " " if c in "\n\t" else "?" for c in text)
