"""Dask workers on this machine, started for a run and ended with it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any, Dict, List, NoReturn, Optional, Tuple

from mpsteps._spawn import _import_path
from mpsteps.engines.choice import Cluster
from mpsteps.engines.dask.library import NO_PAGES, Security, dask, distributed, new_security

NODE_SECONDS = 120.0
"""When there has been no Dask worker for so long, none will come."""
END_SECONDS = 5.0
"""A Dask worker that was told to end is killed after this."""


class LocalNodes:
    """A scheduler in this process, and Dask workers (each with its nanny) as processes of their own."""

    def __init__(self, cluster: Cluster, folder: str) -> None:
        self._cluster = cluster
        self._folder = folder
        self._scheduler: Any = None
        self._processes: List[subprocess.Popen[bytes]] = []
        self._folders: List[str] = []  # of the processes; one that is killed does not remove its own
        self._lonely_since = time.monotonic()

    async def open(self) -> Tuple[str, Security]:
        """Address and security of the scheduler."""
        security = new_security()
        where = {"interface": self._cluster.interface} if self._cluster.interface else {"host": "127.0.0.1"}
        with dask.config.set({**NO_PAGES, **_scratch(self._folder)}):
            self._scheduler = await distributed.Scheduler(
                protocol="tls", security=security, dashboard=False, dashboard_address="127.0.0.1:0", **where
            )
        assert self._cluster.cores is not None
        config = {
            "scheduler": self._scheduler.address, "nthreads": self._cluster.cores, **where,
            "security": {k: v for k, v in security.get_tls_config_for_role("worker").items() if isinstance(v, str)},
        }  # fmt: skip
        for number in range(self._cluster.workers or 1):
            self._folders.append(tempfile.mkdtemp(prefix="mpsteps-dask-"))
            self._processes.append(_start_node({**config, "name": f"node-{number + 1}", "folder": self._folders[-1]}))
        return self._scheduler.address, security

    def check(self, any_used: bool) -> Optional[str]:
        """Why there will be no more Dask workers; None: all is well."""
        now = time.monotonic()
        if any_used:
            self._lonely_since = now
        elif self._lonely_since + NODE_SECONDS < now:
            return f"there has been no Dask worker on this machine for {NODE_SECONDS:g} s"
        ended = [p.poll() for p in self._processes]
        if self._processes and all(code is not None for code in ended):
            return f"all Dask workers on this machine have ended (exit codes {ended}); their messages are above"
        return None

    def scale(self, open_steps: int, idle: Dict[str, float]) -> None:
        """There are as many as were asked for."""

    def left(self, name: str) -> bool:
        """Whether a node may get another agent. If the Dask worker has died, its nanny brings up another one."""
        return True

    def seconds_until_drain(self) -> Optional[float]:
        """They can stay as long as they like."""
        return None

    async def close(self) -> None:
        """End the processes, then the scheduler."""
        for process in self._processes:
            _end_node(process)
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)
        if self._scheduler is not None:
            await self._scheduler.close()


def _scratch(folder: str) -> Dict[str, str]:
    """Where a scheduler makes a directory that it has no use for."""
    return {"temporary-directory": folder} if folder else {}


def _start_node(config: Dict[str, Any]) -> subprocess.Popen[bytes]:
    code = f"import sys; sys.path[:] = {_import_path()}; from mpsteps.engines.dask.local import node_main; node_main()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, start_new_session=True)
    assert process.stdin is not None
    process.stdin.write(json.dumps(config).encode() + b"\n")
    process.stdin.flush()
    return process


def _end_node(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its session is its own, and it has not been reaped
        process.wait()


def node_main() -> NoReturn:
    """A process with a nanny and its Dask worker. It ends, with all that is in its session, when standard input does:
    that is, at the latest with the coordinator."""
    config = json.loads(sys.stdin.buffer.readline())
    folder = config.pop("folder")

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
    dask.config.set({"distributed.nanny.pre-spawn-environ": {}, **NO_PAGES})

    async def serve() -> None:
        nanny = await distributed.Nanny(
            scheduler, security=security, memory_limit=0, local_directory=folder, dashboard=False,
            dashboard_address="127.0.0.1:0", silence_logs=logging.ERROR, config=NO_PAGES, **config,
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
