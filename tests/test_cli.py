"""The command line as a user meets it: the real program, small protocols, its output and its exit code."""

from __future__ import annotations

import errno
import json
import os
import re
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap

import pytest

import mpsteps

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(mpsteps.__file__)))
TIMEOUT = 60

SQUARES = """
    import os
    from mpsteps import (LEVEL_ADVANCED, STEPS_PARALLEL, BooleanParam, EnumParam, IntParam, PathParam, Positive,
                         Protocol, StringParam)

    print('a line that is printed while the file is imported')

    def square(number):
        return number * number

    class ProtSquares(Protocol):
        ''' Squares numbers
            and adds them up.

            A second paragraph. '''
        _label = 'squares'
        stepsExecutionMode = STEPS_PARALLEL

        def _defineParams(self, form):
            form.addSection(label='Input')
            form.addParam('count', IntParam, default=4, label='How many', validators=[Positive],
                          help='So many numbers are squared, from zero upwards, one after another, each in a step.')
            form.addParam('bad', IntParam, default=-1, label='Bad number', expertLevel=LEVEL_ADVANCED)
            form.addParam('how', EnumParam, choices=['raise', 'kill'], default=0, condition='bad >= 0')
            form.addParam('notes', PathParam, allowsNull=True, label='Notes', help='A file')
            form.addSection(label='Output')
            group = form.addGroup('Details')
            group.addParam('aloud', BooleanParam, default=False, label='Aloud')
            form.addHidden('secret', StringParam, default='x')
            form.addParallelSection(threads=2)

        def _validate(self):
            path = self.notes.get()
            return ['There is no file ' + path] if path and not os.path.exists(path) else []

        def _warnings(self):
            return ['Many numbers.'] if self.count.get() > 5 else []

        def _insertAllSteps(self):
            self.squares = {}
            deps = [self._insertFunctionStep(self.squareStep, i, self.bad.get() == i and self.how.get(),
                                             prerequisites=[]) for i in range(self.count.get())]
            self._insertFunctionStep(self.sumStep, self._getExtraPath('sum.txt'), self.notes.get(), prerequisites=deps)

        def squareStep(self, number, bad):
            print('squaring', number)
            if bad is not False:
                if bad:
                    os.kill(os.getpid(), 9)
                raise ValueError('number %d is bad' % number)
            self.squares[number] = square(number)

        def sumStep(self, path, notes):
            with open(path, 'w') as f:
                f.write(str(sum(self.squares.values())))
            if notes:
                open(notes).close()
            return path

        def _summary(self):
            return ['The sum is %d.' % sum(self.squares.values())]
"""

WAITING = """
    import os, signal, time
    from mpsteps import STEPS_PARALLEL, Protocol

    class ProtWaiting(Protocol):
        stepsExecutionMode = STEPS_PARALLEL

        def _insertAllSteps(self):
            self._insertFunctionStep(self.firstStep, prerequisites=[])
            self._insertFunctionStep(self.longStep, prerequisites=[1])
            self._insertFunctionStep(self.lastStep, prerequisites=[2])

        def firstStep(self):
            pass

        def longStep(self):
            if os.path.exists('quick'):
                return
            with open('waiting', 'w') as f:  # a named pipe: the test reads on when this step runs
                f.write('ready')
            time.sleep(float(os.environ.get('LONG', 30)))

        def lastStep(self):
            pass
"""


@pytest.fixture
def cli(tmp_path):
    """Runs the command line in an empty folder with the protocols above."""
    for name, source in (("squares.py", SQUARES), ("waiting.py", WAITING)):
        (tmp_path / name).write_text(textwrap.dedent(source))
    return Cli(tmp_path)


class Cli:
    """`cli('run', 'x.py')` returns an object with code, out and err."""

    def __init__(self, folder):
        self.folder = folder
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("MPSTEPS_", "PYTHON"))}
        self.environment.update({"PYTHONPATH": ROOT, "COLUMNS": "100"})

    def start(self, *args, cwd=None, **options):
        """A process whose output is text."""
        environment = {**self.environment, **options.pop("env", {})}
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        command = [sys.executable, "-m", "mpsteps", *args]
        return subprocess.Popen(
            command, cwd=str(cwd or self.folder), env=environment, universal_newlines=True, **options
        )

    def __call__(self, *args, **options):
        return Ended(self.start(*args, **options))


