"""What `submit_step` adds to an executor: prerequisites, resources, timeouts, retries, and futures as arguments."""

from __future__ import annotations

import gc
import operator
import os
import time
import weakref
from concurrent import futures
from pathlib import Path
from typing import Any, Iterator, List

import bad_objects
import pytest
from pool_steps import (
    SOON,
    Gate,
    Thing,
    arrive_and_wait,
    capture,
    cards,
    count_to,
    fail_plainly,
    fan_in,
    full_pool,
    note,
    pass_unless,
    slow_note,
    stubborn_sleep,
    until,
)

from mpsteps import MpstepsError, ResultOf, StepError, StepLost, StepPool, UsageError
from mpsteps import _pool_work as pool_work
from mpsteps.errors import SerializationError, StepCancelled, StepTimeout


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StepPool]:
    """One for all tests that leave its workers alive."""
    with full_pool(tmp_path_factory.mktemp("pool")) as pool:
        yield pool


@pytest.fixture
def own_pool() -> Iterator[StepPool]:
    with StepPool(2) as pool:
        yield pool


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path)
    yield gate
    gate.open()


def log_of(path: Path) -> List[str]:
    return path.read_text().split() if path.exists() else []


# ---------------------------------------------------------------------------- prerequisites


@pytest.mark.versions
def test_a_step_starts_when_those_it_waits_for_have_finished(pool: StepPool, tmp_path: Path) -> None:
    """And sees what they wrote."""
    log = tmp_path / "log"
    first = [pool.submit(slow_note, str(log), "a"), pool.submit(slow_note, str(log), "b")]
    last = pool.submit_step(note, str(log), "c", after=first)
    last.result(SOON)
    assert {w.strip("<>") for w in log_of(log)[:4]} == {"a", "b"}
    assert log_of(log)[4:] == ["c"]


def test_after_takes_one_future_a_list_or_anything_iterable(pool: StepPool) -> None:
    """Also none, the same one twice, and futures that are done already."""
    a = pool.submit(abs, -1)
    b = pool.submit_step(abs, -2, after=a)
    c = pool.submit_step(abs, -3, after=[a, b, a])
    d = pool.submit_step(abs, -4, after=(f for f in (c, a)))
    assert [f.result(SOON) for f in (d, c, b, a)] == [4, 3, 2, 1]
    assert pool.submit_step(abs, -5, after={a, b, c, d}).result(SOON) == 5
    assert pool.submit_step(abs, -6, after=()).result(SOON) == 6


def test_futures_of_other_executors_are_waited_for(pool: StepPool, gate: Gate) -> None:
    """Those that run, those that are done, and those that nobody runs but the test."""
    bare: futures.Future[int] = futures.Future()
    with futures.ThreadPoolExecutor(1) as threads:
        running = threads.submit(gate.wait)
        step = pool.submit_step(capture, running, [bare], after=[threads.submit(abs, -1)])
        behind = pool.submit_step(len, step, after=[running])
        bare.set_result(5)
        assert not futures.wait([step], 0.05).done
        gate.open()
        assert step.result(SOON) == ((gate.path, [5]), {})
        assert behind.result(SOON) == 2


def test_a_step_waits_for_a_step_that_waits_for_others(pool: StepPool) -> None:
    """A prerequisite that is not in the scheduler yet, because it waits for a future of somebody else."""
    outside: futures.Future[int] = futures.Future()
    first = pool.submit(operator.neg, outside)
    second = pool.submit(operator.neg, first)
    third = pool.submit_step(operator.neg, 7, after=[second])
    assert pool.submit(abs, -1).result(SOON) == 1  # nobody is held up
    outside.set_result(3)
    assert (first.result(SOON), second.result(SOON), third.result(SOON)) == (-3, 3, -7)


def test_futures_in_arguments_are_replaced_by_their_results(pool: StepPool) -> None:
    """At any depth of lists, tuples and dicts, several times, and among keyword arguments of `submit`."""
    a, b = pool.submit(abs, -1), pool.submit(bad_objects.pass_on, [2])
    step = pool.submit_step(capture, a, [b, (a, {"x": b, "y": [a]})], "plain")
    assert step.result(SOON) == ((1, [[2], (1, {"x": [2], "y": [1]})], "plain"), {})
    step = pool.submit(capture, a, key=b, other={"z": a})
    assert step.result(SOON) == ((1,), {"key": [2], "other": {"z": 1}})
    done = [a, b]
    assert pool.submit(capture, done, k=a).result(SOON) == (([1, [2]],), {"k": 1})


