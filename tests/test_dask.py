"""Steps on Dask clusters: what is promised beyond one machine, and what becomes of it when parts of a cluster die.

(That everything else is as on one machine is seen by running the other tests there: tests/on_cluster.py.)
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Iterator, List

import psutil
import pytest

pytest.importorskip("distributed", reason='clusters need Dask: pip install "mpsteps[dask]"')
pytest.importorskip("cryptography", reason='clusters need certificates: pip install "mpsteps[dask]"')

from dask_cluster import CAN_HIDE, DaskCluster
from dask_runs import Slow, SlowAgain, insert_and_run, meanwhile, statuses, wait_for_text, warnings_in
from engine_driver import alive
from engine_steps import SECONDS, wait_for_file
from protocols import notes, wait_until

from mpsteps import STATUS_FINISHED, Cluster, EngineError, StepLost, StepPool, UsageError

pytestmark = [pytest.mark.once, pytest.mark.skipif(sys.platform == "win32", reason="no workers on Windows")]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    """A cluster of two nodes that is as it was after each test."""
    cluster = DaskCluster(tmp_path_factory.mktemp("shared"))
    cluster.add(2)
    cluster.add(1)
    yield cluster
    cluster.close()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[DaskCluster]:
    """A cluster without nodes, to be broken."""
    (tmp_path / "cluster").mkdir()
    cluster = DaskCluster(tmp_path / "cluster")
    yield cluster
    cluster.close()


# --------------------------------------------------------------------------------------------- clusters that we start


def test_a_protocol_runs_on_dask_workers_of_this_machine_as_it_does_here(tmp_path: Path) -> None:
    """State, results and logs come back; nothing listens beyond loopback; afterwards there is nothing left."""

    def insert(self: Any) -> None:
        deps = [self._insertFunctionStep(self.put, i, i * i, prerequisites=[]) for i in range(8)]
        self._insertFunctionStep(self.look, "table", prerequisites=deps)
        self._insertFunctionStep(listen_on_loopback_only, os.getpid(), prerequisites=[])

    protocol = insert_and_run(tmp_path, insert, Cluster("dask", workers=2, cores=1))
    assert protocol.isFinished(), protocol.getErrorMessage()
    assert protocol.seen == {i: i * i for i in range(8)}
    assert set(statuses(protocol)) == {STATUS_FINISHED}
    assert not list((tmp_path / "run").glob("nodes.*"))


def listen_on_loopback_only(coordinator: int) -> None:
    """Looks at every process that the coordinator has started, and at itself."""
    family = [psutil.Process(coordinator), *psutil.Process(coordinator).children(recursive=True)]
    listening = [address.ip for p in family for address in listens(p)]
    assert listening, "nobody listens: then this test sees nothing"
    assert set(listening) <= {"127.0.0.1", "::1"}, listening


def test_what_we_start_takes_no_connection_without_the_certificates_of_the_run(tmp_path: Path) -> None:
    """Neither the scheduler nor a Dask worker: they run what they are sent."""
    from distributed.comm import connect

    with StepPool(1, engine="dask") as pool:
        assert pool.submit(abs, -1).result(SECONDS) == 1
        ports = pool.submit(ports_of_family, os.getpid()).result(SECONDS)
        address = pool._work._coordinator.engine._bus._address  # type: ignore[attr-defined]
        assert address.startswith("tls://127.0.0.1:")
        assert int(address.rpartition(":")[2]) in ports
        with pytest.raises(OSError, match=r"Timed out|closed|SSL|connect"):
            asyncio.run(connect(address.replace("tls://", "tcp://"), timeout=1))
        for port in ports:
            with socket.create_connection(("127.0.0.1", port), 5) as sock:
                sock.settimeout(5)
                try:
                    sock.sendall(b"GET /info/main/workers.html HTTP/1.0\r\n\r\n")
                    answer = sock.recv(1 << 16)
                except ConnectionError:
                    continue
                assert not answer or b" 404 " in answer.partition(b"\r\n")[0], (port, answer)


def ports_of_family(coordinator: int) -> List[int]:
    family = [psutil.Process(coordinator), *psutil.Process(coordinator).children(recursive=True)]
    return sorted({address.port for p in family for address in listens(p)})


def listens(process: psutil.Process) -> List[Any]:
    """The addresses on which a process waits for connections."""
    connections = getattr(process, "net_connections", None) or process.connections  # psutil before 6
    return [c.laddr for c in connections("inet") if c.status == psutil.CONN_LISTEN]


PROGRAM = """
import os, sys
from mpsteps import StepPool
pool = StepPool(1, engine="dask")
print(pool.submit(os.getpid).result(), flush=True)
pool.submit(os.system, "sleep 1000")
sys.stdin.read()
"""


def test_nothing_is_left_when_the_coordinator_is_killed(tmp_path: Path) -> None:
    """No guard of __main__ is needed; Dask workers, agents, workers and their programs go when it goes."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    process = subprocess.Popen([sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdin is not None
    worker = int(process.stdout.readline())
    family = psutil.Process(process.pid).children(recursive=True)
    assert worker in {p.pid for p in family}
    process.kill()
    process.wait()
    process.stdout.close()
    process.stdin.close()
    end = time.monotonic() + SECONDS
    while any(alive(p.pid) for p in family):
        assert time.monotonic() < end, [p for p in family if alive(p.pid)]
        time.sleep(0.02)


