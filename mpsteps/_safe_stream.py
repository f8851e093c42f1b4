"""A stream for displays, which never end a run: writing to it never raises."""

from __future__ import annotations

from typing import TextIO


class SafeStream:
    """A text stream to which writing never raises. `gone`: it failed, and nothing is written to it any more."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.gone = False

    @property
    def encoding(self) -> str:
        return getattr(self._stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Write, unless the stream is gone; returns the length of `text`."""
        if not self.gone:
            try:
                self._write(text)
            except (OSError, ValueError):
                self.gone = True
        return len(text)

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            self._stream.write(text.encode("ascii", "backslashreplace").decode("ascii"))

    def flush(self) -> None:
        """Write out what is kept back, unless the stream is gone."""
        if not self.gone:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                self.gone = True

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        try:
            return self._stream.isatty()
        except (OSError, ValueError):
            return False

    def fileno(self) -> int:
        """The descriptor; OSError or ValueError if there is none."""
        return self._stream.fileno()
