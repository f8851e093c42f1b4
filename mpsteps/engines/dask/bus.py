"""The bus over Dask: finds Dask workers, starts an agent on each, carries bytes."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
import uuid
from typing import Any, Callable, Coroutine, Dict, List, Optional, Sequence, Set, Tuple

from mpsteps.engines.bus import Broken, Drain, Event, Joined, Left, Note, Said, Unfit
from mpsteps.engines.choice import Cluster
from mpsteps.engines.dask.existing import ExistingCluster
from mpsteps.engines.dask.inside import OPERATION, Pipe, hold, install
from mpsteps.engines.dask.library import (
    NO_NEWS,
    CommClosedError,
    Security,
    connect,
    dask,
    distributed,
    silence,
    tcp_seconds,
)
from mpsteps.engines.dask.local import LocalNodes
from mpsteps.engines.dask.slurm import SlurmJobs
from mpsteps.engines.frames import PIECE
from mpsteps.errors import EngineError, MpstepsError

CONNECT_SECONDS = 10.0
"""A scheduler that does not answer in this time is not there."""
ALIVE_SECONDS = 5.0
"""... and one that is spoken to already should, in this ..."""
GONE_SECONDS = 30.0
"""... but may be busy with other people's tasks for so long before it is taken for gone."""
NEWS_SECONDS = 0.1
"""... and the connection to one that has died is closed after this at the latest, on any network that is up."""
REST_SECONDS = 0.5
"""What is left of Dask in this process may take so long to come to its end."""
LOOK_SECONDS = (0.05, 1.0)
"""How often it is looked for new Dask workers: while there is none yet, and later."""
SILENCE_SECONDS = 15.0
"""When there has been no Dask worker for so long, the user is told what is waited for."""
SILENCE_SHARE = 0.5
"""An agent that hears nothing from here for this share of Dask's time-out for connections ends what runs there. It must
have done so when that time is up for us, since then its steps may be run again: ours counts from the last that we have
heard, which with Dask's settings is at most a third of it before a cut."""
ATTACH_TRIES = 3
"""A Dask worker that is there, and on which no agent could be started so many times, is done without ..."""
UNFIT_SECONDS = 300.0
"""... for so long: it may have been the network between it and this machine."""
CLOSE_SECONDS = 30.0
"""What was started may take so long to be ended: commands of batch systems may hang."""


class _Agent:
    """A connection to an agent; all but `out` belongs to the event loop. `idle_since`: monotonic seconds, 0: busy."""

    def __init__(self, number: int, address: str) -> None:
        self.number = number
        self.address = address
        self.name = address
        self.pipe: Any = None
        self.out: List[bytes] = []
        self.more: asyncio.Event = asyncio.Event()
        self.idle_since = 0.0
        self.dropped = False


