"""The scheduler told as events: each test is a list of events and the exact commands that answer the last one."""

from __future__ import annotations

from typing import Any

import pytest
from portrait import portrait

from mpsteps._core.events import (
    Closed,
    Dispatch,
    PrerequisitesAdded,
    Retry,
    Revoke,
    Running,
    StepAdded,
    StepFailed,
    StepHeld,
    StepInteractive,
    StepReleased,
    StepRested,
    StepRestored,
    StepsAdded,
    StepsFinished,
    StepsReturned,
    StopRequested,
    WorkerLost,
    WorkerReady,
)
from mpsteps._core.graph import Graph
from mpsteps._core.lane import LANE_DEPTH, LANE_SECONDS
from mpsteps._core.scheduler import Scheduler
from mpsteps._core.slots import SlotPool
from mpsteps._core.steps import LOCAL, Demand, Status
from mpsteps.errors import InternalError, PrerequisiteError, UsageError

SHORT, LONG = 5e-6, 1.0


def make(*events: Any, keep_going: bool = False, cpus: int = 2, **slots: Any) -> Scheduler:
    """A scheduler to which `events` have happened."""
    scheduler = Scheduler(SlotPool(cpus, **slots), keep_going)
    tell(scheduler, *events)
    return scheduler


def tell(scheduler: Scheduler, *events: Any) -> list[Any]:
    """Make events happen; the commands that answer the last."""
    commands: list[Any] = []
    for event in events:
        commands = scheduler.handle(event)
        scheduler.check_invariants()
    return commands


def added(count: int, **more: Any) -> list[StepAdded]:
    """Steps 1 to `count`, independent of each other."""
    return [StepAdded(step, **more) for step in range(1, count + 1)]


def learnt(*more: Any, **kwargs: Any) -> Scheduler:
    """Two idle workers, steps 1 and 2 done, and that steps of function 'f' are short is known."""
    events = [WorkerReady(1), WorkerReady(2), *added(2, function="f")]
    done = [StepsFinished(worker, (worker,), (SHORT,)) for worker in (1, 2)]
    return make(*events, *done, *more, **kwargs)


def filled(*more: Any, **kwargs: Any) -> Scheduler:
    """One worker with the short steps 2 to 5 in its lane."""
    return make(*added(5, function="f"), WorkerReady(1), StepsFinished(1, (1,), (SHORT,)), *more, **kwargs)


# ------------------------------------------------------------------------------------------------ the normal path
def test_a_run_of_steps_is_what_the_same_steps_one_by_one_are() -> None:
    """Told together they cost less, and mean the same: who is ready, who waits, who can never run."""
    needs: list[tuple[int, ...]] = [(), (2,), (1,), (3, 4, 4), (2, 1)]  # steps 4 to 8; 1 has failed, 3 has finished

    def begun() -> Scheduler:
        scheduler = make(WorkerReady(1), *added(3, function="f"), keep_going=True)
        tell(scheduler, StepFailed(1, 1), StepsFinished(1, (2,), (1.0,)), StepsFinished(1, (3,), (1.0,)))
        return scheduler

    together, one_by_one = begun(), begun()
    told = tell(together, StepsAdded(4, needs, "f"))
    for step, n in enumerate(needs, 4):
        told_single = tell(one_by_one, StepAdded(step, n, function="f"))

    assert [together.status(s) for s in range(1, 9)] == [one_by_one.status(s) for s in range(1, 9)]
    assert together.counts == one_by_one.counts
    assert together.blame(6) == one_by_one.blame(6) == 1
    assert Closed((6,), Status.SKIPPED, 1) in told
    assert Dispatch(1, (4,)) in told
    assert told_single == [Closed((8,), Status.SKIPPED, 1)]


@pytest.mark.parametrize(
    ("event", "error"),
    [
        (StepsAdded(2, [()]), InternalError),
        (StepsAdded(4, []), InternalError),
        (StepsAdded(5, [()]), InternalError),
        (StepsAdded(4, [(), (5,)]), PrerequisiteError),
        (StepsAdded(4, [(), (6,), ()]), PrerequisiteError),
        (StepsAdded(4, [(0,)]), PrerequisiteError),
        (StepsAdded(4, [(9,)]), PrerequisiteError),
    ],
)
def test_a_run_of_steps_that_cannot_be_is_refused_and_changes_nothing(event: StepsAdded, error: type) -> None:
    """Ids that are used or leave a gap, and prerequisites that do not exist or come later."""
    scheduler = make(WorkerReady(1), *added(3))
    before = portrait(scheduler)

    with pytest.raises(error):
        scheduler.handle(event)

    assert portrait(scheduler) == before


def test_a_step_without_prerequisites_goes_to_an_idle_worker_at_once() -> None:
    """It is dispatched and, at the head of its lane, running."""
    scheduler = make(WorkerReady(1))

    assert tell(scheduler, StepAdded(1)) == [Dispatch(1, (1,)), Running(1, 1)]
    assert scheduler.status(1) is Status.RUNNING