class Ended:
    """A process that has ended."""

    def __init__(self, process):
        try:
            self.out, self.err = process.communicate(timeout=TIMEOUT)
        finally:
            process.kill()
        self.code = process.returncode
        self.text = f"{self.out}\n{self.err}"

    def __repr__(self):
        return f"<exit code {self.code}, stdout:\n{self.out}\nstderr:\n{self.err}>"


# ------------------------------------------------------------------------------------------------------------- help


def test_help_teaches(cli):
    """Without a command: help and exit code 2. Each command has a description and an example."""
    alone = cli()
    assert alone.code == 2
    assert "usage: mpsteps" in alone.err
    assert "a first session" in alone.err
    version = cli("--version")
    assert (version.code, version.out) == (0, f"mpsteps {mpsteps.__version__}\n")
    for command in ("run", "resume", "form", "steps", "demo"):
        assert re.search(rf"^    {command} ", alone.err, re.MULTILINE)
    told = cli("resume", "--help")
    assert told.code == 0
    assert "example" in told.out
    assert "--in-doubt" in told.out


def test_every_command_shows_an_example(capsys):
    """In its own help, which answers at once: nothing heavy is imported for it."""
    from mpsteps.cli import main

    for command in ("run", "resume", "form", "steps", "demo"):
        assert main([command, "--help"]) == 0
        text = capsys.readouterr().out
        assert f"  mpsteps {command} " in text.partition("example")[2]


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["squares.py"], "to run it: mpsteps run squares.py"),
        (["rnu"], "invalid choice: 'rnu'"),
        (["run"], "required: TARGET"),
        (["run", "x.py", "--threads", "0"], "--threads: expected an integer of at least 1, got '0'"),
        (["run", "x.py", "--threads", "two"], "got 'two'"),
        (["run", "x.py", "--set", "count"], "expected NAME=VALUE, such as boxSize=64, got 'count'"),
        (["run", "x.py", "--thr", "2"], "unrecognized arguments: --thr 2"),
        (["run", "x.py", "--durability", "ever"], "invalid choice: 'ever'"),
        (["steps", "nowhere"], "there is no run directory 'nowhere'"),
        (["resume", "nowhere"], "there is no run directory 'nowhere'"),
        (["run", "nowhere.py"], "there is no file 'nowhere.py'"),
        (["form", "nowhere:Prot"], "there is no module 'nowhere'"),
        (["steps", "."], "holds no journal (journal.log), so it is no run directory"),
        (["steps", __file__], "not a directory"),
    ],
)
def test_wrong_usage_is_told_in_a_sentence(args, expected, capsys, tmp_path, monkeypatch):
    """On stderr, with exit code 2, and nothing on stdout."""
    from mpsteps.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert main(args) == 2
    out, err = capsys.readouterr()
    assert expected in err
    assert "Traceback" not in err
    assert out == ""


# -------------------------------------------------------------------------------------------------------------- run


def test_run_puts_results_on_stdout_and_progress_on_stderr(cli):
    """Values by --set, one or several, before or after TARGET; a warning; the protocol's summary; a new directory."""
    ended = cli("run", "--set", "count=6", "aloud=yes", "squares.py", "--threads", "3")
    assert ended.code == 0, ended
    lines = ended.out.splitlines()
    assert re.fullmatch(r"ProtSquares finished: 7 of 7 steps in \S+ s, Runs/000001_ProtSquares", lines[0])
    assert lines[1:] == ["The sum is 55."]
    assert "ProtSquares: 7 steps, 3 workers, Runs/000001_ProtSquares" in ended.err
    assert "warning: Many numbers." in ended.err
    assert "printed while the file is imported" in ended.err
    assert (cli.folder / "Runs/000001_ProtSquares/extra/sum.txt").read_text() == "55"


def test_json_is_one_object_and_nothing_else_is_on_stdout(cli):
    """Though the file prints while it is imported, and steps print in this very process."""
    ended = cli("run", "squares.py", "--json", "--engine", "inline", "--run-dir", "out", "--set", "bad=2")
    assert ended.code == 1, ended
    report = json.loads(ended.out)
    assert (report["status"], report["total"], report["run_dir"]) == ("failed", 5, "out")
    assert report["failed"][0]["step"] == 3
    assert "ValueError: number 2 is bad" in report["failed"][0]["message"]
    assert "squaring 1" in ended.err


