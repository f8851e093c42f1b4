"""mpsteps.protocol: what a protocol is before it runs: form, params, validation, insertion, paths."""

from __future__ import annotations

import copy
import enum
import os
import pickle

import pytest
from protocols import Custom, Parallel

from mpsteps import (
    MODE_CONTINUE,
    MODE_RESTART,
    MODE_RESUME,
    STATUS_NEW,
    STATUS_WAITING,
    STEPS_PARALLEL,
    STEPS_SERIAL,
    BooleanParam,
    EnumParam,
    IntParam,
    PrerequisiteError,
    Protocol,
    ResultOf,
    StringParam,
    UsageError,
    ValidationError,
)


class Plain(Protocol):
    """A protocol whose author wrote nothing."""


class ByClass(Protocol):
    stepsExecutionMode = STEPS_PARALLEL


class ByInstance(Protocol):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.stepsExecutionMode = STEPS_PARALLEL


class ByLiteral(Protocol):
    stepsExecutionMode = 1


class Gpus(Parallel):
    def _defineParams(self, form):
        form.addHidden("useGpu", BooleanParam, default=True, label="Use GPU")
        form.addHidden("gpuList", StringParam, default="0,2-3", label="GPU ids")
        super()._defineParams(form)


class Choosy(Protocol):
    """Own checks, and a choice."""

    def _defineParams(self, form):
        form.addSection("Input")
        form.addParam("mode", EnumParam, choices=["fast", "exact"], default=1, label="Mode")
        form.addParam("size", IntParam, default=3, label="Size", condition="mode == 1")

    def _validate(self):
        return ["size is odd"] if self.size.get() % 2 else []


# ---------------------------------------------------------------------------------------------------- modes


@pytest.mark.parametrize("cls", [ByClass, ByInstance, ByLiteral])
def test_parallel_mode_is_set_on_the_class_or_on_the_instance(cls):
    """Half of Scipion's plug-ins do the one, half the other, and some write 1."""
    prot = cls()
    assert prot.modeParallel()
    assert not prot.modeSerial()
    assert prot.validate() == []


def test_a_protocol_is_serial_by_default():
    """And says so."""
    assert Plain().stepsExecutionMode == STEPS_SERIAL
    assert Plain().modeSerial()


def test_another_steps_mode_is_refused():
    """By a message, before anything runs."""
    prot = Plain()
    prot.stepsExecutionMode = 2
    assert any("stepsExecutionMode" in m for m in prot.validate())


# -------------------------------------------------------------------------------------------- threads and MPI


def test_threads_in_the_form_are_the_number_of_workers():
    """The default of the form, or what the constructor or a user sets."""
    assert Parallel().getScipionThreads() == 2
    assert Parallel(numberOfThreads=5).getScipionThreads() == 5
    assert Plain(numberOfThreads=3).getScipionThreads() == 3
    prot = Parallel()
    prot.numberOfThreads.set(7)
    assert prot.getScipionThreads() == 7


def test_no_protocol_has_an_mpi_field_and_all_can_read_numberOfMpi():
    """It is 1."""
    for cls in (Plain, Parallel):
        prot = cls()
        assert prot.numberOfMpi.get() == prot.getMPIs() == 1
        assert not prot.getDefinition().hasParam("numberOfMpi")


def test_mpi_is_refused_when_the_form_is_built():
    """In front of the author, with the way out."""

    class WithMpi(Protocol):
        def _defineParams(self, form):
            form.addParallelSection(threads=2, mpi=4)

    with pytest.raises(UsageError, match="threads"):
        WithMpi()


class OwnValidate(Parallel):
    def _validate(self):
        return ["mine"]


class BrokenValidate(Parallel):
    def _validate(self):
        raise KeyError("oops")


@pytest.mark.parametrize("cls", [Plain, Parallel, OwnValidate, BrokenValidate, ByInstance, Choosy])
@pytest.mark.parametrize("how", ["constructor", "set"])
def test_more_than_one_mpi_process_fails_the_validation_of_every_protocol(cls, how):
    """Also where the author overrides _validate and never thinks of MPI; it says to select threads."""
    prot = cls(numberOfMpi=4) if how == "constructor" else cls()
    if how == "set":
        prot.numberOfMpi.set(4)
    messages = [m for m in prot.validate() if "numberOfMpi" in m]
    assert len(messages) == 1
    assert "select threads" in messages[0]
    with pytest.raises(ValidationError, match="select threads"):
        prot.run()
    assert prot.isFailed()
    assert "select threads" in prot.getErrorMessage()


