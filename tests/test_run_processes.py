"""Real runs, on both engines: order, modes, results, failures, waiting and inserted steps, declarations."""

from __future__ import annotations

import os
import sys
import threading
import time

import pytest
from protocols import Custom, Parallel, meet, note, notes, wait_until

from mpsteps import (
    STATUS_FAILED,
    STATUS_FINISHED,
    STATUS_INTERACTIVE,
    STATUS_NEW,
    STEPS_PARALLEL,
    BooleanParam,
    Listener,
    Protocol,
    ResultOf,
    StringParam,
    step,
)

BOTH = pytest.mark.parametrize("engine", ["inline", "processes"])


@pytest.fixture
def run(tmp_path, monkeypatch):
    """`run(insert, engine, cls=Custom, **params)` runs the steps that `insert(protocol)` inserts."""
    monkeypatch.chdir(tmp_path)

    def go(insert, engine=None, cls=Custom, options=None, **params):
        prot = cls(insert, workingDir="run", notes=str(tmp_path / "notes"), **params)
        prot.run(engine=engine, **(options or {}))
        return prot

    return go


def statuses(prot):
    return [s.getStatus() for s in prot.getSteps()]


# ------------------------------------------------------------------------------------------------- the basics


@pytest.mark.versions
@BOTH
def test_the_example_of_the_scipion_guide_runs(run, engine):
    """processStep in parallel, createOutputStep after all of them."""

    def insert(self):
        deps = [self._insertFunctionStep(self.add, i, prerequisites=[]) for i in range(6)]
        self._insertFunctionStep("look", "log", prerequisites=deps)

    prot = run(insert, engine)
    assert prot.isFinished(), prot.getErrorMessage()
    assert sorted(prot.seen) == list(range(6))
    assert statuses(prot) == [STATUS_FINISHED] * 7
    assert (prot.stepsDone, prot.numberOfSteps) == (7, 7)


def test_parallel_steps_overlap_in_time_in_other_processes(run, tmp_path):
    """Two steps meet: neither could go on alone."""

    def insert(self):
        for i in range(2):
            self._insertFunctionStep(self.meetOthers, str(tmp_path / "meeting"), i, 2, prerequisites=[])
        self._insertFunctionStep(self.pids, prerequisites=[])

    prot = run(insert)
    assert prot.isFinished(), prot.getErrorMessage()
    assert prot.log != [os.getpid()]


class Serial(Custom):
    stepsExecutionMode = 0

    def where(self, name):
        self.log.append((name, os.getpid(), threading.current_thread() is threading.main_thread()))


def test_serial_steps_run_in_order_in_the_calling_process(run):
    """Also those that need nobody: one at a time, by id."""

    def insert(self):
        for name in "abc":
            self._insertFunctionStep(self.where, name, prerequisites=[])
        self._insertFunctionStep(self.where, "d")

    prot = run(insert, cls=Serial)
    assert prot.log == [(name, os.getpid(), True) for name in "abcd"]


class SetInInit(Custom):
    stepsExecutionMode = 0

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.stepsExecutionMode = STEPS_PARALLEL


def test_parallel_mode_set_on_the_instance_uses_worker_processes(run):
    """As half of the plug-ins set it."""
    prot = run(lambda self: self._insertFunctionStep(self.pids), cls=SetInInit)
    assert prot.isFinished(), prot.getErrorMessage()
    assert prot.log != [os.getpid()]


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_are_the_number_of_workers(run, tmp_path, threads):
    """So many steps meet, and the report says so."""

    def insert(self):
        for i in range(threads):
            self._insertFunctionStep(self.meetOthers, str(tmp_path / "meeting"), i, threads, prerequisites=[])

    prot = run(insert, numberOfThreads=threads)
    assert prot.isFinished(), prot.getErrorMessage()
    assert prot._report.workers == threads


@pytest.mark.versions
@BOTH
def test_functions_lambdas_partials_and_static_methods_can_be_steps(run, engine, tmp_path):
    """A lambda that uses self means this protocol."""
    import functools

    def insert(self):
        self._insertFunctionStep(lambda: self.log.append("lambda"))
        self._insertFunctionStep(functools.partial(self.add, "partial"))
        self._insertFunctionStep(note, str(tmp_path / "out"), "function")
        self._insertFunctionStep("add", "by name")

    prot = run(insert, engine)
    assert prot.isFinished(), prot.getErrorMessage()
    assert prot.log == ["lambda", "partial", "by name"]
    assert notes(tmp_path / "out") == ["function"]


