"""The form takes a protocol's declaration, refuses what cannot work, gives values and judges them."""

from __future__ import annotations

import functools
import pickle
from typing import Any, Callable, Dict, List

import pytest

from mpsteps import params
from mpsteps.errors import UsageError, ValidationError
from mpsteps.form import Form
from mpsteps.params import (
    BooleanParam,
    DeprecatedParam,
    EnumParam,
    FloatParam,
    FormElement,
    Group,
    IntParam,
    Line,
    NonEmpty,
    PathParam,
    PointerParam,
    Positive,
    StringParam,
)
from mpsteps.scalars import Integer, Scalar


class ProtDemo:
    """What a form needs of a protocol."""

    recalculate = Integer(0)
    limit = 3

    @property
    def status(self) -> str:
        """A property is as much the protocol's own as a method."""
        return "new"

    def run(self) -> None:
        """A method that no param may hide."""

    def isFast(self) -> bool:
        """A method that conditions may name."""
        return True


def build(*sections: Callable[[Form], Any], **kwargs: Any) -> Any:
    """A protocol with values, and its form as `.form`."""
    protocol: Any = ProtDemo()
    protocol.form = Form(protocol)
    protocol.form.addSection(label="Input")
    for define in sections:
        define(protocol.form)
    protocol.form.createValues(protocol, kwargs)
    return protocol


def picking(form: Form) -> None:
    """A form of the usual shape."""
    form.addParam("micrographs", PathParam, label="Micrographs", validators=[NonEmpty])
    form.addParam("useMask", BooleanParam, default=False, label="Mask?")
    group = form.addGroup("Mask (optional)", condition="useMask")
    line = group.addLine("Radii")
    line.addParam("inner", IntParam, default=1, label="Inner", condition="useMask", validators=[Positive])
    line.addParam("outer", IntParam, label="Outer", condition="useMask")
    form.addParam("mode", EnumParam, choices=["fast", "exact"], default=0, label="Mode")
    form.addHidden("secret", IntParam)
    form.addParallelSection(threads=4)


def names(form: Form) -> List[str]:
    """Of all params, in order."""
    return [name for name, _ in form.iterParams()]


def test_a_form_has_a_general_section_from_the_start() -> None:
    """With Scipion's two params."""
    protocol = build()
    assert names(protocol.form) == ["runName", "runMode"]
    assert protocol.form.hasSection("General")
    assert (protocol.runMode.get(), protocol.runName.get()) == (0, None)
    assert build(runMode="restart").runMode == 1


def test_params_groups_lines_and_sections_are_found() -> None:
    """By name, in order, and in the section that they were added to."""
    form = build(picking).form
    expected = ["runName", "runMode", "micrographs", "useMask", "inner", "outer", "mode", "secret", "numberOfThreads"]
    assert names(form) == expected
    assert [name for name, _ in form.iterAllParams()][4:6] == ["Mask__optional_", "Radii"]
    assert isinstance(form.getParam("Mask__optional_"), Group)
    assert isinstance(form.getParam("Radii"), Line)
    assert [name for name, _ in form.getParam("Radii").iterParams()] == ["inner", "outer"]
    assert [section.getLabel() for section in form.iterSections()] == ["General", "Input", "Parallelization"]
    assert "mode" in dict(form.getSection("Input").iterParams())
    assert form.getSection("Output") is None
    assert form.getParam("nothing") is None
    assert not form.hasParam("nothing")
    assert form.getParam("mode").name == "mode"


def test_values_come_from_keywords_or_defaults() -> None:
    """One scalar of the param's type each; an explicit None empties."""
    protocol = build(picking, micrographs="a.mrc", useMask="yes", inner=None, mode="exact")
    assert protocol.micrographs == "a.mrc"
    assert protocol.useMask.get() is True
    assert not protocol.inner.hasValue()
    assert not protocol.outer.hasValue()
    assert (protocol.mode.get(), protocol.numberOfThreads.get()) == (1, 4)
    assert all(isinstance(getattr(protocol, name), Scalar) for name in names(protocol.form))


