"""What steps log in workers arrives at the handlers of the coordinator's process."""

from __future__ import annotations

import logging
import multiprocessing
import threading

import pytest

import mpsteps
from mpsteps import STEPS_PARALLEL, Protocol
from mpsteps import _logging_relay as relay

logger = logging.getLogger("tests.relay")


class Heard(logging.Handler):
    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        self.records.append(record)

    def texts(self, name="tests.relay"):
        return [r.getMessage() for r in self.records if r.name == name]


@pytest.fixture
def heard():
    """A handler of the root logger, at level INFO, as an application has it."""
    handler, root, level = Heard(), logging.getLogger(), logging.getLogger().level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield handler
    root.removeHandler(handler)
    root.setLevel(level)


class ProtLogs(Protocol):
    stepsExecutionMode = STEPS_PARALLEL

    def _defineParams(self, form):
        form.addParallelSection(threads=2)

    def _insertAllSteps(self):
        for i in range(3):
            self._insertFunctionStep(self.talkStep, i, prerequisites=[])
        self._insertFunctionStep(self.oddStep, prerequisites=[1, 2, 3])

    def talkStep(self, i):
        logger.info("step %d of %s", i, {"a": i})
        logger.debug("not wanted")
        self.info("for the step's log")

    def oddStep(self):
        try:
            raise ValueError("inside")
        except ValueError:
            logger.exception("with %s", "traceback")
        thread = threading.Thread(target=logger.warning, args=("from a thread",))
        thread.start()
        thread.join()
        logger.info("\udce9 %s", object)
        logger.info("x" * 100_000)
        child = multiprocessing.get_context("fork").Process(target=logger.error, args=("from a fork",))
        child.start()
        child.join()


def test_records_arrive_with_step_worker_and_traceback(heard, tmp_path):
    """At the levels of this process; each once; what belongs to the step's log, or to a fork, does not come."""
    protocol = ProtLogs(workingDir=str(tmp_path / "run"))
    assert protocol.run().ok, protocol.getErrorMessage()
    texts = heard.texts()
    assert sorted(t for t in texts if t.startswith("step ")) == [f"step {i} of {{'a': {i}}}" for i in range(3)]
    assert "not wanted" not in texts
    assert "from a fork" not in texts
    assert "from a thread" in texts
    assert "\udce9 <class 'object'>" in texts
    assert max(map(len, texts)) == relay.MOST_CHARACTERS
    assert heard.texts("mpsteps.protocol") == []
    record = next(r for r in heard.records if r.getMessage() == "with traceback")
    assert record.mpsteps_step == 4
    assert record.levelname == "ERROR"
    assert record.process != multiprocessing.current_process().pid
    assert (record.funcName, record.filename) == ("oddStep", "test_logging_relay.py")
    assert "ValueError: inside" in logging.Formatter().format(record)
    log = (tmp_path / "run" / "logs" / "step-000001.log").read_text()
    assert "INFO: step 0 of {'a': 0}" in log, "it is in the step's log, too"
    assert "not wanted" not in log


def test_levels_of_loggers_count_also_in_pools(heard):
    """A logger that is set to DEBUG here hands on debug lines; one that is quiet here is quiet there."""
    loud, quiet = logging.getLogger("tests.relay.loud"), logging.getLogger("tests.relay.quiet")
    loud.setLevel(logging.DEBUG)
    quiet.setLevel(logging.ERROR)
    try:
        with mpsteps.StepPool(1) as pool:
            pool.submit(_both).result(60)
    finally:
        loud.setLevel(logging.NOTSET)
        quiet.setLevel(logging.NOTSET)
    assert heard.texts("tests.relay.loud") == ["debug"]
    assert heard.texts("tests.relay.quiet") == ["error"]


def _both():
    logging.getLogger("tests.relay.loud").debug("debug")
    logging.getLogger("tests.relay.quiet").warning("warning")
    logging.getLogger("tests.relay.quiet").error("error")


def test_nothing_is_handed_on_where_nobody_listens(monkeypatch):
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.root.manager, "loggerDict", {"mpsteps.x": logger})
    logger.addHandler(logging.NullHandler())
    try:
        assert relay.wanted() is None
        monkeypatch.setattr(logging.root.manager, "loggerDict", {"app": logger})
        assert relay.wanted() == {"": logging.root.level}
    finally:
        logger.handlers.clear()


def test_a_handler_that_raises_does_not_end_the_run(heard, tmp_path, monkeypatch):
    def broken(record):
        if record.name == "tests.relay":
            raise RuntimeError("no")
        heard.records.append(record)

    monkeypatch.setattr(heard, "emit", broken)
    assert ProtLogs(workingDir=str(tmp_path / "run")).run().ok
    assert any("a handler of logger 'tests.relay' failed" in t for t in heard.texts("mpsteps.engine"))
