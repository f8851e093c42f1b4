"""Why a step is where it is: why it waits, runs, ran again or failed. In sentences, from the journal.

Pure: it is given what the journal adds up to, and the present as a number. What is expected follows from the median of
the finished steps of the same function in this run.
"""

from __future__ import annotations

import statistics
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Set

from mpsteps._account import Machine, Needs
from mpsteps._history import RunHistory, StepRecord
from mpsteps._learned_memory import ASSUMED
from mpsteps._rerun import cause_of, name_of, why_again
from mpsteps._timeline import Span, Timeline
from mpsteps._traffic import Traffic
from mpsteps.report import format_bytes, format_seconds

_BAD = ("failed", "lost")
_MOST = 8  # steps that are named one by one


class Explanation(NamedTuple):
    """`headline`: step and state; `reasons`: sentences; `expected`: seconds until it may begin, at least (None: not
    known); `error`: what the journal knows of a failure."""

    headline: str
    reasons: List[str]
    expected: Optional[float] = None
    error: Optional[Dict[str, Any]] = None


class Explainer:
    """Explains steps of one run at one moment.

    `earlier`: what the journal added up to before the last session, or None; `alive`: its coordinator is at work;
    `now`: the present, seconds since the epoch; `machine` and `needs`: see `_account`.
    """

    def __init__(
        self, history: RunHistory, line: Timeline, earlier: Optional[RunHistory], alive: bool, now: float,
        machine: Machine, needs: Dict[str, Needs],
    ) -> None:  # fmt: skip
        self.history, self.line, self.earlier, self.alive, self.now = history, line, earlier, alive, now
        self.machine, self.needs = machine, needs
        self.steps = history.steps
        number = len(line.sessions)
        self._span: Dict[int, Span] = {s.step: s for s in line.spans if s.session == number}
        taken: Dict[str, List[float]] = {}
        for s in line.spans:
            if s.status == "finished":
                taken.setdefault(s.func, []).append(s.end - s.begin)
        self._usual = {func: statistics.median(seconds) for func, seconds in taken.items()}

    def explain(self, number: int) -> Explanation:
        """Everything that is known of why step `number`, which exists, is as it is."""
        step = self.steps[number]
        by_status: Dict[str, Callable[[StepRecord], Explanation]] = {
            "finished": self._finished, "failed": self._failed, "lost": self._failed, "skipped": self._skipped,
            "running": self._running, "aborted": self._aborted,
        }  # fmt: skip
        return by_status.get(step.status, self._new)(step)

    # ------------------------------------------------------------------------------------------- it has ended

    def _finished(self, step: StepRecord) -> Explanation:
        span = self._span.get(step.id)
        if span is None:
            return Explanation(f"{name_of(step)} was kept", [
                "It finished in an earlier session with the same function, arguments and prerequisites, so it was not "
                "run again. " + times(step.seconds, step.cpu_seconds, step.peak_kib)
            ])  # fmt: skip
        reasons = [times(step.seconds, step.cpu_seconds, step.peak_kib, self._worker(span))]
        if step.traffic is not None:
            reasons.append(amounts(step.traffic))
        reasons += self._before_it_ran(step, span)
        reasons += self._why_again(step)
        return Explanation(f"{name_of(step)} finished", reasons)

    def _before_it_ran(self, step: StepRecord, span: Span) -> Iterator[str]:
        """How long it waited for others, and then for its turn."""
        session = self.line.sessions[-1]
        ends = {p: self._span[p].end for p in step.prerequisites if p in self._span}
        last = max(ends, key=ends.__getitem__, default=None)
        ready = max([session.inserted.get(step.id, session.began), *ends.values()])
        if last is not None and ends[last] >= ready:
            waited = ends[last] - session.inserted.get(step.id, session.began)
            yield f"It waited {_seconds(waited)} for its prerequisites, last for {name_of(self.steps[last])}."
        if span.attempt == 1 and span.begin - ready > 0.001:
            yield f"Then it waited {_seconds(span.begin - ready)} for a worker and what it needs."
        if span.attempt > 1:
            yield f"This was attempt {span.attempt}: those before it failed."

    def _failed(self, step: StepRecord) -> Explanation:
        error = dict(step.error or {})
        span = self._span.get(step.id)
        word = "failed" if step.status == "failed" else "was lost: its worker died"
        reasons = [f"Why: {cause_of(step)}"]
        if step.attempts > 1:
            reasons.append(f"It was tried {step.attempts} times.")
        if step.seconds is not None:
            reasons.append(times(step.seconds, None, step.peak_kib, self._worker(span), "It ran"))
        reasons += self._why_again(step)
        skipped = sum(1 for s in self._dependents(step.id) if self.steps[s].status == "skipped")
        if skipped:
            reasons.append(f"{_steps(skipped)} after it could not run and {'was' if skipped == 1 else 'were'} skipped.")
        return Explanation(f"{name_of(step)} {word}", reasons, None, error)

    def _why_again(self, step: StepRecord) -> List[str]:
        if self.earlier is None:
            return []
        return [f"Why it ran in this session: {why}" for why in why_again(step, self.steps, self.earlier)]

    def _skipped(self, step: StepRecord) -> Explanation:
        reasons = [f"Why: {(step.error or {}).get('message') or 'a step before it failed'}."]
        for bad in self._bad_ancestors(step.id)[:_MOST]:
            reasons.append(f"{name_of(self.steps[bad])}: {cause_of(self.steps[bad])}")
        return Explanation(f"{name_of(step)} was skipped", reasons)

    def _aborted(self, step: StepRecord) -> Explanation:
        return Explanation(f"{name_of(step)} was stopped", ["It was ended on request before it was done."])

    # -------------------------------------------------------------------------------------------- it is running

    def _running(self, step: StepRecord) -> Explanation:
        if not self.alive:
            return Explanation(f"{name_of(step)} is in doubt", [
                "It had been sent to a worker when the run broke off: it may have done all, some or none of its work.",
                "A resume runs it again (or refuses to, with --in-doubt fail).",
            ])  # fmt: skip
        span = self._span.get(step.id)
        if span is None:
            running = [self.steps[s.step] for s in self._span.values() if s.status == "running"]
            ahead = [s for s in running if s.worker == step.worker]
            behind = f" behind {name_of(ahead[0])}" if ahead else ""
            return Explanation(f"{name_of(step)} waits in a lane", [
                f"It has been sent to worker {step.worker}, where it waits{behind}.",
                "Steps that are expected to be short are sent several at a time.",
            ], self._until_begin(step.id))  # fmt: skip
        reasons = [f"It has been running for {_seconds(self.now - span.begin)} on {self._worker(span)}."]
        if span.attempt > 1:
            reasons.append(f"This is attempt {span.attempt}.")
        usual = self._usual.get(step.func)
        if usual is not None:
            late = self.now - span.begin - usual
            reasons.append(
                f"Steps of {step.func} usually take {_seconds(usual)}: "
                + (f"about {_seconds(-late)} more." if late < 0 else f"it has taken {_seconds(late)} longer so far.")
            )
        return Explanation(f"{name_of(step)} is running", reasons)

    # ------------------------------------------------------------------------------------------------ it waits

    def _new(self, step: StepRecord) -> Explanation:
        if not self.alive:
            return self._not_run(step)
        open_ = [p for p in step.prerequisites if p in self.steps and self.steps[p].status != "finished"]
        expected = self._until_begin(step.id)
        if step.options.get("wait") and not open_:
            return Explanation(f"{name_of(step)} is held", [
                "It was inserted with wait=True: it starts when somebody sets its status to new."
            ])  # fmt: skip
        if open_:
            reasons = [f"It comes after {_steps(len(open_))} that {'has' if len(open_) == 1 else 'have'} not finished:"]
            reasons += [f"  {self._state(self.steps[p])}" for p in sorted(open_, key=self._order)[:_MOST]]
            if len(open_) > _MOST:
                reasons.append(f"  and {len(open_) - _MOST} more")
            if expected is not None:
                reasons.append(f"It cannot begin before about {_seconds(expected)} from now.")
            return Explanation(f"{name_of(step)} waits for its prerequisites", reasons, expected)
        return Explanation(f"{name_of(step)} could start", list(self._for_its_turn(step)), expected)

    def _not_run(self, step: StepRecord) -> Explanation:
        failed = [s for s in self.steps.values() if s.status in _BAD]
        if self.history.status == "running":
            reasons = ["The run broke off before it was its turn: its process is gone. A resume runs it."]
        elif failed:
            reasons = [
                f"After {name_of(failed[0])} had failed, no new step was started.",
                "A resume runs it. With --keep-going, what does not depend on a failed step runs at once.",
            ]
        else:
            reasons = [f"The run ended ({self.history.status}) before it was its turn. A resume runs it."]
        return Explanation(f"{name_of(step)} has not run", reasons)

    def _for_its_turn(self, step: StepRecord) -> Iterator[str]:
        """All its prerequisites have finished: a slot is missing, or a worker."""
        running = [s for s in self._span.values() if s.status == "running"]
        need, m = self.needs.get(step.func, Needs()), self.machine
        yield "All its prerequisites have finished."
        held = [(s, self.needs.get(s.func, Needs())) for s in running]
        memory = sum(n.memory for _, n in held)
        if need.memory and memory + min(need.memory, m.memory) > m.memory:
            holders = _ids([s.step for s, n in held if n.memory])
            yield (
                f"It waits for memory: {self._why_so_much(step.func, need)}, and of {format_bytes(m.memory)} the "
                f"running steps ({holders}) hold {format_bytes(memory)}."
            )
            return
        if need.gpus and sum(n.gpus for _, n in held) + min(need.gpus, m.gpus) > m.gpus:
            holders = _ids([s.step for s, n in held if n.gpus])
            yield f"It waits for a graphics card: all {m.gpus} are in use by steps {holders}."
            return
        slots = sum(n.cpus for _, n in held)
        if slots + min(need.cpus, m.workers) > m.workers:
            others = sum(
                1 for s in self.steps.values()
                if s.status == "new" and s.id != step.id and not s.options.get("wait") and self._is_ready(s)
            )  # fmt: skip
            longest = max(running, key=lambda s: self.now - s.begin, default=None)
            yield (
                f"It waits for its turn: all {m.workers} worker slots are taken, by steps "
                + _ids([s.step for s in running])
                + (f"; {_steps(others)} more could start, too." if others else ".")
            )
            if longest is not None:
                yield f"Longest at work: {self._state(self.steps[longest.step])}."
            yield "Of the steps that may start, those with the longest remaining path go first."
            return
        if need.measured and any(n.measured for _, n in held):
            yield (
                "A worker is free: it is about to be sent. If it is not, it waits for memory: "
                f"{self._why_so_much(step.func, need)}, and what other programs use counts, too."
            )
        elif not need.memory and running and self._is_unknown(step.func):
            yield (
                f"A worker is free, but how much memory steps of {step.func} need is not known yet: until one of them "
                f"has ended, each counts {format_bytes(ASSUMED)} of {format_bytes(m.memory)} at first, and less the "
                "longer they run and do not grow. @step(memory=...) says it at once."
            )
        else:
            yield "A worker is free: it is about to be sent."

    def _why_so_much(self, func: str, need: Needs) -> str:
        """Why so many bytes count for a step."""
        if not need.measured:
            return f"it needs {format_bytes(need.memory)}, as declared"
        peaks = [s.peak_kib for same in self.history.finished_by_digest.values() for s in same if s.func == func]
        most = max((peak for peak in peaks if peak), default=0) * 1024
        return (
            f"its function's steps took up to {format_bytes(most or need.memory)} (measured, as nobody has declared "
            f"it), so that it counts {format_bytes(need.memory)}"
        )

    def _is_unknown(self, func: str) -> bool:
        """Whether nothing is known of its steps, where there is not so much memory that this does not matter."""
        scarce = 0 < self.machine.memory < ASSUMED * self.machine.workers
        return scarce and func not in self._usual and self.line.sessions[-1].info.get("engine") == "processes"

    def _is_ready(self, step: StepRecord) -> bool:
        return all(p not in self.steps or self.steps[p].status == "finished" for p in step.prerequisites)

    # --------------------------------------------------------------------------------------------- what is expected

    def _until_begin(self, number: int) -> Optional[float]:
        """Seconds until all that comes before a step may have finished, if no worker had to be waited for."""
        left: Dict[int, Optional[float]] = {}
        for p in self._ancestors(number):
            left[p] = self._until_end(p, left)
        return self._longest(number, left)

    def _longest(self, number: int, left: Dict[int, Optional[float]]) -> Optional[float]:
        waits = [left.get(p) for p in self.steps[number].prerequisites if p in self.steps]
        known = [w for w in waits if w is not None]
        return max(known, default=0.0) if len(known) == len(waits) else None

    def _until_end(self, number: int, left: Dict[int, Optional[float]]) -> Optional[float]:
        """Seconds until a step may have finished; `left` has those before it."""
        step, usual = self.steps[number], self._usual.get(self.steps[number].func)
        if step.status == "finished":
            return 0.0
        if step.status not in ("new", "running") or usual is None:
            return None
        span = self._span.get(number)
        if span is not None and span.status == "running":
            return max(0.0, usual - (self.now - span.begin))
        begin = self._longest(number, left)
        return None if begin is None else begin + usual

    def _ancestors(self, number: int) -> List[int]:
        """All unfinished steps before one, each after those before it."""
        order: List[int] = []
        seen: Set[int] = set()
        todo = [(p, False) for p in self.steps[number].prerequisites]
        while todo:
            at, done = todo.pop()
            if done:
                order.append(at)
                continue
            if at in seen or at not in self.steps:
                continue
            seen.add(at)
            todo.append((at, True))
            if self.steps[at].status != "finished":
                todo.extend((p, False) for p in self.steps[at].prerequisites)
        return order

    def _order(self, number: int) -> int:
        return {"running": 0, "failed": 1, "lost": 1}.get(self.steps[number].status, 2)

    def _state(self, step: StepRecord) -> str:
        """'step 4 f(1) is running for 3 s, usually 5 s'."""
        span = self._span.get(step.id)
        if step.status == "running" and span is not None:
            usual = self._usual.get(step.func)
            told = f", usually {_seconds(usual)}" if usual is not None else ""
            return f"{name_of(step)}, running for {_seconds(self.now - span.begin)}{told}"
        word = {"new": "not started", "running": "sent to a worker"}.get(step.status, step.status)
        return f"{name_of(step)}, {word}"

    # ---------------------------------------------------------------------------------------------------- others

    def _bad_ancestors(self, number: int) -> List[int]:
        return [p for p in self._ancestors(number) if self.steps[p].status in _BAD]

    def _dependents(self, number: int) -> Set[int]:
        followers: Dict[int, List[int]] = {}
        for s in self.steps.values():
            for p in s.prerequisites:
                followers.setdefault(p, []).append(s.id)
        found: Set[int] = set()
        todo = [number]
        while todo:
            for f in followers.get(todo.pop(), ()):
                if f not in found:
                    found.add(f)
                    todo.append(f)
        return found

    def _worker(self, span: Optional[Span]) -> str:
        return self.line.sessions[span.session - 1].workers[span.worker] if span is not None else ""


def times(
    seconds: Optional[float], cpu: Optional[float], peak: Optional[int], worker: str = "", verb: str = "It took"
) -> str:
    parts = [f"{verb} {_seconds(seconds)}" if seconds is not None else "How long it took is not known"]
    if cpu is not None:
        parts.append(f"{_seconds(cpu)} of CPU")
    if peak:
        parts.append(f"{format_bytes(peak * 1024)} of memory at its peak")
    return ", ".join(parts) + (f", on {worker}." if worker else ".")


def amounts(traffic: Traffic) -> str:
    received, returned = format_bytes(traffic.received), format_bytes(traffic.returned)
    told = f"{received} went to its worker for it, and {returned} came back."
    if traffic.read is None or traffic.written is None:
        return told
    return f"It read {format_bytes(traffic.read)} and wrote {format_bytes(traffic.written)}; {told}"


def _seconds(seconds: float) -> str:
    if 0 < seconds < 0.1:
        return f"{seconds * 1e3:.1f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} µs"
    return format_seconds(max(0.0, seconds))


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count} steps"


def _ids(numbers: List[int]) -> str:
    return ", ".join(map(str, numbers[:_MOST])) + (f" and {len(numbers) - _MOST} more" if len(numbers) > _MOST else "")