# -------------------------------------------------------------------------------------------------- clusters of others


def test_a_scheduler_file_is_an_engine_and_its_nodes_are_all_used(shared: DaskCluster, tmp_path: Path) -> None:
    """Two slots and one: three steps meet. The report says where it ran."""

    def insert(self: Any) -> None:
        for i in range(3):
            self._insertFunctionStep(self.meetOthers, str(tmp_path / "m"), i, 3, prerequisites=[])

    protocol = insert_and_run(tmp_path, insert, str(shared.file))
    assert protocol.isFinished(), protocol.getErrorMessage()


def test_a_step_of_several_cpus_has_them_on_one_node(shared: DaskCluster, tmp_path: Path) -> None:
    """The node with two slots, alone there, while the other node goes on."""
    with StepPool(engine=shared.address) as pool:
        first = pool.submit(touch_and_meet, str(tmp_path / "a"), 1)
        first.result(SECONDS)
        both = [pool.submit_step(touch_and_meet, str(tmp_path / "m"), 2, cpus=n) for n in (2, 1)]
        parents = [f.result(SECONDS)[0] for f in both]
        assert len(set(parents)) == 2, "they met, so one was on the node with one slot"


def test_each_node_has_the_cards_that_it_says_it_has(own: DaskCluster, tmp_path: Path) -> None:
    """Three machines, as it were: one card, two, none. Three steps have a card each at the same time, though two of
    these are called 0; all the others take turns."""
    for visible in ("0", "5,6", ""):
        own.add(2, environment={"CUDA_VISIBLE_DEVICES": visible})
    with StepPool(engine=own.address, gpus=[0, 1]) as pool:
        meeting = [pool.submit_step(card_and_meet, str(tmp_path / "m"), 3, gpus=1) for _ in range(3)]
        assert sorted(f.result(SECONDS) for f in meeting) == [("0", [0]), ("5,6", [0]), ("5,6", [1])]
        both = pool.submit_step(card_and_meet, str(tmp_path / "n"), 1, gpus=2)
        assert both.result(SECONDS) == ("5,6", [0, 1])


