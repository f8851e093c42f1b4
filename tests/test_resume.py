"""Resume: a second run in the same directory. What has finished is not done again, whatever ended the first run."""

from __future__ import annotations

import functools
import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import pytest
from protocols import Custom, note, notes, wait_until

from mpsteps import (
    MODE_RESTART,
    STATUS_FINISHED,
    STATUS_NEW,
    IntParam,
    ResultOf,
    RunDirectoryError,
    UsageError,
    step,
)
from mpsteps._journal import JournalWriter, read_journal

BOTH = pytest.mark.parametrize("engine", ["inline", "processes"])
INLINE = pytest.mark.parametrize("engine", ["inline"])  # where the engine has no part in it


class Noted(Custom):
    """Every step takes a note when it runs: `work 3`. Executions are counted by these."""

    def work(self, i):
        self.note(f"work {i}")
        self.log.append(i)
        self.table[i] = i * i

    def finish(self):
        self.note("finish")
        self.seen = (sorted(self.log), dict(self.table))

    def value_of(self, i):
        self.note(f"value {i}")
        return {"value": i}

    def use(self, value):
        self.note(f"use {value}")
        self.value = value

    def file_of(self, path):
        self.note("file")
        return self.makeFile(path, "text")

    def read(self, path):
        with open(path) as f:
            self.note(f"read {f.read()}")

    def fail_unless(self, path):
        self.note("try")
        if not os.path.exists(path):
            raise FileNotFoundError(path)


class Session:
    """Runs `insert` again and again in one directory, with a new object each time, as new processes would."""

    def __init__(self, folder):
        self.folder = folder
        self.path = str(folder / "notes")

    def __call__(self, insert, engine, cls=Noted, fails=False, options=None, **params):
        prot = cls(insert, workingDir=str(self.folder / "run"), notes=self.path, **params)
        prot.run(engine=engine, **(options or {}))
        assert prot.isFailed() == fails, prot.getErrorMessage()
        return prot

    def new_notes(self):
        """What was noted since the last call."""
        lines = notes(self.path)
        if lines:
            os.unlink(self.path)
        return sorted(lines)


@pytest.fixture
def session(tmp_path):
    return Session(tmp_path)


def fan(ids, last="finish"):
    def insert(self):
        deps = [self._insertFunctionStep("work", i, prerequisites=[]) for i in ids]
        self._insertFunctionStep(last, prerequisites=deps)

    return insert


# ----------------------------------------------------------------------------------- what is kept, and what is not


@pytest.mark.parametrize("first", ["inline", "processes"])
@pytest.mark.parametrize("second", ["inline", "processes"])
def test_nothing_that_finished_is_done_again_whichever_engine_did_it(session, first, second):
    """All kept: statuses, times, attributes, progress and CPU seconds are there."""
    done = session(fan(range(5)), first)
    assert len(session.new_notes()) == 6
    prot = session(fan(range(5)), second)
    assert session.new_notes() == []
    assert prot.isFinished()
    assert (prot._report.kept, prot._report.finished, prot._report.total) == (6, 6, 6)
    assert (prot.stepsDone, prot.numberOfSteps) == (6, 6)
    assert [s.getStatus() for s in prot.getSteps()] == [STATUS_FINISHED] * 6
    assert prot.seen == done.seen == ([0, 1, 2, 3, 4], {i: i * i for i in range(5)})
    assert sorted(prot.log) == list(range(5))
    assert prot.getSteps()[0].getElapsedTime().total_seconds() > 0
    assert prot.cpuTime == pytest.approx(done.cpuTime, abs=1e-4)


@BOTH
def test_a_changed_argument_runs_its_step_and_what_depends_on_it_and_nothing_else(session, engine):
    """Its siblings are kept."""
    session(fan([1, 2, 3]), engine)
    session.new_notes()
    prot = session(fan([1, 7, 3]), engine)
    assert session.new_notes() == ["finish", "work 7"]
    assert prot.seen[0] == [1, 3, 7]
    assert 2 not in prot.table  # the old step's changes went with it


@INLINE
def test_a_step_inserted_in_the_middle_does_not_run_later_ones_again(session, engine):
    """Steps are recognised by what they are, not by where they stand."""
    session(fan([1, 3, 4]), engine)
    session.new_notes()
    prot = session(fan([1, 2, 3, 4]), engine)
    assert session.new_notes() == ["finish", "work 2"]
    assert prot._report.kept == 3
    assert prot.seen[0] == [1, 2, 3, 4]


