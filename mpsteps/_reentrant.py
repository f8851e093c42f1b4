"""What `self._lock` is to the code of steps, wherever that runs: all that a `threading.RLock` offers.

Who may have it is decided in one place (`_protocol_lock`); here is only what goes on within one process: the same
thread may enter again, others may not, and it is left as often as it was entered.
"""

from __future__ import annotations

import threading
from typing import Any, NoReturn, Optional


class ReentrantLock:
    """Owned by a thread. How it is got and given up is said by `_take` and `_give`."""

    def __init__(self) -> None:
        self._owner: Optional[int] = None
        self._count = 0

    def _check(self) -> None:
        """UsageError where nobody can have it, also not who seems to have it."""

    def _take(self, seconds: Optional[float]) -> bool:
        """Get it for this thread, waiting at most so long (None: as long as it takes; 0: not at all)."""
        raise NotImplementedError

    def _give(self) -> None:
        """Give it up."""
        raise NotImplementedError

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Get the lock, once more if this thread has it; whether it was got. `timeout`: seconds to wait at most."""
        if not blocking and timeout != -1:
            raise ValueError("can't specify a timeout for a non-blocking call")
        if timeout < 0 and timeout != -1:
            raise ValueError("timeout value must be positive")
        self._check()
        if self._owner == threading.get_ident():
            self._count += 1
            return True
        if not self._take((None if timeout == -1 else timeout) if blocking else 0.0):
            return False
        self._owner, self._count = threading.get_ident(), 1
        return True

    def release(self) -> None:
        """Leave it as often as it was entered. RuntimeError if this thread does not have it."""
        if self._owner != threading.get_ident():
            raise RuntimeError("cannot release un-acquired lock")
        self._count -= 1
        if not self._count:
            self._owner = None
            self._give()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_error: object) -> None:
        self.release()

    def __reduce__(self) -> NoReturn:
        raise TypeError("cannot pickle 'self._lock': it belongs to the protocol, and every worker has it already")

    # What `threading.Condition(self._lock)` asks of a lock, for threads of one step.

    def _is_owned(self) -> bool:
        return self._owner == threading.get_ident()

    def _release_save(self) -> Any:
        count, self._count, self._owner = self._count, 0, None
        self._give()
        return count

    def _acquire_restore(self, count: Any) -> None:
        self._take(None)
        self._owner, self._count = threading.get_ident(), count
