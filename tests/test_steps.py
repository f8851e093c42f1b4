"""mpsteps.steps: what a step is before it runs, @step, ResultOf. Pure: nothing runs here."""

from __future__ import annotations

import datetime
import json

import pytest

from mpsteps import (
    STATUS_FINISHED,
    STATUS_NEW,
    STATUS_RUNNING,
    STATUS_WAITING,
    PrerequisiteError,
    ResultOf,
    UsageError,
    step,
)
from mpsteps._result_of import as_step_ids, put_results, results_used
from mpsteps._step_options import StepOptions, parse_memory
from mpsteps.steps import Step


def make(args=(), **kwargs):
    s = Step("work", "work", tuple(args), **kwargs)
    s._id = 7
    return s


# ------------------------------------------------------------------------------------------- prerequisites


@pytest.mark.parametrize(
    ("value", "ids"),
    [
        (3, (3,)), ([1, 2], (1, 2)), ((2, 1), (2, 1)), ([], ()), (range(1, 4), (1, 2, 3)), ({4}, (4,)),
        ((i for i in (1, 2)), (1, 2)), ([2, 2, 1, 2], (2, 1)),
    ],
)  # fmt: skip
def test_prerequisites_are_given_as_one_id_or_any_collection_of_ids(value, ids):
    """Each id once, in the order in which they were given."""
    assert as_step_ids(value) == ids


def test_prerequisites_may_be_integers_of_numpy():
    """A scalar, an array of no dimension, an array, a list of scalars."""
    np = pytest.importorskip("numpy")
    assert as_step_ids(np.int64(3)) == (3,)
    assert as_step_ids(np.array(3)) == (3,)
    assert as_step_ids(np.array([1, 2], dtype=np.int32)) == (1, 2)
    assert as_step_ids([np.uint8(5)]) == (5,)
    assert all(type(i) is int for i in as_step_ids(np.array([1, 2])))


@pytest.mark.parametrize("value", ["1", b"1", 1.0, True, [True], ["2"], [[1]], None, [None], object()])
def test_what_is_no_step_id_is_refused_and_shown(value):
    """Also a text, a float and a boolean, which Python would take for numbers here and there."""
    with pytest.raises(PrerequisiteError, match="the id \\(an integer\\) that _insertFunctionStep returned"):
        as_step_ids(value)


@pytest.mark.parametrize("value", [0, -1, [0]])
def test_step_ids_start_at_one(value):
    """0 and negative numbers do not count from the end."""
    with pytest.raises(PrerequisiteError, match="start at 1"):
        as_step_ids(value)


def test_prerequisites_can_be_added_and_replaced_before_the_run():
    """The list that a step gives is a copy with Scipion's isEmpty()."""
    s = make()
    assert s.getPrerequisites().isEmpty()
    s.addPrerequisites(1, 2)
    s.addPrerequisites(2, 3)
    assert s.getPrerequisites() == [1, 2, 3]
    s.setPrerequisites(5)
    assert s.getPrerequisites() == [5]
    s.getPrerequisites().append(9)
    assert s.getPrerequisites() == [5]


def test_a_step_cannot_be_made_its_own_prerequisite():
    """The message names the step."""
    with pytest.raises(PrerequisiteError, match="7 - work cannot wait for itself"):
        make().addPrerequisites(7)


# -------------------------------------------------------------------------------------- what a step tells


def test_a_steps_arguments_are_told_as_json_with_null_for_objects():
    """As Scipion's argsStr."""
    s = make((1, "a", [2.5], object()))
    assert json.loads(s.argsStr.get()) == [1, "a", [2.5], None]
    assert s.getArgs()[:2] == (1, "a")


def test_arguments_that_json_cannot_write_do_not_make_argsStr_fail():
    """Keys that are no texts, numbers that are no JSON, circles."""
    circle = []
    circle.append(circle)
    assert make(({(1, 2): 3},)).argsStr.get()
    assert make((circle,)).argsStr.get()


