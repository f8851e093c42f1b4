"""The params that a form is made of: what a value is called, how it is converted, checked, read from text, described.

Names, keywords and meaning are Scipion's. A source that says `import mpsteps.params as params` finds constants,
scalars, validators and groups here too, as it does under Scipion: that is what the star imports are for. Scipion's
bookkeeping for its windows (which param depends on which) is left out.

A param reports every value that it cannot convert by name: "param 'boxSize': expected an integer, got 'four'". Whether
a convertible value is acceptable is left to validators, as under Scipion.
"""

from __future__ import annotations

from typing import Any, List, Optional, Type

from mpsteps._elements import *  # noqa: F403
from mpsteps._elements import FormElement
from mpsteps.constants import *  # noqa: F403
from mpsteps.errors import UsageError
from mpsteps.scalars import *  # noqa: F403
from mpsteps.scalars import Boolean, Float, Integer, Scalar, String, rawValue, showValue
from mpsteps.validators import *  # noqa: F403
from mpsteps.validators import (
    Format,
    FreqValidator,
    NonEmptyBool,
    NonEmptyBoolCondition,
    NonEmptyCondition,
    NumericListValidator,
    NumericRangeValidator,
)

_EMPTINESS = (NonEmptyCondition, NonEmptyBoolCondition)  # the validators that None is a question for


class Param(FormElement):
    """One value of a protocol. `paramClass` is the scalar that holds it; `default` keeps what the author gave.

    Keywords: label, help, default, expertLevel, condition, important, validators (a list of callables, or one),
    allowsNull, readOnly, paramClass. Others are accepted, since sources pass what only Scipion's windows read.
    """

    ATTRIBUTES = (*FormElement.ATTRIBUTES, "default")
    paramClass: Type[Any] = Scalar
    expected = "a value"  # completes the sentence "expected ..."
    kind = "value"

    def __init__(self, **args: Any) -> None:
        super().__init__(**args)
        self.paramClass = args.get("paramClass") or type(self).paramClass
        self.default = Scalar(args.get("default"))
        self.allowsNull = Boolean(args.get("allowsNull", False))
        self.allowsPointers = bool(args.get("allowsPointers", False))
        self.readOnly = bool(args.get("readOnly", False))
        validators = args.get("validators") or []
        # A copy: sources share one list among params, and addValidator must not reach the others.
        self.validators: List[Any] = [validators] if callable(validators) else list(validators)

    def addValidator(self, validator: Any) -> None:
        """Add a callable that takes a value and returns a list of messages, empty if all is well."""
        self.validators.append(validator)

    def validate(self, value: Any) -> List[str]:
        """What the validators have to say about `value`, a plain value or a scalar; [] if all is well.

        None in a param with `allowsNull` is shown only to the validators of emptiness. A validator that raises, because
        its author did not think of this value, gives a message too.
        """
        raw = rawValue(value)
        messages: List[str] = []
        for validator in self.validators:
            if raw is None and self.allowsNull and not isinstance(validator, _EMPTINESS):
                continue
            try:
                found = validator(raw)
            except (TypeError, ValueError, AttributeError, ArithmeticError, LookupError) as error:
                found = [f"cannot be checked: {type(error).__name__}: {error}"]
            messages += [found] if isinstance(found, str) else list(found or ())
        return messages

    def getDefault(self) -> Any:
        """The default as its author gave it; None if there is none."""
        return rawValue(self.default)

    def setDefault(self, newDefault: Any) -> None:
        """Change the default, from a subclass of the protocol for example."""
        self.default = Scalar(newDefault)

    def makeValue(self, value: Any) -> Any:
        """The scalar that holds `value` on a protocol; None gives an empty one. ValueError names the param."""
        raw = rawValue(value)
        try:
            return self.paramClass(value=None if raw is None else self._convert(raw))
        except (ValueError, TypeError, OverflowError):
            raise ValueError(self._complaint(raw)) from None

    def parse(self, text: str) -> Any:
        """The plain value that a user wrote as `text`; nothing is None if `allowsNull`. ValueError names the param."""
        if self.allowsNull and not text.strip():
            return None
        try:
            return rawValue(self.paramClass(value=self._parse(text)))
        except (ValueError, TypeError, OverflowError):
            raise ValueError(self._complaint(text)) from None

    def typeName(self) -> str:
        """What kind of value it takes, in one or a few words."""
        return self.kind

    def describeExpected(self) -> str:
        """Completes the sentence "expected ..."."""
        return self.expected

    def _convert(self, value: Any) -> Any:
        """`value`, not None, in this param's type. ValueError or TypeError if it does not fit."""
        return value

    def _parse(self, text: str) -> Any:
        return self._convert(text)

    def _complaint(self, value: Any) -> str:
        return f"param {self.name or type(self).__name__!r}: expected {self.describeExpected()}, got {showValue(value)}"

    def __str__(self) -> str:
        return f"    label: {self.getLabel()}"


