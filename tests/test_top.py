"""`mpsteps top`: a run of another process, followed through its journal."""

from __future__ import annotations

import os
import pty
import re
import select
import time

import pytest
from report_runs import large, small
from test_cli import cli  # noqa: F401  # the fixture

from mpsteps._journal import JournalWriter
from mpsteps._journal_follow import Follower
from mpsteps._live import LiveRun
from mpsteps.errors import JournalError

pytestmark = pytest.mark.once


def test_a_follower_reads_what_has_come_and_leaves_what_is_not_whole(tmp_path):
    """Every byte at which a frame can be cut; no record is lost or told twice."""
    path = str(tmp_path / "journal.log")
    with JournalWriter(path) as writer:
        writer.append([["a", 1]])
        follower = Follower(path)
        assert follower.news() == [["a", 1]]
        assert follower.news() == []
        before = writer.size
        writer.append([["b", 2], ["c", 3]])
        writer.append([["d", 4]])
    whole = (tmp_path / "journal.log").read_bytes()
    found = []
    for size in range(before, len(whole) + 1):
        (tmp_path / "part").write_bytes(whole[:size])
        os.truncate(path, before)
        with open(path, "r+b") as f:
            f.write(whole[:size])
        found += follower.news()
    assert found == [["b", 2], ["c", 3], ["d", 4]]
    os.truncate(path, 20)
    with pytest.raises(JournalError, match="begun anew"):
        follower.news()
    follower.close()


def fed(records):
    run = LiveRun()
    run.feed(records)
    return run


def test_figures_are_those_of_the_journal():
    run = fed(small())
    assert (run.total, run.done, run.status) == (9, 7, "failed")
    assert {f: (t.total, t.finished, t.failed, t.skipped, t.left) for f, t in run.functions.items()} == {
        "load": (2, 2, 0, 0, 0), "fit": (5, 4, 1, 0, 0), "join": (1, 1, 0, 0, 0), "last": (1, 0, 0, 1, 0)
    }  # fmt: skip
    assert run.running() == []
    assert run.failures[0][:2] == (7, "fit")
    part = fed(small()[:8])  # step 1 has finished, step 2 has been sent
    assert [(r.step, r.worker, r.since) for r in part.running()] == [(2, 8, 100.2)]


def test_the_time_left_is_work_over_workers_or_the_longest_chain():
    """Ten steps of 2 s on two workers, or a chain of them; what is running has run for a second."""
    session = ["protocol", {"class": "P", "threads": 2, "started": 100.0}]
    first = [["started", 7, 1, 100.0, [1]], ["finished", 7, 102.0, [[1, 2.0, 0, None]]], ["started", 7, 1, 102.0, [2]]]
    wide = [session, ["steps", 1, "f", [[i] for i in range(11)], [[] for _ in range(11)]], *first]
    assert fed(wide).seconds_left(103.0) == pytest.approx((10 * 2.0 - 1.0) / 2)
    chain = [session, ["steps", 1, "f", [[i] for i in range(11)], [[], *([i] for i in range(1, 11))]], *first]
    assert fed(chain).seconds_left(103.0) == pytest.approx(10 * 2.0 - 1.0)
    assert fed(wide[:3]).seconds_left(101.0) is None, "nothing is known yet"
    last = [*wide, ["steps", 12, "output", [[]], [list(range(1, 12))]]]
    assert fed(last).seconds_left(103.0) is not None, "one step of an unknown function does not matter"


def test_a_step_that_was_tried_again_counts_once():
    run = fed([["protocol", {"class": "P", "threads": 1, "started": 100.0}], ["steps", 1, "f", [[]], [[]]],
               ["started", 7, 1, 100.0, [1]], ["failed", 1, 7, 1, 101.0, {"message": "no"}],
               ["started", 7, 2, 102.0, [1]], ["finished", 7, 103.0, [[1, 1.0, 0, None]]]])  # fmt: skip
    assert (run.functions["f"].finished, run.functions["f"].failed, run.done) == (1, 0, 1)


def test_a_large_run_is_followed_quickly():
    began = time.process_time()
    run = fed(large(29_999))
    run.seconds_left(110.0)
    assert time.process_time() - began < 10
    assert run.done == run.total == 29_998


def test_a_run_that_has_ended_or_broke_off_is_told_once(cli):  # noqa: F811
    assert cli("run", "squares.py", "--set", "bad=2", "--keep-going", "--quiet").code == 1
    done = cli("top", "Runs/000001_ProtSquares")
    assert done.code == 0, done.err
    assert "ProtSquares failed" in done.out
    assert "3 of 5 steps (60 %)" in done.out
    assert re.search(r"squareStep +\[#+x+\.*\]  3/4, 1 failed", done.out)
    assert "step 3 squareStep: ValueError: number 2 is bad" in done.out
    assert cli("top", "nowhere").code == 2


def test_a_terminal_is_redrawn_until_the_run_ends_and_given_back(cli):  # noqa: F811
    """While a step waits for us it is shown as running; the last picture stays; the exit code is the run's."""
    os.mkfifo(str(cli.folder / "waiting"))
    run = cli.start("run", "waiting.py", "--threads", "1", "--quiet", env={"LONG": "3"})
    master, slave = pty.openpty()
    try:
        with open(str(cli.folder / "waiting")) as f:
            assert f.read() == "ready"
        top = cli.start("top", "Runs/000001_ProtWaiting", stdout=slave, env={"TERM": "xterm", "COLUMNS": "80"})
        os.close(slave)
        shown = read_until(master, "step 2 longStep  ", 40)
        shown += read_until(master, None, 40)
        assert top.wait(30) == 0
        top.communicate()
        assert shown.startswith("\x1b[?1049h\x1b[?25l")
        assert "\x1b[?25h\x1b[?1049l" in shown
        after = shown.rpartition("\x1b[?1049l")[2]
        assert "ProtWaiting finished" in after
        assert "3 of 3 steps (100 %)" in after
    finally:
        os.close(master)
        run.communicate(timeout=30)


def read_until(fd, text, seconds):
    """What a terminal is shown until `text` is among it; None: until nobody writes to it any more."""
    shown, end = "", time.monotonic() + seconds
    while text is None or text not in shown:
        ready, _, _ = select.select([fd], [], [], max(0.0, end - time.monotonic()))
        assert ready, f"never shown: {text!r} in {shown!r}"
        try:
            data = os.read(fd, 65536)
        except OSError:  # Linux's way of saying that the other end is closed
            data = b""
        if not data:
            assert text is None, f"never shown: {text!r} in {shown!r}"
            return shown
        shown += data.decode()
    return shown
