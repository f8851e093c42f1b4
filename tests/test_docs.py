"""The documents: what they show runs, what they link to exists, what they list is complete."""

from __future__ import annotations

import ast
import configparser
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Dict, Iterator, List, Set, Tuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "mpsteps/_ipc/README.md",
     ROOT / "mpsteps/demo/data/README.md"]
)  # fmt: skip
TIMEOUT = 60

CI_COMMAND = "python -m pip install tox && tox"
DEMO_COMMAND = 'python -m pip install ".[demo]" && mpsteps demo'


def blocks(text: str, language: str) -> List[str]:
    """The contents of all code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def section(text: str, title: str) -> str:
    """What stands under a heading of the second level."""
    return text.split(f"\n## {title}\n")[1].split("\n## ", maxsplit=1)[0]


def scripts() -> Dict[str, str]:
    """README's Python blocks by the file name that stands in their first line."""
    found = {}
    for block in blocks(README, "python"):
        name = re.match(r"# (\w+\.py)\n", block)
        assert name, f"a Python block of the README must begin with its file name: {block[:60]!r}"
        found[name.group(1)] = block
    return found


def promised_output(script: str) -> List[str]:
    """The comments behind print(...), and those that end the block: what the script says it prints."""
    inline = re.findall(r"^ *print\(.*\)  # (.*)$", script, re.MULTILINE)
    last = re.search(r"(?:^# .*\n)+\Z", script, re.MULTILINE)
    return inline + [line[2:] for line in last.group().splitlines()] if last else inline


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with README's scripts in it."""
    for name, script in scripts().items():
        (tmp_path / name).write_text(script, encoding="utf-8")
    return tmp_path


def run(command: List[str], folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run a Python command with this checkout's mpsteps."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return subprocess.run(
        [sys.executable, *command], cwd=str(folder), env={**os.environ, "PYTHONPATH": path}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=TIMEOUT, check=False,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ what is shown runs


def test_the_readme_has_scripts_that_promise_output():
    """Without this, the next test could pass by running nothing."""
    promises = {name: promised_output(script) for name, script in scripts().items()}
    assert {"example.py", "pool.py"} <= set(promises)
    assert sum(1 for lines in promises.values() if lines) >= 3, promises


@pytest.mark.versions
@pytest.mark.parametrize("name", sorted(scripts()))
def test_each_script_of_the_readme_prints_what_its_comments_say(here, name):
    """Nobody has to guess whether an example works."""
    done = run([name], here)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == promised_output(scripts()[name])


@pytest.mark.versions
def test_the_commands_of_the_readme_do_what_it_says(here):
    """Each `mpsteps` command in its blocks, in order, in one folder; output where it shows output."""
    count = 0
    for command, shown in _shell_commands():
        done = run(["-m", *shlex.split(command, comments=True)], here)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        if shown:
            assert _without_times(done.stdout) == _without_times(shown), command
        count += 1
    assert count >= 5
    report = run(["-m", "mpsteps", "steps", "Runs/000001_ProtPrimes", "--json"], here)
    steps = json.loads(report.stdout)
    assert steps["sessions"] >= 2
    assert steps["total"] == 26, "25 ranges and the output, after the resume with another value"


def test_a_resume_with_another_value_keeps_what_the_readme_says(here):
    """5 new ranges and the output run, 20 are kept."""
    assert run(["-m", "mpsteps", "run", "example.py", "--quiet"], here).returncode == 0
    done = run(["-m", "mpsteps", "resume", "Runs/000001_ProtPrimes", "--set", "ranges=25", "--json"], here)
    assert "5 new ranges and the output; 20 are kept" in README
    report = json.loads(done.stdout)
    assert (report["total"], report["kept"], report["finished"]) == (26, 20, 26)


def _shell_commands() -> Iterator[Tuple[str, str]]:
    """The README's commands that begin with `mpsteps`, and what it shows of their output."""
    for block in re.findall(r"^```(?:console|sh)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL):
        command, shown = "", ""
        for line in block.splitlines():
            if re.match(r"(\$ )?mpsteps ", line):
                if command:
                    yield command, shown
                command, shown = re.sub(r"^\$ ", "", line), ""
            elif command:
                shown += line + "\n"
        if command:
            yield command, shown


def _without_times(text: str) -> str:
    return re.sub(r"[\d.]+ s\b", "? s", text)


# ------------------------------------------------------------------------------------------------ the command line


def test_the_table_of_commands_is_that_of_the_help():
    """Every command is in the README's table, and no other; the help names them all."""
    from mpsteps.cli.arguments import COMMANDS

    table = re.findall(r"^\| `mpsteps (\w+)", section(README, "The command line"), re.MULTILINE)
    assert sorted(table) == sorted(COMMANDS)
    shown = run(["-m", "mpsteps", "--help"], ROOT).stdout
    for command in table:
        assert re.search(rf"^ +{command}\b", shown, re.MULTILINE), f"mpsteps --help does not name {command}"


def test_every_option_that_the_readme_names_exists(capsys):
    """`--something` in the README is an option of one of the commands."""
    from mpsteps.cli.arguments import COMMANDS, parse

    known = {"--version"}
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            parse([command, "--help"])
        known |= set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README))
    assert named
    assert named <= known, f"the README names {sorted(named - known)}"