class StringParam(Param):
    """A text."""

    paramClass = String
    expected = "a text"
    kind = "text"


class TextParam(StringParam):
    """A text of several lines; `height` and `width` are the characters that a window should show."""

    def __init__(self, **args: Any) -> None:
        super().__init__(**args)
        self.height = args.get("height", 5)
        self.width = args.get("width", 30)


class RegexParam(StringParam):
    """A regular expression."""

    kind = "regular expression"


class PathParam(StringParam):
    """A path or a glob. Whether it exists is the protocol's question (`_validate`), as under Scipion."""

    expected = "a path"
    kind = "path"


class FileParam(PathParam):
    """The path of a file."""

    kind = "file"


class FolderParam(PathParam):
    """The path of a directory."""

    kind = "folder"


class LabelParam(StringParam):
    """A text that the form shows and nobody edits."""

    kind = "label"


class IntParam(Param):
    """An integer. Text of one is accepted, a number with a fraction is not."""

    paramClass = Integer
    expected = "an integer"
    kind = "int"

    def __init__(self, **args: Any) -> None:
        super().__init__(**args)
        self.addValidator(Format(int, error="should be an integer", allowsNull=bool(self.allowsNull)))

    def _convert(self, value: Any) -> int:
        number = int(value)
        if not isinstance(value, str) and number != value:
            raise ValueError(value)
        return number


class EnumParam(IntParam):
    """One of `choices`; the value is its index, from 0.

    From Python it is given as the index or as the text of a choice. A user's text is taken as a choice first (upper or
    lower case where that is unambiguous), then as an index: with choices '1', '2', '4' the text '2' is index 1.
    """

    DISPLAY_LIST = 0
    DISPLAY_COMBO = 1
    DISPLAY_HLIST = 2

    def __init__(self, **args: Any) -> None:
        super().__init__(**args)
        choices = args.get("choices") or []
        if isinstance(choices, str):
            raise UsageError(f"choices={showValue(choices)} should be a list of texts")
        self.choices: List[Any] = list(choices)
        self.display = Integer(args.get("display", EnumParam.DISPLAY_COMBO))

    def validate(self, value: Any) -> List[str]:
        """As `Param.validate`; an index without a choice is a message too."""
        messages = super().validate(value)
        raw = rawValue(value)
        if not messages and raw is not None and self.choices and not 0 <= int(raw) < len(self.choices):
            messages.append(f"should be {self.describeExpected()}")
        return messages

    def typeName(self) -> str:
        """'enum: a | b'."""
        return "enum: " + " | ".join(map(str, self.choices))

    def describeExpected(self) -> str:
        """'one of 0 (a), 1 (b)'."""
        if not self.choices:
            return "the index of a choice"
        return "one of " + ", ".join(f"{index} ({choice})" for index, choice in enumerate(self.choices))

    def _convert(self, value: Any) -> int:
        try:
            return super()._convert(value)
        except ValueError:
            index = self._indexOf(value) if isinstance(value, str) else None
            if index is None:
                raise
            return index

    def _parse(self, text: str) -> int:
        index = self._indexOf(text)
        if index is None:
            index = int(text)
            if self.choices and not 0 <= index < len(self.choices):
                raise ValueError(text)
        return index

    def _indexOf(self, text: str) -> Optional[int]:
        texts = [str(choice).strip() for choice in self.choices]
        text = text.strip()
        if text in texts:
            return texts.index(text)
        alike = [index for index, choice in enumerate(texts) if choice.lower() == text.lower()]
        return alike[0] if len(alike) == 1 else None