def test_a_step_waits_until_there_is_a_worker() -> None:
    """It is ready; the worker that comes gets it."""
    scheduler = make(StepAdded(1))

    assert scheduler.status(1) is Status.READY
    assert tell(scheduler, WorkerReady(1)) == [Dispatch(1, (1,)), Running(1, 1)]


def test_a_step_waits_for_its_prerequisites_and_then_goes() -> None:
    """Order: nothing is dispatched before all prerequisites have finished."""
    scheduler = make(WorkerReady(1), WorkerReady(2), StepAdded(1), StepAdded(2), StepAdded(3, (1, 2)))

    assert tell(scheduler, StepsFinished(1, (1,))) == [Closed((1,), Status.FINISHED)]
    assert scheduler.status(3) is Status.BLOCKED
    assert tell(scheduler, StepsFinished(2, (2,))) == [
        Closed((2,), Status.FINISHED), Dispatch(1, (3,)), Running(1, 3),
    ]  # fmt: skip


def test_a_prerequisite_that_has_finished_already_is_not_waited_for() -> None:
    """A step added during the run can name what is long done."""
    scheduler = make(WorkerReady(1), StepAdded(1), StepsFinished(1, (1,)))

    assert tell(scheduler, StepAdded(2, (1,))) == [Dispatch(1, (2,)), Running(1, 2)]


def test_a_prerequisite_named_twice_counts_as_one() -> None:
    """(1, 1) is (1,)."""
    scheduler = make(WorkerReady(1), StepAdded(1), StepAdded(2, (1, 1)))

    assert tell(scheduler, StepsFinished(1, (1,)))[1:] == [Dispatch(1, (2,)), Running(1, 2)]


def test_nothing_is_left_to_do_when_all_steps_have_finished() -> None:
    """`active` turns false with the last step, and the counts say so."""
    scheduler = make(WorkerReady(1), StepAdded(1))
    assert scheduler.active

    tell(scheduler, StepsFinished(1, (1,)))

    assert not scheduler.active
    assert scheduler.counts[Status.FINISHED] == 1
    assert scheduler.in_flight() == 0


# ------------------------------------------------------------------------------------------------------ the lanes
def test_nothing_queues_behind_a_step_of_unknown_duration() -> None:
    """One step each until it is known how long they take."""
    scheduler = make(*added(4, function="f"), WorkerReady(1))

    assert tell(scheduler, WorkerReady(2)) == [Dispatch(2, (2,)), Running(2, 2)]
    assert scheduler.lanes() == [(LOCAL, ()), (1, (1,)), (2, (2,))]


def test_short_steps_are_sent_by_the_dozen() -> None:
    """Once a function is known to be short, each lane gets its even share in one message."""
    scheduler = learnt(StopRequested())
    scheduler.stopping = False  # so that all ten are there before the first is handed out
    for step in range(3, 13):
        scheduler._step_added(StepAdded(step, function="f"), [])

    commands = tell(scheduler, StepAdded(13, function="f"))

    assert commands == [
        Dispatch(1, (3, 4, 5, 6, 7, 8)), Running(1, 3), Dispatch(2, (9, 10, 11, 12, 13)), Running(2, 9),
    ]  # fmt: skip


def test_long_steps_are_sent_one_at_a_time() -> None:
    """So that balance, priority and cancellation stay exact."""
    done = [StepsFinished(worker, (worker,), (LONG,)) for worker in (1, 2)]
    scheduler = make(*added(6, function="f"), WorkerReady(1), WorkerReady(2), *done)

    assert [len(steps) for worker, steps in scheduler.lanes() if worker != LOCAL] == [1, 1]


def test_a_lane_is_never_given_more_than_its_seconds_of_work() -> None:
    """The expected work of what is sent ahead stays under LANE_SECONDS."""
    eighth = LANE_SECONDS / 8
    scheduler = make(*added(100, function="f"), WorkerReady(1), StepsFinished(1, (1,), (eighth,)))

    assert len(scheduler.lane(1)) == 8


def test_a_lane_is_never_given_more_than_its_depth() -> None:
    """However short the steps are."""
    scheduler = make(*added(3 * LANE_DEPTH, function="f"), WorkerReady(1), StepsFinished(1, (1,), (1e-9,)))

    assert len(scheduler.lane(1)) == LANE_DEPTH


def test_a_lane_is_filled_again_when_it_is_half_empty_and_not_before() -> None:
    """Many small messages would cost more than few large ones."""
    scheduler = make(*added(3 * LANE_DEPTH, function="f"), WorkerReady(1), StepsFinished(1, (1,), (1e-9,)))
    first = scheduler.lane(1)
    half = LANE_DEPTH // 2

    early = tell(scheduler, StepsFinished(1, first[: half - 1]))
    late = tell(scheduler, StepsFinished(1, first[half - 1 : half]))

    assert [type(command) for command in early] == [Running, Closed]
    assert [type(command) for command in late] == [Running, Closed, Dispatch]
    assert len(scheduler.lane(1)) == LANE_DEPTH