@pytest.mark.parametrize("cls", [Plain, Parallel])
@pytest.mark.parametrize("threads", [0, -1, None])
def test_less_than_one_thread_is_refused(cls, threads):
    """In every protocol."""
    prot = cls(numberOfThreads=threads)
    assert len([m for m in prot.validate() if "hreads" in m]) >= 1
    with pytest.raises(ValidationError):
        prot.run()


def test_runJob_refuses_mpi_too():
    """Where a protocol passes it on to a program."""
    with pytest.raises(UsageError, match="use numberOfThreads instead"):
        Plain().runJob("true", "", numberOfMpi=2)


# -------------------------------------------------------------------------------------------------- validation


def test_validate_collects_what_params_and_author_have_to_say():
    """Labels in stars, as Scipion's; a param whose condition is false is not asked."""
    assert Choosy(size=3).validate() == ["size is odd"]
    assert Choosy(size=4).validate() == []
    messages = Choosy(mode=7, size=4).validate()
    assert len(messages) == 1
    assert messages[0].startswith("*Mode* ")


def test_validate_survives_a_validate_that_raises():
    """Its traceback is the message."""
    messages = BrokenValidate().validate()
    assert len(messages) == 1
    assert "BrokenValidate._validate failed" in messages[0]
    assert "KeyError: 'oops'" in messages[0]


def test_one_text_from_a_hook_is_one_sentence():
    """Not one message for each letter."""

    class Terse(Protocol):
        def _validate(self):
            return "no good"

        def _summary(self):
            return "all done"

        def _warnings(self):
            return None

    assert Terse().validate() == ["no good"]
    assert Terse().summary() == ["all done"]
    assert Terse().warnings() == []


def test_an_unknown_param_is_refused_with_the_nearest_name():
    """By the constructor."""
    with pytest.raises(UsageError, match="there is no param 'sise' \\(did you mean 'size'\\?\\)"):
        Choosy(sise=4)


def test_a_value_of_the_wrong_type_is_refused_by_the_constructor():
    """With name, expectation and value."""
    with pytest.raises(ValidationError, match="param 'size': expected an integer, got 'four'"):
        Choosy(size="four")


# ------------------------------------------------------------------------------------------------------ params


def test_params_are_scalars_and_their_texts_and_conditions_can_be_asked():
    """The names that protocols use."""
    prot = Choosy(mode=0, size=8)
    assert prot.size.get() == 8
    assert prot.getEnumText("mode") == "fast"
    assert not prot.evalParamCondition("size")
    assert prot.getAttributeValue("size") == 8
    assert prot.getAttributeValue("missing", 5) == 5
    assert prot.getDefinitionDict()["size"] == 8
    assert prot.hasAttribute("size")
    assert prot.getParam("size").getLabel() == "Size"
    assert prot.getParam("nothing") is None
    with pytest.raises(UsageError, match="'size' is not an EnumParam"):
        prot.getEnumText("size")
    prot.mode.set(9)
    with pytest.raises(UsageError, match="'mode' of Choosy is 9"):
        prot.getEnumText("mode")


def test_run_mode_is_resume_unless_restart_is_asked_for():
    """MODE_CONTINUE, which old sources name, is resume."""
    assert Plain().getRunMode() == MODE_RESUME
    assert Plain().isContinued()
    assert Plain(runMode=MODE_RESTART).isRestart()
    old = Plain(runMode=MODE_CONTINUE)
    assert old.isContinued()
    assert old.validate() == []


def test_graphics_cards_are_read_from_the_form():
    """Numbers and ranges; `useGpu` switches them off without hiding the list."""
    assert Gpus().getGpuList() == [0, 2, 3]
    assert Gpus().usesGpu()
    off = Gpus(useGpu=False)
    assert not off.usesGpu()
    assert off.getGpuList() == [0, 2, 3]
    assert Gpus().allowsGpu()
    assert not Gpus().requiresGpu()
    assert not Plain().allowsGpu()
    assert Plain().getGpuList() == []
    assert any("gpuList" in m for m in Gpus(gpuList="zero").validate())


def test_outside_of_steps_the_executor_knows_the_cards_of_the_form():
    """`self._stepsExecutor` is there at any time."""
    assert Gpus()._stepsExecutor.getGpuList() == [0, 2, 3]
    assert Gpus().getExecutor().getGpuListStr(",") == "0,2,3"
    assert Gpus(useGpu=False)._stepsExecutor.getGpuList() == []


# ---------------------------------------------------------------------------------------------------- insertion


