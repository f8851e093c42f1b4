"""External programs in steps: runJob, _insertRunJobStep, _insertCopyFileStep. The programs are real ones."""

from __future__ import annotations

import os
import sys

import pytest
from protocols import Custom, wait_until

from mpsteps import ProgramError, Protocol, UsageError, step
from mpsteps._programs import command_line

BOTH = pytest.mark.parametrize("engine", ["inline", "processes"])


class Runs(Custom):
    def call(self, program, arguments, kwargs):
        self.runJob(program, arguments, **kwargs)

    def caught(self):
        try:
            self.runJob("exit 4", "")
        except ProgramError as error:
            self.value = str(error)

    @step(timeout=0.5)
    def endless(self, path):
        self.runJob("sh -c", ["echo $$ > " + path + "; exec sleep 1000"])


class Serial(Runs):
    stepsExecutionMode = 0


@pytest.fixture
def run(tmp_path):
    def go(insert, engine="processes", cls=Runs, **params):
        prot = cls(insert, workingDir=str(tmp_path / "run"), **params)
        prot.run(engine=engine)
        return prot

    return go


def log_of(prot, number=1):
    with open(prot._getLogsPath(f"step-{number:06d}.log"), "rb") as f:
        return f.read().decode("utf-8", "replace")


def call(program, arguments, **kwargs):
    return lambda self: self._insertFunctionStep(self.call, program, arguments, kwargs)


# --------------------------------------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("program", "arguments", "gpus", "line"),
    [
        ("prog", "-i 'a b' > out", (), "prog -i 'a b' > out"),
        ("prog", ["-i", "a b", 3, "$HOME", "it's"], (), "prog -i 'a b' 3 '$HOME' 'it'\"'\"'s'"),
        ("prog", "", (), "prog"),
        ("prog", None, (), "prog"),
        ("prog", [], (), "prog"),
        ("prog", "-g %(GPU)s", (0, 2), "prog -g 0 2"),
        ("CUDA_VISIBLE_DEVICES=%(GPU)s prog", "-x", (0, 2), "CUDA_VISIBLE_DEVICES=0,2 prog -x"),
        ("prog", "50%", (), "prog 50%"),
    ],
)
def test_texts_are_shell_words_and_sequences_are_quoted(program, arguments, gpus, line):
    """`%(GPU)s` becomes the cards: with blanks for the program, with commas in its environment, as in Scipion."""
    assert command_line(program, arguments, gpus) == line


def test_no_program_is_an_error():
    """Not an empty shell command, which succeeds."""
    with pytest.raises(UsageError, match="name of a program"):
        command_line(" ", "x")


# ------------------------------------------------------------------------------------------------------ running


@BOTH
def test_output_of_programs_goes_to_the_log_of_the_step(run, engine):
    """Both streams, with the command before them."""

    def insert(self):
        self._insertFunctionStep(self.call, "echo to-out; echo to-err", ">&2", {})
        self._insertFunctionStep(self.call, "echo", ["a  b", "c"], {})

    prot = run(insert, engine)
    assert prot.isFinished(), prot.getErrorMessage()
    assert "to-out\n" in log_of(prot, 1)
    assert "to-err\n" in log_of(prot, 1)
    assert "a  b c\n" in log_of(prot, 2)
    assert "to-out" not in log_of(prot, 2)
    if engine == "processes":
        assert log_of(prot, 2).startswith("** Running command: echo 'a  b' c\n")


@BOTH
def test_a_program_runs_where_and_with_what_it_is_told(run, engine, tmp_path):
    """cwd and env; without env it has this process's environment."""
    (tmp_path / "there").mkdir()

    def insert(self):
        there = {"cwd": str(tmp_path / "there"), "env": {"WHO": "me"}}
        self._insertFunctionStep(self.call, "pwd; echo $WHO", "", there)
        self._insertFunctionStep(self.call, "echo home=$HOME", "", {})

    prot = run(insert, engine)
    assert prot.isFinished(), prot.getErrorMessage()
    assert f"{tmp_path}/there\nme\n" in log_of(prot, 1)
    assert f"home={os.environ['HOME']}\n" in log_of(prot, 2)


@BOTH
def test_the_number_of_threads_is_told_to_the_program(run, engine):
    """By OMP_NUM_THREADS, unless its environment sets that."""

    def insert(self):
        self._insertFunctionStep(self.call, "echo omp=$OMP_NUM_THREADS", "", {"numberOfThreads": 3})
        env = {"OMP_NUM_THREADS": "7"}
        self._insertFunctionStep(self.call, "echo omp=$OMP_NUM_THREADS", "", {"numberOfThreads": 3, "env": env})

    prot = run(insert, engine)
    assert "omp=3\n" in log_of(prot, 1)
    assert "omp=7\n" in log_of(prot, 2)


def test_in_serial_mode_the_forms_threads_are_the_programs(run):
    """As Scipion: steps do not use them, so programs may."""
    prot = run(call("echo omp=$OMP_NUM_THREADS", ""), None, cls=Serial, numberOfThreads=5)
    assert "omp=5\n" in log_of(prot)


