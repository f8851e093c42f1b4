"""mpsteps._targets: what a user may write for a protocol, and what each mistake is answered with."""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
import textwrap

import cloudpickle
import pytest

from mpsteps._targets import comes_from_user, load_target, user_traceback
from mpsteps.errors import UsageError

PROTOCOL = """
    from mpsteps import Protocol

    class ProtOne(Protocol):
        def _insertAllSteps(self):
            self._insertFunctionStep(self.workStep)

        def workStep(self):
            return answer()

    def answer():
        return 42
"""


@pytest.fixture(autouse=True)
def clean_imports(tmp_path, monkeypatch):
    """Each test in an empty folder, and what it imports is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        module = sys.modules[name]
        if getattr(module, "__mpsteps_target__", None):
            cloudpickle.unregister_pickle_by_value(module)
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]
    importlib.invalidate_caches()


def write(path, text=PROTOCOL):
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(textwrap.dedent(text))


def problem(target):
    """The message that a target is refused with."""
    with pytest.raises(UsageError) as caught:
        load_target(target)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------- what is found


def test_a_file_with_one_protocol_needs_no_class_name():
    """Base classes, imported protocols and other classes do not count."""
    write("base.py")
    write("prot.py", """
        import abc
        from base import ProtOne
        from mpsteps import Protocol

        class Mixin: pass
        class ProtBase(Protocol):
            def _defineParams(self, form): pass
        class ProtAbstract(ProtBase, abc.ABC):
            @abc.abstractmethod
            def _insertAllSteps(self): pass
        class ProtUnlabelled(ProtBase):
            def _insertAllSteps(self): pass
        class _ProtPrivate(ProtBase):
            _label = 'private'
            def _insertAllSteps(self): pass
        class ProtReal(ProtUnlabelled): pass
        Alias = ProtReal
    """)
    assert load_target("prot.py").__name__ == "ProtReal"


def test_a_base_class_that_can_run_is_found_if_it_is_alone():
    """`_label = None` marks a base class in Scipion's way; it decides only where there is a choice."""
    write("prot.py", PROTOCOL.replace("def _insertAllSteps", "_label = None\n\n        def _insertAllSteps", 1))
    assert load_target("prot.py").__name__ == "ProtOne"


@pytest.mark.parametrize("target", ["sub/prot.py:ProtOne", "sub/prot.py", "sub.prot:ProtOne", "sub.prot"])
def test_file_and_module_are_found_from_the_current_folder(target):
    """With the class or without, by path or by name."""
    write("sub/prot.py")
    cls = load_target(target)
    assert cls.__name__ == "ProtOne"
    assert cls().validate() == []


def test_a_class_inside_a_class_is_named_with_dots():
    """As Python's qualified names."""
    write("prot.py", """
        from mpsteps import Protocol
        class Outer:
            class Inner(Protocol): pass
    """)
    assert load_target("prot.py:Outer.Inner").__qualname__ == "Outer.Inner"


def test_a_file_may_have_a_colon_or_no_suffix_in_its_name():
    """What exists is a file first."""
    write("a:b.py")
    write("script")
    assert load_target("a:b.py").__name__ == "ProtOne"
    assert load_target("script:ProtOne").__name__ == "ProtOne"


# --------------------------------------------------------------------------------------------- how a file is imported


def test_a_file_has_a_module_name_of_its_own_and_says_where_it_is(tmp_path):
    """The name is the same each time; a second file of that name gets another one."""
    write("json.py")
    write("sub/json.py")
    first, second = load_target("json.py"), load_target("sub/json.py")
    again = load_target(str(tmp_path / "json.py"))

    assert "json" in first.__module__
    assert first.__module__ == again.__module__ != second.__module__
    assert first.__module__ != "json"
    assert sys.modules[first.__module__].__mpsteps_target__ == str(tmp_path / "json.py")


def test_what_a_file_defines_travels_by_value(tmp_path):
    """A process that knows nothing of the file can use its classes and functions."""
    write("prot.py")
    cls = load_target("prot.py")
    parcel = cloudpickle.dumps(cls)
    assert pickle.loads(parcel) is cls
    os.unlink("prot.py")
    root = os.path.dirname(os.path.dirname(os.path.abspath(sys.modules["mpsteps"].__file__)))
    code = f"import pickle, sys; sys.path.insert(0, {root!r}); print(pickle.loads({parcel!r}).workStep(None))"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=str(tmp_path), stdout=subprocess.PIPE, check=True, timeout=60
    )
    assert found.stdout.strip() == b"42"


def test_a_file_imports_its_neighbours():
    """Its folder comes first on Python's path, as for a script, and the current folder follows."""
    write("sub/neighbour.py", "NUMBER = 1")
    write("here.py", "NUMBER = 2")
    write("sub/prot.py", "import neighbour\nimport here\n" + textwrap.dedent(PROTOCOL))
    module = sys.modules[load_target("sub/prot.py").__module__]
    assert (module.neighbour.NUMBER, module.here.NUMBER) == (1, 2)