def test_results_of_map_may_depend_on_futures(pool: StepPool) -> None:
    """In steps of one call and of several."""
    a, b = pool.submit(abs, -1), pool.submit(abs, -2)
    assert list(pool.map(operator.add, [a, b, a], [b, b, 5])) == [3, 4, 6]
    assert list(pool.map(operator.add, [a, b, a], [b, b, 5], chunksize=2)) == [3, 4, 6]


def test_a_result_of_none_or_a_large_one_is_passed_on(pool: StepPool) -> None:
    """None travels as nothing; a megabyte in shared memory; an object as itself."""
    for value in (None, b"x" * 100_000, [1, 2], ()):
        assert pool.submit(bad_objects.pass_on, pool.submit(bad_objects.pass_on, value)).result(SOON) == value
    with StepPool(2) as other:  # which keeps the memory for the next large one
        large = other.submit(bad_objects.pass_on, b"x" * 1_000_000)
        assert other.submit(bad_objects.pass_on, large).result(SOON) == b"x" * 1_000_000
    thing = pool.submit(Thing, "value")
    assert pool.submit(Thing.method, thing).result(SOON) == "value"


def test_a_diamond(pool: StepPool) -> None:
    """One result goes to two steps, whose results go to one."""
    top = pool.submit(abs, -3)
    left, right = pool.submit(operator.add, top, 1), pool.submit(operator.mul, top, 2)
    assert pool.submit(capture, left, right).result(SOON) == ((4, 6), {})


def test_a_chain_of_five_hundred(pool: StepPool) -> None:
    """Each takes the result of the one before."""
    f = pool.submit(abs, 0)
    for _ in range(500):
        f = pool.submit(operator.add, f, 1)
    assert f.result(SOON) == 500


def test_a_fan_in_of_a_thousand(pool: StepPool) -> None:
    """One step takes the results of a thousand; another waits for them."""
    fs = [pool.submit(abs, -i) for i in range(1000)]
    total = pool.submit(fan_in, *fs)
    behind = pool.submit_step(abs, -1, after=fs)
    assert total.result(SOON) == sum(range(1000))
    assert behind.result(SOON) == 1


def test_a_result_is_kept_no_longer_than_a_step_needs_it(pool: StepPool, gate: Gate) -> None:
    """Neither the object, which belongs to the future, nor the bytes in which it travels."""
    held = gate.hold(pool)
    result = pool.submit(Thing, b"x" * 1000)
    users = [pool.submit_step(Thing.method, result, after=[held]), pool.submit(Thing.method, result)]
    users[1].result(SOON)
    reference = weakref.ref(result.result(SOON))
    del result
    until(lambda: (gc.collect(), reference() is None)[1])
    assert list(pool._work._parcels) != []  # one more step needs it
    gate.open()
    assert users[0].result(SOON) == b"x" * 1000
    until(lambda: not pool._work._parcels and not pool._work._uses)


# ------------------------------------------------------------------- prerequisites that fail


def test_what_waits_for_a_failed_step_is_not_run(pool: StepPool, tmp_path: Path) -> None:
    """It fails with StepError, whose cause is the exception of the step that failed; so does all downstream of it."""
    bad = pool.submit(divmod, 1, 0)
    direct = pool.submit_step(note, str(tmp_path / "log"), "direct", after=bad)
    by_argument = pool.submit(note, str(tmp_path / "log"), bad)
    indirect = pool.submit_step(note, str(tmp_path / "log"), "indirect", after=[direct, by_argument])
    for f in (direct, by_argument, indirect):
        error = f.exception(SOON)
        assert type(error) is StepError
        assert error.__cause__ is bad.exception()
        assert "note" in str(error)
        assert "ZeroDivisionError" in str(error)
    assert log_of(tmp_path / "log") == []


def test_a_step_submitted_after_the_failure_is_told_the_same(pool: StepPool) -> None:
    """The first failure is the cause, also through steps that were not run."""
    bad = pool.submit(divmod, 1, 0)
    skipped = pool.submit(abs, bad)
    futures.wait([bad, skipped], SOON)
    for f in (pool.submit(abs, bad), pool.submit(abs, skipped), pool.submit_step(abs, 1, after=[skipped])):
        error = f.exception(SOON)
        assert type(error) is StepError
        assert error.__cause__ is bad.exception()