@BOTH
def test_two_protocols_one_after_another_and_one_protocol_twice(run, engine, tmp_path):
    """The second run of an object in its directory finds everything done."""

    def insert(self):
        self._insertFunctionStep(self.takeNote, "x")

    prot = run(insert, engine)
    prot.run(engine=engine)
    assert prot.isFinished()
    assert prot._report.kept == 1
    assert notes(tmp_path / "notes") == ["x"]
    other = Custom(insert, workingDir="other", notes=str(tmp_path / "notes"))
    other.run(engine=engine)
    assert notes(tmp_path / "notes") == ["x", "x"]


def test_without_a_working_directory_a_numbered_one_is_made_in_Runs(tmp_path, monkeypatch):
    """Relative to the current directory, by the name of the class."""
    monkeypatch.chdir(tmp_path)
    prot = Custom(lambda self: self._insertFunctionStep(self.makeFile, self._getExtraPath("f")))
    prot.run(engine="inline")
    assert prot.isFinished(), prot.getErrorMessage()
    assert prot.getWorkingDir() == "Runs/000001_Custom"
    assert os.path.exists("Runs/000001_Custom/extra/f")


@BOTH
def test_paths_logs_and_the_current_directory_serve_steps(run, engine, tmp_path):
    """Steps find extra/, tmp/, and the directory in which the run was started."""

    class Paths(Custom):
        def work(self):
            for path in (self._getExtraPath("e"), self._getTmpPath("t"), self._getPath("p")):
                self.makeFile(path)
            self._enterWorkingDir()
            self.makeFile("inside")
            self._leaveWorkingDir()
            self.seen = os.getcwd()

    prot = run(lambda self: self._insertFunctionStep("work"), engine, cls=Paths)
    assert prot.isFinished(), prot.getErrorMessage()
    assert sorted(os.listdir("run/extra")) == ["e"]
    assert {"p", "inside"} <= set(os.listdir("run"))
    assert os.listdir("run/tmp") == []  # emptied when all has gone well
    assert prot.seen == str(tmp_path)


@BOTH
def test_a_step_that_fails_in_another_directory_does_not_take_the_next_one_there(run, engine, tmp_path):
    """_enterDir without _leaveDir: with processes as many workers, so that the next step meets the same one."""

    class Lost(Custom):
        def goAway(self):
            self._enterWorkingDir()
            raise ValueError("on the way")

        def here(self):
            self.log.append(os.getcwd())

    def insert(self):
        self._insertFunctionStep("goAway", prerequisites=[])
        self._insertFunctionStep("here", prerequisites=[])

    prot = run(insert, engine, cls=Lost, numberOfThreads=1, options={"keep_going": True})
    assert statuses(prot) == [STATUS_FAILED, STATUS_FINISHED]
    assert prot.log == [str(tmp_path)]
    assert os.getcwd() == str(tmp_path)


@BOTH
def test_messages_of_steps_are_in_the_logs(run, engine):
    """info, warning, error and print: in the step's log (or, inline, the first three in the run's)."""

    class Talks(Custom):
        def talk(self):
            self.info("an info of 100% text")
            self.warning("a warning")
            self.error("an error")
            print("a print")

    prot = run(lambda self: self._insertFunctionStep("talk"), engine, cls=Talks)
    name = "run.stdout" if engine == "inline" else "step-000001.log"
    with open(prot._getLogsPath(name)) as f:
        text = f.read()
    for line in ("an info of 100% text", "a warning", "an error"):
        assert line in text
    assert engine == "inline" or "a print" in text


@BOTH
def test_outputs_defined_by_steps_are_the_protocols_outputs(run, engine):
    """Also those of steps that run at the same time."""

    class Makes(Custom):
        def make(self, i):
            self._defineOutputs(**{f"output{i}": [i]})

    def insert(self):
        for i in range(8):
            self._insertFunctionStep("make", i, prerequisites=[])

    prot = run(insert, engine, cls=Makes)
    assert prot.isFinished(), prot.getErrorMessage()
    assert sorted(prot.iterOutputAttributes()) == [(f"output{i}", [i]) for i in range(8)]


# ---------------------------------------------------------------------------------------------------- progress


class Watch(Listener):
    """Looks at the progress in every call."""

    def __init__(self):
        self.seen = []
        self.calls = []

    def look(self, run):
        self.seen.append((run.protocol.stepsDone, run.protocol.numberOfSteps))

    def run_started(self, run, kept):
        self.calls.append("run_started")
        self.look(run)

    def steps_inserted(self, run):
        self.calls.append("steps_inserted")
        self.look(run)

    def step_running(self, run, step):
        self.look(run)

    def steps_finished(self, run, steps):
        self.look(run)

    def step_failed(self, run, step, message):
        self.calls.append(("step_failed", step, message))
        self.look(run)

    def step_retried(self, run, step, attempt, message):
        self.calls.append(("step_retried", step, attempt))

    def steps_skipped(self, run, steps, because):
        self.calls.append(("steps_skipped", tuple(steps), because))

    def run_ended(self, run, report):
        self.calls.append("run_ended")
        self.look(run)


