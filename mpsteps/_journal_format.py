"""The journal's file format, and its reader.

The file is a *prefix* of 16 bytes (``mpsteps-jrnl`` and the format version as little-endian u32) and then frames::

    u32 length   u32 crc   u64 sequence   JSON in UTF-8, `length` bytes            (all little-endian)

Frame 0 holds the header, ``{"run": uuid, "protocol": name, "created": seconds}``; frames 1, 2, ... each a list of
records (`_records` has their table). `crc` is zlib's CRC-32 of length, sequence and JSON. It starts from a seed: the
CRC of the prefix for frame 0, that of prefix and frame 0 for all others, so that a frame which a power cut brings back
from the disk blocks of an older journal is not taken for one of this.

What a kill or a power cut leaves of a frame at the end is a *torn tail*: the reader reports it, and the writer that
reopens the journal cuts it off. A bad frame with a good one behind it is no tear but damage in the middle, which is
refused, never guessed around. The two are told apart without doubt: the eight bytes of a sequence number contain
zeros, and JSON never does.
"""

from __future__ import annotations

import array
import os
import struct
import time
import uuid
import zlib
from typing import Iterator, Optional, Union

from mpsteps._history import RunHistory, replay
from mpsteps._private_files import open_private
from mpsteps._records import Record, decode, encode
from mpsteps.errors import JournalError

MAGIC = b"mpsteps-jrnl"
VERSION = 1

_PREFIX = struct.Struct("<12sI")
_FRAME = struct.Struct("<IIQ")  # length, crc, sequence
_SIGNED = struct.Struct("<IQ")  # what the CRC covers besides the JSON: length, sequence
_FIRST_BYTES = b'[["'  # of the JSON of every frame but the header's
_MAX_LENGTH = 0xFFFFFFFF
_SCAN_LIMIT = 16  # times the file's size: CRC work on a file made to look like a million frames


class JournalHeader:
    """Whose journal it is: `run_id` (a UUID), `protocol` (a name), `created` (seconds since the epoch)."""

    __slots__ = ("created", "protocol", "run_id")

    def __init__(self, protocol: str, run_id: str = "", created: Optional[float] = None) -> None:
        self.protocol = protocol
        self.run_id = run_id or str(uuid.uuid4())
        self.created = time.time() if created is None else created


class Journal:
    """A journal that was read: `header`, and `records`, decoded anew each time they are iterated over.

    `valid_bytes` is the length of its good part; `truncated_at` the same offset if a torn tail follows, else None.
    `next_sequence` and `seed` are what a writer needs to continue it. Memory: the file's size and 8 bytes a frame.
    """

    def __init__(self, path: str, data: bytes, header: JournalHeader, seed: int) -> None:
        self.path = path
        self.header = header
        self.seed = seed
        self.valid_bytes = 0
        self.truncated_at: Optional[int] = None
        self._data = data
        self._frames = array.array("Q")

    @property
    def next_sequence(self) -> int:
        return len(self._frames) + 1

    @property
    def records(self) -> Iterator[Record]:
        """The records in order; JournalError, when its turn comes, for a frame that holds something else."""
        for start in self._frames:
            yield from self._decode(start)

    def replay(self) -> RunHistory:
        """What the records add up to."""
        return replay(self.records, self.header)

    def _decode(self, start: int) -> list[Record]:
        length = _FRAME.unpack_from(self._data, start)[0]
        begin = start + _FRAME.size
        try:
            records = decode(self._data[begin : begin + length])
            if isinstance(records, list) and all(isinstance(record, list) and record for record in records):
                return records
        except (ValueError, RecursionError) as error:
            raise _corrupt(self.path, start, f"its JSON is bad ({error})") from error
        raise _corrupt(self.path, start, "it holds no list of records")


def read_journal(path: Union[str, os.PathLike[str]]) -> Journal:
    """Read and check the journal at `path`, which may be in use; see `parse_journal` for the errors."""
    path = os.path.abspath(os.fspath(path))
    fd = open_private(path, os.O_RDONLY, JournalError)
    try:
        return parse_journal(read_all(fd, path), path)
    finally:
        os.close(fd)


def parse_journal(data: bytes, path: str = "the journal") -> Journal:
    """The journal that `data` holds.

    JournalError (and no other) if it is empty, of another program or a newer format, without a whole header, or
    corrupt in the middle. A torn tail is no error: `truncated_at` says where.
    """
    journal = _parse_header(data, path)
    seed, frames = journal.seed, journal._frames
    offset, sequence = journal.valid_bytes, 1
    while offset < len(data):
        size = _frame_size(data, offset, seed)
        if not size:
            break
        if _FRAME.unpack_from(data, offset)[2] != sequence:
            raise _corrupt(path, offset, f"frame {sequence} is missing")
        frames.append(offset)
        offset += size
        sequence += 1
    journal.valid_bytes = offset
    if offset < len(data):
        if _another_frame(data, offset, seed, sequence):
            raise _corrupt(path, offset, "good frames follow a bad one")
        journal.truncated_at = offset
    return journal