def test_the_next_of_a_lane_runs_as_soon_as_the_one_before_it_is_answered() -> None:
    """`Running` tells which step a death would hit."""
    scheduler = filled()
    assert scheduler.lane(1) == (2, 3, 4, 5)

    assert tell(scheduler, StepsFinished(1, (2, 3))) == [Running(1, 4), Closed((2, 3), Status.FINISHED)]


def test_ready_steps_go_out_in_the_order_in_which_they_became_ready() -> None:
    """First come, first served."""
    scheduler = make(*added(3), WorkerReady(1), StepsFinished(1, (1,)))

    assert scheduler.lane(1) == (2,)


def test_a_duration_is_learnt_as_a_running_mean() -> None:
    """The newest one counts a quarter."""
    scheduler = make(*added(2, function="f"), WorkerReady(1), StepsFinished(1, (1,), (1.0,)))
    assert scheduler.mean_seconds("f") == 1.0

    tell(scheduler, StepsFinished(1, (2,), (2.0,)))

    assert scheduler.mean_seconds("f") == 1.25
    assert scheduler.mean_seconds("g") is None


# ------------------------------------------------------------------------------------------------------- failures
def test_a_failure_stops_the_run_and_lanes_are_asked_to_give_back() -> None:
    """Also the first step of another lane may not have begun: its worker is asked too."""
    scheduler = make(WorkerReady(1), WorkerReady(2), *added(3), StepAdded(4, (1,)))

    assert tell(scheduler, StepFailed(1, 1)) == [
        Closed((1,), Status.FAILED), Closed((4,), Status.SKIPPED, 1), Revoke(2),
    ]  # fmt: skip
    assert scheduler.stopping
    assert scheduler.status(3) is Status.READY
    assert scheduler.active
    tell(scheduler, StepsReturned(2, (2,)))
    assert not scheduler.active


def test_with_keep_going_everything_that_does_not_depend_on_a_failure_runs() -> None:
    """One bad micrograph does not cost a night."""
    scheduler = make(
        WorkerReady(1), *added(2), StepAdded(3, (1,)), StepAdded(4, (3,)), StepAdded(5, (2,)), keep_going=True
    )

    assert tell(scheduler, StepFailed(1, 1)) == [
        Closed((1,), Status.FAILED), Closed((3, 4), Status.SKIPPED, 1), Dispatch(1, (2,)), Running(1, 2),
    ]  # fmt: skip
    assert scheduler.blame(4) == 1
    assert tell(scheduler, StepsFinished(1, (2,)))[1:] == [Dispatch(1, (5,)), Running(1, 5)]


def test_a_step_added_behind_a_failed_or_skipped_one_is_skipped_and_blames_the_failed_one() -> None:
    """Streaming protocols insert steps for what has failed long ago."""
    scheduler = make(WorkerReady(1), StepAdded(1), StepAdded(2, (1,)), StepFailed(1, 1), keep_going=True)

    assert tell(scheduler, StepAdded(3, (2,))) == [Closed((3,), Status.SKIPPED, 1)]
    assert tell(scheduler, StepAdded(4, (1,), held=True)) == [Closed((4,), Status.SKIPPED, 1)]


def test_a_step_that_is_tried_again_rests_first_and_then_goes_before_others_of_its_kind() -> None:
    """Others run meanwhile; when its time has come it has waited long enough, and goes to the front."""
    scheduler = make(WorkerReady(1), StepAdded(1, demand=Demand(retries=1)), StepAdded(2))

    assert tell(scheduler, StepFailed(1, 1)) == [Retry(1, 1), Dispatch(1, (2,)), Running(1, 2)]
    tell(scheduler, StepAdded(3, demand=Demand(retries=1)))
    assert tell(scheduler, StepRested(1)) == []
    assert tell(scheduler, StepsFinished(1, (2,))) == [
        Closed((2,), Status.FINISHED), Dispatch(1, (1,)), Running(1, 1),
    ]  # fmt: skip
    assert scheduler.attempt(1) == 2
    assert tell(scheduler, StepFailed(1, 1)) == [Closed((1,), Status.FAILED)]


def test_a_step_that_rests_keeps_the_run_alive_unless_that_stops() -> None:
    """It will run without anybody's doing; after a stop it will not."""
    scheduler = make(WorkerReady(1), StepAdded(1, demand=Demand(retries=1)), StepFailed(1, 1))

    assert scheduler.status(1) is Status.RESTING
    assert scheduler.active
    tell(scheduler, StopRequested())
    assert not scheduler.active
    assert tell(scheduler, StepRested(1)) == [], "nothing starts any more"