class Grows(Custom):
    def grow(self, left):
        self.log.append(left)
        if left:
            for _ in range(3):
                self._insertFunctionStep(self.nothing, prerequisites=[])
            self._insertFunctionStep(self.grow, left - 1, prerequisites=[])


@BOTH
def test_progress_never_passes_its_total_while_steps_are_added(run, engine):
    """And never goes back."""
    watch = Watch()
    prot = run(lambda self: self._insertFunctionStep(self.grow, 6), engine, cls=Grows, options={"listeners": [watch]})
    assert prot.isFinished(), prot.getErrorMessage()
    assert prot.stepsDone == prot.numberOfSteps == len(prot.getSteps()) == 7 + 18
    assert all(done <= total for done, total in watch.seen)
    assert watch.seen == sorted(watch.seen)
    assert watch.calls[0] == "run_started"
    assert watch.calls[-1] == "run_ended"
    assert "steps_inserted" in watch.calls


# ----------------------------------------------------------------------------------------- results and their files


@BOTH
@pytest.mark.parametrize(
    "form", [str, lambda p: [p], lambda p: (p, p), lambda p: p], ids=["str", "list", "tuple", "Path"]
)
def test_paths_that_a_step_returns_are_result_files_and_must_exist(run, engine, tmp_path, form):
    """A path, PathLike or text, or a list of them: the missing one is in the message."""
    good, missing = tmp_path / "good", tmp_path / "missing"

    def insert(self):
        self._insertFunctionStep(self.makeFile, str(good))
        self._insertFunctionStep(self.give, form(good))
        self._insertFunctionStep(self.give, form(missing))

    prot = run(insert, engine)
    assert statuses(prot) == [STATUS_FINISHED, STATUS_FINISHED, STATUS_FAILED]
    assert "Missing filePaths" in prot.getErrorMessage()
    assert str(missing) in prot.getErrorMessage()
    assert str(good) + " " not in prot.getSteps()[2].getErrorMessage()


@BOTH
def test_any_other_value_is_kept(run, engine):
    """Numbers, dicts, lists of numbers, objects; None for nothing."""
    values = [5, 2.5, {"a": [1]}, [1, 2], (1, "x"), True, b"bytes", None, [], {"set"}, 10**30]

    def insert(self):
        for value in values:
            self._insertFunctionStep(self.give, value, prerequisites=[])

    prot = run(insert, engine)
    assert prot.isFinished(), prot.getErrorMessage()
    assert [s.result for s in prot.getSteps()] == values
    assert [type(s.result) for s in prot.getSteps()] == [type(v) for v in values]


@BOTH
def test_results_of_steps_are_arguments_of_later_ones(run, engine, tmp_path):
    """At top level, nested, several; a result's step is a prerequisite without being named."""

    def insert(self):
        a = self._insertFunctionStep(self.give, {"x": 1}, prerequisites=[])
        b = self._insertFunctionStep(self.makeFile, str(tmp_path / "file"), prerequisites=[])
        none = self._insertFunctionStep(self.nothing, prerequisites=[])
        results = [ResultOf(a), {"k": (ResultOf(b), 3)}, ResultOf(none)]
        self._insertFunctionStep(self.keepValue, results, prerequisites=[])

    prot = run(insert, engine)
    assert prot.isFinished(), prot.getErrorMessage()
    assert prot.value == [{"x": 1}, {"k": (str(tmp_path / "file"), 3)}, None]
    assert list(prot.getSteps()[3].getPrerequisites()) == [1, 2, 3]


def test_a_large_array_is_a_result_and_an_argument(run):
    """numpy arrays keep type, shape and content."""
    np = pytest.importorskip("numpy")

    class Arrays(Custom):
        def make(self):
            return np.arange(300_000, dtype=np.float32).reshape(300, 1000)

        def total(self, array):
            self.value = (array.dtype.str, array.shape, float(array.sum(dtype="f8")))

    def insert(self):
        self._insertFunctionStep("total", ResultOf(self._insertFunctionStep("make")))

    prot = run(insert, cls=Arrays)
    assert prot.isFinished(), prot.getErrorMessage()
    assert prot.value == ("<f4", (300, 1000), 300_000 * 299_999 / 2)
    assert prot.getSteps()[0].result.shape == (300, 1000)


# ---------------------------------------------------------------------------------------------------- failures


