#!/usr/bin/env python3
"""Draws the life of a step from the table the scheduler runs on, into docs/state-diagram.md.

    python docs/make_state_diagram.py            # write the file anew
    python docs/make_state_diagram.py --check    # exit code 1 if it is out of date

Only what stands between the two marker lines is written; a test fails while it differs from the table.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Dict, List, Tuple

try:
    from mpsteps._core.steps import FINAL, TRANSITIONS, Status
except ImportError:  # run from a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from mpsteps._core.steps import FINAL, TRANSITIONS, Status

PAGE = Path(__file__).resolve().parent / "state-diagram.md"
BEGIN = "<!-- made by docs/make_state_diagram.py from mpsteps._core.steps.TRANSITIONS: do not edit by hand -->"
END = "<!-- end of what was made -->"


def diagram() -> str:
    """The Mermaid text: an arrow for each pair of statuses, labelled with what leads from one to the other."""
    causes: Dict[Tuple[Status, Status], List[str]] = {}
    for (before, cause), after in TRANSITIONS.items():
        causes.setdefault((before, after), []).append(cause.name.lower().replace("_", " "))
    lines = ["```mermaid", "stateDiagram-v2"]
    for (before, after), names in causes.items():
        start = "[*]" if before is Status.UNKNOWN else before.name
        lines.append(f"    {start} --> {after.name}: {', '.join(names)}")
    lines += [f"    {status.name} --> [*]" for status in sorted(FINAL)]
    lines.append("```")
    return "\n".join(lines)


def page(old: str) -> str:
    """The page `old` with the diagram as it is now. ValueError if a marker line is missing."""
    before, begin, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE.name} has lost its marker lines: put back {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n{diagram()}\n{END}{after}"


def main() -> int:
    """The exit code."""
    old = PAGE.read_text(encoding="utf-8")
    new = page(old)
    if "--check" in sys.argv[1:]:
        if new != old:
            print(f"{PAGE} is out of date: run python docs/make_state_diagram.py", file=sys.stderr)
        return int(new != old)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
