"""The vocabulary of the journal: what its records say, and how they become JSON.

A record is a JSON list whose first element names its kind; the other fields are positional, because names repeated
in a million records are most of a file. Times are seconds since the epoch, durations seconds, memory KiB.

============ ================================================= ======================================================
kind         fields                                            written when
============ ================================================= ======================================================
protocol     {name, class, params, python, host, pid, started} a session (first run or resume) begins; ids restart at 1
steps        id, func, [args, ...], [prerequisites, ...]       ordinary steps of one method are inserted, with this id
                                                               and those that follow; args are lists of atoms, from
                                                               which the reader works out the digests
inserted     id, func, args, digest, prerequisites, options    any other step is inserted; args are text where they are
                                                               no atoms, options has wait, interactive, needsGPU
kept         id, digest                                        a step that finished in an earlier session is taken over
started      worker, attempt, time, [id, ...]                  steps are about to be sent to the worker with that pid
finished     worker, time, [[id, seconds, cpu, peak KiB,       steps have finished; traffic, where it is known, is
             traffic], ...]                                    [bytes read, written, to the worker, and back]
done         worker, time, [id, ...], [wall, ...], [cpu, ...]  steps have finished that returned and changed nothing;
                                                               times are microseconds, integers
result       id, {"files": [...]}, {"value": base64} or        a step returned something; a large value is in that file
             {"stored": name}                                  of the folder values/
published    id, base64                                        what an attempt of a step has changed in self so far,
                                                               told when it took or left the lock, pickled
changed      id, base64                                        all else that it changed
failed       id, worker, attempt, time, error                  an attempt failed; error is {type, message, traceback,
                                                               cause, exitcode, log, peak_kib}, each where it is known
lost         id, worker, attempt, time, error                  an attempt's worker died
skipped      [id, ...], because                                steps will not run; because is a sentence
returned     [id, ...]                                         steps that were recorded as started had not begun, and
                                                               wait again
aborted      [id, ...]                                         steps were stopped on request
doubt        [id, ...]                                         a resume found these cut in the middle by a crash
ended        status, time, message                             a session ends; message is '' or says why it failed
============ ================================================= ======================================================

The dict of `protocol` also has what there was for the steps: cores, memory (bytes), gpus (groups of cards), needs
(method -> [cpus, bytes, cards] that it declares), learned (method -> bytes that are counted though not declared).

The order of records matters between frames only (and that of `published` and `finished`: in this order changes of self
became true): `result` and `changed` belong in the frame of their `finished`, so
that a crash keeps all of them or none. A new kind or field needs a new format version: a reader refuses what it does
not know, for a resume that overlooks a record may run a step twice.

The JSON is strict: NaN and the infinities, which JSON has not, are written as the strings ``float()`` reads back.
Text is UTF-8; only where a string has lone surrogates (file names that are not UTF-8) is its frame written in ASCII
with ``\\u`` escapes, which gives the same name back.
"""

from __future__ import annotations

import base64
import json
import math
import operator
import os
from typing import Any, List, NoReturn

from mpsteps.errors import JournalError

Record = List[Any]


def encode(value: object) -> bytes:
    """The JSON of a header or of a list of records; JournalError, naming the culprit, for what JSON cannot hold."""
    try:
        try:
            text = _ENCODER.encode(value)
        except ValueError:  # a NaN or an infinity: rare, so that looking for them is not paid by every frame
            value = _without_nan(value)
            text = _ENCODER.encode(value)
        try:
            return text.encode("utf-8")
        except UnicodeEncodeError:  # lone surrogates
            return _ASCII_ENCODER.encode(value).encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        raise JournalError(f"a record cannot be written as JSON: {error}; only plain data can be journaled") from error


def decode(data: bytes) -> Any:
    """What `encode` was given; ValueError or RecursionError for anything that is not strict JSON in UTF-8."""
    return json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)


def pack_bytes(data: bytes) -> str:
    """Opaque bytes as the text that `changed` and `result` records carry."""
    return base64.b64encode(data).decode("ascii")


def unpack_bytes(text: str) -> bytes:
    """The bytes that `pack_bytes` was given; ValueError for other text."""
    return base64.b64decode(text, validate=True)


def _plain(value: object) -> object:
    """Paths, and numbers of other libraries, as what JSON has for them."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "item") and getattr(value, "shape", None) == ():  # a numpy scalar
        item: object = value.item()
        return item
    if hasattr(value, "__index__"):
        return operator.index(value)
    if hasattr(value, "__float__"):
        return float(value)
    raise TypeError(f"it holds an object of type {type(value).__module__}.{type(value).__qualname__}")


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {_without_nan(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    if not isinstance(value, (str, int, float)) and value is not None:
        return _without_nan(_plain(value))
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


# check_circular costs a fifth of the time, and a circle ends in RecursionError without it, which is caught.
_ENCODER = json.JSONEncoder(
    ensure_ascii=False, check_circular=False, allow_nan=False, separators=(",", ":"), default=_plain
)
_ASCII_ENCODER = json.JSONEncoder(
    ensure_ascii=True, check_circular=False, allow_nan=False, separators=(",", ":"), default=_plain
)