def test_values_of_a_wrong_type_are_reported_together_and_nothing_is_set() -> None:
    """Param, value and expected type in each message."""
    protocol: Any = ProtDemo()
    form = Form(protocol)
    form.addSection(label="Input")
    picking(form)
    with pytest.raises(ValidationError) as caught:
        form.createValues(protocol, {"inner": "one", "mode": "slow", "micrographs": "a"})
    assert caught.value.messages == [
        "param 'inner': expected an integer, got 'one'",
        "param 'mode': expected one of 0 (fast), 1 (exact), got 'slow'",
    ]
    assert not hasattr(protocol, "micrographs")


def test_unknown_names_are_listed_with_near_misses() -> None:
    """One message each; the caller decides what to do with them."""
    form = build(picking).form
    assert form.unknown({"Micrographs": 1, "mode": 0, "workingDir": "x"}) == [
        "there is no param 'Micrographs' (did you mean 'micrographs'?)",
        "there is no param 'workingDir'",
    ]
    assert form.suggest("Micrographs") == " (did you mean 'micrographs'?)"
    assert form.suggest("micrograph") == " (did you mean 'micrographs'?)"
    assert form.suggest("workingDir") == ""


def test_a_deprecated_keyword_sets_the_new_param() -> None:
    """Unless the new one is given too; it is not unknown."""

    def define(form: Form) -> None:
        protocol: Any = form._protocol
        protocol.size = DeprecatedParam("boxSize", protocol)
        form.addParam("boxSize", IntParam, default=1)

    protocol = build(define, size="7")
    assert protocol.boxSize == 7
    assert build(define, size=7, boxSize=8).boxSize == 8
    assert protocol.form.unknown(["size", "colour"]) == ["there is no param 'colour'"]
    with pytest.raises(ValidationError, match="param 'boxSize': expected an integer, got 'x'"):
        build(define, size="x")


def test_validation_names_label_param_and_value() -> None:
    """Every message of every param whose condition holds."""
    protocol = build(picking)
    assert protocol.form.validateParams(protocol) == ["*Micrographs* Value cannot be empty (micrographs=None)"]
    protocol.micrographs.set("a.mrc")
    protocol.numberOfThreads.set(0)
    messages = protocol.form.validateParams(protocol)
    assert messages == ["*Threads* should be an integer of 1 or more (numberOfThreads=0)"]


def test_a_param_whose_condition_is_false_is_not_validated() -> None:
    """As under Scipion; nor is a hidden one."""
    protocol = build(picking, micrographs="a", inner=-1)
    assert protocol.form.validateParams(protocol) == []
    protocol.useMask.set(True)
    assert protocol.form.validateParams(protocol) == [
        "*Inner* Value should be greater than zero (inner=-1)",
        "*Outer* should be an integer (outer=None)",
    ]


def test_validation_sees_a_plain_value_that_replaced_a_scalar() -> None:
    """`self.mode = 'x'` in a protocol's code is not overlooked."""
    protocol = build(picking, micrographs="a")
    protocol.mode = "x"
    assert protocol.form.validateParams(protocol) == ["*Mode* should be an integer (mode='x')"]


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("useMask", False), ("not useMask and mode==0", True), ("mode in [0,2]", True), ("limit > 2", True),
        ("isFast", True), ("isFast()", True), ("recalculate == 0", True), ("recalculate", False),
        ("micrographs is None", True), ("len(micrographs or '') == 0", True), ("False", False), ("0", False),
        ("runMode == MODE_RESUME", True), (" mode == 0\n", True), ("any(m == mode for m in [0, 1])", True),
        ("useMask and nothing", False), ("hasattr(micrographs, 'lower')", False), ("isinstance(mode, int)", True),
        ("(lambda m: m + mode)(1) == 1", True), ("", True),
    ],
)  # fmt: skip
def test_conditions_are_expressions_over_params_and_attributes(condition: str, holds: bool) -> None:
    """Params by value, methods by what they return, harmless builtins, constants."""
    protocol = build(picking, lambda form: form.addParam("x", IntParam, default=1, condition=condition))
    assert protocol.form.evalParamCondition("x") is holds


