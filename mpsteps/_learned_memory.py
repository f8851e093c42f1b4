"""How much memory the steps of a function need, learned from the peaks that were measured: of their siblings in the
same session, and of earlier sessions of the run.

What a user declares with `@step(memory=...)` wins; what is learned here serves admission only, and is no limit: a step
that needs more than its like is not ended for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Dict, List, Sequence

if TYPE_CHECKING:
    from mpsteps._history import RunHistory  # a pool has none, and it takes long to load

QUANTILE = 0.95
MARGIN = 1.2  # times what 95 % of the steps had at most
AFTER_DEATH = 1.5  # times what a step had when it died for want of memory: it would have had more
ASSUMED = 4 * 10**9
"""Bytes that a step is taken to need at first, where nothing is known of its function. More than most take; where there
are as many for every worker, as in most machines that are meant for it, nobody waits for anything."""


def need_of(peaks: Sequence[float]) -> int:
    """Bytes that a step needs whose siblings had these (at least one), with their margin."""
    return int(sorted(peaks)[min(len(peaks) - 1, int(QUANTILE * len(peaks)))])


def known_peaks(history: RunHistory) -> Dict[str, List[float]]:
    """Function -> bytes that its steps had, with the margin, of the functions of which a peak is known."""
    peaks: Dict[str, List[float]] = {}
    for same in history.finished_by_digest.values():
        for step in same:
            if step.peak_kib:
                peaks.setdefault(step.func, []).append(MARGIN * step.peak_kib * 1024)
    for step in history.steps.values():
        if step.peak_kib and step.status in ("failed", "lost"):
            died = (step.error or {}).get("type") == "StepOutOfMemory"
            peaks.setdefault(step.func, []).append((AFTER_DEATH if died else MARGIN) * step.peak_kib * 1024)
    return peaks


def learned_memory(history: RunHistory) -> Dict[str, int]:
    """Function -> bytes, of the functions of which a peak is known."""
    return {func: need_of(known) for func, known in known_peaks(history).items()}