@BOTH
def test_after_a_failure_nothing_starts_and_the_rest_stays_new(run, engine, tmp_path):
    """The protocol is failed; the message names step, arguments, worker and cause."""

    def insert(self):
        self._insertFunctionStep(self.add, 1)
        self._insertFunctionStep(self.fail, "bad luck")
        self._insertFunctionStep(self.takeNote, "never")
        self._insertFunctionStep(self.takeNote, "never", prerequisites=[1, 2])

    prot = run(insert, engine)
    assert prot.isFailed()
    assert statuses(prot) == [STATUS_FINISHED, STATUS_FAILED, STATUS_NEW, STATUS_NEW]
    assert notes(tmp_path / "notes") == []
    message = prot.getErrorMessage()
    assert "step 2 fail('bad luck',) failed in worker " in message
    assert "ValueError: bad luck" in message
    assert message == prot.getSteps()[1].getErrorMessage()
    assert (prot.stepsDone, prot.numberOfSteps) == (1, 4)


@pytest.mark.versions
@BOTH
def test_the_error_of_a_step_is_the_original_exception_with_its_traceback(run, engine):
    """The frames of the step are there, also those of another process."""
    import traceback

    prot = run(lambda self: self._insertFunctionStep(self.fail, "oh"), engine)
    error = prot.getSteps()[0].error
    assert type(error) is ValueError
    assert error.args == ("oh",)
    frames = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    assert frames[-1] == "fail"
    report = prot._report.failed[0]
    assert (report.step, report.function) == (1, "fail")
    assert 'raise ValueError(text)' in report.traceback


def test_running_steps_finish_and_are_recorded_when_another_fails(run, tmp_path):
    """One fails while the other, which it has met, still runs."""
    go = tmp_path / "go"

    class Fails(Custom):
        def failLate(self, folder):
            meet(folder, "fails", 2)
            raise ValueError("first")

    class OpenGate(Listener):
        def step_failed(self, run, step, message):
            go.touch()

    def insert(self):
        self._insertFunctionStep("failLate", str(tmp_path / "m"), prerequisites=[])
        self._insertFunctionStep(self.meetThenWaitForFile, str(tmp_path / "m"), "runs", 2, str(go), prerequisites=[])
        self._insertFunctionStep(self.takeNote, "never", prerequisites=[])

    prot = run(insert, cls=Fails, options={"listeners": [OpenGate()]})
    assert prot.isFailed()
    assert statuses(prot) == [STATUS_FAILED, STATUS_FINISHED, STATUS_NEW]
    assert prot.log == ["runs"]
    assert notes(tmp_path / "notes") == []


def test_all_failures_are_listed(run, tmp_path):
    """Of two steps that fail at the same time, one starts the message and both are in it."""

    def insert(self):
        for name in ("a", "b"):
            self._insertFunctionStep(self.meetAndFail, str(tmp_path / "m"), name, 2, prerequisites=[])

    prot = run(insert)
    assert statuses(prot) == [STATUS_FAILED] * 2
    assert "2 steps failed" in prot.getErrorMessage()
    assert "failure a" in prot.getErrorMessage()
    assert "failure b" in prot.getErrorMessage()
    assert len(prot._report.failed) == 2


@BOTH
@pytest.mark.parametrize("how", ["class", "option"])
def test_keep_going_runs_everything_that_is_not_downstream_of_a_failure(run, engine, how):
    """One bad micrograph must not cost a night. Skipped steps stay new, and are counted."""

    class Goes(Custom):
        keepGoing = how == "class"

    def insert(self):
        bad = self._insertFunctionStep(self.fail, "one", prerequisites=[])
        good = self._insertFunctionStep(self.add, "good", prerequisites=[])
        after = self._insertFunctionStep(self.add, "after bad", prerequisites=[bad])
        self._insertFunctionStep(self.add, "far after bad", prerequisites=[after, good])
        self._insertFunctionStep(self.add, "after good", prerequisites=[good])
        self._insertFunctionStep(self.fail, "two", prerequisites=[good])

    watch = Watch()
    options = {"listeners": [watch], **({"keep_going": True} if how == "option" else {})}
    prot = run(insert, engine, cls=Goes, options=options)
    assert prot.isFailed()
    assert statuses(prot) == [
        STATUS_FAILED, STATUS_FINISHED, STATUS_NEW, STATUS_NEW, STATUS_FINISHED, STATUS_FAILED,
    ]  # fmt: skip
    assert prot.log == ["good", "after good"]
    assert prot.getErrorMessage().startswith("2 steps failed")
    for text in ("ValueError: one", "ValueError: two"):
        assert text in prot.getErrorMessage()
    assert prot._report.skipped == 2
    assert "2 steps that depend on them were skipped" in prot._report.text()
    assert ("steps_skipped", (3, 4), 1) in watch.calls


