"""Large values in a worker: those that steps are given, and those that they return."""

from __future__ import annotations

import os
from typing import Any, List, Optional

from mpsteps._ipc import large, wire
from mpsteps._ipc.arena import Arena
from mpsteps._ipc.blocks import Attachments
from mpsteps._ipc.large import Parcel
from mpsteps._private_files import open_private


class WorkerBlocks:
    """The arena of this worker, and the blocks of others that it reads.

    `limit` and `folder` are those of its arena. `values`: the folder in which large values are stored as well (None:
    nowhere); `sync`: so that they survive a power failure. `in_use`: whether any step has had to do with a block.
    """

    def __init__(self) -> None:
        self.limit = 0
        self.folder: Optional[str] = None
        self.values: Optional[str] = None
        self.sync = False
        self.in_use = False
        self._told: List[int] = []  # the keys that the coordinator was told of last
        self._arena: Optional[Arena] = None
        self._attachments = Attachments()

    @property
    def arena(self) -> Arena:
        """Made when it is first used: most steps have nothing large to tell."""
        if self._arena is None:
            self._arena = Arena(self.limit, self.folder)
        return self._arena

    def open(self, parcel: Parcel, anchor: Any) -> Any:
        """What a step is given: it may do with it what it likes, and nobody else notices."""
        if isinstance(parcel, bytes):
            return large.unpack(parcel, None, anchor)
        self.in_use = True
        return large.unpack(parcel, self._attachments, anchor, private=True)

    def open_shared(self, parcel: Parcel, anchor: Any) -> Any:
        """Attributes of the protocol. Large arrays are read-only: what a step wrote into them would be seen by itself
        alone, and silently so."""
        if isinstance(parcel, bytes):
            return large.unpack(parcel, None, anchor)
        self.in_use = True
        return large.unpack(parcel, self._attachments, anchor)

    def pack(self, value: Any, anchor: Any) -> Parcel:
        """A parcel of what a step returned, checked to load again."""
        parcel = large.pack(value, self.arena if self.limit else None, anchor)
        if isinstance(parcel, bytes):
            if parcel[:1] == b"p" and not _surely_loads(value):
                large.unpack(parcel, None, anchor)
        elif not _surely_loads(value):
            try:
                large.unpack(parcel, self._attachments, anchor)
            except BaseException:
                self.arena.free(large.key(parcel))
                raise
        return parcel

    def store(self, value: Any, anchor: Any) -> str:
        """Write a large value to a file, for resumed runs and for when its block is needed for others; its name.

        Written by each worker itself, and before the step counts as finished: what the journal names is there.
        """
        assert self.values is not None
        os.makedirs(self.values, mode=0o700, exist_ok=True)
        name = f"{os.urandom(8).hex()}.value"
        parcel = wire.pack(value, anchor)
        fd = open_private(os.path.join(self.values, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        with open(fd, "wb") as f:
            f.write(parcel)
            if self.sync:
                f.flush()
                os.fsync(f.fileno())
        return name

    def news(self) -> Optional[List[int]]:
        """The keys of the blocks that something in this process still reads; None: the same as last time.

        InternalError if one of them was freed all the same.
        """
        keys = self._attachments.live_keys()
        if keys == self._told:
            return None
        self._told = keys
        return keys


def _surely_loads(value: Any) -> bool:
    """Arrays of numbers always load again: trying it would copy them once more."""
    kind = type(value)
    return kind.__module__ == "numpy" and kind.__name__ == "ndarray" and not value.dtype.hasobject