@pytest.mark.parametrize(
    ("condition", "reason"),
    [
        ("useMusk", r"unknown name: useMusk \(did you mean 'useMask'\?\)"), ("micrographs > 5", "TypeError"),
        ("open('x')", "unknown name: open"), ("1 / mode", "ZeroDivisionError"), ("micrographs.x", "AttributeError"),
    ],
)  # fmt: skip
def test_a_condition_that_does_not_evaluate_names_param_condition_and_reason(condition: str, reason: str) -> None:
    """When asked, and as one message in a validation."""
    kwargs = {"default": 1, "condition": condition}
    protocol = build(picking, lambda form: form.addParam("x", IntParam, **kwargs), micrographs="a")
    with pytest.raises(UsageError, match=rf"param 'x' of ProtDemo: the condition .* does not evaluate: {reason}"):
        protocol.form.evalParamCondition("x")
    (message,) = protocol.form.validateParams(protocol)
    assert message.startswith("param 'x' of ProtDemo: the condition")


def test_the_condition_of_a_group_or_of_an_unknown_param() -> None:
    """Groups have conditions too."""
    protocol = build(picking)
    assert protocol.form.evalParamCondition("Mask__optional_") is False
    assert protocol.form.evalParamCondition("mode") is True
    with pytest.raises(UsageError, match=r"ProtDemo has no param 'mod' \(did you mean 'mode'\?\)"):
        protocol.form.evalParamCondition("mod")


@pytest.mark.parametrize(
    ("define", "message"),
    [
        (lambda form: form.addParam("runMode", IntParam), "param 'runMode' of ProtDemo is defined twice"),
        (lambda form: form.addParam("run", IntParam), "param 'run' of ProtDemo would hide a method of that name"),
        (lambda form: form.addParam("status", IntParam), "would hide a method"),
        (lambda form: form.addParam("box size", IntParam), "'box size' of ProtDemo: a name is made of letters"),
        (lambda form: form.addParam("x", IntParam, condition="a and"), "does not evaluate: it is no Python expression"),
        (lambda form: form.addGroup("g", condition="a and"), "param 'g' of ProtDemo: the condition 'a and'"),
        (lambda form: form.addParam("x", IntParam, default="a"), "default of param 'x': expected an integer"),
        (lambda form: form.addParam("x", IntParam, expertLevel="high"), "param 'x' of ProtDemo: expected an integer"),
        (lambda form: form.addParam("x", Integer), "param 'x' of ProtDemo: expected a class such as IntParam"),
        (lambda form: form.addParam("x", IntParam()), "expected a class such as IntParam"),
        (lambda form: form.registerParam("x", FormElement()), "param 'x' of ProtDemo: FormElement is no param"),
        (
            lambda form: form.addParam("inputVolume", PointerParam, pointerClass="Volume"),
            "param 'inputVolume' of ProtDemo: PointerParam selects an object of a Scipion project",
        ),
        (lambda form: Group(label="g").addParam("x", IntParam), "its group is in no form"),
    ],
)  # fmt: skip
def test_a_declaration_that_cannot_work_is_refused_while_the_form_is_built(define: Any, message: str) -> None:
    """In one sentence that names the param and the protocol."""
    with pytest.raises(UsageError, match=message):
        build(define)


