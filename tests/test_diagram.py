"""The state diagram in the documentation is the table that the scheduler runs on."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mpsteps._core.steps import FINAL, TRANSITIONS, Status

SCRIPT = Path(__file__).parent.parent / "docs" / "make_state_diagram.py"


@pytest.fixture
def maker() -> Any:
    """docs/make_state_diagram.py as a module."""
    spec = importlib.util.spec_from_file_location("make_state_diagram", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_diagram_is_up_to_date(maker: Any) -> None:
    """If this fails: python docs/make_state_diagram.py."""
    old = maker.PAGE.read_text(encoding="utf-8")

    assert maker.page(old) == old, "docs/state-diagram.md is out of date: run python docs/make_state_diagram.py"


def test_the_diagram_has_an_arrow_for_every_transition(maker: Any) -> None:
    """From, to and cause."""
    arrows = [line.strip() for line in maker.diagram().splitlines() if "-->" in line]
    labels = {arrow.split(":")[0]: arrow.partition(": ")[2].split(", ") for arrow in arrows if ":" in arrow}

    for (before, cause), after in TRANSITIONS.items():
        start = "[*]" if before is Status.UNKNOWN else before.name
        assert cause.name.lower().replace("_", " ") in labels[f"{start} --> {after.name}"]
    assert sum(map(len, labels.values())) == len(TRANSITIONS)
    assert {arrow for arrow in arrows if arrow.endswith("[*]")} == {f"{status.name} --> [*]" for status in FINAL}


def test_only_what_stands_between_the_marker_lines_is_written(maker: Any) -> None:
    """People write around it."""
    new = maker.page(f"before\n{maker.BEGIN}\nold arrows\n{maker.END}\nafter\n")

    assert new == f"before\n{maker.BEGIN}\n{maker.diagram()}\n{maker.END}\nafter\n"


def test_a_page_without_marker_lines_is_not_overwritten(maker: Any) -> None:
    """The error names them."""
    with pytest.raises(ValueError, match="marker lines"):
        maker.page("all my own words")


def test_the_check_tells_when_the_page_is_out_of_date(maker: Any, tmp_path: Path) -> None:
    """For CI and pre-commit: exit code 1, and how to mend it; written anew, it is 0."""
    script = tmp_path / "docs" / SCRIPT.name
    script.parent.mkdir()
    script.write_text(SCRIPT.read_text(encoding="utf-8"), encoding="utf-8")
    (script.parent / "state-diagram.md").write_text(f"{maker.BEGIN}\n{maker.END}\n", encoding="utf-8")

    def run(*arguments: str) -> Any:
        command = [sys.executable, "-c", _RUN, str(SCRIPT.parent.parent), str(script), *arguments]
        return subprocess.run(command, stderr=subprocess.PIPE, timeout=60, check=False)

    stale = run("--check")
    assert stale.returncode == 1
    assert b"run python docs/make_state_diagram.py" in stale.stderr
    assert run().returncode == 0
    assert run("--check").returncode == 0


_RUN = """
import runpy, sys
sys.path.insert(0, sys.argv.pop(1))
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
