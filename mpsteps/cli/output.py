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
    """Prepare the standard streams for what users and their systems do to them.

    A descriptor that is closed (`2>&-`) gets /dev/null: otherwise the next file that is opened would take its number,
    and workers would write their output there. Characters that a stream's encoding has not (names of files need not be
    UTF-8) are escaped.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # it is closed; open() takes the lowest free number, which is this one
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def put(text: str) -> None:
    """Write a result and a line end to stdout. That nobody reads on (`| head -1`) is no error; others: OutputError."""
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
    if sys.stderr is None:  # print would take stdout
        return
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):  # closed: there is no better place to say so
        return


def finish() -> None:
    """Write out what Python has kept back, so that it does not fail, and change the exit code, at exit."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            try:
                stream.flush()
            except OSError:  # results were written by `put`, which has told; the rest is notes and help
                _drop(stream)


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
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


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
