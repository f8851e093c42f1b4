"""Write-back, first version: what a step changes on `self` is there for later steps and for the protocol.

Each case runs inline as well, which is the reference for what a protocol means. In worker processes the step that looks
is made to run in the same worker as the one that writes (one worker) and in another one (two workers that meet).
"""

from __future__ import annotations

import copy
import os
import socket
import threading

import pytest
from protocols import Custom, meet, wait_until

from mpsteps import STATUS_FAILED, STATUS_FINISHED, Listener, SerializationError, step

PLACES = pytest.mark.parametrize("place", ["inline", "same worker", "another worker"])


class Thing:
    """A helper object with attributes."""

    def __init__(self, x):
        self.x = x
        self.items = []

    def __eq__(self, other):
        return isinstance(other, Thing) and vars(other) == vars(self)


class Owned:
    """A helper that knows its protocol."""

    def __init__(self, protocol):
        self.protocol = protocol
        self.count = 0


class Writes(Custom):
    classList = []
    classTable = {"a": 1}

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.items = ["start"]
        self.nested = {"a": {"b": [1]}, "c": 0}
        self.colours = {"red"}
        self.number = 1
        self.gone = "still here"
        self.thing = Thing(1)
        self.owned = Owned(self)
        self.matrix = [[0, 0], [0, 0]]
        self.array = None

    def assign(self):
        self.number = 7
        self.fresh = ("new", 1)

    def append(self):
        self.items.append("a")
        self.items += ["b"]

    def fill(self):
        self.nested["d"] = {"e": 5}
        self.nested["c"] += 1
        del self.nested["a"]

    def change_deep(self):
        self.nested["a"]["b"].append(2)
        self.matrix[1][0] = 5

    def unite(self):
        self.colours.add("blue")
        self.colours.discard("red")

    def delete(self):
        del self.gone

    def set_params(self):
        self.n.set(99)
        self.notes.set("other")

    def change_object(self):
        self.thing.x = 2
        self.thing.items.append("i")

    def change_owned(self):
        self.owned.count += 1
        self.number = 10 if self.owned.protocol is self else -1

    def replace_list(self):
        self.items = ["all", "new"]

    def shorten_list(self):
        self.items.clear()
        self.items.append("only")

    def sort_list(self):
        self.items.extend(["c", "b"])
        self.items.sort()

    def use_class_list(self):
        self.classList.append("x")
        self.classTable["b"] = 2

    def set_none(self):
        self.items = None

    def set_class_instance(self):
        self.thing = Thing([1, 2])

    def set_attribute_by_name(self):
        setattr(self, "by_name", 3)

    def two_names(self):
        self.alias = self.items
        self.alias.append("through alias")

    def remember(self, names):
        self.seen = {name: getattr(self, name, "absent") for name in names}

    def meet(self, folder, name):
        meet(folder, name, 2)


EXPECTED = {
    "assign": {"number": 7, "fresh": ("new", 1)},
    "append": {"items": ["start", "a", "b"]},
    "fill": {"nested": {"c": 1, "d": {"e": 5}}},
    "change_deep": {"nested": {"a": {"b": [1, 2]}, "c": 0}, "matrix": [[0, 0], [5, 0]]},
    "unite": {"colours": {"blue"}},
    "delete": {"gone": "absent"},
    "change_object": {"thing": "thing 2 ['i']"},
    "change_owned": {"number": 10, "owned": "owned 1"},
    "replace_list": {"items": ["all", "new"]},
    "shorten_list": {"items": ["only"]},
    "sort_list": {"items": ["b", "c", "start"]},
    "use_class_list": {"classList": ["x"], "classTable": {"a": 1, "b": 2}},
    "set_none": {"items": None},
    "set_class_instance": {"thing": "thing [1, 2] []"},
    "set_attribute_by_name": {"by_name": 3},
    "two_names": {"items": ["start", "through alias"], "alias": ["start", "through alias"]},
}


def plain(value):
    if isinstance(value, Owned):
        return f"owned {value.count}"
    return f"thing {value.x} {value.items}" if isinstance(value, Thing) else value


def go(tmp_path, insert, place="same worker", cls=Writes, **options):
    """Run; with two workers, a first pair of steps that meet makes both busy, so that both know the protocol."""
    engine = "inline" if place == "inline" else "processes"
    threads = 2 if place == "another worker" else 1
    prot = cls(insert, workingDir=str(tmp_path / "run"), numberOfThreads=threads)
    prot.run(engine=engine, **options)
    return prot


