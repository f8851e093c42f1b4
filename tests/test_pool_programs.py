"""StepPool in whole programs: no `__main__` guard, code of `__main__`, a REPL, and what happens when the program ends.

Each program runs in an interpreter of its own; what it prints, its exit code and its silence on stderr are the promise.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, List, Optional

import psutil
import pytest
from pool_steps import SOON, until

ROOT = Path(__file__).resolve().parent.parent
PRELUDE = "import sys, time; from mpsteps import StepPool\n"


def environment() -> Any:
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p), "PYTHONUNBUFFERED": "1"}


def run(*arguments: str, feed: Optional[str] = None, code: int = 0, errors: bool = False) -> str:
    """What a Python prints. It must end with `code`, and say nothing on stderr unless `errors`."""
    done = subprocess.run(
        [sys.executable, *arguments], input=feed, capture_output=True, text=True, env=environment(), timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert errors or not done.stderr, done.stderr
    return done.stdout + (done.stderr if errors else "")


def words(text: str) -> List[str]:
    return sorted(text.split())


# --------------------------------------------------------------------- code of __main__

CODE_OF_MAIN = (
    PRELUDE
    + """
import enum, collections

class Point:
    scale = 2
    def __init__(self, x): self.x = x
    def doubled(self): return Point(self.x * self.scale)
    def __eq__(self, other): return type(other) is Point and other.x == self.x

class Colour(enum.Enum):
    RED = 1

class Odd(Exception):
    def __init__(self, a, b): super().__init__(a, b); self.b = b

Pair = collections.namedtuple('Pair', 'left right')
offset = 100

def shifted(x): return x + offset
def fail(): raise Odd(1, 2)
def colour(c): return c, Colour.RED
def pair(p): return Pair(p.right, p.left)
def factorial(n): return 1 if n < 2 else n * factorial(n - 1)

pool = StepPool(2)
assert pool.submit(shifted, 1).result() == 101
offset = 200
assert pool.submit(shifted, 1).result() == 201
assert pool.submit(Point(4).doubled).result() == Point(8)
assert isinstance(pool.submit(Point, 1).result(), Point)
assert list(pool.map(lambda p: p.x + offset, [Point(1), Point(2)])) == [201, 202]
assert pool.submit(colour, Colour.RED).result() == (Colour.RED, Colour.RED)
assert pool.submit(colour, Colour.RED).result()[0] is Colour.RED
assert pool.submit(pair, Pair(1, 2)).result() == Pair(2, 1)
assert pool.submit(factorial, 10).result() == 3628800
try:
    pool.submit(fail).result()
except Odd as error:
    assert error.b == 2
