"""Imports only go down. Told from the syntax trees of mpsteps/: nothing is imported here.

A module that is not in the table (a new one) is held only to the rules that need no level: no circles, no optional
package outside its place, no camelCase.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

import pytest

PACKAGE = Path(__file__).parent.parent / "mpsteps"

# A module may import, when it is loaded, from its own level and those below. The longest entry that fits counts.
LEVELS: Dict[int, Tuple[str, ...]] = {
    0: (  # words that all use
        "errors", "constants", "_texts", "report", "listeners", "_context", "_machine", "_signals", "_proctree",
        "_memory", "_cards", "_peaks", "_event_lines", "_logging_relay", "_safe_stream",
    ),
    1: (  # what a user declares: knows nothing of how it is run
        "validators", "scalars", "_elements", "params", "form", "_result_of", "_step_options", "steps", "stepsgraph",
        "_outcome", "_paths", "_inputs", "_programs", "protocol", "streaming",
    ),
    2: ("_core",),  # pure
    3: ("_ipc",),  # what crosses the process boundary
    4: (  # what lasts
        "_private_files", "_rundir", "_records", "_digest", "_history", "_journal_format", "_journal", "_export",
        "_workplace", "_begun", "_leftovers", "_timeline", "_results_file", "_trace",
        "_account", "_limits", "_report_data", "_report_page", "_explain",
        "_rerun", "_live", "_journal_follow", "_forecast", "_learned_memory",
    ),
    5: (  # a step at work
        "_results", "_image", "_local", "_remote", "_output", "_worker", "_worker_blocks", "_large_values",
        "_step_values", "_zygote", "_spawn", "_parent", "_demands", "_failures", "_statelog", "_conflicts", "_writes",
        "_ownchanges", "_recorder", "_shared_array", "_deadlines", "_deaths", "_memory_watch", "_rests",
        "_surroundings", "_reentrant", "_turns", "_worker_forks", "_worker_lock", "_worker_recent", "_worker_replica",
        "_worker_replies", "_lock_queue",
    ),
    6: ("engines", "_work", "_in_order", "_coordinator"),  # where steps run, and the one loop
    7: (  # what steps are to the loop
        "_announcer", "_outgoing", "_protocol_lock", "_protocol_run", "_resume", "_pool_task", "_pool_functions",
        "_carried", "_pool_work", "_step_keys", "_about_session", "_ending",
    ),
    8: ("_session", "run", "pool"),  # the composition roots
    9: ("", "cli", "progress", "_targets", "_checkup", "_self_test", "_live_logs", "_run_figures", "demo", "scipion",
        "__main__"),  # what people and other programs hold
}  # fmt: skip

# Imports inside functions may point anywhere, and each is here with its reason.
INSIDE_FUNCTIONS: Dict[Tuple[str, str], str] = {
    ("protocol", "run"): "Protocol.run() is a short way of saying mpsteps.run.run(protocol)",
    ("protocol", "stepsgraph"): "only who asks for the graph pays for it",
    ("_workplace", "_journal"): "only where there is a journal, or when the new process has been started",
    ("_workplace", "_leftovers"): "likewise",
    ("run", "_session"): "loaded while the new process loads its own modules",
    ("_session", "engines.processes"): "the inline engine needs no workers",
    ("_session", "engines.dask.bus"): "only clusters need Dask",
    ("_session", "engines.remote"): "likewise",
    ("_pool_work", "engines.dask.bus"): "likewise",
    ("_pool_work", "engines.remote"): "likewise",
    ("_session", "engines.about"): "likewise",
    ("_pool_work", "engines.about"): "likewise",
    ("pool", "_pool_work"): "loaded while the new process loads its own modules: a pool starts in half the time",
    ("pool", "_core.steps"): "likewise",
    ("pool", "_step_options"): "likewise",
    ("_remote", "steps"): "only workers whose steps ask for other steps pay for it",
    ("_worker_replica", "_writes"): "only workers in whose back others changed what they had changed read source",
    ("_zygote", "_worker"): "loaded once, before the first fork: workers find it in memory",
    ("_zygote", "_ipc.lane"): "likewise",
    ("_zygote", "_ipc.pickling"): "likewise",
    ("_zygote", "_begun"): "a pool has no journal to be told of what had begun, and is not to wait for this",
    ("_ipc.wire", "_ipc.pickling"): "cloudpickle takes long to load, and who submits plain calls does without",
    ("_ipc.large", "_ipc.pickling"): "likewise",
    ("_begun", "_ipc.lane"): "used in the zygote, which has it already",
    ("engines.inline", "_ipc.wire"): "only where something is taken back",
    ("cli", "cli.arguments"): "python -m mpsteps says what is missing before it loads anything else",
    ("cli.running", "demo.protocol"): "the demo needs numpy and more",
    ("scipion.plugin", "scipion.executor"): "Scipion imports the plug-in in all its processes, few of which run steps",
    ("scipion.executor", "scipion._run"): "likewise, of protocols with the mixin",
    ("demo.protocol", "demo.figures"): "matplotlib is loaded by the step that draws",
}

PURE_MUST_NOT_IMPORT = {
    "os", "time", "threading", "multiprocessing", "logging", "io", "pickle", "subprocess", "socket", "random",
    "signal", "sys", "datetime", "asyncio", "select", "mmap", "cloudpickle", "psutil", "marshal", "concurrent",
}  # fmt: skip

# Packages that need not be there, and the places that may import them.
OPTIONAL: Dict[str, Tuple[str, ...]] = {
    "rich": ("progress",),
    "numpy": ("demo", "_shared_array", "_ipc.cells"),
    "scipy": ("demo",),
    "mrcfile": ("demo",),
    "matplotlib": ("demo",),
    "dask": ("engines.dask",),
    "distributed": ("engines.dask",),
    "dask_jobqueue": ("engines.dask",),
    "pyworkflow": ("scipion",),
}

# Modules that speak to authors of protocols, in Scipion's accent.
CAMEL_CASE = {
    "protocol", "params", "form", "scalars", "validators", "steps", "stepsgraph", "streaming", "_inputs", "_paths",
    "_outcome", "_elements", "_result_of", "_texts", "_context", "constants", "demo", "scipion",
}  # fmt: skip


class Import(NamedTuple):
    """`importer` imports `imported`: a module of mpsteps by its name in the package, or another's full name."""

    importer: str
    imported: str
    ours: bool
    in_function: bool
    for_types: bool


