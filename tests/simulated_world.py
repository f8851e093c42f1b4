"""A world of simulated workers around the real scheduler, and an account of what must be true in it.

`World` carries out the scheduler's commands and tells it what happened. It keeps its own books (who waits for whom,
what each worker was sent, what has been entered how often) and compares every command with them, so that it needs to
believe nothing that the scheduler says. Its methods are what can happen; `simulator.simulate` calls them by chance, the
stateful test by hypothesis.
"""

from __future__ import annotations

import hashlib
from collections import deque
from typing import Any, Deque, Dict, Iterable, List, Optional, Set, Tuple

from mpsteps._core import events as ev
from mpsteps._core.scheduler import Scheduler
from mpsteps._core.slots import SlotPool
from mpsteps._core.steps import FINAL, LOCAL, PLAIN, Demand, Status
from mpsteps.errors import PrerequisiteError

TOTALS = {"cpus": 3, "memory": 100, "licence": 2}
GPUS = (4, 7)
SECONDS = (5e-6, 40e-6, 900e-6, 1.0)
"""What a step of each function takes: the first two go into lanes by the dozen, the last always alone."""


class SimulatedWorker:
    """What one worker has: `lane` as it will run it, `began` its running step, `done` finished and not yet told."""

    def __init__(self) -> None:
        self.lane: Deque[int] = deque()
        self.ahead: Dict[int, Set[int]] = {}  # step sent ahead -> its prerequisites that must finish here first
        self.across: Dict[int, Dict[int, Tuple[int, int]]] = {}  # ... that are elsewhere -> worker, its `apart` as told
        self.knows: Set[int] = set()  # steps that have finished here, or elsewhere as this worker has seen
        self.values: Set[int] = set()  # those of them whose values it has
        self.plain: Set[int] = set()  # steps that have finished here and left nothing
        self.apart = 0  # how many ended otherwise
        self.heard = 0  # the same, as far as the coordinator has heard
        self.apart_at: Dict[int, int] = {}  # step that left something -> `apart` then
        self.began: Optional[int] = None
        self.done: List[int] = []
        self.revoked = False
        self.stalled_by: Optional[int] = None  # a step of which the scheduler was told that it takes very long


