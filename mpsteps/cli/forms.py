"""`mpsteps form`: the params of a protocol, for people and as JSON."""

from __future__ import annotations

import inspect
import json
import shutil
import textwrap
from typing import Any, Dict, Iterator, List, Optional, Tuple

from mpsteps._elements import ElementGroup, FormElement
from mpsteps._targets import load_target
from mpsteps.cli import output
from mpsteps.cli.building import make_protocol
from mpsteps.form import Form
from mpsteps.params import EnumParam, LabelParam, Param
from mpsteps.protocol import Protocol

_LEAST_WIDTH, _MOST_WIDTH = 40, 120


class _Entry:
    """A param as it is shown: in a section, perhaps in a group, under a condition."""

    def __init__(self, section: str, group: str, param: Param) -> None:
        self.section, self.group, self.param = section, group, param
        self.condition = str(param.condition.get() or "").strip()

    @property
    def hidden(self) -> bool:
        """Whether no window ever shows it."""
        return self.condition == "False"

    @property
    def type(self) -> str:
        return "enum" if isinstance(self.param, EnumParam) else self.param.typeName()

    @property
    def choices(self) -> List[str]:
        return [str(choice) for choice in getattr(self.param, "choices", ())]

    @property
    def default(self) -> Any:
        """The default in the type of the param; None if there is none."""
        return self.param.makeValue(self.param.getDefault()).get()

    @property
    def default_text(self) -> str:
        """The default as a user would write it after --set NAME=."""
        value = self.default
        if value is None:
            return "-"
        if self.choices and isinstance(value, int) and 0 <= value < len(self.choices):
            return self.choices[value]
        return str(value).lower() if isinstance(value, bool) else str(value) or "''"

    def as_dict(self) -> Dict[str, Any]:
        """For JSON: names as in the form."""
        return {
            "name": self.param.name, "type": self.type, "default": self.default, "section": self.section,
            "group": self.group, "label": self.param.getLabel() or "", "help": self.param.getHelp() or "",
            "condition": self.condition, "choices": self.choices, "expert": self.param.isExpert(),
            "hidden": self.hidden, "allowsNull": bool(self.param.allowsNull),
        }  # fmt: skip


def form_command(args: Any) -> int:
    """`mpsteps form TARGET`."""
    with output.users_output_aside():
        protocol = make_protocol(load_target(args.target), {})
        form = protocol.getDefinition()
    entries = list(_entries(form))
    if args.json:
        about = {"protocol": type(protocol).__name__, "label": protocol.getClassLabel(), "doc": _doc(protocol)}
        params = [entry.as_dict() for entry in entries]
        output.put(json.dumps({**about, "params": params}, ensure_ascii=False, default=str))
    else:
        width = min(_MOST_WIDTH, max(_LEAST_WIDTH, shutil.get_terminal_size((100, 24)).columns))
        output.put("\n".join(_lines(protocol, entries, args.target, width)))
    return 0


def _entries(form: Form) -> Iterator[_Entry]:
    """The params, section by section; the general ones, which every protocol has, last."""
    sections = list(form.iterSections())
    for section in sections[1:] + sections[:1]:
        for group, param in _params_of(section, ""):
            yield _Entry(section.getLabel() or "", group, param)


def _params_of(group: ElementGroup, label: str) -> Iterator[Tuple[str, Param]]:
    for _, element in group.iterParams():
        if isinstance(element, ElementGroup):
            yield from _params_of(element, element.getLabel() or label)
        elif isinstance(element, Param):
            yield label, element


def _doc(protocol: Protocol) -> str:
    doc = type(protocol).__doc__
    return inspect.cleandoc(doc) if doc else ""


def _lines(protocol: Protocol, entries: List[_Entry], target: str, width: int) -> Iterator[str]:
    name, label = type(protocol).__name__, protocol.getClassLabel()
    title = name if label == name else f"{name} ({label})"
    about = " ".join(_doc(protocol).split("\n\n")[0].split())
    yield from textwrap.wrap(f"{title}: {about}" if about else title, width)
    shown = [e for e in entries if not e.hidden]
    columns = [max((len(text) for text in texts), default=0) for texts in zip(*((e.param.name, e.type) for e in shown))]
    section: Optional[str] = None
    group = ""
    for entry in shown:
        if entry.section != section:
            section, group = entry.section, ""
            yield from ("", section)
        if entry.group != group:
            group = entry.group
            if group:
                yield f"  [{group}]"
        yield from _entry_lines(entry, columns, width)
    yield ""
    yield f"to set some: mpsteps run {target} --set NAME=VALUE --set NAME=VALUE ..."


def _entry_lines(entry: _Entry, columns: List[int], width: int) -> Iterator[str]:
    param = entry.param
    if isinstance(param, LabelParam):
        yield from _wrapped(" ".join(filter(None, (param.getLabel(), param.getHelp()))), 2, width)
        return
    line = f"  {param.name.ljust(columns[0])}  {entry.type.ljust(columns[1])}"
    default = f"default: {entry.default_text}"
    expert = "  (expert)" if param.isExpert() else ""
    if len(line) + 2 + len(default) + len(expert) <= width:
        yield f"{line}  {default}{expert}"
    else:
        yield (line + expert).rstrip()
        yield from _wrapped(default, 6, width)
    text = _sentence(param)
    if text:
        yield from _wrapped(text, 6, width)
    if entry.choices:
        yield from _wrapped("choices: " + " | ".join(entry.choices), 6, width)
    if entry.condition:
        yield from _wrapped(f"only if {entry.condition}", 6, width)
    if param.allowsNull:
        yield from _wrapped("may be left empty", 6, width)


def _sentence(param: FormElement) -> str:
    """Label and help in one."""
    label, text = (param.getLabel() or "").strip(), " ".join((param.getHelp() or "").split())
    return f"{label}: {text}" if label and text else label or text


def _wrapped(text: str, indent: int, width: int) -> List[str]:
    space = " " * indent
    return textwrap.wrap(text, width, initial_indent=space, subsequent_indent=space, break_long_words=False)