@INLINE
def test_fewer_steps_than_before_are_kept_too(session, engine):
    """Only the output, which had other prerequisites, runs again."""
    session(fan([1, 2, 3]), engine)
    session.new_notes()
    prot = session(fan([3, 1]), engine)
    assert session.new_notes() == ["finish"]
    assert prot.seen[0] == [1, 3]


@INLINE
def test_steps_that_are_alike_are_kept_one_by_one(session, engine):
    """Two equal steps and a third one: one runs."""

    def insert(count):
        return lambda self: [self._insertFunctionStep("work", 0, prerequisites=[]) for _ in range(count)]

    session(insert(2), engine)
    assert session.new_notes() == ["work 0"] * 2
    prot = session(insert(3), engine)
    assert session.new_notes() == ["work 0"]
    assert prot._report.kept == 2


@BOTH
def test_vanished_result_files_run_their_step_and_what_is_downstream(session, engine, tmp_path):
    """And nothing else."""
    path = str(tmp_path / "result")

    def insert(self):
        made = self._insertFunctionStep("file_of", path, prerequisites=[])
        self._insertFunctionStep("read", path, prerequisites=[made])
        self._insertFunctionStep("work", 1, prerequisites=[])

    session(insert, engine)
    assert session.new_notes() == ["file", "read text", "work 1"]
    session(insert, engine)
    assert session.new_notes() == []
    os.unlink(path)
    session(insert, engine)
    assert session.new_notes() == ["file", "read text"]


@BOTH
def test_results_of_kept_steps_are_arguments_of_new_ones(session, engine):
    """And can be read from the step."""

    def insert(more):
        def go(self):
            a = self._insertFunctionStep("value_of", 5, prerequisites=[])
            for i in range(more):
                self._insertFunctionStep("use", [i, ResultOf(a)], prerequisites=[])

        return go

    session(insert(1), engine)
    session.new_notes()
    prot = session(insert(2), engine)
    assert session.new_notes() == ["use [1, {'value': 5}]"]
    assert prot.getSteps()[0].result == {"value": 5}
    assert prot.value == [1, {"value": 5}]


@BOTH
def test_kept_changes_are_there_in_the_order_in_which_they_were_made(session, engine):
    """A later step's value wins, as it did; a new step sees all of it."""

    def insert(more):
        def go(self):
            self._insertFunctionStep(self.keepValue, "first")
            self._insertFunctionStep("work", 1)
            self._insertFunctionStep(self.keepValue, "second")
            self._insertFunctionStep("work", 2)
            if more:
                self._insertFunctionStep("look", "value")

        return go

    session(insert(False), engine)
    prot = session(insert(True), engine)
    assert (prot.value, prot.seen, prot.log) == ("second", "second", [1, 2])


@INLINE
def test_lists_keep_all_their_items_when_steps_come_and_go_over_sessions(session, engine):
    """What one session dropped and the next takes back."""
    for ids in ([1, 2, 3], [3, 1, 4], [1, 2, 3, 4], [4, 2], [4, 3, 2, 1]):
        prot = session(fan(ids), engine)
        assert sorted(prot.log) == sorted(ids)
        assert prot.seen[0] == sorted(ids)


@INLINE
def test_one_object_that_runs_again_does_not_double_what_it_has(session, engine):
    """Nor lose it, where _insertAllSteps begins anew."""
    prot = session(fan([1, 2, 3]), engine)
    prot.run(engine=engine)
    assert sorted(prot.log) == [1, 2, 3]
    prot.log.clear()
    prot.run(engine=engine)
    assert sorted(prot.log) == [1, 2, 3]


@INLINE
def test_prerequisites_that_point_forward_are_recognised(session, engine):
    """A first step that runs last."""

    def insert(self):
        first = self._insertFunctionStep("finish", prerequisites=[])
        ids = [self._insertFunctionStep("work", i, prerequisites=[]) for i in range(2)]
        self.getSteps()[first - 1].addPrerequisites(*ids)

    session(insert, engine)
    assert session.new_notes() == ["finish", "work 0", "work 1"]
    session(insert, engine)
    assert session.new_notes() == []


