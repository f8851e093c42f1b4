"""What the records of a journal add up to: the steps of a run, for a resume and for whoever looks at it.

`replay` folds the records, session by session, into a `RunHistory`. A step is recognised across sessions by its
digest (of function, arguments and the digests of its prerequisites), never by its id or place, since a resumed run
may insert other steps in another order.
"""

from __future__ import annotations

import operator
from typing import Any, Callable, Iterable, Mapping, Optional

from mpsteps._digest import step_digest
from mpsteps._records import Record, unpack_bytes
from mpsteps._traffic import Traffic, traffic_of
from mpsteps.errors import JournalError


class StepRecord:
    """What the journal knows of one step.

    `status` is new, running (in doubt when no coordinator is alive), finished, failed, lost, skipped or aborted.
    `session` (from 1) is the last one that inserted it: with `id` it is the step's key. `order` numbers the finished
    steps as they finished, over all sessions: changes of self have to be applied in this order. `worker` is a pid,
    `started` in seconds since the epoch, `seconds` and `cpu_seconds` durations, `peak_kib` the peak memory, `traffic`
    what it read, wrote and moved; None where unknown. `result`, `changes` and `order` are set only in finished steps,
    `error` only in the other final ones. `doubted`: a resume reported it as in doubt.
    """

    __slots__ = (
        "args",
        "attempts",
        "changes",
        "cpu_seconds",
        "digest",
        "doubted",
        "error",
        "func",
        "id",
        "options",
        "order",
        "peak_kib",
        "prerequisites",
        "published",
        "result",
        "seconds",
        "session",
        "started",
        "status",
        "traffic",
        "worker",
    )

    def __init__(self, step_id: int, session: int) -> None:
        self.id = step_id
        self.session = session
        self.func = ""
        self.args: Any = None
        self.digest = ""
        self.prerequisites: list[int] = []
        self.options: dict[str, Any] = {}
        self.status = "new"
        self.doubted = False
        self.forget_outcome()

    def __repr__(self) -> str:
        return f"<StepRecord {self.id} {self.func} {self.status}>"

    def forget_outcome(self) -> None:
        """Back to the state of a step that never ran; what it is stays."""
        self.attempts = 0
        self.worker: Optional[int] = None
        self.started: Optional[float] = None
        self.order: Optional[int] = None
        self.forget_attempt()

    def forget_attempt(self) -> None:
        """Drop what the last attempt left, since another begins."""
        self.seconds: Optional[float] = None
        self.cpu_seconds: Optional[float] = None
        self.peak_kib: Optional[int] = None
        self.traffic: Optional[Traffic] = None
        self.error: Optional[dict[str, Any]] = None
        self.result: Optional[dict[str, Any]] = None
        self.changes: Optional[bytes] = None
        self.published: list[tuple[int, bytes]] = []

    def take_over(self, earlier: StepRecord) -> None:
        """Finished, as `earlier` finished it in an earlier session."""
        self.status, self.error = "finished", None
        for name in _OUTCOME:
            setattr(self, name, getattr(earlier, name))


_OUTCOME = (
    "attempts", "worker", "started", "order", "seconds", "cpu_seconds", "peak_kib", "traffic", "result", "published",
    "changes",
)  # fmt: skip


class RunHistory:
    """A run as its journal tells it: the last session's steps, and what a resume needs of the earlier ones.

    `steps`: id -> StepRecord of the last session. `finished_by_digest`: digest -> the finished steps with it, those
    of the last session first, in id order: what a resume may take over. `in_doubt`: steps that were in flight when a
    session broke off and have not been run since; for a run that is alive, simply the running ones. `sessions`: the
    `protocol` records' dicts, oldest first. `status`: new (no session yet), running, or that of the last `ended`
    record; `ended` its time, `error` its message ('' if there is none). `header`: the journal's header, if given.
    """

    def __init__(self, header: Any = None) -> None:
        self.header = header
        self.sessions: list[dict[str, Any]] = []
        self.steps: dict[int, StepRecord] = {}
        self.finished_by_digest: dict[str, list[StepRecord]] = {}
        self.in_doubt: list[StepRecord] = []
        self.status = "new"
        self.ended: Optional[float] = None
        self.error = ""


def mean_seconds(history: RunHistory) -> dict[str, float]:
    """How long the finished steps of each function took on average, seconds: what a further session may expect."""
    taken: dict[str, list[float]] = {}
    for steps in history.finished_by_digest.values():
        for step in steps:
            if step.seconds is not None:
                taken.setdefault(step.func, []).append(step.seconds)
    return {func: sum(seconds) / len(seconds) for func, seconds in taken.items()}


