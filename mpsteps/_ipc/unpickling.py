"""How what `pickling` has written becomes what it was. (What cloudpickle wrote, pickle reads: this is loaded fast.)"""

from __future__ import annotations

import io
import pickle
from typing import Any, Dict, Iterable, List, Union


def load(data: memoryview, anchor: Any) -> Any:
    """What `pickling.dump` has written, with this side's `anchor` in place of the other's."""
    if anchor is None:
        return pickle.loads(data)
    return _AnchoredUnpickler(io.BytesIO(data), anchor).load()


def load_large(
    data: Union[bytes, memoryview], plain: List[memoryview], arrays: Iterable[memoryview], anchor: Any
) -> Any:  # fmt: skip
    """What `pickling.dump_large` has written, with the buffers."""
    return _LargeUnpickler(io.BytesIO(data), plain, arrays, anchor).load()


class _AnchoredUnpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, anchor: Any) -> None:
        super().__init__(file)
        self._anchor = anchor

    def persistent_load(self, pid: Any) -> Any:
        return self._anchor


class _LargeUnpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, plain: List[memoryview], arrays: Iterable[memoryview], anchor: Any) -> None:
        super().__init__(file, buffers=arrays)
        self._plain = plain
        self._made: Dict[int, Any] = {}
        self._anchor = anchor

    def persistent_load(self, pid: Any) -> Any:
        if pid == "anchor":
            return self._anchor
        kind, index = pid
        if index not in self._made:
            self._made[index] = (bytes if kind == "bytes" else bytearray)(self._plain[index])
        return self._made[index]
