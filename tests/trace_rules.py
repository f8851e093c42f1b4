"""The rules of the Trace Event Format for the phases that we write, checked from a parsed file. Knows nothing of us.

After "Trace Event Format" by Nat Duca and Dan Sinclair: JSON Object Format, metadata, complete and flow events.
"""

from __future__ import annotations

import math
from collections import defaultdict

METADATA = {"process_name": "name", "thread_name": "name", "process_sort_index": "sort_index",
            "thread_sort_index": "sort_index"}  # fmt: skip
TOLERANCE = 0.0021  # microseconds: three decimals are written


def broken_rules(document):
    """Sentences, one for each rule that is broken."""
    if not isinstance(document, dict) or not isinstance(document.get("traceEvents"), list):
        return ["the file must be an object with a list traceEvents"]
    found = []
    if document.get("displayTimeUnit", "ms") not in ("ms", "ns"):
        found.append("displayTimeUnit must be ms or ns")
    slices, flows, named = defaultdict(list), defaultdict(list), set()
    for event in document["traceEvents"]:
        found += _basic(event)
        if found:
            return found
        place = event["pid"], event["tid"]
        if event["ph"] == "M":
            named.add((event["name"], place))
        elif event["ph"] == "X":
            slices[place].append((event["ts"], event["ts"] + event["dur"]))
        else:
            flows[event["cat"], event["name"], event["id"]].append(event)
    for place, spans in slices.items():
        if ("thread_name", place) not in named:
            found.append(f"thread {place} has slices and no name")
        found += _crossing(place, sorted(spans, key=lambda s: (s[0], -s[1])))
    for key, ends in flows.items():
        found += _flow(key, ends, slices)
    return found


def _basic(event):
    if not isinstance(event, dict):
        return [f"{event!r} is no object"]
    phase = event.get("ph")
    if phase not in ("M", "X", "s", "f"):
        return [f"phase {phase!r} is not one that we write"]
    for key in ("pid", "tid"):
        if type(event.get(key)) is not int or event[key] < 0:
            return [f"{key} of {event} must be an integer"]
    if not isinstance(event.get("name"), str) or not event["name"]:
        return [f"{event} has no name"]
    if phase == "M":
        key = METADATA.get(event["name"])
        if key is None or key not in event.get("args", {}):
            return [f"metadata {event} is not of a known kind, or lacks its argument"]
        return []
    for key in ("ts", "dur") if phase == "X" else ("ts",):
        value = event.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
            return [f"{key} of {event} must be a number of microseconds"]
    if not isinstance(event.get("cat"), str):
        return [f"{event} has no category"]
    if phase == "X":
        return [] if isinstance(event.get("args", {}), dict) else [f"args of {event} must be an object"]
    return [] if isinstance(event.get("id"), (int, str)) else [f"{event} has no id"]


def _crossing(place, spans):
    stack = []
    for begin, end in spans:
        while stack and stack[-1] <= begin + TOLERANCE:
            stack.pop()
        if stack and end > stack[-1] + TOLERANCE:
            return [f"slices of thread {place} cross at {begin}"]
        stack.append(end)
    return []


def _flow(key, ends, slices):
    if sorted(e["ph"] for e in ends) != ["f", "s"]:
        return [f"flow {key} must have one start and one end"]
    first, last = sorted(ends, key=lambda e: e["ph"], reverse=True)
    if last["ts"] < first["ts"]:
        return [f"flow {key} ends before it starts"]
    if last.get("bp") != "e":
        return [f"flow {key} binds to the next slice, not to the one in which it ends"]
    return [
        f"an end of flow {key} lies in no slice"
        for e in ends
        if not any(b - TOLERANCE <= e["ts"] <= t + TOLERANCE for b, t in slices[e["pid"], e["tid"]])
    ]
