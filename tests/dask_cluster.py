"""Dask clusters for tests: a scheduler and workers as processes of their own, as somebody would start them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from engine_steps import SECONDS


class DaskCluster:
    """A scheduler and workers without nannies (so that a killed one stays away), in `folder`. `host`: the address of
    this machine that they are on; `environment`: what is set for them all."""

    def __init__(
        self, folder: Path, *options: str, host: str = "127.0.0.1", environment: Optional[Dict[str, str]] = None
    ) -> None:
        self.folder = folder
        self.file = folder / "scheduler.json"
        self.host = host
        self.environment = environment or {}
        self.workers: List[subprocess.Popen[bytes]] = []
        self._added = 0
        self.scheduler = self._start(
            "scheduler", "--host", host, "--port", "0", "--scheduler-file", str(self.file), "--no-dashboard",
            "--dashboard-address", "127.0.0.1:0", *options,
        )  # fmt: skip
        end = time.monotonic() + SECONDS
        while not self._address():
            assert time.monotonic() < end, (folder / "scheduler.log").read_text()
            assert self.scheduler.poll() is None, (folder / "scheduler.log").read_text()
            time.sleep(0.02)
        self.address: str = self._address() or ""

    def _address(self) -> Optional[str]:
        try:
            return str(json.loads(self.file.read_text())["address"])
        except (OSError, ValueError):
            return None  # not written yet, or not to its end

    def add(
        self, slots: int, hide: Optional[Path] = None, first: str = "", nanny: bool = False,
        inside: Sequence[str] = (), host: str = "", environment: Optional[Dict[str, str]] = None,
    ) -> subprocess.Popen[bytes]:  # fmt: skip
        """One more worker; it does not see what is in the directory `hide`; `first`: Python that it runs at first;
        `nanny`: what is returned is a nanny, the worker is its child; `inside`: the beginning of a command that starts
        it somewhere else, where its address is `host`; `environment`: what is set for it."""
        self._added = number = self._added + 1  # a name that is in use, or seems to be, is refused by the scheduler
        folder = self.folder / f"node-{number}"
        worker = self._start(
            f"worker-{number}", self.address, "--nthreads", str(slots), "--nanny" if nanny else "--no-nanny",
            "--local-directory", str(folder), "--no-dashboard", "--dashboard-address", "127.0.0.1:0", "--host",
            host or self.host, "--name", f"node-{number}", *(["--preload", first] if first else []),
            before=[*inside, *_hiding(hide)], environment=environment,
        )  # fmt: skip
        self.workers.append(worker)
        return worker

    def _start(
        self, name: str, *arguments: str, before: Sequence[str] = (), environment: Optional[Dict[str, str]] = None
    ) -> subprocess.Popen[bytes]:
        module = f"distributed.cli.dask_{name.partition('-')[0]}"
        with open(self.folder / f"{name}.log", "wb") as log:
            return subprocess.Popen(
                [*before, sys.executable, "-m", module, *arguments], stdout=log, stderr=log,
                env={**_environment(), **self.environment, **(environment or {})}, start_new_session=True,
            )  # fmt: skip

    def close(self) -> None:
        for process in [*self.workers, self.scheduler]:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _hiding(folder: Optional[Path]) -> List[str]:
    """The beginning of a command that finds an empty file system there."""
    if folder is None:
        return []
    return ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(folder)]


def _can_hide() -> bool:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    return subprocess.run([*_hiding(Path("/mnt")), "true"], stderr=subprocess.DEVNULL).returncode == 0


CAN_HIDE = _can_hide()


def _environment() -> Any:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "DASK_DISTRIBUTED__LOGGING": "{}"}
