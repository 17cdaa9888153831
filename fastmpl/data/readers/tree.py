"""The folder of a user's own pictures: which files it has, and what each is for. No file is opened here.

labelled/<class>/**     the pool of labelled images
unlabelled/**           images without a label (optional)
test/<class>/**         images to test on (optional)
trusted/<class>/**      labelled images that are surely right (optional)
"""

import difflib
import unicodedata
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from fastmpl.data.dataset import UNKNOWN, Labels, Problem
from fastmpl.data.errors import DataError, printable
from fastmpl.data.files.encoded import Names
from fastmpl.data.files.listing import image_files, visible

PARTS: Final = ("labelled", "trusted", "unlabelled", "test")
_SPELLINGS: Final = {"labeled": "labelled", "unlabeled": "unlabelled"}


class Listed(NamedTuple):
    """Image files of one part, by their paths below the tree's root, and the class of each (UNKNOWN without)."""

    names: Names
    labels: Labels


NOTHING: Final = Listed(Names(), np.empty(0, np.int64))


class Tree(NamedTuple):
    """What a user's folder holds, in sorted order; `problems` are the files that are none of it."""

    root: Path
    classes: tuple[str, ...]
    labelled: Listed
    trusted: Listed | None
    unlabelled: Listed
    test: Listed
    problems: tuple[Problem, ...]


def images_below(folder: Path) -> list[Path]:
    """The image files below `folder`, sorted; known by their extensions."""
    return [folder / name for name in image_files(folder, ["."])[0].names]


def _class_folders(part: Path) -> list[Path]:
    return sorted(path for path in part.iterdir() if path.is_dir() and visible(path.name))


def class_name(folder: Path) -> str:
    """The class that a folder stands for: its name, in one of Unicode's two ways to write an accent."""
    name = unicodedata.normalize("NFC", folder.name)
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
        raise DataError(
            f"{printable(folder.parent)} has the class folder {folder.name!a}, whose name cannot be printed: rename it."
        )
    return name


def _loose(part: Path, problems: list[Problem]) -> list[Path]:
    """Files that lie beside the class folders."""
    loose = [path for path in sorted(part.iterdir()) if path.is_file() and visible(path.name)]
    problems += [Problem(str(path), "it lies in no class folder") for path in loose]
    return loose


def _classes(part: Path, problems: list[Problem]) -> tuple[str, ...]:
    if not part.is_dir():
        raise DataError(
            f"{printable(part.parent)} has no folder {part.name}. Expected {printable(part)}/<class>/*.jpg."
            + _misspelt(part.parent, part.name)
        )
    names = tuple(sorted({class_name(folder) for folder in _class_folders(part)}))
    loose = _loose(part, problems)
    if not names:
        found = f"found {printable(loose[0])} (no class folder)" if loose else "it is empty"
        raise DataError(f"no labelled images in {printable(part)}. Expected {printable(part)}/<class>/*.jpg; {found}.")
    if len(names) == 1:
        raise DataError(f"{printable(part)} has one class ({names[0]}), and a classifier needs two or more.")
    return names


def _misspelt(root: Path, part: str) -> str:
    """A hint where a folder's name is nearly that of `part`."""
    names = [path.name for path in root.iterdir() if path.is_dir() and path.name not in PARTS]
    near = [name for name in names if _SPELLINGS.get(name.lower(), name.lower()) == part]
    near = near or difflib.get_close_matches(part, names, n=1, cutoff=0.8)
    return f" Found {near[0]}: rename it to {part}." if near else ""


def class_images(root: Path, part: str, classes: tuple[str, ...], whose: str, problems: list[Problem]) -> Listed:
    """The images of `root`/`part`/<class>/**. Raises DataError for a class that is not in `classes` (which are `whose`)."""
    numbers, folders = [], _class_folders(root / part)
    for folder in folders:
        name = class_name(folder)
        if name not in classes:
            near = difflib.get_close_matches(name, classes, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"Its classes are {', '.join(classes[:10])}."
            raise DataError(f"{printable(root / part)} has the class {name}, which {whose} has not. {hint}")
        numbers.append(classes.index(name))
    found = image_files(root, [folder.relative_to(root).as_posix() for folder in folders])
    problems += [problem for images in found for problem in images.problems]
    labels = np.repeat(np.array(numbers, np.int64), [len(images.names) for images in found])
    return Listed(Names.join([images.names for images in found]), labels)


def _unlabelled(root: Path, problems: list[Problem]) -> Listed:
    (found,) = image_files(root, ["unlabelled"])
    problems += found.problems
    return Listed(found.names, np.full(len(found.names), UNKNOWN, np.int64))


def _optional(root: Path, part: str, classes: tuple[str, ...], problems: list[Problem]) -> Listed:
    _loose(root / part, problems)
    return class_images(root, part, classes, printable(root / "labelled"), problems)


def read_tree(folder: str) -> Tree:
    """The images of a user's folder. Raises DataError, one sentence, where it is not laid out as the module says."""
    root = Path(folder).expanduser()
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise DataError(f"data.root = {folder!r} {what}. Name the folder that holds labelled/<class>/*.jpg.")
    problems: list[Problem] = []
    try:
        classes = _classes(root / "labelled", problems)
        labelled = class_images(root, "labelled", classes, "", problems)
        has = {part: (root / part).is_dir() for part in PARTS}
        for part in PARTS:
            if not has[part] and (hint := _misspelt(root, part)):
                raise DataError(f"{printable(root)} has no folder {part}.{hint}")
        return Tree(
            root=root,
            classes=classes,
            labelled=labelled,
            trusted=_optional(root, "trusted", classes, problems) if has["trusted"] else None,
            unlabelled=_unlabelled(root, problems) if has["unlabelled"] else NOTHING,
            test=_optional(root, "test", classes, problems) if has["test"] else NOTHING,
            problems=tuple(problems),
        )
    except OSError as error:
        raise DataError(f"{printable(str(error.filename or root))} cannot be read: {error.strerror}.") from error
