"""CPython's own tests of executors, run on StepPool, where the interpreter that runs this has brought them along.

They are imported from the standard library's `test` package, not copied. Left out is what sleeps for seconds (our tests
promise the same in less) and what is about the insides of the standard library's pools.
"""

from __future__ import annotations

import sys
import time
import unittest
import warnings
from typing import Any, Dict, List, Type

import pool_steps
import pytest

from mpsteps import StepPool

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the modules of old Pythons use what is deprecated
    whole = pytest.importorskip("test.test_concurrent_futures")
    if hasattr(whole, "ExecutorTest"):  # up to 3.11 one module, later a package
        homes = dict.fromkeys(("executor", "shutdown", "wait", "as_completed"), whole)
    else:
        names = {"executor": "executor", **{n: f"test_{n}" for n in ("shutdown", "wait", "as_completed")}}
        homes = {n: pytest.importorskip(f"test.test_concurrent_futures.{m}") for n, m in names.items()}

pytestmark = [pytest.mark.versions, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

LEFT_OUT = {
    *(["test_submit_keyword"] if sys.version_info < (3, 9) else []),  # `submit(fn=...)` was still allowed there
    "test_map_timeout", "test_timeout", "test_first_exception", "test_max_workers_too_large",  # 6 s; 3 s; Windows only
    "test_interpreter_shutdown", "test_submit_after_interpreter_shutdown", "test_hang_gh83386",  # programs that import
    # the executor from concurrent.futures by its name: tests/test_pool_programs.py has them
    "test_duplicate_futures", "test_free_reference_yielded_future", "test_correct_timeout_exception_msg",  # no executor
}  # fmt: skip


class _HastyPool(StepPool):
    """A pool that sleeps a fifth as long as it is told, to spare time; and whose workers need not import these tests,
    which would take as long."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        if fn is time.sleep:
            args = tuple(a / 5 for a in args)
        elif getattr(fn, "__name__", "") == "mul":
            fn = pool_steps.mul
        return super().submit(fn, *args, **kwargs)


class _Pool:
    """What the mixins of the standard library expect of a test case: `self.executor` and its type."""

    worker_count = 4
    executor_type = _HastyPool

    def setUp(self) -> None:
        self.executor = self.executor_type(self.worker_count)
        list(self.executor.map(abs, range(self.worker_count)))

    def tearDown(self) -> None:
        self.executor.shutdown(wait=True)


def _case(home: Any, mixin: str) -> Type[unittest.TestCase]:
    left_out: Dict[str, Any] = {n: None for n in LEFT_OUT if hasattr(getattr(home, mixin), n)}
    return type(f"StepPool{mixin}", (_Pool, getattr(home, mixin), unittest.TestCase), left_out)


StepPoolExecutorTest = _case(homes["executor"], "ExecutorTest")
StepPoolShutdownTest = _case(homes["shutdown"], "ExecutorShutdownTest")
StepPoolWaitTests = _case(homes["wait"], "WaitTests")
StepPoolAsCompletedTests = _case(homes["as_completed"], "AsCompletedTests")


def test_they_are_there() -> None:
    """A change of names in the standard library must not leave this module empty."""
    cases: List[Any] = [
        StepPoolExecutorTest, StepPoolShutdownTest, StepPoolWaitTests, StepPoolAsCompletedTests,
    ]  # fmt: skip
    assert all(len(unittest.defaultTestLoader.getTestCaseNames(case)) >= 2 for case in cases)
