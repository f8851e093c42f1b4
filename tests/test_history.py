"""What the records of a journal add up to, session after session."""

from __future__ import annotations

import copy
import pickle

import pytest

from mpsteps._history import replay
from mpsteps._journal import JournalHeader, JournalWriter, pack_bytes, read_journal
from mpsteps.errors import JournalError


def session(**params):
    return ["protocol", {"name": "P", "class": "m.P", "params": params, "python": "3.8", "host": "h", "pid": 1}]


def inserted(step_id, digest, prerequisites=()):
    return ["inserted", step_id, f"step_{digest[0]}", "[]", digest, list(prerequisites), {}]


def started(*ids, attempt=1, worker=77):
    return ["started", worker, attempt, 100.0, list(ids)]


def finished(*ids, worker=77):
    return ["finished", worker, 110.0, [[step_id, 1.5, 1.25, 2048] for step_id in ids]]


def statuses(history):
    return {step_id: step.status for step_id, step in history.steps.items()}


def available(history):
    return {digest: [(step.session, step.id) for step in steps] for digest, steps in history.finished_by_digest.items()}


def doubtful(history):
    return [(step.session, step.id, step.digest) for step in history.in_doubt]


def test_an_empty_journal_is_a_new_run():
    history = replay([], JournalHeader("P"))
    assert (history.status, history.steps, history.sessions) == ("new", {}, [])
    assert history.header.protocol == "P"


def test_a_finished_step_has_its_story():
    changes = pickle.dumps({"a": 1})
    history = replay(
        [
            session(n=1),
            ["inserted", 1, "ctfStep", '["m.mrc"]', "d1", [], {"wait": True}],
            started(1),
            ["result", 1, {"files": ["extra/m.txt"]}],
            ["changed", 1, pack_bytes(changes)],
            finished(1),
            ["ended", "finished", 120.0, ""],
        ]
    )
    step = history.steps[1]
    assert (step.func, step.args, step.digest, step.options) == ("ctfStep", '["m.mrc"]', "d1", {"wait": True})
    assert (step.status, step.attempts, step.worker, step.started) == ("finished", 1, 77, 100.0)
    assert (step.seconds, step.cpu_seconds, step.peak_kib, step.session, step.order) == (1.5, 1.25, 2048, 1, 1)
    assert (step.result, step.changes, step.error) == ({"files": ["extra/m.txt"]}, changes, None)
    assert (history.status, history.error, history.ended) == ("finished", "", 120.0)
    assert history.sessions[0]["params"] == {"n": 1}


def test_every_way_a_step_can_end_is_told():
    error = {"type": "ValueError", "message": "no", "traceback": "Traceback..."}
    history = replay(
        [
            session(),
            *(inserted(n, f"d{n}") for n in range(1, 8)),
            started(1, 2, 3, 5, 6),
            finished(1),
            ["failed", 2, 77, 1, 103.0, error],
            ["lost", 3, 77, 1, 104.0, {"message": "killed by SIGSEGV", "exitcode": -11}],
            ["skipped", [4], "step 2 failed"],
            ["aborted", [5]],
            ["ended", "failed", 120.0, "step 2 failed: no"],
        ]
    )
    assert statuses(history) == {
        1: "finished", 2: "failed", 3: "lost", 4: "skipped", 5: "aborted", 6: "running", 7: "new"
    }  # fmt: skip
    assert history.steps[2].error == error
    assert history.steps[2].seconds == 3.0
    assert history.steps[3].error["exitcode"] == -11
    assert history.steps[4].error == {"message": "step 2 failed"}
    assert (history.status, history.error) == ("failed", "step 2 failed: no")
    assert doubtful(history) == [(1, 6, "d6")]
    assert available(history) == {"d1": [(1, 1)]}


def test_a_retried_step_is_told_by_its_last_attempt():
    history = replay(
        [
            session(),
            inserted(1, "d1"),
            started(1),
            ["changed", 1, pack_bytes(b"of the first attempt")],
            ["failed", 1, 77, 1, 101.0, {"message": "no"}],
            started(1, attempt=2, worker=78),
            finished(1, worker=78),
        ]
    )
    step = history.steps[1]
    assert (step.status, step.attempts, step.worker, step.error, step.changes) == ("finished", 2, 78, None, None)


def test_an_attempt_begins_with_nothing_of_the_one_before():
    """Its worker died with a batch, and only the first step of that is recorded as lost."""
    records = [session(), inserted(1, "d1"), started(1), ["changed", 1, "gA=="], ["result", 1, {"value": "gA=="}]]
    step = replay([*records, started(1), finished(1)]).steps[1]
    assert (step.changes, step.result) == (None, None)