@pytest.mark.parametrize("place", ["inline", "same worker"])
@pytest.mark.parametrize("change", sorted(EXPECTED))
def test_a_change_is_seen_by_a_later_step_and_by_the_protocol(tmp_path, change, place):
    """Whatever kind of change; the object is the same for the code as it was with threads."""
    expected = EXPECTED[change]

    def insert(self):
        self._insertFunctionStep(change)
        self._insertFunctionStep("remember", sorted(expected))

    prot = go(tmp_path, insert, place)
    assert prot.isFinished(), prot.getErrorMessage()
    assert {k: plain(v) for k, v in prot.seen.items()} == expected
    assert {k: plain(getattr(prot, k, "absent")) for k in expected} == expected
    assert (Writes.classList, Writes.classTable) == ([], {"a": 1})


class Rounds(Writes):
    """All changes in one run: begin anew, change, look in the other worker; what it saw is kept in `rounds`."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.rounds = {}

    def begin_anew(self):
        fresh = Writes()
        for name in ("items", "nested", "colours", "number", "gone", "thing", "matrix"):
            setattr(self, name, getattr(fresh, name))
        self.owned = Owned(self)
        self.classList, self.classTable = [], {"a": 1}
        for name in ("fresh", "by_name", "alias"):
            if hasattr(self, name):
                delattr(self, name)

    def change_and_meet(self, change, folder):
        getattr(self, change)()
        self.changer = os.getpid()

    def look_elsewhere(self, change, folder, name):
        """Of two that meet, the one that is not in the worker of the change looks."""
        meet(folder, name, 2)
        if os.getpid() != self.changer:
            self.rounds[change] = {name: plain(getattr(self, name, "absent")) for name in EXPECTED[change]}


@pytest.mark.versions
def test_every_change_is_seen_in_the_other_worker(tmp_path):
    """One after the other, all kinds of changes; and by the protocol, after each."""
    in_protocol = {}

    class Looks(Listener):
        def steps_finished(self, run, steps):
            for number in steps:
                s = run.steps[number - 1]
                if s.funcName == "change_and_meet":
                    change = s.getArgs()[0]
                    found = {k: plain(getattr(run.protocol, k, "absent")) for k in EXPECTED[change]}
                    in_protocol[change] = copy.deepcopy(found)

    def insert(self):
        before = []
        for change in sorted(EXPECTED):
            folder = str(tmp_path / change)
            anew = self._insertFunctionStep("begin_anew", prerequisites=before)
            changed = self._insertFunctionStep("change_and_meet", change, folder, prerequisites=[anew])
            before = [
                self._insertFunctionStep("look_elsewhere", change, folder, n, prerequisites=[changed]) for n in "ab"
            ]

    prot = go(tmp_path, insert, "another worker", cls=Rounds, listeners=[Looks()])
    assert prot.isFinished(), prot.getErrorMessage()
    assert prot.rounds == EXPECTED
    assert in_protocol == EXPECTED


@PLACES
def test_params_that_a_step_sets_are_set(tmp_path, place):
    """They stay the same scalars, and later steps and the protocol read the new values."""

    def insert(self):
        self._insertFunctionStep("set_params")
        self._insertFunctionStep(self.read)

    class Reads(Writes):
        def read(self):
            self.seen = (self.n.get(), self.notes.get())

    prot = Reads(insert, workingDir=str(tmp_path / "run"))
    box = prot.n
    prot.run(engine="inline" if place == "inline" else "processes")
    assert prot.isFinished(), prot.getErrorMessage()
    assert prot.seen == (99, "other")
    assert prot.n is box
    assert prot.n.get() == 99


@pytest.mark.versions
@PLACES
def test_containers_keep_their_identity(tmp_path, place):
    """Other names for the same list or dict, in the main program, see what steps did."""
    held = {}

    def insert(self):
        held.update(items=self.items, nested=self.nested, colours=self.colours)
        for change in ("append", "fill", "unite"):
            self._insertFunctionStep(change)

    prot = go(tmp_path, insert, place)
    assert prot.isFinished(), prot.getErrorMessage()
    for name, value in held.items():
        assert getattr(prot, name) is value


class Batches(Custom):
    """The pattern that puts a full batch away and begins another one."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.batch = []
        self.batches = []

    def fill(self, item):
        self.batch.append(item)

    def close(self):
        self.batches.append(self.batch)
        self.batch = []

    def begin_elsewhere(self, folder, name):
        meet(folder, name, 2)
        if name == "a":
            self.batch = ["new"]