def test_a_failed_step_is_told_with_its_cause_and_the_way_on(cli):
    """At once on stderr, in the result on stdout, in the table, and in detail with --failed; others still run with
    --keep-going."""
    ended = cli("run", "squares.py", "--set", "bad=1", "--keep-going", "--run-dir", "out")
    assert ended.code == 1, ended
    assert re.search(r"^step 2 squareStep\(1, 0\) failed in worker \d+: ValueError: number 1 is bad$", ended.err, re.M)
    assert "1 step is skipped, since step 2 failed" in ended.err
    assert ended.out.splitlines()[0].startswith("ProtSquares failed: 3 of 5 steps")
    assert "  step 2 squareStep(1, 0) failed: ValueError: number 1 is bad" in ended.out
    assert "mpsteps steps out --failed" in ended.err
    assert "mpsteps resume out" in ended.err

    table = cli("steps", "out")
    assert table.code == 0
    assert "5 steps: 3 finished, 1 failed, 1 skipped" in table.out
    failed = cli("steps", "out", "--failed")
    assert len(re.findall(r"^ *\d+  \w", failed.out, re.MULTILINE)) == 1
    assert 'squares.py", line' in failed.out
    assert "raise ValueError('number %d is bad' % number)" in failed.out
    assert "squaring 1" in failed.out


def test_a_worker_that_is_killed_fails_its_step_only(cli):
    """And the message says what happened to it."""
    ended = cli("run", "squares.py", "--set", "bad=1", "how=kill", "--keep-going", "--quiet")
    assert ended.code == 1, ended
    assert "SIGKILL" in ended.out
    assert "a line that is printed" in ended.err
    assert "steps" not in ended.err  # no progress
    assert ended.out.startswith("ProtSquares failed: 3 of 5 steps")


def test_bad_values_are_told_all_at_once(cli):
    """Unknown names with what is near, texts that do not fit with what would."""
    ended = cli("run", "squares.py", "--set", "cuont=3", "--set", "count=many", "--set", "how=hang")
    assert (ended.code, ended.out) == (2, "")
    assert "there is no param 'cuont' (did you mean 'count'?)" in ended.err
    assert "param 'count': expected an integer, got 'many'" in ended.err
    assert "expected one of 0 (raise), 1 (kill), got 'hang'" in ended.err
    assert "numberOfThreads" in ended.err
    assert "Traceback" not in ended.err


def test_what_validation_finds_is_told_before_anything_is_made(cli):
    """Each on a line; exit code 2; no run directory is left behind."""
    ended = cli("run", "squares.py", "--set", "count=-1", "notes=missing.txt")
    assert (ended.code, ended.out) == (2, "")
    assert "ProtSquares cannot run, 2 problems with its values:" in ended.err
    assert "*How many*" in ended.err
    assert "  There is no file missing.txt" in ended.err
    assert not (cli.folder / "Runs").exists()


def test_defaults_come_from_the_environment(cli):
    """Threads and engine, checked by name; what is given on the command line wins."""
    ended = cli("run", "squares.py", "--json", env={"MPSTEPS_THREADS": "3"})
    assert json.loads(ended.out)["workers"] == 3
    ended = cli(
        "run", "squares.py", "--json", "--threads", "1", env={"MPSTEPS_THREADS": "x", "MPSTEPS_ENGINE": "inline"}
    )
    assert json.loads(ended.out)["workers"] == 1
    assert "squaring 1" in ended.err
    for name, value in (("MPSTEPS_THREADS", "0"), ("MPSTEPS_THREADS", "four"), ("MPSTEPS_ENGINE", "mpi")):
        ended = cli("run", "squares.py", env={name: value})
        assert ended.code == 2
        assert f"the environment variable {name} must be" in ended.err
        assert repr(value) in ended.err


def test_restart_forgets_what_was_there(cli):
    """Without it, a run in the same directory continues."""
    assert cli("run", "squares.py", "--run-dir", "out", "--quiet").code == 0
    again = cli("run", "squares.py", "--run-dir", "out")
    assert again.out == "nothing is to be done: all 5 steps of out have finished before\n"
    fresh = cli("run", "squares.py", "--run-dir", "out", "--restart", "--json")
    assert json.loads(fresh.out)["kept"] == 0
    assert "Continue" not in fresh.err
    resumed = cli("resume", "out", "--json")  # and the resume of a restart is no restart
    assert json.loads(resumed.out)["kept"] == 5


