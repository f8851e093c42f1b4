"""How far each worker has come, told to the other workers: so that a step can follow steps of other lanes.

Every worker has a page of the board that only it stores into (the others map it for reading only), with three words:

`done`: the number of its last message that was run to its end and left nothing: no change of `self`, and a value only
if that is in the ring already;
`back`: the number of the last message that it gave back;
`apart`: how many of its messages ended in any other way: with something that others must hear of, or in failure.

A step that was sent behind step p of another lane comes with the number of p's message there and with the `apart` that
the coordinator had heard of when it sent it. It may run once `done` has come that far, if `apart` is still the same and
`back` has not come that far: then p has finished, and p and whatever ran in that lane since the coordinator last heard
of something left nothing that this worker would have to see first. See README.md, section Following.
"""

from __future__ import annotations

import mmap
import os
import time

PAGE = max(4096, mmap.ALLOCATIONGRANULARITY)
PAGES = 4096
"""The coordinator's page, and those of workers 1 to 4095. Whoever comes later has none: nobody follows its steps."""
_DONE, _APART, _BACK = 0, 8, 9  # in words: `done`, which is stored for each step, on a line of its own
_WORDS_A_PAGE = PAGE // 8
IDLE = 8
"""In words, on the coordinator's page, which has `asleep` first: whether some worker has nothing to do."""

ENDED = -1
"""In place of a number: the coordinator has heard that this message was run to its end. Only `apart` matters then."""
SPIN = 0.001
"""Seconds for which a worker that waits for another only yields its core; then it sleeps in between."""
NAP = 100e-6

_yield = getattr(os, "sched_yield", lambda: time.sleep(0))


class Standing:
    """What a worker tells of itself: it alone stores these words. `number` 0: nobody looks."""

    def __init__(self, fd: int, number: int) -> None:
        self._page = None
        if 0 < number < PAGES:
            self._page = mmap.mmap(fd, PAGE, flags=mmap.MAP_SHARED, offset=number * PAGE)
        self._words = memoryview(self._page if self._page is not None else bytearray(PAGE)).cast("Q")

    def finish(self, number: int) -> None:
        """Message `number` was run to its end and left nothing that could get lost, or that others must hear of."""
        self._words[_DONE] = number

    def end_apart(self) -> None:
        """A message ended otherwise. Before this is told to the coordinator, and before any later `finish`."""
        self._words[_APART] += 1

    def give_back(self, number: int) -> None:
        """Messages up to `number` that have not ended are given back. Before any later `finish`."""
        self._words[_BACK] = number

    def release(self) -> None:
        """Let go of the memory."""
        self._words.release()
        if self._page is not None:
            self._page.close()
            self._page = None


class Peers:
    """The words of all workers, as one of them sees them. `memory`: the board's, mapped for reading."""

    def __init__(self, memory: memoryview) -> None:
        self._words = memory

    def some_idle(self) -> bool:
        """Whether some worker has nothing to do, as far as the coordinator knows: what is told now may change that."""
        return bool(self._words[IDLE])

    def have_finished(self, worker: int, number: int, apart: int, seconds: float) -> bool | None:
        """Whether message `number` of `worker` has ended and nothing there is to be heard of first; looks at it for at
        most `seconds`. False: that cannot come true any more; None: not yet."""
        if not number or not 0 < worker < PAGES:
            return False
        words, done = self._words, worker * _WORDS_A_PAGE + _DONE
        told, back = worker * _WORDS_A_PAGE + _APART, worker * _WORDS_A_PAGE + _BACK
        stop = tired = 0.0
        while True:
            finished = number < 0 or words[done] >= number
            # Loaded after `done`, stored before it: see README.md.
            if words[told] != apart or words[back] >= number > 0:
                return False
            if finished:
                return True
            if seconds <= 0:
                return None
            now = time.perf_counter()
            if not stop:
                stop, tired = now + seconds, now + SPIN
            elif now >= stop:
                return None
            if now < tired:
                _yield()
            else:
                time.sleep(NAP)
