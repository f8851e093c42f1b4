"""Counting users of blocks: freed when the last one is gone, never before, never twice."""

from __future__ import annotations

import random

from mpsteps._ipc.users import Users

HERE, W1, W2 = 0, 1, 2


def test_a_block_is_free_when_its_last_user_is_gone() -> None:
    """Two steps use it, on two workers; it is told once, with its owner."""
    users = Users()
    users.add(7, HERE, ("step", 1))
    users.add(7, HERE, ("step", 2))
    users.drop(7, ("step", 1))
    assert users.take_free() == []
    users.drop(7, ("step", 2))
    assert users.take_free() == [(HERE, 7)]
    assert users.take_free() == []
    assert len(users) == 0


def test_dropping_twice_or_what_was_never_used_is_nothing() -> None:
    """A step may be answered, then its worker's death be told."""
    users = Users()
    users.add(7, W1, "result")
    users.drop(7, "another")
    users.drop(7, "result")
    users.drop(7, "result")
    users.drop(8, "result")
    assert users.take_free() == [(W1, 7)]


def test_a_worker_that_keeps_an_array_keeps_the_block() -> None:
    """It says so with its answer, before the step's own use ends; later it says that it does not any more."""
    users = Users()
    users.add(7, HERE, ("step", 1))
    users.keeps(W1, [7])
    users.drop(7, ("step", 1))
    assert users.take_free() == []
    users.keeps(W1, [])
    assert users.take_free() == [(HERE, 7)]


def test_what_two_workers_keep_is_kept_until_both_let_go() -> None:
    """Also when one of them dies."""
    users = Users()
    users.add(7, HERE, "step")
    users.keeps(W1, [7])
    users.keeps(W2, [7])
    users.drop(7, "step")
    users.gone(W1)
    assert users.take_free() == []
    users.keeps(W2, [])
    assert users.take_free() == [(HERE, 7)]


def test_a_dead_owner_is_not_asked_to_free() -> None:
    """Its blocks are forgotten: those in use, those that wait to be freed, those that others keep."""
    users = Users()
    users.add(7, W1, "result")
    users.add(8, W1, "step")
    users.add(9, HERE, "step")
    users.keeps(W2, [7, 9])
    users.drop(8, "step")
    users.gone(W1)
    users.drop(7, "result")
    users.drop(9, "step")
    assert users.take_free() == []
    users.keeps(W2, [7])
    assert users.take_free() == [(HERE, 9)]
    assert len(users) == 0


def test_a_worker_that_goes_without_ever_keeping_anything_is_no_error() -> None:
    """Most do."""
    users = Users()
    users.gone(W1)
    users.gone(W1)
    assert users.take_free() == []


def test_no_block_is_freed_under_a_user_or_forgotten() -> None:
    """Random histories against the obvious model: a set of (block, user)."""
    for seed in range(200):
        randomly = random.Random(seed)
        users, model, freed, kept = Users(), set(), [], {W1: set(), W2: set()}
        for key in range(20):
            users.add(key, HERE, "maker")
            model.add((key, "maker"))
        for _ in range(150):
            key, who = randomly.randrange(20), randomly.choice(["maker", "s1", "s2"])
            in_use = {k for k, _ in model}
            action = randomly.random()
            if action < 0.2 and key in in_use:
                users.add(key, HERE, who)
                model.add((key, who))
            elif action < 0.7:
                users.drop(key, who)
                model.discard((key, who))
            else:
                worker = randomly.choice([W1, W2])
                now = {k for k in range(20) if randomly.random() < 0.2}
                users.keeps(worker, now)
                model -= {(k, worker) for k in kept[worker]}
                kept[worker] = now & in_use
                model |= {(k, worker) for k in kept[worker]}
            freed += [k for _, k in users.take_free()]
            assert len(freed) == len(set(freed))
            assert set(freed) == set(range(20)) - {k for k, _ in model}