@pytest.mark.parametrize(
    ("body", "code", "expected"),
    [
        ("        self.helper()\n\n    def helper(self): return self.nothing", 1, "has no attribute 'nothing'"),
        ("        raise SystemExit(0)", 1, "called sys.exit() outside of its steps"),
        ("        pass", 2, "its _insertAllSteps must insert them"),
        ("        self._insertFunctionStep('noSuchStep')", 2, "has no method 'noSuchStep'"),
    ],
)
def test_what_goes_wrong_while_steps_are_inserted_is_told_with_the_users_lines(cli, body, code, expected):
    """None of mpsteps' own."""
    source = f"from mpsteps import Protocol\nclass ProtBad(Protocol):\n    def _insertAllSteps(self):\n{body}\n"
    (cli.folder / "bad.py").write_text(source)
    ended = cli("run", "bad.py")
    assert ended.code == code, ended
    assert expected in ended.err
    assert "_protocol_run" not in ended.err
    assert "running.py" not in ended.err
    assert not (cli.folder / "Runs/000001_ProtBad").exists()


def test_threads_without_effect_are_told(cli):
    """A protocol that never says STEPS_PARALLEL runs its steps one after another."""
    source = SQUARES.replace("stepsExecutionMode =", "mode =").replace("form.addParallelSection(threads=2)", "")
    (cli.folder / "serial.py").write_text(textwrap.dedent(source))
    ended = cli("run", "serial.py", "--threads", "4")
    assert ended.code == 0, ended
    assert "--threads has no effect" in ended.err


# ----------------------------------------------------------------------------------------------------------- resume


def test_resume_runs_what_a_changed_value_changes(cli):
    """From anywhere: target, values, threads and folder are in the journal. The paths of new values are meant from
    where the user is."""
    assert cli("run", "squares.py", "--set", "bad=1", "--threads", "1", "--quiet").code == 1
    elsewhere = cli.folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "my notes").touch()
    ended = cli("resume", "../Runs/000001_ProtSquares", "--set", "bad=-1", "notes=my notes", "--json", cwd=elsewhere)
    assert ended.code == 0, ended
    report = json.loads(ended.out)
    assert (report["status"], report["kept"], report["finished"], report["workers"]) == ("finished", 1, 5, 1)
    assert report["run_dir"] == "Runs/000001_ProtSquares"
    assert f"working in {cli.folder}" in ended.err

    done = cli("resume", "Runs/000001_ProtSquares")
    assert done.code == 0
    assert done.out == "nothing is to be done: all 5 steps of Runs/000001_ProtSquares have finished before\n"
    more = cli("resume", "Runs/000001_ProtSquares", "--set", "count=5", "--threads", "2")
    assert "6 of 6 steps (4 kept from before)" in more.out
    assert "4 of 6 steps kept from before" in more.err


def test_resume_says_what_has_gone(cli):
    """The journal, the file, the class, a param: a sentence each, and exit code 2."""
    assert cli("run", "squares.py", "--run-dir", "out", "--quiet").code == 0
    whole = (cli.folder / "squares.py").read_text()

    for source, expected in [
        (whole.replace("ProtSquares", "ProtCubes"), "has no class ProtSquares: did you mean ProtCubes?"),
        (whole.replace("'bad'", "'wrong'"), "ProtSquares has changed: there is no param 'bad'"),
        ("raise RuntimeError('unfinished work')", "cannot be imported: RuntimeError: unfinished work"),
        (None, "there is no file"),
    ]:
        if source is None:
            os.unlink(str(cli.folder / "squares.py"))
        else:
            (cli.folder / "squares.py").write_text(source)
        ended = cli("resume", "out")
        assert (ended.code, ended.out) == (2, ""), ended
        assert expected in ended.err

    ended = cli("resume", ".")
    assert "runs in '.': out" in ended.err
    ended = cli("resume", "out", "--set", "runMode=restart")
    assert ended.code == 2


