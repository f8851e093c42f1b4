"""Who uses which block of the arenas: the coordinator counts, and says which blocks their owners may free.

A block has users of three kinds: the coordinator itself (a result that somebody may still ask for), messages that are
on their way or being worked on (a step that was sent and has not been answered), and workers that keep an array beyond
the step that brought it (they say so with each answer). It may be freed when it has none. The order in which an answer
is taken in matters: first what the worker keeps, then the end of the step's own use, so that there is no moment without
a user in between.
"""

from __future__ import annotations

from typing import Dict, Hashable, Iterable, List, Set, Tuple


class Users:
    """Counts users of blocks. `owner`: whose arena the block is in, as the caller numbers processes."""

    def __init__(self) -> None:
        self._owners: Dict[int, int] = {}  # key of a block -> owner; exactly the blocks in `_users`
        self._users: Dict[int, Set[Hashable]] = {}  # never empty
        self._kept: Dict[int, Set[int]] = {}  # worker -> the blocks it keeps
        self._free: List[Tuple[int, int]] = []  # (owner, key) of blocks that lost their last user

    def add(self, key: int, owner: int, user: Hashable) -> None:
        """`user` needs the block from now on. Called before the reference is told to anybody else."""
        self._owners[key] = owner
        self._users.setdefault(key, set()).add(user)

    def drop(self, key: int, user: Hashable) -> None:
        """`user` does not need it any more; nothing happens if it did not."""
        users = self._users.get(key)
        if users is None or user not in users:
            return
        users.remove(user)
        if not users:
            del self._users[key]
            self._free.append((self._owners.pop(key), key))

    def keeps(self, worker: int, keys: Iterable[int]) -> None:
        """A worker keeps these blocks, and no others that it kept before (`Attachments.live_keys`)."""
        now = {key for key in keys if key in self._users}
        before = self._kept.get(worker, set())
        for key in now - before:
            self._users[key].add(("keeps", worker))
        self._kept[worker] = now
        for key in before - now:
            self.drop(key, ("keeps", worker))

    def gone(self, owner: int) -> None:
        """A process is gone: it keeps nothing, and nobody can be told to free the blocks that it owned."""
        self.keeps(owner, ())
        del self._kept[owner]
        for key in [key for key, its in self._owners.items() if its == owner]:
            del self._owners[key], self._users[key]
        self._free = [(its, key) for its, key in self._free if its != owner]

    def take_free(self) -> List[Tuple[int, int]]:
        """(owner, key) of the blocks that have no users since the last call: to be freed by their owners now."""
        free, self._free = self._free, []
        return free

    def __len__(self) -> int:
        """How many blocks have users."""
        return len(self._users)
