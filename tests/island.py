"""A network namespace that is joined to this machine by one wire, which can be cut (Linux, root, `ip`)."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Optional

NOBODY = "02:00:00:00:00:01"


class Island:
    """Processes that are started by `command` have the address `there` only; `here` is this machine's end of the wire.
    It is closed by whoever has made it, when nobody is on it any more."""

    def __init__(self) -> None:
        number = os.getpid() % (254 * 254)
        self.name = f"mpsteps-{os.getpid()}"
        self._wire = f"mps{os.getpid()}"
        net = f"10.{231 + number % 8}.{number // 254}"  # two test sessions on one machine do not meet
        self.here, self.there = f"{net}.1", f"{net}.2"
        self.command = ["ip", "netns", "exec", self.name]
        _ip("netns", "add", self.name)
        try:
            _ip("link", "add", self._wire, "type", "veth", "peer", "name", "far", "netns", self.name)
            _ip("addr", "add", f"{self.here}/24", "dev", self._wire)
            _ip("link", "set", self._wire, "up")
            self._inside("addr", "add", f"{self.there}/24", "dev", "far")
            self._inside("link", "set", "lo", "up")
            self._inside("link", "set", "far", "up")
        except BaseException:
            self.close()
            raise

    def cut(self) -> None:
        """What is sent from either side is lost, and nobody is told: it goes to a card that is not there. (With a wire
        that is down, senders would be told that they have none.)"""
        _ip("neigh", "replace", self.there, "lladdr", NOBODY, "dev", self._wire, "nud", "permanent")
        self._inside("neigh", "replace", self.here, "lladdr", NOBODY, "dev", "far", "nud", "permanent")

    def join(self) -> None:
        """The wire is whole again."""
        _ip("neigh", "del", self.there, "dev", self._wire)
        self._inside("neigh", "del", self.here, "dev", "far")

    def close(self) -> None:
        """The wire (a namespace ends some time after it was deleted), then the namespace."""
        subprocess.run(["ip", "link", "del", self._wire], stderr=subprocess.DEVNULL)
        _ip("netns", "del", self.name)

    def _inside(self, *arguments: str) -> None:
        _ip("-n", self.name, *arguments)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def why_no_island() -> Optional[str]:
    """A reason why there can be none here; None: there can."""
    if shutil.which("ip") is None:
        return "a network that can be cut needs the program ip (Debian: iproute2)"
    if os.geteuid() != 0:
        return "only root can make a network that can be cut"
    try:
        Island().close()
    except subprocess.CalledProcessError as error:
        return f"no network that can be cut can be made here ({error.stdout.decode().strip()})"
    return None