@INLINE
def test_results_are_recognised_although_ids_have_moved(session, engine):
    """ResultOf names a step, not a place."""

    def insert(before):
        def go(self):
            for i in range(before):
                self._insertFunctionStep("work", i, prerequisites=[])
            a = self._insertFunctionStep("value_of", 5, prerequisites=[])
            self._insertFunctionStep("use", [ResultOf(a)], prerequisites=[])

        return go

    session(insert(0), engine)
    session.new_notes()
    session(insert(2), engine)
    assert session.new_notes() == ["work 0", "work 1"]


def test_lambdas_partials_and_local_functions_are_told_apart(session):
    """By what they do, by their constants and by what they hold; a failed one never passes for a finished one."""
    path = session.path

    def local(text):
        def function():
            note(path, text)

        return function

    def insert(ok):
        def go(self):
            for i in range(2):
                self._insertFunctionStep(lambda i=i: note(path, f"default {i}"), prerequisites=[])
                self._insertFunctionStep(local(f"closure {i}"), prerequisites=[])
                self._insertFunctionStep(functools.partial(note, path, f"partial {i}"), prerequisites=[])
            self._insertFunctionStep(lambda: note(path, "constant 1"), prerequisites=[])
            self._insertFunctionStep(lambda: note(path, "constant 2"), prerequisites=[])
            self._insertFunctionStep(lambda: 1 / ok, prerequisites=[])

        return go

    session(insert(0), "inline", fails=True)
    names = [f"{kind} {i}" for kind in ("closure", "default", "partial") for i in range(2)]
    assert session.new_notes() == sorted([*names, "constant 1", "constant 2"])
    session(insert(0), "inline", fails=True)
    assert session.new_notes() == []
    prot = session(insert(1), "inline")
    assert (prot._report.kept, session.new_notes()) == (8, [])


@INLINE
def test_restart_deletes_what_was_there_and_does_everything_again(session, engine, tmp_path):
    """Also the files in extra/."""

    def insert(self):
        self._insertFunctionStep(self.makeFile, self._getExtraPath("old"))
        self._insertFunctionStep("work", 1)

    session(insert, engine)
    session.new_notes()
    prot = session(fan([1]), engine, runMode=MODE_RESTART)
    assert session.new_notes() == ["finish", "work 1"]
    assert prot._report.kept == 0
    assert os.listdir(tmp_path / "run" / "extra") == []


# ------------------------------------------------------------------------------------------------- after failures


@BOTH
def test_a_failed_run_goes_on_when_the_cause_is_removed(session, engine, tmp_path):
    """Only what had not finished runs."""
    cause = tmp_path / "cause"

    def insert(self):
        self._insertFunctionStep("work", 1)
        self._insertFunctionStep("fail_unless", str(cause))
        self._insertFunctionStep("work", 2)

    prot = session(insert, engine, fails=True)
    assert session.new_notes() == ["try", "work 1"]
    assert prot.getSteps()[2].getStatus() == STATUS_NEW
    session(insert, engine, fails=True)
    assert session.new_notes() == ["try"]
    cause.touch()
    prot = session(insert, engine)
    assert session.new_notes() == ["try", "work 2"]
    assert prot.log == [1, 2]
    assert prot.getErrorMessage() == ""


class Changeable(Noted):
    """Its class of values can be made unreadable."""

    def keep_thing(self):
        self.note("thing")
        self.thing = _Thing()


class _Thing:
    broken = False

    def __setstate__(self, state):
        if _Thing.broken:
            raise RuntimeError("another version")
        self.__dict__.update(state)

    def __reduce_ex__(self, protocol):
        return _make_thing, (), {"x": 1}


def _make_thing():
    return _Thing()


def test_a_step_whose_changes_cannot_be_read_any_more_runs_again(session, monkeypatch):
    """With a warning; a class that has changed since must not make the run impossible."""

    def insert(self):
        self._insertFunctionStep("keep_thing")

    session(insert, "inline", cls=Changeable)
    assert session.new_notes() == ["thing"]
    monkeypatch.setattr(_Thing, "broken", True)
    session(insert, "inline", cls=Changeable)
    assert session.new_notes() == ["thing"]
    with open(session.folder / "run" / "logs" / "run.stderr") as f:
        assert "1 keep_thing runs again: what it changed on self cannot be read any more (RuntimeError" in f.read()