def test_each_step_is_told_of_its_own_prerequisite(pool: StepPool) -> None:
    """Many steps fail, each with dependants of its own, as fast as they can: none gets the cause of another."""
    bad = [pool.submit(bad_objects.raise_it, ValueError, i) for i in range(100)]
    skipped = [pool.submit(abs, f) for f in bad]
    below = [pool.submit(abs, f) for f in skipped]
    for i in range(100):
        for f in (skipped[i], below[i]):
            error = f.exception(SOON)
            assert isinstance(error, StepError)
            assert error.__cause__ is bad[i].exception()
            assert f"ValueError: {i}" in str(error)


def test_steps_sent_ahead_of_a_failure_are_told_the_cause(pool: StepPool) -> None:
    """Short steps are sent behind their prerequisites before these have finished; when one fails, they come back, and
    are not run, some time after the failure was told."""
    list(pool.map(pass_unless, range(200), [-1] * 200))
    for k in range(20):
        head = pool.submit(time.sleep, 0.005)  # until all of them are there
        bad = pool.submit_step(pass_unless, k, k, after=[head])
        chain = [bad]
        for _ in range(5):
            chain.append(pool.submit(pass_unless, chain[-1], -1))
        for f in chain[1:]:
            error = f.exception(SOON)
            assert isinstance(error, StepError)
            assert error.__cause__ is bad.exception()
    until(lambda: not pool._work._errors)  # nothing is kept


def test_the_death_of_a_worker_is_a_cause_as_well(own_pool: StepPool) -> None:
    """And what hangs on other steps is not concerned."""
    lost, good = own_pool.submit(bad_objects.vanish, 5), own_pool.submit(abs, -1)
    error = own_pool.submit(abs, lost).exception(SOON)
    assert isinstance(error, StepError)
    assert isinstance(error.__cause__, StepLost)
    assert "exit code 5" in str(error)
    assert own_pool.submit(operator.neg, good).result(SOON) == -1


def test_a_failed_future_of_another_executor_is_a_cause(pool: StepPool) -> None:
    """Whether it has failed before or fails later."""
    later: futures.Future[int] = futures.Future()
    before: futures.Future[int] = futures.Future()
    before.set_exception(KeyError("before"))
    steps = [pool.submit(abs, later), pool.submit_step(abs, 1, after=[before])]
    below = pool.submit(abs, steps[0])
    later.set_exception(KeyError("later"))
    for f, text in ((steps[0], "later"), (steps[1], "before"), (below, "later")):
        error = f.exception(SOON)
        assert isinstance(error, StepError)
        assert isinstance(error.__cause__, KeyError)
        assert error.__cause__.args == (text,)


def test_what_waits_for_a_cancelled_step_is_cancelled_with_a_message(pool: StepPool, gate: Gate) -> None:
    """StepCancelled: for a step of the pool, one that was cancelled long ago, and a future of another executor."""
    held = [gate.hold(pool), gate.hold(pool)]
    pending = pool.submit(abs, -1)
    outside: futures.Future[int] = futures.Future()
    waiting = [pool.submit(abs, pending), pool.submit(abs, outside)]
    below = pool.submit(abs, waiting[0])
    assert pending.cancel()
    assert outside.cancel()
    gate.open()
    for f in (*waiting, below, pool.submit(abs, pending)):
        error = f.exception(SOON)
        assert isinstance(error, StepCancelled)
        assert "was cancelled" in str(error)
    assert all(f.result(SOON) for f in held)


def test_cancelling_a_step_that_waits_for_others(pool: StepPool) -> None:
    """It is cancelled; those who wait for it learn it when its turn would have come."""
    outside: futures.Future[int] = futures.Future()
    waiting = pool.submit(abs, outside)
    below = pool.submit(abs, waiting)
    assert waiting.cancel()
    outside.set_result(1)
    assert isinstance(below.exception(SOON), StepCancelled)


def test_a_cause_that_cannot_be_read_is_told_nevertheless(pool: StepPool) -> None:
    """An exception whose `__str__` raises, and one with a lot of text."""
    error = pool.submit(abs, pool.submit(bad_objects.raise_it, bad_objects.ErrorAtStr)).exception(SOON)
    assert isinstance(error, StepError)
    assert "ErrorAtStr" in str(error)
    error = pool.submit(abs, pool.submit(bad_objects.raise_it, ValueError, "x" * 100_000)).exception(SOON)
    assert len(str(error)) < 2000


