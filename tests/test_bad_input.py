"""Bad input: each gives one clear error that says what to do, the protocol is failed, and nothing is half-written."""

from __future__ import annotations

import errno
import os
import time

import pytest
from protocols import Custom, notes

from mpsteps import (
    EnumParam,
    FileParam,
    IntParam,
    JournalError,
    PrerequisiteError,
    Protocol,
    Range,
    ResultOf,
    RunDirectoryError,
    UsageError,
    ValidationError,
)
from mpsteps._journal import Disk

BOTH = pytest.mark.parametrize("engine", ["inline", "processes"])


@pytest.fixture
def refused(tmp_path, monkeypatch):
    """`refused(insert, engine, error, text)`: the run raises this, is failed with this message, leaves no directory."""
    monkeypatch.chdir(tmp_path)

    def check(insert, engine, error, text, where=None, cls=Custom, **options):
        prot = cls(insert, **({"workingDir": where} if where else {}))
        before = sorted(os.listdir("."))
        with pytest.raises(error, match=text) as caught:
            prot.run(engine=engine, **options)
        assert prot.isFailed()
        own = "" if isinstance(caught.value, UsageError) else "Custom._insertAllSteps failed: KeyError: "
        assert prot.getErrorMessage() == own + str(caught.value)
        assert sorted(os.listdir(".")) == before
        return caught.value

    return check


# --------------------------------------------------------------------------------------------- prerequisites


@BOTH
@pytest.mark.parametrize(
    ("prerequisites", "text"),
    [
        ([99], "step 2 - nothing waits for step 99, which does not exist: 1 steps have been inserted so far"),
        ([2], "step 2 - nothing cannot wait for itself"),
        (["1"], "the id \\(an integer\\) that _insertFunctionStep returned, not '1'"),
        ([0], "step ids start at 1"),
        (1.5, "an integer"),
    ],
)
def test_a_prerequisite_that_makes_no_sense_is_refused(refused, engine, prerequisites, text):
    """Unknown, the step itself, or no id at all: named, with what to use instead."""

    def insert(self):
        self._insertFunctionStep(self.nothing)
        self._insertFunctionStep(self.nothing, prerequisites=prerequisites)

    refused(insert, engine, PrerequisiteError, text)


@BOTH
def test_a_result_of_a_step_that_does_not_exist_is_refused(refused, engine):
    """As its prerequisite would be."""
    refused(lambda self: self._insertFunctionStep(self.nothing, [ResultOf(7)]), engine, PrerequisiteError, "step 7")


@BOTH
def test_a_cycle_is_refused_and_its_steps_are_named(refused, engine):
    """In the order in which they wait for each other; steps outside of it are not named."""

    def insert(self):
        ids = [self._insertFunctionStep(self.nothing, i, prerequisites=[]) for i in range(5)]
        steps = self.getSteps()
        steps[ids[1] - 1].addPrerequisites(ids[3])
        steps[ids[3] - 1].addPrerequisites(ids[2])
        steps[ids[2] - 1].addPrerequisites(ids[1])

    error = refused(insert, engine, PrerequisiteError, "go in a circle: ")
    path = str(error).split("circle: ")[1].split(" (")[0].split(" -> ")
    assert path[0] == path[-1]
    assert set(path) == {"2", "3", "4"}
    assert "2 - nothing, 3 - nothing, 4 - nothing" in str(error)


@BOTH
def test_a_cycle_that_a_running_step_would_close_is_refused_there(tmp_path, engine):
    """The step that asks gets the error; the run goes on."""

    class Closes(Custom):
        def close(self):
            try:
                self.getSteps()[1].addPrerequisites(3)
            except PrerequisiteError as error:
                self.value = str(error)

    def insert(self):
        self._insertFunctionStep("close", prerequisites=[])
        self._insertFunctionStep(self.add, 2, prerequisites=[1])
        self._insertFunctionStep(self.add, 3, prerequisites=[2])

    prot = Closes(insert, workingDir=str(tmp_path / "run"))
    prot.run(engine=engine)
    assert prot.isFinished(), prot.getErrorMessage()
    assert "circle" in prot.value
    assert prot.log == [2, 3]


