"""Large values between machines: by value over the connection, once to each node, in shared memory on it.

On one machine a large value is a block of shared memory and what travels is a reference to it (`_ipc.large`). A
reference means nothing on another machine. So the block's bytes are sent first, the agent puts them into its own arena,
and the reference in the message is exchanged for one to that copy. Further messages to the same node name the copy.

Who frees what. The coordinator's own books (`_large_values`) count each step that was sent as a user of the block here.
The agent counts the users of its copy, as they are the workers of its node, and says when there are none (``unused``).
It may not free the copy by itself: a message that names it may be on its way. The coordinator knows how often it has
named the copy; if the agent has seen as many, nobody uses it. Then it is kept for later steps, but for no more than
`KEPT` bytes of such copies, and not when the value itself is gone.

What a step returns goes the other way: into an arena here, which stands in for that of the worker.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Optional, Set, Tuple

from mpsteps._ipc import large, wire
from mpsteps._ipc.arena import Arena
from mpsteps._ipc.blocks import Attachments, Reference, size_of
from mpsteps._ipc.users import Users
from mpsteps.errors import EngineError

Message = Tuple[Any, ...]
Send = Callable[[Message], None]

PART = 64 << 20
"""The content of a block is sent in pieces of so many bytes, so that other messages come in between."""


KEPT = 256 << 20
"""Bytes of copies that a node keeps although no step uses them, since others may."""


def _pieces(views: List[memoryview]) -> List[bytes]:
    return [bytes(view[at : at + PART]) for view in views for at in range(0, len(view), PART)]


class _Incoming:
    """Blocks that arrive in pieces."""

    def __init__(self) -> None:
        self._sizes: Dict[int, Tuple[int, ...]] = {}
        self._data: Dict[int, bytearray] = {}

    def begin(self, key: int, sizes: Tuple[int, ...]) -> None:
        self._sizes[key], self._data[key] = sizes, bytearray()

    def add(self, key: int, piece: bytes) -> None:
        self._data[key] += piece

    def take(self, key: int) -> List[memoryview]:
        """The buffers of a block that is whole."""
        whole, sizes = memoryview(self._data.pop(key)), self._sizes.pop(key)
        if sum(sizes) != len(whole):
            raise EngineError(f"{len(whole)} bytes of a large value came instead of {sum(sizes)}")
        views, at = [], 0
        for size in sizes:
            views.append(whole[at : at + size])
            at += size
        return views


def send_block(send: Send, key: int, views: List[memoryview]) -> None:
    """Send the buffers of a block; `_Incoming` puts them together."""
    send(("block", key, tuple(len(view) for view in views)))
    for piece in _pieces(views):
        send(("piece", key, piece))
    send(("whole", key))


class ToNode:
    """On the coordinator's side: what one node has copies of. `send` sends to its agent."""

    def __init__(self, send: Send, attachments: Attachments) -> None:
        self._send = send
        self._attachments = attachments
        self._named: Dict[int, int] = {}  # key of a block there -> how often a message has named it
        self._sizes: Dict[int, int] = {}  # the same blocks -> bytes
        self._idle: Dict[int, None] = {}  # those without users, the longest unused first
        self._gone: Set[int] = set()  # those with users whose value is gone
        self._image: Any = None
        self._images = 0

    def step(self, message: Message) -> Message:
        """A step message for that node."""
        args, extras = message[3], message[5]
        if type(args) is list:
            message = (*message[:3], self._name(args), *message[4:])
        if extras and "results" in extras:
            results = {step: self._name(p) if type(p) is list else p for step, p in extras["results"].items()}
            message = (*message[:5], {**extras, "results": results})
        return message

    def setup(self, setup: Dict[str, Any]) -> Dict[str, Any]:
        """What a worker there is set up with. The protocol's image goes there once, as long as it stays the same."""
        image = setup.get("image")
        if not image:
            return setup
        if image != self._image:
            self._image, self._images = image, self._images + 1
            self._send(("image", self._images, {k: p for k, p in image.items() if type(p) is not list}))
        named = {k: self._name(p) for k, p in image.items() if type(p) is list}
        return {**setup, "image": (self._images, named)}

    def unused(self, key: int, seen: int) -> None:
        """The agent has no user of a copy left, after so many messages that named it."""
        if self._named.get(key) != seen:
            return
        self._idle[key] = None
        if key in self._gone:
            self._drop(key)
        while sum(self._sizes[k] for k in self._idle) > KEPT:
            self._drop(next(iter(self._idle)))

    def freed(self, key: int) -> None:
        """The value itself is gone: nobody can ask for it again."""
        if key in self._idle:
            self._drop(key)
        elif key in self._named:
            self._gone.add(key)

    def _drop(self, key: int) -> None:
        del self._named[key], self._sizes[key], self._idle[key]
        self._gone.discard(key)
        self._send(("drop", key))

    def _name(self, parcel: List[Any]) -> List[Any]:
        key = large.key(parcel)
        if key not in self._named:
            send_block(self._send, key, self._attachments.get(parcel[1]))
            self._named[key], self._sizes[key] = 0, size_of(parcel[1])
        self._idle.pop(key, None)
        self._named[key] += 1
        return [parcel[0], key]


