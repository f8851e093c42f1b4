"""mpsteps.progress: what is shown of a run, where, how often; and that showing it never ends it."""

from __future__ import annotations

import io
import re
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from mpsteps.progress import LineProgress, LiveProgress, PlainProgress, Progress, SafeStream, make_progress
from mpsteps.report import RunReport
from mpsteps.steps import Step


class Clock:
    """Seconds that only the test moves."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


class ProtTest:
    """A protocol is only asked for its name."""


class Run:
    """What a listener sees of a run; `finish` and the others do to it what the coordinator does."""

    def __init__(self, kind, total=200, kept=0, stream=None):
        self.protocol, self.workers, self.run_dir = ProtTest(), 4, "Runs/000001_ProtTest"
        self.steps = [Step("work", "workStep", (f"mic_{i}.mrc",)) for i in range(1, total + 1)]
        self.done = kept
        self.stream = io.StringIO() if stream is None else stream
        self.clock = Clock()
        self.shown = kind(SafeStream(self.stream), self.clock)
        self.shown.run_started(self, kept)

    @property
    def total(self):
        return len(self.steps)

    def finish(self, *steps, seconds=0.0):
        self.clock.now += seconds
        self.done += len(steps)
        self.shown.steps_finished(self, steps)

    def begin(self, step, seconds=0.0):
        self.clock.now += seconds
        self.shown.step_running(self, step)

    def end(self, status="finished", **fields):
        values = {
            "protocol": "ProtTest", "run_dir": self.run_dir, "status": status, "message": "", "total": self.total,
            "finished": self.done, "kept": 0, "failed": (), "skipped": 0, "in_doubt": (), "workers": 4,
            "seconds": 12.0, "cpu_seconds": 34.0,
        }  # fmt: skip
        values.update(fields)
        self.shown.run_ended(self, RunReport(**values))

    def text(self):
        return self.stream.getvalue()

    def new_lines(self):
        lines = self.text().splitlines()
        self.stream.seek(0)
        self.stream.truncate()
        return lines


# ------------------------------------------------------------------------------------------------------ plain lines


def test_a_plain_run_begins_and_ends_with_a_line():
    """Name, steps, workers and directory first; status, time and CPU time last."""
    run = Run(PlainProgress)
    assert run.new_lines() == ["ProtTest: 200 steps, 4 workers, Runs/000001_ProtTest"]
    run.finish(*range(1, 201), seconds=0.5)
    run.end()
    assert run.new_lines() == ["finished: 200 of 200 steps in 12 s, 34 s of CPU"]


def test_a_failed_plain_run_ends_with_its_losses():
    """How many failed, how many were skipped."""
    run = Run(PlainProgress)
    run.new_lines()
    run.end("failed", failed=(None, None), skipped=7)
    assert run.new_lines() == ["failed: 0 of 200 steps in 12 s, 2 failed, 7 skipped, 34 s of CPU"]


def test_kept_steps_are_told_and_count_as_done():
    """But the rate and the time left are those of this session."""
    run = Run(PlainProgress, kept=120)
    assert run.new_lines()[1] == "120 of 200 steps kept from before"
    run.finish(*range(121, 141), seconds=10)
    assert run.new_lines() == ["140 of 200 steps (70 %), 2 steps/s, after 10 s, 30 s left"]


def test_plain_lines_come_with_a_tenth_of_the_steps_but_not_more_than_one_a_second():
    """Ten thousand steps in five seconds give a handful of lines."""
    run = Run(PlainProgress, total=10_000)
    run.new_lines()
    for step in range(1, 10_001):
        run.begin(step)
        run.finish(step, seconds=0.0005)
    lines = run.new_lines()
    assert 2 <= len(lines) <= 5
    assert lines[0].startswith("20")
    assert "2000 steps/s" in lines[0]


def test_plain_lines_come_every_ten_seconds_when_there_is_little_progress():
    """On any news, a step that begins included; without news there is no line, for there is no timer."""
    run = Run(PlainProgress, total=1000)
    run.new_lines()
    run.finish(1, seconds=9)
    assert run.new_lines() == []
    run.begin(2, seconds=2)
    assert run.new_lines() == ["1 of 1000 steps (0 %), 5.5 steps/min, after 11 s, 3 h 03 min left"]
    run.begin(3, seconds=9)
    assert run.new_lines() == []


def test_no_line_says_more_than_all_or_divides_by_nothing():
    """With no steps, with steps that are added, with a total that is behind."""
    run = Run(PlainProgress, total=0)
    run.begin(1, seconds=11)
    run.steps = run.steps + [Step("work", "workStep", ())] * 3
    run.shown.steps_inserted(run)
    run.finish(1, 2, 3, seconds=11)
    run.done = 5
    run.begin(1, seconds=11)
    for line in run.new_lines():
        done, total = (int(n) for n in re.findall(r"(\d+) of (\d+) steps", line)[0]) if " of " in line else (0, 0)
        assert done <= total


def test_plain_lines_start_no_thread():
    """Nor any other timer."""
    before = threading.active_count()
    run = Run(PlainProgress)
    run.finish(1, seconds=11)
    assert threading.active_count() == before


# ------------------------------------------------------------------------------------------------------- bad news


def test_a_failure_is_told_at_once_with_its_output():
    """And what cannot run because of it; and attempts that are tried again."""
    run = Run(PlainProgress)
    run.new_lines()
    run.shown.step_retried(run, 3, 1, "ValueError: bad")
    run.shown.step_failed(run, 3, "step 3 workStep('x') failed: ValueError: bad\nits last output:\n  hello")
    run.shown.steps_skipped(run, [4, 5], 3)
    run.shown.steps_skipped(run, [6], 3)
    run.shown.run_stopping(run, "waiting for the running steps")
    assert run.new_lines() == [
        "attempt 1 of step 3 workStep('mic_3.mrc',) failed, another one follows: ValueError: bad",
        "step 3 workStep('x') failed: ValueError: bad",
        "its last output:",
        "  hello",
        "2 steps are skipped, since step 3 failed",
        "1 step is skipped, since step 3 failed",
        "stopping: waiting for the running steps",
    ]
    run.finish(1, seconds=11)
    assert run.new_lines()[0].endswith(", 1 failed, 3 skipped")


def test_the_flood_of_failures_is_dammed():
    """A hundred are told, the others counted: a run of bad input is not slowed down by telling of it."""
    run = Run(PlainProgress, total=1000)
    run.new_lines()
    for step in range(1, 1001):
        run.shown.step_failed(run, step, f"step {step} failed")
        run.shown.steps_skipped(run, [step], step)
    lines = run.new_lines()
    assert len(lines) == 201  # two for each of a hundred, and where to find the others
    assert "step 100 failed" in lines
    assert "step 101 failed" not in lines
    assert any("mpsteps steps Runs/000001_ProtTest --failed" in line for line in lines)
    run.begin(1, seconds=11)
    assert run.new_lines()[0].endswith("1000 failed, 1000 skipped")


def test_control_characters_do_not_reach_the_terminal():
    """Of a program's output, or of a file's name."""
    run = Run(PlainProgress)
    run.shown.step_failed(run, 1, "bad\x1b[2J\r\x07 news\n\tmore")
    assert run.text().endswith("bad?[2J?? news\n\tmore\n")


# ----------------------------------------------------------------------------------------- streams that do not work


class Broken(Terminal):
    """Fails as a closed pipe does, once it has been told to."""

    error = None
    attempts = 0

    def write(self, text):
        if self.error is not None:
            self.attempts += 1
            raise self.error
        return super().write(text)


@pytest.mark.parametrize("kind", [PlainProgress, LineProgress, LiveProgress])
@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(28, "No space left"), ValueError("closed file")])
def test_a_stream_that_fails_does_not_end_the_run(kind, error):
    """It is left alone from then on."""
    if kind is LiveProgress:
        pytest.importorskip("rich")
    stream = Broken()
    run = Run(kind, stream=stream)
    stream.error = error
    run.begin(1, seconds=1)
    run.shown.step_failed(run, 1, "bad")
    attempts = stream.attempts
    run.finish(2, seconds=20)
    run.end("failed")
    run.shown.close()
    assert stream.attempts == attempts == 1


def test_a_character_that_the_stream_has_not_is_escaped():
    """A German terminal of the nineties is no reason to lose the message."""
    raw = io.BytesIO()
    run = Run(PlainProgress, stream=io.TextIOWrapper(raw, encoding="ascii", errors="strict", write_through=True))
    run.shown.step_failed(run, 1, "Å is \udcff too small")
    assert b"\\xc5 is ? too small" in raw.getvalue()
    run.shown.step_failed(run, 1, "second")
    assert b"second" in raw.getvalue()


# --------------------------------------------------------------------------------------------------- which display


def test_the_display_fits_the_stream(monkeypatch):
    """Nothing when quiet or without stderr; plain lines unless there is a terminal that can move its cursor."""
    monkeypatch.delenv("TERM", raising=False)
    assert type(make_progress(Terminal(), quiet=True)) is Progress
    assert type(make_progress(None)) is Progress
    assert type(make_progress(io.StringIO())) is PlainProgress
    monkeypatch.setenv("TERM", "dumb")
    assert type(make_progress(Terminal())) is PlainProgress
    closed = io.StringIO()
    closed.close()
    assert type(make_progress(closed)) is PlainProgress


def test_a_terminal_gets_the_bar_if_rich_is_installed(monkeypatch):
    """And one rewritten line if it is not."""
    monkeypatch.setenv("TERM", "xterm")
    with monkeypatch.context() as without:
        for name in [n for n in sys.modules if n == "rich" or n.startswith("rich.")]:
            without.delitem(sys.modules, name)
        without.setitem(sys.modules, "rich", None)
        assert type(make_progress(Terminal())) is LineProgress
    pytest.importorskip("rich")
    assert type(make_progress(Terminal())) is LiveProgress


def test_the_quiet_display_says_nothing_and_can_be_closed():
    """It takes every call."""
    run = Run(lambda stream, clock: Progress(), total=2)
    run.begin(1)
    run.finish(1)
    run.shown.step_failed(run, 2, "bad")
    run.end("failed")
    with run.shown:
        pass
    assert run.text() == ""


# ------------------------------------------------------------------------------------------------- one rewritten line


def test_the_rewritten_line_is_drawn_eight_times_a_second_at_most():
    """However many steps there are."""
    run = Run(LineProgress, total=8000, stream=Terminal())
    for step in range(1, 8001):
        run.finish(step, seconds=1 / 8000)
    assert 7 <= run.text().count("\r") <= 10


def test_messages_stand_above_the_rewritten_line():
    """The line is wiped first and drawn again afterwards, nothing of it is left behind the message."""
    run = Run(LineProgress, stream=Terminal())
    run.finish(1, 2, seconds=1)
    run.shown.step_failed(run, 3, "bad")
    run.end("failed")
    assert screen(run.text()) == [
        "ProtTest: 200 steps, 4 workers, Runs/000001_ProtTest",
        "bad",
        "2 of 200 steps (1 %), 2 steps/s, after 1.0 s, 1 min 38 s left, 1 failed",
        "",
    ]
    run.shown.close()
    assert run.text().endswith("1 failed\n")


def screen(text):
    """The lines that a terminal shows after `text`, which has \\r and \\n in it."""
    lines, column = [[]], 0
    for c in text:
        if c == "\r":
            column = 0
        elif c == "\n":
            lines.append([])
            column = 0
        else:
            lines[-1][column : column + 1] = c
            column += 1
    return ["".join(line).rstrip() for line in lines]


# ---------------------------------------------------------------------------------------------------- the live bar


@pytest.fixture
def live(monkeypatch):
    """A run with the live bar, on a terminal of 100 columns."""
    pytest.importorskip("rich")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    run = Run(LiveProgress, stream=Terminal())
    yield run
    run.shown.close()


def drawn(run):
    """The lines of the live display as they would be drawn now, without colours."""
    run.stream.seek(0)
    run.stream.truncate()
    run.shown._console.print(run.shown._render())
    return [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line).rstrip() for line in run.text().splitlines()]


def test_the_bar_shows_counts_rate_and_times(live):
    """And the steps that have been running longest, oldest first, no more than four."""
    live.finish(*range(1, 51), seconds=10)
    for step in range(51, 58):
        live.begin(step, seconds=1)
    live.shown.close()
    live.shown._running.update({step: live.clock.now - 60 + step for step in range(51, 58)})
    lines = drawn(live)
    assert lines[0].startswith("50/200  25% ")
    assert lines[0].endswith("2.9 steps/s, after 17 s, 51 s left")
    assert "━" in lines[0]
    assert lines[1] == "  step 51 workStep('mic_51.mrc',)  9.0 s"
    assert lines[-1] == "  and 3 more"
    assert len(lines) == 6


def test_steps_that_ended_are_shown_no_more(live):
    """Finished, failed or about to be tried again; and a short one is not shown at all."""
    for step in (1, 2, 3, 4):
        live.begin(step)
    live.begin(5, seconds=5)
    live.finish(1)
    live.shown.step_failed(live, 2, "bad")
    live.shown.step_retried(live, 3, 1, "bad")
    live.shown._live.stop()
    lines = drawn(live)
    assert "workStep 1/200" in lines[1]
    assert [line.split("  ")[1] for line in lines[2:]] == ["step 4 workStep('mic_4.mrc',)"]
    assert lines[0].endswith("1 failed")


def test_failures_stand_above_the_bar_and_their_brackets_are_no_markup(live):
    """As text, in one piece, whatever the width."""
    message = "step 9 failed: KeyError: '[red]x[/red]' " + "long " * 40
    live.shown.step_failed(live, 9, message)
    assert message in live.text()
    assert "Runs/000001_ProtTest" in live.text()


def test_the_terminal_is_given_back(live):
    """At the end of a run, and when it breaks off; the cursor is visible again."""
    live.end()
    assert live.text().rstrip().endswith("\x1b[?25h")
    before = live.text()
    live.shown.close()
    assert live.text() == before


def test_no_color_is_respected(monkeypatch):
    """https://no-color.org"""
    pytest.importorskip("rich")
    monkeypatch.setenv("NO_COLOR", "1")
    run = Run(LiveProgress, stream=Terminal())
    run.shown.step_failed(run, 1, "bad")
    run.end("failed")
    assert not re.search(r"\x1b\[3\d|\x1b\[[\d;]*38;", run.text())