@BOTH
def test_ten_thousand_prerequisites_are_no_problem(tmp_path, engine):
    """One step after 10,000."""

    def insert(self):
        ids = [self._insertFunctionStep(self.nothing, i, prerequisites=[]) for i in range(10_000)]
        self._insertFunctionStep(self.add, "last", prerequisites=ids)

    prot = Custom(insert, workingDir=str(tmp_path / "run"))
    started = time.monotonic()
    prot.run(engine=engine)
    assert prot.isFinished(), prot.getErrorMessage()
    assert prot.log == ["last"]
    assert prot.stepsDone == 10_001
    assert time.monotonic() - started < 30


# ------------------------------------------------------------------------------------------------- functions


@BOTH
@pytest.mark.parametrize(
    ("function", "text"),
    [
        ("nothin", "Custom has no method 'nothin' to make a step of \\(did you mean 'nothing'\\?\\)"),
        ("table", "'table' of Custom is not callable"),
        (7, "a method, its name or a callable, not of 7"),
        (None, "a method, its name or a callable, not of None"),
    ],
)
def test_what_is_no_function_is_refused(refused, engine, function, text):
    """Missing, not callable, nothing at all."""
    refused(lambda self: self._insertFunctionStep(function), engine, UsageError, text)


@BOTH
@pytest.mark.parametrize(("args", "word"), [((1, 2), "positional argument"), ((), "missing 1 required")])
def test_wrong_arguments_fail_the_step_with_pythons_own_words(tmp_path, engine, args, word):
    """As Python says it, with the step's name and arguments before it."""
    prot = Custom(lambda self: self._insertFunctionStep(self.add, *args), workingDir=str(tmp_path / "run"))
    prot.run(engine=engine)
    assert prot.isFailed()
    assert "step 1 add" in prot.getErrorMessage()
    assert word in prot.getErrorMessage()


@BOTH
def test_what_goes_wrong_while_steps_are_inserted_names_the_hook(refused, engine):
    """The author's own exception comes out, and the message says where it was."""

    def insert(self):
        self._insertFunctionStep(self.nothing)
        raise KeyError("no such micrograph")

    refused(insert, engine, KeyError, "no such micrograph", "run")
    refused(insert, engine, KeyError, "no such micrograph")  # in Runs/, which is not left either


@BOTH
def test_no_steps_at_all_is_an_error(refused, engine):
    """A run that does nothing is never meant."""
    refused(lambda self: None, engine, UsageError, "Custom has no steps: its _insertAllSteps must insert them")


# ---------------------------------------------------------------------------------------------------- params


class Form(Custom):
    def _defineParams(self, form):
        super()._defineParams(form)
        form.addParam("size", IntParam, default=5, label="Size", validators=[Range(1, 10)])
        form.addParam("mode", EnumParam, choices=["fast", "exact"], default=0, label="Mode")
        form.addParam("input", FileParam, default=None, allowsNull=True, label="Input file")

    def _validate(self):
        path = self.input.get()
        return [f"{path} does not exist"] if path and not os.path.exists(path) else []


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"sizes": 1}, "there is no param 'sizes' \\(did you mean 'size'\\?\\)"),
        ({"size": "five"}, "param 'size': expected an integer, got 'five'"),
        ({"size": 2.5}, "param 'size': expected an integer, got 2.5"),
        ({"size": [1]}, "param 'size': expected an integer"),
        ({"mode": "slow"}, "param 'mode': expected one of 0 \\(fast\\), 1 \\(exact\\), got 'slow'"),
    ],
)
def test_values_that_cannot_be_converted_are_refused_by_the_constructor(params, text):
    """Name, expectation, value; a UsageError."""
    with pytest.raises(UsageError, match=text):
        Form(**params)