def replay(records: Iterable[Record], header: Any = None) -> RunHistory:
    """Fold a journal's records into a RunHistory; JournalError for a record that this version does not understand."""
    fold = _Fold(RunHistory(header))
    for number, record in enumerate(records, 1):
        try:
            kind, *fields = record
            fold.handlers[kind](*fields)
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            raise JournalError(
                f"record {number} of the journal cannot be understood ({type(error).__name__}: {error}); "
                "it was written by another version of mpsteps, or is corrupt"
            ) from error
    history = fold.history
    available, doubts = fold.close_session()
    history.finished_by_digest = available
    history.in_doubt = sorted((step for same in doubts.values() for step in same), key=lambda s: (s.session, s.id))
    return history


class _Fold:
    """The state of `replay`: one method a kind of record.

    `earlier` holds finished steps of former sessions that the present one has neither taken over nor run again,
    `doubts` those in flight when a former session broke off and not started since; both by digest.
    """

    def __init__(self, history: RunHistory) -> None:
        self.history = history
        self.earlier: dict[str, list[StepRecord]] = {}
        self.doubts: dict[str, list[StepRecord]] = {}
        self.any_started = False
        self.finish_count = 0
        self.handlers: dict[str, Callable[..., None]] = {
            "protocol": self.protocol,
            "steps": self.inserted_all,
            "inserted": self.inserted,
            "kept": self.kept,
            "started": self.started,
            "finished": self.finished,
            "done": self.done,
            "result": self.result,
            "changed": self.changed,
            "published": self.published,
            "failed": self.failed,
            "lost": self.lost,
            "skipped": self.skipped,
            "returned": self.returned,
            "aborted": self.aborted,
            "doubt": self.doubt,
            "ended": self.ended,
        }

    def protocol(self, info: dict[str, Any]) -> None:
        self.earlier, self.doubts = self.close_session()
        history = self.history
        history.sessions.append(dict(info))
        history.steps = {}
        history.status, history.ended, history.error = "running", None, ""
        self.any_started = False

    def close_session(self) -> tuple[dict[str, list[StepRecord]], dict[str, list[StepRecord]]]:
        """What the next session finds: the finished steps and the doubtful ones, by digest."""
        finished: dict[str, list[StepRecord]] = {}
        doubts: dict[str, list[StepRecord]] = {}
        for _, step in sorted(self.history.steps.items()):
            if step.status == "finished":
                finished.setdefault(step.digest, []).append(step)
            elif step.status == "running":
                doubts.setdefault(step.digest, []).append(step)
        inserted = {step.digest for step in self.history.steps.values()}
        self._carry_over(self.earlier, finished, inserted)
        self._carry_over(self.doubts, doubts, inserted)
        return finished, doubts

    def _carry_over(
        self, earlier: Mapping[str, list[StepRecord]], into: dict[str, list[StepRecord]], inserted: set[str]
    ) -> None:
        """Keep what former sessions left, unless a session with other form values ran steps and did not insert it.

        Steps with other arguments write over the files of those they replace: when the user goes back to the first
        values, a step that once finished with them is no longer finished.
        """
        sessions = self.history.sessions
        for digest, steps in earlier.items():
            for step in steps:
                same_form = _form_values(sessions[step.session - 1]) == _form_values(sessions[-1])
                if same_form or digest in inserted or not self.any_started:
                    into.setdefault(digest, []).append(step)

    def inserted_all(self, first: int, func: str, args: list[list[Any]], prerequisites: list[list[int]]) -> None:
        if len(args) != len(prerequisites):
            raise ValueError(f"{len(args)} steps with the prerequisites of {len(prerequisites)}")
        for step_id, (own, needs) in enumerate(zip(args, prerequisites), first):
            digest = step_digest(str(func), tuple(own), needs, None, self._digest_of)
            self.inserted(step_id, func, own, digest, needs, {})

    def _digest_of(self, step_id: int) -> str:
        step = self.history.steps.get(step_id)
        return step.digest if step else f"#{step_id}"

    def inserted(
        self, step_id: int, func: str, args: Any, digest: str, prerequisites: list[int], options: dict[str, Any]
    ) -> None:
        if not self.history.sessions:
            raise ValueError("a step is inserted before a session begins")
        if type(step_id) is not int or not 0 < step_id < 2**63 or not isinstance(digest, str):
            raise TypeError(f"step {step_id!r} with digest {digest!r}")
        step = self.history.steps.get(step_id)
        if step is None:
            step = self.history.steps[step_id] = StepRecord(step_id, len(self.history.sessions))
        step.func, step.args, step.digest = str(func), args, digest
        step.prerequisites = [operator.index(prerequisite) for prerequisite in prerequisites]
        step.options = dict(options)

    def kept(self, step_id: int, digest: str) -> None:
        step = self.history.steps[step_id]
        same = self.earlier.get(digest)
        if step.digest != digest or not same:
            raise ValueError(f"step {step_id} is kept, but no step with its digest had finished")
        step.take_over(same.pop(0))

    def started(self, worker: Optional[int], attempt: int, time: float, ids: list[int]) -> None:
        self.any_started = True
        for step_id in ids:
            step = self.history.steps[step_id]
            if step.attempts == 0:  # its fate is this run's from now on, not that of an earlier session
                for carried in (self.earlier, self.doubts):
                    if carried.get(step.digest):
                        carried[step.digest].pop(0)
            step.forget_attempt()
            step.order = None
            step.status, step.worker, step.started = "running", worker, _number(time)
            step.attempts = max(step.attempts, operator.index(attempt))

    def finished(self, worker: Optional[int], time: float, steps: list[list[Any]]) -> None:
        for step_id, seconds, cpu_seconds, peak_kib, *more in steps:
            step = self.history.steps[step_id]
            self.finish_count += 1
            step.status, step.worker, step.error, step.order = "finished", worker, None, self.finish_count
            step.seconds, step.cpu_seconds = _number(seconds), _number(cpu_seconds)
            step.peak_kib = peak_kib if isinstance(peak_kib, int) else None
            (step.traffic,) = map(traffic_of, more or (None,))

    def done(
        self, worker: Optional[int], time: float, ids: list[int], seconds: list[int], cpu_seconds: list[int]
    ) -> None:
        if not len(ids) == len(seconds) == len(cpu_seconds):
            raise ValueError(f"{len(ids)} steps took {len(seconds)} and {len(cpu_seconds)} times")
        self.finished(worker, time, [[i, s / 1e6, c / 1e6, None] for i, s, c in zip(ids, seconds, cpu_seconds)])

    def result(self, step_id: int, result: dict[str, Any]) -> None:
        self.history.steps[step_id].result = dict(result)

    def changed(self, step_id: int, data: str) -> None:
        self.history.steps[step_id].changes = unpack_bytes(data)

    def published(self, step_id: int, data: str) -> None:
        self.finish_count += 1
        self.history.steps[step_id].published.append((self.finish_count, unpack_bytes(data)))

    def failed(self, step_id: int, worker: Optional[int], attempt: int, time: float, error: dict[str, Any]) -> None:
        self._unsuccessful("failed", step_id, worker, attempt, time, error)

    def lost(self, step_id: int, worker: Optional[int], attempt: int, time: float, error: dict[str, Any]) -> None:
        self._unsuccessful("lost", step_id, worker, attempt, time, error)

    def _unsuccessful(
        self, status: str, step_id: int, worker: Optional[int], attempt: int, time: float, error: dict[str, Any]
    ) -> None:
        step = self.history.steps[step_id]
        began, now = step.started, _number(time)
        step.forget_attempt()
        step.status, step.worker, step.error = status, worker, dict(error)
        peak = step.error.get("peak_kib")
        step.peak_kib = peak if isinstance(peak, int) else None
        step.attempts = max(step.attempts, operator.index(attempt))
        if began is not None and now is not None:
            step.seconds = max(0.0, now - began)

    def skipped(self, ids: list[int], because: str) -> None:
        for step_id in ids:
            step = self.history.steps[step_id]
            step.status, step.error = "skipped", {"message": str(because)}

    def returned(self, ids: list[int]) -> None:
        for step_id in ids:
            step = self.history.steps[step_id]
            step.forget_attempt()
            step.attempts = max(0, step.attempts - 1)
            step.status, step.worker, step.started = "new", None, None

    def aborted(self, ids: list[int]) -> None:
        for step_id in ids:
            step = self.history.steps[step_id]
            step.forget_attempt()
            step.status = "aborted"

    def doubt(self, ids: list[int]) -> None:
        for step_id in ids:
            self.history.steps[step_id].doubted = True

    def ended(self, status: str, time: float, message: Optional[str]) -> None:
        self.history.status, self.history.ended = str(status), _number(time)
        self.history.error = str(message or "")


_NOT_CONTENT = ("runMode", "numberOfThreads", "runName")
"""Values of a form that change how a protocol is run, not what its steps compute."""


def _form_values(session: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in (session.get("params") or {}).items() if name not in _NOT_CONTENT}


def _number(value: object) -> Optional[float]:
    """A time or duration; None for null and for the strings that stand for NaN."""
    return value if isinstance(value, (int, float)) else None