def test_steps_get_ids_from_one_and_wait_for_the_step_before_unless_told_otherwise():
    """None: the one before; []: none; an int; a list; a tuple."""
    prot = Custom()
    ids = [
        prot._insertFunctionStep(prot.nothing),
        prot._insertFunctionStep("nothing"),
        prot._insertFunctionStep(prot.nothing, prerequisites=None),
        prot._insertFunctionStep(prot.nothing, prerequisites=[]),
        prot._insertFunctionStep(prot.nothing, prerequisites=2),
        prot._insertFunctionStep(prot.nothing, prerequisites=[1, 4]),
        prot._insertFunctionStep(prot.nothing, prerequisites=(1, 1)),
    ]
    assert ids == [1, 2, 3, 4, 5, 6, 7]
    found = [list(s.getPrerequisites()) for s in prot.getSteps()]
    assert found == [[], [1], [2], [], [2], [1, 4], [1]]
    assert [s.getObjId() for s in prot.getSteps()] == ids


def test_a_result_is_a_prerequisite_by_itself():
    """Also inside a list, and together with others."""
    prot = Custom()
    a = prot._insertFunctionStep(prot.give, 1)
    b = prot._insertFunctionStep(prot.give, 2, prerequisites=[])
    c = prot._insertFunctionStep(prot.nothing, [ResultOf(a)], prerequisites=[])
    d = prot._insertFunctionStep(prot.nothing, ResultOf(a), prerequisites=[b])
    e = prot._insertFunctionStep(prot.nothing, ResultOf(a))
    assert [list(prot.getSteps()[i - 1].getPrerequisites()) for i in (c, d, e)] == [[a], [b, a], [d, a]]


def test_steps_are_named_after_their_functions():
    """Methods by name, functions, lambdas, partials, callables; framework steps as in Scipion."""
    import functools

    class CallMe:
        def __call__(self):
            """Nothing."""

    prot = Custom()
    prot._insertFunctionStep(prot.nothing)
    prot._insertFunctionStep("nothing")
    prot._insertFunctionStep(os.getpid)
    prot._insertFunctionStep(lambda: None)
    prot._insertFunctionStep(functools.partial(prot.nothing, 1))
    prot._insertFunctionStep(CallMe())
    prot._insertRunJobStep("true", "")
    prot._insertRunJobStep("true", "", ["file"])
    prot._insertCopyFileStep("a", "b")
    names = [s.funcName.get() for s in prot.getSteps()]
    assert names == [
        "nothing", "nothing", "getpid", "<lambda>", "partial", "CallMe", "runJob", "runJob", "copyFile",
    ]  # fmt: skip


def test_options_of_a_step_are_kept():
    """wait, interactive, needsGPU."""
    prot = Custom()
    prot._insertFunctionStep(prot.nothing, wait=True, interactive=True, needsGPU=False)
    prot._insertFunctionStep(prot.nothing)
    first, second = prot.getSteps()
    assert (first.getStatus(), first.isInteractive(), first.needsGPU()) == (STATUS_WAITING, True, False)
    assert (second.getStatus(), second.isInteractive(), second.needsGPU()) == (STATUS_NEW, False, True)


def test_misspelt_keywords_are_errors():
    """As in Scipion, where plug-ins have some."""
    prot = Custom()
    with pytest.raises(TypeError, match="poprerequisites"):
        prot._insertFunctionStep(prot.nothing, poprerequisites=[])


def test_the_graph_of_steps_has_one_root():
    """'PROTOCOL' above all that wait for nobody; nodes know parents and children."""
    prot = Custom()
    a = prot._insertFunctionStep(prot.nothing, prerequisites=[])
    b = prot._insertFunctionStep(prot.nothing, prerequisites=[])
    c = prot._insertFunctionStep(prot.nothing, prerequisites=[a, b])
    graph = prot.getStepsGraph()
    root = graph.getRoot()
    assert root.getName() == "PROTOCOL"
    assert root.isRoot()
    assert [n.getName() for n in root.getChildren()] == [str(a), str(b)]
    node = graph.getNode(str(c))
    assert [n.getName() for n in node.getParents()] == [str(a), str(b)]
    assert node.getParent().getName() == str(a)
    assert node.step is prot.getSteps()[c - 1]
    assert graph.getNodeNames() == ["PROTOCOL", "1", "2", "3"]
    assert graph.getRootNodes() == [root]
    assert graph.getNode("17") is None


def test_the_graph_of_ten_thousand_steps_is_no_effort():
    """One root with 10,000 children and one step with 10,000 parents."""
    prot = Custom()
    ids = [prot._insertFunctionStep(prot.nothing, i, prerequisites=[]) for i in range(10_000)]
    last = prot._insertFunctionStep(prot.nothing, prerequisites=ids)
    assert len(prot.getStepsGraph().getNode(str(last)).getParents()) == 10_000