@BOTH
@pytest.mark.parametrize(
    ("params", "texts"),
    [
        ({"size": 11}, ["*Size*", "(size=11)"]),
        ({"mode": 5}, ["*Mode*", "one of 0 (fast), 1 (exact)"]),
        ({"input": "/nowhere/file.mrc"}, ["/nowhere/file.mrc does not exist"]),
        ({"numberOfThreads": 0}, ["*Threads*", "1 or more"]),
        ({"numberOfMpi": 2}, ["select threads instead"]),
        ({"size": 0, "mode": 9}, ["*Size*", "*Mode*"]),
    ],
)
def test_values_that_are_not_acceptable_are_all_told_before_anything_is_made(
    tmp_path, monkeypatch, engine, params, texts
):
    """One message each; ValidationError has them as a list."""
    monkeypatch.chdir(tmp_path)
    prot = Form(lambda self: self._insertFunctionStep(self.nothing), **params)
    with pytest.raises(ValidationError) as caught:
        prot.run(engine=engine)
    assert prot.isFailed()
    for text in texts:
        assert any(text in m for m in caught.value.messages)
        assert text in prot.getErrorMessage()
    assert os.listdir(".") == []


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"engine": "threads"}, "there is no engine 'threads': choose one of inline, processes"),
        ({"in_doubt": "maybe"}, "in_doubt must be 'rerun' or 'fail', not 'maybe'"),
        ({"durability": "eternal"}, "durability must be 'process' or 'power', not 'eternal'"),
    ],
)
def test_options_of_run_that_do_not_exist_are_refused(tmp_path, monkeypatch, options, text):
    """With the ones that do."""
    monkeypatch.chdir(tmp_path)
    prot = Custom(lambda self: self._insertFunctionStep(self.nothing))
    with pytest.raises(UsageError, match=text):
        prot.run(**options)
    assert os.listdir(".") == []


# ---------------------------------------------------------------------------------------------- run directories


@BOTH
def test_a_run_directory_that_is_a_file_is_refused(refused, engine, tmp_path):
    """By its path."""
    (tmp_path / "file").write_text("precious")
    refused(lambda self: self._insertFunctionStep(self.nothing), engine, RunDirectoryError, "file", where="file")
    assert (tmp_path / "file").read_text() == "precious"