@pytest.mark.versions
def test_a_worker_that_dies_costs_its_step_alone(run):
    """The message says how it died; with keepGoing all others run, in a new worker."""

    class Dies(Custom):
        def die(self):
            os.kill(os.getpid(), 11)

        def leave(self):
            os._exit(3)

        def quit(self):
            raise SystemExit("good bye")

    def insert(self):
        self._insertFunctionStep("die", prerequisites=[])
        self._insertFunctionStep("leave", prerequisites=[])
        self._insertFunctionStep("quit", prerequisites=[])
        for i in range(4):
            self._insertFunctionStep(self.add, i, prerequisites=[])

    prot = run(insert, cls=Dies, options={"keep_going": True})
    assert statuses(prot) == [STATUS_FAILED] * 3 + [STATUS_FINISHED] * 4
    assert sorted(prot.log) == [0, 1, 2, 3]
    died, left, quitted = (s.getErrorMessage() for s in prot.getSteps()[:3])
    assert "SIGSEGV" in died
    assert "exit code 3" in left
    assert "SystemExit: good bye" in quitted
    assert "in worker " in died


# --------------------------------------------------------------------------------------- waiting, inserted, streaming


class Streams(Custom):
    """The old style: `_stepsCheck` finds new input, the output step waits until the last has come."""

    _stepsCheckSecs = 0.01

    def _insertAllSteps(self):
        self.batches = [["a", "b"], ["c"], [], ["d", "e", "f"]]
        self.output = self._insertFunctionStep(self.look, "log", wait=True, prerequisites=[])
        self.checks = 0

    def _stepsCheck(self):
        self.checks += 1
        output = self._steps[self.output - 1]
        if self.batches:
            ids = [self._insertFunctionStep(self.add, item, prerequisites=[]) for item in self.batches.pop(0)]
            output.addPrerequisites(*ids)
            self.updateSteps()
        elif output.isWaiting():
            output.setStatus(STATUS_NEW)


@BOTH
def test_streaming_with_stepsCheck(run, engine):
    """Steps appended while others run; the waiting step is released at the end and sees everything."""
    watch = Watch()
    prot = run(None, engine, cls=Streams, options={"listeners": [watch]})
    assert prot.isFinished(), prot.getErrorMessage()
    assert sorted(prot.seen) == list("abcdef")
    assert prot.getSteps()[0].getPrerequisites() == [2, 3, 4, 5, 6, 7]
    assert all(done <= total for done, total in watch.seen)
    assert prot.stepsDone == 7


class Generates(Custom):
    """The new style: one step inserts the others while it runs, and the output step when there are no more."""

    def _insertAllSteps(self):
        self._insertFunctionStep(self.generate, needsGPU=False)

    def generate(self):
        self.before = "seen"
        ids = [self._insertFunctionStep(self.add, item, prerequisites=[]) for item in range(5)]
        first = self._steps[ids[0] - 1]
        wait_until(lambda: self._steps[ids[0] - 1].getStatus() in (STATUS_FINISHED, STATUS_NEW))
        assert first.funcName == "add"
        self._insertFunctionStep(self.look, "log", prerequisites=ids)

    def _stepsCheck(self):
        if self._newSteps:
            self.updateSteps()


class GeneratesLocally(Generates):
    @step(local=True)
    def generate(self):
        self.value = os.getpid()
        super().generate()


@pytest.mark.versions
@pytest.mark.parametrize(
    ("engine", "cls", "threads"),
    [
        ("inline", Generates, 2), ("processes", Generates, 2), ("processes", GeneratesLocally, 1),
        ("inline", GeneratesLocally, 1),
    ],
)  # fmt: skip
def test_streaming_with_a_generator_step(run, engine, cls, threads):
    """In a worker, or beside them in the coordinator, where one worker is enough for the rest."""
    prot = run(None, engine, cls=cls, numberOfThreads=threads)
    assert prot.isFinished(), prot.getErrorMessage()
    assert sorted(prot.seen) == list(range(5))
    assert prot.before == "seen"
    assert prot.numberOfSteps == 7
    if cls is GeneratesLocally:
        assert prot.value == os.getpid()


class LocalWaits(Custom):
    @step(local=True)
    def generate(self, path):
        self.value = "set by the generator"
        one = self._insertFunctionStep(self.makeFile, path, prerequisites=[])
        wait_until(lambda: os.path.exists(path), "for the step that this one has inserted")
        self._insertFunctionStep(self.look, "value", prerequisites=[one])


def test_a_local_step_and_the_steps_it_inserts_run_at_the_same_time(run, tmp_path):
    """It waits for what one of them does; what it set before it inserted them is seen by them."""
    made = str(tmp_path / "made")
    prot = run(lambda self: self._insertFunctionStep("generate", made), cls=LocalWaits, numberOfThreads=1)
    assert prot.isFinished(), prot.getErrorMessage()
    assert prot.seen == "set by the generator"


class InsertsLocal(Custom):
    def outer(self):
        self._insertFunctionStep("inner", prerequisites=[])

    @step(local=True)
    def inner(self):
        self.value = ("inner", os.getpid())
        self._insertFunctionStep(self.look, "value", prerequisites=[len(self.getSteps())])


