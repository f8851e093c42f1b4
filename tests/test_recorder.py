"""What the journal says of steps, and that a reader recognises them by it as the run does."""

from __future__ import annotations

import types
from typing import Any, List, Tuple

import pytest

from mpsteps._journal import JournalHeader, JournalWriter, read_journal
from mpsteps._recorder import Recorder
from mpsteps._result_of import ResultOf
from mpsteps.constants import STATUS_WAITING
from mpsteps.steps import Step

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies

SESSION = {"name": "P", "class": "m.P", "params": {}, "python": "3.8", "host": "h", "pid": 1}


def recorded(steps: List[Step], path: str) -> Tuple[Recorder, Any, List[Any]]:
    """The recorder of a run with these steps, what a reader makes of its journal, and the kinds of its records."""
    for number, step in enumerate(steps, 1):
        step._id = number
    recorder = Recorder(types.SimpleNamespace(_steps=steps))
    with JournalWriter(path, header=JournalHeader("P")) as journal:
        recorder.use(journal, lambda: None)
        recorder.session(SESSION)
        recorder.inserted(steps)
        recorder.commit()
    found = read_journal(path)
    return recorder, found.replay(), [record[0] for record in found.records]


atoms = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(max_size=3), st.just("x" * 300),
    st.just("file-\udcff.mrc"), st.just(2**63), st.just(-0.0), st.just(10**400),
)  # fmt: skip
nested = st.recursive(
    atoms,
    lambda v: st.one_of(
        st.lists(v, max_size=3), st.lists(v, max_size=3).map(tuple), st.dictionaries(st.text(max_size=2), v, max_size=2)
    ),
    max_leaves=5,
)
arguments = st.lists(st.one_of(nested, st.just(ResultOf(1))), max_size=3).map(tuple)


@st.composite
def graphs(draw: Any) -> List[Step]:
    steps: List[Step] = []
    for number in range(1, draw(st.integers(1, 8)) + 1):
        needs = tuple(draw(st.sets(st.integers(1, number - 1), max_size=3))) if number > 1 else ()
        func: Any = draw(st.sampled_from(["a", "b", "b", len]))
        name = func if isinstance(func, str) else "len"
        wait, interactive, gpu = (draw(st.integers(0, 9)) == 0 for _ in range(3))
        steps.append(Step(func, name, draw(arguments), needs, wait, interactive, not gpu))
    return steps


def test_a_reader_recognises_every_step_as_the_run_does(tmp_path: Any) -> None:
    """Ordinary steps are written without their digests: what stands in the journal must lead to the same ones."""
    count = 0

    @hypothesis.settings(max_examples=150, deadline=None, database=None)
    @hypothesis.given(graphs())
    def check(steps: List[Step]) -> None:
        nonlocal count
        count += 1
        recorder, history, _ = recorded(steps, str(tmp_path / f"journal-{count}.log"))
        assert sorted(history.steps) == list(range(1, len(steps) + 1))
        for step in steps:
            record = history.steps[step._id]
            assert record.digest == recorder.digest(step), step
            assert (record.func, record.prerequisites) == (step._funcName, list(step._prerequisites))
            assert record.options.get("wait", False) == (step._status == STATUS_WAITING)

    check()


@pytest.mark.parametrize("arg", [float("nan"), [1] * 100, {1: 2}, {"x" * 201: 1}, [[[[[[1]]]]]], b"x", None])
def test_what_json_does_not_bring_back_has_its_digest_written_down(arg: Any, tmp_path: Any) -> None:
    """Numbers of thousands of digits, long and deep lists, keys that are no texts."""
    step = Step("a", "a", (10**5000 if arg is None else arg,))
    recorder, history, kinds = recorded([step], str(tmp_path / "journal.log"))
    assert kinds == ["protocol", "inserted"]
    assert history.steps[1].digest == recorder.digest(step)


def test_ordinary_steps_share_a_record_and_cost_no_digest(tmp_path: Any) -> None:
    """A million of them are one record a method; only what JSON cannot hold, or what is special, has its own."""
    steps = [Step("a", "a", (i, "m.mrc"), (i,) if i else ()) for i in range(3)]
    steps += [Step("b", "b", (0.5,)), Step("b", "b", (b"raw",)), Step("b", "b", ()), Step(len, "len", ("x",))]

    recorder, history, kinds = recorded(steps, str(tmp_path / "journal.log"))

    assert kinds == ["protocol", "steps", "steps", "inserted", "steps", "inserted"]
    assert history.steps[3].args == [2, "m.mrc"]
    assert set(recorder.digests) == {5, 7}


def test_the_digest_of_a_long_chain_is_found_without_recursion(tmp_path: Any) -> None:
    """The last of 50,000 steps is asked for first."""
    steps = [Step("a", "a", (0,), (i,) if i else ()) for i in range(50_000)]
    recorder, history, _ = recorded(steps, str(tmp_path / "journal.log"))

    assert recorder.digest(steps[-1]) == history.steps[50_000].digest
    assert len({record.digest for record in history.steps.values()}) == 50_000


def test_steps_that_left_nothing_share_a_record(tmp_path: Any) -> None:
    """Times are kept to the microsecond."""
    steps = [Step("a", "a", (i,)) for i in range(3)]
    path = str(tmp_path / "journal.log")
    recorder, _, _ = recorded(steps, path)
    with JournalWriter.reopen(path) as journal:
        recorder.use(journal, lambda: None)
        recorder.started(77, 1, (1, 2, 3))
        recorder.finished_all(77, (1, 3), [0.25, 1.5e-6], [0.125, 0.0])
        recorder.commit()

    found = read_journal(path).replay().steps

    assert [(s.status, s.worker, s.seconds, s.cpu_seconds) for s in found.values()] == [
        ("finished", 77, 0.25, 0.125), ("running", 77, None, None), ("finished", 77, 1e-6, 0.0),
    ]  # fmt: skip
    assert (found[1].order, found[3].order) == (1, 2)