@BOTH
def test_a_run_directory_that_cannot_be_made_is_refused(refused, engine, monkeypatch):
    """Read-only, or a full disk: the reason is the system's. (Root may write anywhere: the no is made up.)"""

    def no(path, *_args, **_kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(os, "mkdir", no)
    one = lambda self: self._insertFunctionStep(self.nothing)  # noqa: E731
    refused(one, engine, RunDirectoryError, r"[Pp]ermission", where="run")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@BOTH
def test_a_folder_that_is_not_writable_is_refused(refused, engine, tmp_path):
    """The same, by the system itself."""
    (tmp_path / "locked").mkdir(mode=0o500)
    refused(lambda self: self._insertFunctionStep(self.nothing), engine, RunDirectoryError, "", where="locked/run")


@BOTH
def test_a_directory_with_files_of_somebody_else_is_not_taken_for_a_run(refused, engine, tmp_path):
    """A run empties tmp/ when it has finished: not one that it has not made."""
    (tmp_path / "home" / "tmp").mkdir(parents=True, mode=0o700)
    (tmp_path / "home").chmod(0o700)
    (tmp_path / "home" / "tmp" / "precious").write_text("x")
    one = lambda self: self._insertFunctionStep(self.nothing)  # noqa: E731
    refused(one, engine, RunDirectoryError, "no run directory: choose another", where="home")
    assert os.listdir(tmp_path / "home") in (["tmp", "run.lock"], ["run.lock", "tmp"])


@BOTH
def test_an_empty_directory_is_left_empty_when_nothing_ran(refused, engine, tmp_path):
    """But for the lock, for which others may wait by then."""
    (tmp_path / "run").mkdir()
    refused(lambda self: None, engine, UsageError, "has no steps", where="run")
    assert set(os.listdir(tmp_path / "run")) <= {"run.lock", "workers.fence"}


# ----------------------------------------------------------------------------------------------------- names


@BOTH
def test_names_in_any_script_work_everywhere(tmp_path, engine):
    """In directories, arguments, messages, logs, methods, results and errors; also bytes that are no text."""
    odd = os.fsdecode(b"caf\xe9-\xff")  # a file name that is not UTF-8

    class Größe(Custom):  # noqa: PLC2401
        def schätze(self, name):  # noqa: PLC2401
            self.info(f"schätze {name}")
            print(name.encode("utf-8", "surrogateescape"))
            self.makeFile(self._getExtraPath(name))
            self.table[name] = "größer"
            return self._getExtraPath(name)

        def scheitere(self, name):
            raise ValueError(f"zu groß: {name} 🔬")

    def insert(self):
        for name in ("显微照片", "μικρογραφία 1", odd):
            self._insertFunctionStep("schätze", name)
        self._insertFunctionStep("scheitere", "顕微鏡")

    prot = Größe(insert, workingDir=str(tmp_path / "Läufe" / "プロジェクト"), runName="Größe № 1")
    prot.run(engine=engine)
    assert prot.isFailed()
    assert "zu groß: 顕微鏡 🔬" in prot.getErrorMessage()
    assert set(prot.table) == {"显微照片", "μικρογραφία 1", odd}
    assert all(os.path.exists(prot._getExtraPath(name)) for name in prot.table)
    again = Größe(insert, workingDir=str(tmp_path / "Läufe" / "プロジェクト"))
    again.run(engine=engine)
    assert again._report.kept == 3


# -------------------------------------------------------------------------------------------------- full disk


@pytest.mark.parametrize(
    ("engine", "after"), [(e, n) for e in ("inline", "processes") for n in (0, 1, 2)] + [("inline", 4), ("inline", 9)]
)
def test_a_full_disk_ends_the_run_with_an_error_and_it_can_be_resumed(tmp_path, monkeypatch, engine, after):
    """The journal cannot be written any more: no further step starts, nothing finished is lost or done twice."""
    path = str(tmp_path / "notes")

    def insert(self):
        for i in range(12):
            self._insertFunctionStep(self.takeNote, i)

    written = [0]
    real = Disk.write

    def write(self, fd, data):
        written[0] += 1
        if written[0] > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(self, fd, data)

    run = str(tmp_path / "run")
    prot = Custom(insert, workingDir=run, notes=path)
    with monkeypatch.context() as patch:
        patch.setattr(Disk, "write", write)
        with pytest.raises(JournalError, match=r"[Nn]o space|full"):
            prot.run(engine=engine)
    assert prot.isFailed()
    assert "space" in prot.getErrorMessage()
    if after <= 1:  # nothing but the header could be written, so nothing ran
        assert not os.path.exists(run)
    done = notes(path)
    assert len(done) < 12
    again = Custom(insert, workingDir=run, notes=path)
    again.run(engine=engine)
    assert again.isFinished(), again.getErrorMessage()
    twice = len(notes(path)) - 12
    assert sorted(set(notes(path)), key=int) == [str(i) for i in range(12)]
    assert 0 <= twice <= len(again._report.in_doubt)  # done twice was only what was said to be in doubt


class Quiet(Protocol):
    """A protocol without any form of its own."""

    def _insertAllSteps(self):
        self._insertFunctionStep(print, "only this")


@BOTH
def test_the_smallest_protocol_runs(tmp_path, engine):
    """No form, no params, no parallel section."""
    prot = Quiet(workingDir=str(tmp_path / "run"))
    prot.run(engine=engine)
    assert prot.isFinished(), prot.getErrorMessage()
