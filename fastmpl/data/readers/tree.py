"""Lists the folder of a user's own images: which files it has, and what each is for. No file is opened here.

labelled/<class>/**     the pool of labelled images
unlabelled/**           images without a label (optional)
test/<class>/**         images to test on (optional)
trusted/<class>/**      labelled images whose labels are known to be right (optional)

Other names of the parts are read too (`fastmpl.data.readers.parts`), such as the train/ and val/ of torchvision's
ImageFolder.
"""

import os
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from fastmpl.data.classes import check_class_names, closest_name, normal_name, remarks_on_names
from fastmpl.data.dataset import UNKNOWN, Labels
from fastmpl.data.errors import DataError, printable
from fastmpl.data.files.encoded import Names
from fastmpl.data.files.listing import is_folder, list_image_files, why_hidden, why_no_file
from fastmpl.data.files.paths import find_folder
from fastmpl.data.inventory import Inventory, Problem, add_inventories, fold_problems
from fastmpl.data.readers.parts import PartFolders, find_parts, name_entries


class PartImages(NamedTuple):
    """Image files of one part, by their paths below the tree's root, the class of each (UNKNOWN without), and the rest."""

    names: Names
    labels: Labels
    problems: tuple[Problem, ...] = ()
    inventory: Inventory = Inventory(0)


NOTHING: Final = PartImages(Names(), np.empty(0, np.int64))


class Tree(NamedTuple):
    """What a user's folder holds, in sorted order; `problems` are the entries that are none of it."""

    root: Path
    classes: tuple[str, ...]
    labelled: PartImages
    trusted: PartImages | None
    unlabelled: PartImages
    test: PartImages
    problems: tuple[Problem, ...]
    inventory: Inventory
    remarks: tuple[str, ...]
    labelled_folder: Path


class _PartFolder(NamedTuple):
    """What lies directly in a part: the folders of classes, and all else."""

    folders: tuple[str, ...]
    problems: tuple[Problem, ...]


def _read_part(part: Path) -> _PartFolder:
    folders, problems = [], []
    with os.scandir(part) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            hidden = why_hidden(entry.name)
            if is_folder(entry) and not hidden:
                folders.append(entry.name)
            else:
                reason = hidden or why_no_file(entry) or "it lies in no class folder"
                problems.append(Problem(str(part / entry.name), reason))
    return _PartFolder(tuple(folders), tuple(problems))


def _require_labelled(root: Path, parts: PartFolders) -> Path:
    """The folder of the labelled images. Raises DataError where there is none."""
    if "labelled" not in parts.names:
        tables = [path for path in root.iterdir() if path.suffix.lower() in (".csv", ".tsv")]
        table = ' A table of paths and classes is read by data.source = "file_list" (docs/data.md).' if tables else ""
        raise DataError(
            f"{printable(root)} has no folder labelled (or train). Expected {printable(root / 'labelled')}/<class>/*.jpg; "
            f"it holds {name_entries(root)}.{table}"
        )
    return parts.folder(root, "labelled")


def _find_classes(part: Path) -> tuple[str, ...]:
    """The names of the classes, sorted. Raises DataError where there are none, or one alone."""
    found = _read_part(part)
    if not found.folders:
        first = found.problems[0] if found.problems else None
        loose = f"found {printable(first.file)} ({first.reason})" if first else "it is empty"
        raise DataError(f"no labelled images in {printable(part)}. Expected {printable(part)}/<class>/*.jpg; {loose}.")
    names = check_class_names(sorted({normal_name(name) for name in found.folders}), f"{printable(part)}")
    if len(names) == 1:
        raise DataError(f"{printable(part)} has one class ({names[0]}), and a classifier needs two or more.")
    return names


def list_class_images(root: Path, part: str, classes: tuple[str, ...], whose: str) -> PartImages:
    """The images of `root`/`part`/<class>/**. Raises DataError for a class that is not in `classes` (which are `whose`)."""
    folders, loose = _read_part(root / part)
    numbers, number_of = [], {name: number for number, name in enumerate(classes)}
    for folder in folders:
        number = number_of.get(normal_name(folder))
        if number is None:
            raise DataError(
                f"{printable(root / part)} has the class {printable(folder)}, which {whose} has not. "
                + closest_name(folder, classes)
            )
        numbers.append(number)
    found = list_image_files(root, folders if part == "." else [f"{part}/{folder}" for folder in folders])
    problems = fold_problems((*loose, *(problem for images in found for problem in images.problems)))
    labels = np.repeat(np.array(numbers, np.int64), [len(images.names) for images in found])
    entries = len(loose) + sum(images.entries for images in found)
    return PartImages(Names.join([images.names for images in found]), labels, problems, Inventory(entries))


def _unlabelled_images(root: Path, part: str) -> PartImages:
    (found,) = list_image_files(root, [part])
    labels = np.full(len(found.names), UNKNOWN, np.int64)
    return PartImages(found.names, labels, found.problems, Inventory(found.entries))


def _list_tree(root: Path) -> Tree:
    parts = find_parts(root)
    folder = _require_labelled(root, parts)
    classes = _find_classes(folder)
    of = {
        part: list_class_images(root, name, classes, printable(folder))
        for part, name in parts.names.items()
        if part != "unlabelled"
    }
    if "unlabelled" in parts.names:
        of["unlabelled"] = _unlabelled_images(root, parts.names["unlabelled"])
    return Tree(
        root=root,
        classes=classes,
        labelled=of["labelled"],
        trusted=of.get("trusted"),
        unlabelled=of.get("unlabelled", NOTHING),
        test=of.get("test", NOTHING),
        problems=fold_problems((*parts.problems, *(problem for images in of.values() for problem in images.problems))),
        inventory=add_inventories(
            [Inventory(parts.entries, parts.helpers), *(images.inventory for images in of.values())]
        ),
        remarks=tuple(remarks_on_names(classes)),
        labelled_folder=folder,
    )


def read_tree(folder: str) -> Tree:
    """Lists the images of a user's folder. Raises DataError where it is not laid out as the module says."""
    root = find_folder(folder, "data.root", "labelled/<class>/*.jpg")
    try:
        return _list_tree(root)
    except OSError as error:
        raise DataError(f"{printable(str(error.filename or root))} cannot be read: {error.strerror}.") from error


def require_images(tree: Tree, labels: Labels) -> None:
    """Raises DataError for a class with no image in `labels`, those of the labelled images that can be read."""
    for number, name in enumerate(tree.classes):
        if (labels == number).any():
            continue
        count, where = int((tree.labelled.labels == number).sum()), f"{printable(tree.labelled_folder)}/{name}"
        reason = f"{count} image files, and none can be read (`fastmpl check` says why)" if count else "no images"
        inside = [problem for problem in tree.labelled.problems if f"/{name}/" in f"{problem.file}/"]
        found = f" (it holds {printable(inside[0].file)}: {inside[0].reason})" if inside and not count else ""
        raise DataError(f"{where} has {reason}{found}. Put images there, or remove the folder.")
