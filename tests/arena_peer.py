"""A second process for tests of shared memory: it runs what it is told, statement by statement, and answers."""

from __future__ import annotations

import os
import pickle
import select
import struct
import subprocess
import sys
from typing import Any, Dict, Optional

_LENGTH = struct.Struct("<Q")
_SECONDS = 60


class Peer:
    """`do("x = 1 + a", a=2)` runs statements there, `ask("x")` evaluates. Names last; errors are raised here."""

    def __init__(self, environment: Optional[Dict[str, str]] = None) -> None:
        root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        self.process = subprocess.Popen(
            [sys.executable, os.path.abspath(__file__)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": root, **(environment or {})},
        )
        self.pid = self.process.pid

    def do(self, code: str, **names: Any) -> None:
        self._call("exec", code, names)

    def ask(self, code: str, **names: Any) -> Any:
        return self._call("eval", code, names)

    def _call(self, how: str, code: str, names: Dict[str, Any]) -> Any:
        data = pickle.dumps((how, code, names))
        assert self.process.stdin is not None
        self.process.stdin.write(_LENGTH.pack(len(data)) + data)
        self.process.stdin.flush()
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
        good, value = pickle.loads(self._read(length))
        if not good:
            raise value
        return value

    def _read(self, size: int) -> bytes:
        assert self.process.stdout is not None
        fd, data = self.process.stdout.fileno(), b""
        while len(data) < size:
            assert select.select([fd], [], [], _SECONDS)[0], "the other process does not answer"
            more = os.read(fd, size - len(data))
            assert more, f"the other process has ended: {self.process.wait(_SECONDS)}"
            data += more
        return data

    def kill(self) -> None:
        """End it as kill -9 does, and wait until it is gone. Twice is once."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(_SECONDS)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


def _serve() -> None:
    source, target = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a print must not end up among the answers
    names: Dict[str, Any] = {}
    while True:
        head = source.read(_LENGTH.size)
        if len(head) < _LENGTH.size:
            return
        how, code, more = pickle.loads(source.read(*_LENGTH.unpack(head)))
        names.update(more)
        value = None
        try:
            if how == "exec":
                exec(code, names)
            else:
                value = eval(code, names)
            answer = pickle.dumps((True, value))
        except BaseException as error:
            answer = pickle.dumps((False, error.with_traceback(None)))
        del more, value
        target.write(_LENGTH.pack(len(answer)) + answer)
        target.flush()


if __name__ == "__main__":
    _serve()
