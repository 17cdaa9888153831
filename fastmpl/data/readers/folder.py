"""Reads the source `folder`: the images of a user, decoded once to squares of data.image_size, and their problems."""

from pathlib import Path

import numpy as np

from fastmpl.data.dataset import Arrays, Labels, Problem
from fastmpl.data.errors import DataError, printable
from fastmpl.data.files.encoded import Names
from fastmpl.data.readers.cache import load_decoded
from fastmpl.data.readers.tree import NOTHING, Tree, class_images, read_tree


def _refuse_empty_classes(tree: Tree, labels: Labels) -> None:
    """Raises DataError for a class of which labelled/ has no image, or none that can be read."""
    for number, name in enumerate(tree.classes):
        if (labels == number).any():
            continue
        count, where = int((tree.labelled.labels == number).sum()), f"{printable(tree.root / 'labelled')}/{name}"
        reason = f"{count} image files, and none can be read (`fastmpl check` says why)" if count else "no images"
        raise DataError(f"{where} has {reason}. Put images there, or remove the folder.")


def read_folder(root: str, size: int) -> Arrays:
    """The images of a user's folder (`fastmpl.data.readers.tree`), uint8 [N, size, size, 3].

    Training images are those of labelled/, then of trusted/, then of unlabelled/. Files that cannot be read are left
    out and listed. Raises DataError where the folder is not laid out as it should be or a class is empty.
    """
    tree = read_tree(root)
    parts = [tree.labelled, tree.trusted or NOTHING, tree.unlabelled, tree.test]
    names = Names.join([part.names for part in parts])
    pictures = load_decoded(tree.root, names, size)
    labels = np.concatenate([part.labels for part in parts])[pictures.kept]
    part_of = np.repeat(np.arange(len(parts)), [len(part.names) for part in parts])[pictures.kept]
    _refuse_empty_classes(tree, labels[part_of == 0])
    if tree.trusted is not None and not (part_of == 1).any():
        raise DataError(
            f"{printable(tree.root / 'trusted')} has no image that can be read. Put images there, or remove it."
        )
    training = int((part_of < 3).sum())
    return Arrays(
        pictures.images[:training],
        labels[:training],
        pictures.images[training:],
        labels[training:],
        tree.classes,
        trusted=None if tree.trusted is None else np.flatnonzero(part_of == 1),
        problems=tree.problems + pictures.problems,
        names=Names(names[number] for number in pictures.kept[:training]),
    )


def read_labelled(folder: Path, classes: tuple[str, ...], size: int) -> Arrays:
    """The images of `folder`/<class>/**, or of its test/<class>/** where there is one, as test images.

    Raises DataError where a class is not one of `classes`, or nothing can be read.
    """
    if not folder.is_dir():
        raise DataError(f"{printable(folder)} is not a folder. Name one that holds <class>/*.jpg.")
    part = folder / "test" if (folder / "test").is_dir() and "test" not in classes else folder
    problems: list[Problem] = []
    listed = class_images(part, ".", classes, "the run", problems)
    pictures = load_decoded(part, listed.names, size)
    if not len(pictures.kept):
        raise DataError(f"{printable(part)} has no image that can be read. Expected {printable(part)}/<class>/*.jpg.")
    labels = listed.labels[pictures.kept]
    found = (*problems, *pictures.problems)
    return Arrays(pictures.images[:0], labels[:0], pictures.images, labels, classes, problems=found)
