"""Steps as jobs of a real Slurm: runs where there is one (sinfo answers), and is skipped elsewhere."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any, Iterator, List

import pytest

pytest.importorskip("distributed", reason='clusters need Dask: pip install "mpsteps[dask]"')
pytest.importorskip("dask_jobqueue", reason='jobs need dask-jobqueue: pip install "mpsteps[slurm]"')

from engine_driver import alive
from engine_steps import SECONDS, wait_for_file
from protocols import Custom, notes, wait_until

from mpsteps import STATUS_FINISHED, Cluster, EngineError, StepPool, UsageError


def slurm(*command: str) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, timeout=SECONDS).stdout


def _answers() -> bool:
    if shutil.which("sinfo") is None or shutil.which("sbatch") is None:
        return False
    try:
        quiet = subprocess.DEVNULL
        return subprocess.run(["sinfo"], stdout=quiet, stderr=quiet, timeout=20).returncode == 0
    except subprocess.TimeoutExpired:  # the programs are there, and no daemon
        return False


pytestmark = [pytest.mark.once, pytest.mark.skipif(not _answers(), reason="no Slurm here: sinfo does not answer")]

JOB = Cluster("slurm", workers=1, cores=1, memory="500 MB", walltime="00:05:00")


@pytest.fixture(autouse=True)
def no_job_is_left() -> Iterator[None]:
    """Jobs of a test are gone when it ends."""
    yield
    wait_until(lambda: not jobs(), "for the end of all jobs")


def jobs(state: str = "") -> List[str]:
    """The numbers of this user's jobs."""
    options = ["-t", state] if state else []
    return slurm("squeue", "-h", "-o", "%i", "-u", str(os.getuid()), *options).split()


class Slow(Custom):
    """Steps that wait for a file, but for those that run for the second time."""

    def slow(self, folder: str, name: str, release: str) -> None:
        again = os.path.exists(os.path.join(folder, name))
        self.note(name)
        Path(folder, name).write_text(str(os.getpid()))
        if not again:
            wait_for_file(release)


def run(tmp_path: Path, insert: Any, engine: Any, cls: Any = Custom, **options: Any) -> Any:
    protocol = cls(insert, workingDir=str(tmp_path / "run"), notes=str(tmp_path / "notes"))
    protocol.run(engine=engine, **options)
    return protocol


def test_jobs_run_steps_and_what_they_say_is_in_the_logs_of_the_run(tmp_path: Path) -> None:
    """Two jobs at the same time: their steps meet. No certificate is left."""

    def insert(self: Any) -> None:
        for i in range(2):
            self._insertFunctionStep(self.meetOthers, str(tmp_path / "m"), i, 2, prerequisites=[])
        self._insertFunctionStep(self.put, "job", "a number")
        self._insertFunctionStep(lambda: self.put("job", os.environ["SLURM_JOB_ID"]))

    protocol = run(tmp_path, insert, JOB._replace(workers=2))
    assert protocol.isFinished(), protocol.getErrorMessage()
    assert protocol.table["job"].isdigit()
    assert list((tmp_path / "run" / "logs").glob("dask-worker-*"))
    assert not list((tmp_path / "run").rglob(".mpsteps-slurm-*"))


def test_a_job_that_is_cancelled_in_the_middle_costs_its_step_and_resume_does_the_rest(tmp_path: Path) -> None:
    """scancel: the running step is lost, another job takes over what had not begun, resume runs the lost one."""
    folder = tmp_path / "slow"
    folder.mkdir()

    def insert(self: Any) -> None:
        for name in "ab":
            self._insertFunctionStep("slow", str(folder), name, str(tmp_path / "go"), prerequisites=[])

    def cancel() -> None:
        wait_until(lambda: (folder / "a").exists() and (folder / "a").read_text(), "for the step")
        slurm("scancel", "--signal=KILL", "--full", *jobs("R"))
        wait_until(lambda: not alive(int((folder / "a").read_text())), "for the end of its worker")
        (tmp_path / "go").touch()

    thread = threading.Thread(target=cancel)
    thread.start()
    try:
        first = run(tmp_path, insert, JOB, Slow, keep_going=True)
    finally:
        thread.join()
    assert [s.getStatus() for s in first.getSteps()] == ["failed", STATUS_FINISHED]
    assert "its node" in first.getErrorMessage()

    again = run(tmp_path, insert, "processes", Slow)
    assert again.isFinished(), again.getErrorMessage()
    assert notes(tmp_path / "notes") == ["a", "b", "a"]


