"""The scheduler against the books of a simulated world, driven by hypothesis: what it finds, it makes short.

The simulator (test_scheduler_random) runs more and larger worlds; here a failing story is shrunk to its few events.
"""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from mutants import MUTANTS, core_with
from portrait import portrait
from simulated_world import World

from mpsteps._core.graph import find_cycle
from mpsteps._core.steps import LOCAL, PLAIN, Demand, Status
from mpsteps.errors import PrerequisiteError

WAITING = (Status.HELD, Status.BLOCKED, Status.READY)
DEMANDS = st.one_of(
    st.just(PLAIN),
    st.builds(
        Demand, cpus=st.integers(1, 4), gpus=st.integers(0, 2), memory=st.sampled_from([0, 60, 500]),
        tokens=st.sampled_from([(), (("licence", 1),)]), local=st.booleans(), retries=st.integers(0, 2),
        learned=st.none(),  # the world says it, where memory is learned
    ),
)  # fmt: skip


class SchedulerMachine(RuleBasedStateMachine):
    """Each rule is one thing that can happen in a world; the world itself holds every command against its books."""

    core: dict[str, Any] = {}

    @initialize(
        keep_going=st.booleans(), ahead=st.sampled_from(["", "in a lane", "across lanes"]),
        assumed=st.sampled_from([0, 0, 40]),
    )  # fmt: skip
    def begin_world(self, keep_going: bool, ahead: str, assumed: int) -> None:
        self.world = World(keep_going, bool(ahead), across=ahead == "across lanes", assumed=assumed, **self.core)

    def _steps(self, *statuses: Status) -> list[int]:
        return [step for step in self.world.needs if self.world.scheduler.status(step) in statuses]

    def _workers(self, what: str) -> list[int]:
        """Workers that could begin ('idle') or cannot ('stuck'), are in a step ('busy'), or have something to tell
        ('done')."""
        found = []
        for worker, w in self.world.workers.items():
            states = {
                "idle": w.began is None and bool(w.lane) and self.world.stands(worker) is True,
                "stuck": w.began is None and bool(w.lane) and not self.world.stands(worker),
                "busy": w.began is not None,
                "done": bool(w.done),
            }
            if states[what]:
                found.append(worker)
        return found

    # ------------------------------------------------------------------- the graph

    @rule(data=st.data(), demand=DEMANDS, held=st.booleans(), function=st.integers(0, 3))
    def add_step(self, data: Any, demand: Demand, held: bool, function: int) -> None:
        known = len(self.world.needs)
        needs = data.draw(st.lists(st.integers(1, known), max_size=4)) if known else []
        takes = needs[: data.draw(st.integers(0, len(needs)))] if needs and known % 3 == 0 else ()
        interactive = function == 3 and len(needs) == 4
        self.world.add_step(needs, demand, held, function, interactive, takes)

    @precondition(lambda self: len(self.world.needs) > 1)
    @rule(data=st.data())
    def add_prerequisites(self, data: Any) -> None:
        """Any step to any step, also those with larger ids: what would close a circle or comes too late is refused."""
        world = self.world
        step = data.draw(st.sampled_from(sorted(world.needs)))
        added = data.draw(st.lists(st.sampled_from(sorted(world.needs)), min_size=1, max_size=3))
        status = world.scheduler.status(step)
        # Steps whose fate is sealed do not wait any more: there is no circle through them.
        waits = {s: [*needs, *(added if s == step else [])] for s, needs in world.needs.items() if s not in world.fate}
        circle = find_cycle({s: [p for p in needs if p not in world.fate] for s, needs in waits.items()})
        if step not in added and (status is Status.SKIPPED or (status in WAITING and not circle)):
            world.add_prerequisites(step, added)
        else:
            before = portrait(world.scheduler)
            with pytest.raises(PrerequisiteError):
                world.add_prerequisites(step, added)
            assert portrait(world.scheduler) == before

    @precondition(lambda self: self._steps(*WAITING, Status.SKIPPED))
    @rule(data=st.data())
    def hold_or_release(self, data: Any) -> None:
        step = data.draw(st.sampled_from(self._steps(*WAITING, Status.SKIPPED)))
        (self.world.release if step in self.world.held else self.world.hold)(step)

    @precondition(lambda self: self._steps(*WAITING))
    @rule(data=st.data())
    def restore(self, data: Any) -> None:
        self.world.restore(data.draw(st.sampled_from(self._steps(*WAITING))))

    # --------------------------------------------------------------------- workers

    @precondition(lambda self: len(self.world.workers) < 5)
    @rule()
    def add_worker(self) -> None:
        self.world.add_worker()

    @precondition(lambda self: self._workers("idle"))
    @rule(data=st.data())
    def begin(self, data: Any) -> None:
        self.world.begin(data.draw(st.sampled_from(self._workers("idle"))))

    @precondition(lambda self: self._workers("busy"))
    @rule(data=st.data(), leaves=st.booleans())
    def finish(self, data: Any, leaves: bool) -> None:
        self.world.finish(data.draw(st.sampled_from(self._workers("busy"))), leaves)

    @precondition(lambda self: self._workers("done"))
    @rule(data=st.data(), count=st.sampled_from([None, 1]), timed=st.booleans())
    def report(self, data: Any, count: Any, timed: bool) -> None:
        self.world.report(data.draw(st.sampled_from(self._workers("done"))), count, timed)

    @precondition(lambda self: self._workers("busy"))
    @rule(data=st.data(), final=st.booleans())
    def fail(self, data: Any, final: bool) -> None:
        self.world.fail(data.draw(st.sampled_from(self._workers("busy"))), final)

    @precondition(lambda self: len(self.world.workers) > 1)
    @rule(data=st.data(), final=st.booleans())
    def die(self, data: Any, final: bool) -> None:
        self.world.die(data.draw(st.sampled_from(sorted(self.world.workers)[1:])), final)

    @precondition(lambda self: set(self._workers("idle")) - {LOCAL})
    @rule(data=st.data(), one_by_one=st.booleans())
    def give_back(self, data: Any, one_by_one: bool) -> None:
        self.world.give_back(data.draw(st.sampled_from(sorted(set(self._workers("idle")) - {LOCAL}))), one_by_one)

    @precondition(lambda self: self._workers("stuck"))
    @rule(data=st.data())
    def refuse(self, data: Any) -> None:
        self.world.refuse(data.draw(st.sampled_from(self._workers("stuck"))))

    @precondition(lambda self: self._workers("done"))
    @rule(data=st.data())
    def lose_result(self, data: Any) -> None:
        self.world.lose_result(data.draw(st.sampled_from(self._workers("done"))))

    @precondition(lambda self: self.world.resting)
    @rule(data=st.data())
    def rest(self, data: Any) -> None:
        self.world.rest(data.draw(st.sampled_from(sorted(self.world.resting))))

    @precondition(lambda self: self.world.assumed > 0)
    @rule(function=st.integers(0, 3), need=st.sampled_from([0, 5, 40, 500]), others=st.sampled_from([0, 0, 50, 500]))
    def learn_memory(self, function: int, need: int, others: int) -> None:
        self.world.learn_memory({function: need}, others)

    @precondition(lambda self: len(self.world.needs) > 6)
    @rule()
    def stop(self) -> None:
        self.world.stop()

    def teardown(self) -> None:
        """Faults stop: everything comes to its end."""
        if not hasattr(self, "world"):
            return
        world = self.world
        for step in sorted(world.held):
            if world.fate.get(step) in (None, Status.SKIPPED):
                world.release(step)
        if len(world.workers) == 1:
            world.add_worker()
        bound = world.events + 4 * len(world.needs) + 10
        while world.scheduler.active:
            assert world.events <= bound, "the run does not come to its end"
            before = world.events
            for step in sorted(world.resting):
                world.rest(step)
            for worker in list(world.workers):
                world.run_out(worker)
                world.report(worker)
            assert world.events > before, "nobody has anything to do, and the run has not ended"
        world.check_end()


def test_no_sequence_of_events_breaks_a_promise() -> None:
    """Hypothesis looks for one, and would show the shortest."""
    run_state_machine_as_test(SchedulerMachine, settings=_settings(150))


@pytest.mark.parametrize("name", ["releases a dependant when its prerequisite failed", "loses returned steps"])
def test_a_bug_is_found(name: str) -> None:
    """The machine can fail (shrinking, which takes its time, is left out here)."""
    scheduler, slots = core_with(MUTANTS[name])
    machine = type("BuggyMachine", (SchedulerMachine,), {"core": {"scheduler": scheduler, "slots": slots}})

    with pytest.raises(AssertionError):
        run_state_machine_as_test(
            machine, settings=settings(_settings(400), phases=[Phase.generate], report_multiple_bugs=False)
        )


def _settings(examples: int) -> settings:
    return settings(
        max_examples=examples, stateful_step_count=40, deadline=None, database=None, derandomize=True,
        suppress_health_check=list(HealthCheck), print_blob=False,
    )  # fmt: skip
