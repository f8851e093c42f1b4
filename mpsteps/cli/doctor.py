"""`mpsteps doctor`: what this machine gives, in words, with advice."""

from __future__ import annotations

import json
import textwrap
from typing import Any, Iterator, List

from mpsteps._checkup import BAD, NOTE, Finding, look
from mpsteps._machine import usable_cores
from mpsteps._self_test import self_test
from mpsteps.cli import output

MOST_WORKERS = 8  # for the self-test, unless the user wants more
_MARKS = {"good": "ok ", "note": " ! ", "bad": "BAD"}


def doctor_command(args: Any) -> int:
    """`mpsteps doctor`."""
    workers = args.threads or min(MOST_WORKERS, usable_cores())
    findings: List[Finding] = []
    for finding in _all(workers, not args.no_self_test):
        findings.append(finding)
        if not args.json:
            output.put("\n".join(_lines(finding)))  # at once: the self-test takes a while
    bad = [f.topic for f in findings if f.state == BAD]
    if args.json:
        told = [f._asdict() for f in findings]
        output.put(json.dumps({"ok": not bad, "workers": workers, "findings": told}, ensure_ascii=False))
    else:
        output.put("\n" + _verdict(findings, bad, workers))
    return 1 if bad else 0


def _all(workers: int, run_steps: bool) -> Iterator[Finding]:
    yield from look(workers)
    if run_steps:
        yield from self_test(workers)


def _lines(finding: Finding) -> Iterator[str]:
    start = f"{_MARKS[finding.state]} {finding.topic}: "
    for text, first in ((finding.fact, start), (finding.advice, "    > ")):
        if text:
            yield textwrap.fill(
                output.printable(text), 110, initial_indent=first, subsequent_indent=" " * 6, break_on_hyphens=False
            )


def _verdict(findings: List[Finding], bad: List[str], workers: int) -> str:
    if bad:
        return f"Not all is well: {', '.join(bad)}."
    noted = [f.topic for f in findings if f.state == NOTE]
    cores = usable_cores()
    use = f"--threads {cores} would use all cores that this process may use"
    return f"All works. {use}." + (f" Worth a look: {', '.join(noted)}." if noted else "")