# ----------------------------------------------------------------------------------- timeout


def test_a_step_that_runs_too_long_is_killed_and_nothing_else(own_pool: StepPool, gate: Gate) -> None:
    """StepTimeout names the step and the time; its worker is replaced, the other goes on."""
    held = gate.hold(own_pool)
    started = time.monotonic()
    late = own_pool.submit_step(time.sleep, 60, timeout=0.2, name="the late one")
    error = late.exception(SOON)
    assert 0.2 <= time.monotonic() - started < 5
    assert isinstance(error, StepTimeout)
    assert "the late one" in str(error)
    assert "0.2 s" in str(error)
    pid = own_pool.submit(os.getpid).result(SOON)
    gate.open()
    assert held.result(SOON) != pid


def test_a_step_that_ignores_sigterm_is_killed_nevertheless(own_pool: StepPool) -> None:
    """Two seconds later."""
    assert isinstance(own_pool.submit_step(stubborn_sleep, timeout=0.1).exception(SOON), StepTimeout)


def test_a_step_that_ends_in_time_is_left_alone(pool: StepPool) -> None:
    """And the clock of a step does not run while it waits for a worker, or after it has ended."""
    fs = [pool.submit_step(time.sleep, 0.1, timeout=0.4) for _ in range(12)]
    assert [f.result(SOON) for f in fs] == [None] * 12


def test_every_attempt_has_its_own_time(tmp_path: Path) -> None:
    """The clock of the first attempt must not end the second."""
    with StepPool(1) as pool:
        step = pool.submit_step(count_to, str(tmp_path / "n"), 2, 0.6, timeout=1.0, retries=1)
        assert step.result(SOON) == 2


# ----------------------------------------------------------------------------------- retries


def test_a_step_that_fails_twice_and_then_succeeds(pool: StepPool, tmp_path: Path) -> None:
    """The future sees the success only."""
    assert pool.submit_step(count_to, str(tmp_path / "n"), 3, retries=2).result(SOON) == 3


def test_a_step_is_not_tried_more_often_than_it_may(pool: StepPool, tmp_path: Path) -> None:
    """The last failure is what its future raises; without `retries` there is one attempt."""
    error = pool.submit_step(count_to, str(tmp_path / "n"), 10, retries=2).exception(SOON)
    assert isinstance(error, RuntimeError)
    assert error.args == ("attempt 3",)
    error = pool.submit_step(count_to, str(tmp_path / "m"), 10).exception(SOON)
    assert isinstance(error, RuntimeError)
    assert error.args == ("attempt 1",)


def test_a_lost_worker_costs_one_attempt(own_pool: StepPool, tmp_path: Path) -> None:
    """The next one runs in another worker."""
    assert own_pool.submit_step(count_to, str(tmp_path / "n"), 3, 0, True, retries=2).result(SOON) == 3


def test_what_cannot_travel_is_not_tried_again(pool: StepPool) -> None:
    """It would not travel the second time either."""
    error = pool.submit_step(abs, bad_objects.ErrorAtPickle(), retries=1000).exception(SOON)
    assert isinstance(error, SerializationError)


def test_a_failed_attempt_does_not_skip_dependants(pool: StepPool, tmp_path: Path) -> None:
    """Only the last one would."""
    step = pool.submit_step(count_to, str(tmp_path / "n"), 2, retries=1)
    assert pool.submit(operator.neg, step).result(SOON) == -2


# --------------------------------------------------------------------------------- resources


def test_a_step_of_two_cpus_runs_alone_on_two_workers(pool: StepPool, tmp_path: Path) -> None:
    """Nothing else runs beside it, and it is not starved by the small ones."""
    log = tmp_path / "log"
    small = [pool.submit(slow_note, str(log), f"s{i}") for i in range(4)]
    big = pool.submit_step(slow_note, str(log), "big", cpus=2)
    small += [pool.submit(slow_note, str(log), f"s{i}") for i in range(4, 8)]
    futures.wait([big, *small], SOON)
    words = log_of(log)
    at = words.index("<big")
    assert words[at + 1] == "big>"
    assert {w.strip("<>") for w in words[:at]} < {f"s{i}" for i in range(8)}
    for i in range(8):  # each of the small ones ended before it began, or began after it ended
        assert words.index(f"s{i}>") < at or words.index(f"<s{i}") > at