def modules() -> Dict[str, ast.Module]:
    """Name in the package ('' is mpsteps itself) -> syntax tree."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


MODULES = modules()


def imports_of(module: str) -> Iterator[Import]:
    """All imports of a module, wherever they stand."""

    def walk(node: ast.AST, in_function: bool, for_types: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            inside = in_function or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
            types_only = for_types or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test))
            for name in _names(child, module):
                ours = name == "mpsteps" or name.startswith("mpsteps.")
                yield Import(module, name[len("mpsteps.") :] if ours else name, ours, in_function, for_types)
            yield from walk(child, inside, types_only)

    return walk(MODULES[module], False, False)


def _names(node: ast.AST, module: str) -> List[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    assert not node.level, f"{module} imports relative to itself: say from where"
    base = node.module or ""
    # `from mpsteps import _context` imports a module, `from mpsteps.errors import UsageError` a name of one.
    full = [f"{base}.{alias.name}" for alias in node.names]
    return [name if name[len("mpsteps.") :] in MODULES else base for name in full]


IMPORTS = [found for module in MODULES for found in imports_of(module)]
LOADED = [i for i in IMPORTS if not i.in_function and not i.for_types]  # what happens when a module is loaded


def level(module: str) -> Optional[int]:
    """The level of a module; None for one that the table does not know."""
    table = {prefix: number for number, prefixes in LEVELS.items() for prefix in prefixes}
    while module and module not in table:
        module = module.rpartition(".")[0]
        if not module:
            return None
    return table[module]


def is_in(module: str, places: Set[str]) -> bool:
    """Whether a module is one of these, or in one of these packages."""
    return any(module == place or module.startswith(place + ".") for place in places)


def test_imports_only_go_down() -> None:
    """What is above knows what is below, never the other way round: any upper part can be deleted or replaced."""
    upward = []
    for i in LOADED:
        if i.ours and i.imported in MODULES:
            own, other = level(i.importer), level(i.imported)
            if own is not None and other is not None and other > own:
                upward.append(f"{i.importer} (level {own}) imports {i.imported} (level {other})")

    assert not upward, upward


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Any two modules of one level can be read one after the other."""
    needs: Dict[str, Set[str]] = {module: set() for module in MODULES}
    for i in LOADED:
        if i.ours and i.imported in MODULES and i.imported != i.importer:
            needs[i.importer].add(i.imported)
    while True:
        free = {module for module, needed in needs.items() if not needed}
        if not free:
            break
        needs = {module: needed - free for module, needed in needs.items() if module not in free}

    assert not needs, f"these import each other, or what does: {sorted(needs)}"