def test_every_environment_variable_that_the_readme_names_is_read():
    """`MPSTEPS_...` in the README stands in the source, too."""
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "mpsteps").rglob("*.py"))
    for name in set(re.findall(r"\bMPSTEPS_[A-Z]+", README)):
        assert name in source, name


def test_the_two_commands_are_there_and_ci_runs_the_second():
    """What a newcomer types is what CI runs, to the letter."""
    shell = [line for block in blocks(README, "sh") for line in block.splitlines()]
    assert DEMO_COMMAND in shell
    assert CI_COMMAND in shell
    assert CI_COMMAND in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_what_the_commands_of_the_documents_need_is_declared():
    """Extras in brackets, environments of tox and measuring scripts that are named exist."""
    setup, tox = configparser.ConfigParser(interpolation=None), configparser.ConfigParser(interpolation=None)
    setup.read(str(ROOT / "setup.cfg"), encoding="utf-8")
    tox.read(str(ROOT / "tox.ini"), encoding="utf-8")
    text = README + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    extras = {e for found in re.findall(r'"\.\[([\w,]+)\]"', text) for e in found.split(",")}
    assert {"demo", "test", "perf"} <= extras <= set(setup["options.extras_require"])
    assert "mpsteps = mpsteps.cli:main" in setup["options.entry_points"]["console_scripts"]
    environments = re.split(r"[,\s]+", tox["tox"]["env_list"])
    for name in {e for found in re.findall(r"tox -e ([\w,-]+)", text) for e in found.split(",")}:
        assert name in environments, f"tox.ini has no environment {name}"
        assert f"testenv:{name}" in tox, f"tox.ini says nothing of {name}: it would run the test-suite"
    for name in re.findall(r"python -m perf\.(\w+)", text):
        assert (ROOT / "perf" / f"{name}.py").exists(), name


# ------------------------------------------------------------------------------------------------ links


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document):
    """Every link to a file of ours names one that is there, and every #fragment a heading."""
    for target in re.findall(r"\]\(([^)\s]+)\)", _without_code(document.read_text(encoding="utf-8"))):
        if re.match(r"https?://", target):
            continue
        name, _, fragment = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        assert path.exists(), f"{document.name} links to {target}"
        if fragment:
            assert fragment in _headings(path), f"{document.name} links to {target}, which has no such heading"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_tests_that_a_document_names_are_there(document):
    """A promise that names its test must not name one that has been renamed."""
    for name in re.findall(r"\btests/\w+\.py\b", document.read_text(encoding="utf-8")):
        assert (ROOT / name).exists(), f"{document.name} names {name}"