def test_nodes_on_one_machine_share_its_cards(own: DaskCluster, tmp_path: Path) -> None:
    """Two Dask workers that both see the one card: one step at a time."""
    for _ in range(2):
        own.add(1, environment={"CUDA_VISIBLE_DEVICES": "3"})
    with StepPool(engine=own.address, gpus=[0]) as pool:
        wait_for_both = [pool.submit(touch_and_meet, str(tmp_path / "m"), 2) for _ in range(2)]
        assert len({f.result(SECONDS)[0] for f in wait_for_both}) == 2
        alone = [pool.submit_step(hold_alone, str(tmp_path / "held"), gpus=1) for _ in range(6)]
        assert {tuple(f.result(SECONDS)) for f in alone} == {(0,)}


def card_and_meet(folder: str, count: int) -> Any:
    from protocols import meet

    from mpsteps import _context

    cards = _context.current().getGpuList()
    meet(folder, os.getpid(), count)
    return os.environ["CUDA_VISIBLE_DEVICES"], cards


def hold_alone(path: str) -> Any:
    """Fails if anybody else is at it."""
    from mpsteps import _context

    os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    time.sleep(0.02)
    os.unlink(path)
    return _context.current().getGpuList()


def touch_and_meet(folder: str, count: int) -> Any:
    from protocols import meet

    meet(folder, os.getpid(), count)
    return os.getppid(), os.getpid()


def test_a_large_value_goes_to_a_node_once(shared: DaskCluster) -> None:
    """Twenty steps take the same megabytes: what is carried is one copy for each node that runs them."""
    np = pytest.importorskip("numpy")
    data = np.arange(500_000, dtype=float)
    with StepPool(engine=shared.address) as pool:
        bus = pool._work._coordinator.engine._bus  # type: ignore[attr-defined]
        carried: List[int] = []
        post = bus.post
        bus.post = lambda agent, content: (carried.append(len(content)), post(agent, content))
        made = pool.submit(np.multiply, data, 2.0)
        sums = [pool.submit_step(np.sum, made) for _ in range(20)]
        assert {float(f.result(SECONDS)) for f in sums} == {float(data.sum() * 2)}
        assert data.nbytes < sum(carried) < 4 * data.nbytes


@pytest.mark.parametrize("engine", ["tcp://127.0.0.1", "dusk", "nowhere.json", "inline ", "http://x:1"])
def test_what_is_no_engine_is_refused_before_anything_is_done(engine: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no engine|no address"):
        insert_and_run(tmp_path, lambda self: self._insertFunctionStep("nothing"), engine)
    assert not (tmp_path / "run").exists()


def test_a_scheduler_that_is_not_there_is_an_error_that_names_it(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("mpsteps.engines.dask.bus.CONNECT_SECONDS", 1.0)
    with pytest.raises(EngineError, match=r"no Dask scheduler at tcp://127\.0\.0\.1:9"):
        insert_and_run(tmp_path, lambda self: self._insertFunctionStep("nothing"), "tcp://127.0.0.1:9")


def test_a_file_that_is_no_scheduler_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[1")
    with pytest.raises(UsageError, match="no scheduler file"):
        insert_and_run(tmp_path, lambda self: self._insertFunctionStep("nothing"), str(tmp_path / "x.json"))


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"workers": 0}, "workers"), ({"cores": -1}, "cores"), ({"walltime": "soon"}, "walltime"),
        ({"memory": "much"}, "memory"), ({"walltime": "00:00:00"}, "walltime"),
    ],
)  # fmt: skip
def test_numbers_of_a_cluster_that_make_no_sense_are_refused(options: Any, what: str) -> None:
    from mpsteps.engines.choice import engine_of

    with pytest.raises(UsageError, match=what):
        engine_of(Cluster("slurm", **options))
    with pytest.raises(UsageError, match="no use for it"):
        engine_of(Cluster("tcp://here:1", workers=2))
    with pytest.raises(UsageError, match="slurm"):
        engine_of(Cluster("dask", walltime="01:00:00"))


