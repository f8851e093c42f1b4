"""mpsteps.report: what a run came to, as text and as JSON; small texts for people."""

from __future__ import annotations

import json

import pytest

from mpsteps.report import RunReport, StepReport, format_seconds, shorten


def report(**changes):
    fields = {
        "protocol": "P", "run_dir": "Runs/1", "status": "finished", "message": "", "total": 3, "finished": 3, "kept": 0,
        "failed": (), "skipped": 0, "in_doubt": (), "workers": 2, "seconds": 1.25, "cpu_seconds": 2.0,
    }  # fmt: skip
    return RunReport(**{**fields, **changes})


def test_the_text_says_what_matters():
    """One line if all went well; a line for each failure, and how many were skipped."""
    assert report().text() == "P finished: 3 of 3 steps in 1.2 s, Runs/1"
    step = StepReport(2, "work", "(5,)", "ValueError: x")
    failed = report(status="failed", finished=1, kept=1, skipped=1, failed=(step,))
    assert failed.text().split("\n") == [
        "P failed: 1 of 3 steps (1 kept from before) in 1.2 s, Runs/1",
        "  step 2 work(5,) failed: ValueError: x",
        "  1 steps that depend on them were skipped",
    ]
    assert report().ok
    assert not failed.ok


def test_json_has_every_field():
    """Failures as objects; texts as they are."""
    found = json.loads(report(message="größer", failed=(StepReport(2, "work", "(5,)", "x"),)).to_json())
    assert found["message"] == "größer"
    assert found["failed"] == [
        {"step": 2, "function": "work", "arguments": "(5,)", "message": "x", "traceback": "", "log": "",
         "peak_kib": 0}
    ]
    assert set(found) == set(RunReport._fields)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"), (0, "0.0 s"), (0.34, "0.3 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.4, "59 s"),
        (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7800, "2 h 10 min"), (3599.9, "1 h 00 min"),
    ],
)  # fmt: skip
def test_durations_are_rounded_for_people(seconds, text):
    """And carry over where rounding reaches the next unit."""
    assert format_seconds(seconds) == text


class Evil:
    def __repr__(self):
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a\nb\x1b[31m", r"'a\nb\x1b[31m'"), ((1,), "(1,)"), (Evil(), "<Evil whose repr fails: RuntimeError>"),
    ],
)  # fmt: skip
def test_values_are_shown_on_one_line(value, text):
    """Whatever their repr does."""
    assert shorten(value) == text


@pytest.mark.parametrize("limit", [20, 21, 80])
def test_long_values_are_cut_in_the_middle(limit):
    """To the limit, with both ends."""
    text = shorten(list(range(1000)), limit)
    assert len(text) <= limit
    assert text.startswith("[0, 1")
    assert text.endswith("999]")
    assert "..." in text