pool.shutdown()
print('all is well')
"""
)


@pytest.mark.versions
def test_a_script_without_a_guard(tmp_path: Path) -> None:
    """Functions, classes, enums, exceptions and changed globals of `__main__` work in workers, and come back as the
    very classes that they are here. Workers do not run the script again."""
    script = tmp_path / "script.py"
    script.write_text(CODE_OF_MAIN)
    assert run(str(script)) == "all is well\n"


@pytest.mark.versions
def test_a_program_from_the_command_line_and_from_standard_input() -> None:
    """There is no file that a worker could import."""
    assert run("-c", CODE_OF_MAIN) == "all is well\n"
    assert run("-", feed=CODE_OF_MAIN) == "all is well\n"


@pytest.mark.versions
def test_an_interactive_session() -> None:
    """As typed at the prompt, line by line; leaving it ends the pool."""
    lines = [
        "from mpsteps import StepPool", "pool = StepPool(2)", "def double(x):", "    return 2 * x", "",
        "print(list(pool.map(double, range(3))))", "k = 5", "print(pool.submit(lambda x: x + k, 1).result())",
        "f = pool.submit_step(double, pool.submit(double, 1))", "print(f.result())",
    ]  # fmt: skip
    out = run("-i", "-q", "-c", "import sys; sys.ps1 = sys.ps2 = ''", feed="\n".join(lines) + "\n", errors=True)
    assert out.split("\n")[:3] == ["[0, 2, 4]", "6", "4"]


def test_a_module_beside_the_script_is_found_by_workers(tmp_path: Path) -> None:
    """The workers' path is that of the program, also where it has been changed."""
    (tmp_path / "beside.py").write_text("def f(x): return x + 1\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "deeper.py").write_text("def g(x): return x + 2\n")
    script = tmp_path / "script.py"
    script.write_text(
        PRELUDE
        + f"sys.path.append({str(tmp_path / 'sub')!r})\nimport beside, deeper\n"
        + "with StepPool(1) as pool: print(pool.submit(beside.f, 1).result(), pool.submit(deeper.g, 1).result())"
    )
    assert run(str(script)) == "2 3\n"


def test_a_function_that_workers_cannot_import_is_an_error_of_its_step(tmp_path: Path) -> None:
    """A module that came to be after the workers: its name is in the message."""
    script = tmp_path / "script.py"
    script.write_text(
        PRELUDE
        + f"""
pool = StepPool(1)
pool.submit(abs, 1).result()
import os; os.mkdir({str(tmp_path / "late")!r}); sys.path.append({str(tmp_path / "late")!r})
open({str(tmp_path / "late" / "latecomer.py")!r}, 'w').write('def f(): pass')
import latecomer
print(pool.submit(latecomer.f).exception(), pool.submit(abs, -7).result())
pool.shutdown()
"""
    )
    out = run(str(script))
    assert "latecomer" in out
    assert out.endswith("7\n")


# ------------------------------------------------------------------- the end of the program

PRINT_LATER = (
    PRELUDE
    + """
def later(word):
    time.sleep(0.2)
    print(word, flush=True)
    return word
"""
)


@pytest.mark.versions
@pytest.mark.parametrize(
    "ending",
    [
        "pool = StepPool(1); pool.submit(later, 'apple'); pool.submit(later, 'pear')",
        "pool = StepPool(1); pool.submit(later, 'apple'); pool.submit(later, 'pear'); pool.shutdown(wait=False)",
        "pool = StepPool(1); pool.submit(later, 'apple'); pool.submit(later, 'pear'); del pool",
        "StepPool(1).map(later, ['apple', 'pear'])",
        "def main():\n pool = StepPool(2)\n pool.submit_step(later, 'pear', after=pool.submit(later, 'apple'))\nmain()",
    ],
    ids=["left alone", "shutdown(wait=False)", "del", "never named", "in a function"],
)
def test_what_was_submitted_is_done_when_the_program_ends(ending: str) -> None:
    """However little the program cares; nothing is said on stderr, and the exit code is 0."""
    assert words(run("-c", PRINT_LATER + ending)) == ["apple", "pear"]


def test_an_exit_code_of_the_program_is_kept() -> None:
    """sys.exit and an exception wait for the steps, too."""
    assert words(run("-c", PRINT_LATER + "StepPool(1).submit(later, 'apple'); sys.exit(5)", code=5)) == ["apple"]
    out = run("-c", PRINT_LATER + "StepPool(1).submit(later, 'apple'); 1 / 0", code=1, errors=True)
    assert "apple" in out
    assert "ZeroDivisionError" in out


def test_futures_may_be_cancelled_at_the_end() -> None:
    """`shutdown(wait=False, cancel_futures=True)`: what runs ends, the rest is not run, the program ends."""
    program = PRINT_LATER + (
        "pool = StepPool(1); fs = [pool.submit(later, 'apple') for _ in range(50)]\n"
        "while not fs[0].running(): time.sleep(0.01)\n"
        "pool.shutdown(wait=False, cancel_futures=True)"
    )
    assert words(run("-c", program)) == ["apple"]


def test_submitting_after_the_end_of_the_program_is_an_error() -> None:
    """With the words of the standard library; a callback of `atexit` that is older than the pool may try."""
    program = """
import atexit
@atexit.register
def last():
    try:
        pool.submit(id, None)
    except RuntimeError as error:
        print(error)
from mpsteps import StepPool
pool = StepPool(1)
pool.submit(id, 42).result()
"""
    assert "cannot schedule new futures after interpreter shutdown" in run("-c", program)


def test_a_callback_of_atexit_may_use_the_pool() -> None:
    """One that was registered after the import of mpsteps comes first."""
    program = PRELUDE + (
        "import atexit; pool = StepPool(1); atexit.register(lambda: print(pool.submit(abs, -3).result()))"
    )
    assert run("-c", program) == "3\n"


def test_importing_costs_little_and_starts_nothing() -> None:
    """`import mpsteps` loads neither the pool nor cloudpickle; naming StepPool starts no process and no thread."""
    program = (
        "import sys, mpsteps, threading\n"
        "print('cloudpickle' in sys.modules, 'mpsteps.pool' in sys.modules)\n"
        "mpsteps.StepPool\n"
        "print(threading.active_count())"
    )
    assert run("-c", program) == "False False\n1\n"


def test_who_submits_plain_calls_does_without_cloudpickle() -> None:
    """It takes long to load. Workers have it, as a step may leave them unable to load anything."""
    program = PRELUDE + (
        "import sys\n"
        "there = \"'cloudpickle' in __import__('sys').modules\"\n"
        "with StepPool(1) as pool:\n"
        "    print(pool.submit(eval, there).result(), eval(there))\n"
        "    print(pool.submit(lambda: 7).result(), eval(there))\n"
    )
    assert run("-c", program) == "True False\n7 True\n"


# ---------------------------------------------------------------- programs that are ended


def start(program: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(),
        universal_newlines=True, start_new_session=True,
    )  # fmt: skip


def family(pid: int) -> List[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def is_called(process: psutil.Process, name: str) -> bool:
    """Not one that has gone meanwhile: modules of old Pythons start programs while they are loaded."""
    try:
        return process.name() == name
    except psutil.NoSuchProcess:
        return False


def lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_program_that_is_ended_by_a_signal_leaves_no_process(number: int) -> None:
    """Workers in the middle of steps go, with the programs that the steps have started."""
    program = PRELUDE + (
        "import subprocess\n"
        "def busy(): return subprocess.call(['sleep', '60'])\n"
        "with StepPool(2) as pool:\n"
        "    fs = [pool.submit(busy) for _ in range(2)]\n"
        "    print('ready', flush=True)\n"
        "    try:\n"
        "        fs[0].result()\n"
        "    except KeyboardInterrupt:\n"
        "        import os; os._exit(130)\n"
    )
    with start(program) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        until(lambda: len([p for p in family(process.pid) if is_called(p, "sleep")]) == 2)
        below = family(process.pid)
        os.kill(process.pid, number)
        assert process.wait(SOON) == (130 if number == signal.SIGINT else -number)
        until(lambda: not any(map(lives, below)), 2)
