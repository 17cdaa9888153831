"""Finds the column of the image and the columns of the classes in a table of class probabilities.

A header that names the classes decides, in whatever order it names them. Columns without names, or numbered 0 to K - 1,
are taken in the order of the data's classes.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmpl.data.classes import class_order, normal_name
from fastmpl.data.errors import DataError, printable

_NUMBERED = re.compile(r"(.*?)([0-9]{1,9})", re.DOTALL)


class Columns(NamedTuple):
    """The column of the image's name, and the column of each of the data's K classes."""

    image: int
    classes: NDArray[np.int64]
    named: bool  # whether a header named the classes

    def values(self, cells: Sequence[object]) -> list[object]:
        """The K cells of the classes, in the order of the data's classes."""
        return [cells[column] for column in self.classes.tolist()]


def _numbered_in_order(names: Sequence[str]) -> bool:
    """Whether the names are one word and the numbers 0, 1, 2, ... behind it, as in p_0, p_1, p_2."""
    found = [_NUMBERED.fullmatch(name) for name in names]
    return all(each is not None and int(each[2]) == place for place, each in enumerate(found)) and (
        len({each[1] for each in found if each is not None}) == 1
    )


def to_number(cell: str) -> float:
    """The number in a cell, with a decimal point or comma. Raises ValueError where it holds none."""
    return float(cell.replace(",", ".", 1))


def _number(cell: str) -> float | None:
    try:
        return to_number(cell)
    except ValueError:
        return None


def looks_like_header(cells: Sequence[str], classes: Sequence[str]) -> bool:
    """Whether the first line of a table names its columns: in words or in different whole numbers."""
    numbers = [number for number in map(_number, cells[1:]) if number is not None]
    if not numbers:
        return True
    first = cells[0].strip()
    if not first or first.isdecimal() or any(mark in first for mark in "./\\"):  # the name of an image
        return False
    if len(numbers) < len(cells) - 1:
        return True
    named = {normal_name(cell) for cell in cells[1:]} == set(classes)
    numbered = len(set(numbers)) == len(numbers) and all(number.is_integer() for number in numbers)
    return named or numbered


def find_columns(header: Sequence[str] | None, count: int, classes: Sequence[str], path: Path) -> Columns:
    """The columns of a table of `count` columns. Raises DataError where there are too many, or other classes are named."""
    if count != len(classes) + 1:
        raise DataError(
            f"{printable(path)} has {count} columns; expected {len(classes) + 1}: the image's name or index and "
            f"{len(classes)} probabilities."
        )
    names = None if header is None else [normal_name(name) for name in header]
    if names is None or _numbered_in_order(names[1:]):
        return Columns(0, np.arange(1, count), named=False)
    others = [column for column, name in enumerate(names) if name not in set(classes)]
    image = others[0] if len(others) == 1 else 0
    rest = np.array([column for column in range(count) if column != image])
    order = class_order([names[column] for column in rest], classes, f"The header of {printable(path)}")
    return Columns(image, rest[order], named=True)
