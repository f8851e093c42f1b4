"""What the coordinator has to say to the journal, collected over one turn of its loop and written as one frame."""

from __future__ import annotations

import time
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Tuple

from mpsteps._digest import TEXT_LIMIT, is_json, step_digest
from mpsteps._ipc.wire import Failure
from mpsteps._journal import JournalWriter, Record, StepRecord, pack_bytes, unpack_bytes
from mpsteps.constants import STATUS_WAITING
from mpsteps.report import shorten
from mpsteps.steps import Step

CHANGED_GRAPH = "graph"
"""The key in a step's recorded result which says that it inserted, released or connected other steps."""


class _Run:
    """Ordinary steps with consecutive ids and one function, to be told in one record."""

    def __init__(self, step: Step) -> None:
        self.function = step._func
        self.first = self.end = step._id
        self.record: Record = ["steps", step._id, step._func, [], []]


class Recorder:
    """Knows the digests of steps; collects records, and writes them once it has been given a journal."""

    def __init__(self, protocol: Any) -> None:
        self._journal: Optional[JournalWriter] = None
        self._written: Optional[Callable[[], None]] = None
        self._protocol = protocol
        self._records: List[Record] = []
        self._finished: List[List[Any]] = []  # of one worker, to be written as one record
        self._finished_pid = 0
        self.digests: Dict[int, str] = {}

    def use(self, journal: JournalWriter, written: Callable[[], None]) -> None:
        """Write to this journal from now on; `written` is called when something stands in it."""
        self._journal = journal
        self._written = written

    def session(self, info: Dict[str, Any]) -> None:
        """A session begins."""
        self._records.append(["protocol", info])

    def inserted(self, steps: Iterable[Step]) -> None:
        """Steps are there. Ordinary ones are told together, and without their digests: the reader works them out."""
        run: Optional[_Run] = None
        for step in steps:
            func, number = step._func, step._id
            if (
                type(func) is not str or step._status == STATUS_WAITING or step._interactive or not step._needsGPU
                or func != step._funcName or not is_json(step._args)
                or (step._prerequisites and max(step._prerequisites) > number)
            ):  # fmt: skip
                run = None
                self._inserted_one(step)
                continue
            if run is None or run.function != func or run.end != number:
                run = _Run(step)
                self._records.append(run.record)
            run.record[3].append(step._args)
            run.record[4].append(step._prerequisites)
            run.end = number + 1

    def _inserted_one(self, step: Step) -> None:
        options: Dict[str, Any] = {}
        if step._status == STATUS_WAITING:
            options["wait"] = True
        if step._interactive:
            options["interactive"] = True
        if not step._needsGPU:
            options["needsGPU"] = False
        self._records.append(
            ["inserted", step._id, step._funcName, _readable(step._args), self.digest(step), step._prerequisites,
             options]
        )  # fmt: skip

    def digest(self, step: Step) -> str:
        """The digest of a step. What it waits for must not change between its insertion and the first call."""
        digests, steps = self.digests, self._protocol._steps
        todo = [] if step._id in digests else [step]
        while todo:
            s = todo[-1]
            lacking = [steps[p - 1] for p in s._prerequisites if p not in digests]
            if lacking:
                todo.extend(lacking)
            else:
                todo.pop()
                digests[s._id] = step_digest(s._func, s._args, s._prerequisites, self._protocol, self._digest_of)
        return digests[step._id]

    def _digest_of(self, step: int) -> str:
        return self.digests.get(step) or f"#{step}"

    def kept(self, step: int, record: StepRecord) -> Dict[str, Any]:
        """A step of an earlier session is taken over; what it returned: its parcel, or the file where that is."""
        self._records.append(["kept", step, self.digests[step]])
        result = dict(record.result or {})
        if result.get("value"):
            result["value"] = unpack_bytes(result["value"])
        return result

    def doubt(self, steps: Sequence[int]) -> None:
        """These were cut in the middle by the end of an earlier session."""
        if steps:
            self._records.append(["doubt", list(steps)])

    def started(self, pid: int, attempt: int, steps: Tuple[int, ...]) -> None:
        """They are about to be sent."""
        self._records.append(["started", pid, attempt, round(time.time(), 6), steps])

    def returned(self, steps: Tuple[int, ...]) -> None:
        """They were recorded as started and never began: they may be sent, and recorded, again."""
        self._records.append(["returned", list(steps)])

    def finished(
        self, pid: int, step: int, seconds: float, cpu: float, peak_kib: Optional[int] = None,
        traffic: Optional[Sequence[Optional[int]]] = None,
    ) -> None:  # fmt: skip
        """A step finished; several of one worker share a record."""
        if pid != self._finished_pid:
            self._close_finished()
            self._finished_pid = pid
        self._finished.append([step, round(seconds, 6), round(cpu, 6), peak_kib, *((traffic,) if traffic else ())])

    def finished_all(self, pid: int, steps: Tuple[int, ...], seconds: Sequence[float], cpu: Sequence[float]) -> None:
        """Steps of one worker finished that returned and changed nothing."""
        self._close_finished()
        times = [int(s * 1e6) for s in seconds], [int(c * 1e6) for c in cpu]
        self._records.append(["done", pid, round(time.time(), 6), steps, *times])

    def outcome(
        self, step: int, value: Optional[Dict[str, Any]], files: Optional[List[str]], changes: Optional[bytes],
        changed_graph: bool,
    ) -> None:  # fmt: skip
        """What a step that is about to be recorded as finished returned and changed."""
        result: Dict[str, Any] = {}
        if files:
            result["files"] = files
        if value is not None:
            result.update({k: pack_bytes(v) if isinstance(v, bytes) else v for k, v in value.items()})
        if changed_graph:
            result[CHANGED_GRAPH] = True
        if result:
            self._records.append(["result", step, result])
        if changes is not None:
            self._records.append(["changed", step, pack_bytes(changes)])

    def published(self, step: int, changes: bytes) -> None:
        """What a step that still runs has changed so far, in the order in which it became true."""
        self._close_finished()
        self._records.append(["published", step, pack_bytes(changes)])

    def failed(self, pid: int, step: int, attempt: int, failure: Failure) -> None:
        """An attempt failed."""
        error = {
            "type": failure.type_name, "message": failure.message, "traceback": failure.traceback,
            "cause": failure.cause(), "exitcode": failure.exitcode, "log": failure.log,
        }  # fmt: skip
        if failure.peak_kib:
            error["peak_kib"] = failure.peak_kib
        kind = "lost" if failure.kind in ("lost", "memory") else "failed"
        self._records.append([kind, step, pid, attempt, round(time.time(), 6), error])

    def skipped(self, steps: Tuple[int, ...], because: str) -> None:
        """They cannot run."""
        self._records.append(["skipped", list(steps), because])

    def ended(self, status: str, message: str) -> None:
        """The session ends."""
        self._close_finished()
        self._records.append(["ended", status, round(time.time(), 6), message])

    def commit(self) -> None:
        """Write what has been collected. Raises JournalError; what has happened is then kept for another try."""
        if not self._records and not self._finished:
            return
        self._close_finished()
        if self._journal is not None:
            self._journal.append(self._records)
            if self._written is not None:
                self._written()
                self._written = None
        self._records = []

    def save_what_happened(self) -> None:
        """After a JournalError: write from the reserve, without what was about to be started."""
        self._close_finished()
        records = [r for r in self._records if r[0] != "started"]
        self._records = []
        if self._journal is not None and self._journal.usable:
            self._journal.append(records, from_reserve=True)

    def _close_finished(self) -> None:
        if self._finished:
            self._records.append(["finished", self._finished_pid, round(time.time(), 6), self._finished])
            self._finished = []


def _readable(args: Tuple[Any, ...]) -> Any:
    """Arguments for people: as they are if they are plain and short, else shortened text."""
    if is_json(args):
        return args
    return [a if is_json((a,)) else shorten(a, TEXT_LIMIT) for a in args]
