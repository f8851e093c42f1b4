"""What crosses the process boundary, as bytes.

A *frame* is a list of small tuples of plain values (None, bool, int, float, str, bytes, tuple, list, dict), written
with `marshal`: it is twice as fast as pickle, keeps exact types, and loading it runs no code. Anything a user made
travels inside a frame as a *parcel*: bytes that cloudpickle wrote (so that lambdas, closures and classes of
`__main__` work) and that only the side that needs the object opens, inside a try block.

Messages from the coordinator (a positive number is a step id, a negative one an order):

    (id, attempt, function, arguments, changes, extras)   run a step
        function   str: a method of the protocol; int: a published function; bytes: a parcel of a callable
        arguments  tuple of plain values, or a parcel of (args, kwargs)
        changes    what the worker must hear of first: None; the number of its replies with changes of self that
                   have been taken in; or (that number, parcels of others' changes in order)
        extras     None, or a dict: gpus; results (by step id, a parcel for each `ResultOf`; None: a step before this
                   one in the lane returns it); ahead (ids of prerequisites that had not finished when it was sent: if
                   one of them has not finished here when it is this one's turn, give this one back); peers (those of
                   them that are in other lanes: by id, the worker, the number of the message there, and its `apart`
                   as the coordinator had heard of it: see `standing`)
    (-STOP,) (-SETUP, dict) (-FUNCTION, number, parcel) (-ANSWER, parcel) (-FREE, keys of blocks)
    (-GRANT, ticket, outcome, news)        the answer to LOCK: whether the step has `self._lock` now, or a parcel of the
                                           error that it gets instead; what it must hear of first, a list of `changes`

A parcel of arguments or of a value, and that of an image's state, may have large buffers in a block of the arena: then
it is a list, see `large`.

Messages from a worker:

    (-FINISHED, ids, seconds, cpu_seconds)                   finished, one after another; lists, an item for each: no
                                                             value, no change of self, no output
    (id, seconds, cpu_seconds, extras)                       finished (see `leaves`); extras: value, files,
                                                             changes, log, lock (it has had `self._lock`); stored: the
                                                             file in which the value is, too; keeps: the
                                                             keys of the blocks that something in the worker still reads
    (id, seconds, cpu_seconds, None, failure)                failed; failure: see `Failure`
    (-RETURNED, id)  (-READY, pid)  (-UNFIT, failure)  (-REQUEST, id, name, parcel)  (-LOGGED, records)
    (-CHANGED, id, parcel, late)                             what a step that runs has changed of self so far; `late`:
                                                             before it heard what came with the last GRANT
    (-LOCK, id, ticket, wait)                                it asks for `self._lock`; without `wait`, it is to have it
                                                             at once or not at all, also if it has waited until now
    (-UNLOCK, id, ticket)                                    it has left it
"""

from __future__ import annotations

import io
import marshal
import pickle
import traceback
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

from mpsteps._ipc import unpickling
from mpsteps.errors import SerializationError

STOP, SETUP, FUNCTION, ANSWER, FREE, GRANT = 1, 2, 3, 4, 5, 6
RETURNED, READY, UNFIT, REQUEST, FINISHED, CHANGED, LOCK, UNLOCK, LOGGED = 11, 12, 13, 14, 15, 16, 17, 18, 19

_ATOMS = frozenset({type(None), bool, int, float, str, bytes})
_MAX_TEXT = 20_000
"""Messages of exceptions and tracebacks are cut to this many characters: the middle is left out."""
_MAX_EXCEPTION = 32 << 20
"""Bytes of an exception that travels as an object; of a larger one (it carries its data) only the text does."""
_MAX_PARCEL = 2**31 - 1
"""Bytes that marshal can write as one object, and so the longest parcel."""

encode: Callable[[List[Tuple[Any, ...]]], bytes] = marshal.dumps
decode: Callable[[bytes], List[Tuple[Any, ...]]] = marshal.loads


def leaves(extras: Optional[Dict[str, Any]]) -> bool:
    """Whether a step that ended well, and tells this, left something that whoever follows it must hear of first: it has
    changed `self`, or had its lock. A value only matters to who takes it; a large one may be lost with its worker."""
    return extras is not None and ("changes" in extras or "lock" in extras or type(extras.get("value")) is list)