def test_a_job_that_is_left_for_two_reasons_counts_once(monkeypatch: Any) -> None:
    """It was idle, so it is given back; then its agent leaves. Else a job that is at work would be cancelled."""
    from mpsteps.engines.dask.slurm import SlurmJobs

    class Jobs:
        workers = {"job-1": None, "job-2": None}
        asked: List[Any] = []

        def scale(self, n: int) -> None:
            self.asked.append(n)

        async def scale_down(self, names: List[str]) -> None:
            self.asked.append(names)

        def __await__(self) -> Any:
            return iter(())

    async def story() -> None:
        source = SlurmJobs(Cluster("slurm", workers=2, cores=1, memory="1 GB"), "", "")
        source._jobs, source._asked = Jobs(), 2
        source.scale(1, {"job-1": float("-inf"), "job-2": float("-inf")})
        assert source.left("job-1") is False
        source.scale(1, {"job-1": float("-inf"), "job-2": float("-inf")})
        source.scale(2, {})
        await asyncio.gather(*source._tasks)

    asyncio.run(story())
    assert Jobs.asked == [["job-1"], 2]


# ------------------------------------------------------------------------------------------------------ what may break


def test_a_run_directory_that_no_node_sees_is_an_error_that_says_what_to_do(
    shared: DaskCluster, tmp_path: Path, monkeypatch: Any
) -> None:
    """As where the same path leads elsewhere: the file that the coordinator has put there is not there."""
    import mpsteps.engines.about as about_module

    about_run = about_module.about_run

    @contextlib.contextmanager
    def elsewhere(*args: Any) -> Iterator[Any]:
        with about_run(*args) as about:
            yield {**about, "proof": (str(tmp_path / "not-there"), "x")}

    monkeypatch.setattr(about_module, "about_run", elsewhere)
    monkeypatch.setattr(about_module, "SEE_SECONDS", 0.1)
    with pytest.raises(EngineError, match="must be on a file system that all nodes share, under the same path"):
        insert_and_run(tmp_path, lambda self: self._insertFunctionStep("nothing"), shared.address)


@pytest.mark.parametrize(
    ("told", "what"),
    [({"version": "0.0.1"}, "its mpsteps is .*, the coordinator's 0.0"), ({"python": ("3", "7")}, "Python is .* 3.7")],
)
def test_a_node_with_another_mpsteps_or_python_is_not_used(
    shared: DaskCluster, monkeypatch: Any, told: Any, what: str
) -> None:
    """What is pickled here could not be opened there, or would mean something else."""
    import mpsteps.engines.about as about_module

    about = about_module._about
    monkeypatch.setattr(about_module, "_about", lambda preload: {**about(preload), **told})
    with StepPool(engine=shared.address) as pool:
        error = pool.submit(abs, 1).exception(SECONDS)
    assert isinstance(error, EngineError)
    assert re.search(what, str(error)), error


@pytest.mark.skipif(not CAN_HIDE, reason="only root can hide a directory from one process (unshare -m)")
def test_a_node_that_does_not_see_the_run_directory_is_done_without(
    own: DaskCluster, tmp_path: Path, monkeypatch: Any
) -> None:
    """For real: on one node something else is mounted there. The other one runs everything."""
    monkeypatch.setattr("mpsteps.engines.about.SEE_SECONDS", 0.2)
    (tmp_path / "run").mkdir(mode=0o700)
    own.add(1, hide=tmp_path / "run")
    own.add(1)

    def insert(self: Any) -> None:
        for i in range(2):
            log, before = str(tmp_path / "log"), [i] if i else []
            self._insertFunctionStep(wait_for_text, log, "cannot run steps", prerequisites=before)

    with warnings_in(tmp_path / "log"):
        protocol = insert_and_run(tmp_path, insert, own.address)
    assert protocol.isFinished(), protocol.getErrorMessage()