def test_a_param_needs_a_section_and_a_hidden_one_does_not() -> None:
    """Sources add their GPU settings before the first section."""
    form = Form(ProtDemo())
    form.addHidden("useGpu", BooleanParam, default=True)
    assert form.hasParam("useGpu")
    for add in (form.addLine, form.addGroup, lambda name: form.addParam(name, IntParam)):
        with pytest.raises(UsageError, match=r"'x' of ProtDemo is in no section: call form.addSection\(label"):
            add("x")


def test_a_misspelt_keyword_is_warned_of() -> None:
    """Scipion's keywords vanish silently when they are misspelt."""
    message = "param 'x' of ProtDemo: keyword 'allowNull' is ignored, did you mean 'allowsNull'"
    with pytest.warns(UserWarning, match=message):
        build(lambda form: form.addParam("x", IntParam, default=1, allowNull=True))


def test_the_parallel_section_defines_threads_and_no_mpi() -> None:
    """mpi of 0, 1 or None is a source's way to say that there is none."""
    for mpi in (0, 1, None, -1):
        protocol = build(functools.partial(Form.addParallelSection, threads=3, mpi=mpi))
        assert protocol.numberOfThreads == 3
        assert not protocol.form.hasParam("numberOfMpi")
    assert build(lambda form: form.addParallelSection()).numberOfThreads == 1


@pytest.mark.parametrize("mpi", [2, 8, "4", 1.5])
def test_mpi_is_refused_with_the_way_out(mpi: Any) -> None:
    """Whatever the threads; a field of one's own too."""
    message = r"ProtDemo asks for mpi=.*select threads instead: form.addParallelSection\(threads=N\)"
    with pytest.raises(UsageError, match=message):
        build(lambda form: form.addParallelSection(threads=0, mpi=mpi))
    with pytest.raises(UsageError, match=message):
        build(lambda form: form.addParam("numberOfMpi", IntParam, default=2))


@pytest.mark.parametrize("threads", [0, -1, None, "4", 2.0, True])
def test_threads_below_one_are_refused_when_the_form_is_built(threads: Any) -> None:
    """And what is no integer."""
    with pytest.raises(UsageError, match=r"threads=.* of ProtDemo should be an integer of 1 or more; leave"):
        build(lambda form: form.addParallelSection(threads=threads))


def test_threads_of_programs_are_a_param_of_their_own() -> None:
    """From the parallel section or added by hand; both land in that section."""
    protocol = build(lambda form: form.addParallelSection(threads=2, binThreads=3, binThreadsHelp="of relion"))
    assert protocol.binThreads == 3
    assert protocol.form.getParam("binThreads").getHelp() == "of relion"
    parallel = functools.partial(Form.addParallelSection, threads=2)
    protocol = build(lambda form: form.addParam("binThreads", IntParam, default=5), parallel)
    assert list(dict(protocol.form.getSection("Parallelization").iterParams())) == ["binThreads", "numberOfThreads"]
    with pytest.raises(UsageError, match="binThreads=-1 of ProtDemo should be an integer of 0 or more"):
        build(lambda form: form.addParallelSection(binThreads=-1))


def test_a_subclass_may_repeat_the_parallel_section() -> None:
    """The later default holds; there is one section."""
    protocol = build(lambda form: form.addParallelSection(threads=4), lambda form: form.addParallelSection(threads=2))
    assert protocol.numberOfThreads == 2
    assert [s.getLabel() for s in protocol.form.iterSections()].count("Parallelization") == 1


def test_a_subclass_changes_what_its_base_declared() -> None:
    """Default and condition, before the values are made."""

    def change(form: Form) -> None:
        form.getParam("mode").default.set(1)
        form.getParam("micrographs").condition.set("0")
        form.getParam("inner").default = Integer(30)

    protocol = build(picking, change)
    assert (protocol.mode.get(), protocol.inner.get()) == (1, 30)
    assert protocol.form.validateParams(protocol) == []


