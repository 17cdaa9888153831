"""Recognises how the lines of a list of files are written, and splits them."""

import csv
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from fastmpl.config.paths import expand_path
from fastmpl.data.errors import DataError, printable
from fastmpl.data.files.decode import SUFFIXES

_SUFFIX: Final = "|".join(re.escape(suffix) for suffix in SUFFIXES)
_IMAGE: Final = re.compile(rf"({_SUFFIX})$", re.IGNORECASE)
_SPACED: Final = re.compile(rf"""^(["']?)(?P<path>.+({_SUFFIX}))\1 +(?P<word>\S.*)$""", re.IGNORECASE)
_PATH_HEADERS: Final = frozenset(
    ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img", "name")
)
_CLASS_HEADERS: Final = frozenset(("label", "labels", "class", "class_name", "category", "target", "species"))

Split = Callable[[str], list[str]]


class ListForm(NamedTuple):
    """How the lines are split, how many columns they have (0: any), which hold path and class, and what is first."""

    split: Split
    columns: int
    path: int
    word: int
    header: bool
    backslashes: bool  # paths are written as on Windows


def _split_spaces(line: str) -> list[str]:
    """A path, perhaps in quotes, and a class, or a class and a path; both may have spaces where the path has a suffix."""
    line = line.strip()
    found = _SPACED.match(line)
    if found:
        return [found["path"], found["word"]]
    first, _, last = line.rpartition(" ")
    return [first.strip(), last] if first else [last]


def _split_at(separator: str) -> Split:
    def split(line: str) -> list[str]:
        quoted = '"' in line
        cells = (
            next(csv.reader([line], delimiter=separator, skipinitialspace=True)) if quoted else line.split(separator)
        )
        return [cell.strip() for cell in cells]

    return split


def _take_whole(line: str) -> list[str]:
    line = line.strip()
    if line.startswith('"') and line.endswith('"'):
        return next(csv.reader([line]))
    return [line]


def _is_file(path: Path) -> bool:
    """Whether there is such a file; a name that is too long for one is no name of a file."""
    return os.path.isfile(path)


def _is_path(root: Path, cell: str) -> bool:
    return bool(_IMAGE.search(cell)) or (bool(cell) and _is_file(root / cell))


def _choose_split(root: Path, line: str, with_class: bool) -> Split:
    """A tab separates; a comma or a semicolon does where it is not within a path; else a space does."""
    if "\t" in line:
        return _split_at("\t")
    path = _split_spaces(line)[0] if with_class else line.strip()
    if not _is_file(root / path):
        for separator in (",", ";"):
            if len(_split_at(separator)(line)) > 1:
                return _split_at(separator)
    return _split_spaces if with_class else _take_whole


def _name_columns(cells: Sequence[str]) -> tuple[int, int] | None:
    """The columns of path and class, by the names in a header."""
    names = [cell.strip("#\"' ").lower() for cell in cells]
    path = next((at for at, name in enumerate(names) if name in _PATH_HEADERS), None)
    word = next((at for at, name in enumerate(names) if name in _CLASS_HEADERS), None)
    return None if path is None or word is None else (path, word)


def recognise_form(root: Path, file: Path, first: str, second: str, *, with_class: bool) -> ListForm:
    """The form of a list, from its first two lines (one twice where there is one alone).

    Raises DataError where it has more columns than a path and a class, and no header that names these.
    """
    split = _choose_split(root, second, with_class)
    header = first != second and not any(_is_path(root, cell) for cell in split(first))
    named = _name_columns(split(first)) if header else None
    if named is not None and with_class:
        path, word = named
        columns, cells = len(split(first)), split(second)
    else:
        cells = [cell for cell in split(second if header else first) if cell]
        if len(cells) > 2 and with_class:
            raise DataError(
                f"{printable(file)} has {len(cells)} columns: {first!r}. Give a path and a class in every line, "
                "or a first line that names the columns path and label."
            )
        path = next((at for at, cell in enumerate(cells) if _is_path(root, cell)), 0)
        word, columns = 1 - min(path, 1), 2 if with_class else 0
    text = cells[path] if path < len(cells) else ""
    backslashes = "\\" in text and not (root / text).is_file() and (root / text.replace("\\", "/")).is_file()
    return ListForm(split, columns, path, word, header, backslashes)


def name_line(file: Path, number: int) -> str:
    """A line of a list, for a message."""
    return f"{printable(file)}, line {number}"


def split_line(form: ListForm, line: str, file: Path, number: int, *, with_class: bool) -> tuple[str, str]:
    """Path and word of a line of the list. Raises DataError for another form."""
    cells = form.split(line)
    if not (form.header and form.columns > 2):
        cells = [cell for cell in cells if cell]
    if (form.columns and len(cells) != form.columns) or form.path >= len(cells):
        found = "no class" if len(cells) == 1 else f"{len(cells)} columns, not {form.columns or 1}"
        raise DataError(f"{name_line(file, number)} has {found}: {line.strip()!r}. Give a path and a class.")
    path, word = cells[form.path], cells[form.word] if with_class else ""
    if with_class and not word:
        raise DataError(f"{name_line(file, number)} has no class: {line.strip()!r}. Give a path and a class.")
    if path.startswith(("~/", "$")):
        path = expand_path(path, name_line(file, number))
    return (path.replace("\\", "/") if form.backslashes else path), word