def test_a_step_that_rests_holds_nothing_and_cannot_be_changed() -> None:
    """Its slots are free; it has begun once, so that what it waits for is settled."""
    demand = Demand(retries=1, memory=10)
    scheduler = make(WorkerReady(1), StepAdded(1, demand=demand), StepAdded(2), StepFailed(1, 1), memory=10)

    assert scheduler.slots.free["memory"] == 10
    with pytest.raises(UsageError, match="being tried already"):
        scheduler.handle(StepHeld(1))
    with pytest.raises(PrerequisiteError, match="step 1 is resting already"):
        scheduler.handle(PrerequisitesAdded(1, (2,)))


@pytest.mark.parametrize("step", [1, 2, 3])
def test_only_a_step_that_rests_can_have_rested(step: int) -> None:
    """One that runs, one that waits, one that is not there: a bug of ours."""
    scheduler = make(WorkerReady(1), StepAdded(1), StepAdded(2, (1,)))

    with pytest.raises(InternalError):
        scheduler.handle(StepRested(step))


def test_a_final_failure_is_not_retried() -> None:
    """What the user stopped, or what can never travel, is not tried again."""
    scheduler = make(WorkerReady(1), StepAdded(1, demand=Demand(retries=3)))

    assert tell(scheduler, StepFailed(1, 1, final=True)) == [Closed((1,), Status.FAILED)]


def test_nothing_is_retried_while_the_run_stops() -> None:
    """A stop means that nothing starts, a second attempt neither."""
    scheduler = make(WorkerReady(1), StepAdded(1, demand=Demand(retries=3)), StopRequested())

    assert tell(scheduler, StepFailed(1, 1)) == [Closed((1,), Status.FAILED)]


def test_a_step_behind_another_can_fail_before_it_is_sent() -> None:
    """The coordinator finds that its arguments cannot travel: the one ahead of it runs on."""
    scheduler = filled(keep_going=True)

    assert tell(scheduler, StepFailed(1, 4, final=True)) == [Closed((4,), Status.FAILED)]
    assert scheduler.lane(1) == (2, 3, 5)


# --------------------------------------------------------------------------------------------------- worker deaths
def test_a_death_has_one_victim_and_the_others_of_its_lane_go_back() -> None:
    """The step that it had begun failed; what was behind is handed out again, in its order and before others."""
    scheduler = filled(StepAdded(6, function="f"), keep_going=True)

    assert tell(scheduler, WorkerLost(1, began=2)) == [Closed((2,), Status.FAILED)]
    assert not scheduler.knows(1)
    assert tell(scheduler, WorkerReady(2)) == [Dispatch(2, (3, 4, 5, 6)), Running(2, 3)]


def test_a_worker_that_dies_between_steps_costs_no_attempt() -> None:
    """Nothing had begun: all of its lane runs elsewhere."""
    scheduler = make(WorkerReady(1), StepAdded(1))

    assert tell(scheduler, WorkerLost(1)) == []
    assert tell(scheduler, WorkerReady(2)) == [Dispatch(2, (1,)), Running(2, 1)]
    assert scheduler.attempt(1) == 1


def test_a_death_costs_one_of_the_declared_attempts() -> None:
    """Lost is failed: it is retried only where retries were declared."""
    scheduler = make(WorkerReady(1), WorkerReady(2), StepAdded(1, demand=Demand(retries=1)))

    assert tell(scheduler, WorkerLost(1, began=1)) == [Retry(1, 1)]
    assert tell(scheduler, StepRested(1)) == [Dispatch(2, (1,)), Running(2, 1)]
    assert tell(scheduler, WorkerLost(2, began=1)) == [Closed((1,), Status.FAILED)]


def test_the_slot_of_a_dead_worker_is_free_for_its_replacement() -> None:
    """No slot is lost with a worker."""
    scheduler = make(WorkerReady(1), *added(2), cpus=1)

    tell(scheduler, WorkerReady(2), WorkerLost(1, began=None))

    assert scheduler.lane(2) == (1,)


# ------------------------------------------------------------------------------------------------ stop, give back
def test_a_stop_asks_every_busy_worker_to_give_back_and_starts_nothing() -> None:
    """Idle workers and local steps are not asked."""
    scheduler = make(
        WorkerReady(1), WorkerReady(2), StepAdded(1), StepAdded(2, demand=Demand(local=True)), StepAdded(3, (1,))
    )

    assert tell(scheduler, StopRequested()) == [Revoke(1)]
    assert tell(scheduler, StopRequested()) == []
    assert tell(scheduler, StepsFinished(1, (1,))) == [Closed((1,), Status.FINISHED)]
    assert scheduler.status(3) is Status.READY


def test_returned_steps_are_the_next_to_run() -> None:
    """They go to the front in the order they had."""
    scheduler = filled(StepAdded(6, function="g"))

    assert tell(scheduler, StepsReturned(1, (4, 5))) == [Dispatch(1, (4, 5))]
    assert scheduler.status(6) is Status.READY