def test_finished_steps_remember_the_order_in_which_they_finished():
    """Changes of self have to be applied in this order, over all sessions."""
    history = replay(
        [
            session(), inserted(1, "a"), inserted(2, "b"), started(1, 2), finished(2), finished(1),
            session(), inserted(1, "a"), ["kept", 1, "a"], inserted(2, "c"), inserted(3, "b"), ["kept", 3, "b"],
            started(2), finished(2),
        ]
    )  # fmt: skip
    assert sorted(history.steps, key=lambda n: history.steps[n].order) == [3, 1, 2]


def test_a_resumed_run_takes_over_by_digest_under_new_ids():
    history = replay(
        [
            session(), inserted(1, "a"), inserted(2, "b", [1]), started(1), ["result", 1, {"value": "gA=="}],
            ["changed", 1, "gA=="], finished(1),
            session(), inserted(1, "new"), inserted(2, "a"), ["kept", 2, "a"], inserted(3, "b", [2]),
        ]
    )  # fmt: skip
    assert statuses(history) == {1: "new", 2: "finished", 3: "new"}
    step = history.steps[2]
    assert (step.id, step.session, step.started, step.seconds, step.worker) == (2, 2, 100.0, 1.5, 77)
    assert (step.result, step.changes) == ({"value": "gA=="}, b"\x80")
    assert available(history) == {"a": [(2, 2)]}
    assert len(history.sessions) == 2
    assert history.status == "running"


def test_equal_steps_are_taken_over_one_for_one():
    first = [session(), inserted(1, "a"), inserted(2, "a"), started(1, 2), finished(1), finished(2)]
    again = [session(), inserted(1, "a"), ["kept", 1, "a"]]
    assert available(replay(first)) == {"a": [(1, 1), (1, 2)]}
    assert available(replay(first + again)) == {"a": [(2, 1), (1, 2)]}
    with pytest.raises(JournalError, match="kept"):
        replay([*first, *again, inserted(2, "a"), ["kept", 2, "a"], inserted(3, "a"), ["kept", 3, "a"]])


def test_a_resume_that_is_killed_while_it_inserts_forgets_nothing():
    first = [session(), inserted(1, "a"), inserted(2, "b"), inserted(3, "c"), started(1, 2, 3), finished(1, 2)]
    resume = [session(), inserted(1, "a"), ["kept", 1, "a"], inserted(2, "b"), ["kept", 2, "b"], inserted(3, "c")]
    for cut in range(len(resume) + 1):
        history = replay(first + resume[:cut])
        assert set(available(history)) == {"a", "b"}
        assert [digest for _, _, digest in doubtful(history)] == ["c"]


def test_a_step_in_doubt_stays_so_until_it_is_run_again():
    records = [session(), inserted(1, "a"), started(1)]
    assert doubtful(replay(records)) == [(1, 1, "a")]
    records += [session(), inserted(5, "a"), ["doubt", [5]], ["ended", "failed", 1.0, "in doubt"]]
    history = replay(records)
    assert doubtful(history) == [(1, 1, "a")]
    assert history.steps[5].doubted
    records += [session(), inserted(5, "a"), started(5)]
    assert doubtful(replay(records)) == [(3, 5, "a")], "in doubt because of this session now"
    records += [finished(5)]
    assert doubtful(replay(records)) == []


def test_a_step_that_is_run_again_is_no_longer_finished_by_its_old_record():
    """Its result files had vanished; while it runs again it is in doubt."""
    records = [session(), inserted(1, "a"), started(1), finished(1), session(), inserted(1, "a"), started(1)]
    history = replay(records)
    assert available(history) == {}
    assert doubtful(history) == [(2, 1, "a")]
    assert available(replay([*records, finished(1)])) == {"a": [(2, 1)]}


def test_going_back_to_earlier_form_values_does_not_revive_overwritten_steps():
    """Step a2 wrote over the files of a1: a third session with the first values has to run a1 again."""
    records = [session(x=1), inserted(1, "a1"), started(1), finished(1)]
    changed = [session(x=2), inserted(1, "a2")]
    assert set(available(replay(records + changed))) == {"a1"}, "nothing has run yet"
    changed += [started(1), finished(1)]
    assert set(available(replay(records + changed))) == {"a2"}


def test_with_the_same_form_values_steps_not_inserted_again_yet_stay_finished():
    """A streaming protocol inserts its later steps while it runs."""
    records = [session(x=1), inserted(1, "a"), inserted(2, "b"), started(1, 2), finished(1, 2)]
    records += [session(x=1), inserted(1, "c"), started(1), finished(1)]
    assert set(available(replay(records))) == {"a", "b", "c"}


def test_prerequisites_added_later_are_those_that_count():
    history = replay([session(), inserted(1, "a"), inserted(2, "b"), inserted(2, "b2", [1])])
    assert (history.steps[2].prerequisites, history.steps[2].digest) == ([1], "b2")


