"""What a form is built of, apart from the params' own types: the base of every element, and groups of elements.

Groups know of the form only what `FormLike` says, so that the form can be built on top of them.
"""

from __future__ import annotations

import difflib
import typing
import warnings
from typing import Any, Dict, Iterator, List, Optional, Tuple, Type

from mpsteps.constants import LEVEL_ADVANCED, LEVEL_NORMAL
from mpsteps.errors import UsageError
from mpsteps.scalars import Boolean, Integer, String, rawValue, showValue

__all__ = ["ElementGroup", "FormElement", "FormLike", "Group", "Line", "Section"]

# The keywords that have a meaning, here or in Scipion's windows. Others are accepted too: sources pass them.
_KEYWORDS = (
    "label", "help", "default", "expertLevel", "condition", "important", "validators", "allowsNull", "readOnly",
    "choices", "display", "paramClass", "allowsPointers", "pointerClass", "pointerCondition", "questionParam",
    "width", "height",
)  # fmt: skip


class FormElement:
    """A param, or a group of params. `name` is '' until a form registers it.

    `label`, `help` and `condition` are `String`, `expertLevel` is an `Integer`, so that a subclass of a protocol can
    change what its base declared: `form.getParam('boxSize').condition.set('useBox')`.
    """

    ATTRIBUTES: Tuple[str, ...] = ("label", "expertLevel", "condition", "important", "help")

    def __init__(self, **args: Any) -> None:
        self.name = ""
        self.label = String(args.get("label"))
        self.expertLevel = Integer(args.get("expertLevel", LEVEL_NORMAL))
        self.condition = String(args.get("condition"))
        self.help = String(args.get("help"))
        self._isImportant = Boolean(args.get("important", False))

    def isExpert(self) -> bool:
        """Whether only experts should see it."""
        return bool(self.expertLevel > LEVEL_NORMAL)

    def setExpert(self) -> None:
        """Show it to experts only."""
        self.expertLevel.set(LEVEL_ADVANCED)

    def isImportant(self) -> bool:
        """Whether it should stand out."""
        return bool(self._isImportant)

    def setImportant(self, value: bool) -> None:
        """Let it stand out, or not."""
        self._isImportant.set(value)

    def hasCondition(self) -> bool:
        """Whether it matters only under a condition."""
        return not String(rawValue(self.condition)).empty()

    def getLabel(self) -> Optional[str]:
        """What users see as its name; None if its author gave none."""
        return typing.cast("Optional[str]", rawValue(self.label))

    def getHelp(self) -> Optional[str]:
        """What users see when they ask for help; None if its author gave none."""
        return typing.cast("Optional[str]", rawValue(self.help))

    def config(self, **kwargs: Any) -> None:
        """Set any of ATTRIBUTES, as the constructor's keywords do. UsageError for another keyword."""
        for key, value in kwargs.items():
            if key not in self.ATTRIBUTES:
                raise UsageError(f"config() of {self.name or type(self).__name__} has no {key!r}: "
                                 f"it sets {', '.join(self.ATTRIBUTES)}")
            attribute = "_isImportant" if key == "important" else key
            getattr(self, attribute).set(value)


class FormLike(typing.Protocol):
    """What groups need of the form that they are in."""

    protocolName: str

    def registerParam(self, paramName: str, param: FormElement) -> None:
        """Take the element in under its name. UsageError."""


class ElementGroup(FormElement):
    """Elements that belong together; they are in the form too, which knows every param by name."""

    def __init__(self, form: Optional[FormLike] = None, **args: Any) -> None:
        super().__init__(**args)
        self._form = form
        self._elements: List[Tuple[str, FormElement]] = []  # two groups may have one name, two params may not

    def iterParams(self) -> Iterator[Tuple[str, FormElement]]:
        """(name, element) of every element in it, in order; groups and lines are elements."""
        return iter(list(self._elements))

    def addParam(self, paramName: str, ParamClass: Type[Any], **kwargs: Any) -> Any:
        """Add a param; returns it. UsageError if the name or the class cannot be used in a form."""
        if self._form is None:
            raise UsageError(f"param {paramName!r}: its group is in no form; make groups with form.addGroup(label)")
        where = f"param {paramName!r} of {self._form.protocolName}"
        if not (isinstance(ParamClass, type) and issubclass(ParamClass, FormElement)):
            raise UsageError(f"{where}: expected a class such as IntParam, got {showValue(ParamClass)}")
        _warnOfMisspelling(where, kwargs)
        try:
            param = ParamClass(**kwargs)
        except ValueError as error:  # a UsageError, or a keyword's value that does not fit
            raise UsageError(f"{where}: {error}") from None
        self._form.registerParam(paramName, param)
        self._elements.append((paramName, param))
        return param

    def addHidden(self, paramName: str, ParamClass: Type[Any], **kwargs: Any) -> Any:
        """Add a param that no window shows and no validator checks, for conditions and settings; returns it."""
        kwargs.update({"label": "", "condition": "False"})
        return self.addParam(paramName, ParamClass, **kwargs)

    def addLine(self, lineName: str, **kwargs: Any) -> Line:
        """Add a line with that label, for params side by side; returns it."""
        return typing.cast("Line", self._addGroup(Line, lineName, kwargs))

    def _addGroup(self, kind: Type[ElementGroup], label: str, kwargs: Dict[str, Any]) -> ElementGroup:
        name = label.translate(str.maketrans(" ()", "___"))
        return typing.cast("ElementGroup", self.addParam(name, kind, form=self._form, label=label, **kwargs))


class Line(ElementGroup):
    """Params side by side."""


class Group(ElementGroup):
    """Params in a frame with a label."""


class Section(ElementGroup):
    """A page of the form."""

    def __init__(self, form: Optional[FormLike] = None, **args: Any) -> None:
        super().__init__(form, **args)
        self.questionParam = String(args.get("questionParam", ""))

    def hasQuestion(self) -> bool:
        """Whether one of its params switches the whole section on and off."""
        return self.getQuestion() is not None

    def getQuestionName(self) -> Any:
        """The name of that param."""
        return self.questionParam.get()

    def getQuestion(self) -> Any:
        """That param, or None."""
        return dict(self._elements).get(self.questionParam.get(""))

    def addGroup(self, groupName: str, **kwargs: Any) -> Group:
        """Add a group with that label; returns it."""
        return typing.cast("Group", self._addGroup(Group, groupName, kwargs))


def _warnOfMisspelling(where: str, kwargs: Dict[str, Any]) -> None:
    for keyword in kwargs:
        near = difflib.get_close_matches(keyword, _KEYWORDS, 1, 0.85)
        if near and keyword not in _KEYWORDS:
            warnings.warn(f"{where}: keyword {keyword!r} is ignored, did you mean {near[0]!r}?", stacklevel=4)
