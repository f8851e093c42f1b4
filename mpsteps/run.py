"""`run`: claims the run directory, begins to start the workers, and hands a protocol to a `Session`.

The process that workers are forked from needs as long to come up as this one needs to load what a session is made of.
So it is started first, and this module imports little.
"""

from __future__ import annotations

import time
from typing import Optional, Sequence, Union

from mpsteps._parent import parent_of_workers
from mpsteps._workplace import Workplace
from mpsteps.engines.choice import ChosenEngine, Cluster, engine_of, shares
from mpsteps.errors import MpstepsError, UsageError, ValidationError
from mpsteps.listeners import Listener, guarded
from mpsteps.protocol import Protocol
from mpsteps.report import RunReport


def run(
    protocol: Protocol,
    engine: Union[str, Cluster, None] = None,
    listeners: Sequence[Listener] = (),
    keep_going: Optional[bool] = None,
    durability: str = "process",
    in_doubt: str = "rerun",
) -> RunReport:
    """Run a protocol; returns its report.

    `engine`: 'inline' or 'processes'; 'dask', 'slurm', the address of a Dask scheduler, the path of its scheduler file,
    or a `Cluster`, for workers beyond this machine; None: by the protocol's stepsExecutionMode. `keep_going` overrides
    the protocol's `keepGoing`. `durability`: 'process' (the journal survives any kill) or 'power' (power cuts, too).
    `in_doubt`: 'rerun' or 'fail', for steps that a crash of an earlier session cut in the middle. `listeners` are told
    what happens, see `mpsteps.Listener`.

    Raises UsageError (with its children) for what is wrong before a step starts, EngineError when workers cannot be
    had, JournalError when the disk is full; the protocol is failed then. KeyboardInterrupt after Ctrl-C.
    """
    if protocol._sink is not None:
        raise UsageError(f"{type(protocol).__name__} is running already")
    try:
        engine = _check_options(engine, in_doubt, durability)
        if keep_going is not None:
            protocol.keepGoing = keep_going
        messages = protocol.validate()
        if messages:
            raise ValidationError(messages)
        place = Workplace(protocol)
    except MpstepsError as error:
        protocol.setFailed(str(error))
        raise
    session = None
    try:
        started = time.time()
        chosen = _chosen(protocol, engine)
        workers = chosen.workers if chosen.name == "processes" else 0
        with parent_of_workers(place.directory, workers, started) as parent:
            from mpsteps._session import Session

            session = Session(
                protocol, place, chosen, guarded(listeners, protocol.warning), durability, in_doubt, started, parent
            )
            return session.run()
    except KeyboardInterrupt:
        if protocol.isRunning():
            protocol.setAborted()
        raise
    except BaseException as error:
        protocol.setFailed(_sentence(error, session.doing if session else ""))
        raise
    finally:
        place.leave()


def _check_options(
    engine: Union[str, Cluster, None], in_doubt: str, durability: str
) -> Union[str, Cluster, None]:  # fmt: skip
    if engine is not None:
        engine = engine_of(engine)
    if in_doubt not in ("rerun", "fail"):
        raise UsageError(f"in_doubt must be 'rerun' or 'fail', not {in_doubt!r}")
    if durability not in ("process", "power"):
        raise UsageError(f"durability must be 'process' or 'power', not {durability!r}")
    return engine


def _chosen(protocol: Protocol, engine: Union[str, Cluster, None]) -> ChosenEngine:
    threads = protocol.getScipionThreads()
    if isinstance(engine, Cluster):
        cluster = shares(engine, threads) if engine.where == "dask" else engine
        workers = (cluster.workers or 1) * (cluster.cores or threads)
        return ChosenEngine(engine.where, cluster, engine.given(), workers, threads)
    name = engine or ("inline" if protocol.modeSerial() else "processes")
    if name == "inline":
        threads = 1
    return ChosenEngine(name, None, None, threads, threads)


def _sentence(error: BaseException, doing: str) -> str:
    """Why a run did not come to its end: our own messages say it themselves, others need their type and place."""
    if isinstance(error, MpstepsError):
        return str(error)
    return f"{doing}{type(error).__name__}: {error}"
