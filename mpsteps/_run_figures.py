"""Figures of a run for its live display: progress of each function, the time that may be left, what the workers use.

Kept by whoever draws, a few times a second: the run's own thread only appends what has finished.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Deque, Dict, List, Mapping, Optional, Sequence

from mpsteps._forecast import Tally, longest_chain, means_of_what_is_left, seconds_left
from mpsteps.report import format_bytes

if TYPE_CHECKING:
    import psutil

MOST_TIMED = 16  # of steps that finished together, so many are looked at for how long they took
MOST_CHAINED = 50_000  # steps; of more, the longest chain is not looked for
FORECAST_SECONDS = 2.0
MACHINE_SECONDS = 2.0


class RunFigures:
    """Made when the run starts. `ended` and `lost` are called by the run's thread, the others by the drawing one."""

    def __init__(self, run: Any) -> None:
        self._run = run
        self._functions: Dict[str, Tally] = {}
        self._seen = 0  # steps that are counted in `_functions`
        self._news: Deque[Sequence[int]] = deque()
        self._lost: Deque[Any] = deque()  # (state, steps)
        self._left: Optional[float] = None
        self._left_at = float("-inf")
        self._machine = ""
        self._machine_at = float("-inf")
        self._processes: Dict[int, psutil.Process] = {}
        self._update()  # in the run's own thread: what is finished now was kept

    def ended(self, steps: Sequence[int]) -> None:
        """These have finished."""
        self._news.append(steps)

    def lost(self, state: str, steps: Sequence[int]) -> None:
        """These have 'failed' or were 'skipped'."""
        self._lost.append((state, steps))

    # ------------------------------------------------------------------------------------------- for the display

    def left(self, now: float, age: Mapping[int, float]) -> Optional[float]:
        """Seconds that the run may still take; None if too little is known. `age`: of the running steps, seconds."""
        self._update()
        if now - self._left_at >= FORECAST_SECONDS:
            self._left, self._left_at = self._forecast(age), now
        return None if self._left is None else max(0.0, self._left - (now - self._left_at))

    def functions(self) -> str:
        """'alignStep 44/100 · fitStep 3/100', of those that have begun and have not ended, then of the next ones."""
        self._update()
        begun = [(f, t) for f, t in self._functions.items() if t.left and t.left < t.total]
        waiting = [(f, t) for f, t in self._functions.items() if t.left and t.left == t.total]
        return " · ".join(f"{func} {t.finished}/{t.total}" for func, t in [*begun, *waiting])

    def machine(self, now: float) -> str:
        """'workers: 390 % of a core, 2.1 GB', with the programs that they run; looked at every other second."""
        if now - self._machine_at >= MACHINE_SECONDS:
            self._machine, self._machine_at = self._look(), now
        return self._machine

    def _look(self) -> str:
        import psutil  # a run that nobody watches starts without it

        cpu, memory, seen = 0.0, 0, {}
        try:
            for child in psutil.Process().children(recursive=True):
                process = self._processes.get(child.pid, child)
                seen[process.pid] = process
                try:
                    cpu += process.cpu_percent(None)
                    memory += process.memory_info().rss
                except psutil.Error:
                    continue  # it has just ended
        except psutil.Error:
            return ""
        self._processes = seen
        return f"workers: {cpu:.0f} % of a core, {format_bytes(memory)}" if seen else ""

    # ---------------------------------------------------------------------------------------------------- counting

    def _tally(self, step: int) -> Tally:
        func = self._run.steps[step - 1]._funcName
        found = self._functions.get(func)
        if found is None:
            found = self._functions[func] = Tally()
        return found

    def _update(self) -> None:
        """Take in what has happened. Steps are counted as they are inserted; those that were kept, as finished."""
        steps: List[Any] = self._run.steps
        waiting = list(self._news)  # before the steps that may have come since
        for _ in waiting:
            self._news.popleft()
        lost = [self._lost.popleft() for _ in range(len(self._lost))]
        end = len(steps)
        new = {step for ended in waiting for step in ended if step > self._seen}
        for step in range(self._seen + 1, end + 1):
            tally = self._tally(step)
            tally.total += 1
            if steps[step - 1].isFinished() and not self._seen and step not in new:
                tally.kept += 1
                tally.finished += 1
        self._seen = end
        for ended in waiting:
            for place, step in enumerate(ended):
                tally = self._tally(step)
                tally.finished += 1
                if place < MOST_TIMED:
                    s = steps[step - 1]
                    if s._started is not None and s._ended is not None:
                        tally.timed += 1
                        tally.seconds += s._ended - s._started
        for state, ended in lost:
            for step in ended:
                tally = self._tally(step)
                setattr(tally, state, getattr(tally, state) + 1)

    def _forecast(self, age: Mapping[int, float]) -> Optional[float]:
        means = means_of_what_is_left(self._functions)
        if means is None:
            return None
        steps = self._run.steps
        chain = 0.0
        if len(steps) <= MOST_CHAINED:
            open_ = ((s._id, s._funcName, s._prerequisites) for s in steps if not (s.isFinished() or s.isFailed()))
            chain = longest_chain(open_, means, age)
        running = [(steps[step - 1]._funcName, seconds) for step, seconds in age.items()]
        return seconds_left(self._functions, self._run.workers, running, chain)
