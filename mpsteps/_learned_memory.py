"""How much memory the steps of a function need, from the peaks that earlier sessions of the run have measured.

What a user declares with `@step(memory=...)` wins; what is learned here serves admission only, and is no limit: a step
that needs more than its like is not ended for it.
"""

from __future__ import annotations

from typing import Dict, List

from mpsteps._history import RunHistory

QUANTILE = 0.95
MARGIN = 1.2  # times what 95 % of the steps had at most
AFTER_DEATH = 1.5  # times what a step had when it died for want of memory: it would have had more


def learned_memory(history: RunHistory) -> Dict[str, int]:
    """Function -> bytes, of the functions of which a peak is known."""
    peaks: Dict[str, List[float]] = {}
    for same in history.finished_by_digest.values():
        for step in same:
            if step.peak_kib:
                peaks.setdefault(step.func, []).append(MARGIN * step.peak_kib * 1024)
    for step in history.steps.values():
        if step.peak_kib and step.status in ("failed", "lost"):
            died = (step.error or {}).get("type") == "StepOutOfMemory"
            peaks.setdefault(step.func, []).append((AFTER_DEATH if died else MARGIN) * step.peak_kib * 1024)
    return {func: int(sorted(known)[min(len(known) - 1, int(QUANTILE * len(known)))]) for func, known in peaks.items()}