def test_a_run_that_was_killed_is_seen_and_resumed(cli):
    """Its running step is in doubt: `steps` says so, `--in-doubt fail` refuses, resume runs it again."""
    process = start_waiting(cli)
    looking = cli("steps", "run", "--json")
    assert json.loads(looking.out)["status"] == "running"
    assert [s["status"] for s in json.loads(looking.out)["steps"]] == ["finished", "running", "new"]
    busy = cli("resume", "run")
    assert busy.code == 2
    assert f"in use by pid {process.pid}" in busy.err
    process.kill()
    Ended(process)

    table = cli("steps", "run")
    assert "in doubt" in table.out
    assert "cut off" in table.out
    assert "mpsteps resume run" in table.out
    refused = cli("resume", "run", "--in-doubt", "fail")
    assert refused.code == 2
    assert "2 - longStep" in refused.err
    (cli.folder / "quick").touch()
    ended = cli("resume", "run")
    assert ended.code == 0, ended
    assert "3 of 3 steps (1 kept from before)" in ended.out
    assert "1 step had been cut in the middle by a crash and ran again" in ended.out


def start_waiting(cli, *args, **options):
    """`mpsteps run` of a protocol whose second step is running now."""
    pipe = str(cli.folder / "waiting")
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    process = cli.start("run", "waiting.py", "--run-dir", "run", *args, **options)
    try:
        assert select.select([reader], [], [], TIMEOUT)[0]
        while not os.read(reader, 100):  # nobody has opened it for writing yet
            select.select([], [], [], 0.01)
            assert process.poll() is None, Ended(process)
    except BlockingIOError:
        raise AssertionError("the step opened the pipe and wrote nothing") from None
    finally:
        os.close(reader)
        os.unlink(pipe)
    return process


# ---------------------------------------------------------------------------------------------------------- signals


def test_ctrl_c_waits_for_running_steps_and_says_how_to_go_on(cli):
    """Exit code 130; what has finished is kept."""
    process = start_waiting(cli, "--json", env={"LONG": "0.5"})
    process.send_signal(signal.SIGINT)
    ended = Ended(process)
    assert ended.code == 130, ended
    assert "stopping: waiting for the running steps; Ctrl-C again ends them" in ended.err
    assert "mpsteps resume run" in ended.err
    assert "Traceback" not in ended.err
    report = json.loads(ended.out)
    assert (report["status"], report["finished"]) == ("aborted", 2)


def test_ctrl_c_twice_ends_running_steps(cli):
    """At once, with exit code 130."""
    process = start_waiting(cli)
    process.send_signal(signal.SIGINT)
    while "stopping" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    ended = Ended(process)
    assert ended.code == 130, ended
    assert "Traceback" not in ended.err


def test_sigterm_ends_the_process_as_any_other(cli):
    """A shell reports 143; the journal is closed, so that nothing is in doubt."""
    process = start_waiting(cli)
    process.send_signal(signal.SIGTERM)
    ended = Ended(process)
    assert ended.code == -signal.SIGTERM, ended
    assert "Traceback" not in ended.err
    assert json.loads(cli("steps", "run", "--json").out)["status"] == "aborted"


# ------------------------------------------------------------------------------------------------- form and steps


def test_form_shows_params_by_section_in_columns(cli):
    """Types, defaults as one would write them, conditions, choices, help; wrapped to the width; no hidden ones."""
    ended = cli("form", "squares.py", env={"COLUMNS": "60"})
    assert ended.code == 0, ended
    lines = ended.out.splitlines()
    assert lines[0] == "ProtSquares (squares): Squares numbers and adds them up."
    assert max(map(len, lines[:-1])) <= 60
    assert [line for line in lines if line and line[0] != " "][1:5] == ["Input", "Output", "Parallelization", "General"]
    assert "  count            int   default: 4" in lines
    assert "  bad              int   default: -1  (expert)" in lines
    assert "  how              enum  default: raise" in lines
    assert "      choices: raise | kill" in lines
    assert "      only if bad >= 0" in lines
    assert "  [Details]" in lines
    assert "  aloud            bool  default: false" in lines
    assert "      may be left empty" in lines
    assert "secret" not in ended.out
    assert lines[-1].startswith("to set some: mpsteps run squares.py --set")