def test_an_interactive_step_ends_the_run_when_it_has_run() -> None:
    """A person looks at its result first."""
    scheduler = make(WorkerReady(1), WorkerReady(2), *added(2), StepAdded(3, (1,)))

    assert tell(scheduler, StepInteractive(1, 1)) == [Closed((1,), Status.INTERACTIVE), Revoke(2)]
    assert scheduler.stopping
    assert scheduler.status(3) is Status.BLOCKED


def test_a_lane_may_answer_for_a_step_that_is_not_its_first() -> None:
    """An engine with several threads in a worker would: the one ahead goes on."""
    scheduler = filled()

    assert tell(scheduler, StepInteractive(1, 4)) == [Closed((4,), Status.INTERACTIVE), Revoke(1)]
    assert scheduler.lane(1) == (2, 3, 5)
    assert scheduler.status(2) is Status.RUNNING


# ---------------------------------------------------------------------------------------- holding, releasing, needs
def test_a_held_step_waits_until_it_is_released() -> None:
    """`wait=True` in a protocol."""
    scheduler = make(WorkerReady(1), StepAdded(1, held=True))
    assert scheduler.status(1) is Status.HELD
    assert not scheduler.active

    assert tell(scheduler, StepReleased(1)) == [Dispatch(1, (1,)), Running(1, 1)]


def test_a_released_step_still_waits_for_its_prerequisites() -> None:
    """Both conditions must be met, in either order."""
    scheduler = make(WorkerReady(1), StepAdded(1), StepAdded(2, (1,), held=True))

    assert tell(scheduler, StepReleased(2)) == []
    assert scheduler.status(2) is Status.BLOCKED


def test_a_ready_step_can_be_held_and_released_any_number_of_times_and_runs_once() -> None:
    """It never stands in the queue twice."""
    scheduler = make(*added(3), *[StepHeld(2), StepReleased(2)] * 5, WorkerReady(1), StepsFinished(1, (1,)))
    assert scheduler.lane(1) == (2,)

    tell(scheduler, StepsFinished(1, (2,)))

    assert scheduler.lane(1) == (3,)
    assert tell(scheduler, StepsFinished(1, (3,))) == [Closed((3,), Status.FINISHED)]


def test_a_held_step_gives_way_to_those_behind_it() -> None:
    """It is passed over, not waited for."""
    scheduler = make(*added(2), StepHeld(1))

    assert tell(scheduler, WorkerReady(1)) == [Dispatch(1, (2,)), Running(1, 2)]


def test_prerequisites_can_be_added_to_a_step_that_has_not_been_sent() -> None:
    """It leaves the queue until they have finished."""
    scheduler = make(*added(2), PrerequisitesAdded(1, (2,)))
    assert scheduler.status(1) is Status.BLOCKED

    assert tell(scheduler, WorkerReady(1)) == [Dispatch(1, (2,)), Running(1, 2)]
    assert tell(scheduler, StepsFinished(1, (2,)))[1:] == [Dispatch(1, (1,)), Running(1, 1)]


def test_a_step_that_runs_cannot_be_given_prerequisites() -> None:
    """It is too late, and the message says what to do."""
    scheduler = make(WorkerReady(1), *added(2))

    with pytest.raises(PrerequisiteError, match="insert it with wait=True"):
        tell(scheduler, PrerequisitesAdded(1, (2,)))


def test_prerequisites_that_would_close_a_circle_are_refused() -> None:
    """The message names the circle."""
    scheduler = make(StepAdded(1), StepAdded(2, (1,)), StepAdded(3, (2,)))

    with pytest.raises(PrerequisiteError, match="1 -> 3 -> 2 -> 1"):
        tell(scheduler, PrerequisitesAdded(1, (3,)))


@pytest.mark.parametrize("prerequisites", [(7,), (0,), (-1,), (2,)])
def test_a_step_cannot_wait_for_itself_or_for_what_does_not_exist(prerequisites: tuple[int, ...]) -> None:
    """Unknown ids are the user's mistake, told before anything happens."""
    scheduler = make(StepAdded(1))
    before = portrait(scheduler)

    with pytest.raises(PrerequisiteError, match="cannot wait for"):
        tell(scheduler, StepAdded(2, prerequisites))
    assert portrait(scheduler) == before


def test_a_prerequisite_that_has_failed_skips_the_step_it_is_added_to() -> None:
    """With all that depends on it."""
    scheduler = make(
        WorkerReady(1), StepAdded(1), StepAdded(2, held=True), StepAdded(3, (2,)), StepFailed(1, 1), keep_going=True
    )

    assert tell(scheduler, PrerequisitesAdded(2, (1,))) == [Closed((2, 3), Status.SKIPPED, 1)]