class World:
    """The scheduler, its workers, and the books. Every method is one thing that can happen."""

    def __init__(
        self, keep_going: bool = False, ahead: bool = False, scheduler: Any = Scheduler, slots: Any = SlotPool,
        check_every: int = 1, across: bool = False, assumed: int = 0,
    ) -> None:  # fmt: skip
        totals = {kind: n for kind, n in TOTALS.items() if kind not in ("cpus", "memory")}
        slots = slots(TOTALS["cpus"], TOTALS["memory"], GPUS, totals)
        self.scheduler = scheduler(slots, keep_going, ahead, across=across, assumed=assumed)
        self.assumed = assumed
        self.memory_told: Dict[int, int] = {}  # function -> bytes, as somebody outside has measured them
        self.others = 0  # bytes that are in use by something else
        self.share = TOTALS["memory"] / TOTALS["cpus"]  # those that a worker may have, when something was last told
        self.timed: Set[int] = set()  # functions of which a duration was told
        # What workers have finished, to be told together: worker -> event. None: each at once.
        self._together: Optional[Dict[int, ev.StepsFinished]] = None
        self.waited_for_memory = 0
        self.keep_going = keep_going
        self.stopping = False
        self.workers: Dict[int, SimulatedWorker] = {LOCAL: SimulatedWorker()}
        self.newest_worker = 0
        self.needs: Dict[int, Set[int]] = {}
        self.takes: Dict[int, Tuple[int, ...]] = {}  # step -> those of its prerequisites whose values it needs
        self.dependants: Dict[int, List[int]] = {}
        self.demand: Dict[int, Demand] = {}
        self.function: Dict[int, int] = {}
        self.proud: List[int] = []  # steps with a demand of their own that nobody plain may overtake
        self.held: Set[int] = set()
        self.restored: Set[int] = set()
        self.interactive: Set[int] = set()
        self.fate: Dict[int, Status] = {}
        self.in_flight: Set[int] = set()
        self.lost_results: Set[int] = set()
        self.resting: Set[int] = set()
        self.entered: Dict[int, int] = {}
        self.attempts_failed: Dict[int, int] = {}
        self.left: Dict[int, int] = {}  # step that left something -> the worker that knows of it
        self.told: Dict[int, int] = {}  # ... that the coordinator has heard of -> how many events it had seen before
        self.sent_values: Dict[int, Set[int]] = {}  # step -> the values that came with it
        self.sent: Dict[int, int] = {}  # step -> how many events the coordinator had seen when it was sent
        self.followed_across = 0
        self.to_be_sent: Set[Tuple[int, int]] = set()  # with one event, also before what they follow is
        self.events = 0
        self._check_every = check_every
        self._trace = hashlib.blake2b(digest_size=16)

    # -------------------------------------------------------------- what can happen

    def add_step(
        self, needs: Iterable[int] = (), demand: Demand = PLAIN, held: bool = False, function: int = 0,
        interactive: bool = False, takes: Iterable[int] = (),
    ) -> int:  # fmt: skip
        step = len(self.needs) + 1
        prerequisites = tuple(needs)
        self.needs[step] = set(prerequisites)
        self.takes[step] = tuple(takes)
        for p in self.needs[step]:
            self.dependants.setdefault(p, []).append(step)
        self.demand[step], self.function[step] = demand, function
        if held:
            self.held.add(step)
        if interactive:
            self.interactive.add(step)
            self.demand[step] = demand = demand._replace(alone=True)  # nothing may follow it into its lane
        if self.assumed and demand != PLAIN and not demand.memory and not demand.local:
            self.demand[step] = demand = demand._replace(learned=function)
        if demand != PLAIN and not demand.gpus and not demand.tokens:
            self.proud.append(step)
        added = ev.StepAdded(step, prerequisites, held, demand, function, self.takes[step])
        self._tell(added, skipped=self._hopeless([step]))
        return step

    def add_steps(self, all_needs: List[Tuple[int, ...]], function: int) -> None:
        """Ordinary steps, told at once."""
        first = len(self.needs) + 1
        for step, needs in enumerate(all_needs, first):
            self.needs[step] = set(needs)
            for p in self.needs[step]:
                self.dependants.setdefault(p, []).append(step)
            self.demand[step], self.function[step] = PLAIN, function
        skipped = self._hopeless(range(first, first + len(all_needs)))
        self._tell(ev.StepsAdded(first, all_needs, function), skipped=skipped)

    def add_prerequisites(self, step: int, prerequisites: Iterable[int]) -> None:
        """PrerequisiteError, and nothing has happened, if the scheduler refuses it."""
        added = tuple(prerequisites)
        before, self.needs[step] = self.needs[step], self.needs[step] | set(added)
        skipped = self._hopeless([step])
        try:
            self._tell(ev.PrerequisitesAdded(step, added), skipped=skipped)
        except PrerequisiteError:
            self.needs[step] = before
            for s in skipped:
                del self.fate[s]
            raise
        for p in self.needs[step] - before:
            self.dependants.setdefault(p, []).append(step)

    def hold(self, step: int) -> None:
        self.held.add(step)
        self._tell(ev.StepHeld(step))

    def release(self, step: int) -> None:
        self.held.discard(step)
        self._tell(ev.StepReleased(step))

    def restore(self, step: int) -> None:
        self.held.discard(step)
        self.restored.add(step)
        self.fate[step] = Status.FINISHED
        self._tell(ev.StepRestored(step))

    def add_worker(self) -> int:
        self.newest_worker += 1
        self.workers[self.newest_worker] = SimulatedWorker()
        self._tell(ev.WorkerReady(self.newest_worker))
        return self.newest_worker

    def begin(self, worker: int, step: Optional[int] = None) -> None:
        """The worker enters a step: its first, or in the coordinator process any. Nobody is told."""
        w = self.workers[worker]
        step = w.lane[0] if step is None else step
        w.began = step
        for p, (peer, _) in w.across.pop(step, {}).items():
            assert p in self.workers[peer].plain, f"step {step} runs before step {p} elsewhere"
            w.knows.add(p)
            self.followed_across += 1
        self.entered[step] = self.entered.get(step, 0) + 1
        retries = self.demand[step].retries
        assert self.entered[step] <= 1 + retries, f"step {step} is entered {self.entered[step]} times"
        late = [p for p in self.needs[step] if self.fate.get(p) is not Status.FINISHED and p not in w.knows]
        assert not late, f"step {step} runs before its prerequisites {late}"
        taken = [p for p in self.takes.get(step, ()) if p not in w.values and p not in self.sent_values.get(step, ())]
        assert not taken, f"step {step} runs without the values of {taken}"
        self._check_sees(worker, step)

    def _check_sees(self, worker: int, step: int) -> None:
        """What any step above this one left is known to this worker: it ran there, or was told before this was sent."""
        if not self.left or worker == LOCAL or len(self.needs) > 200:
            return
        above, todo = set(), [step]  # up to those of an earlier session, for which nobody runs again
        while todo:
            needs = self.needs[todo.pop()] - self.restored
            todo.extend(p for p in needs if p not in above and not above.add(p))
        for p in above & self.left.keys() - self.lost_results:
            seen = self.left[p] == worker or self.told.get(p, self.events) < self.sent[step]
            assert seen, f"step {step} does not see what step {p} left"

    def stands(self, worker: int) -> Optional[bool]:
        """Whether the first step of a lane may run; None: it waits for another lane; False: it is to be given back."""
        w = self.workers[worker]
        if not w.lane or not w.knows.issuperset(w.ahead.get(w.lane[0], ())):
            return not w.lane
        answer: Optional[bool] = True
        for p, (peer, apart) in w.across.get(w.lane[0], {}).items():
            other = self.workers.get(peer)
            if other is None or other.apart != apart:
                return False
            if p not in other.plain:
                if p not in other.lane:
                    return False  # it could not travel, so that its message has no number
                answer = None
        return answer

    def finish(self, worker: int, leaves: bool = False) -> None:
        """The running step ends well. The worker keeps that for itself until `report`. `leaves`: there is something
        that others must hear of."""
        w = self.workers[worker]
        assert w.began is not None
        step, w.began = w.began, None
        w.lane.remove(step)
        w.done.append(step)
        w.knows.add(step)
        w.values.add(step)
        if leaves:
            w.apart += 1
            w.apart_at[step] = w.apart
            self.left[step] = worker
        else:
            w.plain.add(step)
            self.left.pop(step, None)  # of an attempt before

    def run_out(self, worker: int) -> None:
        """The worker does what is in its lane, as far as it need not wait for another."""
        w = self.workers[worker]
        while w.lane:
            if w.began is None:
                stands = self.stands(worker)
                if stands is None:
                    return
                if not stands:
                    self.refuse(worker)
                    continue
                self.begin(worker)
            self.finish(worker)

    def report(self, worker: int, count: Optional[int] = None, timed: bool = True) -> None:
        """Tell of the first `count` finished steps; an interactive one has its own event."""
        w = self.workers[worker]
        batch: List[int] = []
        for step in w.done[:count]:
            if step not in w.done:
                continue  # it was told because of one elsewhere
            if step % 2:
                self._report_followed(step)
            if step in self.interactive:
                self._tell_finished(worker, batch, timed)
                self._tell_together()
                w.done.remove(step)
                self.in_flight.remove(step)
                self.fate[step] = Status.INTERACTIVE
                self.stopping = True
                self._tell(ev.StepInteractive(worker, step), closed={step: Status.INTERACTIVE})
                batch = []
            else:
                batch.append(step)
        self._tell_finished(worker, batch, timed)

    def report_together(self, workers: Iterable[int], timed: bool = True) -> None:
        """Tell in one turn what all of these have finished."""
        self._together = {}
        for worker in workers:
            self.report(worker, None, timed)
        self._tell_together()
        self._together = None

    def _tell_together(self) -> None:
        if self._together:
            events = list(self._together.values())
            self._together.clear()
            closed = {s: Status.FINISHED for event in events for s in event.steps}
            self._judge(self.scheduler.handle_finished(events), events, closed)

    def _tell_finished(self, worker: int, steps: List[int], timed: bool) -> None:
        w = self.workers[worker]
        while True:
            steps = [s for s in steps if s in w.done]  # others were told because of one elsewhere
            if not steps:
                return
            if self._together and worker in self._together:
                self._tell_together()
            plain = steps[0] in w.plain
            count = next((i for i, s in enumerate(steps) if (s in w.plain) != plain), len(steps))
            now = steps[:count]
            assert w.done[:count] == now
            del w.done[:count]
            for step in now:
                self.in_flight.remove(step)
                self.fate[step] = Status.FINISHED
                if not plain:
                    w.heard, self.told[step] = w.apart_at[step], self.events
            seconds = tuple(SECONDS[self.function[s]] for s in now) if timed else ()
            if timed:
                self.timed.update(self.function[s] for s in now)
            event = ev.StepsFinished(worker, tuple(now), seconds, plain)
            if self._together is None:
                self._tell(event, closed=dict.fromkeys(now, Status.FINISHED))
            else:
                self._together[worker] = event
            for step in now:
                self._report_followed(step)

    def _report_followed(self, step: int) -> None:
        """Those that `step` followed in other lanes have finished, too, and are told in the same turn: some before it,
        others after it."""
        for p in self.needs[step]:
            for worker, w in list(self.workers.items()):
                if p in w.done:
                    self.report(worker, w.done.index(p) + 1)

    def fail(self, worker: int, final: bool = False) -> None:
        """The running step raises."""
        self.report(worker)
        w = self.workers[worker]
        assert w.began is not None
        step, w.began = w.began, None
        w.lane.remove(step)
        w.apart += 1
        w.heard = w.apart
        self._attempt_failed(ev.StepFailed(worker, step, final), step, final)

    def lose_result(self, worker: int) -> None:
        """A step finished, and what it left cannot be taken over: it failed, and its worker does not know that."""
        step = self.workers[worker].done[0]
        self._report_followed(step)
        if self.workers[worker].done[:1] != [step]:
            return  # it was told in the same turn as one that has followed it elsewhere
        del self.workers[worker].done[0]
        self.lost_results.add(step)
        self._attempt_failed(ev.StepFailed(worker, step), step, False)

    def cannot_travel(self, worker: int, step: int) -> None:
        """The coordinator finds that a step it has just assigned cannot be sent."""
        self.workers[worker].lane.remove(step)
        self._attempt_failed(ev.StepFailed(worker, step, True), step, True)

    def die(self, worker: int, final: bool = False) -> None:
        """The process is gone; what it had finished and whether it was in a step is known exactly."""
        self.report(worker)
        w = self.workers.pop(worker)
        event = ev.WorkerLost(worker, w.began, final)
        self.in_flight -= set(w.lane)
        if w.began is None:
            self._tell(event, skipped=self._hopeless(w.lane))
        else:
            self._attempt_failed(event, w.began, final, [s for s in w.lane if s != w.began])

    def give_back(self, worker: int, one_by_one: bool = False) -> None:
        """The worker returns what it has not begun, in lane order."""
        self.report(worker)
        w = self.workers[worker]
        back = tuple(s for s in w.lane if s != w.began)
        for steps in [(s,) for s in back] if one_by_one else [back] if back else []:
            self._returned(worker, steps)

    def refuse(self, worker: int) -> None:
        """The worker comes to a step whose prerequisites have not finished there: it gives it back."""
        self.report(worker)
        assert not self.stands(worker)
        self._returned(worker, (self.workers[worker].lane[0],))

    def _returned(self, worker: int, steps: Tuple[int, ...]) -> None:
        w = self.workers[worker]
        for step in steps:
            w.lane.remove(step)
            w.across.pop(step, None)
        self.in_flight -= set(steps)
        self._tell(ev.StepsReturned(worker, steps), skipped=self._hopeless(steps))

    def stall(self, worker: int) -> None:
        """The step that the worker has begun takes very long. What is behind it comes back at once, and nothing more is
        put there until it has ended."""
        w = self.workers[worker]
        assert w.began is not None
        w.stalled_by = w.began
        self._tell(ev.LaneStalled(worker, w.began))
        assert w.revoked or self.stopping or len(w.lane) == 1, f"nothing is taken back from behind {w.began}"
        if not self.stopping:
            w.revoked = False  # here comes the answer
            self.give_back(worker)

    def rest(self, step: int) -> None:
        """It is time for the next attempt."""
        self.resting.remove(step)
        self._tell(ev.StepRested(step))

    def learn_memory(self, needs: Dict[int, int], others: int) -> None:
        """Somebody has measured what steps need."""
        self.memory_told.update(needs)
        self.others = min(others, TOTALS["memory"])
        self.share = max(0, TOTALS["memory"] - self.others) / TOTALS["cpus"]
        self._tell(ev.MemoryLearned(needs, others))

    def stop(self) -> None:
        self.stopping = True
        self._tell(ev.StopRequested())

    # ------------------------------------------------------------------- the books

    def _attempt_failed(self, event: Any, step: int, final: bool, left: Iterable[int] = ()) -> None:
        """`left`: other steps that came back with the event."""
        self.in_flight.discard(step)
        failed = self.attempts_failed[step] = self.attempts_failed.get(step, 0) + 1
        if failed <= self.demand[step].retries and not final and not self.stopping:
            self.resting.add(step)
            self._tell(event, retried=[ev.Retry(step, failed)], skipped=self._hopeless(left))
            return
        self.fate[step] = Status.FAILED
        self.stopping = self.stopping or not self.keep_going
        skipped = self._hopeless([*left, *self.dependants.get(step, ())])
        self._tell(event, closed={step: Status.FAILED}, skipped=skipped)

    def _hopeless(self, steps: Iterable[int]) -> Set[int]:
        """Those of `steps`, and downstream of them, whose prerequisites have failed and whose fate was open.

        Not those that were sent ahead: they come back first.
        """
        found: Set[int] = set()
        todo = list(steps)
        while todo:
            s = todo.pop()
            doomed = any(self.fate.get(p) in (Status.FAILED, Status.SKIPPED) for p in self.needs[s])
            if s not in self.fate and s not in self.in_flight and doomed:
                self.fate[s] = Status.SKIPPED
                found.add(s)
                todo.extend(self.dependants.get(s, ()))
        return found

    def _tell(
        self, event: Any, closed: Optional[Dict[int, Status]] = None, skipped: Iterable[int] = (),
        retried: Iterable[ev.Retry] = (),
    ) -> None:  # fmt: skip
        """Hand the scheduler an event."""
        was_stopping = self.scheduler.stopping
        self._judge(self.scheduler.handle(event), event, closed, skipped, retried, was_stopping)

    def _judge(
        self, commands: List[ev.Command], event: Any, closed: Optional[Dict[int, Status]] = None,
        skipped: Iterable[int] = (), retried: Iterable[ev.Retry] = (), was_stopping: bool = False,
    ) -> None:  # fmt: skip
        """Hold the commands that answer an event (or several) against what must come of it."""
        self.events += 1
        self._trace.update(repr((event, commands)).encode())
        expected = dict(closed or {})
        expected.update(dict.fromkeys(skipped, Status.SKIPPED))
        seen: List[int] = []
        self.to_be_sent = {(c.worker, s) for c in commands if type(c) is ev.Dispatch for s in c.steps}
        for command in commands:
            if type(command) is ev.Closed:
                seen.extend(command.steps)
                for s in command.steps:
                    assert expected.get(s) is command.status, f"{command} after {event}"
                if command.status is Status.SKIPPED:
                    assert self.fate[command.because] is Status.FAILED, f"{command} blames what has not failed"
            elif type(command) is ev.Dispatch:
                self._dispatched(command)
            elif type(command) is ev.Running:
                first = [*self.workers[command.worker].done, *self.workers[command.worker].lane][:1]
                assert command.worker == LOCAL or first == [command.step], f"{command}, but first is {first}"
                assert self.scheduler.status(command.step) is Status.RUNNING
            elif type(command) is ev.Revoke:
                assert not was_stopping, "a lane is revoked twice"
                self.workers[command.worker].revoked = True
        assert sorted(seen) == sorted(expected), f"{event} seals the fate of {seen}, not {sorted(expected)}"
        assert [c for c in commands if type(c) is ev.Retry] == list(retried)
        assert self.scheduler.stopping == self.stopping, f"stopping is {self.scheduler.stopping} after {event}"
        if self.events % self._check_every == 0:
            self._check_fairness(commands)
            self.check()

    def _dispatched(self, command: ev.Dispatch) -> None:
        worker, steps, ahead, across = command
        assert not self.stopping, f"{command} while the run stops"
        assert worker in self.workers, f"{command} to a worker that is dead"
        w = self.workers[worker]
        before = {*w.done, *w.lane}
        for i, step in enumerate(steps):
            assert step not in self.in_flight, f"step {step} is handed out twice"
            assert step not in self.fate, f"step {step} is handed out though it is {self.fate[step].name}"
            assert step not in self.held, f"step {step} is handed out though it is held"
            assert step not in self.resting, f"step {step} is handed out though it rests"
            late = {p for p in self.needs[step] if self.fate.get(p) is not Status.FINISHED}
            named = set(ahead[i]) if ahead else set()
            assert late == named, f"step {step} is handed out before its prerequisites {late}, naming {named}"
            elsewhere = across.get(step, {})
            here = named - set(elsewhere)
            assert here <= before, f"step {step} does not follow its prerequisites {here} in the lane of {worker}"
            for p, peer in elsewhere.items():
                there = self.workers[peer]
                in_lane = p in there.lane or p in there.done or (peer, p) in self.to_be_sent
                assert in_lane, f"step {step} follows step {p}, which is not with {peer}"
            before.add(step)
            w.ahead[step] = here
            w.across[step] = {p: (peer, self.workers[peer].heard) for p, peer in elsewhere.items()}
            self.sent[step] = self.events
            self.sent_values[step] = self.needs[step] - late
            self.in_flight.add(step)
        if worker != LOCAL:
            together = [*w.done, *w.lane, *steps]
            assert w.stalled_by not in together[: -len(steps)], f"{command} behind a step that takes very long"
            alone = len(together) == 1
            assert alone or all(self.demand[s] == PLAIN for s in together), f"steps {together} share a lane"
        assert all(self.demand[s].local == (worker == LOCAL) for s in steps), f"{command} in the wrong place"
        if len(together) == len(steps) if worker != LOCAL else False:
            self._check_memory(steps[0])
        w.lane.extend(steps)
        self._check_slots()

    def _memory(self, step: int) -> int:
        """Bytes that count for a step, by these books."""
        demand, function = self.demand[step], self.function[step]
        if demand.memory or demand.local or (demand != PLAIN and demand.learned is None):
            need = demand.memory
        elif function in self.memory_told:
            told = self.memory_told[function]
            need = told if told > self.share else 0
        else:
            need = 0 if function in self.timed else self.assumed
        return min(need, TOTALS["memory"])

    def _memory_held(self) -> int:
        heads = [s for n, w in self.workers.items() for s in [*w.done, *w.lane][: None if n == LOCAL else 1]]
        return sum(map(self._memory, heads))

    def _check_memory(self, step: int) -> None:
        """A step that is about to begin finds what it is known to need; or nobody else has any."""
        need, held = self._memory(step), self._memory_held()
        assert not need or not held or need + held + self.others <= TOTALS["memory"], f"{step}: {need}, {held} are held"

    def count_waiting(self) -> None:
        """How often a step had to wait for memory that nobody has declared while a worker was free."""
        idle = [n for n, w in self.workers.items() if n != LOCAL and not w.lane and not w.done]
        ready = (s for s in self.needs if self.scheduler.status(s) is Status.READY and not self.demand[s].memory)
        self.waited_for_memory += bool(idle and not self.stopping and any(map(self._memory, ready)))

    def _check_slots(self) -> None:
        """What runs does not hold more than there is (a step that asks for more than there is gets all of it)."""
        held = dict.fromkeys(TOTALS, 0)
        cards: List[int] = []
        for w in self.workers.values():
            steps = [*w.done, *w.lane]
            for s in steps if w is self.workers[LOCAL] else steps[:1]:
                demand = self.demand[s]
                wanted = {"cpus": 0 if demand.local else demand.cpus, "memory": demand.memory, **dict(demand.tokens)}
                for kind, n in wanted.items():
                    held[kind] += min(n, TOTALS[kind])
                cards.extend(self.scheduler.slots.gpus_of(s))
                assert len(self.scheduler.slots.gpus_of(s)) == min(demand.gpus, len(GPUS))
        assert all(held[kind] <= TOTALS[kind] for kind in TOTALS), f"{held} of {TOTALS} are held"
        assert len(cards) == len(set(cards)), f"a graphics card is held twice: {cards}"

    def _check_fairness(self, commands: List[ev.Command]) -> None:
        """While a step waits for CPUs, memory or an idle worker, plain ones leave room for it."""
        plain = [c for c in commands if type(c) is ev.Dispatch and self.demand[c.steps[0]] == PLAIN]
        plain = [c for c in plain if self.scheduler.demand(c.steps[0]).learned is None]  # they stood in the same queue
        waits = (s for s in self.needs if self.scheduler.status(s) is Status.READY and not self.demand[s].memory)
        if self.assumed and any(map(self._memory, waits)):
            return  # plain ones may pass a step that waits for memory, and so do not leave room for who is behind it
        if plain and self.proud:
            starving = [s for s in self.proud if s not in self.fate and self.scheduler.status(s) is Status.READY]
            assert not starving, f"{plain} overtakes steps {starving}"

    def check(self) -> None:
        """The scheduler agrees with itself, and about the lanes with the world."""
        self.scheduler.check_invariants()
        if self.assumed:
            self.count_waiting()
        for worker, w in self.workers.items():
            told = self.scheduler.lane(worker)
            mine = [*w.done, *w.lane]
            assert list(told) == mine if worker != LOCAL else set(told) == set(mine), f"{worker}: {told} != {mine}"

    def trace(self) -> str:
        """A digest of all events and commands so far."""
        return self._trace.hexdigest()

    def check_end(self) -> None:
        """Nothing runs and nothing will: every fate is as it must be."""
        self.check()
        assert not self.scheduler.active
        for step in self.needs:
            status = self.scheduler.status(step)
            fate = self.fate.get(step)
            assert status is fate if fate else status not in FINAL, f"step {step} is {status.name}, not {fate}"
            assert self.scheduler.in_flight() == 0
            if not self.stopping:
                assert fate is not None, f"step {step} is {status.name} for ever: {self.scheduler.story(step)}"
            entered, failed = self.entered.get(step, 0), self.attempts_failed.get(step, 0)
            if fate is Status.SKIPPED:
                assert self.fate[self.scheduler.blame(step)] is Status.FAILED
                assert entered <= failed  # it may have been waiting for another attempt
            elif fate is Status.FAILED:
                assert failed - 1 <= entered <= failed  # the last attempt may have been one that could not travel
            elif fate is not None and step not in self.restored:
                assert entered == failed + 1, f"step {step} has {fate.name} and was entered {entered} times"
                bad = [p for p in self.needs[step] - self.lost_results if self.fate.get(p) is not Status.FINISHED]
                assert not bad, f"step {step} ran though its prerequisites {bad} have not finished"
