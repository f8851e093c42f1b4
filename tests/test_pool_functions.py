"""Functions that travel by value: one parcel for many calls, and never one that is out of date."""

from __future__ import annotations

import gc
import importlib
import math
import os.path
import sys
import types
from typing import Any, Callable, List

import cloudpickle
import pytest

from mpsteps import StepPool, _pool_functions
from mpsteps._ipc import wire
from mpsteps._pool_functions import Functions

SOON = 60


def main_module(source: str) -> Any:
    """A module that no worker can import, as `__main__` is none."""
    module = types.ModuleType("not_to_be_imported")
    exec(source, module.__dict__)
    return module


def functions_of(source: str) -> List[str]:
    """The names of those that are defined there."""
    module = main_module(source)
    found = [name for name, v in vars(module).items() if getattr(v, "__globals__", None) is vars(module)]
    assert found
    return found


def is_kept(fn: Any) -> bool:
    """Whether the second call, and the third, of a function are sent by number."""
    functions = Functions()
    first, second, third = (functions.pack(1, fn) for _ in range(3))
    assert type(first) is bytes
    assert second == third or type(second) is bytes
    return type(second) is int


KEPT = """
import math
import os.path as path
from functools import partial, reduce
size, name, nothing = 3, "x", None

def plain(x): return x + 1
def with_globals(x): return (x, size, name, nothing, absent if x is None else 0)
def with_modules(x): return path.join(str(math.floor(x)), name)
def with_functions(x): return helper(x) + reduce(max, [x])
def helper(x): return size * x
def recursive(x): return 1 if x < 2 else x * recursive(x - 1)
def with_default(x, y=3): return x + y
def inner(x):
    total = 0
    def add(y):
        nonlocal total
        total += y
        return total
    return [add(x), add(x)]
def changes_its_argument(x):
    class Mine: pass
    mine = Mine()
    mine.value = x
    return mine.value
def closure(x):
    def read(y): return x + y
    return read
def generator(n): return sum(i * i for i in range(n))
"""

NOT_KEPT = """
numbers, table = [1], {}
class Thing: value = 1
thing = Thing()
count = 0

def with_list(x): return numbers
def with_dict(x): table[x] = 1; return len(table)
def with_class(x): return Thing.value
def with_object(x): return thing.value
def counts(x):
    global count
    count += 1
    return count
def nested_counts(x):
    def inner():
        global count
        count += 1
    inner()
    return count
def calls_one_that_counts(x): return counts(x)
def has_attributes(x): return 1
has_attributes.limit = 3
def sets_attribute(x):
    sets_attribute.times = getattr(sets_attribute, "times", 0) + 1
    return sets_attribute.times
def mutable_default(x, seen=[]):
    seen.append(x)
    return seen
def keyword_default(x, *, y=3): return x + y
def looks_around(x): return globals().get("count")
def forgets(x):
    global count
    del count
"""


@pytest.mark.parametrize("name", functions_of(KEPT))
def test_what_can_be_compared_at_a_glance_is_packed_once(name: str) -> None:
    """Numbers, texts, modules, importable functions, and functions of which the same is true."""
    assert is_kept(getattr(main_module(KEPT), name))


@pytest.mark.parametrize("name", functions_of(NOT_KEPT))
def test_what_may_change_unseen_or_would_see_that_it_is_kept_is_packed_each_time(name: str) -> None:
    """Lists, dicts, objects, own classes; who assigns globals, or sets attributes of functions."""
    assert not is_kept(getattr(main_module(NOT_KEPT), name))


def test_closures_over_values_are_kept_and_those_that_count_are_not() -> None:
    """Also where a function inside a function does it."""

    def made(start: int) -> List[Callable[[], Any]]:
        count, words = start, ["a"]

        def read() -> int:
            return start

        def counts() -> int:
            nonlocal count
            count += 1
            return count

        def lets_count() -> int:
            return [counts() for _ in range(2)][-1]

        def words_of() -> List[str]:
            return words

        return [read, counts, lets_count, words_of]

    assert [is_kept(f) for f in made(3)] == [True, False, False, False]


CHANGES = {
    "a global": "size = 4",
    "a global of a helper": "factor = 4",
    "a global that was absent": "absent = 4",
    "a global that goes": "del size",
    "a helper": "def helper(x): return -x",
    "its code": "f.__code__ = g.__code__",
    "its defaults": "f.__defaults__ = (7,)",
    "an attribute": "f.attribute = 1",
    "its keyword defaults": "f.__kwdefaults__ = {'y': 8}",
    "a module": "import cmath as math",
    "a text": "size = [3]",
}


