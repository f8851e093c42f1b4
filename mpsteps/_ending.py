"""How a run has ended: its status, its last record, its report."""

from __future__ import annotations

from typing import List, Optional, Sequence

from mpsteps._protocol_run import ProtocolRun
from mpsteps._recorder import Recorder
from mpsteps._workplace import Workplace
from mpsteps.errors import InternalError, JournalError
from mpsteps.listeners import Listener
from mpsteps.report import RunReport


def finish(
    work: ProtocolRun, recorder: Recorder, place: Workplace, listeners: Sequence[Listener], doubtful: List[int],
    workers: int, seconds: float,
) -> RunReport:  # fmt: skip
    """Set the protocol's status, write the last record, clean up, tell the listeners. `doubtful`: steps that a crash of
    an earlier session had cut in the middle. Raises what kept the run from coming to its end."""
    protocol = work.protocol
    protocol._cpuTime = work.kept_cpu_seconds + work.cpu_seconds
    problem = work.problem or _unfinished(work)
    if problem is not None:
        protocol.setFailed(str(problem) or type(problem).__name__)
    elif work.interrupted:
        protocol.setAborted()
    elif work.failed_steps:
        protocol.setFailed(_failure_message(work))
    elif any(s.isAwaitingUser() for s in work.steps):
        protocol.setInteractive()
    else:
        protocol.setFinished()
    report = protocol._report = RunReport(
        protocol=type(protocol).__name__,
        run_dir=protocol.getWorkingDir(),
        status=protocol.getStatus(),
        message=protocol.getErrorMessage(),
        total=work.total,
        finished=work.done,
        kept=work.kept,
        failed=tuple(work.failed_steps),
        skipped=work.skipped,
        in_doubt=tuple(doubtful),
        workers=workers,
        seconds=seconds,
        cpu_seconds=work.cpu_seconds,
    )
    _record_end(work, recorder, problem)
    if report.ok:
        place.empty_tmp()
    protocol.info(report.text())
    for listener in listeners:
        listener.run_ended(work, report)
    if problem is not None:
        raise problem
    return report


def _record_end(work: ProtocolRun, recorder: Recorder, problem: Optional[BaseException]) -> None:
    protocol = work.protocol
    try:
        if isinstance(problem, JournalError):
            recorder.save_what_happened()
        recorder.ended(protocol.getStatus(), protocol.getErrorMessage())
        recorder.commit()
    except JournalError as error:
        if problem is None:
            raise
        protocol.error(f"the end of the run could not be recorded: {error}")


def _unfinished(work: ProtocolRun) -> Optional[BaseException]:
    """A run that ends for no reason while steps are left must never pass for finished."""
    if work.interrupted or work.failed_steps or work.done == work.total or any(s.isAwaitingUser() for s in work.steps):
        return None
    left = next(s for s in work.steps if not s.isFinished())
    return InternalError(f"the run came to its end although step {left} is {left.getStatus()}")


def _failure_message(work: ProtocolRun) -> str:
    first = str(work.steps[work.failed_steps[0].step - 1].getErrorMessage())
    if len(work.failed_steps) == 1:
        return first
    others = "\n".join(str(work.steps[f.step - 1].getErrorMessage()) for f in work.failed_steps[1:])
    return f"{len(work.failed_steps)} steps failed\n{first}\n{others}"