# -------------------------------------------------------------------------------------- outputs, paths, copies


def test_outputs_are_attributes_and_are_listed_once():
    """In the order in which they were first defined."""
    prot = Custom()
    prot._defineOutputs(first=1, second=[2])
    prot._defineOutputs(first=3)
    assert prot.first == 3
    assert list(prot.iterOutputAttributes()) == [("first", 3), ("second", [2])]
    assert list(prot.iterOutputAttributes(list)) == [("second", [2])]
    assert prot.getOutputsSize() == 2


def test_outputs_can_be_named_by_an_enum_as_scipions_tutorials_do():
    """`self._defineOutputs(**{Outputs.picks.name: ...})`."""

    class Outputs(enum.Enum):
        picks = list

    prot = Custom()
    prot._defineOutputs(**{Outputs.picks.name: [1]})
    assert prot.picks == [1]


def test_paths_lie_in_the_working_directory():
    """Relative ones stay relative."""
    prot = Plain(workingDir="Runs/x")
    assert prot.getWorkingDir() == "Runs/x"
    assert prot._getPath() == prot.getPath() == "Runs/x"
    assert prot._getPath("a", "b") == "Runs/x/a/b"
    assert prot._getExtraPath("f") == "Runs/x/extra/f"
    assert prot._getTmpPath("f") == "Runs/x/tmp/f"
    assert prot._getLogsPath("f") == "Runs/x/logs/f"
    assert prot._getBasePath("/far/away/f.mrc") == "Runs/x/f.mrc"


def test_entering_a_directory_and_leaving_it(tmp_path, monkeypatch):
    """_leaveDir goes back to where _enterDir was called."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    prot = Plain(workingDir=str(tmp_path / "in"))
    prot._enterWorkingDir()
    assert os.getcwd() == str(tmp_path / "in")
    prot._leaveWorkingDir()
    assert os.getcwd() == str(tmp_path)
    with pytest.raises(UsageError, match="without _enterDir"):
        prot._leaveDir()


def test_a_protocol_can_be_copied_and_pickled():
    """Without lock, log, steps and status, which belong to one process and one run."""
    prot = Custom(n=9)
    prot.table["x"] = [1]
    prot._insertFunctionStep(prot.nothing)
    for twin in (pickle.loads(pickle.dumps(prot)), copy.deepcopy(prot)):
        assert type(twin) is Custom
        assert twin.n.get() == 9
        assert twin.table == {"x": [1]}
        assert len(twin.getSteps()) == 0
        assert twin.getDefinition().hasParam("n")
        assert twin._stepsExecutor.getGpuList() == []


def test_names_and_labels():
    """The run's name: the form's, the constructor's label, or the label of the class."""

    class Labelled(Protocol):
        _label = "my label"

    assert Labelled.getClassLabel() == "my label"
    assert Plain.getClassLabel() == "Plain"
    assert Labelled().getRunName() == "my label"
    assert Labelled(objLabel="this one").getRunName() == "this one"
    assert Labelled(runName="named").getRunName() == "named"
    assert Plain().getClassName() == "Plain"
    assert "new" in str(Plain())


def test_a_new_protocol_is_new():
    """Status and progress before a run."""
    prot = Plain()
    assert (prot.getStatus(), prot.isFinished(), prot.isFailed(), prot.getErrorMessage()) == ("new", False, False, "")
    assert (prot.stepsDone, prot.numberOfSteps, len(prot.getSteps())) == (0, 0, 0)


def test_a_missing_method_is_named_with_the_nearest_one():
    """When the step is inserted."""
    with pytest.raises(UsageError, match=r"Custom has no method 'nothin' .*did you mean 'nothing'"):
        Custom()._insertFunctionStep("nothin")
    with pytest.raises(UsageError, match="'table' of Custom is not callable"):
        Custom()._insertFunctionStep("table")
    with pytest.raises(UsageError, match="a callable, not of 5"):
        Custom()._insertFunctionStep(5)


def test_prerequisites_that_do_not_exist_are_refused_at_insertion():
    """Naming the step and what has been inserted so far."""
    prot = Custom()
    prot._insertFunctionStep(prot.nothing)
    with pytest.raises(PrerequisiteError, match="2 - nothing waits for step 5, which does not exist: 1 steps"):
        prot._insertFunctionStep(prot.nothing, prerequisites=[5])
    with pytest.raises(PrerequisiteError, match="2 - nothing cannot wait for itself"):
        prot._insertFunctionStep(prot.nothing, prerequisites=[2])
    assert len(prot.getSteps()) == 1