def run_and_kill(cluster: DaskCluster, tmp_path: Path, cls: Any, kill: Any, **options: Any) -> Any:
    """Two nodes of one slot run `a` and `b`; kill one of them, then let the rest go. `c` and `d` are behind."""
    for _ in range(2):
        cluster.add(1)
    folder = tmp_path / "slow"
    folder.mkdir()

    def insert(self: Any) -> None:
        for name in "abcd":
            self._insertFunctionStep("slow", str(folder), name, str(tmp_path / "go"), prerequisites=[])

    def break_it() -> None:
        for name in "ab":
            wait_for_file(folder / name)
        kill()

    with meanwhile(break_it):
        return insert_and_run(tmp_path, insert, cluster.address, cls, **options)


def test_a_node_that_is_lost_costs_the_steps_that_were_there_and_no_others(own: DaskCluster, tmp_path: Path) -> None:
    """Its agent, workers and programs die with it; what was not sent there runs elsewhere."""

    def kill() -> None:
        agents = [p.pid for p in psutil.Process(own.workers[0].pid).children(recursive=True)]
        own.workers[0].kill()
        own.workers[0].wait()
        (tmp_path / "go").touch()
        wait_until(lambda: not any(map(alive, agents)))

    protocol = run_and_kill(own, tmp_path, Slow, kill, keep_going=True)
    assert sorted(statuses(protocol)) == ["failed", "finished", "finished", "finished"]
    failed = next(s for s in protocol.getSteps() if s.isFailed())
    assert "its node" in str(failed.getErrorMessage())
    assert "was lost" in str(failed.getErrorMessage())
    assert "rerunOnLoss" in str(failed.getErrorMessage())
    assert isinstance(failed._error, StepLost)
    assert sorted(notes(tmp_path / "notes")) == ["a", "b", "c", "d"]


def test_steps_that_were_on_a_lost_node_run_again_if_that_was_declared(own: DaskCluster, tmp_path: Path) -> None:
    """`rerunOnLoss`: exactly the one that was there runs twice."""

    def kill() -> None:
        own.workers[1].kill()
        own.workers[1].wait()
        (tmp_path / "go").touch()

    protocol = run_and_kill(own, tmp_path, SlowAgain, kill)
    assert protocol.isFinished(), protocol.getErrorMessage()
    ran = notes(tmp_path / "notes")
    assert sorted(set(ran)) == ["a", "b", "c", "d"]
    assert len(ran) == 5


def test_an_agent_that_dies_on_a_node_that_lives_is_replaced(own: DaskCluster, tmp_path: Path) -> None:
    """On all nodes: nothing would be left to run steps."""

    def kill() -> None:
        for worker in own.workers:
            for agent in psutil.Process(worker.pid).children():
                agent.kill()
        (tmp_path / "go").touch()

    protocol = run_and_kill(own, tmp_path, SlowAgain, kill)
    assert protocol.isFinished(), protocol.getErrorMessage()
    assert sorted(notes(tmp_path / "notes")) == ["a", "a", "b", "b", "c", "d"]
    assert all(worker.poll() is None for worker in own.workers)


DIE = "import mpsteps.engines.dask.inside as i; i._import_path = lambda: '[]; import os; os._exit(3)'"


@pytest.mark.parametrize(
    ("first", "what"),
    [
        (DIE, "3 agents in a row have come to nothing"),
        ("import sys; sys.modules['mpsteps'] = None", "cannot be imported there .* same version"),
        ("import mpsteps.engines.dask.inside as i; i.install = lambda dask_worker: 1 // 0", "cannot be used.*division"),
    ],
    ids=["agents die", "not installed", "cannot be asked"],
)
def test_a_cluster_on_which_no_agent_comes_up_is_an_error_after_some_tries(
    own: DaskCluster, tmp_path: Path, first: str, what: str
) -> None:
    """Not a run that waits for ever."""
    own.add(1, first=first)
    with pytest.raises(EngineError, match=what):
        insert_and_run(tmp_path, lambda self: self._insertFunctionStep("nothing"), own.address)