class FromNode:
    """On the coordinator's side: an arena that stands in for those of one node's workers."""

    def __init__(self, limit: int, folder: str) -> None:
        self._arena = Arena(limit, folder)
        self._incoming = _Incoming()
        self._blocks: Dict[int, Optional[Reference]] = {}  # key there -> where it is here, until its reply is there

    def hear(self, message: Message) -> bool:
        """Take in a part of a block; whether the message was one."""
        if message[0] == "block":
            self._incoming.begin(*message[1:])
        elif message[0] == "piece":
            self._incoming.add(*message[1:])
        elif message[0] == "whole":
            self._blocks[message[1]] = self._arena.put(self._incoming.take(message[1]))
        else:
            return False
        return True

    def reply(self, message: Message) -> Optional[Message]:
        """A worker's reply as if the worker were here; None: there is no room for what it returned."""
        extras = message[3] if len(message) > 3 else None
        if message[0] < 0 or not extras or type(extras.get("value")) is not list:
            return message
        parcel, key = extras["value"]
        reference = self._blocks.pop(key)
        if reference is None:
            return None
        return (*message[:3], {**extras, "value": [parcel, reference]}, *message[4:])

    def free(self, keys: List[int]) -> None:
        """Blocks of which nobody has any use."""
        for key in keys:
            self._arena.free(key)

    def close(self) -> None:
        """Arrays that lie in it stay valid."""
        self._arena.close()


class NodeBlocks:
    """On the node: copies of the coordinator's blocks, and the results of its workers on their way there."""

    def __init__(self, limit: int, folder: str, send: Send) -> None:
        self._arena = Arena(limit, folder)
        self._attachments = Attachments()
        self._send = send
        self._incoming = _Incoming()
        self._users = Users()
        self._copies: Dict[int, Optional[Reference]] = {}  # the coordinator's key -> the copy; None: no room for it
        self._keys: Dict[int, int] = {}  # key of a copy -> the coordinator's
        self._named: Dict[int, int] = {}  # the coordinator's key -> how many messages have named it
        self._uses: Dict[Any, List[int]] = {}  # user -> keys of copies
        self._images: Dict[int, Dict[str, Any]] = {}

    def hear(self, message: Message) -> bool:
        """Take in what is about blocks; whether the message was."""
        what = message[0]
        if what == "block":
            self._incoming.begin(*message[1:])
        elif what == "piece":
            self._incoming.add(*message[1:])
        elif what == "whole":
            self._copies[message[1]] = reference = self._arena.put(self._incoming.take(message[1]))
            self._named[message[1]] = 0
            if reference is not None:
                self._keys[large.key([b"", reference])] = message[1]
        elif what == "drop":
            del self._named[message[1]]
            reference = self._copies.pop(message[1])
            if reference is not None:
                key = large.key([b"", reference])
                del self._keys[key]
                self._arena.free(key)
        elif what == "image":
            self._images = {message[1]: message[2]}
        else:
            return False
        return True

    def step(self, message: Message) -> Message:
        """A step message for a worker of this node. EngineError: there is no room here for what it needs."""
        args, extras = message[3], message[5]
        user = ("step", message[0])
        if type(args) is list:
            message = (*message[:3], self._here(args, user), *message[4:])
        if extras and "results" in extras:
            results = {s: self._here(p, user) if type(p) is list else p for s, p in extras["results"].items()}
            message = (*message[:5], {**extras, "results": results})
        return message

    def setup(self, setup: Dict[str, Any], worker: int) -> Dict[str, Any]:
        """What a worker of this node is set up with."""
        if not setup.get("image"):
            return setup
        number, named = setup["image"]
        parts = {k: self._here(p, ("image", worker)) for k, p in named.items()}
        return {**setup, "image": {**self._images[number], **parts}}

    def reply(self, worker: int, message: Message, free: Callable[[int], None]) -> Message:
        """A worker's reply for the coordinator. `free(key)` has a block freed by the worker, whose it is."""
        extras = message[3] if len(message) > 3 else None
        if message[0] > 0:
            if extras:
                extras = self._told(worker, extras, free)
                message = (*message[:3], extras, *message[4:])
            self.end(("step", message[0]))
        elif self._uses and message[0] == -wire.FINISHED:
            for step in message[1]:
                self.end(("step", step))
        elif message[0] == -wire.RETURNED:
            self.end(("step", message[1]))
        return message

    def _told(self, worker: int, extras: Dict[str, Any], free: Callable[[int], None]) -> Dict[str, Any]:
        if "keeps" in extras:
            self._users.keeps(worker, extras["keeps"])
            self.end(("image", worker))
            extras = {**extras, "keeps": []}  # of the coordinator's own blocks it has none
        value = extras.get("value")
        if type(value) is list:
            key = large.key(value)
            send_block(self._send, key, self._attachments.get(value[1]))
            free(key)
            extras = {**extras, "value": [value[0], key]}
        return extras

    def end(self, user: Any) -> None:
        """A user of copies is done with them."""
        for key in self._uses.pop(user, ()):
            self._users.drop(key, user)

    def gone(self, worker: int) -> None:
        """A worker has died."""
        self.end(("image", worker))
        self._users.keeps(worker, ())

    def tell_unused(self) -> None:
        """Tell the coordinator which copies have no users any more."""
        for _, key in self._users.take_free():
            known = self._keys.get(key)
            if known is not None:
                self._send(("unused", known, self._named[known]))

    def close(self) -> None:
        """Let go of everything."""
        self._arena.close()
        self._attachments.close()

    def _here(self, parcel: List[Any], user: Any) -> List[Any]:
        known = parcel[1]
        self._named[known] += 1
        reference = self._copies[known]
        if reference is None:
            raise EngineError(
                "this node has no room for a large argument or attribute of it, neither in shared memory nor in files"
            )
        key = large.key([b"", reference])
        self._users.add(key, 0, user)
        self._uses.setdefault(user, []).append(key)
        return [parcel[0], reference]