def _parse_header(data: bytes, path: str) -> Journal:
    if not data:
        raise JournalError(f"the journal {path!r} is empty: nothing was recorded; start the run anew with --restart")
    prefix = data[: _PREFIX.size]
    if prefix[: len(MAGIC)] != MAGIC[: len(prefix)]:
        raise JournalError(f"{path!r} is not a journal of mpsteps")
    if len(prefix) == _PREFIX.size:
        version = _PREFIX.unpack(prefix)[1]
        if version != VERSION:
            way = "use a newer mpsteps" if version > VERSION else "use the mpsteps that wrote it"
            raise JournalError(
                f"the journal {path!r} has format {version}, this mpsteps reads format {VERSION}: {way}, or start the "
                "run anew with --restart"
            )
        size = _frame_size(data, _PREFIX.size, zlib.crc32(prefix))
        if size and _FRAME.unpack_from(data, _PREFIX.size)[2] == 0:
            end = _PREFIX.size + size
            try:
                about = decode(data[_PREFIX.size + _FRAME.size : end])
                header = JournalHeader(str(about["protocol"]), str(about["run"]), float(about["created"]))
            except (ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
                raise JournalError(f"the journal {path!r} has a header that cannot be understood: {error}") from error
            journal = Journal(path, data, header, zlib.crc32(data[:end]))
            journal.valid_bytes = end
            return journal
    raise JournalError(f"the journal {path!r} has no whole header: start the run anew with --restart")


def _frame_size(data: bytes, offset: int, seed: int) -> int:
    """The size in bytes of the good frame at `offset`, 0 if there is none."""
    begin = offset + _FRAME.size
    if begin > len(data):
        return 0
    length, crc, sequence = _FRAME.unpack_from(data, offset)
    if not length or length > len(data) - begin:
        return 0
    payload = memoryview(data)[begin : begin + length]
    good = zlib.crc32(payload, zlib.crc32(_SIGNED.pack(length, sequence), seed)) == crc
    return _FRAME.size + int(length) if good else 0


def _another_frame(data: bytes, start: int, seed: int, expected: int) -> bool:
    """Whether a good frame begins after `start`, where a bad one does.

    Looks only where JSON begins and the sequence number is possible. A file made to defeat that costs a bounded
    number of CRCs, and then counts as corrupt.
    """
    last = expected + (len(data) - start) // _FRAME.size
    work = _SCAN_LIMIT * len(data)
    found = data.find(_FIRST_BYTES, start + _FRAME.size + 1)
    while found >= 0:
        offset = found - _FRAME.size
        length, _, sequence = _FRAME.unpack_from(data, offset)
        if length <= len(data) - found and expected <= sequence <= last:
            work -= length
            if work < 0 or _frame_size(data, offset, seed):
                return True
        found = data.find(_FIRST_BYTES, found + 1)
    return False


def _corrupt(path: str, offset: int, why: str) -> JournalError:
    return JournalError(
        f"the journal {path!r} is corrupt at byte {offset}: {why}; it was left as it is: restore it from a copy, or "
        "start the run anew with --restart"
    )


def read_all(fd: int, path: str) -> bytes:
    """The file up to the size it has now: a live run's journal grows."""
    try:
        size = os.fstat(fd).st_size
        parts: list[bytes] = []
        while size > 0:
            part = os.read(fd, min(size, 1 << 24))
            if not part:
                break
            parts.append(part)
            size -= len(part)
    except OSError as error:
        raise JournalError(f"cannot read the journal {path!r}: {error.strerror}") from error
    return b"".join(parts)


def first_bytes(header: JournalHeader) -> bytes:
    prefix = _PREFIX.pack(MAGIC, VERSION)
    about = {"run": header.run_id, "protocol": header.protocol, "created": header.created}
    return prefix + make_frame(encode(about), 0, zlib.crc32(prefix))


def make_frame(payload: bytes, sequence: int, seed: int) -> bytes:
    length = len(payload)
    if length > _MAX_LENGTH:
        raise JournalError(f"a record of {length} bytes is too large for the journal, which takes 4 GiB")
    crc = zlib.crc32(payload, zlib.crc32(_SIGNED.pack(length, sequence), seed))
    return _FRAME.pack(length, crc, sequence) + payload
