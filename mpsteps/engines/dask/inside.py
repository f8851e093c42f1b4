"""What happens in a Dask worker: it starts agents for coordinators that ask, and carries bytes to and from them."""

from __future__ import annotations

import asyncio
import signal
import socket
import struct
import subprocess
import sys
import threading
from typing import Any, Callable, Dict, Set

from mpsteps._spawn import _import_path
from mpsteps.engines.dask.library import CommClosedError, Status, StreamClosedError
from mpsteps.engines.frames import PIECE

OPERATION = "mpsteps_attach"
"""What a Dask worker is asked for by whoever wants an agent."""
AGENT_SECONDS = 5.0
"""An agent whose connection is closed may take so long to end its workers before it is killed."""
STATUS_SECONDS = 0.5
"""How often an agent's Dask worker looks whether it is being closed, or cut off."""


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

    def abort(self) -> None:
        """End the connection."""
        self._comm.abort()

    def watch_for_silence(self, seconds: float) -> Callable[[], bool]:
        """Whether nothing has come from the other machine for so long, not even what kernels say to each other: it is
        asked now and then whether it is there, whatever the processes do meanwhile. (Never, where that is not known.)
        """
        sock = getattr(self._stream, "socket", None)
        if sock is None or sys.platform != "linux":
            return lambda: False
        pause = max(1, int(seconds / 5))
        for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL):
            sock.setsockopt(socket.IPPROTO_TCP, option, pause)
        return lambda: _silent_seconds(sock) > seconds

    async def write(self, data: bytes) -> None:
        """Send bytes. OSError if nobody is there any more."""
        if self._stream is None:
            await self._comm.write(data)
            return
        try:
            await self._stream.write(data)
        except StreamClosedError as error:
            raise CommClosedError(str(error)) from error


def _silent_seconds(sock: socket.socket) -> float:
    """Since the last segment that was received; 0.0: the connection is closed."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SILENCE.size)
    except OSError:
        return 0.0
    return min(_SILENCE.unpack(info)) / 1000 if len(info) == _SILENCE.size else 0.0


_SILENCE = struct.Struct("=52xII")
"""Of Linux's tcp_info: milliseconds since data and since an acknowledgement was received."""


async def attach(comm: Any, token: str, silence: float, worker: Any) -> Any:
    """Called in a Dask worker by whoever connects and asks for it: start an agent, carry bytes until one side ends, or
    until nothing has been heard from there for `silence` seconds."""
    ours, theirs = socket.socketpair()
    with theirs:
        fd = theirs.fileno()
        code = f"import sys; sys.path[:] = {_import_path()}; from mpsteps.engines.agent import main; main({fd})"
        process = subprocess.Popen(
            [sys.executable, "-c", code], pass_fds=(fd,), stdin=subprocess.DEVNULL, start_new_session=True
        )
    reader, writer = await asyncio.open_connection(sock=ours)
    pipe = Pipe(comm)
    watching = asyncio.ensure_future(_watch(worker, process, pipe, silence))
    try:
        tasks = [asyncio.ensure_future(_carry_in(pipe, writer)), asyncio.ensure_future(_carry_out(reader, pipe))]
        _done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        watching.cancel()
        writer.transport.abort()  # what an agent that does not read has not read would keep it from ending
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


async def _watch(worker: Any, process: subprocess.Popen[bytes], pipe: Pipe, silence: float) -> None:
    """When the Dask worker begins to close (it was retired, or its lifetime is over), the agent begins to drain. When
    the network is cut, the connection is: what runs here must have ended when the coordinator gives this node up."""
    is_silent = pipe.watch_for_silence(silence)
    told = False
    while not is_silent():
        if not told and worker.status in _LEAVING:
            told = True
            process.send_signal(signal.SIGTERM)
        await asyncio.sleep(STATUS_SECONDS)
    pipe.abort()


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

    async def attach_here(comm: Any, token: str, silence: float) -> Any:
        return await attach(comm, token, silence, dask_worker)

    dask_worker.handlers[OPERATION] = attach_here
    return {"name": str(dask_worker.name)}
