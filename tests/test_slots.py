"""Slots are neither lost nor made up."""

from __future__ import annotations

import random

import pytest

from mpsteps._core.slots import SlotPool
from mpsteps._core.steps import PLAIN, Demand
from mpsteps.errors import InternalError


def pool() -> SlotPool:
    """4 CPUs, 100 bytes, cards 2, 0 and 7, three licences."""
    return SlotPool(4, memory=100, gpus=(2, 0, 7), tokens={"licence": 3})


def test_what_is_taken_is_free_again_when_it_is_given_back() -> None:
    """free + held == total."""
    slots = pool()
    demand = Demand(cpus=3, gpus=2, memory=40, tokens=(("licence", 2),))

    slots.take(1, demand)
    slots.check_invariants()
    assert slots.free == {"cpus": 1, "memory": 60, "licence": 1}
    assert slots.gpus_of(1) == (2, 0)
    assert slots.holders() == {1}

    slots.give(1)
    slots.check_invariants()
    assert slots.free == slots.total
    assert slots.free_gpus == [2, 0, 7]
    assert slots.gpus_of(1) == ()


@pytest.mark.parametrize(
    ("demand", "lack"),
    [
        (PLAIN, ""), (Demand(cpus=2), "cpus"), (Demand(gpus=2), "gpus"), (Demand(memory=61), "memory"),
        (Demand(tokens=(("licence", 2),)), "licence"), (Demand(cpus=2, local=True), ""), (Demand(memory=60), ""),
    ],
)  # fmt: skip
def test_the_first_kind_that_is_short_is_named(demand: Demand, lack: str) -> None:
    """The scheduler keeps CPUs and memory for who waits, cards and tokens not."""
    slots = pool()
    slots.take(1, Demand(cpus=3, gpus=2, memory=40, tokens=(("licence", 2),)))

    assert slots.lacks(demand) == lack
    assert slots.fits(demand) == (lack == "")


def test_who_asks_for_more_than_there_is_gets_all() -> None:
    """A large step runs alone rather than never."""
    slots = pool()
    giant = Demand(cpus=64, gpus=8, memory=10**12, tokens=(("licence", 9),))
    assert slots.fits(giant)

    slots.take(1, giant)

    assert slots.free == {"cpus": 0, "memory": 0, "licence": 0}
    assert slots.free_gpus == []
    slots.check_invariants()


def test_tokens_that_nobody_has_declared_hold_nothing_back() -> None:
    """There is no limit where none was given; nor where memory is not counted."""
    slots = SlotPool(1)
    demand = Demand(memory=10**9, gpus=1, tokens=(("unheard of", 5),))

    slots.take(1, demand)

    assert slots.fits(Demand(cpus=0, memory=1, tokens=(("unheard of", 1),)))
    slots.check_invariants()


def test_a_token_named_twice_is_added_up() -> None:
    """Each would fit alone, both together do not."""
    slots = pool()
    twice = Demand(tokens=(("licence", 1), ("licence", 1)))
    slots.take(1, Demand(tokens=(("licence", 2),)))

    assert slots.lacks(twice) == "licence"
    slots.give(1)
    slots.take(2, twice)
    assert slots.free["licence"] == 1
    slots.check_invariants()


def test_local_steps_hold_no_cpu_of_the_workers() -> None:
    """They run in the coordinator; memory and cards they hold all the same."""
    slots = pool()
    slots.take(1, Demand(cpus=4, local=True, memory=10, gpus=1))

    assert slots.free == {"cpus": 4, "memory": 90, "licence": 3}
    assert slots.gpus_of(1) == (2,)


def test_nobody_is_given_slots_twice() -> None:
    """The first ones would be lost."""
    slots = pool()
    slots.take(1, PLAIN)

    with pytest.raises(InternalError, match="twice"):
        slots.take(1, PLAIN)
    slots.check_invariants()


def test_cards_come_back_in_the_order_of_the_form() -> None:
    """Whoever finished first: the user listed the better one first."""
    slots = pool()
    for step in (1, 2, 3):
        slots.take(step, Demand(gpus=1))
    for step in (3, 1, 2):
        slots.give(step)

    assert slots.free_gpus == [2, 0, 7]


def test_two_pools_do_not_share_their_tokens() -> None:
    """A pool copies what it is given."""
    tokens = {"licence": 1}
    first, second = SlotPool(1, tokens=tokens), SlotPool(1, tokens=tokens)
    first.take(1, Demand(tokens=(("licence", 1),)))

    assert second.fits(Demand(tokens=(("licence", 1),)))
    assert tokens == {"licence": 1}


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_taking_and_giving_leaves_the_books_right(seed: int) -> None:
    """Whatever fits may be taken; in the end everything is there."""
    r = random.Random(seed)
    slots = pool()
    for step in range(200):
        demand = Demand(
            cpus=r.randint(0, 5), gpus=r.randint(0, 4), memory=r.randint(0, 120), local=r.random() < 0.2,
            tokens=tuple(("licence", r.randint(1, 2)) for _ in range(r.randint(0, 2))),
        )  # fmt: skip
        if slots.fits(demand):
            slots.take(step, demand)
        elif slots.holders():
            slots.give(r.choice(sorted(slots.holders())))
        slots.check_invariants()
    for step in slots.holders():
        slots.give(step)

    assert slots.free == slots.total
    assert slots.free_gpus == [2, 0, 7]
