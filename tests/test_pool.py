"""StepPool as any executor: what the standard library promises of `concurrent.futures.Executor`, and what it does not.

Functions that cross to a worker are in `pool_steps` and `bad_objects`; lambdas and closures are used where it is about
them.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import operator
import os
import sys
import threading
import traceback
import weakref
from concurrent import futures
from pathlib import Path
from typing import Any, Callable, Iterator, List, Tuple

import bad_objects
import pytest
from pool_steps import (
    SOON,
    Gate,
    LeavesTrace,
    Thing,
    capture,
    fail_plainly,
    fail_with_a_cause,
    full_pool,
    nested_executor,
    nested_mp_pool,
    nested_pool,
    until,
    wait_for,
)

from mpsteps import MpstepsError, SerializationError, StepPool, _large_values
from mpsteps._ipc import blocks
from mpsteps.errors import RemoteTraceback


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StepPool]:
    """One for all tests here: they leave it as it was."""
    with full_pool(tmp_path_factory.mktemp("pool")) as pool:
        yield pool


def is_collected(reference: Callable[[], Any]) -> None:
    """The coordinator's thread may let go a moment after it has set the result."""
    until(lambda: (gc.collect(), reference() is None)[1])


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path)
    yield gate
    gate.open()


# --------------------------------------------------------------------------------- submit


def test_a_call_runs_in_another_process(pool: StepPool) -> None:
    """The result is that of the call, and it was not made here."""
    assert pool.submit(pow, 2, 8).result(SOON) == 256
    assert pool.submit(os.getpid).result(SOON) != os.getpid()


def test_keywords_of_any_name_reach_the_function(pool: StepPool) -> None:
    """Also `self` and `fn`, which `submit` itself uses."""
    assert pool.submit(divmod, 7, 2).result(SOON) == (3, 1)
    assert pool.submit(capture, 1, self=2, fn=3, name=4, after=5).result(SOON) == (
        (1,), {"self": 2, "fn": 3, "name": 4, "after": 5},
    )  # fmt: skip
    with pytest.raises(TypeError):
        pool.submit(fn=capture)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        pool.submit()  # type: ignore[call-arg]


def test_what_is_not_callable_is_refused_at_once(pool: StepPool) -> None:
    """Not in a worker, some time later."""
    for bad in (3, None, "abs"):
        with pytest.raises(TypeError, match="runs a callable"):
            pool.submit(bad)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="runs a callable"):
            pool.map(bad, [1])  # type: ignore[arg-type]


@pytest.mark.versions
def test_any_kind_of_callable_can_be_submitted(pool: StepPool) -> None:
    """Lambdas, closures, partials, bound, static and class methods, builtins, classes, callable objects."""
    outer = 10
    assert pool.submit(lambda x: x + outer, 1).result(SOON) == 11
    assert pool.submit(functools.partial(operator.add, 1), 2).result(SOON) == 3
    assert pool.submit(functools.partial(lambda a, b: a - b, b=1), 2).result(SOON) == 1
    assert pool.submit(Thing(5).method).result(SOON) == 5
    assert pool.submit(Thing.of_class).result(SOON) == "Thing"
    assert pool.submit(Thing.static, 1).result(SOON) == 2
    assert pool.submit([1, 2, 2].count, 2).result(SOON) == 2
    assert pool.submit("a-b".split, "-").result(SOON) == ["a", "b"]
    assert pool.submit(int, "7").result(SOON) == 7
    assert pool.submit(Thing, 3).result(SOON).value == 3
    assert pool.submit(Thing(), 3).result(SOON) == 6
    assert pool.submit(dict.fromkeys, "ab").result(SOON) == {"a": None, "b": None}
    assert pool.submit(bad_objects.Unhashable(), 3).result(SOON) == 4


