"""Lists, dicts and sets that stand in the class: changed through `self` or through the class, they are attributes."""

from __future__ import annotations

import threading
from typing import Any, Dict

import pytest
from protocols import Custom

from mpsteps import step


class InClass(Custom):
    items = ["start"]
    squares: Dict[Any, Any] = {}
    names = set()
    limits = {"a": 1}  # set anew in __init__: that one is the object's

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.limits = {"own": 1}

    def byClass(self, i):
        self.__class__.items.append(i)
        type(self).squares[i] = len(self.items)
        InClass.names.add(i)

    def bySelf(self, i):
        self.items.append(i)
        self.squares[i] = len(type(self).items)
        self.names.add(i)

    @step(local=True)
    def here(self, i):
        type(self).items.append(i)

    def lookAt(self):
        self.seen = (list(self.items), self.items is type(self).items, dict(type(self).squares), set(InClass.names))

    def failUnless(self, path):
        with open(path):
            pass


class Below(InClass):
    """Inherits them."""


def original() -> bool:
    return (InClass.items, InClass.squares, InClass.names, InClass.limits) == (["start"], {}, set(), {"a": 1})


def protocol(tmp_path, *steps, cls=InClass, **params):
    def insert(self):
        for name, *args in steps:
            self._insertFunctionStep(name, *args)

    return cls(insert, workingDir=str(tmp_path / "run"), **params)


def finished(prot, engine="processes"):
    prot.run(engine=engine)
    assert prot.isFinished(), prot.getErrorMessage()
    return prot


@pytest.mark.parametrize("cls", [InClass, Below])
@pytest.mark.parametrize(("engine", "workers"), [("inline", 1), ("processes", 1), ("processes", 3)])
def test_what_is_changed_through_the_class_is_changed_for_self(tmp_path, engine, workers, cls):
    """And the other way round, wherever the steps run; the class itself is as it was afterwards."""
    steps = [("byClass", 1), ("bySelf", 2), ("byClass", 3), ("here", 4), ("byClass", 5), ("lookAt",)]
    prot = finished(protocol(tmp_path, *steps, cls=cls, numberOfThreads=workers), engine)

    assert prot.items == ["start", 1, 2, 3, 4, 5]
    assert prot.squares == {1: 2, 2: 3, 3: 4, 5: 6}
    assert prot.names == {1, 2, 3, 5}
    assert prot.seen == (prot.items, True, prot.squares, prot.names)
    assert prot.limits == {"own": 1}
    assert original()


def test_a_second_run_of_the_same_object_goes_on_where_the_first_ended(tmp_path):
    """With what it has; and another object begins anew."""
    path = tmp_path / "good"
    prot = protocol(tmp_path, ("byClass", 1), ("failUnless", str(path)), ("byClass", 2))
    prot.run(engine="processes")
    assert prot.isFailed()
    path.touch()
    finished(prot)
    assert prot.items == ["start", 1, 2]

    again = finished(protocol(tmp_path, ("byClass", 1), ("failUnless", str(path)), ("byClass", 2)))
    assert again.items == ["start", 1, 2]
    assert original()


def test_two_objects_of_a_class_that_run_at_the_same_time_do_not_mix(tmp_path):
    """Each has its own, by `self`."""
    inside = protocol(tmp_path / "inside", ("bySelf", 7))

    def insert(self):
        self._insertFunctionStep("bySelf", 1)
        thread = threading.Thread(target=lambda: inside.run(engine="inline"))
        thread.start()
        thread.join(20)

    outside = InClass(insert, workingDir=str(tmp_path / "outside"))
    finished(outside, "inline")

    assert inside.isFinished(), inside.getErrorMessage()
    assert inside.items == ["start", 7]
    assert outside.items == ["start", 1]
    assert original()
