"""The HTML report: one file that needs nothing else, neither a network nor a second file.

The page is in `page/`: its frame, its style, its script. The data stand in it as JSON in a script element that is not
executed, with every `<` escaped, so that nothing in a step's arguments or output can end that element; the script puts
them into the document as text only. The page's own policy forbids it to load anything.
"""

from __future__ import annotations

import html
import json
import pkgutil
from typing import Any, Dict

from mpsteps._results_file import new_text_file

BEGINS = "<!doctype html>\n<!-- written by mpsteps report -->\n"


def write_report(data: Dict[str, Any], path: str) -> None:
    """Write the page that shows `data` (see `_report_data`) to `path`, all or nothing. UsageError if that fails."""
    with new_text_file(path, BEGINS, "the report") as file:
        file.write(page(data))


def page(data: Dict[str, Any]) -> str:
    """The page, from after its first lines."""
    title = f"{data['protocol']} {data['status']}"
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    frame = _part("report.html")
    for mark, part in (
        ("{{title}}", html.escape(title)), ("{{style}}", _part("report.css")), ("{{script}}", _part("report.js")),
        ("{{data}}", text),  # last: whatever it holds is not looked at for marks
    ):  # fmt: skip
        before, found, after = frame.partition(mark)
        assert found, f"page/report.html lacks {mark}"
        frame = f"{before}{part}{after}"
    return frame


def _part(name: str) -> str:
    data = pkgutil.get_data("mpsteps", f"page/{name}")
    assert data is not None
    return data.decode("utf-8")
