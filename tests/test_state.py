"""What a step changed, told as small operations, and carried out elsewhere."""

from __future__ import annotations

import copy
import random
import threading
from typing import Any, Callable

import pytest

from mpsteps._ipc import wire
from mpsteps._ipc.edits import is_scalar
from mpsteps._ipc.merge import UNKNOWN
from mpsteps._ipc.state import Absent, Tracker, apply, pack_changes
from mpsteps.errors import SerializationError


class Thing:
    """Stands for a protocol: only its attributes matter."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


class Box:
    """An object of the user's own."""

    def __init__(self, content: Any) -> None:
        self.content = content

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Box) and self.content == other.content

    __hash__ = None  # type: ignore[assignment]


class Param:
    """A value as the forms have them, mpsteps' and Scipion's: told by its methods."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def get(self) -> Any:
        return self.value

    def set(self, value: Any) -> None:
        self.value = value

    def hasValue(self) -> bool:
        return self.value is not None


def changes_of(act: Callable[[Any], Any], **attributes: Any) -> list[Any]:
    """What a tracker tells after `act`; afterwards it has nothing more to tell."""
    thing = Thing(**attributes)
    tracker = Tracker(thing, ["ignored"])
    act(thing)
    found = tracker.changes()
    assert tracker.changes() == [], "told twice"
    return found


# --------------------------------------------------------------------------------------------------- what is told
@pytest.mark.parametrize(
    ("act", "change"),
    [
        (lambda t: setattr(t, "x", 2), ("#", "x", 2, 1)),
        (lambda t: setattr(t, "x", True), ("=", "x", True)),
        (lambda t: setattr(t, "x", None), ("=", "x", None)),
        (lambda t: setattr(t, "new", "n"), ("n", "new", "n")),
        (lambda t: delattr(t, "x"), ("-", "x")),
        (lambda t: t.grown.append(3), ("+", "grown", 2, [3])),
        (lambda t: t.grown.extend("ab"), ("+", "grown", 2, ["a", "b"])),
        (lambda t: t.grown.insert(0, 0), ("~", "grown", [0, 1, 2])),
        (lambda t: t.grown.pop(), ("~", "grown", [1])),
        (lambda t: t.grown.sort(reverse=True), ("~", "grown", [2, 1])),
        (lambda t: setattr(t, "grown", [1, 2]), ("=", "grown", [1, 2])),
        (lambda t: t.found.update(b=2), ("d", "found", {"b": ("n", 2)})),
        (lambda t: t.found.pop("a"), ("d", "found", {"a": ("-",)})),
        (lambda t: t.found["deep"].append(1), ("d", "found", {"deep": ("+", 0, [1])})),
        (lambda t: t.names.add("b"), ("|", "names", {"b"}, set())),
        (lambda t: t.names.clear(), ("|", "names", set(), {"a"})),
        (lambda t: t.param.set(7), ("v", "param", 7, 1)),
        (lambda t: t.matrix[0].append(9), ("~", "matrix", [[0, 9], [1]])),
    ],
)
def test_a_change_is_told_as_the_smallest_operation(act: Callable[[Any], Any], change: tuple[Any, ...]) -> None:
    """So that what others did to the same attribute meanwhile is kept as far as it can be."""
    start = {"x": 1, "grown": [1, 2], "found": {"a": 1, "deep": []}, "names": {"a"}, "param": Param(1)}

    assert changes_of(act, **start, matrix=[[0], [1]]) == [change]


def test_a_change_inside_an_object_is_told_as_the_object() -> None:
    """There is no smaller description of it."""
    [(op, name, box)] = changes_of(lambda t: t.box.content.append(1), box=Box([]))

    assert (op, name, box.content) == ("~", "box", [1])


@pytest.mark.parametrize(
    "act",
    [
        lambda t: None,
        lambda t: setattr(t, "x", 10**20),
        lambda t: setattr(t, "text", "".join(["te", "xt"])),
        lambda t: (t.grown.append(1), t.grown.pop()),
        lambda t: t.found.update(a=1),
        lambda t: t.param.set(5),
        lambda t: setattr(t, "ignored", "changed"),
    ],
    ids=["nothing", "equal int", "equal text", "there and back", "same key", "same value", "ignored"],
)
def test_what_is_as_it_was_is_not_told(act: Callable[[Any], Any]) -> None:
    """Most steps change nothing."""
    start = {"x": 10**20, "text": "text", "grown": [1], "found": {"a": 1}, "param": Param(5), "ignored": 0}

    assert changes_of(act, **start) == []


def test_large_content_is_compared_without_being_kept() -> None:
    """Only a hash of it is remembered; one element more or less is noticed all the same."""
    assert changes_of(lambda t: t.big.append(1), big=list(range(10_000))) == [("+", "big", 10_000, [1])]
    assert changes_of(lambda t: t.big.__setitem__(5000, -1), big=list(range(10_000)))[0][0] == "~"


def test_arrays_are_compared_by_their_content() -> None:
    """In place, also those that are not contiguous."""
    np = pytest.importorskip("numpy")

    def write(thing: Any) -> None:
        thing.array[0, 0] = 5

    [(op, name, cells, now, before)] = changes_of(write, array=np.zeros((3, 4)).T)
    assert (op, name, cells.tolist(), now.tolist(), before.tolist()) == ("a", "array", [0], [5], [0])
    assert changes_of(lambda t: None, array=np.zeros((3, 4)), empty=np.zeros(0), objects=np.array([{}, None])) == []


def test_an_attribute_that_cannot_be_pickled_is_watched_by_identity() -> None:
    """It is no reason to fail steps that do not touch it."""
    lock = threading.Lock()
    assert changes_of(lambda t: t.lock.acquire(), lock=lock) == []

    [(op, name, _)] = changes_of(lambda t: setattr(t, "lock", threading.Lock()), lock=lock)
    assert (op, name) == ("=", "lock")


def test_a_helper_that_knows_its_protocol_is_not_changed_by_every_change_of_it() -> None:
    """The protocol inside it is a reference."""

    def start(thing: Any) -> None:
        thing.owned = Box(thing)

    thing = Thing(x=1)
    start(thing)
    tracker = Tracker(thing, ())
    thing.x = 2
    assert tracker.changes() == [("#", "x", 2, 1)]
    thing.owned.more = 1
    assert [change[:2] for change in tracker.changes()] == [("~", "owned")]


@pytest.mark.parametrize("absent", [0, 1, 3])
@pytest.mark.parametrize("ignored", [0, 1, 3])
def test_a_deletion_is_told_whatever_else_there_is(absent: int, ignored: int) -> None:
    """Also beside attributes that are absent or ignored, there or not."""
    thing = Thing(a=1, b=[], **{f"gone{i}": Absent(f"gone{i}", "a lock") for i in range(absent)})
    tracker = Tracker(thing, [f"framework{i}" for i in range(3)])
    for i in range(ignored):
        setattr(thing, f"framework{i}", i)
    assert tracker.changes() == []

    del thing.a, thing.b

    assert sorted(tracker.changes()) == [("-", "a"), ("-", "b")]
    assert tracker.changes() == []


# ------------------------------------------------------------------------------------------------- carrying it out
def test_changes_are_made_in_place() -> None:
    """Other names for the same list, dict or set see them too."""
    thing = Thing(grown=[1], found={"a": 1}, names={1}, param=Param(1))
    before = dict(vars(thing))
    for change in [
        ("+", "grown", 1, [2]),
        ("k", "found", {"b": 2}, ["a"]),
        ("|", "names", {2}, {1}),
        ("v", "param", 3),
    ]:
        apply(thing, change)

    assert (thing.grown, thing.found, thing.names, thing.param.get()) == ([1, 2], {"b": 2}, {2}, 3)
    for change in [("~", "grown", [9]), ("~", "found", {9: 9}), ("~", "names", {9})]:
        apply(thing, change)
    assert (thing.grown, thing.found, thing.names) == ([9], {9: 9}, {9})
    assert all(vars(thing)[name] is value for name, value in before.items())


def test_setting_an_attribute_leaves_the_former_value_to_its_other_names() -> None:
    """`self.all.append(self.batch); self.batch = []` means the same as with threads."""
    batch = [1, 2]
    thing = Thing(batch=batch, all=[batch])

    apply(thing, ("=", "batch", []))

    assert (thing.batch, thing.all) == ([], [[1, 2]])


def test_a_container_that_was_replaced_or_deleted_meanwhile_is_started_anew() -> None:
    """Growth is not lost for want of a list."""
    thing = Thing(found=None)
    for change in [
        ("+", "grown", 5, [1]),
        ("k", "found", {"a": 1}, ["b"]),
        ("|", "names", {1}, {2}),
        ("v", "param", 3),
    ]:
        apply(thing, change)

    assert vars(thing) == {"grown": [1], "found": {"a": 1}, "names": {1}, "param": 3}


def test_deleting_what_is_not_there_does_nothing() -> None:
    """Two steps may delete the same attribute."""
    thing = Thing(x=1)
    apply(thing, ("-", "x"))
    apply(thing, ("-", "x"))

    assert vars(thing) == {}


def test_growth_is_put_where_it_belongs() -> None:
    """'At 1: b' leads to the truth whatever the replica held there."""
    thing = Thing(grown=["a", "wrong", "wrong too"])
    apply(thing, ("+", "grown", 1, ["b"]))

    assert thing.grown == ["a", "b"]


def test_changes_of_others_are_not_told_as_ones_own() -> None:
    """A worker that hears of something does not report it back."""
    thing = Thing(grown=[], x=1, y=2)
    tracker = Tracker(thing, ())
    tracker.apply([("+", "grown", 0, [1]), ("=", "x", 5), ("=", "new", [1]), ("-", "y")])
    assert tracker.changes() == []

    thing.grown.append(2)

    assert tracker.changes() == [("+", "grown", 1, [2])]


def test_what_was_not_taken_in_yet_comes_after_what_is_heard() -> None:
    """The truth has the others' first: so has the replica, and what it appended itself is not lost from its sight."""
    thing = Thing(grown=["mine"], last="mine", found={"k": "mine"})
    tracker = Tracker(thing, ())
    own = [("+", "grown", 0, ["mine"]), ("=", "last", "mine"), ("d", "found", {"k": ("=", "mine")})]
    pending = [(change, UNKNOWN) for change in own]

    tracker.apply(
        [("+", "grown", 0, ["theirs"]), ("=", "last", "theirs"), ("k", "found", {"k": 1, "j": 2}, [])], pending
    )

    assert vars(thing) == {"grown": ["theirs", "mine"], "last": "mine", "found": {"k": "mine", "j": 2}}
    assert tracker.changes() == []