def test_a_scheduler_that_is_lost_ends_the_run_and_resume_continues_it_here(own: DaskCluster, tmp_path: Path) -> None:
    """With a sentence that says so; what had finished is kept."""
    with pytest.raises(EngineError, match=r"Dask scheduler .* is gone.*mpsteps resume"):
        run_and_kill(own, tmp_path, Slow, own.scheduler.kill)
    (tmp_path / "go").touch()

    def insert(self: Any) -> None:
        for name in "abcd":
            self._insertFunctionStep("slow", str(tmp_path / "slow"), name, str(tmp_path / "go"), prerequisites=[])

    again = insert_and_run(tmp_path, insert, "processes", Slow)
    assert again.isFinished(), again.getErrorMessage()
    assert sorted(set(notes(tmp_path / "notes"))) == ["a", "b", "c", "d"]
    assert len(again._report.in_doubt) == 2


def test_a_scheduler_that_is_busy_for_a_while_is_not_gone(own: DaskCluster, monkeypatch: Any) -> None:
    """It is stopped; steps go on meanwhile. If it stays so, the run ends."""
    monkeypatch.setattr("mpsteps.engines.dask.bus.ALIVE_SECONDS", 0.1)
    own.add(1)
    with StepPool(engine=own.address) as pool:
        bus = pool._work._coordinator.engine._bus  # type: ignore[attr-defined]
        assert pool.submit(abs, -1).result(SECONDS) == 1
        own.scheduler.send_signal(signal.SIGSTOP)
        wait_until(lambda: bus._silent_since is not None, "for a look that has no answer")
        assert pool.submit(abs, -2).result(SECONDS) == 2
        own.scheduler.send_signal(signal.SIGCONT)
        wait_until(lambda: bus._silent_since is None, "for an answer")
        monkeypatch.setattr("mpsteps.engines.dask.bus.GONE_SECONDS", 0.2)
        own.scheduler.send_signal(signal.SIGSTOP)
        assert "is gone (TimeoutError)" in str(pool.submit(time.sleep, SECONDS).exception(SECONDS))
        own.scheduler.send_signal(signal.SIGCONT)


def test_a_cluster_that_goes_when_nothing_runs_sees_that_steps_do(tmp_path: Path) -> None:
    """A scheduler with an idle time-out, and no task of Dask's but the one by which its worker is held."""
    (tmp_path / "cluster").mkdir()
    cluster = DaskCluster(tmp_path / "cluster", "--idle-timeout", "3s")
    try:
        cluster.add(1)
        with StepPool(engine=cluster.address) as pool:
            pool.submit(time.sleep, 4.0).result(SECONDS)
    finally:
        cluster.close()


def test_a_node_that_is_asked_to_leave_is_drained(own: DaskCluster, tmp_path: Path) -> None:
    """As batch systems ask: SIGTERM. What runs there ends well, nothing new begins there."""

    def drain() -> None:
        for worker in own.workers[:1]:
            for child in psutil.Process(worker.pid).children():
                child.send_signal(signal.SIGTERM)
        wait_until(lambda: "about to leave" in (tmp_path / "log").read_text())
        (tmp_path / "go").touch()

    with warnings_in(tmp_path / "log"):
        protocol = run_and_kill(own, tmp_path, Slow, drain)
    assert protocol.isFinished(), protocol.getErrorMessage()
    assert sorted(notes(tmp_path / "notes")) == ["a", "b", "c", "d"]


@pytest.mark.parametrize(("missing", "extra"), [("distributed", "dask"), ("cryptography", "dask")])
def test_what_is_not_installed_is_named_with_the_command_that_installs_it(missing: str, extra: str) -> None:
    """One sentence, not the traceback of an import."""
    code = f"import sys; sys.modules[{missing!r}] = None; import mpsteps; mpsteps.StepPool(1, engine='dask')"
    ended = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, timeout=60)
    assert "UsageError: " in ended.stderr
    assert f'pip install "mpsteps[{extra}]"' in ended.stderr.strip().splitlines()[-1]