@PLACES
def test_a_value_that_was_put_away_is_not_changed_when_its_attribute_is_set_anew(tmp_path, place):
    """By this step, or by another one in another worker."""

    def insert(self):
        for item in (1, 2, 3, 4):
            last = self._insertFunctionStep("fill", item)
            if item % 2 == 0:
                last = self._insertFunctionStep("close")
        if place == "another worker":
            one, two = str(tmp_path / "m"), str(tmp_path / "m2")
            both = [self._insertFunctionStep("begin_elsewhere", one, n, prerequisites=[last]) for n in "ab"]
            again = [self._insertFunctionStep("meet_again", two, n, prerequisites=both) for n in "ab"]
            last = self._insertFunctionStep("close", prerequisites=again)
        self._insertFunctionStep(self.look, "batches", prerequisites=[last])

    class Meets(Batches):
        def meet_again(self, folder, name):
            meet(folder, name, 2)

    prot = go(tmp_path, insert, place, cls=Meets)
    assert prot.isFinished(), prot.getErrorMessage()
    expected = [[1, 2], [3, 4]] + ([["new"]] if place == "another worker" else [])
    assert prot.batches == prot.seen == expected


@PLACES
def test_a_failed_step_leaves_what_it_had_changed_as_with_threads(tmp_path, place):
    """Up to the line that raised."""

    class Half(Writes):
        def half(self):
            self.items.append("before")
            raise ValueError("middle")

    prot = go(tmp_path, lambda self: self._insertFunctionStep("half"), place, cls=Half)
    assert prot.isFailed()
    assert prot.items == ["start", "before"]


class Arrays(Custom):
    def make(self):
        import numpy as np

        self.array = np.zeros((4, 5))
        self.tables = {}

    def change(self, row):
        self.array[row] += row + 1
        self.tables[row] = self.array[row] * 2

    def total(self):
        self.seen = (self.array.tolist(), {k: v.tolist() for k, v in self.tables.items()})


@pytest.mark.versions
@pytest.mark.parametrize("engine", ["inline", "processes"])
def test_arrays_are_assigned_and_changed_in_place(tmp_path, engine):
    """By steps that depend on each other."""
    pytest.importorskip("numpy")

    def insert(self):
        self._insertFunctionStep("make")
        for row in range(4):
            self._insertFunctionStep("change", row)
        self._insertFunctionStep("total")

    prot = Arrays(insert, workingDir=str(tmp_path / "run"))
    prot.run(engine=engine)
    assert prot.isFinished(), prot.getErrorMessage()
    rows = [[float(r + 1)] * 5 for r in range(4)]
    assert prot.array.tolist() == rows
    assert prot.seen == (rows, {r: [2.0 * (r + 1)] * 5 for r in range(4)})


@pytest.mark.versions
def test_appends_and_fills_of_forty_concurrent_steps_lose_nothing(tmp_path):
    """Lists concatenate, dicts merge by key, sets unite; all workers end with the same."""

    class Many(Custom):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.pool = set()
            self.stats = {}
            self.copies = {}

        def work(self, i):
            self.log.append(i)
            self.table[i] = i * i
            self.pool.add(i)
            self.stats[f"s{i}"] = {"mean": i, "values": [i] * 3}

        def see(self, folder, name):
            meet(folder, name, 3)
            self.copies[name] = (list(self.log), sorted(self.table), sorted(self.pool), sorted(self.stats))

    def insert(self):
        ids = [self._insertFunctionStep("work", i, prerequisites=[]) for i in range(40)]
        for name in "abc":
            self._insertFunctionStep("see", str(tmp_path / "m"), name, prerequisites=ids)

    prot = Many(insert, workingDir=str(tmp_path / "run"), numberOfThreads=3)
    prot.run(engine="processes")
    assert prot.isFinished(), prot.getErrorMessage()
    assert sorted(prot.log) == list(range(40))
    assert prot.table == {i: i * i for i in range(40)}
    assert prot.pool == set(range(40))
    assert prot.stats == {f"s{i}": {"mean": i, "values": [i] * 3} for i in range(40)}
    expected = (prot.log, sorted(prot.table), sorted(prot.pool), sorted(prot.stats))
    assert list(prot.copies.values()) == [expected] * 3


