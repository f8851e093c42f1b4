"""`mpsteps explain`: why a step waits, runs, ran again or failed."""

from __future__ import annotations

import json
import os

import pytest
from report_runs import small
from test_cli import cli  # noqa: F401  # the fixture

from mpsteps._account import Machine, Needs
from mpsteps._digest import step_digest
from mpsteps._explain import Explainer
from mpsteps._history import replay
from mpsteps._learned_memory import learned_memory
from mpsteps._report_data import resources
from mpsteps._timeline import timeline

pytestmark = pytest.mark.once


def session(began=100.0, threads=2):
    return ["protocol", {"class": "P", "threads": threads, "pid": 1, "started": began, "params": {}}]


def explained(records, step, now=None, earlier=None, machine=None, needs=None):
    """The explanation as one text."""
    found = Explainer(
        replay(records), timeline(records, now), replay(earlier) if earlier else None, now is not None, now or 200.0,
        machine or Machine(2), needs or {},
    ).explain(step)  # fmt: skip
    return "\n".join([found.headline, *found.reasons]), found


LIVE = [
    session(), ["steps", 1, "load", [["a"], ["b"], ["c"]], [[], [], []]],
    ["steps", 4, "fit", [[1], [2]], [[1, 2], [3]]], ["steps", 6, "join", [[]], [[4, 5]]],
    ["started", 7, 1, 100.0, [1]], ["started", 8, 1, 100.0, [2]],
    ["finished", 7, 104.0, [[1, 4.0, 1.0, None]]], ["started", 7, 1, 104.0, [3]],
]  # fmt: skip
"""Step 1 took 4 s; 2 runs since 100 s, 3 since 104 s; the present is 106 s."""


def test_what_waits_names_the_prerequisites_and_when_they_may_be_done():
    """Step 2 has taken longer than its like already; 3 should take 2 s more."""
    text, found = explained(LIVE, 4, now=103.0)
    assert "step 4 fit(1) waits for its prerequisites" in text
    assert "It comes after 1 step that has not finished:" in text
    assert "step 2 load('b'), running for 3.0 s, usually 4.0 s" in text
    assert "It cannot begin before about 1.0 s from now." in text
    assert found.expected == pytest.approx(1.0)
    text, found = explained(LIVE, 5, now=106.0)
    assert found.expected == pytest.approx(2.0)
    text, found = explained(LIVE, 6, now=106.0)
    assert "2 steps that have not finished" in text
    assert found.expected is None, "nobody knows how long fit takes"
    assert "from now" not in text


def test_what_runs_says_for_how_long_and_what_is_usual():
    text, _ = explained(LIVE, 3, now=106.0)
    assert "step 3 load('c') is running" in text
    assert "running for 2.0 s on worker 1 (7)" in text
    assert "usually take 4.0 s: about 2.0 s more" in text
    text, _ = explained(LIVE, 2, now=106.0)
    assert "it has taken 2.0 s longer so far" in text


def test_what_could_start_says_which_slot_is_missing():
    """A worker, memory or a card: with who has it."""
    records = [session(), ["steps", 1, "big", [[1], [2], [3], [4]], [[], [], [], []]], ["started", 7, 1, 100.0, [1]],
               ["started", 8, 1, 100.0, [2]]]  # fmt: skip
    text, _ = explained(records, 3, now=101.0)
    assert "All its prerequisites have finished." in text
    assert "all 2 worker slots are taken, by steps 1, 2; 1 step more could start, too." in text
    text, _ = explained(records, 3, 101.0, None, Machine(4, memory=10 * 10**9), {"big": Needs(memory=4 * 10**9)})
    assert "It waits for memory: it needs 4.0 GB, as declared, and of 10.0 GB" in text
    assert "the running steps (1, 2) hold 8.0 GB." in text
    text, _ = explained(records, 3, 101.0, None, Machine(4, gpus=2), {"big": Needs(gpus=1)})
    assert "It waits for a graphics card: all 2 are in use by steps 1, 2." in text
    text, _ = explained(records, 3, 101.0, None, Machine(4))
    assert "A worker is free" in text


