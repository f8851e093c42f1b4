"""Why a step ran again on resume: what is different from what the journal added up to before."""

from __future__ import annotations

import os
from typing import Dict, Iterator

from mpsteps._history import RunHistory, StepRecord
from mpsteps.report import shorten


def why_again(step: StepRecord, steps: Dict[int, StepRecord], earlier: RunHistory) -> Iterator[str]:
    """Why a step of the last session ran although there were sessions before: what is different from `earlier`, which
    is what the journal added up to before it."""
    before = [s for s in earlier.steps.values() if s.digest == step.digest]
    finished = earlier.finished_by_digest.get(step.digest)
    if finished:
        again = [p for p in step.prerequisites if p in steps and _ran_again(steps[p], earlier)]
        gone = [f for f in (finished[0].result or {}).get("files", []) if not os.path.exists(str(f))]
        if (finished[0].result or {}).get("graph"):
            yield "it inserts steps itself, or changes the graph; such a step runs in every session."
        elif again:
            yield f"it had finished, but {name_of(steps[again[0]])}, which comes before it, ran again."
        elif gone:
            yield f"it had finished, but its result file {gone[0]} is missing (now, at least)."
        else:
            yield "it had finished, but what it left could not be used any more (its value or a result file was gone)."
        return
    if any(s.digest == step.digest for s in earlier.in_doubt):
        yield "an earlier session broke off while it ran: it was in doubt."
        return
    if before:
        error = before[0].error or {}
        cause = error.get("cause") or error.get("message")
        words = {"new": "it had not been started in the session before.", "skipped": "it had been skipped: "}
        yield words.get(before[0].status, f"it had {before[0].status}: ") + (f"{cause}." if cause else "")
        return
    yield from _what_changed(step, steps, earlier)


def _what_changed(step: StepRecord, steps: Dict[int, StepRecord], earlier: RunHistory) -> Iterator[str]:
    """No session before knew it: another argument, another step before it, or it is new."""
    alike = [s for s in earlier.steps.values() if s.func == step.func]
    same = [s for s in alike if repr(s.args) == repr(step.args)]  # not ==, to which 0 and False are the same
    known = {s.digest for s in earlier.steps.values()}
    if same:
        changed = [p for p in step.prerequisites if p in steps and steps[p].digest not in known]
        if changed:
            yield f"what comes before it has changed: {name_of(steps[changed[0]])} is not as it was."
        else:
            yield "it comes after other steps than before."
        return
    old = earlier.steps.get(step.id)
    if old is not None and old.func == step.func and isinstance(old.args, list) and isinstance(step.args, list):
        for place, (was, now) in enumerate(zip(old.args, step.args), 1):
            if repr(was) != repr(now):
                yield f"its argument {place} was {shorten(was, 60)} and is {shorten(now, 60)}."
                return
    yield f"it is new: no earlier session had a step {step.func} with these arguments."


def _ran_again(step: StepRecord, earlier: RunHistory) -> bool:
    """Whether a step of the last session was not kept: a kept one has the place among the finished ones that it had."""
    return step.order not in [s.order for s in earlier.finished_by_digest.get(step.digest, ())]


def name_of(step: StepRecord) -> str:
    """'step 7 ctfStep('mic_007.mrc')', on one line."""
    values = step.args if isinstance(step.args, list) else [step.args]
    text = ", ".join(shorten(value, 60) for value in values)
    return f"step {step.id} {step.func}({text if len(text) <= 100 else text[:97] + '...'})"


def cause_of(step: StepRecord) -> str:
    """Why it failed, in a sentence."""
    error = step.error or {}
    return str(error.get("cause") or error.get("message") or "unknown reason")
