"""Where steps are to run, as people say it: 'inline', 'processes', 'dask', 'slurm', an address, a scheduler file."""

from __future__ import annotations

import math
import os
import re
from typing import Any, Dict, NamedTuple, Optional, Union

from mpsteps.errors import UsageError

LOCAL_ENGINES = ("inline", "processes")
CLUSTER_ENGINES = ("dask", "slurm")
_ADDRESS = re.compile(r"(tcp|tls|ws|wss|ucx)://[^/\s]+:\d+/?$")
_MEMORY = re.compile(r"\d+(\.\d+)?\s*[KMGTP]?i?B?$", re.IGNORECASE)
_WALLTIME = re.compile(r"(?:(?P<d>\d+)-)?(?P<h>\d+):(?P<m>\d\d)(?::(?P<s>\d\d))?$")


class Cluster(NamedTuple):
    """Workers that Dask connects: what `engine=` takes for more than one machine.

    `where`: 'dask' (Dask workers on this machine, started for the run), 'slurm' (jobs, by dask-jobqueue's
    configuration), the address of a Dask scheduler ('tcp://host:port', 'tls://...') or the path of its scheduler file.

    `workers`: for 'dask' the number of Dask workers (default 1), for 'slurm' the most jobs at a time (default 1).
    `cores`: how many steps run at a time in each of them. The rest is for 'slurm': `memory` ('16 GB'), `partition` and
    `walltime` ('02:00:00') of each job. `interface`: the network interface that this machine is reached by ('eth0');
    for 'dask' the default is loopback. What is not given is as dask-jobqueue's configuration has it.
    """

    where: str
    workers: Optional[int] = None
    cores: Optional[int] = None
    memory: Optional[str] = None
    partition: Optional[str] = None
    walltime: Optional[str] = None
    interface: Optional[str] = None

    @property
    def starts(self) -> bool:
        """Whether the Dask workers are started for the run."""
        return self.where in CLUSTER_ENGINES

    def walltime_seconds(self) -> Optional[float]:
        """The walltime of a job; None: not given."""
        return None if self.walltime is None else seconds_of(self.walltime)

    def given(self) -> Dict[str, Any]:
        """What was given, for the record."""
        return {name: value for name, value in self._asdict().items() if value is not None}


class ChosenEngine(NamedTuple):
    """Where steps run. `name`: 'inline', 'processes', or the cluster's; `given`: the cluster as the journal tells it;
    `threads`: of the protocol."""

    name: str
    cluster: Optional[Cluster]
    given: Optional[object]
    workers: int
    threads: int


Engine = Union[str, Cluster]


def engine_of(value: Any) -> Engine:
    """`value` as the name of a local engine, or as a Cluster, checked. UsageError for anything else."""
    if isinstance(value, Cluster):
        return _checked(value)
    if not isinstance(value, str):
        raise UsageError(f"an engine is a text or a mpsteps.Cluster, not {value!r}")
    if value in LOCAL_ENGINES:
        return value
    return _checked(Cluster(value))


def _checked(cluster: Cluster) -> Cluster:
    where = cluster.where
    if not isinstance(where, str):
        raise UsageError(f"a cluster is 'dask', 'slurm', an address or a scheduler file, not {where!r}")
    if not cluster.starts and not _ADDRESS.match(where):
        if "://" in where:
            raise UsageError(f"{where!r} is no address of a Dask scheduler: expected tcp://host:port or tls://host:port")
        if not os.path.isfile(where):
            known = ", ".join((*LOCAL_ENGINES, *CLUSTER_ENGINES))
            raise UsageError(
                f"there is no engine {where!r}: choose one of {known}, the address of a Dask scheduler "
                "(tcp://host:port), or an existing scheduler file"
            )
        cluster = cluster._replace(where=os.path.abspath(where))
    for name in ("workers", "cores"):
        number = getattr(cluster, name)
        if number is not None and (type(number) is not int or number < 1):
            raise UsageError(f"{name} of a cluster must be an integer of at least 1, not {number!r}")
    if cluster.memory is not None and not _MEMORY.match(str(cluster.memory).strip()):
        raise UsageError(f"memory of a job must be a text such as '16 GB', not {cluster.memory!r}")
    if cluster.walltime is not None:
        seconds_of(cluster.walltime)
    _check_that_it_counts(cluster)
    return cluster


def _check_that_it_counts(cluster: Cluster) -> None:
    """An option that would do nothing is a mistake."""
    counts = {"slurm": ("workers", "cores", "memory", "partition", "walltime", "interface")}
    allowed = counts.get(cluster.where, ("workers", "cores", "interface") if cluster.where == "dask" else ())
    for name in cluster.given():
        if name != "where" and name not in allowed:
            whose = "is for engine 'slurm'" if name in ("memory", "partition", "walltime") else (
                "is for clusters that are started for the run ('dask', 'slurm')"
            )
            raise UsageError(f"{name} {whose}; engine {cluster.where!r} has no use for it")


def seconds_of(walltime: str) -> float:
    """Seconds of 'hours:minutes', 'hours:minutes:seconds' or 'days-hours:minutes:seconds'."""
    match = _WALLTIME.match(walltime.strip()) if isinstance(walltime, str) else None
    if match is None:
        raise UsageError(f"walltime must be a text such as '02:00:00' (hours:minutes:seconds), not {walltime!r}")
    d, h, m, s = (int(match.group(g) or 0) for g in "dhms")
    seconds = ((d * 24 + h) * 60 + m) * 60 + s
    if not seconds:
        raise UsageError("walltime must be longer than 0")
    return float(seconds)


def shares(cluster: Cluster, threads: int) -> Cluster:
    """A cluster on this machine with its numbers filled in: `threads` steps at a time in all, unless it says more."""
    workers = cluster.workers or 1
    return cluster._replace(workers=workers, cores=cluster.cores or math.ceil(threads / workers))
