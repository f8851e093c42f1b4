"""How what a user made becomes bytes: cloudpickle, with what parcels need beyond it. `unpickling` is the way back.

Loaded by `wire` and `large` when something comes that marshal cannot write: cloudpickle takes long to load, and who
submits plain calls of functions that workers can import does without. (Workers have it from their start: a step may
leave them unable to load anything.)
"""

from __future__ import annotations

import functools
import io
import pickle
import sys
import types
from typing import Any, Callable, Dict, List, Optional, Tuple, Union

import cloudpickle

_PROTOCOL = min(5, pickle.HIGHEST_PROTOCOL)

_Buffer = Union[bytes, bytearray, memoryview]

_reducers: List[Callable[[Any, bool], Any]] = []


def add_reducer(reduce: Callable[[Any, bool], Any]) -> None:
    """From now on `reduce(obj, for_fingerprint)` is asked first how an object is pickled in this process: what it
    returns is as in `pickle.Pickler.reducer_override`. Asked once, however often it is added."""
    if reduce not in _reducers:
        _reducers.append(reduce)


def dump(value: Any, file: io.BytesIO, anchor: Any) -> None:
    """Write `value`; where it refers to the object `anchor`, a reference. None: there is no such object."""
    (_Pickler if anchor is None else _AnchoredPickler)(file, anchor).dump(value)


def fingerprint(value: Any, anchor: Any) -> bytes:
    """See `wire.fingerprint`."""
    file = io.BytesIO()
    _Fingerprinter(file, anchor).dump(value)
    return file.getvalue()


def dump_large(
    value: Any, file: io.BytesIO, anchor: Any, threshold: int
) -> Tuple[List[_Buffer], List[_Buffer]]:  # fmt: skip
    """Write `value` without its buffers of `threshold` bytes and more; returns these: of bytes and bytearrays, and of
    arrays."""
    pickler = _LargePickler(file, anchor, threshold)
    pickler.dump(value)
    return pickler.plain, pickler.arrays


def _reduce_code(code: types.CodeType) -> Any:
    """cloudpickle 3.1.2 and later call the file of every function '<dynamic-code>': tracebacks would not say where."""
    make, args = cloudpickle.Pickler.dispatch_table[types.CodeType](code)
    return make, tuple(code.co_filename if type(a) is str and a == "<dynamic-code>" else a for a in args)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle is not typed
    dispatch_table = cloudpickle.Pickler.dispatch_table.new_child({types.CodeType: _reduce_code})

    def __init__(self, file: io.BytesIO, anchor: Any, buffer_callback: Optional[Callable[..., Any]] = None) -> None:
        super().__init__(file, protocol=_PROTOCOL, buffer_callback=buffer_callback)
        self._anchor = anchor

    def reducer_override(self, obj: Any) -> Any:
        """cloudpickle would send the content of an open file in its place: a copy that passes for the file. (Not so the
        standard streams: what arrives is those of the receiver.)"""
        if isinstance(obj, io.TextIOWrapper) and obj is not sys.stdout and obj is not sys.stderr:
            raise TypeError("cannot pickle an open file")
        for reduce in _reducers:
            found = reduce(obj, False)
            if found is not NotImplemented:
                return found
        return super().reducer_override(obj)


class _AnchoredPickler(_Pickler):
    def persistent_id(self, obj: Any) -> Optional[str]:
        return "anchor" if obj is self._anchor else None


class _Fingerprinter(_Pickler):
    """Without `persistent_id`, which is called for every single object: what this writes is never read."""

    def reducer_override(self, obj: Any) -> Any:
        if obj is self._anchor:
            return str, ("anchor",)
        for reduce in _reducers:
            found = reduce(obj, True)
            if found is not NotImplemented:
                return found
        return super().reducer_override(obj)


class _LargePickler(_Pickler):
    """Keeps large buffers out of the pickle: `plain` of bytes and bytearrays, by index; `arrays` in their order."""

    def __init__(self, file: io.BytesIO, anchor: Any, threshold: int) -> None:
        # Not a bound method: that would be a circle, and keep the arrays until somebody collects garbage.
        self.arrays: List[_Buffer] = []
        anchor = _LargePickler if anchor is None else anchor  # None must not be taken for the anchor
        super().__init__(file, anchor, functools.partial(_keep_in, self.arrays, threshold))
        self._threshold = threshold
        self._known: Dict[int, Tuple[str, int]] = {}
        self.plain: List[_Buffer] = []

    def persistent_id(self, obj: Any) -> Any:
        """Called for every object before anything else is done with it."""
        kind = type(obj)
        if (kind is bytes or kind is bytearray) and len(obj) >= self._threshold:
            known = self._known.get(id(obj))
            if known is None:
                known = self._known[id(obj)] = (kind.__name__, len(self.plain))
                self.plain.append(obj)  # which also keeps its id from being given to another
            return known
        return "anchor" if obj is self._anchor else None


def _keep_in(arrays: List[_Buffer], threshold: int, buffer: pickle.PickleBuffer) -> bool:
    """Whether a buffer stays in the pickle; if not, it is added to `arrays`."""
    view = buffer.raw()
    if view.nbytes < threshold:
        return True
    arrays.append(view)
    return False