@pytest.mark.parametrize(
    "record",
    [
        [],
        ["unheard-of"],
        [["list"], 1],
        [3],
        ["protocol"],
        ["protocol", 3],
        ["inserted", 1],
        ["inserted", "1", "f", "[]", "d", [], {}],
        ["inserted", True, "f", "[]", "d", [], {}],
        ["inserted", 0, "f", "[]", "d", [], {}],
        ["inserted", 2**63, "f", "[]", "d", [], {}],
        ["inserted", 2, "f", "[]", ["d"], [], {}],
        ["inserted", 2, "f", "[]", "d", ["x"], {}],
        ["inserted", 2, "f", "[]", "d", 5, {}],
        ["steps", 2, "f", [[1]], [[], []]],
        ["steps", 2, "f", [[1]], [["x"]]],
        ["steps", 2, "f", [1], [[]]],
        ["steps", 2**63, "f", [[1]], [[]]],
        ["steps", 0, "f", [[1]], [[]]],
        ["done", 1, 0.0, [9], [0], [0]],
        ["done", 1, 0.0, [1], [0], []],
        ["done", 1, 0.0, [1], ["x"], [0]],
        ["started", 1, 1, 0.0, [9]],
        ["started", 1, "x", 0.0, [1]],
        ["started", 1, 1, 0.0, [[]]],
        ["finished", 1, 0.0, [[9, 0, 0, 0]]],
        ["finished", 1, 0.0, [[1, 0]]],
        ["result", 9, {}],
        ["result", 1, 3],
        ["changed", 1, "no base64"],
        ["changed", 1, 5],
        ["failed", 1, 1, None, 0.0, {}],
        ["failed", 1, 1, 1, 0.0, None],
        ["kept", 1, "other"],
        ["ended", "finished", 0.0, "", "more"],
    ],
)
def test_a_record_that_is_not_understood_is_an_error_that_names_it(record):
    """Overlooking a record might run a step twice."""
    with pytest.raises(JournalError, match="record 3 of the journal"):
        replay([session(), inserted(1, "a"), record])
    replay([session(), inserted(1, "a")])


def test_a_step_before_any_session_is_an_error():
    with pytest.raises(JournalError, match="record 1"):
        replay([inserted(1, "a")])


def test_times_that_are_no_numbers_are_unknown():
    unknown = [["started", 1, 1, "nan", [1]], ["finished", 1, None, [[1, "nan", None, None]]]]
    history = replay([session(), inserted(1, "a"), *unknown])
    step = history.steps[1]
    assert (step.started, step.seconds, step.cpu_seconds, step.peak_kib) == (None, None, None, None)


def test_whatever_the_records_are_the_only_error_is_a_journal_error():
    hypothesis = pytest.importorskip("hypothesis")
    st = hypothesis.strategies
    leaf = st.one_of(st.none(), st.booleans(), st.integers(-2, 4), st.floats(), st.text(max_size=3), st.just("a"))
    items = st.lists(leaf, max_size=4)
    value = st.one_of(leaf, items, st.lists(items, max_size=2), st.dictionaries(st.text(max_size=2), leaf, max_size=2))
    kinds = ["protocol", "inserted", "kept", "started", "finished", "result", "changed", "failed", "lost", "skipped"]
    kind = st.sampled_from([*kinds, "steps", "done", "aborted", "doubt", "ended"])
    record = st.tuples(kind, st.lists(value, max_size=6)).map(lambda pair: [pair[0], *pair[1]])
    good = [session(), inserted(1, "a"), started(1), finished(1), session(), inserted(2, "a"), ["kept", 2, "a"]]

    @hypothesis.settings(max_examples=150, deadline=None, database=None)
    @hypothesis.given(st.lists(st.one_of(record, st.sampled_from(good)), max_size=12))
    def fold(records):
        untouched = copy.deepcopy(records)
        try:
            replay(records)
        except JournalError:
            return
        assert repr(records) == repr(untouched)

    fold()


def test_the_journal_of_two_sessions_is_folded_from_the_file(tmp_path):
    path = str(tmp_path / "journal.log")
    with JournalWriter(path, header=JournalHeader("P")) as writer:
        writer.append([session(), inserted(1, "a")])
        writer.append([started(1)])
        writer.append([finished(1), ["changed", 1, pack_bytes(b"x")]])
    with JournalWriter.reopen(path) as writer:
        writer.append([session(), inserted(1, "a"), ["kept", 1, "a"], ["ended", "finished", 2.0, ""]])
    history = read_journal(path).replay()
    assert (history.header.protocol, history.status, history.steps[1].changes) == ("P", "finished", b"x")