def test_plugins_environment_is_used_when_none_is_given(run):
    """`_getEnviron`."""

    class Plugin(Runs):
        def _getEnviron(self):
            return {"PATH": os.environ["PATH"], "PLUGIN": "yes"}

    prot = run(call("echo plugin=$PLUGIN", ""), cls=Plugin)
    assert "plugin=yes\n" in log_of(prot)


def test_another_shell_may_run_it(run):
    """`executable`, as Scipion's runJob has it."""
    prot = run(call("echo shell=$0", "", executable="/bin/bash"))
    assert "shell=/bin/bash\n" in log_of(prot)


# ----------------------------------------------------------------------------------------------------- failures


@BOTH
def test_a_program_that_fails_is_a_failed_step_with_its_last_lines(run, engine):
    """The exit code, the command, and what it said last (not what it said before that)."""
    program = "for i in $(seq 1 50); do echo line-$i; done; echo the reason >&2; exit 3"
    prot = run(call(program, ""), engine)
    assert prot.isFailed()
    message = prot.getErrorMessage()
    assert "ended with exit code 3; its last lines:\n" in message
    assert "the reason" in message
    assert "line-50" in message
    assert isinstance(prot.getSteps()[0].error, ProgramError)
    cause = prot._report.failed[0].message
    assert "line-10\n" not in cause
    assert "line-50\n" in cause


@BOTH
@pytest.mark.parametrize(
    ("program", "text"),
    [
        ("kill -9 $$", "killed by SIGKILL"),
        ("sh -c 'kill -11 $$'; exit $?", "exit code 139 (SIGSEGV)"),
        ("no-such-program-anywhere", "exit code 127: the shell did not find the program"),
        ("exit 200", "exit code 200"),
        ("echo a\0b", "could not be started"),
    ],
)
def test_how_a_program_ended_is_told(run, engine, program, text):
    """Signals by name, also where a shell turned them into a number; a missing program."""
    prot = run(call(program, ""), engine)
    assert prot.isFailed()
    assert text in prot.getErrorMessage()


@BOTH
def test_a_directory_that_is_not_there_is_told(run, engine):
    """The system's own words."""
    prot = run(call("true", "", cwd="/no/such/place"), engine)
    assert "could not be started" in prot.getErrorMessage()
    assert "/no/such/place" in prot.getErrorMessage()


@BOTH
def test_a_step_may_catch_the_failure_of_its_program(run, engine):
    """And go on."""
    prot = run(lambda self: self._insertFunctionStep("caught"), engine)
    assert prot.isFinished(), prot.getErrorMessage()
    assert "exit code 4" in prot.value


def test_the_last_lines_are_those_of_the_program_and_not_of_the_step_before_it(run):
    """A silent program that fails has none."""

    class Loud(Runs):
        def loud(self):
            print("not the program's")
            self.runJob("exit 1", "")

    prot = run(lambda self: self._insertFunctionStep("loud"), cls=Loud)
    assert prot._report.failed[0].message.endswith("'exit 1' ended with exit code 1")


def test_a_program_ends_with_its_step(run, tmp_path):
    """When the step's time is up."""
    path = str(tmp_path / "pid")
    prot = run(lambda self: self._insertFunctionStep("endless", path))
    assert "timeout" in prot.getErrorMessage()
    with open(path) as f:
        pid = int(f.read())
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), "for the program to be gone")


# ------------------------------------------------------------------------------------------------ ready-made steps


@BOTH
def test_run_job_steps_run_programs_and_check_their_files(run, engine, tmp_path):
    """Named runJob, as in Scipion; a file that the program did not make fails the step."""
    good, bad = str(tmp_path / "good"), str(tmp_path / "bad")

    def insert(self):
        self._insertRunJobStep("touch", good)
        self._insertRunJobStep("touch", [good], resultFiles=[good])
        self._insertRunJobStep("true", "", resultFiles=good)
        self._insertRunJobStep("true", "", [bad], prerequisites=[3], needsGPU=False)

    prot = run(insert, engine)
    assert [s.getStatus() for s in prot.getSteps()] == ["finished"] * 3 + ["failed"]
    assert {s.funcName.get() for s in prot.getSteps()} == {"runJob"}
    assert f"Missing filePaths: {bad}" in prot.getErrorMessage()
    assert prot.getSteps()[1].result == [good]


@BOTH
def test_copy_file_steps_copy(run, engine, tmp_path):
    """With prerequisites; a source that is not there fails the step."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"\0content")

    def insert(self):
        self._insertCopyFileStep(str(source), str(target), prerequisites=[])
        self._insertCopyFileStep(str(tmp_path / "nowhere"), str(target), prerequisites=[1])

    prot = run(insert, engine)
    assert [s.getStatus() for s in prot.getSteps()] == ["finished", "failed"]
    assert target.read_bytes() == b"\0content"
    assert "nowhere" in prot.getErrorMessage()
    assert prot.getSteps()[0].funcName == "copyFile"


def test_run_job_outside_of_a_run_writes_where_python_writes(capfd):
    """In a script or a debugger."""
    Protocol().runJob(sys.executable, ["-c", "print('direct')"])
    assert capfd.readouterr().out.endswith("direct\n")