def test_what_a_worker_has_not_seen_is_merged_with_what_it_does(tmp_path):
    """Two workers append in turn, each knowing only its own items: both end with the same list."""

    class Turns(Custom):
        def turn(self, folder, name, count):
            self.log.append((name, 1))
            meet(folder, name, count)
            self.log.append((name, 2))

    def insert(self):
        before = []
        for turn in range(4):
            before = [
                self._insertFunctionStep("turn", str(tmp_path / f"m{turn}"), f"{turn}{name}", 2, prerequisites=before)
                for name in "ab"
            ]
        self._insertFunctionStep(self.look, "log", prerequisites=before)

    prot = go(tmp_path, insert, "another worker", cls=Turns)
    assert prot.isFinished(), prot.getErrorMessage()
    assert prot.seen == prot.log
    names = [name for name, part in prot.log if part == 1]
    assert names == [name for name, part in prot.log if part == 2]  # each pair stays together
    assert [name[0] for name in names] == list("00112233")


# ------------------------------------------------------------------------------------------------- local steps


class Local(Custom):
    @step(local=True)
    def here(self, value):
        self.value = value
        self.log.append(value)

    def there(self, value):
        self.log.append(value)

    def both(self):
        self.seen = (self.value, list(self.log))


def test_local_steps_and_workers_see_each_others_changes(tmp_path):
    """A local step that returns nothing and inserts nothing, between two in workers."""

    def insert(self):
        self._insertFunctionStep("there", 1)
        self._insertFunctionStep("here", 2)
        self._insertFunctionStep("there", 3)
        self._insertFunctionStep("both")

    prot = go(tmp_path, insert, cls=Local)
    assert prot.isFinished(), prot.getErrorMessage()
    assert prot.seen == (2, [1, 2, 3])
    assert prot.log == [1, 2, 3]


class Mixed(Custom):
    @step(local=True)
    def local(self, folder):
        self.log.append("local, first")
        meet(folder, "local", 2)  # the other one appends only now
        wait_until(lambda: len(self.log) == 2, "for the worker's change")
        self.log.append("local, second")

    def remote(self, folder):
        meet(folder, "remote", 2)
        self.log.append("remote")

    @step(local=True)
    def open_here(self):
        self.handle = open(os.devnull)  # noqa: SIM115  # closed by `close_here`
        self.log.append("opened")

    @step(local=True)
    def close_here(self):
        self.handle.close()
        del self.handle

    def touch(self):
        self.handle.close()


def test_a_local_step_and_a_worker_append_to_one_list_at_the_same_time(tmp_path):
    """All items, in one order, for everybody; also after a resume."""

    def insert(self):
        ids = [self._insertFunctionStep(m, str(tmp_path / "m"), prerequisites=[]) for m in ("local", "remote")]
        self._insertFunctionStep("look", "log", prerequisites=ids)

    items = ["local, first", "remote", "local, second"]
    prot = go(tmp_path, insert, cls=Mixed)
    assert prot.isFinished(), prot.getErrorMessage()
    assert prot.log == prot.seen == items
    again = go(tmp_path, insert, cls=Mixed)
    assert again._report.kept == 3
    assert sorted(again.log) == sorted(items)


def test_local_steps_may_keep_on_self_what_cannot_travel(tmp_path):
    """Other local steps use it; a step in a worker that touches it fails with its name."""

    def insert(self):
        opened = self._insertFunctionStep("open_here", prerequisites=[])
        touched = self._insertFunctionStep("touch", prerequisites=[opened])
        self._insertFunctionStep("look", "log", prerequisites=[opened])
        self._insertFunctionStep("close_here", prerequisites=[opened])
        assert touched

    prot = go(tmp_path, insert, cls=Mixed, keep_going=True)
    assert [s.getStatus() for s in prot.getSteps()] == [
        STATUS_FINISHED, STATUS_FAILED, STATUS_FINISHED, STATUS_FINISHED,
    ]  # fmt: skip
    assert "attribute 'handle'" in prot.getErrorMessage()
    assert prot.seen == ["opened"]


class Checks(Custom):
    _stepsCheckSecs = 0.01

    def _stepsCheck(self):
        if self.log and not self.table:
            self.table["from the check"] = list(self.log)
            self._insertFunctionStep(self.look, "table", prerequisites=[])


