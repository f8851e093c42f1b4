"""What was changed under `self._lock` is in the journal: a resumed run has it, in the order in which it became true."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import pytest
from lock_protocols import Shares
from protocols import notes, wait_until

from mpsteps import STATUS_FAILED
from mpsteps._history import replay
from mpsteps._ipc import wire
from mpsteps._journal import pack_bytes, read_journal


def run(tmp_path, insert, engine="processes", **params):
    """A run in the same directory, with a new object, as a new process would."""
    protocol = Shares(insert, workingDir=str(tmp_path / "run"), notes=str(tmp_path / "notes"), **params)
    protocol.run(engine=engine)
    return protocol


def test_it_comes_back_in_the_order_in_which_it_was_done(tmp_path):
    """The step that changed first ends last: by the order of the ends, its changes would win."""
    told, release, good = (str(tmp_path / name) for name in ("told", "release", "good"))

    def insert(protocol):
        second = protocol._insertFunctionStep("changeAfter", told, prerequisites=[])
        first = protocol._insertFunctionStep("changeAndGoOn", told, release, prerequisites=[])
        protocol._insertFunctionStep("makeFile", release, prerequisites=[second])
        protocol._insertFunctionStep("failUnless", good, prerequisites=[first, 3])
        protocol._insertFunctionStep("work", 5)

    before = run(tmp_path, insert, numberOfThreads=2)
    assert before.getSteps()[3].getStatus() == STATUS_FAILED
    kept = before.plain(), before.last, before.best
    assert before.last == (2, 50)

    open(good, "w").close()
    again = run(tmp_path, lambda protocol: (insert(protocol), protocol._steps.pop())[0])  # without the last
    assert again.isFinished(), again.getErrorMessage()
    assert (again.plain(), again.last, again.best) == kept

    after = run(tmp_path, insert)
    assert after.isFinished(), after.getErrorMessage()
    assert after.last == (5, 0)
    assert after.counter == 3


@pytest.mark.parametrize("engine", ["inline", "processes"])
def test_of_attempts_that_failed_nothing_comes_back(tmp_path, engine):
    """While the run goes on, it is there, as with threads; a resume has the changes of steps that finished."""
    good = str(tmp_path / "good")

    def insert(protocol):
        protocol._insertFunctionStep("failsOnce", str(tmp_path / "tried"), prerequisites=[])
        protocol._insertFunctionStep("failUnless", good)

    before = run(tmp_path, insert, engine)
    assert before.counter == 2
    assert len(before.chain) == 3

    open(good, "w").close()
    after = run(tmp_path, insert, engine)
    assert after.isFinished(), after.getErrorMessage()
    assert after.free == ["second attempt"]


def test_published_changes_stand_before_those_of_the_next_holder(tmp_path):
    """In the journal, before anybody else can have the lock: so what it says at any moment makes sense."""
    run(tmp_path, lambda protocol: [protocol._insertFunctionStep("work", i, 3, prerequisites=[]) for i in range(8)])
    counters = []
    records = read_journal(str(tmp_path / "run" / "journal.log")).records
    for record in records:
        if record[0] == "published":
            changes = wire.unpack(replay_bytes(record[2]))
            counters += [change[2] for change in changes if change[1] == "counter"]

    assert counters == list(range(1, 25))


def replay_bytes(text):
    from mpsteps._journal import unpack_bytes

    return unpack_bytes(text)


def test_the_story_of_a_step_that_published(tmp_path):
    """Its pieces, each with its place in the order of all; a failed attempt leaves none."""
    session = ["protocol", {"name": "P", "class": "m.P", "params": {}, "python": "3.8", "host": "h", "pid": 1}]
    records = [
        session,
        *[["inserted", i, f"f{i}", "[]", f"d{i}", [], {}] for i in (1, 2, 3)],
        ["started", 7, 1, 1.0, [1, 2, 3]],
        ["published", 1, pack_bytes(b"a")],
        ["published", 2, pack_bytes(b"b")],
        ["published", 1, pack_bytes(b"c")],
        ["published", 3, pack_bytes(b"x")],
        ["changed", 2, pack_bytes(b"d")],
        ["finished", 7, 2.0, [[2, 0.1, 0.1, None]]],
        ["failed", 3, 7, 1, 2.0, {"message": "no"}],
        ["finished", 7, 2.0, [[1, 0.1, 0.1, None]]],
    ]
    steps = replay(records).steps

    assert steps[1].published == [(1, b"a"), (3, b"c")]
    assert steps[1].changes is None
    assert steps[1].order == 6
    assert steps[2].published == [(2, b"b")]
    assert (steps[2].order, steps[2].changes) == (5, b"d")
    assert steps[3].published == []

    again = replay([*records, session, *records[1:3], ["kept", 2, "d2"], ["kept", 1, "d1"]])
    assert again.steps[1].published == [(1, b"a"), (3, b"c")]


SCRIPT = """
    import sys
    sys.path[:0] = {paths!r}
    from lock_protocols import Shares

    def insert(protocol):
        for i in range(60):
            protocol._insertFunctionStep("addAndNote", i, prerequisites=[])

    protocol = Shares(insert, workingDir={run!r}, notes={notes!r}, numberOfThreads=3)
    protocol.run(engine="processes")
    assert protocol.isFinished(), protocol.getErrorMessage()
    print(protocol.sum, sorted(protocol.free) == list(range(60)), protocol.best, len(protocol.names))
"""


def test_after_kill_9_no_step_counts_twice_and_none_is_missing(tmp_path):
    """Whatever had been published of those that were cut in the middle: they run again, and count once."""
    tests = pathlib.Path(__file__).parent
    script = tmp_path / "script.py"
    paths = [str(tests), str(tests.parent)]
    script.write_text(
        textwrap.dedent(SCRIPT.format(paths=paths, run=str(tmp_path / "run"), notes=str(tmp_path / "notes")))
    )
    for count in (7, 23, 41):
        process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        wait_until(lambda: len(notes(tmp_path / "notes")) >= count or process.poll() is not None, "for steps")
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    last = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)

    assert last.stdout.split() == ["60", "True", "59", "60"], last.stderr