def test_every_promise_of_the_page_on_reliability_names_a_test_that_is_there():
    """In each row of its tables; a test that was renamed is found."""
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    named = re.findall(r"`tests/(\w+\.py)::(\w+)`", text)
    assert len(named) > 60
    for file, name in named:
        assert re.search(rf"^ *def {name}\(", (ROOT / "tests" / file).read_text(encoding="utf-8"), re.M), (file, name)
    tables = re.findall(r"^\| what .*\| tests \|\n\|[-|]+\n((?:\|.*\n)+)", text, re.M)
    for row in "".join(tables).splitlines():
        assert re.search(r"`tests/\w+\.py::\w+`|\| the same \|$", row), row


def _without_code(text: str) -> str:
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"(?<!\[)`[^`\n]*`(?!\])", "", text)


def _headings(path: Path) -> Set[str]:
    """The fragments of a document's headings, as code hosts make them."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


# ------------------------------------------------------------------------------------------------ the module map


def _map() -> List[str]:
    """The modules of the map, from its top."""
    lines = re.findall(r"^- `([\w/]+\.py)`: (.*)$", section(ARCHITECTURE, "Module map"), re.MULTILINE)
    for name, what in lines:
        assert len(what) > 5, f"{name}: say what it is for"
    return [name for name, _ in lines]


def test_the_module_map_is_complete():
    """Every module has one line in docs/ARCHITECTURE.md, and every line a module."""
    modules = sorted(path.relative_to(ROOT / "mpsteps").as_posix() for path in (ROOT / "mpsteps").rglob("*.py"))
    assert sorted(_map()) == modules


def test_a_module_imports_only_what_stands_above_it_in_the_map():
    """Imports only go down; the map is read from its top."""
    place = {name: i for i, name in enumerate(_map())}
    wrong = [
        f"{name} imports {other}"
        for name in place
        if (ROOT / "mpsteps" / name).exists()
        for other in _imports(name)
        if place.get(other, 0) >= place[name] and other != name
    ]
    assert not wrong, "\n".join(wrong)


def _imports(name: str) -> Set[str]:
    """The modules of ours that a module imports when it is loaded."""
    found: Set[str] = set()
    for node in _loaded(ast.parse((ROOT / "mpsteps" / name).read_text(encoding="utf-8")).body):
        if isinstance(node, ast.Import):
            found.update(_file_of(alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                found.add(_file_of(f"{node.module}.{alias.name}") or _file_of(node.module))
    return found - {""}


def _loaded(body: List[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run at import: not those in functions, nor those for type checkers only."""
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            yield from _loaded(node.orelse)
            continue
        yield node
        for part in ("body", "orelse", "finalbody"):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield from _loaded(getattr(node, part, []))
        for handler in getattr(node, "handlers", []):
            yield from _loaded(handler.body)


def _file_of(module: str) -> str:
    """'_core/steps.py' for 'mpsteps._core.steps'; '' for what is no module of ours."""
    package, _, rest = module.partition(".")
    if package != "mpsteps":
        return ""
    path = rest.replace(".", "/")
    for name in (f"{path}.py", f"{path}/__init__.py".lstrip("/")):
        if (ROOT / "mpsteps" / name).exists():
            return name
    return ""


# ------------------------------------------------------------------------------------------------ decisions


def test_decisions_are_numbered_listed_and_whole():
    """One page each, none missing in the list, each with its four parts."""
    folder = ROOT / "docs" / "decisions"
    pages = sorted(path for path in folder.glob("*.md") if path.name != "README.md")
    assert [page.name[:4] for page in pages] == [f"{n:04}" for n in range(1, len(pages) + 1)]
    listed = re.findall(r"\]\((\d{4}-[^)]+)\)", (folder / "README.md").read_text(encoding="utf-8"))
    assert listed == [page.name for page in pages]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert text.startswith(f"# {page.name[:4]}. "), page.name
        for part in ("**Context.**", "**Decision.**", "**Consequences.**", "**What would change it.**"):
            assert part in text, f"{page.name} has no {part}"


def test_the_version_is_in_the_changelog():
    """What is released, or will be next, has its section."""
    import mpsteps

    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\n## [{mpsteps.__version__}]" in changes
    assert "\n## [Unreleased]" in changes