def test_a_change_within_the_same_second_is_seen():
    """No cached bytecode is trusted, which has the same time and size."""
    write("prot.py", PROTOCOL.replace("ProtOne", "ProtOld"))
    times = os.stat("prot.py")
    assert load_target("prot.py").__name__ == "ProtOld"
    write("prot.py", PROTOCOL.replace("ProtOne", "ProtNew"))
    os.utime("prot.py", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert load_target("prot.py").__name__ == "ProtNew"


# ------------------------------------------------------------------------------------------------- what is refused


def test_several_protocols_are_named():
    """With the way to say which."""
    write("prot.py", PROTOCOL + textwrap.indent(textwrap.dedent(PROTOCOL), "    ").replace("ProtOne", "ProtTwo"))
    text = problem("prot.py")
    assert "2 protocols (ProtOne, ProtTwo)" in text
    assert "prot.py:ProtOne" in text


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = 1", "needs a class that derives from mpsteps.Protocol"),
        ("from mpsteps import Protocol\nclass ProtBase(Protocol): pass", "ProtBase): a protocol needs _insertAllSteps"),
        ("from base import ProtOne", "to run the one that it imports: prot.py:ProtOne"),
        ("class Protocol: __module__ = 'pyworkflow.protocol'\nclass ProtOld(Protocol): pass", "derives from Scipion's"),
    ],
)
def test_a_file_without_a_protocol_says_what_it_has_instead(source, expected):
    """Nothing, base classes only, imported ones, or Scipion's."""
    write("base.py")
    write("prot.py", source)
    assert expected in problem("prot.py")


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("prot.py:ProtTwo", "has no class ProtTwo: did you mean ProtOne?"),
        ("prot.py:answer", "is no class but of type function"),
        ("json:JSONDecoder", "is no protocol: it must derive from mpsteps.Protocol"),
        ("abstract.py:ProtBase", "is abstract (it lacks _insertAllSteps)"),
    ],
)
def test_a_class_that_is_missing_or_no_protocol_is_named(target, expected):
    """With the one that is meant, where it can be guessed."""
    write("prot.py")
    write("abstract.py", """
        import abc
        from mpsteps import Protocol
        class ProtBase(Protocol, abc.ABC):
            @abc.abstractmethod
            def _insertAllSteps(self): pass
    """)
    assert expected in problem(target)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("port.py", "there is no file 'port.py' (did you mean 'prot.py'?)"),
        ("nowhere/prot.py:ProtOne", "there is no file 'nowhere/prot.py'"),
        ("port:ProtOne", "there is no module 'port'"),
        ("prot.sub:ProtOne", "there is no module 'prot.sub'"),
        ("./", "is a folder"),
        ("two words", "neither a file nor the name of a module"),
        ("", "names no file and no module"),
        (":ProtOne", "names no file and no module"),
        ("__main__:ProtOne", "interactive session"),
    ],
)
def test_a_target_that_is_nowhere_says_what_it_may_be(target, expected):
    """One sentence, which names it."""
    write("prot.py")
    assert expected in problem(target)


def test_a_syntax_error_gives_file_line_and_text():
    """In one line, without a traceback."""
    write("prot.py", "import os\ndef f(:\n    pass\n")
    text = problem("prot.py")
    assert text.startswith("syntax error in prot.py, line 2")
    assert "def f(:" in text
    assert "\n" not in text


def test_an_error_while_importing_shows_the_users_lines_only():
    """What failed and where, none of our frames, none of importlib's."""
    write("prot.py", "def load():\n    import no_such_module\nload()\n")
    text = problem("prot.py")
    assert "'prot.py' cannot be imported: ModuleNotFoundError: No module named 'no_such_module'" in text
    assert text.count("prot.py\", line") == 2
    assert "importlib" not in text
    assert "_targets" not in text
    assert not [name for name in sys.modules if name.startswith("mpsteps_target_prot")]


def test_a_broken_module_is_told_from_a_missing_one():
    """`mod:Class` where mod imports something that is not there."""
    write("mod.py", "import no_such_module")
    text = problem("mod:ProtOne")
    assert "'mod' cannot be imported" in text
    assert "mod.py\", line 1" in text


def test_what_mpsteps_itself_refuses_while_importing_is_told_with_its_line():
    """A wrong decorator, for example."""
    write("prot.py", "from mpsteps import step\n@step(cpus=0)\ndef f(self): pass\n")
    text = problem("prot.py")
    assert "cpus of a step must be" in text
    assert "prot.py\", line 2" in text


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import sys; sys.exit(3)", "called sys.exit(3) while it was imported"),
        ("from . import x", "name it as package.module:Class"),
        ("import pyworkflow.no_such_part", "from mpsteps import Protocol"),
    ],
)
def test_common_mistakes_in_a_file_come_with_their_way_out(source, expected):
    """A script without a guard, a module of a package, a protocol of Scipion's."""
    write("prot.py", source)
    assert expected in problem("prot.py")


def test_only_the_users_frames_are_the_users():
    """The demo counts as a user's protocol; the rest of mpsteps does not."""
    with pytest.raises(UsageError) as ours:
        load_target("")
    here = user_traceback(ours.value)
    assert comes_from_user(ours.value)  # this test called it
    assert __file__ in here
    assert f"mpsteps{os.sep}_targets.py" not in here
