"""What happens in a Dask worker: it starts agents for coordinators that ask, and carries bytes to and from them."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import threading
from typing import Any, Dict, Set

from mpsteps._spawn import _import_path
from mpsteps.engines.dask.library import CommClosedError, Status, StreamClosedError
from mpsteps.engines.frames import PIECE

OPERATION = "mpsteps_attach"
"""What a Dask worker is asked for by whoever wants an agent."""
AGENT_SECONDS = 5.0
"""An agent whose connection is closed may take so long to end its workers before it is killed."""
STATUS_SECONDS = 0.5
"""How often an agent's Dask worker looks whether it is being closed."""


class Pipe:
    """Bytes over a connection of Dask's. Where it is made of a stream (TCP, TLS), that is used itself from now on:
    Dask's own messages would be packed, framed and unpacked, for bytes that are framed already. Both ends do so."""

    def __init__(self, comm: Any) -> None:
        self._comm = comm
        self._stream = getattr(comm, "stream", None)

    async def read(self) -> bytes:
        """Some bytes, as soon as there are any. OSError at the end."""
        if self._stream is None:
            return bytes(await self._comm.read())
        try:
            return bytes(await self._stream.read_bytes(PIECE, partial=True))
        except StreamClosedError as error:
            raise CommClosedError(str(error)) from error

    def write_soon(self, data: bytes) -> bool:
        """Send bytes and do not wait; False: that is not possible here. Whoever reads will see it if nobody is there.
        """
        if self._stream is None:
            return False
        try:
            self._stream.write(data)  # tornado sees to it that nobody misses the outcome
        except StreamClosedError:
            pass  # as it says above
        return True

    async def write(self, data: bytes) -> None:
        """Send bytes. OSError if nobody is there any more."""
        if self._stream is None:
            await self._comm.write(data)
            return
        try:
            await self._stream.write(data)
        except StreamClosedError as error:
            raise CommClosedError(str(error)) from error


async def attach(comm: Any, token: str, worker: Any) -> Any:
    """Called in a Dask worker by whoever connects and asks for it: start an agent, carry bytes until one side ends."""
    ours, theirs = socket.socketpair()
    with theirs:
        fd = theirs.fileno()
        code = f"import sys; sys.path[:] = {_import_path()}; from mpsteps.engines.agent import main; main({fd})"
        process = subprocess.Popen(
            [sys.executable, "-c", code], pass_fds=(fd,), stdin=subprocess.DEVNULL, start_new_session=True
        )
    reader, writer = await asyncio.open_connection(sock=ours)
    pipe = Pipe(comm)
    watching = asyncio.ensure_future(_tell_of_end(worker, process))
    try:
        tasks = [asyncio.ensure_future(_carry_in(pipe, writer)), asyncio.ensure_future(_carry_out(reader, pipe))]
        _done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        watching.cancel()
        writer.close()
        comm.abort()
        _ended.add(token)
        _held.setdefault(token, threading.Event()).set()
        await asyncio.get_event_loop().run_in_executor(None, _end_agent, process)
    return Status.dont_reply


async def _carry_in(pipe: Pipe, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(await pipe.read())
        await writer.drain()


async def _carry_out(reader: asyncio.StreamReader, pipe: Pipe) -> None:
    while True:
        data = await reader.read(PIECE)
        if not data:
            return
        await pipe.write(data)


def _end_agent(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(AGENT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


async def _tell_of_end(worker: Any, process: subprocess.Popen[bytes]) -> None:
    """When the Dask worker begins to close (it was retired, or its lifetime is over), the agent begins to drain."""
    while worker.status not in _LEAVING:
        await asyncio.sleep(STATUS_SECONDS)
    process.send_signal(signal.SIGTERM)


_LEAVING = (Status.closing, Status.closing_gracefully, Status.closed)
_held: Dict[str, threading.Event] = {}
_ended: Set[str] = set()


def hold(token: str) -> None:
    """A task of Dask that ends with an agent: so Dask sees that its worker is in use, does not close it for want of
    tasks, and nor the scheduler. It waits in a thread and costs nothing. Were it run twice, it would do no harm."""
    event = _held.setdefault(token, threading.Event())
    if token not in _ended:
        event.wait()


async def install(dask_worker: Any) -> Dict[str, Any]:
    """Called in a Dask worker through the scheduler: from now on agents can be asked for there."""

    async def attach_here(comm: Any, token: str) -> Any:
        return await attach(comm, token, dask_worker)

    dask_worker.handlers[OPERATION] = attach_here
    return {"name": str(dask_worker.name)}