def test_groups_may_share_a_name_and_never_hide_a_param() -> None:
    """Labels are for people."""

    def define(form: Form) -> None:
        form.addGroup("mask").addParam("mask", StringParam, default="a")
        form.addGroup("mask").addParam("other", StringParam, default="b")

    protocol = build(define)
    assert protocol.mask == "a"
    assert isinstance(protocol.form.getParam("mask"), StringParam)
    assert len(list(protocol.form.iterAllParams())) == 6


def test_a_section_may_have_a_question() -> None:
    """A param of its own that switches it."""
    form = Form(ProtDemo())
    section = form.addSection(label="Mask", questionParam="doMask")
    assert not section.hasQuestion()
    form.addBooleanParam("doMask", "Mask?", "Whether to mask", default=False)
    assert section.hasQuestion()
    assert (section.getQuestionName(), section.getQuestion()) == ("doMask", form.getParam("doMask"))


def test_a_form_pickles_with_its_protocol() -> None:
    """Values, conditions and validators survive."""
    protocol = pickle.loads(pickle.dumps(build(picking, useMask=True)))
    assert len(protocol.form.validateParams(protocol)) == 2


def declare(form: Any, module: Any) -> None:
    """A form that pyworkflow's classes and ours are both given."""
    form.addHidden(module.USE_GPU, module.BooleanParam, default=True)
    form.addSection(label="Input")
    form.addParam("files", module.PathParam, label="Files")
    form.addParam("doMask", module.BooleanParam, default=False, label="Mask?")
    form.addParam("mode", module.EnumParam, choices=["a", "b"], default=1, label="Mode")
    group = form.addGroup("Mask", condition="doMask")
    group.addParam("radius", module.IntParam, condition="doMask and mode==1", label="Radius")
    line = group.addLine("Limits (px)", expertLevel=module.LEVEL_ADVANCED)
    line.addParam("low", module.FloatParam, default=-1, validators=[module.Positive], label="Low")
    line.addParam("size", module.IntParam, default=64, validators=[module.GE(8, "too small")], label="Size")
    form.addParallelSection(threads=2, mpi=0)


@pytest.mark.parametrize("kwargs", [{}, {"doMask": True}, {"doMask": True, "mode": 0}, {"low": 2, "size": 4}])
def test_values_conditions_and_verdicts_agree_with_scipions(
    kwargs: Dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One declaration, both frameworks: the same params, values, conditions and messages."""
    pytest.importorskip("pyworkflowtests")
    pyworkflow, theirs = pytest.importorskip("pyworkflow"), pytest.importorskip("pyworkflow.protocol")
    monkeypatch.setattr(pyworkflow.Config, "SCIPION_DOMAIN", "pyworkflowtests")

    class ProtBoth(theirs.Protocol):  # type: ignore[misc, name-defined]
        def _defineParams(self, form: Any) -> None:
            declare(form, theirs.params)

        @classmethod
        def validateInstallation(cls) -> List[str]:
            return []

    scipion = ProtBoth(**kwargs)
    protocol: Any = ProtDemo()
    form = Form(protocol)
    declare(form, params)
    form.createValues(protocol, kwargs)
    common = [name for name, _ in scipion.getDefinition().iterParams() if name != "hostName"]
    assert names(form) == common
    assert {n: getattr(protocol, n).get() for n in common} == {n: getattr(scipion, n).get() for n in common}
    assert {n: form.evalParamCondition(n) for n in common} == {n: scipion.evalParamCondition(n) for n in common}
    assert [message.rpartition(" (")[0] for message in form.validateParams(protocol)] == scipion.validate()


def test_a_float_param_checks_only_when_asked() -> None:
    """Making a value does not judge it: Scipion's validators run at validate()."""
    protocol = build(lambda form: form.addParam("dose", FloatParam, default=-1, validators=[Positive], label="Dose"))
    assert protocol.dose == -1
    assert protocol.form.validateParams(protocol) == ["*Dose* Value should be greater than zero (dose=-1.0)"]