# -------------------------------------------------------------------------------------- steps that insert others


class Generates(Noted):
    def _defineParams(self, form):
        super()._defineParams(form)
        form.addParam("items", IntParam, default=3, label="Items")

    def generate(self, local=False):
        self.note("generate")
        ids = [self._insertFunctionStep("work", i, prerequisites=[]) for i in range(self.items.get())]
        self._insertFunctionStep("finish", prerequisites=ids)

    @step(local=True)
    def generate_here(self):
        self.generate()

    def release(self, other):
        self.note("release")
        self.getSteps()[other - 1].setStatus(STATUS_NEW)


@BOTH
@pytest.mark.parametrize("method", ["generate", "generate_here"])
def test_a_step_that_inserted_others_runs_again_and_what_it_inserts_is_recognised(session, engine, method):
    """Otherwise the steps that it had inserted would be missing."""

    def insert(self):
        self._insertFunctionStep(method)

    session(insert, engine, cls=Generates)
    assert session.new_notes() == ["finish", "generate", "work 0", "work 1", "work 2"]
    prot = session(insert, engine, cls=Generates)
    assert session.new_notes() == ["generate"]
    assert (prot._report.total, prot._report.finished, prot._report.kept) == (5, 5, 4)
    assert prot.seen[0] == [0, 1, 2]
    prot = session(insert, engine, cls=Generates, items=4)
    assert session.new_notes() == ["finish", "generate", "work 3"]
    assert prot.seen[0] == [0, 1, 2, 3]


@INLINE
def test_a_step_that_released_another_runs_again(session, engine, tmp_path):
    """Or the other one, which has failed in the first run, would wait for ever."""
    cause = tmp_path / "cause"

    def insert(self):
        self._insertFunctionStep("fail_unless", str(cause), wait=True, prerequisites=[])
        self._insertFunctionStep("release", 1, prerequisites=[])

    session(insert, engine, cls=Generates, fails=True)
    assert session.new_notes() == ["release", "try"]
    cause.touch()
    prot = session(insert, engine, cls=Generates)
    assert session.new_notes() == ["release", "try"]
    assert prot.isFinished()


class Streams(Noted):
    """Finds a new item in each check."""

    _stepsCheckSecs = 0.01
    items = 3

    def _insertAllSteps(self):
        self.found = []
        self.output = self._insertFunctionStep("finish", wait=True, prerequisites=[])

    def _stepsCheck(self):
        output = self.getSteps()[self.output - 1]
        if len(self.found) < self.items:
            self.found.append(len(self.found))
            output.addPrerequisites(self._insertFunctionStep("work", self.found[-1], prerequisites=[]))
        elif output.isWaiting():
            output.setStatus(STATUS_NEW)


class FailsInTheEnd(Streams):
    def finish(self):
        self.note("try")
        raise ValueError("no disk")


class Longer(Streams):
    items = 5


@BOTH
def test_steps_that_stepsCheck_inserts_are_recognised(session, engine):
    """A streaming run that failed goes on where it was."""
    FailsInTheEnd.__name__ = Longer.__name__ = "Streams"  # other versions of the same protocol
    session(None, engine, cls=FailsInTheEnd, fails=True)
    assert session.new_notes() == ["try", "work 0", "work 1", "work 2"]
    prot = session(None, engine, cls=Longer)
    assert session.new_notes() == ["finish", "work 3", "work 4"]
    assert prot.seen[0] == [0, 1, 2, 3, 4]
    assert prot._report.kept == 3
    assert prot.stepsDone == prot.numberOfSteps == 6


# ------------------------------------------------------------------------------------------------ after a crash

SCRIPT = """
import os, sys
sys.path[:0] = {path!r}
from test_resume import Crashes
if __name__ == "__main__":
    prot = Crashes(workingDir={run!r}, notes={notes!r})
    prot.run(engine={engine!r})
"""


class Crashes(Noted):
    """Two steps finish; one takes a note and hangs in the first session, which its file ends."""

    def _insertAllSteps(self):
        ids = [self._insertFunctionStep("work", i) for i in range(2)]
        hang = self._insertFunctionStep("hang", prerequisites=ids)
        self._insertFunctionStep("finish", prerequisites=[hang])

    def hang(self):
        self.note("hang")
        wait_until(lambda: os.path.exists(self._getExtraPath("go")), "for the test")


