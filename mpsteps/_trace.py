"""A run in the Trace Event Format, which Chrome (chrome://tracing) and Perfetto (https://ui.perfetto.dev) open.

Sessions are processes, workers are threads, attempts of steps are complete events ("X"), prerequisites are flows ("s"
and "f") from the end of one step to the begin of the other. Times are microseconds since the first session began.
https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

import json
from typing import Any, Dict, Iterator

from mpsteps._history import RunHistory
from mpsteps._results_file import new_text_file
from mpsteps._timeline import Span, Timeline
from mpsteps.report import shorten

BEGINS = '{"otherData":{"writtenBy":"mpsteps"'
_MOST_ARGUMENTS = 200  # characters


def write_trace(history: RunHistory, line: Timeline, path: str) -> int:
    """Write the trace of a run to `path`, all or nothing; how many events it has. UsageError if it cannot be written.

    `history` and `line` are of the same journal.
    """
    about = {"run": history.header.run_id, "protocol": history.header.protocol} if history.header else {}
    count = 0
    with new_text_file(path, BEGINS, "the trace") as file:
        file.write(f",{_json(about)[1:-1]}" if about else "")
        file.write('},"displayTimeUnit":"ms","traceEvents":[')
        for count, event in enumerate(events(history, line), 1):
            file.write(f"{',' if count > 1 else ''}\n{_json(event)}")
        file.write("\n]}\n")
    return count


def events(history: RunHistory, line: Timeline) -> Iterator[Dict[str, Any]]:
    """The trace's events, one by one."""
    zero = line.sessions[0].began if line.sessions else 0.0
    for session in line.sessions:
        name = f"session {session.number} of {session.info.get('class', 'the run')}, {session.status}"
        yield _metadata("process_name", session.number, 0, {"name": name})
        yield _metadata("process_sort_index", session.number, 0, {"sort_index": session.number})
        for row, worker in enumerate(session.workers, 1):
            yield _metadata("thread_name", session.number, row, {"name": worker})
            yield _metadata("thread_sort_index", session.number, row, {"sort_index": row})
    for span in line.spans:
        yield _complete(history, line, span, zero)
    yield from _flows(history, line, zero)


def _metadata(name: str, pid: int, tid: int, args: Dict[str, Any]) -> Dict[str, Any]:
    return {"name": name, "ph": "M", "pid": pid, "tid": tid, "args": args}


def _complete(history: RunHistory, line: Timeline, span: Span, zero: float) -> Dict[str, Any]:
    args: Dict[str, Any] = {"step": span.step, "status": span.status}
    if span.attempt > 1:
        args["attempt"] = span.attempt
    if span.cpu is not None:
        args["cpu_seconds"] = span.cpu
    if span.peak_kib:
        args["peak_kib"] = span.peak_kib
    if span.traffic is not None:
        args.update((f"{name}_bytes", n) for name, n in span.traffic._asdict().items() if n is not None)
    record = history.steps.get(span.step)
    if record is not None and span.session == len(line.sessions):  # ids of earlier sessions may mean other steps
        values = record.args if isinstance(record.args, list) else [record.args]
        args["arguments"] = shorten(values, _MOST_ARGUMENTS)[1:-1]
        args["after"] = record.prerequisites[:100]
        if record.error and span.status in ("failed", "lost"):
            args["error"] = str(record.error.get("cause") or record.error.get("message") or "")
    return {
        "name": span.func or f"step {span.step}", "cat": "step" if span.status == "finished" else f"step,{span.status}",
        "ph": "X", "ts": _micro(span.begin - zero), "dur": _micro(span.end - span.begin), "pid": span.session,
        "tid": span.worker + 1, "args": args,
    }  # fmt: skip


def _flows(history: RunHistory, line: Timeline, zero: float) -> Iterator[Dict[str, Any]]:
    """One flow for each prerequisite between two steps that the last session ran, from within one slice into the
    other: viewers bind an end of a flow to the slice in which it lies."""
    last: Dict[int, Span] = {}
    for span in line.spans:
        if span.session == len(line.sessions):
            last[span.step] = span
    number = 0
    for step, span in last.items():
        for needed in history.steps[step].prerequisites if step in history.steps else ():
            before = last.get(needed)
            if before is None or before.end > span.end:
                continue
            number += 1
            leaves = max(before.begin, before.end - min(1e-6, (before.end - before.begin) / 2))
            for phase, at, ts in (("s", before, leaves), ("f", span, max(span.begin, leaves))):
                event: Dict[str, Any] = {
                    "name": "prerequisite", "cat": "prerequisite", "ph": phase, "id": number, "ts": _micro(ts - zero),
                    "pid": at.session, "tid": at.worker + 1,
                }  # fmt: skip
                if phase == "f":
                    event["bp"] = "e"
                yield event


def _micro(seconds: float) -> float:
    return round(max(0.0, seconds) * 1e6, 3)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
