"""The image of a protocol: how it travels to a worker, once. Afterwards only changes travel."""

from __future__ import annotations

import contextlib
import copy
from typing import Any, Callable, Dict, Iterator, List, Tuple

from mpsteps._ipc import state, wire
from mpsteps.errors import SerializationError

Image = Dict[str, Any]
"""Parcels of the class and of the state (that may have large arrays in a block of the arena), and what both share."""

_CHECKED = 16 << 20
"""Bytes up to which an image is loaded once here to see that it can be: of more, that would cost too much memory."""

_FAULTS = (Exception, SystemExit, GeneratorExit)  # what a __reduce__ or __getstate__ of a user's class may raise


def take_image(protocol: Any, pack: Callable[[Any, Any], Any] = wire.pack) -> Tuple[Image, List[str]]:
    """The image, and a sentence for each attribute that cannot travel. `pack` makes the parcel of the attributes.

    The class and the attributes travel apart, so that an attribute that refers to the protocol (a bound method, a
    helper that knows its owner) refers to the worker's one there. In place of what cannot travel the worker has a
    `state.Absent`, which says so as soon as a step uses it. Raises SerializationError if not even the class travels.
    """
    try:
        cls = wire.pack(type(protocol))
    except _FAULTS as error:
        raise SerializationError(
            f"the class {type(protocol).__name__} cannot travel to worker processes ({type(error).__name__}: {error}); "
            "define it at the top level of a module, or run it with engine='inline'"
        ) from error
    attributes = protocol.__getstate__()
    shared = _shared_with_class(protocol)
    try:
        return {"class": cls, "state": _checked(attributes, protocol, pack), "shared": tuple(shared)}, []
    except _FAULTS as error:  # some attribute: find out which by trying each
        problem = error
    notes = []
    for name, value in list(attributes.items()):
        try:
            _checked(value, protocol)
        except _FAULTS as error:
            reason = f"{type(value).__name__}: {type(error).__name__}: {error}"
            attributes[name] = state.Absent(name, reason)
            notes.append(f"attribute '{name}' cannot travel to worker processes ({reason}): steps must not use it")
    if not notes:  # each alone can travel, all together cannot: nothing to blame
        raise SerializationError(f"the protocol cannot travel to worker processes: {problem}") from problem
    return {"class": cls, "state": pack(attributes, protocol), "shared": tuple(shared)}, notes


def _checked(value: Any, protocol: Any, pack: Callable[[Any, Any], Any] = wire.pack) -> Any:
    parcel = pack(value, protocol)
    if isinstance(parcel, bytes) and len(parcel) <= _CHECKED:
        wire.unpack(parcel, protocol)
    return parcel


def load_image(image: Image, unpack: Callable[[Any, Any], Any] = wire.unpack) -> Any:
    """The protocol of an image; `unpack` opens the parcel of its state. Runs the user's code: imports, unpickling."""
    cls = wire.unpack(image["class"])
    protocol = cls.__new__(cls)
    protocol.__setstate__(unpack(image["state"], protocol))
    for place, name in image["shared"]:
        setattr(cls.__mro__[place], name, vars(protocol)[name])
    return protocol


_lent: Dict[Tuple[type, str], Any] = {}
"""(class, attribute) -> what stands there when no protocol of that class runs."""


@contextlib.contextmanager
def own_class_containers(protocol: Any, base: type) -> Iterator[None]:
    """Lists, dicts and sets of the class (of those below `base`) become the object's own: steps change them through
    `self`, and only what is the object's own comes back from a worker.

    While this lasts the class has the very same ones, for code that changes them through the class; then it has its own
    again, for the next object that is made of it."""
    lent: List[Tuple[type, str, Any]] = []
    for cls, name, value in _class_containers(protocol, base):
        with contextlib.suppress(Exception):  # what cannot travel stays the class's, and loads with it
            wire.pack(value, protocol)
            if name not in vars(protocol):
                setattr(protocol, name, copy.copy(_lent.get((cls, name), value)))
                protocol._ownContainers.append(name)
            own = vars(protocol)[name]
            if type(own) is type(value) and (cls, name) not in _lent:  # else another object of the class runs as well
                setattr(cls, name, own)
                _lent[cls, name] = value
                lent.append((cls, name, own))
    try:
        yield
    finally:
        for cls, name, own in lent:
            value = _lent.pop((cls, name))
            if vars(cls).get(name) is own:
                setattr(cls, name, value)


def _class_containers(protocol: Any, base: type) -> Iterator[Tuple[type, str, Any]]:
    """Those that the object finds in its classes, or has had from them since an earlier run."""
    seen = set()
    for cls in type(protocol).__mro__:
        for name, value in list(vars(cls).items()) if cls not in base.__mro__ else ():
            if type(value) not in (list, dict, set) or name.startswith("__") or name in seen:
                continue
            seen.add(name)
            if name not in vars(protocol) or name in protocol._ownContainers:
                yield cls, name, value


def _shared_with_class(protocol: Any) -> List[Tuple[int, str]]:
    """Attributes that the object has in common with one of its classes, which is told by its place in their order."""
    attributes = vars(protocol)
    return [
        (place, name)
        for place, cls in enumerate(type(protocol).__mro__)
        for name, value in vars(cls).items()
        if type(value) in (list, dict, set) and attributes.get(name) is value
    ]
