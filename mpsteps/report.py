"""What a run came to: frozen results, as text and as JSON."""

from __future__ import annotations

from typing import Any, Dict, NamedTuple, Optional, Tuple


class StepReport(NamedTuple):
    """A step that did not finish: its id, its function, the shortened arguments, and the reason.

    `log`: the last lines of its output; `peak_kib`: the most memory that its worker had, KiB (0: not known).
    """

    step: int
    function: str
    arguments: str
    message: str
    traceback: str = ""
    log: str = ""
    peak_kib: int = 0


class RunReport(NamedTuple):
    """One run of one protocol.

    `status`: finished, failed, aborted or interactive. `total`: steps inserted; `finished`: those that finished, in
    this session or earlier; `kept`: those of an earlier session that were not run again; `rerun`: steps that were cut
    in the middle by a crash and ran again. `seconds`: wall time of this session, `cpu_seconds`: of its steps.
    """

    protocol: str
    run_dir: str
    status: str
    message: str
    total: int
    finished: int
    kept: int
    failed: Tuple[StepReport, ...]
    skipped: int
    in_doubt: Tuple[int, ...]
    workers: int
    seconds: float
    cpu_seconds: float

    @property
    def ok(self) -> bool:
        """Whether every step finished."""
        return self.status == "finished"

    def to_json(self) -> str:
        """One JSON object."""
        fields: Dict[str, Any] = self._asdict()
        fields["failed"] = [f._asdict() for f in self.failed]
        import json  # workers, which load this module, have no use for it

        return json.dumps(fields, ensure_ascii=False)

    def text(self) -> str:
        """A few lines for people."""
        done = f"{self.finished} of {self.total} steps"
        kept = f" ({self.kept} kept from before)" if self.kept else ""
        lines = [f"{self.protocol} {self.status}: {done}{kept} in {format_seconds(self.seconds)}, {self.run_dir}"]
        for f in self.failed:
            lines.append(f"  step {f.step} {f.function}{f.arguments} failed: {f.message}")
        if self.skipped:
            lines.append(f"  {self.skipped} steps that depend on them were skipped")
        return "\n".join(lines)


def format_seconds(seconds: Optional[float]) -> str:
    """'0.3 s', '12 s', '3 min 05 s', '2 h 10 min'."""
    if seconds is None:
        return "-"
    if round(seconds, 1) < 10:
        return f"{seconds:.1f} s"
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def format_bytes(count: float) -> str:
    """'312 MB', '1.5 GB': powers of ten, as `memory='4 GB'` is meant."""
    for unit in ("bytes", "kB", "MB"):
        if round(count) < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def shorten(value: Any, limit: int = 80) -> str:
    """`repr(value)` on one line, cut in the middle; never raises."""
    try:
        text = repr(value)
    except Exception as error:
        text = f"<{type(value).__name__} whose repr fails: {type(error).__name__}>"
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= limit else f"{text[: limit // 2 - 2]}...{text[-limit // 2 + 2 :]}"
