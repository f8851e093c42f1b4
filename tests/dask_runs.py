"""Runs on a cluster of which something breaks while steps run: what tests of that share."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from pathlib import Path
from typing import Any, Callable, Iterator, List

from engine_steps import wait_for_file
from protocols import Custom, wait_until


class Slow(Custom):
    """Steps that say that they run, and wait."""

    def slow(self, folder: str, name: str, release: str) -> None:
        """Ends at once when it is run for the second time."""
        again = os.path.exists(os.path.join(folder, name))
        self.note(name)
        Path(folder, name).touch()
        if not again:
            wait_for_file(release)


class SlowAgain(Slow):
    rerunOnLoss = True


def insert_and_run(tmp_path: Path, insert: Any, engine: Any, cls: Any = Custom, **options: Any) -> Any:
    protocol = cls(insert, workingDir=str(tmp_path / "run"), notes=str(tmp_path / "notes"))
    protocol.run(engine=engine, **options)
    return protocol


def statuses(protocol: Any) -> List[str]:
    return [s.getStatus() for s in protocol.getSteps()]


@contextlib.contextmanager
def meanwhile(work: Callable[[], None]) -> Iterator[None]:
    """`work` is done in a thread of its own; what it raises is raised in the end."""
    problems: List[BaseException] = []

    def do() -> None:
        try:
            work()
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=do)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        if problems:
            raise problems[0]


@contextlib.contextmanager
def warnings_in(path: Path) -> Iterator[Path]:
    """What the engine has to say is in that file."""
    handler = logging.FileHandler(path)
    logging.getLogger("mpsteps.engine").addHandler(handler)
    try:
        yield path
    finally:
        logging.getLogger("mpsteps.engine").removeHandler(handler)
        handler.close()


def wait_for_text(path: Any, text: str) -> None:
    wait_until(lambda: text in Path(path).read_text(), f"for {text!r}")
