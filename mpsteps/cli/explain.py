"""`mpsteps explain`: why a step waits, runs, ran again or failed."""

from __future__ import annotations

import json
import os
import time
from typing import Any, Dict, Iterator

from mpsteps._explain import Explainer, Explanation
from mpsteps._history import StepRecord
from mpsteps._learned_memory import learned_memory
from mpsteps._output import step_log
from mpsteps._report_data import log_of, resources
from mpsteps.cli import output
from mpsteps.cli.history import Look, before_last_session, look_at
from mpsteps.errors import UsageError

_LOG_BYTES = 4000


def explain_command(args: Any) -> int:
    """`mpsteps explain RUN STEP`."""
    look = look_at(args.run)
    step = _step(look, args.step)
    functions = {s.func for s in look.history.steps.values()}
    machine, needs = resources(look.history.sessions[-1], functions, learned_memory(look.history))
    explainer = Explainer(
        look.history, look.timeline, before_last_session(look), look.alive, time.time(), machine, needs
    )
    explanation = explainer.explain(step.id)
    if args.json:
        output.put(json.dumps(_as_dict(look, step, explanation), ensure_ascii=False, default=str))
    else:
        output.put("\n".join(_lines(look, step, explanation)))
    return 0


def _step(look: Look, text: str) -> StepRecord:
    """The step that the user means: by its id, or by a function that has one step only."""
    steps = look.history.steps
    if text.isdecimal():
        if int(text) not in steps:
            known = f"its steps are 1 to {max(steps)}" if steps else "it has no steps yet"
            raise UsageError(f"the run has no step {text}: {known}")
        return steps[int(text)]
    named = [s for s in steps.values() if s.func == text]
    if len(named) == 1:
        return named[0]
    if named:
        ids = ", ".join(str(s.id) for s in named[:10])
        raise UsageError(f"there are {len(named)} steps {text}, say which: {ids}{' ...' if len(named) > 10 else ''}")
    functions = ", ".join(sorted({s.func for s in steps.values()})[:10])
    raise UsageError(f"{text!r} is no step: give the id of one, or a function that has one step (it has {functions})")


def _lines(look: Look, step: StepRecord, explanation: Explanation) -> Iterator[str]:
    yield output.printable(explanation.headline)
    for reason in explanation.reasons:
        yield "  " + output.printable(reason)
    error = explanation.error or {}
    if error.get("traceback"):
        yield "  traceback:"
        yield from (f"    {output.printable(line)}" for line in str(error["traceback"]).splitlines())
    log = log_of(look.directory, step, _LOG_BYTES) if explanation.error is not None else ""
    if log:
        yield "  its last output:"
        yield from (f"    {output.printable(line)}" for line in log.splitlines()[-20:])
    path = step_log(look.directory.logs, step.id)
    if os.path.exists(path):
        yield f"  all its output: {path}"
    after = step.prerequisites
    if after:
        yield f"  it comes after {'step' if len(after) == 1 else 'steps'} {', '.join(map(str, after[:20]))}" + (
            f" and {len(after) - 20} more" if len(after) > 20 else ""
        )


def _as_dict(look: Look, step: StepRecord, explanation: Explanation) -> Dict[str, Any]:
    return {
        "step": step.id, "function": step.func, "arguments": step.args, "status": step.status,
        "attempts": step.attempts, "headline": explanation.headline,
        "reasons": [reason.strip() for reason in explanation.reasons], "expected_seconds": explanation.expected,
        "prerequisites": step.prerequisites, "error": explanation.error, "run_dir": look.directory.path,
        "alive": look.alive,
    }  # fmt: skip
