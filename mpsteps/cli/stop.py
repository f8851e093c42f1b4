"""`mpsteps stop`: end a run of another process on this machine."""

from __future__ import annotations

import signal
import socket
import time
from typing import Any

import psutil

from mpsteps._rundir import RunDirectory
from mpsteps.cli import output
from mpsteps.cli.history import coordinator_lives, last_session, open_run
from mpsteps.errors import UsageError

_INTERVAL = 0.05  # seconds between two looks


def stop_command(args: Any) -> int:
    """`mpsteps stop RUN`. Exit code 0: it has ended, also if it had before."""
    directory, history = open_run(args.run)
    session = last_session(directory, history)
    if history.status != "running" or not coordinator_lives(session):
        ended = "it was killed" if history.status == "running" else f"it is {history.status}"
        output.note(f"mpsteps stop: {directory.path} does not run any more: {ended}")
        return 0
    coordinator = _coordinator(directory, session)
    number = signal.SIGTERM if args.now else signal.SIGINT
    try:
        coordinator.send_signal(number)
        how = "its running steps are ended" if args.now else "its running steps may come to their end (--now ends them)"
        output.note(f"mpsteps stop: pid {coordinator.pid} is told to stop, {how}")
        if not args.no_wait:
            # Not `wait`: to that, a process is there until whoever has started it looks after it.
            while coordinator.is_running() and coordinator.status() != psutil.STATUS_ZOMBIE:
                time.sleep(_INTERVAL)
    except psutil.NoSuchProcess:
        pass  # it has ended by itself in this moment
    except psutil.AccessDenied:
        owner = coordinator.username()
        raise UsageError(f"pid {coordinator.pid} belongs to {owner}: it is not yours to stop") from None
    except KeyboardInterrupt:
        output.note("mpsteps stop: the run goes on ending")
        return 130
    if not args.no_wait:
        output.put(f"{directory.path}: {open_run(args.run)[1].status}")
    return 0


def _coordinator(directory: RunDirectory, session: Any) -> psutil.Process:
    """The process that runs it. A pid in a file may be another process's by now: it must hold the run's lock, too."""
    host = session.get("host")
    if host != socket.gethostname():
        raise UsageError(f"{directory.path!r} runs on host {host!r}, as pid {session.get('pid')}: stop it there")
    try:
        process = psutil.Process(int(session["pid"]))
    except (KeyError, TypeError, ValueError, psutil.NoSuchProcess):
        raise UsageError(f"the process that runs {directory.path!r} is not there") from None
    if directory.holds_lock(process.pid) is False:
        raise UsageError(
            f"{directory.path!r} names pid {process.pid}, which does not run it: it was moved or copied while it ran?"
        )
    return process
