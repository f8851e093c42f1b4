"""The journal's reader, given every kind of damage: a valid prefix or a JournalError, nothing else."""

from __future__ import annotations

import struct
import zlib

import pytest

from mpsteps._journal_format import JournalHeader, first_bytes, make_frame, parse_journal
from mpsteps._records import encode
from mpsteps.errors import JournalError

FRAMES = [
    [["inserted", 1, "a", "[]", "d1", [], {}], ["inserted", 2, "b", '["µ"]', "d2", [1], {}]],
    [["started", 99, 1, 5.0, [1]]],
    [["finished", 99, 6.0, [[1, 1.0, 0.9, 1000]]], ["result", 1, {"files": ["x"]}]],
]
START = first_bytes(JournalHeader("P", "run", 1.0))
SEED = zlib.crc32(START)


def journal_of(frames):
    return START + b"".join(make_frame(encode(frame), n, SEED) for n, frame in enumerate(frames, 1))


def ends_of(frames):
    return [len(journal_of(frames[:n])) for n in range(len(frames) + 1)]


def flat(frames):
    return [record for frame in frames for record in frame]


DATA = journal_of(FRAMES)
ENDS = ends_of(FRAMES)


def test_the_format_is_the_documented_one():
    """Other programs may read it: the layout cannot change without a new format number."""
    assert DATA[:16] == b"mpsteps-jrnl" + struct.pack("<I", 1)
    length, crc, sequence = struct.unpack_from("<IIQ", DATA, 16)
    assert sequence == 0
    assert DATA[32 : 32 + length] == b'{"run":"run","protocol":"P","created":1.0}'
    assert crc == zlib.crc32(struct.pack("<IQ", length, 0) + DATA[32 : 32 + length], zlib.crc32(DATA[:16]))
    length, crc, sequence = struct.unpack_from("<IIQ", DATA, ENDS[1])
    payload = DATA[ENDS[1] + 16 : ENDS[2]]
    assert (length, sequence) == (len(payload), 2)
    assert crc == zlib.crc32(struct.pack("<IQ", length, 2) + payload, zlib.crc32(DATA[: ENDS[0]]))


def test_cut_at_every_byte_it_is_a_prefix():
    for cut in range(len(DATA) + 1):
        if cut < ENDS[0]:
            with pytest.raises(JournalError):
                parse_journal(DATA[:cut])
            continue
        journal = parse_journal(DATA[:cut])
        whole = sum(end <= cut for end in ENDS) - 1
        assert list(journal.records) == flat(FRAMES[:whole])
        assert journal.valid_bytes == ENDS[whole]
        assert journal.truncated_at == (None if cut in ENDS else ENDS[whole])


def test_every_single_flipped_bit_is_detected():
    """In the last frame it is a torn tail, before that the journal is refused."""
    for position in range(len(DATA)):
        for bit in range(8):
            damaged = bytearray(DATA)
            damaged[position] ^= 1 << bit
            if position < ENDS[-2]:
                with pytest.raises(JournalError):
                    parse_journal(bytes(damaged))
            else:
                journal = parse_journal(bytes(damaged))
                assert list(journal.records) == flat(FRAMES[:-1])
                assert journal.truncated_at == ENDS[-2]


def test_damage_in_the_middle_is_told_with_its_place():
    damaged = bytearray(DATA)
    damaged[ENDS[1] + 20] ^= 1
    with pytest.raises(JournalError, match=f"corrupt at byte {ENDS[1]}.*left as it is"):
        parse_journal(bytes(damaged), "run/journal.log")


def test_a_frame_that_is_missing_or_doubled_is_refused():
    first, second, third = (DATA[start:end] for start, end in zip(ENDS, ENDS[1:]))
    for body in (first + third, first + first + second, second, first + second + second):
        with pytest.raises(JournalError, match=r"missing|corrupt"):
            parse_journal(START + body)


@pytest.mark.parametrize("garbage", [b"\0" * 5000, b"\xff" * 5000, b'[["' * 2000, b"x", b"\0"])
def test_garbage_behind_the_last_frame_is_a_torn_tail(garbage):
    """A power cut may leave zeros or old blocks of the disk."""
    journal = parse_journal(DATA + garbage)
    assert journal.truncated_at == len(DATA)
    assert list(journal.records) == flat(FRAMES)


