"""Assigns the rows of a table to the training images by name: every image gets one row, other rows are counted."""

import unicodedata
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from fastmpl.data.errors import DataError, printable

_DIGITS: Final = 18  # of an index; longer numbers are names


def compose(name: str) -> str:
    """Unicode's composed form: systems write a letter with an accent as one character or as two."""
    return unicodedata.normalize("NFC", name)


class ImageRows:
    """Which row belongs to which of the training images `names`. `left_out`: names of files that cannot be used."""

    def __init__(self, path: Path, names: Sequence[str], left_out: Collection[str] = ()) -> None:
        self._path, self._names, self._left_out = path, names, frozenset(left_out)
        self._numbers = {name: number for number, name in enumerate(names)}
        self._composed = {compose(name): number for number, name in enumerate(names) if not name.isascii()}
        self._seen = np.zeros(len(names), bool)
        self._unused = 0  # rows of files that were left out
        self._others: list[str] = []  # the first name of other rows
        self._other_count = 0

    def place(self, name: str) -> int | None:
        """The number of the image `name`; None where it is no training image. Raises DataError at its second row."""
        number = self._find(name)
        if number is None:
            self._count(name)
            return None
        if self._seen[number]:
            raise DataError(f"{printable(self._path)} has two rows for image {printable(name)!r}. Remove one of them.")
        self._seen[number] = True
        return number

    def check_complete(self) -> None:
        """Raises DataError where an image has no row."""
        missing = np.flatnonzero(~self._seen)
        if not missing.size:
            return
        others = ""
        if self._others:
            others = f" It has {self._other_count} rows of other images, the first being {self._others[0]!r}."
        raise DataError(
            f"{printable(self._path)} has no row for {missing.size} of {len(self._names)} training images, the first "
            f"being {printable(self._names[missing[0]])!r}: each needs one, and test images need none.{others}"
        )

    def remarks(self) -> list[str]:
        """What was ignored, a sentence each."""
        said = [f"{self._unused} rows of {printable(self._path)} are of files that were left out: they are ignored."]
        said = said if self._unused else []
        if self._others:
            said.append(
                f"{self._other_count} rows of {printable(self._path)} are of no training image (the first: "
                f"{self._others[0]!r}): they are ignored."
            )
        return said

    def _find(self, name: str) -> int | None:
        spelled = name.replace("\\", "/").removeprefix("./")
        for numbers, spelling in ((self._numbers, name), (self._numbers, spelled), (self._composed, compose(spelled))):
            if (number := numbers.get(spelling)) is not None:
                return number
        if name.isdecimal() and len(name) <= _DIGITS and int(name) < len(self._names):
            return int(name)
        return None

    def _count(self, name: str) -> None:
        if name.replace("\\", "/").removeprefix("./") in self._left_out:
            self._unused += 1
            return
        self._other_count += 1
        if not self._others:
            self._others.append(printable(name))
