"""After a kill of the coordinator: only what had begun is in doubt. Who says so, and when nobody is believed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import pytest
from protocols import Custom, notes

from mpsteps._begun import Occasion, Witness, session_name
from mpsteps._ipc.lane import Board, Lane, left_words
from mpsteps._journal import JournalHeader, JournalWriter, read_journal
from mpsteps._leftovers import find_unbegun, history_as_told, sweep_values, take_back_unbegun
from mpsteps._rundir import RunDirectory

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="another system kills in another order")

SESSION: Dict[str, Any] = {"host": "here", "pid": 7, "started": 1.25, "name": "P"}
NAME = session_name("here", 7, 1.25)
STEPS: List[Any] = ["steps", 1, "work", [[i] for i in range(9)], [[]] * 9]


class Suicidal(Custom):
    """Many short steps, two workers. One of the steps kills the coordinator, and waits for its own end."""

    def _insertAllSteps(self) -> None:
        for i in range(400):
            self._insertFunctionStep(self.shortStep, i, prerequisites=[])

    def shortStep(self, i: int) -> None:
        self.note(i)
        if i == 150 and os.path.exists(self._getExtraPath("armed")):
            os.kill(int(os.environ["MPSTEPS_TEST_COORDINATOR"]), signal.SIGKILL)
            signal.pause()


SCRIPT = """
import os, sys
sys.path[:0] = {path!r}
from test_begun import Suicidal
os.environ["MPSTEPS_TEST_COORDINATOR"] = str(os.getpid())
protocol = Suicidal(workingDir={run!r}, notes={notes!r})
os.makedirs({run!r} + "/extra", mode=0o700)
os.chmod({run!r}, 0o700)
open({run!r} + "/extra/armed", "w").close()
protocol.run(engine="processes")
"""


def run_until_killed(folder: Path) -> Tuple[str, List[int]]:
    """The run directory, and the steps that were entered before the kill."""
    run, log = str(folder / "run"), str(folder / "notes")
    code = SCRIPT.format(path=[p or os.getcwd() for p in sys.path], run=run, notes=log)
    ended = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, timeout=60, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    with RunDirectory.open(run) as directory:
        directory.lock()
        assert directory.wait_for_fence(10)
    return run, [int(line) + 1 for line in notes(log)]


@linux
def test_only_what_had_begun_is_in_doubt_after_kill_9(tmp_path: Path) -> None:
    """The steps behind it in the lanes, dozens, were never begun: they are not in doubt, and run now for the first
    time. What had begun and is not recorded as finished is in doubt, without exception."""
    run, entered = run_until_killed(tmp_path)
    before = read_journal(os.path.join(run, "journal.log")).replay()
    finished = {s.id for s in before.steps.values() if s.status == "finished"}
    sent = {s.id for s in before.in_doubt}
    begun = set(entered) - finished
    assert begun <= sent
    os.unlink(os.path.join(run, "extra", "armed"))
    protocol = Suicidal(workingDir=run, notes=str(tmp_path / "notes"))
    protocol.run(engine="processes", in_doubt="rerun")
    doubtful = set(protocol._report.in_doubt)
    assert begun <= doubtful
    assert len(doubtful - begun) <= 2, "at most one announced and not yet entered, in each of two workers"
    assert len(sent) > len(doubtful) or len(sent) <= 2
    again = [int(line) + 1 for line in notes(tmp_path / "notes")][len(entered) :]
    assert sorted(again) == sorted({*range(1, 401)} - finished)
    assert not os.path.exists(os.path.join(run, "workers.begun"))


@linux
def test_an_orderly_end_leaves_no_such_file(tmp_path: Path) -> None:
    """Nor does a run that is stopped at once: the coordinator itself has told the journal."""
    protocol = Custom(lambda p: [p._insertFunctionStep("add", i) for i in range(5)], workingDir=str(tmp_path / "run"))
    protocol.run(engine="processes")
    assert protocol.isFinished()
    assert sorted(os.listdir(tmp_path / "run")) == ["extra", "journal.log", "logs", "run.lock", "tmp", "workers.fence"]


# ---------------------------------------------------------------------------------------------------- the witness


def lane_at(begun: int, done: int = 0, refused: int = 0) -> Lane:
    lane = Lane.create(4096)
    board = Board.create()
    worker = lane.worker_side(board)
    worker.begin(begun)
    worker.finish(done)
    coordinator = lane.coordinator_side()
    for _ in range(refused):
        coordinator.refuse()
    worker.release()
    coordinator.release()
    lane._ends.clear()
    board.close()
    return lane


@pytest.fixture
def lanes() -> Any:
    made: List[Lane] = []

    def make(*args: int) -> int:
        made.append(lane_at(*args))
        return made[-1].fds()[0]

    yield make
    for lane in made:
        lane.close()


def test_the_words_of_a_lane_are_read_through_its_descriptor(lanes: Callable[..., int]) -> None:
    """And nonsense, which a worker that writes wild leaves, is none."""
    assert left_words(lanes(5, 3, 2)) == (5, 2)
    assert left_words(lanes(5, 6)) is None


def test_the_witness_tells_of_the_dead_only(tmp_path: Path, lanes: Callable[..., int]) -> None:
    """Not of one that still lives, of one whose pid was used twice, of one that wrote nonsense."""
    (tmp_path / "journal.log").write_bytes(b"12345")
    witness = Witness(Occasion(str(tmp_path / "begun"), NAME, str(tmp_path / "journal.log")))
    for pid, words in ((10, (4, 2)), (11, (1,)), (12, (3, 9)), (13, (8, 0, 1))):
        witness.born(pid, lanes(*words))
    for pid in (10, 12, 13, 99):
        witness.died(pid)
    witness.born(10, lanes(1))
    witness.died(10)
    witness.testify()
    assert (tmp_path / "begun").read_text() == f"{NAME}\n5\n13 8 1\n"
    assert os.stat(tmp_path / "begun").st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path).count("begun.new") == 0


def test_a_witness_who_cannot_write_says_nothing(tmp_path: Path, lanes: Callable[..., int]) -> None:
    """The directory is gone; and where no worker was born, there is nothing to tell."""
    gone = tmp_path / "gone"
    witness = Witness(Occasion(str(gone / "begun"), NAME, str(gone / "journal.log")))
    witness.testify()
    witness.born(10, lanes(1))
    witness.died(10)
    witness.testify()
    assert not gone.exists()


# -------------------------------------------------------------------------------------------------- the next session


@pytest.fixture
def directory(tmp_path: Path) -> Any:
    with RunDirectory.create_at(tmp_path / "run") as made:
        made.lock()
        yield made


def journal_of(directory: RunDirectory, *records: List[Any]) -> None:
    with JournalWriter(directory.journal_path, header=JournalHeader("P")) as writer:
        writer.append([["protocol", SESSION], STEPS])
        for record in records:
            writer.append([record])


def tell(directory: RunDirectory, *lines: str, session: str = NAME, size: int = 0) -> None:
    size = size or os.path.getsize(directory.journal_path)
    fd = os.open(directory.begun_path, os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(fd, "\n".join((session, str(size), *lines, "")).encode())
    os.close(fd)


def taken_back(directory: RunDirectory) -> List[int]:
    """Twice: the second time there is nothing left to do."""
    journal = read_journal(directory.journal_path)
    before = history_as_told(directory, journal)
    found = find_unbegun(directory, journal)
    assert take_back_unbegun(directory, journal) == found
    assert {s.id for s in before.in_doubt} == {s.id for s in read_journal(directory.journal_path).replay().in_doubt}
    history = read_journal(directory.journal_path).replay()
    assert not {s.id for s in history.in_doubt} & set(found)
    assert all(history.steps[s].status == "new" for s in found)
    assert "workers.begun" not in " ".join(os.listdir(directory.path))
    assert take_back_unbegun(directory, read_journal(directory.journal_path)) == []
    return found


RUNS: List[List[Any]] = [
    ["started", 10, 1, 0.0, [1, 2, 3]], ["started", 11, 1, 0.0, [4, 5]], ["done", 10, 0.0, [1], [1], [1]],
    ["started", 10, 1, 0.0, [6, 7]],
]  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "unbegun"),
    [
        (["10 2 0", "11 0 0"], [3, 4, 5, 6, 7]),
        (["10 3 0", "11 1 0"], [5, 6, 7]),
        (["10 5 0", "11 2 0"], []),
        (["10 2 1", "11 0 5"], [6, 7]),  # as many messages as were refused may hide a step that has begun
        (["10 2 0"], [3, 6, 7]),  # nobody knows of worker 11
        (["99 0 0"], []),
        (["10 x 0"], []),
        (["10 2"], []),
    ],
)
def test_what_was_sent_behind_the_last_that_had_begun_is_taken_back(
    directory: RunDirectory, lines: List[str], unbegun: List[int]
) -> None:
    """Counted in the order in which the journal has them as started, on each worker."""
    journal_of(directory, *RUNS)
    tell(directory, *lines)
    assert taken_back(directory) == unbegun


def test_a_step_that_came_back_and_was_sent_again_counts_where_it_was_sent_last(directory: RunDirectory) -> None:
    """To the same worker, or to another, of which nothing is known then."""
    journal_of(
        directory, ["started", 10, 1, 0.0, [1, 2, 3]], ["returned", [2, 3]], ["started", 10, 1, 0.0, [2]],
        ["started", 12, 1, 0.0, [3]],
    )  # fmt: skip
    tell(directory, "10 3 0")
    assert taken_back(directory) == [2]


@pytest.mark.parametrize("how", ["another session", "a longer journal", "a torn journal", "garbage", "empty"])
def test_a_file_that_does_not_fit_the_journal_is_not_believed(directory: RunDirectory, how: str) -> None:
    """It is removed, and everything stays in doubt."""
    journal_of(directory, *RUNS)
    size = os.path.getsize(directory.journal_path)
    if how == "another session":
        tell(directory, "10 0 0", "11 0 0", session=session_name("here", 8, 1.25))
        Path(directory.begun_path + ".new").touch()
    elif how == "a longer journal":
        tell(directory, "10 0 0", "11 0 0", size=size - 1)
    elif how == "a torn journal":
        with open(directory.journal_path, "ab") as f:
            f.write(b"torn")
        tell(directory, "10 0 0", "11 0 0", size=size)
    else:
        Path(directory.begun_path).write_bytes(b"\xff\n\n\xfe\n" if how == "garbage" else b"")
        os.chmod(directory.begun_path, 0o600)
    assert taken_back(directory) == []
    assert len(read_journal(directory.journal_path).replay().in_doubt) == 6


def test_an_older_session_counts_no_more(directory: RunDirectory) -> None:
    """Steps of the same ids were started there, too."""
    other = {**SESSION, "started": 2.0}
    journal_of(directory, *RUNS, ["protocol", other], STEPS, ["started", 10, 1, 0.0, [7]])
    tell(directory, "10 0 0", session=session_name("here", 7, 2.0))
    assert taken_back(directory) == [7]


# --------------------------------------------------------------------------------------------------- stored values


def test_values_that_no_record_names_are_swept(directory: RunDirectory) -> None:
    """Their worker died between storing the value and telling of it. What is not ours stays."""
    journal_of(directory, ["result", 1, {"stored": "0123456789abcdef.value"}], ["finished", 10, 0.0, [[1, 0, 0, None]]])
    folder = Path(directory.path) / "values"
    assert sweep_values(directory, read_journal(directory.journal_path)) == []
    folder.mkdir()
    for name in ("0123456789abcdef.value", "fedcba9876543210.value", "mine.value", "notes.txt"):
        (folder / name).write_text("x")
    assert sweep_values(directory, read_journal(directory.journal_path)) == ["fedcba9876543210.value"]
    assert sorted(os.listdir(folder)) == ["0123456789abcdef.value", "mine.value", "notes.txt"]


class Large(Custom):
    """A step whose worker dies after it has stored its value and before the reply: at the end of `store`."""

    def largeStep(self, fatal: str) -> bytes:
        if os.path.exists(fatal):
            from mpsteps import _worker_blocks

            store = _worker_blocks.WorkerBlocks.store

            def deadly(blocks: Any, value: Any, anchor: Any) -> str:
                store(blocks, value, anchor)
                os._exit(3)

            _worker_blocks.WorkerBlocks.store = deadly  # type: ignore[method-assign]
        return np_array()


def np_array() -> Any:
    import numpy as np

    return np.zeros(1 << 20)


def test_a_worker_that_dies_with_its_value_stored_leaves_nothing_for_long(tmp_path: Path) -> None:
    """The next session removes the file."""
    pytest.importorskip("numpy")
    fatal = tmp_path / "fatal"
    fatal.touch()

    def insert(p: Any) -> None:
        p._insertFunctionStep("largeStep", str(fatal))

    first = Large(insert, workingDir=str(tmp_path / "run"))
    first.run(engine="processes")
    assert first.isFailed()
    values = tmp_path / "run" / "values"
    orphans = os.listdir(values)
    assert len(orphans) == 1
    fatal.unlink()
    second = Large(insert, workingDir=str(tmp_path / "run"))
    second.run(engine="processes")
    assert second.isFinished(), second.getErrorMessage()
    assert len(os.listdir(values)) == 1
    assert os.listdir(values) != orphans