@pytest.mark.parametrize("memory", ["1000000 GB", 10**18])
def test_steps_that_need_all_the_memory_run_one_after_the_other(pool: StepPool, tmp_path: Path, memory: Any) -> None:
    """More than there is means all there is: it runs alone, not never."""
    log = tmp_path / "log"
    futures.wait([pool.submit_step(slow_note, str(log), f"{i}", memory=memory) for i in range(4)], SOON)
    words = log_of(log)
    assert len(words) == 8
    assert all(words[i].strip("<>") == words[i + 1].strip("<>") for i in range(0, 8, 2))


def test_a_little_memory_hinders_nobody(pool: StepPool, gate: Gate, tmp_path: Path) -> None:
    """Two steps of a megabyte run at the same time."""
    held = [pool.submit_step(arrive_and_wait, str(tmp_path / f"m{i}"), gate.path, memory="1 MB") for i in range(2)]
    until(lambda: all((tmp_path / f"m{i}").exists() for i in range(2)))
    gate.open()
    assert len({f.result(SOON) for f in held}) == 2


def test_steps_share_the_graphics_cards(tmp_path: Path) -> None:
    """No card is held by two steps at a time; a step knows its own, and the next step in its worker has none."""
    with StepPool(3, gpus=[4, 7]) as pool:
        fs = [pool.submit_step(cards, str(tmp_path), gpus=1) for _ in range(8)]
        assert {tuple(f.result(SOON)) for f in fs} == {(4,), (7,)}
        assert pool.submit_step(cards, str(tmp_path), gpus=2).result(SOON) == [4, 7]
        assert [pool.submit(cards, "").result(SOON) for _ in range(6)] == [[]] * 6


def test_asking_for_more_cards_than_the_pool_has_is_an_error() -> None:
    """A step would otherwise run without the card that it needs."""
    with StepPool(1) as pool, StepPool(1, gpus=[0]) as other:
        with pytest.raises(UsageError, match="this pool has none"):
            pool.submit_step(abs, 1, gpus=1)
        with pytest.raises(UsageError, match="needs 2 graphics cards and this pool has 1"):
            other.submit_step(abs, 1, gpus=2)


# ------------------------------------------------------------------------- names and mistakes


def test_messages_name_the_step(own_pool: StepPool) -> None:
    """By its function and arguments, or by the name it was given."""
    assert "vanish(3,)" in str(own_pool.submit(bad_objects.vanish, 3).exception(SOON))
    assert "align 5(3,)" in str(own_pool.submit_step(bad_objects.vanish, 3, name="align 5").exception(SOON))


@pytest.mark.parametrize(
    "options",
    [
        {"cpus": 0}, {"cpus": 1.5}, {"cpus": True}, {"memory": "4 apples"}, {"memory": -1}, {"gpus": -1},
        {"timeout": 0}, {"timeout": -1}, {"timeout": "5"}, {"retries": -1}, {"retries": "2"}, {"name": 5},
        {"after": None}, {"after": 5}, {"after": "abc"}, {"after": [None]},
    ],
    ids=str,
)  # fmt: skip
def test_values_that_make_no_sense_are_refused_at_once(pool: StepPool, options: Any) -> None:
    """UsageError names the option; nothing is started."""
    (name,) = options
    with pytest.raises(UsageError, match=name):
        pool.submit_step(abs, 1, **options)


def test_a_protocols_results_mean_nothing_to_a_pool(pool: StepPool) -> None:
    """ResultOf names a step of a protocol by its number; numbers in a pool are nobody's business."""
    with pytest.raises(UsageError, match="ResultOf"):
        pool.submit(abs, ResultOf(1))
    with pytest.raises(UsageError, match="ResultOf"):
        pool.submit_step(capture, [{"x": ResultOf(1)}])


def test_arguments_that_contain_themselves_and_a_future(pool: StepPool) -> None:
    """There is no end to replacing in it: an error of that step."""
    ring: List[Any] = [pool.submit(abs, -1)]
    ring.append(ring)
    assert isinstance(pool.submit(len, ring).exception(SOON), (RecursionError, MpstepsError))
    assert pool.submit(abs, -1).result(SOON) == 1


# ----------------------------------------------------------------------------- pools that live long


