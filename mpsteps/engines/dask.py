"""Dask as allocator and message bus: whatever it brings up gets an agent of ours, and bytes to and from it are carried.

No step is ever a Dask task. So there is nothing that Dask could retry, steal, recompute or run twice, and its
scheduler, which takes a few hundred microseconds for each task, is not in the way: agents are spoken to over direct
connections from this process to the Dask workers, with Dask's own encryption. (docs/decisions/0029)

Everything of `distributed` and `dask_jobqueue` is imported here, in the coordinator's process and in Dask workers. In
the coordinator it runs in a thread of its own with its own event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import warnings
from typing import Any, Callable, Coroutine, Dict, Iterator, List, NoReturn, Optional, Sequence, Set, Tuple

from mpsteps._spawn import _import_path
from mpsteps.engines.choice import Cluster, seconds_of
from mpsteps.engines.frames import PIECE
from mpsteps.engines.remote import Broken, Drain, Event, Joined, Left, Note, Said
from mpsteps.errors import EngineError, MpstepsError, UsageError

try:
    import dask
    import distributed
    from distributed.comm import CommClosedError, connect
    from distributed.core import Status
    from distributed.security import Security
    from distributed.utils import get_ip
    from tornado.iostream import StreamClosedError
except ImportError as error:
    raise UsageError(
        f"clusters need Dask, which is not installed here ({error}): pip install \"mpsteps[dask]\""
    ) from error

CONNECT_SECONDS = 10.0
"""A scheduler that does not answer in this time is not there."""
ALIVE_SECONDS = 5.0
"""... and one that is spoken to already, in this."""
NEWS_SECONDS = 0.1
"""... and the connection to one that has died is closed after this at the latest, on any network that is up."""
LOOK_SECONDS = (0.05, 1.0)
"""How often it is looked for new Dask workers: while there is none yet, and later."""
NODE_SECONDS = 120.0
"""A Dask worker on this machine that is not there by then will not come."""
SILENCE_SECONDS = 15.0
"""When there has been no Dask worker for so long, the user is told what is waited for."""
AGENT_SECONDS = 5.0
"""An agent whose connection is closed may take so long to end its workers before it is killed."""
STATUS_SECONDS = 0.5
"""How often an agent's Dask worker looks whether it is being closed."""
LONELY_SECONDS = 600.0
"""A cluster of somebody else's that has had no Dask worker for so long will not get one."""
IDLE_SECONDS = 60.0
"""A job without steps is given back after this, if fewer jobs are wanted."""
DRAIN_SHARE, DRAIN_SECONDS = 0.1, 300.0
"""A job is given no new steps in this last share of its walltime, which is at most so many seconds."""
_OPERATION = "mpsteps_attach"

logger = logging.getLogger("mpsteps.engine")

# ------------------------------------------------------------------------------------------------ in the Dask worker


class _Pipe:
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
    pipe = _Pipe(comm)
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