def test_a_closure_is_sent_as_it_is_at_the_time(pool: StepPool) -> None:
    """Not as it was when the same function was sent for the first time."""
    counter = 0

    def read() -> int:
        return counter

    assert pool.submit(read).result(SOON) == 0
    counter = 1
    assert pool.submit(read).result(SOON) == 1


@pytest.mark.parametrize(
    "value",
    [None, True, 10**40, -0.0, "\ud800", b"x" * 100_000, [1, [2, (3, {"a": {4}})]], {(1, 2): None}, ..., Thing.static],
    ids=lambda value: type(value).__name__,
)
def test_values_come_back_as_they_went(pool: StepPool, value: Any) -> None:
    """With their types, however they are packed on the way."""
    back = pool.submit(bad_objects.pass_on, value).result(SOON)
    assert (type(back), repr(back)) == (type(value), repr(value))


def test_containers_that_contain_themselves_travel(pool: StepPool) -> None:
    """Looking for futures in the arguments must end."""
    ring: List[Any] = [1]
    ring.append(ring)
    back = pool.submit(bad_objects.pass_on, ring).result(SOON)
    assert back[1] is back
    table: Any = {}
    table["self"] = [table]
    assert pool.submit(len, table).result(SOON) == 1


@pytest.mark.parametrize("share", [True, False])
def test_arguments_larger_than_a_lane_arrive(share: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lane holds some hundred kilobytes; ten megabytes go past it, or where nothing can be shared through it, both
    ways. (In a pool of its own: it keeps the shared memory for the next ones.)"""
    if not share:
        monkeypatch.setattr(blocks, "CAN_SHARE", False)
        monkeypatch.setattr(_large_values, "usable_memory", lambda: 0)
    data = os.urandom(10_000_000)
    with StepPool(1) as pool:
        assert pool.submit(bad_objects.pass_on, data).result(SOON) == data


def test_many_threads_submit_at_once(pool: StepPool) -> None:
    """Eight threads with a thousand calls each: every one gets its own results, in its own order."""
    results: List[List[int]] = [[] for _ in range(8)]

    def submit_many(k: int) -> None:
        mine = [pool.submit(abs, -k * 1000 - i) for i in range(1000)]
        results[k] = [f.result(SOON) for f in mine]

    threads = [threading.Thread(target=submit_many, args=(k,)) for k in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert results == [[k * 1000 + i for i in range(1000)] for k in range(8)]


def test_a_done_callback_may_submit_more(pool: StepPool) -> None:
    """It runs in the pool's own thread, which must not wait for itself."""
    done: futures.Future[int] = futures.Future()

    def again(f: futures.Future[int]) -> None:
        if f.result() >= 5:
            done.set_result(f.result())
        else:
            pool.submit(operator.add, f.result(), 1).add_done_callback(again)

    pool.submit(abs, 0).add_done_callback(again)
    assert done.result(SOON) == 5


# ------------------------------------------------------------------------------------ map


def test_map_gives_results_in_order(pool: StepPool) -> None:
    """Also of several iterables, of which the shortest ends it."""
    assert list(pool.map(pow, range(10), range(10))) == list(map(pow, range(10), range(10)))
    assert list(pool.map(capture, [], [1])) == []
    assert list(pool.map(operator.add, range(3), iter([1, 2]))) == [1, 3]


@pytest.mark.parametrize("size", [1, 6, 40, 50])
def test_map_in_chunks_of_any_size_gives_the_same(pool: StepPool, size: int) -> None:
    """One step for each call, some, all of them, or more than there are."""
    assert list(pool.map(pow, range(40), range(40), chunksize=size)) == list(map(pow, range(40), range(40)))


@pytest.mark.parametrize("size", [0, -1])
def test_a_chunksize_below_one_is_refused(pool: StepPool, size: int) -> None:
    """At the call, not when the first result is asked for."""
    with pytest.raises(ValueError, match="chunksize"):
        pool.map(abs, [1], chunksize=size)


@pytest.mark.parametrize("size", [1, 2])
def test_map_raises_what_a_call_raised_in_its_place(pool: StepPool, size: int) -> None:
    """The results before it can be taken."""
    results = pool.map(divmod, [1, 1, 1, 1], [2, 3, 0, 5], chunksize=size)
    assert next(results) == (0, 1)
    assert next(results) == (0, 1)
    with pytest.raises(ZeroDivisionError):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


def test_map_times_out(pool: StepPool, gate: Gate) -> None:
    """Results that are there can be taken; waiting for the next one ends with TimeoutError."""
    pool.submit(abs, 1).result(SOON)  # the workers are up
    results = pool.map(wait_for, [os.devnull, os.devnull, gate.path, gate.path, gate.path, gate.path], timeout=0.5)
    assert [next(results), next(results)] == [os.devnull, os.devnull]
    with pytest.raises(futures.TimeoutError):
        next(results)


def test_map_reads_its_arguments_at_once_or_as_far_as_told(pool: StepPool) -> None:
    """`buffersize` bounds how far it reads ahead of what is taken, so that endless iterables can be mapped."""
    read: List[int] = []

    def numbers() -> Iterator[int]:
        for i in range(1_000_000_000):
            read.append(i)
            yield -i

    results = pool.map(abs, numbers(), buffersize=3)
    assert read == [0, 1, 2]
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    assert read == list(range(8))
    assert list(pool.map(abs, range(-5, 0), buffersize=2, chunksize=2)) == [5, 4, 3, 2, 1]
    for bad, error in ((0, ValueError), (-1, ValueError), (2.0, TypeError), ("2", TypeError)):
        with pytest.raises(error, match="buffersize"):
            pool.map(abs, [1], buffersize=bad)  # type: ignore[arg-type]


# ------------------------------------------------------------------- references to objects


def test_the_pool_lets_go_of_a_method_and_its_object(pool: StepPool) -> None:
    """When the step is done, also if nobody kept the future."""
    thing = Thing()
    reference = weakref.ref(thing)
    pool.submit(thing.method)
    del thing
    is_collected(reference)


@pytest.mark.parametrize("function", [bad_objects.pass_on, functools.partial(bad_objects.raise_it, KeyError)])
def test_the_pool_lets_go_of_arguments(pool: StepPool, function: Any) -> None:
    """Of steps that ended well and of steps that failed, while their futures are still held."""
    thing = Thing()
    reference = weakref.ref(thing)
    future = pool.submit(function, thing)
    futures.wait([future], SOON)
    del thing
    is_collected(reference)


def test_the_pool_lets_go_of_results_and_exceptions(pool: StepPool) -> None:
    """They belong to the future, and go with it, without the help of the garbage collector."""
    gc.disable()
    try:
        for call in ((Thing,), (bad_objects.raise_it, bad_objects.WithLock, "x")):
            future = pool.submit(*call)
            futures.wait([future], SOON)
            references = [weakref.ref(future), weakref.ref(future.exception() or future.result())]
            del future
            until(lambda: [r() for r in references] == [None, None])
    finally:
        gc.enable()


@pytest.mark.parametrize("size", [1, 3])
def test_map_keeps_no_result_that_it_has_handed_out(pool: StepPool, size: int) -> None:
    """A loop over large results holds one of them at a time."""
    for thing in pool.map(Thing, range(5), chunksize=size):
        reference = weakref.ref(thing)
        del thing
        is_collected(reference)


def test_a_worker_lets_go_of_arguments_when_the_step_is_done(pool: StepPool, tmp_path: Path) -> None:
    """Not when the next step comes, or the worker ends."""
    path = tmp_path / "collected"
    pool.submit(id, LeavesTrace(str(path))).result(SOON)
    until(path.exists)


# ----------------------------------------------------------------------- wait, as_completed


def finished(value: int = 42) -> futures.Future[int]:
    future: futures.Future[int] = futures.Future()
    future.set_result(value)
    return future


def cancelled() -> futures.Future[int]:
    future: futures.Future[int] = futures.Future()
    future.cancel()
    future.set_running_or_notify_cancel()
    return future


def test_as_completed_gives_each_future_once(pool: StepPool) -> None:
    """Among futures of others, done or cancelled; a future that is given twice comes once."""
    mine = [pool.submit(abs, -i) for i in range(3)]
    others = [finished(), cancelled()]
    assert sorted(map(id, futures.as_completed(mine + others + mine, SOON))) == sorted(map(id, mine + others))


@pytest.mark.parametrize("seconds", [0, 0.05])
def test_as_completed_times_out(pool: StepPool, gate: Gate, seconds: float) -> None:
    """After it has given what was done."""
    held, done = gate.hold(pool), finished()
    completed = futures.as_completed([held, done], seconds)
    assert next(completed) is done
    with pytest.raises(futures.TimeoutError, match=r"1 \(of 2\) futures unfinished"):
        next(completed)


def test_wait_for_the_first(pool: StepPool, gate: Gate) -> None:
    """FIRST_COMPLETED returns while others run."""
    held, quick = gate.hold(pool), pool.submit(abs, -1)
    assert futures.wait([held, quick], SOON, futures.FIRST_COMPLETED) == ({quick}, {held})


def test_wait_for_the_first_exception(pool: StepPool, gate: Gate) -> None:
    """FIRST_EXCEPTION does not return for a result, and does for an exception."""
    held, good, bad = gate.hold(pool), pool.submit(abs, -1), pool.submit(divmod, 1, 0)
    assert futures.wait([held, good, bad], SOON, futures.FIRST_EXCEPTION) == ({good, bad}, {held})


def test_wait_for_all(pool: StepPool) -> None:
    """ALL_COMPLETED counts failed and cancelled ones as well."""
    fs = {pool.submit(divmod, 1, 0), pool.submit(abs, 1), cancelled()}
    assert futures.wait(fs, SOON, futures.ALL_COMPLETED) == (fs, set())


def test_wait_times_out(pool: StepPool, gate: Gate) -> None:
    """And says what is not done."""
    held, done = gate.hold(pool), finished()
    assert futures.wait([held, done], 0.05) == ({done}, {held})


def test_asyncio_awaits_steps(pool: StepPool) -> None:
    """By `run_in_executor` and by `wrap_future`; an exception is raised where it is awaited."""

    async def main() -> List[Any]:
        loop = asyncio.get_running_loop()
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(pool, divmod, 1, 0)
        return await asyncio.gather(
            loop.run_in_executor(pool, abs, -1), asyncio.wrap_future(pool.submit(abs, -2)), asyncio.sleep(0, 3)
        )

    assert asyncio.run(main()) == [1, 2, 3]


# ------------------------------------------------------------------------------ cancelling


def test_a_step_that_has_not_begun_can_be_cancelled(gate: Gate) -> None:
    """One that runs cannot. Those who wait for it learn of it, and it does not run."""
    with StepPool(1) as pool:
        held, pending, behind = gate.hold(pool), pool.submit(os.mkdir, gate.path + ".dir"), pool.submit(abs, -3)
        assert not held.cancel()
        assert pending.cancel()
        assert pending.cancelled()
        gate.open()
        assert futures.wait([held, pending, behind], SOON).not_done == set()
        with pytest.raises(futures.CancelledError):
            pending.result()
        assert behind.result() == 3
    assert not os.path.exists(gate.path + ".dir")


def test_cancelling_at_any_moment_leaves_a_future_done(pool: StepPool) -> None:
    """However it races with the pool: it is cancelled, or it has its result."""
    for i in range(200):
        future = pool.submit(abs, -i)
        was_cancelled = future.cancel()
        assert not futures.wait([future], SOON).not_done
        assert future.cancelled() == was_cancelled
        assert was_cancelled or future.result() == i


# ------------------------------------------------------------------ exceptions of the step


@pytest.mark.versions
def test_the_traceback_of_the_worker_comes_with_the_exception(pool: StepPool) -> None:
    """As its cause, as text with the source line; and in the traceback that Python prints."""
    import traceback

    error = pool.submit(fail_plainly).exception(SOON)
    assert isinstance(error, RuntimeError)
    assert error.args == (123,)
    assert isinstance(error.__cause__, RemoteTraceback)
    assert "raise RuntimeError(123)  # the line that raised" in error.__cause__.tb
    assert "the line that raised" in "".join(traceback.format_exception(type(error), error, error.__traceback__))
    assert "fail_plainly" in [frame.name for frame in traceback.extract_tb(error.__traceback__)]


def test_an_exception_keeps_its_own_cause(pool: StepPool) -> None:
    """`raise ... from` means the same as without a pool."""
    error = pool.submit(fail_with_a_cause).exception(SOON)
    assert isinstance(error, ValueError)
    assert isinstance(error.__cause__, KeyError)
    assert error.__cause__.args == ("inner",)


@pytest.mark.parametrize(
    "kind", [SystemExit, KeyboardInterrupt, StopIteration, GeneratorExit, asyncio.CancelledError, MemoryError]
)
def test_exceptions_with_a_meaning_of_their_own_are_only_told(pool: StepPool, kind: Any) -> None:
    """They end neither the worker nor the pool's thread, and the future is not cancelled by one."""
    pid = pool.submit(os.getpid).result(SOON)
    fs = [pool.submit(bad_objects.raise_it, kind, "told") for _ in range(4)]
    assert [type(f.exception(SOON)) for f in fs] == [kind] * 4
    assert {pool.submit(os.getpid).result(SOON) for _ in range(10)} >= {pid} - {0}
    assert not any(f.cancelled() for f in fs)


@pytest.mark.versions
@pytest.mark.parametrize(("kind", "args"), bad_objects.ODD_EXCEPTIONS, ids=lambda v: getattr(v, "__name__", None))
def test_exceptions_that_pickle_badly_are_told_nevertheless(pool: StepPool, kind: Any, args: Tuple[Any, ...]) -> None:
    """As themselves where that is possible, else as a StepError with their type, message and traceback."""
    error = pool.submit(bad_objects.raise_it, kind, *args).exception(SOON)
    assert isinstance(error, (kind, MpstepsError))
    if isinstance(error, MpstepsError):
        assert kind.__name__ in str(error)
        assert "raise kind(*args)" in str(error.__cause__)
    assert pool.submit(abs, -1).result(SOON) == 1


def test_a_keyword_only_exception_is_told_with_its_message(pool: StepPool) -> None:
    """pickle cannot make it again from its arguments: there are none."""
    error = pool.submit(lambda: bad_objects.raise_it(functools.partial(bad_objects.KeywordOnly, path="x.mrc")))
    assert "cannot read x.mrc" in str(error.exception(SOON))


# ------------------------------------------------------------- what cannot travel, and how


@pytest.mark.parametrize(
    "bad", [bad_objects.ErrorAtPickle, bad_objects.ExitAtPickle, threading.Lock], ids=lambda kind: kind.__name__
)
def test_an_argument_that_cannot_be_packed_is_named(pool: StepPool, bad: Any) -> None:
    """By its position or its keyword, on that future alone."""
    error = pool.submit(capture, 1, bad(), 2).exception(SOON)
    assert isinstance(error, SerializationError)
    assert error.part.startswith("argument 2")
    assert "argument 2" in str(error)
    error = pool.submit(capture, 1, key=bad()).exception(SOON)
    assert isinstance(error, SerializationError)
    assert "argument key=" in str(error)
    assert pool.submit(abs, -1).result(SOON) == 1


def test_a_function_that_cannot_be_packed_is_named(pool: StepPool) -> None:
    """A closure over a lock, say; also one whose attributes raise."""
    lock = threading.Lock()
    error = pool.submit(lambda: lock).exception(SOON)
    assert isinstance(error, SerializationError)
    assert error.part == "function"
    assert "lambda" in str(error)
    with pytest.raises(RuntimeError, match="error in getattr"):
        pool.submit(bad_objects.ErrorAtGetattr())
    assert pool.submit(abs, -1).result(SOON) == 1


@pytest.mark.parametrize("bad", [bad_objects.ErrorAtUnpickle, bad_objects.ExitAtUnpickle], ids=lambda k: k.__name__)
def test_an_argument_that_cannot_be_opened_is_an_error_of_its_step(pool: StepPool, bad: Any) -> None:
    """The worker survives it."""
    error = pool.submit(capture, bad()).exception(SOON)
    assert isinstance(error, SerializationError)
    assert "arguments" in str(error)
    assert pool.submit(abs, -1).result(SOON) == 1


@pytest.mark.parametrize(
    "bad",
    [
        bad_objects.ErrorAtPickle, bad_objects.ExitAtPickle, bad_objects.ErrorAtUnpickle, bad_objects.ExitAtUnpickle,
        bad_objects.ErrorElsewhere, bad_objects.ExitElsewhere, threading.Lock,
    ],
    ids=lambda kind: kind.__name__,
)  # fmt: skip
def test_a_result_that_cannot_travel_is_an_error_of_its_step(pool: StepPool, bad: Any) -> None:
    """Wherever it fails: packed or tried in the worker, or opened here."""
    error = pool.submit(bad_objects.make, bad).exception(SOON)
    assert isinstance(error, SerializationError)
    assert error.part == "result"
    assert "result" in str(error)
    assert pool.submit(abs, -1).result(SOON) == 1


@pytest.mark.parametrize("deep", [False, True])
def test_an_open_file_does_not_travel(pool: StepPool, deep: bool, tmp_path: Path) -> None:
    """A copy of its content would pass for the file: what is written to that is lost."""
    path = tmp_path / "file"
    path.write_text("content")
    with path.open() as file:
        error = pool.submit(len, [file] if deep else file).exception(SOON)
        assert isinstance(error, SerializationError)
        assert "argument 1" in str(error)
    error = pool.submit(lambda: [path.open()] if deep else path.open()).exception(SOON)
    assert isinstance(error, SerializationError)
    assert error.part == "result"
    assert "open file" in str(error)


def test_what_holds_a_standard_stream_travels(pool: StepPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the worker's there: progress bars and handlers of loggers hold one."""
    monkeypatch.setattr(sys, "stderr", sys.__stderr__)  # pytest has put others there
    monkeypatch.setattr(sys, "stdout", sys.__stdout__)
    thing = Thing([sys.stderr, sys.stdout])
    assert pool.submit(lambda thing: [s.fileno() for s in thing.value], thing).result(SOON) == [2, 1]


def test_the_traceback_of_a_function_that_was_an_argument_says_where_it_stands(pool: StepPool) -> None:
    """Not "<dynamic-code>", as cloudpickle would have it."""

    def fails() -> None:
        raise ValueError("here")

    error = pool.submit(lambda function: function(), fails).exception(SOON)
    assert __file__ in "".join(traceback.format_exception(type(error), error, error.__traceback__))


# -------------------------------------------------------------------------- pools in steps


@pytest.mark.versions
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python 3.12 warns of fork in a process with threads
@pytest.mark.parametrize("function", [nested_pool, nested_executor, nested_mp_pool], ids=lambda f: f.__name__)
def test_a_step_may_have_a_pool_of_its_own(pool: StepPool, function: Any) -> None:
    """Workers are no daemons."""
    assert pool.submit(function, 4).result(SOON) == [4, 3, 2, 1]
