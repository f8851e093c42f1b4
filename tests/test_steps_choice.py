"""`mpsteps steps`: which steps, in which order, how many."""

from __future__ import annotations

import json

import pytest
from test_cli import cli  # noqa: F401  # the fixture

from mpsteps.cli import arguments
from mpsteps.cli.steps import SORT_KEYS

pytestmark = pytest.mark.once
RUN = "Runs/000001_ProtSquares"


@pytest.fixture
def ran(cli):  # noqa: F811
    """Five steps, of which the third fails and the last is skipped."""
    assert cli("run", "squares.py", "--set", "bad=2", "--keep-going", "--quiet").code == 1
    return cli


def ids(done):
    assert done.code == 0, done.err
    return [s["step"] for s in json.loads(done.out)["steps"]]


def test_steps_are_chosen_by_status_and_function(ran):
    assert ids(ran("steps", RUN, "--json", "--status", "finished")) == [1, 2, 4]
    assert ids(ran("steps", RUN, "--json", "--status", "failed,skipped")) == [3, 5]
    assert ids(ran("steps", RUN, "--json", "--status", "failed", "--status", "skipped")) == [3, 5]
    assert ids(ran("steps", RUN, "--json", "--status", "in-doubt")) == []
    assert ids(ran("steps", RUN, "--json", "--function", "sumStep")) == [5]
    assert ids(ran("steps", RUN, "--json", "--function", "s*", "--status", "finished", "--limit", "2")) == [1, 2]
    assert json.loads(ran("steps", RUN, "--json", "--limit", "1").out)["total"] == 5, "of the run, not of the choice"


def test_steps_are_sorted_and_those_of_which_it_is_not_known_come_last(ran):
    steps = json.loads(ran("steps", RUN, "--json", "--sort", "seconds").out)["steps"]
    seconds = [s["seconds"] for s in steps]
    assert seconds[:-1] == sorted(seconds[:-1], reverse=True)
    assert (steps[-1]["step"], seconds[-1]) == (5, None)
    assert ids(ran("steps", RUN, "--json", "--sort", "function")) == [1, 2, 3, 4, 5]
    assert ids(ran("steps", RUN, "--json", "--sort", "status"))[:3] == [3, 1, 2]


def test_the_table_says_how_many_it_shows(ran):
    shown = ran("steps", RUN, "--limit", "2").out
    assert "2 of 5 steps shown" in shown
    assert "5 steps: " in shown


def test_what_is_not_there_is_said(ran):
    for wrong, message in (
        (("--status", "done"), "there is no status 'done'"),
        (("--function", "x"), "no step has the function 'x'; there are squareStep, sumStep"),
        (("--limit", "0"), "at least 1"),
        (("--sort", "age"), "invalid choice"),
    ):
        refused = ran("steps", RUN, *wrong)
        assert (refused.code, refused.out, message in refused.err) == (2, "", True), refused.err


def test_the_help_knows_all_keys(capsys):
    with pytest.raises(SystemExit):
        arguments.parse(["steps", "--help"])
    shown = capsys.readouterr().out
    assert all(key in shown for key in SORT_KEYS)