@pytest.mark.versions
def test_a_local_step_that_was_inserted_by_a_running_step_writes_back_too(run):
    """No step of the first hour was local."""
    prot = run(lambda self: self._insertFunctionStep("outer"), cls=InsertsLocal)
    assert prot.isFinished(), prot.getErrorMessage()
    assert prot.seen == ("inner", os.getpid())


class Releases(Custom):
    def release(self, other, extra=None):
        if extra is not None:
            self._steps[other - 1].addPrerequisites(extra)
        self.log.append("released")
        self.getSteps()[other - 1].setStatus(STATUS_NEW)


@pytest.mark.versions
@BOTH
def test_a_waiting_step_is_released_by_another_step(run, engine):
    """It runs after it was released, although nobody is its prerequisite."""

    def insert(self):
        self._insertFunctionStep(self.look, "log", wait=True, prerequisites=[])
        self._insertFunctionStep("release", 1, prerequisites=[])

    prot = run(insert, engine, cls=Releases)
    assert prot.isFinished(), prot.getErrorMessage()
    assert statuses(prot) == [STATUS_FINISHED] * 2


@BOTH
def test_prerequisites_added_by_a_running_step_are_kept(run, engine, tmp_path):
    """The released step waits for the step that was added as well."""

    def insert(self):
        self._insertFunctionStep(self.look, "log", wait=True, prerequisites=[])
        self._insertFunctionStep("release", 1, 3, prerequisites=[])
        self._insertFunctionStep(self.add, "third", prerequisites=[2])

    prot = run(insert, engine, cls=Releases)
    assert prot.isFinished(), prot.getErrorMessage()
    assert prot.seen == ["released", "third"]
    assert prot.getSteps()[0].getPrerequisites() == [3]


@BOTH
def test_prerequisites_added_before_the_run_may_point_forward(run, engine):
    """The first step runs last."""

    def insert(self):
        first = self._insertFunctionStep(self.look, "log", prerequisites=[])
        ids = [self._insertFunctionStep(self.add, i, prerequisites=[]) for i in range(3)]
        self._steps[first - 1].addPrerequisites(*ids)

    prot = run(insert, engine)
    assert prot.isFinished(), prot.getErrorMessage()
    assert sorted(prot.seen) == [0, 1, 2]


@BOTH
def test_a_waiting_step_that_nobody_releases_is_an_error_that_names_it(run, engine):
    """Not a run that never ends."""

    def insert(self):
        self._insertFunctionStep(self.nothing)
        self._insertFunctionStep(self.add, "x", wait=True)

    with pytest.raises(ValueError, match="2 - add"):
        run(insert, engine)


@BOTH
def test_a_stepsCheck_that_raises_fails_the_run_and_is_told(run, engine):
    """What runs still finishes."""

    class Broken(Custom):
        _stepsCheckSecs = 0.01

        def _stepsCheck(self):
            raise KeyError("in the check")

    with pytest.raises(KeyError, match="in the check"):
        run(lambda self: self._insertFunctionStep(self.nothing), engine, cls=Broken)


@BOTH
def test_a_step_that_asks_for_the_impossible_gets_the_error_itself(run, engine):
    """An unknown prerequisite, in a running step: it may catch it."""

    class Asks(Custom):
        def ask(self):
            try:
                self._insertFunctionStep(self.nothing, prerequisites=[99])
            except ValueError as error:
                self.value = str(error)

    prot = run(lambda self: self._insertFunctionStep("ask"), engine, cls=Asks)
    assert prot.isFinished(), prot.getErrorMessage()
    assert "waits for step 99, which does not exist" in prot.value


@BOTH
def test_an_interactive_step_ends_the_run_and_the_next_run_goes_on(run, engine):
    """The protocol is interactive; what comes after waits for a person and a second run."""

    def insert(self):
        self._insertFunctionStep(self.takeNote, 1)
        self._insertFunctionStep(self.takeNote, 2, interactive=True)
        self._insertFunctionStep(self.takeNote, 3)

    prot = run(insert, engine)
    assert prot.getStatus() == STATUS_INTERACTIVE
    assert statuses(prot) == [STATUS_FINISHED, STATUS_INTERACTIVE, STATUS_NEW]
    assert prot.getSteps()[1].isAwaitingUser()
    prot.run(engine=engine)
    assert prot.isFinished(), prot.getErrorMessage()
    assert notes(prot.notes.get()) == ["1", "2", "3"]


# ------------------------------------------------------------------------------------------------ declarations


class Cards(Custom):
    """Steps that write which cards they hold, while others hold theirs."""

    def _defineParams(self, form):
        form.addHidden("useGpu", BooleanParam, default=True, label="Use GPU")
        form.addHidden("gpuList", StringParam, default="0,1", label="GPU ids")
        super()._defineParams(form)

    def cards(self, folder, name, count):
        if folder:
            meet(folder, name, count)
        self.table[name] = self._stepsExecutor.getGpuList()

    @step(gpus=2)
    def both(self):
        self.table["both"] = self.getExecutor().getGpuListStr()

    def program(self):
        self.runJob("echo cards", "%(GPU)s end")