def test_what_waits_for_memory_that_nobody_has_declared_says_what_its_like_took():
    """Measured, in this session or before; or not known yet."""
    info = {**session()[1], "engine": "processes", "memory": 10**9, "threads": 4}
    records = [["protocol", info], ["steps", 1, "big", [[n] for n in range(6)], [[]] * 6],
               ["steps", 7, "other", [[]], [[]]], ["started", 7, 1, 100.0, [1]],
               ["started", 8, 1, 100.0, [2]]]  # fmt: skip
    machine, needs = resources(info, {"big", "other"}, learned_memory(replay(records)))
    text, _ = explained(records, 3, 101.0, None, machine, needs)
    assert "how much memory steps of big need is not known yet: until one of them has ended, each counts 4" in text
    records += [["finished", 7, 102.0, [[1, 2.0, 2.0, 300_000]]], ["started", 7, 1, 102.0, [3]]]
    machine, needs = resources(info, {"big", "other"}, learned_memory(replay(records)))
    assert needs["big"] == Needs(memory=368_640_000, measured=True)
    assert needs["other"] == Needs()
    text, _ = explained(records, 4, 103.0, None, machine, needs)
    assert "It waits for memory: its function's steps took up to 307 MB (measured, as nobody has declared it)" in text
    assert "so that it counts 369 MB, and of 1.0 GB the running steps (2, 3) hold 737 MB." in text
    records += [["finished", 8, 103.0, [[2, 3.0, 2.0, 300_000]]]]
    text, _ = explained(records, 4, 103.1, None, machine, needs)
    assert "A worker is free: it is about to be sent. If it is not, it waits for memory: its function's steps" in text


def test_what_is_declared_wins_over_what_was_measured():
    info = {"threads": 4, "memory": 10**9, "needs": {"big": [1, 5 * 10**8, 0]}, "learned": {"old": 3 * 10**8}}
    _, needs = resources(info, {"big", "old", "small"}, {"big": 9 * 10**8, "small": 10**8})
    assert needs == {"big": Needs(1, 5 * 10**8), "old": Needs(1, 3 * 10**8, measured=True), "small": Needs()}


def test_what_waits_in_a_lane_or_is_held_says_so():
    text, _ = explained([*LIVE[:-1], ["started", 7, 1, 104.0, [3, 4]]], 4, now=106.0)
    assert "waits in a lane" in text
    assert "worker 7, where it waits behind step 3 load('c')" in text
    records = [session(), ["inserted", 1, "out", [], "d", [], {"wait": True}]]
    assert "step 1 out() is held" in explained(records, 1, now=101.0)[0]


def test_what_failed_says_why_and_what_it_cost():
    text, found = explained(small(), 7)
    assert "failed" in found.headline
    assert "Why: ValueError: </script>" in text
    assert "1 step after it could not run and was skipped." in text
    assert found.error["traceback"].startswith("Trace")
    text, _ = explained(small(), 9)
    assert "was skipped" in text
    assert "step 7 fit(" in text


def test_what_finished_says_how_long_it_waited_and_for_whom():
    text, _ = explained(small(), 8)
    assert "It waited 4.0 s for its prerequisites, last for step 5" in text


def test_a_run_that_broke_off_leaves_steps_in_doubt_and_steps_that_never_ran():
    assert "step 3 load('c') is in doubt" in explained(LIVE, 3)[0]
    assert "its process is gone" in explained(LIVE, 6)[0]
    ended = [*LIVE, ["failed", 3, 7, 1, 106.0, {"message": "no"}], ["ended", "failed", 107.0, "no"]]
    assert "After step 3 load('c') had failed, no new step was started" in explained(ended, 6)[0]


def digest(func, args, needs=()):
    return step_digest(func, tuple(args), range(len(needs)), None, lambda n: needs[n])


def again(first, second):
    """Both sessions' records: that of the first, and all."""
    return first, [*first, session(began=150.0), *second]


FIRST = [session(), ["steps", 1, "load", [["a"], ["b"]], [[], []]], ["steps", 3, "fit", [[]], [[1, 2]]],
         ["started", 7, 1, 100.0, [1]], ["finished", 7, 101.0, [[1, 1.0, 0, None]]], ["started", 7, 1, 101.0, [2]],
         ["finished", 7, 102.0, [[2, 1.0, 0, None]]], ["started", 7, 1, 102.0, [3]],
         ["finished", 7, 103.0, [[3, 1.0, 0, None]]], ["ended", "finished", 104.0, ""]]  # fmt: skip


def ran(*steps):
    return [r for s in steps for r in (["started", 9, 1, 151.0, [s]], ["finished", 9, 152.0, [[s, 1.0, 0, None]]])]


