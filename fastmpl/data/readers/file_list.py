"""Reads lists of files: a line has a path, from the list's folder on, and a class.

    images/a cat.jpg<TAB>cat

A tab, a comma or a semicolon separates them (with the quotes of CSV), or else the first space after the path. The class may
come first. A header line, empty lines and lines that begin with # are left out. The first two lines decide which form a
list has, and every other line must have it (`fastmpl.data.readers.list_form`).
"""

import os
import sys
from array import array
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmpl.data.errors import DataError, printable
from fastmpl.data.files.encoded import Names
from fastmpl.data.files.text import read_text
from fastmpl.data.inventory import Inventory, Problem, fold_problems
from fastmpl.data.readers.list_form import name_line, recognise_form, split_line

_LOOKED_AT: Final = 20  # paths of a list that are looked for
_BLOCK: Final = 1 << 16  # characters that are split into lines at once


class FileList(NamedTuple):
    """Paths and words (empty in a list without classes) of a list, the line of each, its other lines, its account.

    keys: hashes of the normal paths, which differ from process to process.
    """

    names: Names
    words: list[str]
    lines: NDArray[np.int64]  # counted from 1
    problems: tuple[Problem, ...]
    inventory: Inventory
    keys: NDArray[np.int64]


EMPTY: Final = FileList(Names(), [], np.empty(0, np.int64), (), Inventory(0), np.empty(0, np.int64))


def _why_no_content(line: str) -> str:
    """Why a line names no image; empty where it does, or is a header."""
    if not line.strip():
        return "the line is empty"
    return "the line is a comment" if line.lstrip().startswith("#") else ""


def _lines(text: str) -> Iterator[str]:
    """The lines. `splitlines` knows more ends of lines; a block at a time, since all at once would take twice the text."""
    start = 0
    while start < len(text):
        end = text.find("\n", start + _BLOCK)
        if end < 0:
            yield from text[start:].removesuffix("\n").split("\n")
            return
        yield from text[start:end].split("\n")
        start = end + 1


def _content(text: str, file: Path, header: bool, others: list[Problem]) -> Iterator[tuple[int, str]]:
    """The lines that name images, counted from 1; the other lines are added to `others`. header: whether there is one."""
    for number, line in enumerate(_lines(text), 1):
        why = _why_no_content(line)
        if header and not why:
            why, header = "the line is a header", False
        if why:
            others.append(Problem(name_line(file, number), why))
        else:
            yield number, line


def _find_repeated(file: Path, found: FileList) -> NDArray[np.int64]:
    """Positions of paths that the list has before. Raises DataError where the class differs."""
    ordered = np.sort(found.keys)
    several = ordered[1:][ordered[1:] == ordered[:-1]]
    first: dict[str, int] = {}
    again = []
    for position in np.flatnonzero(np.isin(found.keys, several)).tolist() if len(several) else ():
        before = first.setdefault(os.path.normpath(found.names[position]), position)
        if before == position:
            continue
        if found.words[before] != found.words[position]:
            raise DataError(
                f"{printable(file)} gives {found.names[position]!r} two classes: "
                f"{found.words[before]!r} in line {found.lines[before]} and "
                f"{found.words[position]!r} in line {found.lines[position]}. Keep one of the lines."
            )
        again.append(position)
    return np.array(again, np.int64)


def _require_files(root: Path, file: Path, found: FileList) -> None:
    """Raises DataError where none of some paths leads to a file: then the list is not what it seems."""
    count = len(found.names)
    some = sorted({0, count - 1, *range(0, count, max(1, count // _LOOKED_AT))}) if count else []
    if some and not any(os.path.exists(root / found.names[position]) for position in some):
        raise DataError(
            f"{name_line(file, found.lines[0])}: there is no file {found.names[0]!r} in {printable(root)}, nor any "
            f"of the {len(some)} paths looked for. Write paths from the folder of the list on."
        )


def read_list(root: Path, file: Path, *, with_class: bool) -> FileList:
    """Reads one list. A path that comes again with the same class is used once.

    Raises DataError for a line of another form, for a path with two classes, and where no path leads to a file.
    """
    text = read_text(file)
    problems: list[Problem] = []
    start = [line for _, line in islice(_content(text, file, header=False, others=problems), 2)]
    if not start:
        return EMPTY._replace(problems=fold_problems(problems), inventory=Inventory(len(problems)))
    problems.clear()
    form = recognise_form(root, file, start[0], start[-1], with_class=with_class)
    words: list[str] = []
    lines, keys = array("q"), array("q")  # a million tuples would take what Names saves

    def paths() -> Iterator[str]:
        for number, line in _content(text, file, form.header, problems):
            path, word = split_line(form, line, file, number, with_class=with_class)
            words.append(sys.intern(word))  # a million images have a thousand words
            lines.append(number)
            keys.append(hash(os.path.normpath(path)))
            yield path

    names = Names(paths())
    inventory = Inventory(len(names) + len(problems))
    found = FileList(names, words, np.array(lines, np.int64), (), inventory, np.array(keys, np.int64))
    again = _find_repeated(file, found)
    if len(again):
        problems += [
            Problem(name_line(file, found.lines[position]), "the list has this path before") for position in again
        ]
        kept = np.setdiff1d(np.arange(len(words)), again)
        found = found._replace(
            names=Names(names[k] for k in kept),
            words=[words[k] for k in kept],
            lines=found.lines[kept],
            keys=found.keys[kept],
        )
    _require_files(root, file, found)
    return found._replace(problems=fold_problems(problems))