def test_towards_the_end_of_its_walltime_a_job_is_drained_and_another_goes_on(tmp_path: Path, monkeypatch: Any) -> None:
    """What runs ends well; what comes after runs in a second job."""
    monkeypatch.setattr("mpsteps.engines.dask.slurm.DRAIN_SHARE", 0.97)

    handler = logging.FileHandler(tmp_path / "log")
    logging.getLogger("mpsteps.engine").addHandler(handler)
    try:
        protocol = run(
            tmp_path,
            lambda self: [
                self._insertFunctionStep(wait_for_text, str(tmp_path / "log"), "about to leave"),
                self._insertFunctionStep(lambda: self.add(os.environ["SLURM_JOB_ID"])),
            ],
            JOB._replace(walltime="00:02:00"),
        )
    finally:
        logging.getLogger("mpsteps.engine").removeHandler(handler)
        handler.close()
    assert protocol.isFinished(), protocol.getErrorMessage()
    assert len(protocol.log) == 1


def wait_for_text(path: str, text: str) -> None:
    wait_until(lambda: text in Path(path).read_text(), f"for {text!r}")


def test_a_pool_leaves_nothing_in_the_current_directory(tmp_path: Path, monkeypatch: Any) -> None:
    """Neither certificates nor Slurm's slurm-1.out."""
    monkeypatch.chdir(tmp_path)
    with StepPool(engine=JOB) as pool:
        assert pool.submit(os.getenv, "SLURM_JOB_ID").result(SECONDS).isdigit()
    wait_until(lambda: not jobs(), "for the end of the job")
    assert os.listdir(tmp_path) == []


def test_jobs_that_end_before_their_dask_worker_is_there_are_an_error_with_their_last_words(
    tmp_path: Path, monkeypatch: Any
) -> None:
    """Not a pool that waits for ever."""
    import dask

    monkeypatch.setattr("mpsteps.engines.dask.slurm.QUEUE_SECONDS", 0.2)
    monkeypatch.chdir(tmp_path)
    prologue = {"jobqueue.slurm.job-script-prologue": ["echo there is no Python on this node >&2", "exit 3"]}
    with dask.config.set(prologue), StepPool(engine=JOB) as pool:
        error = pool.submit(os.getpid).exception(60)
    assert isinstance(error, EngineError)
    assert "3 jobs of Slurm in a row have ended before their Dask worker was there" in str(error)
    assert "there is no Python on this node" in str(error)
    assert os.listdir(tmp_path) == []


def test_the_demo_gives_the_same_files_as_here(tmp_path: Path) -> None:
    """Two jobs; a part of its micrograph."""
    pytest.importorskip("matplotlib")
    mrcfile = pytest.importorskip("mrcfile")
    from mpsteps.demo import bundled_micrograph
    from mpsteps.demo.micrograph import read_window
    from mpsteps.demo.protocol import ProtDemo

    with mrcfile.new(str(tmp_path / "part.mrc"), data=read_window(bundled_micrograph())[:900, :900]) as mrc:
        mrc.voxel_size = 2.1344
    made = {}
    for name, engine in (("here", "inline"), ("there", JOB._replace(workers=2))):
        protocol = ProtDemo(tileSize=384, micrographs=str(tmp_path / "*.mrc"), workingDir=str(tmp_path / name))
        protocol.run(engine=engine)
        assert protocol.isFinished(), protocol.getErrorMessage()
        made[name] = {p.name: p.read_bytes() for p in (tmp_path / name).rglob("*.star")}
    assert made["here"]
    assert made["here"] == made["there"]


def test_what_slurm_does_not_take_is_an_error_with_its_words(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"Slurm does not take the job: .*nvalid partition"):
        StepPool(engine=JOB._replace(partition="nowhere"))
    with pytest.raises(UsageError, match="give --cores"):
        StepPool(engine="slurm")