# ------------------------------------------------------------------------------------------------------- any change
def _change_something(thing: Any, r: random.Random) -> None:
    number, key = r.randint(0, 99), r.choice("abc")
    kind = r.randint(0, 13)
    if kind == 0:
        thing.x = r.choice((number, str(number), None, True, 1.5, (1, number)))
    elif kind == 1:
        thing.grown.append(number)
    elif kind == 2:
        thing.grown[:] = [number]
    elif kind == 3:
        thing.grown = [number, [number]]
    elif kind == 4:
        thing.found[key] = r.choice((number, [number], {key: number}, Box(number)))
    elif kind == 5:
        thing.found.pop(key, None)
    elif kind == 6:
        thing.found.setdefault("deep", {}).setdefault(key, []).append(number)
    elif kind == 7:
        thing.names.add(number % 7)
    elif kind == 8:
        thing.names.discard(number % 7)
    elif kind == 9:
        thing.box.content = [number]
    elif kind == 10:
        thing.param.set(number)
    elif kind == 11:
        setattr(thing, key, number)
    elif kind == 12:
        vars(thing).pop(key, None)
    else:
        thing.found = {key: number}


@pytest.mark.parametrize("seed", range(40))
def test_whatever_one_changes_another_that_hears_of_it_becomes_equal(seed: int) -> None:
    """Through the wire, in batches of a few changes, for as long as one likes."""
    r = random.Random(seed)
    here = Thing(x=0, grown=[], found={}, names=set(), box=Box(None), param=Param(0))
    there = copy.deepcopy(here)
    tracker, other = Tracker(here, ()), Tracker(there, ())
    for _ in range(60):
        for _ in range(r.randint(0, 3)):
            _change_something(here, r)
        changes = tracker.changes()
        other.apply(wire.unpack(pack_changes(changes, here), there) if changes else [])

        assert {**vars(there), "param": there.param.get()} == {**vars(here), "param": here.param.get()}
        assert other.changes() == []


