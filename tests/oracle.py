"""What must be true of a run whatever was done to it: one judge for all faults.

A test injects a fault into a protocol of `fault_steps`, runs it by `survive` and names who is guilty. What is checked
then (the numbers are those of docs/reliability.md):

1. every step has one fate, and it is the same for the protocol, the report and the journal;
2. a step was entered no more often than it was recorded as started, and than it may be tried (a file that each step
   appends one line to when it is entered says how often that was);
3. only the guilty and what depends on them have not finished, and each error names the step, its arguments, the worker,
   the cause and the peak memory;
4. no process, 5. no descriptor, thread or shared memory is left: `conftest.nothing_left_behind`, after every test;
6. the status of the run tells of the failure;
7. it all took no longer than it may: otherwise the stacks of all threads are shown, and the run is ended;
8. nothing has warned;
9. afterwards a fresh step still ran, in a worker.
"""

from __future__ import annotations

import _thread
import contextlib
import faulthandler
import os
import threading
import warnings
from collections import Counter
from typing import Any, Dict, Iterator, List, Mapping, Tuple, Type

from mpsteps._history import replay
from mpsteps._journal import read_journal
from mpsteps.errors import StepError
from mpsteps.report import RunReport
from mpsteps.run import run

BOUND = 30.0
"""Seconds that any of these runs may take, also on a machine that is busy with others."""

Guilt = Tuple[Type[StepError], str]
"""The kind of its error, and words that must stand in it."""


def survive(protocol: Any, guilty: Mapping[int, Guilt], bound: float = BOUND, **options: Any) -> RunReport:
    """Run a `fault_steps.Witnessed` protocol with `keepGoing`, and judge what became of it; its report."""
    with _bounded(bound), warnings.catch_warnings():
        warnings.simplefilter("error")
        report = run(protocol, keep_going=True, **options)
    assert_survived(protocol, report, guilty)
    return report


def assert_survived(protocol: Any, report: RunReport, guilty: Mapping[int, Guilt]) -> None:
    steps = protocol.getSteps()
    history = replay(read_journal(os.path.join(protocol.getWorkingDir(), "journal.log")).records)
    lost_causes = _downstream(steps, guilty)
    entered, started = entries(protocol), _started(protocol)
    for step in steps:
        number = step.getObjId()
        fate = history.steps[number].status
        if number in guilty:
            assert step.isFailed(), f"step {step} passed for {step.getStatus()}"
            assert fate in ("failed", "lost"), f"step {step} is {fate} in the journal"
            _check_error(step, *guilty[number], report)
        elif number in lost_causes:
            assert fate == "skipped", f"step {step} is {fate} though it depends on a guilty one"
            assert not entered[number], f"step {step} was entered though it depends on a guilty one"
        else:
            assert step.isFinished(), f"step {step} is innocent and {step.getStatus()}: {step.getErrorMessage()}"
            assert fate == "finished", f"step {step} is {fate} in the journal"
        allowed = 1 + protocol.retriesOf(step)
        assert entered[number] <= min(started[number], allowed), f"step {step} was entered {entered[number]} times"
    assert sorted(f.step for f in report.failed) == sorted(guilty)
    assert report.skipped == len(lost_causes)
    assert report.finished == len(steps) - len(guilty) - len(lost_causes)
    assert report.status == ("failed" if guilty else "finished"), report.message
    assert protocol.isFailed() == bool(guilty)
    fresh = steps[-1]
    assert fresh.funcName == "freshStep"
    assert fresh.isFinished()
    assert fresh.result[0] != os.getpid(), "the last step did not run in a worker"


def _check_error(step: Any, kind: Type[StepError], words: str, report: RunReport) -> None:
    error, message = step._error, step.getErrorMessage()
    assert isinstance(error, kind), f"{type(error).__name__}: {message}"
    assert error.step == step.getObjId()
    assert message.startswith(f"step {step.getObjId()} {step.funcName}({step._args[0]!r}"), message
    assert " failed in worker " in message, message
    assert words in message, message
    told = next(f for f in report.failed if f.step == step.getObjId())
    assert told.peak_kib > 1000, "no memory is told"
    assert "peak memory of its worker: " in message
    assert told.message in message


def entries(protocol: Any) -> Counter[int]:
    """How often each step was entered."""
    try:
        with open(protocol._getExtraPath("entered")) as f:
            return Counter(int(line.split()[0]) for line in f)
    except FileNotFoundError:
        return Counter()


def _started(protocol: Any) -> Counter[int]:
    found: Counter[int] = Counter()
    for record in read_journal(os.path.join(protocol.getWorkingDir(), "journal.log")).records:
        if record[0] == "started":
            found.update(record[4])
    return found


def _downstream(steps: List[Any], guilty: Mapping[int, Guilt]) -> List[int]:
    found: Dict[int, bool] = dict.fromkeys(guilty, True)
    for step in steps:  # prerequisites have smaller ids here
        if any(p in found for p in step._prerequisites):
            found[step.getObjId()] = True
    return [number for number in found if number not in guilty]


@contextlib.contextmanager
def _bounded(seconds: float) -> Iterator[None]:
    """A run that hangs shows where, and is ended as by Ctrl-C twice."""
    done = threading.Event()

    def end_it() -> None:
        if not done.wait(seconds):
            faulthandler.dump_traceback()
            while not done.wait(0.2):
                _thread.interrupt_main()

    watchdog = threading.Thread(target=end_it, daemon=True)
    watchdog.start()
    try:
        yield
    except KeyboardInterrupt:
        raise AssertionError(f"the run took more than {seconds} s") from None
    finally:
        done.set()
        watchdog.join()