@pytest.mark.parametrize(
    ("step", "first", "second", "why"),
    [
        (2, FIRST, [["steps", 1, "load", [["a"], ["x"]], [[], []]], *ran(2)], "its argument 1 was 'b' and is 'x'."),
        (3, FIRST, [["steps", 1, "load", [["a"], ["x"]], [[], []]], ["steps", 3, "fit", [[]], [[1, 2]]], *ran(2, 3)],
         "what comes before it has changed: step 2 load('x') is not as it was."),
        (3, FIRST, [["steps", 1, "load", [["a"], ["b"]], [[], []]], ["steps", 3, "fit", [[]], [[1]]], *ran(3)],
         "it comes after other steps than before."),
        (3, FIRST, [["steps", 1, "load", [["a"], ["b"], ["c"]], [[], [], []]], *ran(3)], "it is new"),
        (2, FIRST[:6], [["steps", 1, "load", [["a"], ["b"]], [[], []]], *ran(2)],
         "an earlier session broke off while it ran: it was in doubt."),
        (1, [*FIRST[:4], ["failed", 1, 7, 1, 101.0, {"cause": "ValueError: no"}], ["ended", "failed", 102.0, ""]],
         [["steps", 1, "load", [["a"], ["b"]], [[], []]], *ran(1)], "it had failed: ValueError: no."),
        (3, FIRST[:-3],
         [["steps", 1, "load", [["a"], ["b"]], [[], []]], ["steps", 3, "fit", [[]], [[1, 2]]], *ran(3)],
         "it had not been started in the session before."),
        (3, FIRST, [["steps", 1, "load", [["a"], ["b"]], [[], []]], ["steps", 3, "fit", [[]], [[1, 2]]], *ran(1, 2, 3)],
         "it had finished, but step 1 load('a'), which comes before it, ran again."),
    ],
    ids=["argument", "before", "other", "new", "doubt", "failed", "not started", "ran again"],
)  # fmt: skip
def test_what_ran_again_says_what_is_different(step, first, second, why):
    earlier, records = again(first, second)
    text, _ = explained(records, step, earlier=earlier)
    assert f"Why it ran in this session: {why}" in text


def test_what_was_kept_says_so_and_a_missing_result_file_is_named(tmp_path):
    gone = str(tmp_path / "gone.txt")
    first = [*FIRST[:5], ["result", 1, {"files": [gone]}], ["ended", "finished", 104.0, ""]]
    kept = ["kept", 1, digest("load", ["a"])]
    steps = ["steps", 1, "load", [["a"], ["b"]], [[], []]]
    assert "was kept" in explained([*first, session(began=150.0), steps, kept], 1, earlier=first)[0]
    text, _ = explained([*first, session(began=150.0), steps, *ran(1)], 1, earlier=first)
    assert f"its result file {gone} is missing" in text


def test_the_command_explains_a_real_run(cli):  # noqa: F811
    """A failure with its traceback and output, JSON for machines, and errors that say what to give."""
    assert cli("run", "squares.py", "--set", "bad=2", "--quiet").code == 1
    run = "Runs/000001_ProtSquares"
    done = cli("explain", run, "3")
    assert done.code == 0, done.err
    assert done.out.startswith("step 3 squareStep(2, 0) failed\n  Why: ValueError: number 2 is bad\n")
    assert "    squaring 2\n" in done.out
    assert "raise ValueError" in done.out
    assert os.path.join(run, "logs", "step-000003.log") in done.out
    told = json.loads(cli("explain", run, "sumStep", "--json").out)
    assert (told["step"], told["status"], told["prerequisites"]) == (5, "skipped", [1, 2, 3, 4])
    assert cli("resume", run, "--set", "bad=-1", "--quiet").code == 0
    again = cli("explain", run, "3").out
    assert "Why it ran in this session: its argument 2 was 0 and is False." in again
    assert "was kept" in cli("explain", run, "1").out
    for wrong, message in (("99", "its steps are 1 to 5"), ("squareStep", "there are 4 steps squareStep, say which: 1"),
                           ("nothing", "is no step")):  # fmt: skip
        refused = cli("explain", run, wrong)
        assert (refused.code, message in refused.err, refused.out) == (2, True, ""), refused.err


def test_a_run_that_goes_on_is_explained(cli):  # noqa: F811
    """From another process, while a step runs."""
    os.mkfifo(str(cli.folder / "waiting"))
    process = cli.start("run", "waiting.py", "--threads", "1", "--quiet")
    try:
        with open(str(cli.folder / "waiting")) as f:
            assert f.read() == "ready"
        assert "step 2 longStep() is running" in cli("explain", "Runs/000001_ProtWaiting", "2").out
        waits = cli("explain", "Runs/000001_ProtWaiting", "lastStep").out
        assert "step 3 lastStep() waits" in waits
        assert "step 2 longStep()" in waits
    finally:
        process.terminate()
        process.communicate(timeout=30)
