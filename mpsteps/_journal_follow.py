"""Reading a journal while it is written: what has come since one last looked."""

from __future__ import annotations

import os
from typing import List

from mpsteps._journal_format import _FRAME, JournalHeader, _frame_size, parse_journal, read_all
from mpsteps._private_files import open_private
from mpsteps._records import Record, decode
from mpsteps.errors import JournalError


class Follower:
    """Follows the journal at `path`; `header` is its header. Costs what is new, not what is there.

    A frame that is not whole yet is left for the next time. Raises JournalError for a file that is no journal or is not
    the one any more (another run was begun in its place).
    """

    header: JournalHeader

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        self._fd = open_private(self.path, os.O_RDONLY, JournalError)
        try:
            journal = parse_journal(read_all(self._fd, self.path), self.path)
        except BaseException:
            os.close(self._fd)
            raise
        self.header = journal.header
        self._seed = journal.seed
        self._first = list(journal.records)
        self._offset = journal.valid_bytes
        self._sequence = journal.next_sequence

    def close(self) -> None:
        """No more is read."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def news(self) -> List[Record]:
        """The records since the last call; the first call gives all there were."""
        found, self._first = self._first, []
        try:
            size = os.fstat(self._fd).st_size
            data = os.pread(self._fd, size - self._offset, self._offset) if size > self._offset else b""
        except OSError as error:
            raise JournalError(f"cannot read the journal {self.path!r}: {error.strerror}") from error
        if size < self._offset or not os.path.exists(self.path):
            raise JournalError(f"the journal {self.path!r} was replaced: the run was begun anew")
        at = 0
        while True:
            length = _frame_size(data, at, self._seed)
            if not length or _FRAME.unpack_from(data, at)[2] != self._sequence:
                break
            found.extend(decode(data[at + _FRAME.size : at + length]))
            at += length
            self._sequence += 1
        self._offset += at
        return found
