"""What carries bytes to and from agents, and what it tells.

A bus knows nothing of steps. It tells `Joined`, `Said`, `Left`, `Unfit`, `Drain`, `Broken` and `Note`, by putting them
into an inbox.
"""

from __future__ import annotations

import queue
import typing
from typing import NamedTuple, Sequence, Union


class Joined(NamedTuple):
    """There is a node with an agent that waits to be spoken to. `slots`: steps that it can run at a time."""

    agent: int
    name: str
    slots: int


class Said(NamedTuple):
    """Bytes from an agent."""

    agent: int
    data: bytes


class Left(NamedTuple):
    """An agent cannot be reached any more."""

    agent: int
    why: str


class Unfit(NamedTuple):
    """There is a node, and no agent can be had there."""

    name: str
    why: str


class Drain(NamedTuple):
    """A node is to be left soon."""

    agent: int


class Broken(NamedTuple):
    """There will be no more nodes; why, as a sentence."""

    why: str


class Note(NamedTuple):
    """Something that a user wants to know."""

    text: str


Event = Union[Joined, Said, Left, Unfit, Drain, Broken, Note, None]


class Bus(typing.Protocol):
    """Carries bytes to and from agents. All methods are called by the coordinator's thread."""

    def open(self, inbox: queue.SimpleQueue[Event]) -> None:
        """Begin to bring nodes up. Raises EngineError, with nothing left behind, if that cannot be done."""

    def post(self, agent: int, data: bytes) -> None:
        """Send bytes to an agent; after those that were sent before. Never blocks."""

    def again(self, agent: int) -> None:
        """An agent has left that should not have: if its node is still there, another one is wanted."""

    def drop(self, agent: int) -> None:
        """Nothing more is wanted of an agent: end it. It will not be told that it has left, nor is another wanted."""

    def scale(self, open_steps: int, busy: Sequence[int]) -> None:
        """So many steps wait or run; agents that have any."""

    def close(self) -> None:
        """End all nodes that were brought up, and all connections."""
