"""What becomes of Python values in the journal's JSON."""

from __future__ import annotations

import json
import math
import pathlib

import pytest

from mpsteps._records import decode, encode, pack_bytes, unpack_bytes
from mpsteps.errors import JournalError


@pytest.mark.parametrize(
    "value",
    [
        [["inserted", 1, "ctfStep", '["mic µ 漢字 \U0001f52c.mrc", 2.5]', "d1", [], {"wait": True}]],
        [["failed", 1, None, 1, 0.0, {"message": 'quotes " and \\ and \n, \x00 and \x1b[31m'}]],
        [["started", 2**40, -1, 1e300, []]],
    ],
)
def test_plain_data_come_back_as_they_were(value):
    assert decode(encode(value)) == value


def test_a_file_name_that_is_not_utf8_comes_back_as_it_was():
    """os.fsdecode makes lone surrogates of its bytes; the file must be found again at a resume."""
    name = b"extra/mic\xff\xfe.mrc".decode("utf-8", "surrogateescape")
    data = encode([["result", 1, {"files": [name]}]])
    data.decode("ascii")
    assert decode(data) == [["result", 1, {"files": [name]}]]


def test_numbers_that_json_has_not_become_strings_that_float_reads():
    data = encode([["protocol", {"params": {"a": math.nan, "b": [math.inf, -math.inf], "c": 1.5}}]])

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    params = json.loads(data, parse_constant=refuse)[0][1]["params"]
    assert math.isnan(float(params["a"]))
    assert [float(text) for text in params["b"]] == [math.inf, -math.inf]
    assert params["c"] == 1.5


def test_paths_and_numbers_of_numpy_are_plain_data():
    numpy = pytest.importorskip("numpy")
    record = ["protocol", {"a": pathlib.PurePosixPath("x/y"), "b": numpy.int64(3), "c": numpy.float32(0.5)}]
    assert decode(encode([record, ["n", numpy.bool_(True), numpy.float64("nan")]])) == [
        ["protocol", {"a": "x/y", "b": 3, "c": 0.5}],
        ["n", True, "nan"],
    ]


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def circular():
    value = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    "value", [object(), b"bytes", {1, 2}, {(1, 2): 3}, nested(200_000), circular(), [math.nan, b""]]
)
def test_what_json_cannot_hold_is_refused_and_named(value):
    with pytest.raises(JournalError, match="cannot be written as JSON"):
        encode([["result", 1, value]])


@pytest.mark.parametrize("data", [b"[NaN]", b"[Infinity]", b"{", b"", b"\xff", b'["\xed\xa0\x80"]'])
def test_what_is_not_strict_json_is_not_decoded(data):
    with pytest.raises(ValueError, match=r"."):
        decode(data)


def test_opaque_bytes_travel_as_text():
    data = bytes(range(256))
    assert unpack_bytes(pack_bytes(data)) == data
    with pytest.raises(ValueError, match=r"."):
        unpack_bytes("not base64!")