def test_steps_that_meet_hold_different_cards(run, tmp_path):
    """Each its own; one with needsGPU=False none."""

    def insert(self):
        for name in "ab":
            self._insertFunctionStep("cards", str(tmp_path / "m"), name, 3, prerequisites=[])
        self._insertFunctionStep("cards", str(tmp_path / "m"), "c", 3, prerequisites=[], needsGPU=False)

    prot = run(insert, cls=Cards, numberOfThreads=3)
    assert prot.isFinished(), prot.getErrorMessage()
    assert sorted([prot.table["a"], prot.table["b"]]) == [[0], [1]]
    assert prot.table["c"] == []


def test_a_form_that_names_no_card_at_all_has_none(run):
    """99 is none."""
    prot = run(lambda self: self._insertFunctionStep("cards", None, "a", 1), cls=Cards, gpuList="99")
    assert prot.isFinished(), prot.getErrorMessage()
    assert prot.table == {"a": []}


@pytest.mark.parametrize(
    ("gpus", "threads", "groups"),
    [("0-3", 2, [[0, 1], [2, 3]]), ("0,1,2", 2, [[0, 1], [2]]), ("0,99,1", 3, [[0], [1]]), ("5", 1, [[5]])],
)
def test_cards_are_shared_out_in_groups_as_in_scipion(run, tmp_path, gpus, threads, groups):
    """More cards than workers: several each; VOID_GPU (99) takes a place and is nobody's."""

    def insert(self):
        for i in range(len(groups)):
            self._insertFunctionStep("cards", str(tmp_path / "m"), i, len(groups), prerequisites=[])

    prot = run(insert, cls=Cards, numberOfThreads=threads, gpuList=gpus)
    assert prot.isFinished(), prot.getErrorMessage()
    assert sorted(prot.table.values()) == groups


def test_a_step_may_declare_that_it_needs_several_cards(run):
    """It gets both groups."""
    prot = run(lambda self: self._insertFunctionStep("both"), cls=Cards)
    assert prot.isFinished(), prot.getErrorMessage()
    assert prot.table == {"both": "0 1"}


def test_inline_and_serial_steps_have_all_cards(run):
    """As Scipion's serial executor."""
    prot = run(lambda self: self._insertFunctionStep("cards", None, "a", 1), "inline", cls=Cards)
    assert prot.isFinished(), prot.getErrorMessage()
    assert prot.table == {"a": [0, 1]}


def test_no_cards_are_held_when_they_are_switched_off(run, tmp_path):
    """useGpu=False: no slots, so that more steps than cards run at a time."""

    def insert(self):
        for i in range(3):
            self._insertFunctionStep("cards", str(tmp_path / "m"), i, 3, prerequisites=[])

    prot = run(insert, cls=Cards, numberOfThreads=3, gpuList="0", useGpu=False)
    assert prot.isFinished(), prot.getErrorMessage()
    assert prot.table == {0: [], 1: [], 2: []}


def test_the_cards_of_a_step_stand_in_the_commands_it_runs(run):
    """`%(GPU)s`."""
    prot = run(lambda self: self._insertFunctionStep("program"), cls=Cards, numberOfThreads=1)
    with open(prot._getLogsPath("step-000001.log")) as f:
        assert "cards 0 1 end\n" in f.read()


class Declares(Custom):
    """Steps that hold something, and count how many run at the same time with the help of files."""

    def alone(self, folder, name):
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, f"{name}")
        with open(path, "w"):
            pass
        self.table[name] = sorted(os.listdir(folder))
        os.unlink(path)

    @step(cpus=2)
    def wide(self, folder, name):
        self.alone(folder, name)

    @step(memory="1000 TB")
    def large(self, folder, name):
        self.alone(folder, name)

    @step(timeout=0.3)
    def hang(self):
        wait_until(lambda: False)

    @step(timeout=30)
    def quick(self):
        self.log.append("quick")

    @step(retries=2)
    def flaky(self, good):
        self.note("try")
        if len(notes(self.notes.get())) < good:
            raise OSError("not yet")
        self.log.append("at last")

    @step(local=True)
    def local(self):
        self.log.append((os.getpid(), threading.current_thread() is not threading.main_thread()))


@pytest.mark.parametrize("method", ["wide", "large"])
def test_a_step_of_all_cpus_or_all_memory_runs_alone(run, tmp_path, method):
    """More memory than there is: alone, not never."""

    def insert(self):
        for i in range(6):
            self._insertFunctionStep(method, str(tmp_path / "room"), i, prerequisites=[])

    prot = run(insert, cls=Declares)
    assert prot.isFinished(), prot.getErrorMessage()
    assert prot.table == {i: [str(i)] for i in range(6)}


