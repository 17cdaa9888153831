"""Finds the parts of a data root (labelled, trusted, unlabelled, test) under the names that people give them."""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from fastmpl.data.errors import DataError, printable
from fastmpl.data.files.listing import is_folder, why_hidden
from fastmpl.data.inventory import Problem

PARTS: Final = ("labelled", "trusted", "unlabelled", "test")
SPELLINGS: Final = {  # of each part, the first that is there is read
    "labelled": ("labelled", "labeled", "train", "training"),
    "trusted": ("trusted",),
    "unlabelled": ("unlabelled", "unlabeled"),
    "test": ("test", "testing", "val", "valid", "validation"),
}
LIST_SUFFIXES: Final = (".txt", ".csv", ".tsv", ".lst")
_ALL_SPELLINGS: Final = frozenset(spelling for spellings in SPELLINGS.values() for spelling in spellings)
_BESIDE: Final = "it is none of the parts labelled, trusted, unlabelled and test"


class PartFolders(NamedTuple):
    """The name of each part that is there, by what it is; entries of the root that are no part, and all its entries."""

    names: dict[str, str]
    problems: tuple[Problem, ...]
    entries: int  # but for the parts
    helpers: int

    def folder(self, root: Path, part: str) -> Path:
        """The folder of a part, under the name it has or should have."""
        return root / self.names.get(part, part)


def _choose(stems: dict[str, str]) -> dict[str, str]:
    """Of entries by their lower-case names without suffix, the entry of each part."""
    found = {}
    for part, spellings in SPELLINGS.items():
        name = next((stems[spelling] for spelling in spellings if spelling in stems), None)
        if name is not None:
            found[part] = name
    return found


def _reason_beside(stem: str, chosen: dict[str, str]) -> str:
    part = next((part for part, spellings in SPELLINGS.items() if stem in spellings), "")
    if part == "test" and stem.startswith("val"):
        return f"test images are read from {chosen[part]}; data.validation takes its images from the labelled ones"
    return f"{chosen[part]} is read as the part {part}" if part else _BESIDE


def _refuse_misspelling(root: Path, names: Sequence[str], part: str) -> None:
    unknown = [name.lower() for name in names if name.lower() not in _ALL_SPELLINGS]  # "labeled" is near "unlabelled"
    near = difflib.get_close_matches(part, unknown, n=1, cutoff=0.8)
    if near:
        name = next(name for name in names if name.lower() == near[0])
        raise DataError(f"{printable(root)} has no {part}. Found {printable(name)}: rename it to {part}.")


def name_entries(root: Path) -> str:
    """The first five entries of a folder, for a message; `nothing` where it is empty."""
    found = sorted(name for name in os.listdir(root) if not why_hidden(name))
    return ", ".join(map(printable, found[:5])) + (" and others" if len(found) > 5 else "") or "nothing"


def find_parts(root: Path, *, known: Sequence[str] = ()) -> PartFolders:
    """Finds the folders of a root's parts. `known`: files that a reader uses besides, counted as helpers.

    Raises DataError where a part is missing and a folder's name is nearly its own.
    """
    with os.scandir(root) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    folders = [entry.name for entry in entries if is_folder(entry) and not why_hidden(entry.name)]
    stems = {name.lower(): name for name in reversed(folders)} | {name: name for name in folders}
    names = _choose(stems)
    rest = [entry.name for entry in entries if entry.name not in names.values()]
    helpers = [name for name in rest if name in known]
    others = [name for name in rest if name not in known]
    for part in PARTS:
        if part not in names:
            _refuse_misspelling(root, [name for name in others if name in folders], part)
    problems = [Problem(str(root / name), why_hidden(name) or _reason_beside(name.lower(), names)) for name in others]
    return PartFolders(names, tuple(problems), len(rest), len(helpers))


def find_lists(root: Path) -> PartFolders:
    """Finds the lists of a root: labelled.txt and so on, with any suffix of LIST_SUFFIXES. Other files are no entries."""
    files = sorted(path.name for path in root.iterdir() if path.is_file() and path.suffix.lower() in LIST_SUFFIXES)
    stems = {Path(name).stem.lower(): name for name in reversed(files)}
    names = _choose(stems)
    others = [name for name in files if Path(name).stem.lower() in _ALL_SPELLINGS and name not in names.values()]
    for part in PARTS:
        if part not in names:
            _refuse_misspelling(root, [Path(name).stem for name in files if name not in names.values()], part)
    problems = [Problem(str(root / name), _reason_beside(Path(name).stem.lower(), names)) for name in others]
    return PartFolders(names, tuple(problems), len(names) + len(others), len(names))