def test_a_new_step_has_no_times_no_result_and_no_error():
    """Nothing is made up."""
    s = make()
    assert (s.getStatus(), s.isNew(), s.isActive()) == (STATUS_NEW, True, False)
    assert (s.result, s.error, s.getErrorMessage()) == (None, None, "")
    assert not s.initTime.hasValue()
    assert not s.endTime.hasValue()
    assert s.getElapsedTime() == datetime.timedelta()
    assert s.getElapsedTime(datetime.timedelta(1)) == datetime.timedelta(1)
    assert str(s) == "7 - work"
    assert s.funcName == "work"
    assert s.getObjId() == s.getIndex() == 7


def test_the_elapsed_time_of_a_step_is_end_minus_start():
    """And the times can be read as dates."""
    s = make()
    s._started, s._ended = 1_000_000_000.25, 1_000_000_002.75
    assert s.getElapsedTime().total_seconds() == 2.5
    assert (s.endTime.datetime() - s.initTime.datetime()).total_seconds() == 2.5


def test_only_waiting_and_new_can_be_set_by_hand():
    """A step that has started has a status of its own."""
    s = make(wait=True)
    assert s.isWaiting()
    s.setStatus(STATUS_NEW)
    s.setStatus(STATUS_NEW)
    assert s.isNew()
    s.setStatus(STATUS_WAITING)
    assert s.isWaiting()
    with pytest.raises(UsageError, match="7 - work is waiting: its status cannot be set to 'finished'"):
        s.setStatus(STATUS_FINISHED)
    s._status = STATUS_RUNNING
    with pytest.raises(UsageError, match="cannot be set to 'new' by hand"):
        s.setStatus(STATUS_NEW)


# ------------------------------------------------------------------------------------------------ ResultOf


def test_results_are_found_and_replaced_at_any_depth():
    """In lists, tuples and dicts; everything else stays as it is."""
    args = (ResultOf(1), [ResultOf(2), {"k": (ResultOf(3), 5)}], "x")
    assert list(results_used(args)) == [1, 2, 3]
    assert put_results(args, lambda i: i * 10) == (10, [20, {"k": (30, 5)}], "x")


def test_result_of_compares_by_its_step():
    """It is a value."""
    assert ResultOf(3) == ResultOf(3) != ResultOf(4)
    assert len({ResultOf(3), ResultOf(3)}) == 1
    assert repr(ResultOf(3)) == "ResultOf(3)"
    with pytest.raises(PrerequisiteError):
        ResultOf("3")


# ------------------------------------------------------------------------------------------------- @step


def test_step_leaves_the_method_as_it_is_but_for_the_declaration():
    """Calling it by hand does what it did before."""

    @step(cpus=2, memory="1.5 GB", gpus=1, timeout=10, retries=3, local=True)
    def work(self, x):
        return x + 1

    assert work(None, 1) == 2
    assert work.__mpsteps__ == StepOptions(2, 1_500_000_000, 1, 10, 3, True)


@pytest.mark.parametrize(
    ("text", "size"),
    [(None, 0), (1024, 1024), ("512 MiB", 512 * 2**20), ("4GB", 4 * 10**9), ("1.5 k", 1536), ("7", 7), ("2 B", 2)],
)
def test_memory_is_bytes_or_a_number_with_a_unit(text, size):
    """GB counts in thousands, GiB in 1024."""
    assert parse_memory(text) == size


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"cpus": 0}, "cpus"), ({"cpus": 1.5}, "cpus"), ({"cpus": True}, "cpus"), ({"gpus": -1}, "gpus"),
        ({"retries": -1}, "retries"), ({"timeout": 0}, "timeout"), ({"timeout": "5"}, "timeout"),
        ({"timeout": float("nan")}, "timeout"), ({"memory": "4 apples"}, "memory"), ({"memory": -1}, "memory"),
        ({"memory": True}, "memory"),
    ],
)  # fmt: skip
def test_a_declaration_that_makes_no_sense_is_refused_by_name(options, word):
    """At once, where the author wrote it."""
    with pytest.raises(UsageError, match=f"{word} of a step must be"):
        step(**options)


def test_step_without_parentheses_says_that_they_are_missing():
    """`@step` above a method is the likely slip."""
    with pytest.raises(UsageError, match="@step needs parentheses"):

        @step
        def work(self):
            """Never made."""