def test_every_import_of_ours_is_of_a_module_that_exists() -> None:
    """Also those inside functions, which no import of the package would notice."""
    missing = [i for i in IMPORTS if i.ours and i.imported not in (*MODULES, "mpsteps")]

    assert not missing


def test_imports_inside_functions_are_listed_with_their_reason() -> None:
    """They are the exceptions: each has one."""
    found = {(i.importer, i.imported) for i in IMPORTS if i.ours and i.in_function and i.imported in MODULES}
    unlisted = found - set(INSIDE_FUNCTIONS)

    assert not unlisted, f"move these to the top of their modules, or give the reason in INSIDE_FUNCTIONS: {unlisted}"
    assert not [pair for pair, reason in INSIDE_FUNCTIONS.items() if not reason]


def test_the_core_is_pure() -> None:
    """No clock, process, file, lock or logger; of mpsteps only itself and the errors."""
    for i in IMPORTS:
        if is_in(i.importer, {"_core"}):
            assert i.ours or i.imported.split(".")[0] not in PURE_MUST_NOT_IMPORT, f"{i.importer} imports {i.imported}"
            assert not i.ours or is_in(i.imported, {"_core", "errors"}), f"{i.importer} imports {i.imported}"


def test_the_core_calls_nothing_that_looks_outside() -> None:
    """Nor does it get at the outside without an import."""
    for module, tree in MODULES.items():
        if is_in(module, {"_core"}):
            names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
            assert not names & {"open", "print", "input", "exec", "eval", "__import__", "id"}, module


def test_who_declares_does_not_know_how_it_is_run() -> None:
    """Level 1 imports neither core nor processes, also not for types; `Protocol.run` is the one exception."""
    for i in IMPORTS:
        if (i.importer, i.imported) == ("protocol", "run"):
            continue
        if level(i.importer) == 1 and i.ours and i.imported in MODULES:
            assert (level(i.imported) or 0) <= 1, f"{i.importer} imports {i.imported}"


def test_a_worker_loads_nothing_of_protocols_forms_or_command_line() -> None:
    """What a worker loads decides how fast it starts: followed through all modules that loading it loads."""
    loaded, todo = set(), ["_worker", "_zygote"]
    while todo:
        module = todo.pop()
        if module not in loaded:
            loaded.add(module)
            todo += [i.imported for i in LOADED if i.importer == module and i.ours and i.imported in MODULES]

    heavy = {"protocol", "params", "form", "scalars", "validators", "run", "pool", "cli", "_coordinator", "_core"}
    assert len(loaded) > 5
    assert not [module for module in loaded if is_in(module, heavy)]


@pytest.mark.parametrize("package", OPTIONAL)
def test_an_optional_package_is_imported_in_its_one_place(package: str) -> None:
    """Everything else works without it."""
    importers = {i.importer for i in IMPORTS if not i.ours and i.imported.split(".")[0] == package}
    strays = {importer for importer in importers if not is_in(importer, set(OPTIONAL[package]))}

    assert not strays


def test_camel_case_stops_at_the_border() -> None:
    """Scipion's accent is spoken where authors of protocols listen, and nowhere else."""
    strays = [
        f"{module}.{node.name}"
        for module, tree in MODULES.items()
        if not is_in(module, CAMEL_CASE)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and re.search("[a-z0-9][A-Z]", node.name)
    ]

    assert not strays


def test_the_table_names_only_modules_that_there_are_or_will_be() -> None:
    """A name that is left over after a module was renamed would let its successor go unchecked."""
    planned = {"scipion"}
    for prefixes in LEVELS.values():
        for prefix in prefixes:
            assert prefix in MODULES or prefix in planned, f"{prefix!r} is in LEVELS and not in mpsteps/"


def test_the_rules_see_what_they_look_for() -> None:
    """Numbers that would be 0 if the walk had missed everything."""
    assert len(MODULES) > 40
    assert len([i for i in LOADED if i.ours]) > 100
    assert level("_core.scheduler") == level("_core.some_new_part") == 2
    assert level("somebodys_new_module") is None
    assert any(i.in_function for i in IMPORTS)
    assert any(i.for_types for i in IMPORTS)
