"""Where the output of steps goes: at descriptor level, so that C code and programs are captured as well."""

from __future__ import annotations

import faulthandler
import logging
import os
import sys

PROGRAM_SECONDS = 0.001
"""A step that took less has not run a program."""


class Output:
    """Standard output and error of this process and its programs go to the file `path` from now on. What a step has
    written is moved to its own log, in `folder`, when it ends."""

    def __init__(self, path: str, folder: str) -> None:
        self._path, self._folder = path, folder
        self.attach()
        for stream in (sys.stdout, sys.stderr):
            reconfigure = getattr(stream, "reconfigure", None)
            if reconfigure is not None:
                reconfigure(line_buffering=True, errors="backslashreplace")
        faulthandler.enable(file=2)
        logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(levelname)s: %(message)s")

    def attach(self) -> None:
        """Have descriptors 1 and 2 lead to the file, whatever has become of them."""
        self._fd = self._open()  # shares its position with 1 and 2, and is ours also where a step has closed those
        os.lseek(self._fd, 0, os.SEEK_END)
        os.dup2(self._fd, 1)
        os.dup2(self._fd, 2)

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def has_written(self, seconds: float) -> bool:
        """Whether the step, which took `seconds`, left output. All that write to the descriptor share its position;
        only a program could have opened the file anew."""
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except (OSError, ValueError, AttributeError):
            pass  # the step has closed them, or put something else in their place, or the disk is full
        return os.lseek(self._fd, 0, os.SEEK_CUR) != 0 or (
            seconds > PROGRAM_SECONDS and os.fstat(self._fd).st_size != 0
        )

    def keep(self, step: int) -> bool:
        """Move what the step wrote to its own log; whether that could be done."""
        try:
            fd = os.open(step_log(self._folder, step), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            with open(self._path, "rb") as source, open(fd, "ab") as target:
                import shutil  # seldom needed, and it loads all kinds of compression

                shutil.copyfileobj(source, target, 1 << 20)
        except OSError as error:  # the disk is full, say: that is no reason to lose the step; its output stays here
            print(f"mpsteps: the output of step {step} stays in {self._path}: {error}", file=sys.stderr, flush=True)
            return False
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        return True


def step_log(folder: str, step: int) -> str:
    """The path of the log of one step."""
    return os.path.join(folder, f"step-{step:06d}.log")