def is_plain(value: Any, depth: int = 4) -> bool:
    """Whether `value` survives `marshal` exactly: atoms, and lists, tuples and dicts of them, by exact type.

    By exact type, since marshal would write a numpy scalar (a float by inheritance) as raw bytes without a word.
    """
    kind = type(value)
    if kind in _ATOMS:
        return True
    if not depth:
        return False
    if kind is tuple or kind is list:
        for v in value:  # noqa: SIM110  # a generator would cost as much again, for every step
            if type(v) not in _ATOMS and not is_plain(v, depth - 1):
                return False
        return True
    if kind is dict:
        return all(type(k) in _ATOMS and is_plain(v, depth - 1) for k, v in value.items())
    return False


def pack(value: Any, anchor: Any = None) -> bytes:
    """A parcel: one byte that names the writer, then what it wrote. Raises what cloudpickle raises, and
    SerializationError for what takes 2 GiB or more.

    `anchor`: an object that both sides have (the protocol). It travels as a reference, so that a bound method or a
    lambda that uses `self` means the receiver's protocol and not a copy, whose changes would be lost.
    """
    if is_plain(value):
        try:
            parcel = b"m" + marshal.dumps(value)
        except ValueError:  # a text or bytes of 2 GiB
            raise _too_large() from None
    else:
        from mpsteps._ipc import pickling

        buffer = io.BytesIO()
        buffer.write(b"p")
        pickling.dump(value, buffer, anchor)
        parcel = buffer.getvalue()
    if len(parcel) > _MAX_PARCEL:
        raise _too_large()
    return parcel


def pack_name(function: Any) -> bytes:
    """A parcel of a function or class that every process finds under its module and name."""
    return b"p" + pickle.dumps(function, protocol=4)


def _too_large() -> SerializationError:
    return SerializationError("it takes 2 GiB or more: write it to a file and pass the path")


def unpack(parcel: bytes, anchor: Any = None) -> Any:
    """The object in a parcel. Runs the user's code: call it inside a try block."""
    if parcel[:1] == b"m":
        return marshal.loads(memoryview(parcel)[1:])
    return unpickling.load(memoryview(parcel)[1:], anchor)


def fingerprint(value: Any, anchor: Any) -> bytes:
    """Bytes that are equal for equal content within one process. Raises what cannot be pickled."""
    from mpsteps._ipc import pickling

    return pickling.fingerprint(value, anchor)


def pack_arguments(
    args: Tuple[Any, ...], kwargs: Optional[Dict[str, Any]] = None, anchor: Any = None
) -> Union[Tuple[Any, ...], bytes]:
    """The arguments of a step as they stand in a message: themselves when plain, else a parcel of (args, kwargs)."""
    if not kwargs and is_plain(args):
        return args
    return pack((args, kwargs or {}), anchor)


class Failure(NamedTuple):
    """A failed attempt, told so that it always travels.

    `kind`: exception (raised by the step), serialization, or, by the coordinator, lost, memory, timeout, cancelled.
    `type_name`, `message` and `traceback` are text; `parcel` is the exception object, or None if it cannot travel.
    `part` names what could not travel ('result', 'argument 2', "attribute 'handle'"). `peak_kib`: the most memory that
    its process had, KiB (0: not known).
    """

    kind: str
    type_name: str
    message: str
    traceback: str = ""
    parcel: Optional[bytes] = None
    part: str = ""
    pid: Optional[int] = None
    exitcode: Optional[int] = None
    log: str = ""
    peak_kib: int = 0

    def cause(self) -> str:
        """One sentence: why it failed."""
        if self.kind != "exception":
            return self.message
        return f"{self.type_name}: {self.message}" if self.message else self.type_name


def describe(error: BaseException, kind: str = "exception", part: str = "") -> Failure:
    """A Failure for an exception that is being handled: text always, the object where it survives a round trip. Never
    raises, whatever the exception's own methods do.

    The caller's own frame, which is at the top of the traceback and says nothing to a user, is taken off.
    """
    if kind == "exception" and error.__traceback__ is not None:
        error.__traceback__ = error.__traceback__.tb_next
    text = _safe_str(error)
    travels = kind == "exception" and len(text) < _MAX_EXCEPTION
    return Failure(
        kind,
        _type_name(error),
        _shorten(text),
        _shorten(format_traceback(error)),
        pack_exception(error) if travels else None,
        part,
    )


