"""Coordinates as a STAR file, the text format in which RELION reads and writes particle positions.

One `data_` block with one loop: x and y in pixels of the micrograph, figure of merit, and the micrograph's name
(RELION 3 to 5, `relion_import` and `relion_preprocess`). Files are written beside their place and then renamed, so
that a reader sees an old file, a new file, or none, and never half of one.
"""

from __future__ import annotations

import os
import shlex
from typing import Sequence

from mpsteps.demo.picking import Pick

__all__ = ["read_star", "write_star", "write_text"]

LABELS = ("_rlnCoordinateX", "_rlnCoordinateY", "_rlnAutopickFigureOfMerit", "_rlnMicrographName")


def write_star(path: str, picks: Sequence[Pick], micrograph: str) -> None:
    """Write the picks of one micrograph; `micrograph` is its name as RELION shall look for it.

    Raises `ValueError` for a name that no STAR file can hold (quotes or line breaks in it).
    """
    if not micrograph or any(character in micrograph for character in "\"'\r\n"):
        raise ValueError(f"{micrograph!r} cannot be a micrograph's name in a STAR file: rename the file")
    name = f'"{micrograph}"' if any(character in micrograph for character in " \t#") else micrograph
    lines = ["", "data_", "", "loop_"]
    lines += [f"{label} #{number}" for number, label in enumerate(LABELS, 1)]
    lines += [f"{pick.x:12.2f} {pick.y:12.2f} {pick.score:10.4f} {name}" for pick in picks]
    write_text(path, "\n".join(lines) + "\n\n")


def read_star(path: str) -> list[tuple[Pick, str]]:
    """The picks of a STAR file with their micrographs' names, in the file's order.

    Columns may come in any order and others may be among them. Raises `ValueError`, naming file and line, for a file
    without the coordinates' columns or with a row that does not have one value for each column.
    """
    columns: dict[str, int] = {}
    lines = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            text = line.strip()
            if text.startswith("_"):
                columns[text.split()[0]] = len(columns)
            elif columns and text and not text.startswith("#"):
                lines.append((f"{path}, line {number}", text))
    missing = [label for label in LABELS if label not in columns]
    if missing:
        raise ValueError(f"{path}: has no column {missing[0]}: it is not a STAR file of coordinates")
    return [_parse_row(place, text, columns) for place, text in lines]


def write_text(path: str, text: str) -> None:
    """Write a text file so that it is there whole or not at all."""
    partial = f"{path}.{os.getpid()}.part"
    try:
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(partial, path)
    finally:
        if os.path.exists(partial):
            os.unlink(partial)


def _parse_row(place: str, text: str, columns: dict[str, int]) -> tuple[Pick, str]:
    values = shlex.split(text)
    if len(values) != len(columns):
        raise ValueError(f"{place}: {len(values)} values for {len(columns)} columns")
    x, y, score, name = (values[columns[label]] for label in LABELS)
    try:
        return Pick(float(x), float(y), float(score)), name
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