# ------------------------------------------------------------------------------------------------------- cost


@pytest.mark.parametrize("kind", [PlainProgress, LineProgress, LiveProgress])
def test_a_call_costs_a_few_microseconds(kind):
    """Measured with the real clock, generously: the coordinator makes two of them a step."""
    if kind is LiveProgress:
        pytest.importorskip("rich")
    run = Run(kind, total=20_000, stream=Terminal())
    run.shown._clock = time.monotonic
    began = time.process_time()
    for step in range(1, 20_001):
        run.shown.step_running(run, step)
        run.done += 1
        run.shown.steps_finished(run, (step,))
    used = time.process_time() - began
    run.shown.close()
    assert used < 20_000 * 25e-6


def test_it_needs_of_a_run_what_listeners_are_promised():
    """A run is `protocol`, `steps`, `run_dir`, `workers`, `done` and `total`, and nothing else is read."""
    run = Run(PlainProgress)
    bare = SimpleNamespace(protocol=run.protocol, steps=run.steps, run_dir="r", workers=1, done=3, total=4)
    stream = io.StringIO()
    shown = PlainProgress(SafeStream(stream), run.clock)
    shown.run_started(bare, 0)
    run.clock.now += 11
    shown.steps_finished(bare, [3])
    assert stream.getvalue().splitlines()[1].startswith("3 of 4 steps (75 %)")