@pytest.mark.parametrize("change", CHANGES, ids=list(CHANGES))
def test_a_change_is_seen(change: str) -> None:
    """A function that was kept is packed anew."""
    module = main_module("""
import math
size, factor = 3, 2
def helper(x): return factor * x
def f(x, y=1): return helper(x) + (size if 'size' in dir() else 0) + math.pi + (absent if x > 5 else y)
def g(x, y=1): return 0
""")
    functions = Functions()
    before = [functions.pack(1, module.f) for _ in range(3)]
    assert before[1] == before[2] != before[0]
    exec(CHANGES[change], module.__dict__)
    assert functions.pack(1, module.f) != before[2]


def test_the_parcel_that_is_sent_is_that_of_now() -> None:
    """Numbers come with an order that has the parcel; a worker gets each once, and what is changed under a new one."""
    module = main_module("size = 3\ndef f(): return size")
    functions = Functions()
    functions.pack(1, module.f)
    number = functions.pack(1, module.f)
    ((_, told, parcel),) = functions.take_orders()
    assert told == number
    assert wire.unpack(parcel)() == 3
    assert functions.pack(1, module.f) == number
    assert not functions.take_orders()
    module.size = 4
    other = functions.pack(1, module.f)
    ((_, told, parcel),) = functions.take_orders()
    assert told == other != number
    assert wire.unpack(parcel)() == 4
    assert functions.pack(2, module.f) == other
    assert len(functions.take_orders()) == 1


def test_what_changes_all_the_time_is_not_kept_for_ever(monkeypatch: Any) -> None:
    """Nor is there room for any number of functions, nor for one that is large."""
    module = main_module("size = 0\ndef f(): return size")
    functions = Functions()
    kinds = []
    for size in range(1000, 1030):
        module.size = size
        kinds.append(type(functions.pack(1, module.f)))
    assert kinds == [bytes] + [int] * _pool_functions.MOST_CHANGES + [bytes] * (29 - _pool_functions.MOST_CHANGES)

    module = main_module(f"text = 'x' * {_pool_functions.LARGEST_BY_VALUE}\ndef f(): return text")
    assert not is_kept(module.f)

    monkeypatch.setattr(_pool_functions, "MOST_BY_VALUE", 2)
    functions = Functions()
    for kept in (True, True, False):
        module = main_module("def f(): return 1")
        functions.pack(1, module.f)
        assert (type(functions.pack(1, module.f)) is int) is kept


def test_what_is_in_a_module_that_is_to_travel_by_value_is_looked_at(tmp_path: Any, monkeypatch: Any) -> None:
    """The module itself, which nobody can compare, and functions of its submodules."""
    (tmp_path / "wandering").mkdir()
    (tmp_path / "wandering" / "__init__.py").write_text("size = 3\n")
    (tmp_path / "wandering" / "deeper.py").write_text("size = 3\ndef f(): return size\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    deeper = importlib.import_module("wandering.deeper")
    module = main_module("import wandering\ndef f(): return wandering.size")
    assert is_kept(module.f)
    assert type(Functions().pack(1, deeper.f)) is int
    cloudpickle.register_pickle_by_value(sys.modules["wandering"])
    try:
        assert not is_kept(module.f)
        functions = Functions()
        functions.pack(1, deeper.f)
        before = functions.pack(1, deeper.f)
        deeper.size = 4
        assert functions.pack(1, deeper.f) != before
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules["wandering"])
        for name in ("wandering", "wandering.deeper"):
            del sys.modules[name]


def test_a_function_that_nobody_holds_is_not_kept_alive() -> None:
    """What is remembered of it goes with it."""
    functions = Functions()
    for _ in range(100):
        fn = main_module("def f(): return 1").f
        functions.pack(1, fn)
        functions.pack(1, fn)
    del fn
    gc.collect()  # a module and its functions refer to each other
    assert len(functions._by_value) == 0


def test_what_is_importable_is_not_looked_into() -> None:
    """It has its number by its name."""
    assert is_number(os.path.join)
    assert is_number(math.floor)
    assert is_number(dict)


def is_number(fn: Any) -> bool:
    functions = Functions()
    return type(functions.pack(1, fn)) is int


def test_calls_in_workers_see_what_is_there_when_they_are_sent() -> None:
    """Through a real pool: a function of a module that nobody can import, its global changed between the calls."""
    module = main_module("size = 0\ndef f(x): return helper(x)\ndef helper(x): return x + size")
    with StepPool(2) as pool:
        for size in range(20):
            module.size = 1000 * size
            assert list(pool.map(module.f, range(10))) == [1000 * size + x for x in range(10)]