def test_form_as_json_has_everything(cli):
    """Hidden params included."""
    ended = cli("form", "squares:ProtSquares", "--json")
    found = json.loads(ended.out)
    params = {p["name"]: p for p in found["params"]}
    assert (found["protocol"], found["label"]) == ("ProtSquares", "squares")
    assert params["how"]["choices"] == ["raise", "kill"]
    assert params["how"]["condition"] == "bad >= 0"
    assert params["bad"]["expert"]
    assert params["aloud"]["group"] == "Details"
    assert params["aloud"]["default"] is False
    assert params["secret"]["hidden"]
    assert params["count"]["default"] == 4


def test_form_of_a_broken_declaration_says_why(cli):
    """A mistake in _defineParams: with the user's lines for a Python error, without for a form's."""
    source = "from mpsteps import Protocol\nclass P(Protocol):\n    def _defineParams(self, form):\n        "
    (cli.folder / "mpi.py").write_text(source + "form.addSection(label='x'); form.addParallelSection(mpi=4)")
    ended = cli("form", "mpi.py:P")
    assert (ended.code, ended.out) == (2, "")
    assert "there is no MPI" in ended.err
    assert "Traceback" not in ended.err
    (cli.folder / "typo.py").write_text(source + "from.addSection()".replace("from", "frm"))
    ended = cli("form", "typo.py:P")
    assert (ended.code, ended.out) == (2, "")
    assert 'typo.py", line 4' in ended.err
    assert "building.py" not in ended.err


def test_steps_shows_a_table_json_and_sqlite(cli):
    """One line a step, with prerequisites as ranges; everything as JSON; SQL for the rest."""
    assert cli("run", "squares.py", "--run-dir", "out", "--set", "count=12", "--quiet").code == 0
    table = cli("steps", "out")
    lines = table.out.splitlines()
    columns = lines[0].split()
    assert [c for c in columns if c != "memory"] == [  # which is there if a step took a while
        "id", "function", "arguments", "status", "attempts", "seconds", "cpu", "worker", "after",
    ]  # fmt: skip
    assert re.fullmatch(
        r" 1  squareStep  0, False +finished +1 +\d+\.\d+ +\d+\.\d+ +(\d+ MB)? +\d+", lines[1]
    )  # fmt: skip
    assert lines[13].endswith("  1-12")
    assert lines[-1] == "ProtSquares finished, 13 steps: 13 finished"

    found = json.loads(cli("steps", "out", "--json").out)
    assert (found["protocol"], found["status"], found["total"]) == ("ProtSquares", "finished", 13)
    assert found["steps"][12]["prerequisites"] == list(range(1, 13))
    assert found["steps"][12]["files"] == ["out/extra/sum.txt"]

    ended = cli("steps", "out", "--sqlite", "run.sqlite")
    assert (ended.code, ended.out) == (0, "exported 13 steps of out to run.sqlite\n")
    connection = sqlite3.connect(str(cli.folder / "run.sqlite"))
    assert connection.execute("SELECT count(*) FROM steps WHERE status = 'finished'").fetchone() == (13,)
    connection.close()
    refused = cli("steps", "out", "--sqlite", "squares.py")
    assert refused.code == 2
    assert "is not overwritten" in refused.err
    refused = cli("steps", "out", "--sqlite", "no/where.sqlite")
    assert refused.code == 2
    assert "its folder does not exist" in refused.err


def test_a_damaged_journal_is_told(cli):
    """By `steps` and by `resume`; it is left as it is."""
    run = cli.folder / "out"
    for folder in ("", "extra", "tmp", "logs"):
        (run / folder).mkdir(mode=0o700)
    (run / "journal.log").write_bytes(b"something else")
    (run / "journal.log").chmod(0o600)
    for command in ("steps", "resume"):
        ended = cli(command, "out")
        assert (ended.code, ended.out) == (2, "")
        assert "is not a journal of mpsteps" in ended.err


# ---------------------------------------------------------------------------------------------------------- streams


def test_a_reader_that_has_enough_is_no_error(cli):
    """`mpsteps steps RUN | head -1`: no traceback, exit code as if it had been read."""
    read, write = os.pipe()
    os.close(read)
    process = cli.start("run", "squares.py", "--run-dir", "out", stdout=write)
    os.close(write)
    ended = Ended(process)
    assert ended.code == 0, ended
    assert "Traceback" not in ended.err
    assert "Exception" not in ended.err
    for args in (("steps", "out"), ("form", "squares.py"), ("--help",)):
        read, write = os.pipe()
        os.close(read)
        process = cli.start(*args, stdout=write)
        os.close(write)
        ended = Ended(process)
        assert (ended.code, ended.err.replace("a line that is printed while the file is imported\n", "")) == (0, "")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-"])