@pytest.mark.parametrize("engine", ["inline", "processes"])
def test_stepsCheck_sees_what_steps_did_and_steps_see_what_it_did(tmp_path, engine):
    """Merged before it is called, published before the steps that it inserts run."""
    prot = Checks(lambda self: self._insertFunctionStep(self.add, 1), workingDir=str(tmp_path / "run"))
    prot.run(engine=engine)
    assert prot.isFinished(), prot.getErrorMessage()
    assert prot.seen == {"from the check": [1]}


# ---------------------------------------------------------------------------------------------- what cannot travel


class Stuck(Custom):
    def open_file(self):
        self.handle = open(os.devnull)  # noqa: SIM115  # that is the point

    def hide_lock(self):
        self.table["deep"] = [threading.Lock()]

    def return_lock(self):
        return threading.Lock()

    def use(self, name):
        getattr(self, name).close()

    def harmless(self):
        self.log.append("fine")


@pytest.mark.versions
@pytest.mark.parametrize(
    ("method", "words"),
    [("open_file", "attribute 'handle'"), ("hide_lock", "attribute 'table'"), ("return_lock", "the result")],
)
def test_what_cannot_travel_back_is_an_error_naming_step_and_attribute(tmp_path, method, words):
    """And the way out; the worker goes on."""

    def insert(self):
        self._insertFunctionStep(method, prerequisites=[])
        self._insertFunctionStep("harmless", prerequisites=[])

    prot = go(tmp_path, insert, cls=Stuck, keep_going=True)
    assert [s.getStatus() for s in prot.getSteps()] == [STATUS_FAILED, STATUS_FINISHED]
    message = prot.getErrorMessage()
    assert f"step 1 {method}()" in message
    assert words in message
    error = prot.getSteps()[0].error
    assert isinstance(error, SerializationError)
    assert error.part in words


def _generator():
    yield 1


def test_what_cannot_travel_there_fails_only_the_steps_that_use_it(tmp_path):
    """An open file, a lock, a socket, a generator: each named in the error of the step that touches it."""
    ours, theirs = socket.socketpair()
    handle = open(os.devnull)  # noqa: SIM115  # closed below

    def insert(self):
        self.handle, self.guard, self.plug, self.source = handle, threading.Lock(), ours, _generator()
        self._insertFunctionStep("harmless", prerequisites=[])
        for name in ("handle", "plug", "source"):
            self._insertFunctionStep("use", name, prerequisites=[])
        self._insertFunctionStep("enter", prerequisites=[])
        self._insertFunctionStep("iterate", prerequisites=[])
        self._insertFunctionStep("harmless", prerequisites=[])

    class Uses(Stuck):
        def enter(self):
            with self.guard:
                self.log.append("never")

        def iterate(self):
            for item in self.source:
                self.log.append(item)

    try:
        prot = go(tmp_path, insert, cls=Uses, keep_going=True)
        statuses = [s.getStatus() for s in prot.getSteps()]
        assert statuses == [STATUS_FINISHED] + [STATUS_FAILED] * 5 + [STATUS_FINISHED]
        for s, name in zip(prot.getSteps()[1:6], ("handle", "plug", "source", "guard", "source")):
            assert f"attribute '{name}'" in s.getErrorMessage()
            assert isinstance(s.error, SerializationError)
        assert prot.log == ["fine", "fine"]
        assert prot.handle is handle  # the main program still has its own
    finally:
        ours.close()
        theirs.close()
        handle.close()


def test_an_argument_that_cannot_travel_fails_its_step_alone_and_is_named(tmp_path):
    """By its position."""

    def insert(self):
        self._insertFunctionStep(self.nothing, 1, threading.Lock(), prerequisites=[])
        self._insertFunctionStep(self.add, 2, prerequisites=[])

    prot = go(tmp_path, insert, cls=Custom, keep_going=True)
    assert [s.getStatus() for s in prot.getSteps()] == [STATUS_FAILED, STATUS_FINISHED]
    assert "argument 2 (of type lock) cannot travel" in prot.getErrorMessage()


def test_inline_everything_may_stay_where_it_is(tmp_path):
    """Nothing travels: open files and locks on self are no problem."""

    def insert(self):
        self._insertFunctionStep("open_file")
        self._insertFunctionStep("hide_lock")
        self._insertFunctionStep("use", "handle")
        self._insertFunctionStep("return_lock")

    prot = go(tmp_path, insert, "inline", cls=Stuck)
    assert prot.isFinished(), prot.getErrorMessage()
    assert prot.handle.closed