def test_who_releases_or_holds_a_step_need_not_know_that_it_was_skipped() -> None:
    """With keep_going, `_stepsCheck` goes on feeding a waiting step one of whose prerequisites has failed."""
    scheduler = make(
        WorkerReady(1), StepAdded(1), StepAdded(2, (1,), held=True), StepFailed(1, 1), StepAdded(3), keep_going=True
    )

    assert tell(scheduler, PrerequisitesAdded(2, (3,)), StepReleased(2), StepHeld(2), StepReleased(2)) == []
    assert scheduler.status(2) is Status.SKIPPED


def test_a_restored_step_is_finished_without_running() -> None:
    """Resume: what the journal knows is not run again, and its dependants go on from there."""
    scheduler = make(StepAdded(1), StepRestored(1), StepAdded(2, (1,)), StepAdded(3, held=True), StepRestored(3))

    assert tell(scheduler, WorkerReady(1)) == [Dispatch(1, (2,)), Running(1, 2)]
    assert scheduler.status(3) is Status.FINISHED


# ------------------------------------------------------------------------------------------------ special demands
def test_a_step_of_several_cpus_waits_for_them_and_is_not_overtaken() -> None:
    """What is freed is kept for it: otherwise plain steps would take every slot before it."""
    scheduler = make(WorkerReady(1), WorkerReady(2), *added(2), StepAdded(3, demand=Demand(cpus=2)), StepAdded(4))

    assert tell(scheduler, StepsFinished(1, (1,))) == [Closed((1,), Status.FINISHED)]
    assert tell(scheduler, StepsFinished(2, (2,)))[1:] == [Dispatch(1, (3,)), Running(1, 3)]
    assert tell(scheduler, StepsFinished(1, (3,)))[1:] == [Dispatch(1, (4,)), Running(1, 4)]


def test_a_step_that_asks_for_more_than_there_is_gets_all_of_it() -> None:
    """It runs alone rather than never."""
    scheduler = make(WorkerReady(1), WorkerReady(2), StepAdded(1, demand=Demand(cpus=64)))

    assert scheduler.lane(1) == (1,)
    assert tell(scheduler, StepAdded(2)) == []


def test_a_step_that_waits_for_a_card_lets_others_pass() -> None:
    """Cards are few: steps that need none run meanwhile."""
    card = Demand(gpus=1)
    scheduler = make(WorkerReady(1), WorkerReady(2), StepAdded(1, demand=card), gpus=[5])
    assert scheduler.slots.gpus_of(1) == (5,)

    assert tell(scheduler, StepAdded(2, demand=card)) == []
    assert tell(scheduler, StepAdded(3)) == [Dispatch(2, (3,)), Running(2, 3)]
    assert tell(scheduler, StepsFinished(1, (1,)))[1:] == [Dispatch(1, (2,)), Running(1, 2)]


def test_nothing_is_sent_behind_a_step_with_a_demand_of_its_own() -> None:
    """It may talk to the coordinator, or be killed at its timeout."""
    scheduler = learnt(StepAdded(3, function="f", demand=Demand(alone=True)), WorkerLost(2))

    assert scheduler.lane(1) == (3,)
    assert tell(scheduler, StepAdded(4, function="f")) == []


def test_local_steps_run_beside_each_other_in_the_coordinator() -> None:
    """They hold no worker and no CPU slot."""
    local = Demand(local=True)

    scheduler = make(StepAdded(1, demand=local), StepAdded(2, demand=local))

    assert scheduler.lane(LOCAL) == (1, 2)
    assert scheduler.slots.free["cpus"] == 2
    assert tell(scheduler, StepsFinished(LOCAL, (2,))) == [Closed((2,), Status.FINISHED)]


def test_a_retried_special_step_comes_before_others_of_its_kind() -> None:
    """Its turn is kept."""
    demand = Demand(retries=1, memory=10)
    scheduler = make(WorkerReady(1), *(StepAdded(step, demand=demand) for step in (1, 2)), memory=10)

    assert tell(scheduler, StepFailed(1, 1)) == [Retry(1, 1), Dispatch(1, (2,)), Running(1, 2)]
    tell(scheduler, StepAdded(3, demand=demand), StepRested(1))
    assert tell(scheduler, StepsFinished(1, (2,)))[1:] == [Dispatch(1, (1,)), Running(1, 1)]


# ------------------------------------------------------------------------------------------------- illegal events
def _busy() -> Scheduler:
    """1 finished, 2 and 3 run on workers 1 and 2, 4 is ready, 5 blocked, 6 held, 7 and 8 failed and skipped."""
    events = [
        *added(3),
        StepAdded(4),
        StepAdded(5, (4,)),
        StepAdded(6, held=True),
        StepAdded(7, demand=Demand(local=True)),
    ]
    return make(
        *events,
        StepAdded(8, (7,)),
        WorkerReady(1),
        WorkerReady(2),
        StepsFinished(1, (1,)),
        StepFailed(LOCAL, 7),
        keep_going=True,
    )