def test_closed_descriptors_do_not_end_a_run(cli, closed):
    """A run without anybody to tell is a run."""
    command = f'"$0" -m mpsteps run squares.py --run-dir out {closed}; echo $? > code'
    ended = subprocess.run(
        ["sh", "-c", command, sys.executable],
        cwd=str(cli.folder), env=cli.environment, timeout=TIMEOUT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (cli.folder / "code").read_text() == "0\n", ended
    assert (cli.folder / "out/extra/sum.txt").read_text() == "14"
    assert "Traceback" not in ended.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_under_stdout_is_told(cli):
    """The run itself is complete; that its result could not be written is exit code 1."""
    with open("/dev/full", "w") as full:
        ended = cli("run", "squares.py", "--json", "--run-dir", "out", stdout=full)
        assert ended.code == 1
        assert os.strerror(errno.ENOSPC) in ended.err
        assert "Traceback" not in ended.err
        (cli.folder / "quick").touch()
        assert cli("run", "waiting.py", stderr=full).code == 0


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no terminals here")
def test_a_terminal_shows_a_bar(cli):
    """With rich: cursor hidden and shown again; the failure stands in one piece; stdout stays clean."""
    pytest.importorskip("rich")
    leader, follower = os.openpty()
    process = cli.start(
        "run", "squares.py", "--set", "bad=1", "--json", stderr=follower, env={"TERM": "xterm", "NO_COLOR": "1"}
    )
    os.close(follower)
    shown = b""
    while True:
        assert select.select([leader], [], [], TIMEOUT)[0]
        try:
            data = os.read(leader, 65536)
        except OSError:  # Linux's way of saying that the other end is closed
            data = b""
        if not data:
            break
        shown += data
    os.close(leader)
    out, _ = process.communicate(timeout=TIMEOUT)
    text = shown.decode()
    assert process.returncode == 1
    assert json.loads(out)["status"] == "failed"
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1
    assert re.search(r"step 2 squareStep\(1, 0\) failed in worker \d+: ValueError: number 1 is bad\r\n", text)
    assert re.search(r"[1-5]/5 +\d+%", text)


# ------------------------------------------------------------------------------------------------------------- demo


def test_the_demo_says_what_it_needs(cli):
    """Without numpy: how to install it, and exit code 2."""
    without = cli.folder / "without"
    without.mkdir()
    (without / "sitecustomize.py").write_text("import sys\nsys.modules['numpy'] = None\n")
    ended = cli("demo", env={"PYTHONPATH": f"{without}{os.pathsep}{ROOT}"})
    assert (ended.code, ended.out) == (2, "")
    assert 'pip install "mpsteps[demo]"' in ended.err
    assert "Traceback" not in ended.err


def test_the_demo_prints_a_table_and_paths(cli):
    """On stdout: defocus of the bundled micrograph, then the files, which exist; the same again from its directory."""
    for name in ("numpy", "scipy", "mrcfile", "matplotlib"):
        pytest.importorskip(name)
    ended = cli("demo", "--run-dir", "out", "--threads", "2")
    assert ended.code == 0, ended
    lines = ended.out.splitlines()
    assert lines[0].startswith("ProtDemo finished: ")
    assert lines[2].startswith("micrograph  defocus U [A]")
    assert lines[3].startswith("micrograph ")
    files = lines[5:]
    assert [os.path.splitext(f)[1] for f in files] == [".star", ".png", ".png", ".txt"]
    assert all(os.path.getsize(str(cli.folder / f)) for f in files)
    again = json.loads(cli("demo", "--run-dir", "out", "--json").out)
    assert again["kept"] == again["total"]
    assert again["files"] == files
    assert again["defocus"][0]["particles"] > 0
    missing = cli("demo", "--micrographs", "nowhere/*.mrc")
    assert missing.code == 2
    assert "No file matches nowhere/*.mrc" in missing.err
    shutil.rmtree(str(cli.folder / "out"))
