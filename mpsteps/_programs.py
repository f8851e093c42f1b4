"""Running external programs for `runJob`: output to the step's log, a failure with the program's last lines."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from typing import Any, BinaryIO, Dict, Mapping, Optional, Sequence, Union

from mpsteps import _context
from mpsteps._memory import oom_kills
from mpsteps.errors import ProgramError, UsageError

GPU_PLACEHOLDER = "%(GPU)s"
LAST_LINES = 20
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")

Arguments = Union[str, Sequence[Any], None]


def command_line(program: Any, arguments: Optional[Arguments], gpus: Sequence[int] = ()) -> str:
    """The shell command: arguments given as text are the author's own shell words, a sequence is quoted word by word.

    `%(GPU)s` in either becomes the numbers of the step's graphics cards.
    """
    name = str(program).strip()
    if not name:
        raise UsageError("runJob needs the name of a program")
    words = arguments if isinstance(arguments, str) else " ".join(shlex.quote(str(a)) for a in arguments or ())
    line = f"{name} {words}".rstrip()
    if GPU_PLACEHOLDER in line:
        separator = "," if GPU_PLACEHOLDER in name else " "
        line = line.replace(GPU_PLACEHOLDER, separator.join(str(g) for g in gpus))
    return line


def run(
    program: Any,
    arguments: Arguments,
    cwd: Optional[str] = None,
    env: Optional[Mapping[str, str]] = None,
    threads: Optional[int] = None,
    shell: Optional[str] = None,
) -> None:
    """Run a program to its end. Raises ProgramError for a non-zero exit code, naming the code and the last lines.

    `threads` is told to the program by OMP_NUM_THREADS and its like, unless `env` sets them. Its output goes to the
    log of the step that runs it, or where this process writes when nothing is captured.
    """
    context = _context.current()
    line = command_line(program, arguments, context.gpus if context else ())
    log = context.log if context else None
    print(f"** Running command: {line}", flush=True)
    start, killed = _size(log), oom_kills()
    output = _open_log(log) if log else None
    try:
        done = subprocess.run(
            line,
            shell=True,
            cwd=cwd,
            env=_environment(env, threads),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
            check=False,
            executable=shell,
        )
    except (OSError, ValueError) as error:  # ValueError: a null byte in the command or the environment
        raise ProgramError(f"'{line}' could not be started: {error}") from error
    finally:
        if output:
            output.close()
    if done.returncode:
        raise ProgramError(_what_happened(line, done.returncode, _tail(log, start), killed))


def _open_log(path: str) -> BinaryIO:
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "ab")


def _environment(env: Optional[Mapping[str, str]], threads: Optional[int]) -> Dict[str, str]:
    merged = dict(os.environ if env is None else env)
    if threads is not None:
        for name in _THREAD_VARIABLES:
            if env is None or name not in env:
                merged[name] = str(threads)
    return merged


def _what_happened(line: str, code: int, tail: str, oom_kills_before: Optional[int]) -> str:
    if code < 0:
        how = f"was killed by {_signal_name(-code)}"
    elif code > 128 and _signal_name(code - 128):  # how a shell reports that the program was killed
        how = f"ended with exit code {code} ({_signal_name(code - 128)})"
    elif code == 127:
        how = "ended with exit code 127: the shell did not find the program"
    else:
        how = f"ended with exit code {code}"
    if "SIGKILL" in how and oom_kills_before is not None and (oom_kills() or 0) > oom_kills_before:
        how += ", as the kernel ran out of memory"
    return f"'{line}' {how}" + (f"; its last lines:\n{tail}" if tail else "")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return ""


def _size(path: Optional[str]) -> int:
    try:
        return os.path.getsize(path) if path else 0
    except FileNotFoundError:
        return 0


def _tail(path: Optional[str], start: int) -> str:
    """The last lines that were written after byte `start`; '' where output is not captured."""
    if not path:
        return ""
    with open(path, "rb") as f:
        end = f.seek(0, os.SEEK_END)
        f.seek(max(start, end - 16_384))
        lines = f.read().decode("utf-8", "replace").splitlines()
    return "\n".join(lines[-LAST_LINES:])