@pytest.mark.parametrize(
    "event",
    [
        StepAdded(4), StepAdded(0), StepAdded(-3), StepReleased(4), StepReleased(9), StepReleased(-1), StepReleased(1),
        StepHeld(6), StepHeld(1), StepRestored(1), StepRestored(2), StepRestored(8), StepRestored(77),
        WorkerReady(1), WorkerReady(LOCAL), WorkerReady(-1), WorkerLost(9), WorkerLost(LOCAL), WorkerLost(1, began=2),
        StepsFinished(1, (2,)), StepsFinished(1, (3, 2)), StepsFinished(1, (3, 3)), StepsFinished(9, (3,)),
        StepsFinished(1, (3,), (1.0, 2.0)), StepsFinished(1, ()), StepsFinished(1, (4,)), StepsFinished(1, (1,)),
        StepFailed(1, 2), StepFailed(1, 4), StepFailed(7, 3), StepFailed(LOCAL, 7), StepInteractive(1, 2),
        StepsReturned(1, (2,)), StepsReturned(1, (3, 4)), StepsReturned(1, ()), StepsReturned(LOCAL, (7,)), "something",
    ],
    ids=repr,
)  # fmt: skip
def test_an_illegal_event_raises_and_changes_nothing(event: Any) -> None:
    """Every handler checks before it acts: after the error the scheduler is, to the last queue, what it was."""
    scheduler = _busy()
    assert [scheduler.status(s).name for s in range(1, 9)] == [
        "FINISHED", "RUNNING", "RUNNING", "READY", "BLOCKED", "HELD", "FAILED", "SKIPPED"
    ]  # fmt: skip
    before = portrait(scheduler)

    with pytest.raises(InternalError):
        scheduler.handle(event)
    assert portrait(scheduler) == before


def test_a_step_that_is_on_its_way_cannot_be_held() -> None:
    """Not a bug of ours: the user came too late, and nothing has changed."""
    scheduler = _busy()
    before = portrait(scheduler)

    with pytest.raises(UsageError, match="step 2 is on its way"):
        tell(scheduler, StepHeld(2))
    assert portrait(scheduler) == before


def test_the_error_tells_the_story_of_the_step() -> None:
    """So that a report of it can be understood without the run."""
    scheduler = make(WorkerReady(1), StepAdded(1, (), True), StepReleased(1), StepsFinished(1, (1,)))

    with pytest.raises(InternalError) as caught:
        tell(scheduler, StepsFinished(1, (1,)))
    story = "added_held -> released -> prerequisites_met -> assigned -> began -> succeeded"
    assert f"step 1 is FINISHED; its story: {story}" in str(caught.value)


# -------------------------------------------------------------------------------------------------- cost, by counting
class CountingGraph(Graph):
    """Counts the edges it looks at."""

    looked_at = 0

    def link(self, step: int, prerequisites: Any) -> None:
        self.looked_at += len(prerequisites)
        super().link(step, prerequisites)

    def finish(self, steps: Any) -> list[int]:
        self.looked_at += sum(len(self.dependants(step)) for step in steps)
        return super().finish(steps)

    def close(self, step: int) -> Any:
        self.looked_at += len(self.dependants(step))
        return super().close(step)


class Counted:
    """A scheduler that counts edges looked at, moves made, slots compared and lanes gone through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cpus: int = 2, **more: Any) -> None:
        monkeypatch.setattr("mpsteps._core.scheduler.Graph", CountingGraph)
        self.scheduler = Scheduler(SlotPool(cpus, **more), keep_going=True)
        self.calls = 0
        for thing, name in [
            (self.scheduler._register, "move"), (self.scheduler.slots, "lacks"), (self.scheduler._lanes, "_fill"),
            (self.scheduler.slots, "choose"), (self.scheduler._lanes, "_assign_plain"),
            (self.scheduler._lanes, "_begin"), (self.scheduler._waiting, "join"), (self.scheduler._waiting, "rejoin"),
            (self.scheduler._waiting, "oldest_special"), (self.scheduler._waiting, "first_plain"),
        ]:  # fmt: skip
            monkeypatch.setattr(thing, name, self._counting(getattr(thing, name)))

    def _counting(self, function: Any) -> Any:
        def call(*args: Any) -> Any:
            self.calls += 1
            return function(*args)

        return call

    @property
    def edges(self) -> int:
        return self.scheduler._graph.looked_at  # type: ignore[attr-defined]

    def run(self, seconds: float) -> int:
        """Two workers take what they get until nothing is left; how many events that took."""
        events = 0
        todo: list[Any] = [WorkerReady(1), WorkerReady(2)]
        while todo:
            commands = self.scheduler.handle(todo.pop(0))
            events += 1
            for c in commands:
                if type(c) is Dispatch:
                    todo.append(StepsFinished(c.worker, c.steps, (seconds,) * len(c.steps)))
        return events


@pytest.mark.parametrize("size", [200, 2000])
def test_scheduling_looks_at_each_edge_twice_and_at_each_step_a_few_times(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O(steps + edges), whatever the shape: here every step waits for up to ten before it."""
    counted = Counted(monkeypatch)
    edges = 0
    for step in range(1, size + 1):
        needs = tuple(range(max(1, step - 10), step)) if step % 3 == 0 else ()
        edges += len(needs)
        counted.scheduler.handle(StepAdded(step, needs, function="f"))

    events = counted.run(SHORT)

    assert counted.scheduler.counts[Status.FINISHED] == size
    assert counted.edges <= 2 * edges
    assert counted.calls <= 4 * size + 5 * events


