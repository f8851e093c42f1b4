"""The elements of numpy arrays, told one by one. Used only where there are arrays, so that numpy is there."""

from __future__ import annotations

from typing import Any, Optional, Sequence, Tuple

Cells = Tuple[Any, Any, Any]
"""Positions in the flattened array, rising; what is there; what was there before."""


def changed_cells(array: Any, before: bytes) -> Cells:
    """The cells in which `array` differs from what `tobytes()` gave before, to the last bit."""
    import numpy as np

    now, size, dtype = array.tobytes(), array.dtype.itemsize, array.dtype
    a, b = (np.frombuffer(data, "u1").reshape(-1, size) for data in (now, before))
    cells = np.flatnonzero((a != b).any(axis=1))
    return cells, np.frombuffer(now, dtype)[cells], np.frombuffer(before, dtype)[cells]


def overlap(one: Cells, two: Cells) -> Optional[Tuple[Any, Any]]:
    """Where, in each of two, stand the cells that both have; None: they have none in common."""
    import numpy as np

    _, in_one, in_two = np.intersect1d(one[0], two[0], assume_unique=True, return_indices=True)
    return (in_one, in_two) if len(in_one) else None


def among(one: Cells, positions: Sequence[Any]) -> Cells:
    """Those cells that stand at one of these positions."""
    import numpy as np

    chosen = np.isin(one[0], np.concatenate(positions))
    return one[0][chosen], one[1][chosen], one[2][chosen]


def agree(one: Cells, two: Cells) -> bool:
    """Whether the cells that both have were given the same values."""
    common = overlap(one, two)
    return common is None or bool(one[1][common[0]].tobytes() == two[1][common[1]].tobytes())


def can_add(array: Any) -> bool:
    """Whether differences of its elements mean something."""
    return array.dtype.kind in "iufc"


def added_up(array: Any, cells: Cells) -> Cells:
    """What the cells of `array` hold after the differences have been added to them."""
    positions, values, before = cells
    now = array.flat[positions]
    return positions, (now + (values - before)).astype(array.dtype), now