def test_a_pool_forgets_the_steps_of_its_past(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the scheduler keeps for each step is dropped when nothing is in flight: it begins with step 1 again, with
    the same workers, and nothing of before (futures, results, clocks, dead workers) is mixed up with what comes."""
    monkeypatch.setattr(pool_work, "RENEW_AFTER", 50)
    with StepPool(2) as pool:
        pids = set()
        early = pool.submit(abs, -42)
        late: List[futures.Future[Any]] = []
        for _ in range(20):
            fs = [pool.submit(abs, -i) for i in range(30)]
            late.append(pool.submit_step(time.sleep, 0.0, timeout=0.3))
            bad = pool.submit(fail_plainly)
            assert isinstance(pool.submit_step(abs, early, after=fs).result(SOON), int)
            assert isinstance(pool.submit(abs, bad).exception(SOON), StepError)
            assert [f.result(SOON) for f in fs] == list(range(30))
            pids.add(pool.submit(os.getpid).result(SOON))
            assert pool._work._last <= 50 + 35
        assert len(pids) <= 2
        assert [f.result(SOON) for f in late] == [None] * 20
        pool.submit(bad_objects.vanish).exception(SOON)
        held = [pool.submit_step(time.sleep, 0.5, timeout=5) for _ in range(4)]  # over the times of those of before
        assert [f.result(SOON) for f in held] == [None] * 4
        assert pool.submit(operator.neg, late[0].result() or 1).result(SOON) == -1


def test_numbers_that_come_again_are_not_taken_for_those_of_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short steps follow their prerequisites into the same lane, where the worker looks at numbers only: a step whose
    prerequisite fails is not run because, long ago, a step with that number went well in this worker."""
    monkeypatch.setattr(pool_work, "RENEW_AFTER", 20)
    with StepPool(1) as pool:
        for good in reversed(range(21)):  # so many of the chain go well: those with higher numbers did before
            list(pool.map(pass_unless, range(5), [-1] * 5))  # durations are learned anew
            head = pool.submit(time.sleep, 0.01)  # until all of them are there
            chain = [pool.submit_step(pass_unless, 7, 7 if good == 0 else -1, after=[head])]
            for k in range(1, 20):
                chain.append(pool.submit(pass_unless, chain[-1], 7 if good == k else -1))
            futures.wait(chain, SOON)
            assert pool._work._last <= 26
            assert [f.result(0) for f in chain[:good]] == [7] * good
            assert [type(f.exception(0)) for f in chain[good:]] == ([ValueError] + [StepError] * 19)[: 20 - good]


@pytest.mark.versions
def test_steps_follow_each_other_across_lanes_after_a_new_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ends of steps are put in order by who knows the steps of now."""
    monkeypatch.setattr(pool_work, "RENEW_AFTER", 200)
    with StepPool(2) as pool:
        for layers in (60, 10, 120, 300):
            row: List[futures.Future[Any]] = []
            found = []
            for _ in range(layers):
                row = [pool.submit_step(abs, -1, after=row) for _ in range(4)]
                found += row
            assert [f.result(SOON) for f in found] == [1] * len(found)
            coordinator = pool._work._coordinator
            until(lambda c=coordinator: not c.scheduler.open_steps)
            assert coordinator._in_order._in_flight == coordinator.scheduler.is_in_flight


def test_a_number_that_comes_again_has_no_time_running(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of a step that ended long ago must not end the step that has its number now."""
    monkeypatch.setattr(pool_work, "RENEW_AFTER", 1)
    with StepPool(1) as pool:
        assert pool.submit_step(abs, -1, timeout=0.3).result(SOON) == 1
        assert pool.submit(time.sleep, 0.6).result(SOON) is None
        assert pool._work._last == 1


def test_a_pool_that_is_never_idle_goes_on(monkeypatch: pytest.MonkeyPatch, gate: Gate) -> None:
    """As long as one step is in flight, nothing is forgotten."""
    monkeypatch.setattr(pool_work, "RENEW_AFTER", 10)
    with StepPool(2) as pool:
        held = gate.hold(pool)
        chained = pool.submit_step(abs, -7, after=[held])
        assert list(pool.map(abs, range(100))) == list(range(100))
        assert pool._work._last > 100
        gate.open()
        assert chained.result(SOON) == 7
        until(lambda: pool.submit(abs, 1).result(SOON) and pool._work._last < 10)