class DaskBus:
    """A `bus.Bus` over Dask. Both on a shared file system: `folder` for what jobs must read (certificates), `logs`
    for what they write; '' leaves it to dask-jobqueue's configuration."""

    def __init__(self, cluster: Cluster, folder: str = "", logs: str = "") -> None:
        self._cluster = cluster
        self._source: Any
        if cluster.where == "dask":
            self._source = LocalNodes(cluster, folder)
        elif cluster.where == "slurm":
            self._source = SlurmJobs(cluster, folder, logs)
        else:
            self._source = ExistingCluster(cluster)
        self._inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="mpsteps-dask", daemon=True)
        self._opened: queue.SimpleQueue[Optional[BaseException]] = queue.SimpleQueue()
        self._loop: Optional[asyncio.AbstractEventLoop] = None
        self._stop: Optional[asyncio.Event] = None
        self._client: Any = None
        self._address = ""
        self._agents: Dict[int, _Agent] = {}
        self._seen: Set[str] = set()  # addresses that are served, or will not be
        self._staying: Dict[int, str] = {}  # agents that have left, and their addresses, if another may be had there
        self._failed: Dict[str, int] = {}  # how often no agent could be started at an address
        self._tasks: Set[asyncio.Future[None]] = set()
        self._last = 0
        self._silent_since: Optional[float] = None  # the scheduler has not answered since then
        self._closing = False
        self._broken = False

    # ----------------------------------------------------------- for the coordinator's thread

    def open(self, inbox: queue.SimpleQueue[Event]) -> None:
        """Connect, or bring the scheduler up. UsageError, EngineError: that cannot be done, and nothing is left."""
        self._inbox = inbox
        self._thread.start()
        problem = self._opened.get()
        if problem is not None:
            self._thread.join()
            raise problem

    def post(self, agent: int, data: bytes) -> None:
        """Send bytes to an agent."""
        self._call(self._post, agent, data)

    def again(self, agent: int) -> None:
        """An agent has left that should not have: if its node is still there, another one is wanted."""
        self._call(self._again, agent)

    def drop(self, agent: int) -> None:
        """Nothing more is wanted of an agent: end it."""
        self._call(self._drop, agent)

    def scale(self, open_steps: int, busy: Sequence[int]) -> None:
        """So many steps wait or run, some of them with these agents."""
        self._call(self._scale, open_steps, busy)

    def close(self) -> None:
        """End connections, jobs and processes."""
        self._closing = True
        if self._stop is not None:
            self._call(self._stop.set)
        self._thread.join()

    def _call(self, function: Callable[..., None], *args: Any) -> None:
        loop = self._loop
        if loop is None:
            return
        try:
            loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            pass  # it has ended: the inbox says why

    # -------------------------------------------------------------------- in the loop's thread

    def _run(self) -> None:
        try:
            with silence(logging.CRITICAL):
                asyncio.run(self._main())
        except BaseException as error:  # must reach the coordinator, whatever it is
            if self._loop is None:
                self._opened.put(error)
            else:
                self._inbox.put(Broken(f"the connection to the cluster has failed ({type(error).__name__}: {error})"))

    async def _main(self) -> None:
        self._stop = asyncio.Event()
        try:
            self._address, security = await self._open_source()
            try:
                self._client = await self._connect(security)
            except Exception as error:  # whatever goes wrong in Dask
                raise EngineError(
                    f"there is no Dask scheduler at {self._address} ({type(error).__name__}: {error}): look whether it "
                    "runs, and whether it is tcp:// or tls:// (then Dask's configuration must name the certificates)"
                ) from error
            self._loop = asyncio.get_event_loop()
            self._opened.put(None)
            await self._watch()
        finally:
            await self._close_all()

    async def _open_source(self) -> Tuple[str, Optional[Security]]:
        try:
            return await self._source.open()  # type: ignore[no-any-return]
        except MpstepsError:
            raise
        except Exception as error:  # whatever goes wrong in Dask
            raise EngineError(
                f"a cluster ({self._cluster.where}) cannot be started: {type(error).__name__}: {error}"
            ) from error

    async def _connect(self, security: Optional[Security]) -> Any:
        options = {} if security is None else {"security": security}
        with dask.config.set(NO_NEWS):
            client = distributed.Client(
                self._address, asynchronous=True, set_as_default=False, timeout=CONNECT_SECONDS, **options
            )
        return await client

    async def _watch(self) -> None:
        """Look for Dask workers until the end."""
        assert self._stop is not None
        silent_since: Optional[float] = time.monotonic()
        while not self._stop.is_set():
            if not await self._look_for_workers():
                return
            if self._agents:
                silent_since = None
            elif silent_since is not None and silent_since + SILENCE_SECONDS < time.monotonic():
                silent_since = None
                self._inbox.put(Note(f"{self._description()}: still waiting for a Dask worker"))
            why = self._source.check(bool(self._tasks))
            if why is not None:
                self._break(why)
                return
            try:
                await asyncio.wait_for(self._stop.wait(), LOOK_SECONDS[bool(self._seen)])
            except asyncio.TimeoutError:
                pass  # time to look again

    def _description(self) -> str:
        names = {"dask": "Dask workers on this machine", "slurm": "Slurm jobs"}
        return names.get(self._cluster.where, f"Dask scheduler {self._address}")

    async def _look_for_workers(self) -> bool:
        """Serve those that are new; False: the scheduler is gone."""
        try:
            if self._client.status != "running":
                raise CommClosedError("the connection was closed")
            found = await asyncio.wait_for(self._client.scheduler.ncores(), ALIVE_SECONDS)
        except asyncio.TimeoutError as error:
            now = time.monotonic()
            self._silent_since = now if self._silent_since is None else self._silent_since
            if self._silent_since + GONE_SECONDS > now + ALIVE_SECONDS:
                return True
            self._say_scheduler_gone(error)
            return False
        except OSError as error:
            self._say_scheduler_gone(error)
            return False
        self._silent_since = None
        for address, slots in found.items():
            if address not in self._seen:
                self._seen.add(address)
                self._last += 1
                self._start_task(self._serve(_Agent(self._last, address), int(slots)))
        self._seen.intersection_update(found)
        return True

    def _say_scheduler_gone(self, error: BaseException) -> None:
        self._break(
            f"the Dask scheduler {self._address} is gone ({type(error).__name__}): the run ends, and mpsteps resume "
            "continues it, on any engine"
        )

    def _break(self, why: str) -> None:
        if not self._broken and not self._closing:
            self._broken = True
            self._inbox.put(Broken(why))

    def _start_task(self, work: Coroutine[Any, Any, None]) -> None:
        task: asyncio.Future[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, agent: _Agent, slots: int) -> None:
        """Start an agent on a Dask worker and carry bytes until one side ends."""
        comm: Any = None
        try:
            told = await self._client.run(install, workers=[agent.address])
            agent.name = told[agent.address]["name"]
            comm = await connect(agent.address, timeout=CONNECT_SECONDS, **self._client.connection_args)
            token = uuid.uuid4().hex
            silence = SILENCE_SHARE * tcp_seconds()
            await comm.write({"op": OPERATION, "reply": False, "token": token, "silence": silence})
        except Exception as error:
            if comm is not None:
                comm.abort()
            await self._look_why(agent.address, error)
            return
        self._failed.pop(agent.address, None)
        pipe = agent.pipe = Pipe(comm)
        self._agents[agent.number] = agent
        self._inbox.put(Joined(agent.number, agent.address, slots))
        holding = self._client.submit(
            hold, token, key=f"mpsteps-{token}", workers=[agent.address], allow_other_workers=False, pure=False,
            retries=0,
        )  # fmt: skip
        drain = self._start_drain(agent)
        writing = asyncio.ensure_future(_write(agent, pipe))
        why = "its agent has ended"
        try:
            while True:
                self._inbox.put(Said(agent.number, await pipe.read()))
        except (OSError, CommClosedError) as error:
            why = f"the connection to its Dask worker was closed: {type(error).__name__}"
        finally:
            writing.cancel()
            if drain is not None:
                drain.cancel()
            comm.abort()
            holding.release()
            self._agents.pop(agent.number, None)
        if agent.dropped:
            return
        # A Dask worker that is gone may be the first sign that the scheduler is: then that is told.
        if not self._closing:
            await asyncio.sleep(NEWS_SECONDS)
        if self._closing or await self._look_for_workers():
            if self._source.left(agent.name):
                self._staying[agent.number] = agent.address
            self._inbox.put(Left(agent.number, why))

    def _start_drain(self, agent: _Agent) -> Optional[asyncio.TimerHandle]:
        seconds = self._source.seconds_until_drain()
        if seconds is None:
            return None
        return asyncio.get_event_loop().call_later(seconds, self._inbox.put, Drain(agent.number))

    async def _look_why(self, address: str, error: Exception) -> None:
        """No agent could be started: the Dask worker is gone, or it may go better the next time, or it never will."""
        named = str(error)  # Dask may have made it an Exception whose text names its class
        if isinstance(error, ImportError) or named.startswith(("ImportError", "ModuleNotFoundError")):
            why = f"mpsteps cannot be imported there ({error}): install the same version as here on all nodes"
            self._inbox.put(Unfit(address, why))
            return
        await asyncio.sleep(NEWS_SECONDS)
        if self._closing or not await self._look_for_workers() or address not in self._seen:
            return
        self._failed[address] = tries = self._failed.get(address, 0) + 1
        if tries < ATTACH_TRIES:
            self._seen.discard(address)
        else:
            self._inbox.put(Unfit(address, f"{type(error).__name__}: {error}"))
            asyncio.get_event_loop().call_later(UNFIT_SECONDS, self._seen.discard, address)

    def _again(self, number: int) -> None:
        self._seen.discard(self._staying.pop(number, ""))  # when it is looked for Dask workers next, this one is new

    def _drop(self, number: int) -> None:
        agent = self._agents.get(number)
        if agent is not None:
            agent.dropped = True
            agent.pipe.abort()

    def _post(self, number: int, data: bytes) -> None:
        agent = self._agents.get(number)
        if agent is not None and not agent.pipe.write_soon(data):
            agent.out.append(data)
            agent.more.set()

    def _scale(self, open_steps: int, busy: Sequence[int]) -> None:
        now = time.monotonic()
        for agent in self._agents.values():
            if agent.number in busy:
                agent.idle_since = 0.0
            elif not agent.idle_since:
                agent.idle_since = now
        idle = {a.name: a.idle_since for a in self._agents.values() if a.idle_since}
        self._source.scale(open_steps, idle)

    async def _close_all(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*list(self._tasks), return_exceptions=True)
        if self._client is not None:
            try:
                await asyncio.wait_for(self._client.close(), 2 * NEWS_SECONDS if self._broken else ALIVE_SECONDS)
            except (OSError, asyncio.TimeoutError):
                pass  # the scheduler is gone
        try:
            await asyncio.wait_for(self._source.close(), CLOSE_SECONDS)
        except asyncio.TimeoutError:
            self._inbox.put(Note(f"{self._description()} could not be ended in {CLOSE_SECONDS:g} s: look after them"))
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        if rest:  # connections of Dask's that are just closing; were they cancelled, each would say so
            await asyncio.wait(rest, timeout=REST_SECONDS)


async def _write(agent: _Agent, pipe: Pipe) -> None:
    """Send what is to be sent to an agent, in pieces."""
    while True:
        await agent.more.wait()
        agent.more.clear()
        data = memoryview(b"".join(agent.out))
        agent.out.clear()
        try:
            for at in range(0, len(data), PIECE):
                await pipe.write(bytes(data[at : at + PIECE]))
        except (OSError, CommClosedError):
            return  # whoever reads sees it, too