def test_a_frame_of_an_older_journal_on_the_same_disk_blocks_is_a_torn_tail():
    """Its sequence number continues ours, but it was sealed for another run."""
    other = zlib.crc32(first_bytes(JournalHeader("P", "another run", 1.0)))
    stale = make_frame(encode([["aborted", [1]]]), 4, other)
    journal = parse_journal(DATA + stale)
    assert (journal.truncated_at, list(journal.records)) == (len(DATA), flat(FRAMES))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (b"mpsteps", "no whole header"),
        (b"SQLite format 3\0" * 10, "not a journal of mpsteps"),
        (b"\x7fELF", "not a journal of mpsteps"),
        (b"mpsteps-jrnl" + struct.pack("<I", 2) + DATA[16:], r"format 2.*newer mpsteps"),
        (b"mpsteps-jrnl" + struct.pack("<I", 0) + DATA[16:], r"format 0.*use the mpsteps that wrote it, or"),
        (START[:-1], "no whole header"),
    ],
)
def test_other_files_are_told_apart(data, says):
    with pytest.raises(JournalError, match=says):
        parse_journal(data)


@pytest.mark.parametrize("about", [[], {"run": "x"}, {"run": 1, "protocol": 2, "created": "x"}, None, 3])
def test_a_header_that_is_sound_but_strange_is_refused(about):
    prefix = DATA[:16]
    with pytest.raises(JournalError, match="header"):
        parse_journal(prefix + make_frame(encode(about), 0, zlib.crc32(prefix)))


@pytest.mark.parametrize(
    "payload",
    [
        b"{}",
        b"3",
        b"[[]]",
        b'["a"]',
        b"[[NaN]]",
        b"nonsense",
        b"\xff\xff",
        b"[" * 100_000 + b"]" * 100_000,
        b"[[" + b"9" * 10_000 + b"e9999999]",
    ],
)
def test_a_sound_frame_that_holds_no_records_is_a_journal_error(payload):
    journal = parse_journal(START + make_frame(payload, 1, SEED))
    with pytest.raises(JournalError, match="corrupt"):
        list(journal.records)


def test_a_length_beyond_the_file_allocates_nothing():
    header = struct.pack("<IIQ", 0xFFFFFFFF, 0, 4)
    assert parse_journal(DATA + header + b"x" * 100).truncated_at == len(DATA)


def test_a_length_beyond_the_file_is_a_torn_tail_even_if_its_crc_is_made_to_fit():
    payload = b'[["aborted",[1]]]'
    crc = zlib.crc32(payload, zlib.crc32(struct.pack("<IQ", len(payload) + 5, 4), SEED))
    journal = parse_journal(DATA + struct.pack("<IIQ", len(payload) + 5, crc, 4) + payload)
    assert (journal.truncated_at, list(journal.records)) == (len(DATA), flat(FRAMES))


def test_a_file_made_to_look_like_a_million_frames_is_refused_in_bounded_time():
    """Each place looks like a frame that reaches to the end: checking them all would take n squared steps."""
    places = 20_000
    size = places * 20
    evil = b"".join(struct.pack("<IIQ", size - n * 20 - 16, 0, 5) + b'[["x' for n in range(places))
    with pytest.raises(JournalError, match="corrupt"):
        parse_journal(DATA + b"?" + evil)


def test_the_parser_raises_nothing_but_journal_errors():
    """Random damage to a good journal: a prefix of its records, or JournalError."""
    hypothesis = pytest.importorskip("hypothesis")
    st = hypothesis.strategies
    edits = st.lists(
        st.tuples(st.integers(0, len(DATA)), st.integers(0, 40), st.binary(max_size=40)), min_size=1, max_size=4
    )

    @hypothesis.settings(max_examples=300, deadline=None, database=None)
    @hypothesis.given(edits)
    def damage(edits):
        data = DATA
        for place, removed, inserted in edits:
            data = data[:place] + inserted + data[place + removed :]
        try:
            records = list(parse_journal(data).records)
        except JournalError:
            return
        assert records == flat(FRAMES)[: len(records)]

    @hypothesis.settings(max_examples=200, deadline=None, database=None)
    @hypothesis.given(st.binary(max_size=300), st.sampled_from([b"", DATA[:16], START, DATA]))
    def noise(data, start):
        try:
            list(parse_journal(start + data).records)
        except JournalError:
            return
        assert start in (START, DATA)

    damage()
    noise()