@pytest.mark.parametrize("size", [200, 2000])
def test_steps_that_wait_for_a_graphics_card_cost_as_much_as_others(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In Scipion every step asks for a card unless told otherwise: those that wait must not be looked at one by one."""
    counted = Counted(monkeypatch, gpus=[0])
    for step in range(1, size + 1):
        counted.scheduler.handle(StepAdded(step, demand=Demand(gpus=1)))

    events = counted.run(LONG)

    assert counted.scheduler.counts[Status.FINISHED] == size
    assert counted.calls <= 12 * (size + events)


def test_steps_of_many_different_demands_are_not_looked_at_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool may be given the memory of each task: a thousand demands, and each event looks at a few."""
    counted = Counted(monkeypatch, memory=1000)
    for step in range(1, 1001):
        counted.scheduler.handle(StepAdded(step, demand=Demand(memory=step)))

    events = counted.run(LONG)

    assert counted.scheduler.counts[Status.FINISHED] == 1000
    assert counted.calls <= 12 * (1000 + events)


@pytest.mark.parametrize("workers", [0, 2])
def test_adding_a_step_that_cannot_start_looks_at_no_lane(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million steps may be added while all workers are busy."""
    counted = Counted(monkeypatch)
    for event in [*(WorkerReady(w + 1) for w in range(workers)), *added(3)]:
        counted.scheduler.handle(event)
    counted.calls = 0

    for step in range(4, 104):
        counted.scheduler.handle(StepAdded(step))

    assert counted.calls == 4 * 100  # two moves, a place in the queue and a look at who is the first of it, each


def test_one_step_may_wait_for_ten_thousand(monkeypatch: pytest.MonkeyPatch) -> None:
    """createOutputStep does, also if its prerequisites are added later, and each edge is looked at twice."""
    counted = Counted(monkeypatch)
    scheduler = counted.scheduler
    scheduler.handle(StepAdded(1, held=True))
    for step in range(2, 10_002):
        scheduler.handle(StepAdded(step, function="f"))
    scheduler.handle(PrerequisitesAdded(1, tuple(range(2, 10_002))))
    scheduler.handle(StepReleased(1))

    counted.run(SHORT)

    assert scheduler.counts[Status.FINISHED] == 10_001
    assert counted.edges == 2 * 10_000


def test_a_chain_of_fifty_thousand_fails_in_one_event_without_recursion() -> None:
    """One command tells the fate of all."""
    scheduler = Scheduler(SlotPool(1))
    for step in range(1, 50_001):
        scheduler.handle(StepAdded(step, (step - 1,) if step > 1 else ()))
    scheduler.handle(WorkerReady(1))

    assert scheduler.handle(StepFailed(1, 1)) == [
        Closed((1,), Status.FAILED), Closed(tuple(range(2, 50_001)), Status.SKIPPED, 1),
    ]  # fmt: skip


# ----------------------------------------------------------------------------------------- sent ahead (see test_ahead)
def test_a_step_that_gets_one_more_prerequisite_is_not_sent_ahead_of_it() -> None:
    """It was next to follow its prerequisite into the lane, and there was no room: later it may not follow any more."""
    scheduler = Scheduler(SlotPool(1), keep_going=True, ahead=True)
    part = LANE_SECONDS * 0.4  # two fit into a lane, three do not
    tell(scheduler, WorkerReady(1), StepAdded(1, function="f"), StepsFinished(1, (1,), (part,)))
    tell(scheduler, *(StepAdded(step, held=True, function="f") for step in (2, 3)), StepAdded(4, (3,), function="f"))
    tell(scheduler, StepReleased(2), StepReleased(3), StepAdded(5, held=True))
    assert scheduler.lane(1) == (2, 3)

    tell(scheduler, PrerequisitesAdded(4, (5,)))

    assert tell(scheduler, StepsFinished(1, (2,), (part,))) == [Running(1, 3), Closed((2,), Status.FINISHED)]
    tell(scheduler, StepsFinished(1, (3,), (part,)), StepReleased(5))
    assert tell(scheduler, StepsFinished(1, (5,)))[1:] == [Dispatch(1, (4,)), Running(1, 4)]