def crash(tmp_path, engine):
    """Run until `hang` hangs, then kill -9 the coordinator."""
    run, log = str(tmp_path / "run"), str(tmp_path / "notes")
    code = textwrap.dedent(SCRIPT).format(path=[p or os.getcwd() for p in sys.path], run=run, notes=log, engine=engine)
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        wait_until(lambda: "hang" in notes(log) or process.poll() is not None, "for the step that hangs")
        assert process.poll() is None, "the script failed"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(20)


@BOTH
def test_after_kill_9_finished_steps_are_kept_and_doubtful_ones_run_again(session, engine, tmp_path):
    """They are reported: in the report, the log and the journal."""
    crash(tmp_path, engine)
    assert session.new_notes() == ["hang", "work 0", "work 1"]
    (tmp_path / "run" / "extra" / "go").touch()
    with pytest.raises(UsageError, match="1 steps were running when the last session broke off \\(3 - hang\\)"):
        session(None, engine, cls=Crashes, options={"in_doubt": "fail"})
    assert session.new_notes() == []
    prot = session(None, engine, cls=Crashes)
    assert session.new_notes() == ["finish", "hang"]
    assert prot.seen[0] == [0, 1]
    assert prot._report.in_doubt == (3,)
    with open(tmp_path / "run" / "logs" / "run.stderr") as f:
        assert "1 steps were cut in the middle by a crash and run again: 3 - hang" in f.read()
    assert read_journal(tmp_path / "run" / "journal.log").replay().steps[3].doubted
    session(None, engine, cls=Crashes, options={"in_doubt": "fail"})  # nothing is in doubt any more
    assert session.new_notes() == []


ARGUMENTS_SCRIPT = """
import sys
sys.path[:0] = {path!r}
from test_resume import Arguments
if __name__ == "__main__":
    prot = Arguments(workingDir={run!r}, notes={notes!r})
    prot.run(engine="inline")
"""


class Value:
    """An argument of a class of its own."""

    def __init__(self, x):
        self.x = x


class Arguments(Noted):
    """Steps with arguments of all kinds."""

    def _insertAllSteps(self):
        words = [f"word {i}" for i in range(20)]
        kinds = [
            1, 2.5, float("nan"), "text", b"bytes", None, True, (1, [2]), {"a": {"b": 1}}, set(words), frozenset(words),
            {"deep": [set(words)]}, pathlib.Path("a/b"), Value([1, "x"]), self, self.n, ResultOf(1), print, 10**30,
            "ä€",
        ]  # fmt: skip
        try:
            import numpy as np

            kinds += [np.arange(5.0), np.float32(1.5), [np.ones((2, 2), int)]]
        except ImportError:
            pass  # the others are enough
        for i, kind in enumerate(kinds):
            self._insertFunctionStep("take", i, kind, prerequisites=[])

    def take(self, i, kind):
        self.note(i)


def test_arguments_of_all_kinds_are_recognised_in_another_process(session, tmp_path):
    """Also sets, whose order is another one there."""
    run, log = str(tmp_path / "run"), str(tmp_path / "notes")
    code = ARGUMENTS_SCRIPT.format(path=[p or os.getcwd() for p in sys.path], run=run, notes=log)
    for seed in ("1", "2"):
        subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONHASHSEED": seed}, timeout=30)
        if seed == "1":
            assert len(session.new_notes()) >= 20
    assert session.new_notes() == []
    session(None, "processes", cls=Arguments)
    assert session.new_notes() == []


