"""Jobs of Slurm with Dask workers in them, submitted by dask-jobqueue."""

from __future__ import annotations

import asyncio
import glob
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
import warnings
from typing import Any, Coroutine, Dict, List, Optional, Set, Tuple

from mpsteps.engines.choice import Cluster, seconds_of
from mpsteps.engines.dask.job_watch import JobWatch
from mpsteps.engines.dask.library import NO_PAGES, Security, Status, dask, get_ip, new_security
from mpsteps.errors import EngineError, UsageError

SUBMIT_SECONDS = 10.0
"""A submission that is under way at the end may take so long."""
REMOVE_SECONDS = 2.0
"""The folder that jobs wrote to is removed in this time, or stays."""
QUEUE_SECONDS = 5.0
"""How often it is looked whether jobs whose Dask worker is not there yet are still in Slurm's queue."""
JOB_TRIES = 3
"""When so many in a row have ended before their Dask worker was there, no others are asked for."""
IDLE_SECONDS = 60.0
"""A job without steps is given back after this, if fewer jobs are wanted."""
DRAIN_SHARE, DRAIN_SECONDS = 0.1, 300.0
"""A job is given no new steps in this last share of its walltime, which is at most so many seconds."""

logger = logging.getLogger("mpsteps.engine")


class SlurmJobs:
    """Jobs, each with one Dask worker, as dask-jobqueue submits them."""

    def __init__(self, cluster: Cluster, folder: str, logs: str) -> None:
        self._cluster = cluster
        self._folder = folder
        self._logs = logs
        self._jobs: Any = None
        self._most = cluster.workers or 1
        self._private = ""  # certificates; and what jobs write, if nobody has said where that belongs
        self._watch = JobWatch()
        self._look_at = 0.0
        self._no_more: Optional[str] = None
        self._tasks: Set[asyncio.Future[Any]] = set()
        self._asked = 0
        self._left: Set[str] = set()  # Dask workers whose jobs were given back
        self._closing = False

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
        if not self._logs:  # a pool has none: not into the current directory, where Slurm would put it
            self._logs = self._configured("log-directory") or self._private
        given["log_directory"] = self._logs
        # Not on all interfaces: on the one that is chosen, or that of the default route.
        host = {} if cluster.interface or self._configured("interface") else {"host": get_ip()}
        options = {name: value for name, value in given.items() if value is not None}
        try:
            with warnings.catch_warnings(), dask.config.set(NO_PAGES):
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
        self._private = tempfile.mkdtemp(prefix=".mpsteps-slurm-", dir=os.path.expanduser(folder))
        made = new_security()
        files: Dict[str, str] = {}
        for role in ("scheduler", "worker", "client"):
            for name, text in made.get_tls_config_for_role(role).items():
                if isinstance(text, str) and "\n" in text:
                    key = "tls_ca_file" if name == "ca_file" else f"tls_{role}_{name}"
                    files[key] = os.path.join(self._private, key)
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

    def check(self, any_used: bool) -> Optional[str]:
        """Slurm's queue may be long; but jobs that end before their Dask worker is there will go on doing so."""
        now = time.monotonic()
        if self._look_at <= now and not self._closing:
            self._look_at = now + QUEUE_SECONDS
            self._start_task(self._look_for_jobs())
        return None if any_used else self._no_more

    async def _look_for_jobs(self) -> None:
        """Give up those that have ended, which dask-jobqueue takes for jobs that are still to come."""
        come = {str(worker.name) for worker in self._jobs.scheduler.workers.values()}
        ids = {name: str(job.job_id) for name, job in self._jobs.workers.items() if getattr(job, "job_id", None)}
        for name in await self._watch.look(ids, come):
            if name not in self._jobs.workers:
                continue
            said = self._last_words(ids[name])
            logger.warning("job %s has ended before its Dask worker was there%s", ids[name], said)
            self._give_back([name])
            if self._watch.fruitless >= JOB_TRIES:
                self._most = max(1, self._asked)
                self._no_more = (
                    f"{self._watch.fruitless} jobs of Slurm in a row have ended before their Dask worker was there, "
                    f"the last of them job {ids[name]}{said}"
                )

    def _last_words(self, job: str) -> str:
        for path in sorted(glob.glob(os.path.join(glob.escape(os.path.expanduser(self._logs)), f"*-{job}.*"))):
            with open(path, errors="replace") as f:
                lines = [line.strip() for line in f if line.strip()]
            if lines:
                return f": {lines[-1]!r}" + ("" if path.startswith(self._private) else f" (in {path})")
        return ""

    def scale(self, open_steps: int, idle: Dict[str, float]) -> None:
        """As many jobs as have something to do, up to the most; those that have been idle for long are given back."""
        wanted = min(self._most, max(1, -(-open_steps // self.cores)))
        if wanted > self._asked:
            self._asked = wanted
            self._start_task(self._submit_more())
        elif wanted < self._asked:
            now = time.monotonic()
            names = [name for name, since in idle.items() if since + IDLE_SECONDS <= now and name not in self._left]
            self._give_back(names[: self._asked - wanted])

    def left(self, name: str) -> bool:
        """Whether a node may get another agent. No: its job is given back, and if there is work, another is asked for.
        """
        if name in self._jobs.workers:
            self._give_back([name])
        return False

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

    def _give_back(self, names: List[str]) -> None:
        """Cancel the jobs of these Dask workers. A job may be left for several reasons at once, and counts once: were
        fewer asked for than there are, dask-jobqueue would cancel one that is at work."""
        new = [name for name in names if name not in self._left]
        self._left.update(new)
        self._asked -= len(new)
        if new:
            self._start_task(self._cancel(new))

    async def _cancel(self, names: List[str]) -> None:
        try:
            await self._jobs.scale_down(names)
        except (RuntimeError, OSError, ValueError) as error:
            logger.warning("Slurm does not cancel jobs: %s", _last_line(error))

    def seconds_until_drain(self) -> Optional[float]:
        """From when a job has started."""
        text = self._cluster.walltime or self._configured("walltime")
        if not text:
            return None
        seconds = seconds_of(str(text))
        return seconds - min(DRAIN_SHARE * seconds, DRAIN_SECONDS)

    async def close(self) -> None:
        """Cancel the jobs, end the scheduler."""
        self._closing = True
        if self._tasks:  # a submission that is cut in the middle would leave a job that nobody knows
            await asyncio.wait(set(self._tasks), timeout=SUBMIT_SECONDS)
        if self._jobs is not None:
            for job in {*self._jobs.workers.values(), *getattr(self._jobs, "_created", ())}:
                job.status = Status.closed  # its `close`, which is called now, forgets to say so, and Dask insists
            await self._jobs.close()
        if self._private:
            await _remove(self._private)


async def _remove(folder: str) -> None:
    """A job that is just ending may still write there."""
    end = time.monotonic() + REMOVE_SECONDS
    while os.path.exists(folder):
        shutil.rmtree(folder, ignore_errors=True)
        if time.monotonic() > end:
            return
        await asyncio.sleep(0.05)


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
