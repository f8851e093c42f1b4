"""Large values on the coordinator's side: its own arena, what workers have put into theirs, and who uses which block.

Each block has users (`mpsteps._ipc.users`). Here they are called by what they are: ("step", id) while a step that was
sent with a block is not answered for, ("value", id) while the result of a step may still be asked for, "image" and
("image", worker) for the attributes of a protocol, until the worker has told what it keeps of them, and the coordinator
process itself for arrays that the user's code holds. Nothing is freed before all of them are done with it:
`end` first looks what this process still reads, then lets go.
"""

from __future__ import annotations

from typing import Any, Dict, Hashable, List, Optional, Tuple

from mpsteps._ipc import large, wire
from mpsteps._ipc.arena import Arena
from mpsteps._ipc.blocks import Attachments
from mpsteps._ipc.large import Parcel
from mpsteps._ipc.users import Users
from mpsteps._machine import usable_memory

SHARE = 0.25
"""Of the memory that may be used, at most so much goes into the coordinator's arena, and as much into those of all
workers together. (What is really free is looked at each time they grow.)"""

HERE = 0  # the owner of blocks in this process; workers are 1, 2, ...


class LargeValues:
    """Blocks of one run or pool. The coordinator's thread only; what `open` gives may be dropped by any.

    `folder`: where blocks go when there is no shared memory ('': where temporary files go).
    """

    def __init__(self, workers: int, folder: str = "") -> None:
        limit = int(usable_memory() * SHARE)
        self.for_workers: Tuple[int, str] = (limit // max(1, workers), folder)
        self._arena = Arena(limit, folder)
        self._attachments = Attachments()
        self._users = Users()
        self._blocks: Dict[Hashable, List[int]] = {}  # user -> keys of the blocks it uses
        self._views: Dict[Hashable, List[Any]] = {}  # user -> what keeps them open here, should their owner die
        self._owner: Dict[int, int] = {}  # key -> whose it is

    def pack(self, value: Any, user: Hashable, anchor: Any = None) -> Parcel:
        """A parcel of `value` for workers; its block, if it has one, is `user`'s until `end`. Raises what pickling
        raises."""
        parcel = large.pack(value, self._arena, anchor)
        if not isinstance(parcel, bytes):
            self._use(large.key(parcel), HERE, user)
        return parcel

    def hold(self, worker: int, parcel: Parcel, user: Hashable) -> None:
        """What a worker has sent is `user`'s until `end`, whatever becomes of that worker. BlockError if it is gone."""
        if not isinstance(parcel, bytes):
            self._views.setdefault(user, []).append(self._attachments.get(parcel[1]))
            self._use(large.key(parcel), worker, user)

    def tell(self, parcel: Parcel, user: Hashable) -> Parcel:
        """The same parcel for a further user, in another worker. Somebody holds it."""
        if isinstance(parcel, bytes):
            return parcel
        key = large.key(parcel)
        owner = self._owner.get(key)
        if owner == HERE:
            self._use(key, HERE, user)
            return parcel
        if owner is not None:  # else it is dead, and nobody could be told to free it
            self._use(key, owner, user)
        return [parcel[0], self._attachments.forward(parcel[1])]

    def open(self, parcel: Parcel, anchor: Any = None) -> Any:
        """The value; what is written into its arrays stays in this process. Runs the user's code."""
        return large.unpack(parcel, self._attachments, anchor, private=True)

    def answered(self, worker: int, extras: Optional[Dict[str, Any]]) -> None:
        """A worker has answered for a step: what it keeps of what it has read. Before `end` of that step."""
        if extras and "keeps" in extras:
            self._users.keeps(worker, extras["keeps"])
            self.end(("image", worker))

    def end(self, user: Hashable) -> None:
        """`user` needs nothing any more."""
        keys = self._blocks.pop(user, None)
        if keys is None:
            return
        self._views.pop(user, None)
        self._users.keeps(HERE, self._attachments.live_keys())
        for key in keys:
            self._users.drop(key, user)

    def end_all(self, steps: Tuple[int, ...]) -> None:
        """Steps that were sent have ended."""
        if self._blocks:
            for step in steps:
                self.end(("step", step))

    def failed(self, worker: int, step: int, extras: Optional[Dict[str, Any]]) -> None:
        """An attempt has come to nothing; a large value that it made all the same is of no use."""
        self.answered(worker, extras)
        value = (extras or {}).get("value")
        if isinstance(value, list):
            self._use(large.key(value), worker, ("value", step))
        self.end(("value", step))
        self.end(("step", step))

    def gone(self, worker: int) -> None:
        """A worker is no more, and its memory goes with the last who reads it."""
        self.end(("image", worker))
        self._users.gone(worker)
        for key in [key for key, owner in self._owner.items() if owner == worker]:
            del self._owner[key]

    def orders(self) -> List[Tuple[int, Tuple[Any, ...]]]:
        """(worker, order): blocks to be freed by those that own them. Own ones are freed here."""
        if not self._owner:
            return []
        self._users.keeps(HERE, self._attachments.live_keys())
        found: Dict[int, List[int]] = {}
        for owner, key in self._users.take_free():
            del self._owner[key]
            if owner == HERE:
                self._arena.free(key)
            else:
                found.setdefault(owner, []).append(key)
        return [(worker, (-wire.FREE, keys)) for worker, keys in found.items()]

    def statistics(self) -> Dict[str, int]:
        """See `Arena.statistics`: of this process's own."""
        return self._arena.statistics()

    def close(self) -> None:
        """Let go of everything; arrays that the user holds stay valid."""
        self._blocks.clear()
        self._views.clear()
        self._arena.close()
        self._attachments.close()

    def _use(self, key: int, owner: int, user: Hashable) -> None:
        self._owner[key] = owner
        self._users.add(key, owner, user)
        self._blocks.setdefault(user, []).append(key)
