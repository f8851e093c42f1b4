"""One call of `run`: puts journal, scheduler, engine and loop together, and lets the protocol's steps run."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import time
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from mpsteps._about_session import about_session
from mpsteps._announcer import check_graph, ordered
from mpsteps._cards import cards_here
from mpsteps._coordinator import Coordinator
from mpsteps._core.nodes import NodeSlots, named_cards
from mpsteps._core.scheduler import Scheduler
from mpsteps._core.slots import SlotPool
from mpsteps._demands import gpu_groups
from mpsteps._ending import finish
from mpsteps._history import mean_seconds
from mpsteps._image import own_class_containers
from mpsteps._ipc.wire import Failure
from mpsteps._journal import JournalHeader, JournalWriter, StepRecord
from mpsteps._learned_memory import known_peaks, learned_memory
from mpsteps._local import run_here
from mpsteps._machine import usable_memory
from mpsteps._memory_needs import MemoryNeeds
from mpsteps._output import step_log
from mpsteps._parent import PRELOAD, Parent
from mpsteps._protocol_run import ProtocolRun
from mpsteps._recorder import Recorder
from mpsteps._resume import Earlier
from mpsteps._signals import Signals, die_of
from mpsteps._workplace import Workplace
from mpsteps.engines.base import Engine
from mpsteps.engines.choice import ChosenEngine, Cluster
from mpsteps.engines.inline import InlineEngine
from mpsteps.errors import EngineError, JournalError, UsageError
from mpsteps.listeners import Listener
from mpsteps.protocol import Protocol
from mpsteps.report import RunReport


@contextlib.contextmanager
def _patient_collector() -> Iterator[None]:
    """Let Python look for garbage more rarely: steps are many, and none of them is garbage."""
    before = gc.get_threshold()
    if before[0]:  # else nobody wants it to look at all
        gc.set_threshold(max(before[0], 50_000), *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


class Session:
    """One call of `run`: everything that lives as long as it does. `started`: when it was called, seconds since the
    epoch; `parent`: of the worker processes, if the engine has any here."""

    def __init__(
        self, protocol: Protocol, place: Workplace, engine: ChosenEngine, listeners: Tuple[Listener, ...],
        durability: str, in_doubt: str, started: float, parent: Optional[Parent],
    ) -> None:  # fmt: skip
        self.protocol = protocol
        self.place = place
        self.directory = place.directory
        self.engine_name, self.cluster, self.cluster_given, self.workers, self.threads = engine
        self.listeners = listeners
        self.durability = durability
        self.in_doubt = in_doubt
        self.doing = ""  # the beginning of the sentence, should a hook of the protocol raise
        self.started = started
        self._parent = parent
        self._began = time.monotonic()
        self._interrupted: List[int] = []
        self._in_step = False  # inline: a step runs in this thread now

    def run(self) -> RunReport:
        """Insert the steps, run them, close everything."""
        protocol = self.protocol
        with self.place.log(), own_class_containers(protocol, Protocol):
            protocol.setRunning()
            protocol.info(f"{type(protocol).__name__} starts in {self.directory.path}, engine {self.engine_name}")
            with self._made_engine() as engine:
                self._insert_steps()  # meanwhile, the engine comes up
                work = self._work = self._make_work(engine)
                check_graph(work.steps)
                work.earlier = Earlier(self.place.history, protocol, self._recorder.digest, protocol.warning)
                restored = self._restored(work)
                doubtful = self._doubtful(work, restored)
                with self._journal() as journal:
                    self._recorder.use(journal, self.place.begin)
                    self._recorder.session(
                        {
                            **about_session(protocol, self.started), "threads": self.threads,
                            "engine": self.engine_name, "cluster": self.cluster_given, **work.resources(),
                            # what nodes have is not told to who looks at the run
                            **({} if self.cluster is None else {"gpus": 0}),
                        }
                    )
                    report = self._run_loop(work, restored, doubtful)
        self._raise_signal()
        return report

    # ------------------------------------------------------------------- preparation

    def _insert_steps(self) -> None:
        protocol = self.protocol
        protocol._steps = []
        protocol._stepsDone.set(0)
        protocol._numberOfSteps.set(0)
        self.doing = f"{type(protocol).__name__}._insertAllSteps failed: "
        with _patient_collector():
            protocol._insertAllSteps()
        self.doing = ""
        if not protocol._steps and type(protocol)._stepsCheck is Protocol._stepsCheck:
            raise UsageError(
                f"{type(protocol).__name__} has no steps: its _insertAllSteps must insert them with "
                "self._insertFunctionStep(...)"
            )

    def _make_work(self, engine: Engine) -> ProtocolRun:
        by_value = self.engine_name != "inline"
        cards = self._cards()
        if self.cluster is None:
            groups = dict(enumerate(gpu_groups(cards, self.workers)))
        else:  # each node has its own, and what is held there are numbers of cards
            groups = {card: (card,) for group in gpu_groups(cards, 1) for card in group}
        self._recorder = Recorder(self.protocol)
        work = ProtocolRun(
            self.protocol, self._recorder, self.listeners, by_value, self.workers, groups, self.directory.logs,
            self.durability == "power", self._learned() if by_value else None,
        )  # fmt: skip
        needs: Optional[MemoryNeeds] = None
        if self.cluster is None:
            total = usable_memory()
            slots = SlotPool(self.workers, total, range(len(groups)))
            if by_value:
                needs = MemoryNeeds(total, total / self.workers, known_peaks(self.place.history))
        else:  # each node has its own memory, and nobody looks at its processes from here
            names = cards_here(cards)
            slots = NodeSlots(named_cards(self._share_cards([card for card in cards if card in names], 1), names))
            needs = MemoryNeeds(0, 0.0, known_peaks(self.place.history))
        seconds = mean_seconds(self.place.history)
        keep_going = bool(self.protocol.keepGoing)
        scheduler = Scheduler(
            slots, keep_going, ahead=engine.by_value, seconds=seconds, across=engine.across,
            assumed=needs.assumed if needs is not None and self.cluster is None else 0,
        )  # fmt: skip
        work.coordinator = self._coordinator = Coordinator(scheduler, engine, work, needs)
        return work

    def _cards(self) -> List[int]:
        """The numbers that the form names; [] if none of them is that of a card."""
        cards = self.protocol.getGpuList() if self.protocol.usesGpu() else []
        return cards if gpu_groups(cards, 1) else []

    def _share_cards(self, cards: Sequence[int], slots: int) -> List[Tuple[int, ...]]:
        """As on one machine, which is what all nodes of engine 'dask' are on."""
        return gpu_groups(cards, self.workers if self.engine_name == "dask" else slots)

    def _learned(self) -> Dict[str, int]:
        """Bytes for each step of a function, where as many of them as there are workers would not fit in memory."""
        room = usable_memory()
        learned = learned_memory(self.place.history)
        return {func: need for func, need in learned.items() if need * self.workers > room}

    @contextlib.contextmanager
    def _made_engine(self) -> Iterator[Engine]:
        """The engine, being prepared; whatever happens, nothing of it is left afterwards."""
        if self.engine_name == "inline":
            yield InlineEngine(self._run_here)
            return
        if self.cluster is not None:
            with self._made_cluster(self.cluster) as engine:
                yield engine
            return
        from mpsteps.engines.processes import ProcessEngine

        assert self._parent is not None
        engine = ProcessEngine(
            self.workers, self._setup, self.directory.logs, keep_open=(self._parent.fence,), preload=PRELOAD,
            zygote=self._parent.zygote,
        )  # fmt: skip
        try:
            engine.prepare()
            yield engine
        finally:
            engine.stop(at_once=True)  # does nothing if the loop has come to its end

    @contextlib.contextmanager
    def _made_cluster(self, cluster: Cluster) -> Iterator[Engine]:
        from mpsteps.engines.about import about_run
        from mpsteps.engines.dask.bus import DaskBus
        from mpsteps.engines.remote import RemoteEngine

        with about_run(self.directory, PRELOAD, self._cards()) as about:
            engine = RemoteEngine(
                DaskBus(cluster, self.directory.tmp, self.directory.logs), self._setup, about, self.directory.tmp,
                bool(self.protocol.rerunOnLoss), self._share_cards,
            )  # fmt: skip
            engine.open_steps = lambda: self._coordinator.scheduler.open_steps
            try:
                engine.prepare()
                yield engine
            finally:
                engine.stop(at_once=True)

    def _setup(self, worker: int) -> Dict[str, Any]:
        return self._work.setup(worker)

    def _run_here(self, message: Tuple[Any, ...]) -> Tuple[Any, ...]:
        """The inline engine's way to run a step."""
        protocol, home = self.protocol, os.getcwd()
        self._in_step = True
        try:
            reply = run_here(message, self._work.tracker, protocol, step_log(self.directory.logs, message[0]))
        finally:
            self._in_step = False
        if len(reply) == 5 and self._interrupted and reply[4][1] == "KeyboardInterrupt":  # as `_on_signal` raised it
            reply = (*reply[:3], None, tuple(self._why_ended()))
        if len(reply) == 5 or protocol._currentDir is not None:  # it failed, or entered a directory for good
            protocol._currentDir = None
            os.chdir(home)
        return reply

    def _restored(self, work: ProtocolRun) -> Dict[int, StepRecord]:
        """The steps that are kept, by id. Digests are worked out in an order in which each finds those it needs."""
        order = ordered(work.steps)
        if work.earlier:
            return work.earlier.take_all(order)
        if order is not work.steps:
            for step in order:
                self._recorder.digest(step)
        return {}

    def _doubtful(self, work: ProtocolRun, restored: Dict[int, StepRecord]) -> List[int]:
        """The steps that were cut in the middle by the end of an earlier session, and will run again."""
        doubtful = [s for s in work.steps if s._id not in restored and work.earlier.was_cut_short(s)]
        if doubtful:
            names = ", ".join(str(s) for s in doubtful[:10])
            if self.in_doubt == "fail":
                raise UsageError(
                    f"{len(doubtful)} steps were running when the last session broke off ({names}): look at what they "
                    "left, then resume with in_doubt='rerun' (--in-doubt rerun)"
                )
            self.protocol.warning(f"{len(doubtful)} steps were cut in the middle by a crash and run again: {names}")
        return [s._id for s in doubtful]

    @contextlib.contextmanager
    def _journal(self) -> Iterator[JournalWriter]:
        path = self.directory.journal_path
        if os.path.exists(path):
            journal = JournalWriter.reopen(path, self.durability)
        else:
            journal = JournalWriter(path, self.durability, JournalHeader(type(self.protocol).__name__))
        with journal:
            yield journal

    # ---------------------------------------------------------------------- the loop

    def _run_loop(self, work: ProtocolRun, restored: Dict[int, StepRecord], doubtful: List[int]) -> RunReport:
        coordinator = self._coordinator
        at_once = True
        with Signals(self._on_signal):
            try:
                work.open_state()
                if len(restored) < work.total or work.checks_steps:
                    coordinator.engine.start()  # workers come up while the scheduler hears of the steps
                work.begin(restored)
                self._recorder.doubt(doubtful)
                if work.done < work.total or work.checks_steps:
                    coordinator.run()
                at_once = coordinator.killed
            except (EngineError, JournalError) as error:
                work.problem = error
            finally:
                coordinator.engine.stop(at_once)
                work.end()
            # Also the closing is under the handlers: a late Ctrl-C must not keep the end from being recorded.
            workers = getattr(coordinator.engine, "most", self.workers)
            seconds = time.monotonic() - self._began
            return finish(work, self._recorder, self.place, self.listeners, doubtful, workers, seconds)

    def _on_signal(self, number: int, count: int) -> None:
        """In a signal handler: note it, wake the loop. The second Ctrl-C ends running steps, too; the third ends this
        process on the spot, whatever it hangs in: the journal is whole at any moment, and the zygote kills the rest."""
        if number == signal.SIGINT and count > 2:
            die_of(number)
        self._interrupted.append(number)
        coordinator = self._coordinator
        if number == signal.SIGINT and count == 1:
            coordinator.post(self._stop_gently)
        else:
            coordinator.post(self._stop_at_once)
            if self._in_step:
                raise KeyboardInterrupt  # out of the step that runs in this very thread, into its try block

    def _stop_gently(self) -> None:
        if not self._coordinator.scheduler.stopping:
            self._work.interrupted = "stopped by Ctrl-C"
            self._coordinator.stop_starting()
            for listener in self.listeners:
                listener.run_stopping(self._work, "waiting for the running steps; Ctrl-C again ends them")

    def _stop_at_once(self) -> None:
        why = self._why_ended()
        self._work.interrupted = why.message
        self._coordinator.kill_all(why)

    def _why_ended(self) -> Failure:
        name = signal.Signals(self._interrupted[-1]).name
        return Failure("cancelled", "StepCancelled", f"the run was ended by {name}")

    def _raise_signal(self) -> None:
        """What the user or the system wanted of this process, now that nothing is left open."""
        if not self._interrupted:
            return
        if self._interrupted[-1] == signal.SIGINT:
            raise KeyboardInterrupt
        os.kill(os.getpid(), self._interrupted[-1])