def test_a_journal_cut_anywhere_is_resumed(session, tmp_path):
    """The last frame torn off: its steps run again, nothing else."""
    session(fan(range(4)), "inline")
    session.new_notes()
    journal = tmp_path / "run" / "journal.log"
    data = journal.read_bytes()
    journal.write_bytes(data[: len(data) * 2 // 3])
    prot = session(fan(range(4)), "inline")
    assert prot.seen[0] == [0, 1, 2, 3]
    assert len(session.new_notes()) == 5 - prot._report.kept


SIGNAL_SCRIPT = """
import sys
sys.path[:0] = {path!r}
from test_resume import Crashes
if __name__ == "__main__":
    Crashes(workingDir={run!r}, notes={notes!r}).run(engine={engine!r})
"""


@BOTH
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_run_at_once_and_it_can_be_resumed(session, engine, tmp_path, number):
    """The process ends by the signal, after the journal has been closed: nothing is in doubt."""
    run, log = str(tmp_path / "run"), str(tmp_path / "notes")
    code = SIGNAL_SCRIPT.format(path=[p or os.getcwd() for p in sys.path], run=run, notes=log, engine=engine)
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        wait_until(lambda: "hang" in notes(log) or process.poll() is not None, "for the step that hangs")
        process.send_signal(number)
        assert process.wait(20) == -number
    finally:
        process.kill()
        process.wait(20)
    assert session.new_notes() == ["hang", "work 0", "work 1"]
    history = read_journal(tmp_path / "run" / "journal.log").replay()
    assert (history.status, history.in_doubt) == ("aborted", [])
    assert number.name in history.steps[3].error["message"]
    (tmp_path / "run" / "extra" / "go").touch()
    prot = session(None, engine, cls=Crashes, options={"in_doubt": "fail"})
    assert session.new_notes() == ["finish", "hang"]
    assert prot._report.kept == 2


# ------------------------------------------------------------------------------------------- whose directory it is


class Other(Noted):
    """Another protocol."""


@pytest.mark.parametrize("mode", [0, MODE_RESTART])
def test_the_directory_of_another_protocol_is_left_alone(session, mode, tmp_path):
    """Also by a restart, which would delete it."""
    session(fan([1]), "inline")
    before = sorted(os.listdir(tmp_path / "run"))
    journal = (tmp_path / "run" / "journal.log").read_bytes()
    with pytest.raises(RunDirectoryError, match="is a run of protocol Noted, not of Other: choose another directory"):
        session(fan([1]), "inline", cls=Other, runMode=mode)
    assert sorted(os.listdir(tmp_path / "run")) == before
    assert (tmp_path / "run" / "journal.log").read_bytes() == journal


def test_a_directory_in_use_is_refused_and_its_user_is_named(session, tmp_path):
    """While a step of the first run goes on."""
    found = []

    class Greedy(Noted):
        def second(self):
            try:
                type(self)(fan([1]), workingDir=str(tmp_path / "run")).run(engine="inline")
            except RunDirectoryError as error:
                found.append(str(error))

    session(lambda self: self._insertFunctionStep("second"), "inline", cls=Greedy)
    assert len(found) == 1
    assert f"is in use by pid {os.getpid()}" in found[0]


def test_a_protocol_that_runs_cannot_be_run_again_at_the_same_time(session):
    """And is not marked as failed by the attempt."""
    found = []

    class Twice(Noted):
        def again(self):
            try:
                self.run(engine="inline")
            except UsageError as error:
                found.append(str(error))

    prot = session(lambda self: self._insertFunctionStep("again"), "inline", cls=Twice)
    assert found == ["Twice is running already"]
    assert prot.isFinished()


def test_a_damaged_journal_is_an_error_and_restart_is_the_way_out(session, tmp_path):
    """Damage in the middle is not taken for a torn end."""
    session(fan(range(4)), "inline")
    session.new_notes()
    path = tmp_path / "run" / "journal.log"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))
    from mpsteps import JournalError

    with pytest.raises(JournalError, match="journal"):
        session(fan(range(4)), "inline")
    assert session.new_notes() == []
    session(fan(range(4)), "inline", runMode=MODE_RESTART)
    assert len(session.new_notes()) == 5


def test_the_journal_knows_what_happened(session, tmp_path):
    """Who kept, ran and failed: what `mpsteps steps` and `explain` show."""
    session(fan([1, 2]), "processes")
    history = read_journal(tmp_path / "run" / "journal.log").replay()
    assert history.status == "finished"
    assert [s.status for s in history.steps.values()] == ["finished"] * 3
    assert history.steps[1].args == [1]
    assert history.steps[3].prerequisites == [1, 2]
    assert history.sessions[0]["class"] == "Noted"
    assert history.sessions[0]["engine"] == "processes"
    assert issubclass(JournalWriter, object)
    assert note.__name__ == "note"