# ---------------------------------------------------------------------------------------------- what cannot travel
def test_the_attribute_that_cannot_travel_is_named() -> None:
    """With the way out."""
    changes = [("=", "fine", 1), ("=", "handle", threading.Lock()), ("=", "also fine", [])]

    with pytest.raises(SerializationError, match=r"attribute 'handle' .*@step\(local=True\)") as caught:
        pack_changes(changes, Thing())
    assert caught.value.part == "attribute 'handle'"


class LoadsNever:
    """Can be written, cannot be read."""

    def __reduce__(self) -> Any:
        return _refuse, ()


def _refuse() -> None:
    raise ValueError("not here")


def test_what_would_not_load_is_found_before_it_is_sent() -> None:
    """The step that made it fails, not everybody who hears of it."""
    with pytest.raises(SerializationError, match=r"attribute 'bad'.*not here"):
        pack_changes([("=", "bad", LoadsNever())], Thing())


@pytest.mark.parametrize(
    "use",
    [
        lambda absent: absent(), lambda absent: absent.send, lambda absent: absent[0], lambda absent: len(absent),
        lambda absent: bool(absent), lambda absent: list(absent), lambda absent: absent.__enter__(),
        lambda absent: setattr(absent, "x", 1), lambda absent: 1 in absent,
    ],
    ids=["call", "attribute", "item", "len", "bool", "iterate", "with", "set", "in"],
)  # fmt: skip
def test_any_use_of_an_absent_attribute_says_why_it_is_not_there(use: Callable[[Any], Any]) -> None:
    """Never a silent None."""
    absent = Absent("socket", "a socket cannot be pickled")

    with pytest.raises(SerializationError, match=r"attribute 'socket' .*a socket cannot be pickled"):
        use(absent)


def test_an_absent_attribute_travels_and_can_be_looked_at_in_a_debugger() -> None:
    """repr and pickle are not uses."""
    absent = wire.unpack(wire.pack(Absent("socket", "reasons")))

    assert type(absent) is Absent
    assert repr(absent) == "<attribute 'socket' that cannot travel>"
    assert changes_of(lambda t: setattr(t, "here", 5), here=absent) == [("n", "here", 5)]
    assert is_scalar(Param(1))