class FloatParam(Param):
    """A number."""

    paramClass = Float
    expected = "a number"
    kind = "float"

    def __init__(self, **args: Any) -> None:
        super().__init__(**args)
        self.addValidator(Format(float, error="should be a float", allowsNull=bool(self.allowsNull)))

    def _convert(self, value: Any) -> float:
        return float(value)


class BooleanParam(Param):
    """Yes or no: True, False, 1, 0, or a text such as true, yes, on, false, no, off. Must be set, unless allowsNull."""

    DISPLAY_YES_NO = 1
    DISPLAY_CHECKBOX = 2
    paramClass = Boolean
    expected = "true or false"
    kind = "bool"

    def __init__(self, display: int = DISPLAY_YES_NO, **args: Any) -> None:
        super().__init__(**args)
        self.display = display
        self._requireAnswer()

    def _requireAnswer(self) -> None:
        if not self.allowsNull:
            self.addValidator(NonEmptyBool)

    def _convert(self, value: Any) -> bool:
        if not isinstance(value, str) and value not in (0, 1):
            raise ValueError(value)
        return bool(Boolean(value))

    def _parse(self, text: str) -> bool:
        if not text.strip():
            raise ValueError(text)
        return self._convert(text)


class HiddenBooleanParam(BooleanParam):
    """A boolean that no window shows and that may stay unset."""

    def _requireAnswer(self) -> None:
        """Nobody can answer a question that is not shown."""


class DigFreqParam(FloatParam):
    """A digital frequency: 0.001 to 0.5, in cycles per pixel."""

    def __init__(self, **args: Any) -> None:
        super().__init__(**args)
        self.addValidator(FreqValidator)


class NumericListParam(StringParam):
    """Numbers as a text, '10 2x5 1' for 10, 5, 5, 1; read it with `getListFromValues(caster=float)`."""

    expected = "numbers such as '10 2x5 1'"
    kind = "number list"

    def __init__(self, **args: Any) -> None:
        super().__init__(**args)
        self.addValidator(NumericListValidator())


class NumericRangeParam(StringParam):
    """Numbers as a text, '1,5-8,10' for 1, 5, 6, 7, 8, 10; read it with `getListFromRange()`."""

    expected = "numbers and ranges such as '1,5-8,10'"
    kind = "number range"

    def __init__(self, **args: Any) -> None:
        super().__init__(**args)
        self.addValidator(NumericRangeValidator())


class TupleParam(Param):
    """Several values of one concept, kept as they are given (from Python only: text stays text)."""

    kind = "tuple"


class _ProjectParam(Param):
    """A param whose value is an object of a Scipion project."""

    def __init__(self, **args: Any) -> None:
        name = type(self).__name__
        raise UsageError(f"{name} selects an object of a Scipion project; a stand-alone protocol has none: "
                         f"use PathParam for its files, or run the protocol under Scipion")


class PointerParam(_ProjectParam):
    """Selects an object of a Scipion project; it can be named, but not used in a form."""


class MultiPointerParam(PointerParam):
    """Selects objects of a Scipion project; it can be named, but not used in a form."""


class RelationParam(_ProjectParam):
    """Selects a related object of a Scipion project; it can be named, but not used in a form."""


class ProtocolClassParam(_ProjectParam):
    """Selects a protocol of a Scipion project; it can be named, but not used in a form."""


class DeprecatedParam:
    """The old name of a renamed param: `self.oldName = DeprecatedParam('newName', self)` in `_defineParams`.

    What is set under the old name goes to the new one; so do constructor keywords.
    """

    def __init__(self, newParamName: str, prot: Any) -> None:
        self.newParamName = newParamName
        self.prot = prot

    def set(self, value: Any) -> None:
        """Set the renamed param."""
        getattr(self.prot, self.newParamName).set(value)

    def get(self, default: Any = None) -> Any:
        """The value of the renamed param."""
        return getattr(self.prot, self.newParamName).get(default)

    def isPointer(self) -> bool:
        """False, as of every param here."""
        return False

    def getObjValue(self) -> None:
        """None: the value is stored under the new name only."""
