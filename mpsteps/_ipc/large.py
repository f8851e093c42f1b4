"""Parcels of large values: what is large lies in a block of an arena, the rest is a short parcel as `wire` writes it.

Pickle's protocol 5 hands out the memory of arrays instead of copying it into the pickle; it is copied once, into the
block, and a reader's array lies in that very memory, read-only. Plain `bytes` and `bytearray`s are carried the same way
as far as the block, and copied out of it, since they must own their memory. A pickle that is itself large (a list of
a million strings) becomes a buffer like the others.

The first byte of a parcel says how it is to be opened. `m` and `p` are those of `wire`: nothing was large, or the arena
refused. With a reference: `M`: buffer 0 is what marshal wrote. `P`: the number of plain buffers (u32), then a pickle;
the block has the plain buffers, then those of arrays. `Q`: the same with the pickle as buffer 0.
"""

from __future__ import annotations

import io
import marshal
import struct
from typing import Any, List, Optional, Tuple, Union

from mpsteps._ipc import unpickling, wire
from mpsteps._ipc.arena import Arena, Buffer
from mpsteps._ipc.blocks import Attachments, Reference, key_of
from mpsteps.errors import InternalError

THRESHOLD = 256 << 10
"""Bytes from which a buffer goes through the arena: below, attaching costs more than copying."""

Parcel = Union[bytes, List[Any]]
"""A parcel as it stands in a message: bytes, or if it has a block [bytes, reference]. (A list, since arguments that are
plain stand there as a tuple.)"""

_COUNT = struct.Struct("<I")
_NUMBERS = frozenset({int, float, type(None), bool})
_LONG = 4096  # items of a list, tuple or dict: more of them may be large


def pack(value: Any, arena: Optional[Arena], anchor: Any = None) -> Parcel:
    """`pack_large` with a result that can stand in a message."""
    parcel, reference = pack_large(value, arena, anchor=anchor)
    return parcel if reference is None else [parcel, reference]


def unpack(parcel: Parcel, attachments: Optional[Attachments], anchor: Any = None, private: bool = False) -> Any:
    """The value of what `pack` gave."""
    if isinstance(parcel, bytes):
        return wire.unpack(parcel, anchor)
    return unpack_large(parcel[0], parcel[1], attachments, anchor, private)


def travels_plainly(args: Tuple[Any, ...]) -> bool:
    """Whether arguments can stand in a message as they are: plain values (see `wire`), and none of them large."""
    for a in args:
        kind = type(a)
        if kind in _NUMBERS:
            continue
        if kind is str or kind is bytes:
            if len(a) >= THRESHOLD:
                return False
        elif not wire.is_plain(a) or len(a) > _LONG:
            return False
    return True


def key(parcel: List[Any]) -> int:
    """The key of the block of a parcel that has one."""
    return key_of(parcel[1])


def pack_large(
    value: Any, arena: Optional[Arena], threshold: int = THRESHOLD, anchor: Any = None
) -> Tuple[bytes, Optional[Reference]]:
    """A parcel and the block that its large buffers went to; None: there were none, or no block could be had.

    Raises what cloudpickle raises; no block is left then. Whoever sends the reference has it freed in the end.
    `anchor`: see `wire.pack`.
    """
    if arena is None:
        return wire.pack(value, anchor), None
    if wire.is_plain(value):
        written = marshal.dumps(value)
        reference = arena.put([written]) if len(written) >= threshold else None
        return (b"m" + written, None) if reference is None else (b"M", reference)
    from mpsteps._ipc import pickling

    file = io.BytesIO()
    plain, arrays = pickling.dump_large(value, file, anchor, threshold)
    data = file.getbuffer()
    buffers: List[Buffer] = [*plain, *arrays]
    if not buffers and len(data) < threshold:
        return b"p" + data, None
    kind = b"P" if len(data) < threshold else b"Q"
    reference = arena.put(buffers if kind == b"P" else [data, *buffers])
    if reference is None:
        return (wire.pack(value, anchor) if buffers else b"p" + data), None
    head = kind + _COUNT.pack(len(plain))
    return (head + data if kind == b"P" else head), reference


def unpack_large(
    parcel: bytes, reference: Optional[Reference], attachments: Optional[Attachments], anchor: Any = None,
    private: bool = False,
) -> Any:  # fmt: skip
    """The value of a parcel. Arrays that lie in the block keep it in use as long as they live. They are read-only;
    `private`: to be written as well, which changes them here and nowhere else.

    BlockError if the block cannot be opened. Runs the user's code: call it inside a try block.
    """
    if reference is None:
        return wire.unpack(parcel, anchor)
    if attachments is None:
        raise InternalError("a large value came to a place where no blocks can be read")
    views = attachments.get(reference, private)
    kind = parcel[:1]
    if kind == b"M":
        return marshal.loads(views[0])
    (plain,) = _COUNT.unpack_from(parcel, 1)
    data = memoryview(parcel)[1 + _COUNT.size :] if kind == b"P" else views.pop(0)
    return unpickling.load_large(data, views[:plain], views[plain:], anchor)