async def _carry_in(pipe: _Pipe, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(await pipe.read())
        await writer.drain()


async def _carry_out(reader: asyncio.StreamReader, pipe: _Pipe) -> None:
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

    dask_worker.handlers[_OPERATION] = attach_here
    return {"name": str(dask_worker.name)}


# --------------------------------------------------------------------------------- Dask workers on this machine


class _LocalNodes:
    """A scheduler in this process, and Dask workers (each with its nanny) as processes of their own."""

    def __init__(self, cluster: Cluster, folder: str) -> None:
        self._cluster = cluster
        self._folder = folder
        self._scheduler: Any = None
        self._processes: List[subprocess.Popen[bytes]] = []
        self._started = time.monotonic()

    async def open(self) -> Tuple[str, Security]:
        """Address and security of the scheduler."""
        security = _new_security()
        where = {"interface": self._cluster.interface} if self._cluster.interface else {"host": "127.0.0.1"}
        with dask.config.set({**_NO_PAGES, **_scratch(self._folder)}):
            self._scheduler = await distributed.Scheduler(
                protocol="tls", security=security, dashboard=False, dashboard_address="127.0.0.1:0", **where
            )
        assert self._cluster.cores is not None
        config = {
            "scheduler": self._scheduler.address, "nthreads": self._cluster.cores, **where,
            "security": {k: v for k, v in security.get_tls_config_for_role("worker").items() if isinstance(v, str)},
        }  # fmt: skip
        for number in range(self._cluster.workers or 1):
            self._processes.append(_start_node({**config, "name": f"node-{number + 1}"}))
        return self._scheduler.address, security

    def check(self, any_seen: bool) -> Optional[str]:
        """Why there will be no more Dask workers; None: all is well."""
        if not any_seen and self._started + NODE_SECONDS < time.monotonic():
            return f"no Dask worker has come up on this machine in {NODE_SECONDS:g} s"
        ended = [p.poll() for p in self._processes]
        if self._processes and all(code is not None for code in ended):
            return f"all Dask workers on this machine have ended (exit codes {ended}); their messages are above"
        return None

    def scale(self, open_steps: int, idle: Dict[str, float]) -> None:
        """There are as many as were asked for."""

    def left(self, name: str) -> None:
        """Its nanny brings it up again, if it has died."""

    def seconds_until_drain(self) -> Optional[float]:
        """They can stay as long as they like."""
        return None

    async def close(self) -> None:
        """End the processes, then the scheduler."""
        for process in self._processes:
            _end_node(process)
        if self._scheduler is not None:
            await self._scheduler.close()


_NO_PAGES: Dict[str, Any] = {"distributed.scheduler.http.routes": [], "distributed.worker.http.routes": []}
"""Pages in HTTP would be there for everybody who can connect."""


def _scratch(folder: str) -> Dict[str, str]:
    """Where a scheduler makes a directory that it has no use for."""
    return {"temporary-directory": folder} if folder else {}


def _new_security() -> Security:
    """Certificates for this run only, which are nowhere but in the memory of its processes."""
    try:
        return Security.temporary()
    except ImportError as error:
        raise UsageError(
            f"the connections of a cluster are encrypted, which needs the package cryptography ({error}): pip install "
            "\"mpsteps[dask]\""
        ) from error


def _start_node(config: Dict[str, Any]) -> subprocess.Popen[bytes]:
    code = f"import sys; sys.path[:] = {_import_path()}; from mpsteps.engines.dask import node_main; node_main()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, start_new_session=True)
    assert process.stdin is not None
    process.stdin.write(json.dumps(config).encode() + b"\n")
    process.stdin.flush()
    return process


def _end_node(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(AGENT_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its session is its own, and it has not been reaped
        process.wait()


def node_main() -> NoReturn:
    """A process with a nanny and its Dask worker. It ends, with all that is in its session, when standard input does:
    that is, at the latest with the coordinator."""
    config = json.loads(sys.stdin.buffer.readline())
    folder = tempfile.mkdtemp(prefix="mpsteps-dask-")

    def end_with_parent() -> None:
        while sys.stdin.buffer.read(1024):
            pass
        shutil.rmtree(folder, ignore_errors=True)
        os.killpg(0, signal.SIGKILL)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is for the coordinator
    threading.Thread(target=end_with_parent, daemon=True).start()
    security = Security(require_encryption=True, **_for_worker(config.pop("security")))
    scheduler = config.pop("scheduler")
    # Steps run in other processes: how many threads their libraries start is not Dask's business here.
    dask.config.set({"distributed.nanny.pre-spawn-environ": {}, **_NO_PAGES})

    async def serve() -> None:
        nanny = await distributed.Nanny(
            scheduler, security=security, memory_limit=0, local_directory=folder, dashboard=False,
            dashboard_address="127.0.0.1:0", silence_logs=logging.ERROR, config=_NO_PAGES, **config,
        )  # fmt: skip
        await nanny.finished()

    try:
        asyncio.run(serve())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        sys.stderr.flush()
        os._exit(0)


def _for_worker(tls: Dict[str, str]) -> Dict[str, str]:
    return {"tls_ca_file": tls["ca_file"], "tls_worker_cert": tls["cert"], "tls_worker_key": tls["key"]}


# ------------------------------------------------------------------------------------------------ clusters of others


class _Existing:
    """A cluster that somebody else has started."""

    def __init__(self, cluster: Cluster) -> None:
        self._where = cluster.where
        self._lonely_since = time.monotonic()

    async def open(self) -> Tuple[str, Optional[Security]]:
        """Its scheduler's address; certificates are those of Dask's own configuration."""
        if "://" in self._where:
            return self._where, None
        try:
            with open(self._where) as f:
                return str(json.load(f)["address"]), None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{self._where!r} is no scheduler file of Dask ({type(error).__name__}: {error})"
            ) from error

    def check(self, any_seen: bool) -> Optional[str]:
        """Why there will be no more Dask workers; None: nobody knows."""
        now = time.monotonic()
        if any_seen:
            self._lonely_since = now
        elif self._lonely_since + LONELY_SECONDS < now:
            return f"the cluster {self._where} has had no Dask worker for {LONELY_SECONDS / 60:g} minutes"
        return None

    def scale(self, open_steps: int, idle: Dict[str, float]) -> None:
        """It is not ours to scale."""

    def left(self, name: str) -> None:
        """Nor to bring up again."""

    def seconds_until_drain(self) -> Optional[float]:
        """Not known."""
        return None

    async def close(self) -> None:
        """It stays."""


class _SlurmJobs:
    """Jobs, each with one Dask worker, as dask-jobqueue submits them."""

    def __init__(self, cluster: Cluster, folder: str, logs: str) -> None:
        self._cluster = cluster
        self._folder = folder
        self._logs = logs
        self._jobs: Any = None
        self._most = cluster.workers or 1
        self._certificates = ""
        self._tasks: Set[asyncio.Future[Any]] = set()
        self._asked = 0

    async def open(self) -> Tuple[str, Security]:
        """Address and security of the scheduler, which is in this process; the first job is submitted."""
        make = _import_slurm_cluster()
        if shutil.which("sbatch") is None:
            raise UsageError("engine 'slurm': there is no sbatch on this machine; run it where jobs can be submitted")
        self._check()
        security = self._security_in_files()
        cluster = self._cluster
        given = {
            "cores": cluster.cores, "memory": cluster.memory, "queue": cluster.partition, "walltime": cluster.walltime,
            "interface": cluster.interface,
        }  # fmt: skip
        if self._logs:
            given["log_directory"] = self._logs
        # Not on all interfaces: on the one that is chosen, or that of the default route.
        host = {} if cluster.interface or self._configured("interface") else {"host": get_ip()}
        options = {name: value for name, value in given.items() if value is not None}
        try:
            with warnings.catch_warnings(), dask.config.set(_NO_PAGES):
                warnings.simplefilter("ignore")
                self._jobs = await make(
                    asynchronous=True, n_workers=0, processes=1, security=security, protocol="tls://",
                    python=sys.executable, worker_extra_args=["--no-dashboard", "--dashboard-address", "127.0.0.1:0"],
                    scheduler_options={"dashboard": False, "dashboard_address": "127.0.0.1:0", **host}, **options,
                )  # fmt: skip
        except (ValueError, TypeError) as error:
            raise UsageError(f"dask-jobqueue cannot describe a job: {_last_line(error)}") from error
        self._asked = 1
        try:
            await self._submit()
        except (RuntimeError, OSError, ValueError) as error:
            raise EngineError(f"Slurm does not take the job: {_last_line(error)}") from error
        return self._jobs.scheduler_address, security

    def _check(self) -> None:
        for name in ("cores", "memory"):
            if getattr(self._cluster, name) is None and self._configured(name) is None:
                option = "--cores" if name == "cores" else "--job-memory"
                raise UsageError(
                    f"how much {name} a job has is not known: give {option} ({name}= of a Cluster), or set it in "
                    "dask-jobqueue's configuration (~/.config/dask/jobqueue.yaml, section jobqueue: slurm:)"
                )

    def _security_in_files(self) -> Security:
        """Certificates for this run, where jobs can read them and nobody else."""
        folder = self._folder or self._configured("shared-temp-directory") or os.getcwd()
        self._certificates = tempfile.mkdtemp(prefix=".mpsteps-certificates-", dir=os.path.expanduser(folder))
        made = _new_security()
        files: Dict[str, str] = {}
        for role in ("scheduler", "worker", "client"):
            for name, text in made.get_tls_config_for_role(role).items():
                if isinstance(text, str) and "\n" in text:
                    key = "tls_ca_file" if name == "ca_file" else f"tls_{role}_{name}"
                    files[key] = os.path.join(self._certificates, key)
                    with open(os.open(files[key], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as f:
                        f.write(text)
        return Security(require_encryption=True, **files)

    @staticmethod
    def _configured(name: str) -> Any:
        """What dask-jobqueue's configuration says; None: nothing."""
        return dask.config.get(f"jobqueue.slurm.{name}", None)

    @property
    def cores(self) -> int:
        """Steps that one job runs at a time."""
        return int(self._cluster.cores or self._configured("cores") or 1)

    def check(self, any_seen: bool) -> Optional[str]:
        """Slurm's queue may be long."""
        return None

    def scale(self, open_steps: int, idle: Dict[str, float]) -> None:
        """As many jobs as have something to do, up to the most; those that have been idle for long are given back."""
        wanted = min(self._most, max(1, -(-open_steps // self.cores)))
        if wanted > self._asked:
            self._asked = wanted
            self._start_task(self._submit_more())
        elif wanted < self._asked:
            now = time.monotonic()
            names = [name for name, since in idle.items() if since + IDLE_SECONDS <= now][: self._asked - wanted]
            if names:
                self._asked -= len(names)
                self._start_task(self._give_back(names))

    def left(self, name: str) -> None:
        """The job without its agent is of no use: if there is work, another one is asked for."""
        if name in self._jobs.workers:
            self._asked -= 1
            self._start_task(self._give_back([name]))

    def _start_task(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _submit(self) -> None:
        self._jobs.scale(self._asked)
        await self._jobs

    async def _submit_more(self) -> None:
        try:
            await self._submit()
        except (RuntimeError, OSError, ValueError) as error:
            logger.warning("Slurm does not take another job: %s", _last_line(error))

    async def _give_back(self, names: List[str]) -> None:
        await self._jobs.scale_down(names)

    def seconds_until_drain(self) -> Optional[float]:
        """From when a job has started."""
        text = self._cluster.walltime or self._configured("walltime")
        if not text:
            return None
        seconds = seconds_of(str(text))
        return seconds - min(DRAIN_SHARE * seconds, DRAIN_SECONDS)

    async def close(self) -> None:
        """Cancel the jobs, end the scheduler."""
        for task in self._tasks:
            task.cancel()
        if self._jobs is not None:
            for job in self._jobs.workers.values():
                job.status = Status.closed  # its `close`, which is called now, forgets to say so, and Dask insists
            await self._jobs.close()
        if self._certificates:
            shutil.rmtree(self._certificates, ignore_errors=True)


def _import_slurm_cluster() -> Any:
    """dask-jobqueue takes SIGINT for itself when it is imported, which is no business of its, and which only the main
    thread may do."""
    set_handler = signal.signal
    signal.signal = lambda *_: None
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError as error:
        raise UsageError(f"engine 'slurm' needs dask-jobqueue ({error}): pip install \"mpsteps[slurm]\"") from error
    finally:
        signal.signal = set_handler
    return SLURMCluster


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


# ------------------------------------------------------------------------------------------------- the coordinator


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


class DaskBus:
    """A `remote.Bus` over Dask. Both on a shared file system: `folder` for what jobs must read (certificates), `logs`
    for what they write; '' leaves it to dask-jobqueue's configuration."""

    def __init__(self, cluster: Cluster, folder: str = "", logs: str = "") -> None:
        self._cluster = cluster
        self._source: Any
        if cluster.where == "dask":
            self._source = _LocalNodes(cluster, folder)
        elif cluster.where == "slurm":
            self._source = _SlurmJobs(cluster, folder, logs)
        else:
            self._source = _Existing(cluster)
        self._inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="mpsteps-dask", daemon=True)
        self._opened: queue.SimpleQueue[Optional[BaseException]] = queue.SimpleQueue()
        self._loop: Optional[asyncio.AbstractEventLoop] = None
        self._stop: Optional[asyncio.Event] = None
        self._client: Any = None
        self._address = ""
        self._agents: Dict[int, _Agent] = {}
        self._seen: Set[str] = set()
        self._tasks: Set[asyncio.Future[None]] = set()
        self._last = 0
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
            with _silence(logging.CRITICAL):
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
            except (OSError, ValueError, TypeError, asyncio.TimeoutError) as error:
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
        return await distributed.Client(
            self._address, asynchronous=True, set_as_default=False, timeout=CONNECT_SECONDS, **options
        )

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
            why = self._source.check(bool(self._seen))
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
        except (OSError, asyncio.TimeoutError) as error:
            self._say_scheduler_gone(error)
            return False
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
            await comm.write({"op": _OPERATION, "reply": False, "token": token})
        except Exception as error:
            if comm is not None:
                comm.abort()
            self._say_unfit(agent.address, error)
            return
        pipe = agent.pipe = _Pipe(comm)
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
        # A Dask worker that is gone may be the first sign that the scheduler is: then that is told.
        if not self._closing:
            await asyncio.sleep(NEWS_SECONDS)
        if self._closing or await self._look_for_workers():
            self._inbox.put(Left(agent.number, why))
            self._source.left(agent.name)

    def _start_drain(self, agent: _Agent) -> Optional[asyncio.TimerHandle]:
        seconds = self._source.seconds_until_drain()
        if seconds is None:
            return None
        return asyncio.get_event_loop().call_later(seconds, self._inbox.put, Drain(agent.number))

    def _say_unfit(self, address: str, error: Exception) -> None:
        if self._closing:
            return
        if isinstance(error, ImportError):
            reason = f"mpsteps cannot be imported there ({error}): install the same version as here on all nodes"
        else:
            reason = f"{type(error).__name__}: {error}"
        self._inbox.put(Note(f"Dask worker {address} cannot be used: {reason}"))

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
        await self._source.close()


@contextlib.contextmanager
def _silence(level: int) -> Iterator[None]:
    """Dask tells of each of its connections on standard error, in the middle of our progress, and of each that ends as
    of an error. What a user should know of them is told by us."""
    before: List[Tuple[Any, int]] = [(h, h.level) for h in logging.getLogger("distributed").handlers]
    callbacks = logging.getLogger("tornado.application")
    before.append((callbacks, callbacks.level))
    for handler, old in before:
        handler.setLevel(max(level, old))
    try:
        yield
    finally:
        for handler, old in before:
            handler.setLevel(old)


async def _write(agent: _Agent, pipe: _Pipe) -> None:
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