def format_traceback(error: BaseException) -> str:
    """The traceback as Python prints it, or as much of it as can be had; never raises."""
    for chain in (True, False):  # without the causes where there are thousands of them, or one of them is evil
        try:
            return "".join(traceback.format_exception(type(error), error, error.__traceback__, chain=chain))
        except BaseException as problem:
            why = _type_name(problem)
    return f"{_type_name(error)} (its traceback cannot be formatted: {why})"


def pack_exception(error: BaseException) -> Optional[bytes]:
    """The exception with its traceback and causes, checked to load again here; else without causes and without what
    cannot travel of its attributes and arguments; else None: the text has to do."""
    try:
        from tblib import pickling_support

        pickling_support.install(error)
        parcel = _pack_checked(error, type(error))
    except BaseException:  # a chain of causes that is too deep to follow
        parcel = None
    return parcel or _pack_checked(_Bare(error), type(error)) or _pack_checked(_Bare(error, False), type(error))


def _pack_checked(what: Any, cls: type) -> Optional[bytes]:
    try:
        parcel = pack(what)
        return parcel if len(parcel) <= _MAX_EXCEPTION and type(unpack(parcel)) is cls else None
    except BaseException:  # a lock among its attributes, an __init__ of its own, a __reduce__ that raises SystemExit
        return None


class _Bare:
    """Is pickled in place of an exception, and loads as one: class, arguments, attributes, traceback, no causes.

    It is made by `__new__`, so that an `__init__` that wants other arguments than `args` does not matter.
    """

    def __init__(self, error: BaseException, with_traceback: bool = True) -> None:
        self._error = error
        self._with_traceback = with_traceback

    def __reduce__(self) -> Tuple[Any, ...]:
        error = self._error
        args = tuple(a if _travels(a) else _Gone(a) for a in error.args)
        attributes = {k: v for k, v in vars(error).items() if _travels(v)}
        return _rebuild, (type(error), args, attributes, error.__traceback__ if self._with_traceback else None)


class _Gone:
    """Stands for an argument of an exception that could not travel."""

    def __init__(self, value: Any) -> None:
        self._name = type(value).__name__

    def __repr__(self) -> str:
        return f"<{self._name} that could not travel>"


def _travels(value: Any) -> bool:
    try:
        unpack(pack(value))
    except BaseException:
        return False
    return True


def _rebuild(cls: type, args: Tuple[Any, ...], attributes: Dict[str, Any], tb: Any) -> Any:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(attributes)
    return error.with_traceback(tb)


def _type_name(error: BaseException) -> str:
    cls = type(error)
    try:
        module, name = str(cls.__module__), str(cls.__qualname__)
    except BaseException:  # a metaclass of its own
        module, name = "builtins", type.__getattribute__(cls, "__name__")
    return _encodable(name if module in ("builtins", "__main__") else f"{module}.{name}")


def _safe_str(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException as problem:
        return f"(its message cannot be read: {_type_name(problem)})"


def _shorten(text: str) -> str:
    if len(text) > _MAX_TEXT:
        half = _MAX_TEXT // 2
        text = f"{text[:half]}\n... {len(text) - _MAX_TEXT} characters left out ...\n{text[-half:]}"
    return _encodable(text)


def _encodable(text: str) -> str:
    """A plain str that can be written anywhere: what is no UTF-8 (file names, say) as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def what_cannot_travel(args: Sequence[Any], kwargs: Dict[str, Any], anchor: Any = None) -> str:
    """The first argument that cannot be pickled, named as a person would: 'argument 2 (a socket)'."""
    named: List[Tuple[str, Any]] = [(f"argument {i}", a) for i, a in enumerate(args, 1)]
    named += [(f"argument {k}=", v) for k, v in kwargs.items()]
    for name, value in named:
        try:
            pack(value, anchor)
        except BaseException:
            return f"{name} (of type {type(value).__name__})"
    return "an argument"