@pytest.mark.versions
def test_a_step_that_hangs_is_ended_after_its_timeout_and_fails_alone(run):
    """The error says so; its sibling is not harmed."""

    def insert(self):
        self._insertFunctionStep("hang", prerequisites=[])
        self._insertFunctionStep("quick", prerequisites=[])

    started = time.monotonic()
    prot = run(insert, cls=Declares, options={"keep_going": True})
    assert time.monotonic() - started < 10
    assert statuses(prot) == [STATUS_FAILED, STATUS_FINISHED]
    assert "timeout of 0.3 s" in prot.getErrorMessage()
    assert type(prot.getSteps()[0].error).__name__ == "StepTimeout"


@BOTH
@pytest.mark.parametrize(("good", "finished", "tries"), [(3, True, 3), (4, False, 3), (1, True, 1)])
def test_retries_are_attempts_after_the_first(run, engine, good, finished, tries):
    """So many and no more."""
    watch = Watch()
    prot = run(
        lambda self: self._insertFunctionStep("flaky", good), engine, cls=Declares, options={"listeners": [watch]}
    )
    assert prot.isFinished() is finished
    assert notes(prot.notes.get()) == ["try"] * tries
    assert [c for c in watch.calls if c[0] == "step_retried"] == [("step_retried", 1, i) for i in range(1, tries)]


@BOTH
def test_without_retries_a_step_is_entered_once(run, engine):
    """Whatever it raises."""

    def insert(self):
        self._insertFunctionStep(self.takeNote, "x")
        self._insertFunctionStep(self.fail)

    prot = run(insert, engine)
    assert notes(prot.notes.get()) == ["x"]
    assert prot._report.failed[0].message == "ValueError: it went wrong"


def test_a_local_step_runs_in_the_coordinator_beside_its_loop(run):
    """In this process, in a thread of its own."""
    prot = run(lambda self: self._insertFunctionStep("local"), cls=Declares)
    assert prot.isFinished(), prot.getErrorMessage()
    assert prot.log == [(os.getpid(), True)]


# ---------------------------------------------------------------------------------------------- times and reports


@BOTH
def test_times_are_measured(run, engine):
    """Wall and CPU seconds: of a step that computes, and of one that waits."""

    class Computes(Custom):
        def compute(self):
            end = time.process_time() + 0.2
            while time.process_time() < end:
                pass

    prot = run(lambda self: self._insertFunctionStep("compute"), engine, cls=Computes)
    elapsed = prot.getSteps()[0].getElapsedTime().total_seconds()
    assert 0.19 < elapsed < 5
    assert 0.19 < prot.cpuTime < 5
    assert prot.getElapsedTime().total_seconds() >= elapsed - 0.01
    step_ = prot.getSteps()[0]
    assert step_.initTime.datetime() <= step_.endTime.datetime()


@BOTH
def test_cpu_seconds_of_programs_count(run, engine):
    """They are the step's."""
    program = f"{sys.executable} -c 'import time\nwhile time.process_time() < 0.3: pass'"
    prot = run(lambda self: self._insertRunJobStep(program, ""), engine)
    assert prot.isFinished(), prot.getErrorMessage()
    assert prot.cpuTime > 0.25


@BOTH
def test_the_report_sums_up(run, engine):
    """As text and as JSON."""
    import json

    prot = run(lambda self: [self._insertFunctionStep(self.nothing) for _ in range(3)], engine)
    report = prot._report
    assert report.ok
    assert (report.total, report.finished, report.kept, report.skipped, report.failed) == (3, 3, 0, 0, ())
    assert json.loads(report.to_json())["status"] == "finished"
    assert "3 of 3 steps" in report.text()


def test_the_graph_after_a_run_has_the_steps_that_were_added(run):
    """With their statuses."""
    prot = run(lambda self: self._insertFunctionStep(self.grow, 1), cls=Grows)
    graph = prot.getStepsGraph()
    assert len(graph) == 1 + 5
    assert all(n.step.isFinished() for n in graph if n.step is not None)


@pytest.mark.versions
def test_run_in_a_thread_works(run):
    """Where signals cannot be handled."""
    found = []
    thread = threading.Thread(target=lambda: found.append(run(lambda self: self._insertFunctionStep(self.add, 1))))
    thread.start()
    thread.join(30)
    assert found[0].isFinished(), found[0].getErrorMessage()
    assert found[0].log == [1]


class Nobody(Protocol):
    """Never run: a base for the next."""


def test_parallel_is_a_protocol():
    """The base class of these tests is one like any other."""
    assert issubclass(Parallel, Protocol)
    assert not issubclass(Nobody, Parallel)
