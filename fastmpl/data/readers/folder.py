"""Reads the source `folder`: the images of a user, decoded once to squares of data.image_size, and their problems."""

from pathlib import Path

import numpy as np

from fastmpl.data.dataset import Arrays
from fastmpl.data.errors import DataError, printable
from fastmpl.data.files.encoded import Names
from fastmpl.data.readers.cache import load_decoded
from fastmpl.data.readers.tree import NOTHING, list_class_images, read_tree, require_images


def read_folder(root: str, size: int, interpolation: str = "bilinear") -> Arrays:
    """Reads the images of a user's folder (`fastmpl.data.readers.tree`), uint8 [N, size, size, 3].

    Training images are those of labelled/, then of trusted/, then of unlabelled/. Files that cannot be read are left
    out and listed. Raises DataError where the folder is not laid out as it should be or a class is empty.
    """
    tree = read_tree(root)
    parts = [tree.labelled, tree.trusted or NOTHING, tree.unlabelled, tree.test]
    names = Names.join([part.names for part in parts])
    images = load_decoded(tree.root, names, size, interpolation)
    labels = np.concatenate([part.labels for part in parts])[images.kept]
    part_of = np.repeat(np.arange(len(parts)), [len(part.names) for part in parts])[images.kept]
    require_images(tree, labels[part_of == 0])
    if tree.trusted is not None and not (part_of == 1).any():
        raise DataError(
            f"{printable(tree.root / 'trusted')} has no image that can be read. Put images there, or remove it."
        )
    training = int((part_of < 3).sum())
    return Arrays(
        images.images[:training],
        labels[:training],
        images.images[training:],
        labels[training:],
        tree.classes,
        trusted=None if tree.trusted is None else np.flatnonzero(part_of == 1),
        problems=tree.problems + images.problems,
        names=Names(names[number] for number in images.kept[:training]),
        test_names=Names(names[number] for number in images.kept[training:]),
        inventory=tree.inventory,
        remarks=tree.remarks,
    )


def read_labelled(folder: Path, classes: tuple[str, ...], size: int, interpolation: str = "bilinear") -> Arrays:
    """Reads the images of `folder`/<class>/**, or of its test/<class>/** where there is one, as test images.

    Raises DataError where a class is not one of `classes`, or nothing can be read.
    """
    if not folder.is_dir():
        raise DataError(f"{printable(folder)} is not a folder. Name one that holds <class>/*.jpg.")
    part = folder / "test" if (folder / "test").is_dir() and "test" not in classes else folder
    listed = list_class_images(part, ".", classes, "the run")
    images = load_decoded(part, listed.names, size, interpolation)
    if not len(images.kept):
        raise DataError(f"{printable(part)} has no image that can be read. Expected {printable(part)}/<class>/*.jpg.")
    labels = listed.labels[images.kept]
    found = listed.problems + images.problems
    return Arrays(
        images.images[:0],
        labels[:0],
        images.images,
        labels,
        classes,
        problems=found,
        test_names=Names(listed.names[number] for number in images.kept),
        inventory=listed.inventory,
    )
