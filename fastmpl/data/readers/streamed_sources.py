"""Sources whose images are decoded at every step: a folder, lists of files, WebDataset tars, TFRecord files.

Each has the parts that a user's folder has: labelled, and (optional) trusted, unlabelled and test.

    folder       labelled/<class>/**        and so on, as fastmpl.data.readers.tree says
    file_list    labelled.txt               lines of a path (from the list's folder on), a tab or space, and a class
    webdataset   labelled/*.tar             samples of an image and .cls, with or without DALI's index (*.idx)
    tfrecord     labelled/*                 records of tf.train.Example, with or without DALI's index (*.idx)

Classes are words. Where all of them are numbers, a file classes.txt beside the parts may name them, a line each from 0.
"""

import difflib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple, TextIO

import numpy as np

from fastmpl.data.dataset import UNKNOWN, Arrays, Labels, Problem
from fastmpl.data.errors import DataError, printable
from fastmpl.data.files.encoded import Encoded, Files, Names
from fastmpl.data.files.listing import visible
from fastmpl.data.readers.shards import ReadShard, Shards, index_shards, join_shards
from fastmpl.data.readers.tar_index import scan_tar
from fastmpl.data.readers.tfrecord_index import scan_tfrecord
from fastmpl.data.readers.tree import NOTHING, PARTS, read_tree

CLASSES: Final = "classes.txt"
TRAINING: Final = ("labelled", "trusted", "unlabelled")


class Part(NamedTuple):
    """The words for the classes of a part's images; there are no other parts than those in a mapping of these."""

    name: str
    words: Sequence[str]


def _classes(root: Path, words: Sequence[str]) -> tuple[str, ...]:
    """The classes, in the order of their numbers."""
    found = set(words)
    if "" in found:
        raise DataError(f"{printable(root)}: {words.index('')} of the labelled images come before one without a class.")
    if not all(word.isdecimal() for word in found):
        return tuple(sorted(found))
    if not (root / CLASSES).is_file():
        return tuple(sorted(found, key=int))
    return tuple(line.strip() for line in (root / CLASSES).read_text("utf-8").splitlines() if line.strip())


def _labels(root: Path, part: Part, classes: tuple[str, ...]) -> Labels:
    """The class of each image. Raises DataError for a word that is none of them."""
    number = {name: at for at, name in enumerate(classes)}
    if (root / CLASSES).is_file():
        number |= {str(at): at for at in range(len(classes)) if str(at) not in number}
    unknown = next((word for word in part.words if word not in number), None)
    if unknown is not None:
        near = difflib.get_close_matches(unknown, classes, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"The classes are {', '.join(classes[:10])}."
        raise DataError(f"{printable(root)}, {part.name}: {printable(unknown) or 'no word'} is no class. {hint}")
    return np.array([number[word] for word in part.words], dtype=np.int64)


def _arrays(root: Path, parts: dict[str, Part], training: Encoded, test: Encoded) -> Arrays:
    """The source's images with their labels. `training` is made of the parts of TRAINING, in that order."""
    if not len(parts["labelled"].words):
        raise DataError(f"{printable(root)} has no labelled images.")
    classes = _classes(root, parts["labelled"].words)
    if len(classes) < 2:
        raise DataError(f"{printable(root)} has one class ({classes[0]}), and a classifier needs two or more.")
    labelled, trusted, tested = (_labels(root, parts[name], classes) for name in ("labelled", "trusted", "test"))
    unlabelled = np.full(len(parts["unlabelled"].words), UNKNOWN, np.int64)
    return Arrays(
        training,
        np.concatenate([labelled, trusted, unlabelled]),
        test,
        tested,
        classes,
        trusted=np.arange(len(labelled), len(labelled) + len(trusted)) if len(trusted) else None,
        names=training.names,
    )


def _root(folder: str) -> Path:
    root = Path(folder).expanduser()
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise DataError(f"data.root = {folder!r} {what}. Name the folder that holds the labelled images.")
    return root


def _read_list(root: Path, part: str) -> tuple[Names, list[str]]:
    """Paths and words of a list; words are empty where a line has a path alone."""
    words: list[str] = []

    def paths(file: TextIO) -> Iterator[str]:
        for line in file:
            if line.strip():
                path, word = _pair(line.rstrip("\n"), with_class=part != "unlabelled")
                words.append(sys.intern(word))  # a million images have a thousand words
                yield path

    try:
        with (root / f"{part}.txt").open(encoding="utf-8", errors="surrogateescape") as file:
            return Names(paths(file)), words
    except FileNotFoundError:
        return Names(), []


def _pair(line: str, *, with_class: bool) -> tuple[str, str]:
    if "\t" in line:
        path, _, word = line.partition("\t")
    elif with_class:
        path, _, word = line.strip().rpartition(" ")
    else:
        path, word = line.strip(), ""
    return path.strip(), word.strip()


def read_file_list(folder: str) -> Arrays:
    """The images that labelled.txt, trusted.txt, unlabelled.txt and test.txt of a folder name."""
    root = _root(folder)
    if not (root / "labelled.txt").is_file():
        raise DataError(f"{printable(root)} has no labelled.txt. Expected lines of a path, a tab and a class.")
    lists = {part: _read_list(root, part) for part in PARTS}
    parts = {part: Part(f"{part}.txt", words) for part, (_, words) in lists.items()}
    training = Files(root, Names.join([lists[part][0] for part in TRAINING]))
    return _arrays(root, parts, training, Files(root, lists["test"][0]))


def _shards(root: Path, part: str, suffix: str, scan: ReadShard) -> Shards:
    folder = root / part
    names = sorted(p.name for p in folder.iterdir() if p.is_file() and visible(p.name)) if folder.is_dir() else []
    chosen = [name for name in names if name.endswith(suffix) and not name.endswith(".idx")]
    return index_shards(root, [f"{part}/{name}" for name in chosen], scan)


def _read_shards(folder: str, suffix: str, scan: ReadShard) -> Arrays:
    root = _root(folder)
    shards = {part: _shards(root, part, suffix, scan) for part in PARTS}
    if not len(shards["labelled"].images):
        raise DataError(
            f"no images in {printable(root / 'labelled')}. Expected {printable(root / 'labelled')}/*{suffix}."
        )
    parts = {part: Part(part, found.words) for part, found in shards.items()}
    return _arrays(root, parts, join_shards([shards[part] for part in TRAINING]), shards["test"].images)


def read_webdataset(folder: str) -> Arrays:
    """The images of a folder of WebDataset tars."""
    return _read_shards(folder, ".tar", scan_tar)


def read_tfrecord(folder: str) -> Arrays:
    """The images of a folder of TFRecord files, whatever their extension."""
    return _read_shards(folder, "", scan_tfrecord)


def read_files(folder: str) -> Arrays:
    """The images of a user's folder (fastmpl.data.readers.tree), which are not opened here. Raises DataError as for one."""
    tree = read_tree(folder)
    for number, name in enumerate(tree.classes):
        if not (tree.labelled.labels == number).any():
            raise DataError(f"{printable(tree.root / 'labelled')}/{name} has no images. Put some there, or remove it.")
    trusted = tree.trusted or NOTHING
    training = [tree.labelled, trusted, tree.unlabelled]
    images = Files(tree.root, Names.join([part.names for part in training]))
    first = len(tree.labelled.names)
    return Arrays(
        images,
        np.concatenate([part.labels for part in training]),
        Files(tree.root, tree.test.names),
        tree.test.labels,
        tree.classes,
        trusted=None if tree.trusted is None else np.arange(first, first + len(trusted.names)),
        problems=tuple[Problem, ...](tree.problems),
        names=images.names,
    )


READERS: dict[str, Callable[[str], Arrays]] = {
    "folder": read_files,
    "file_list": read_file_list,
    "webdataset": read_webdataset,
    "tfrecord": read_tfrecord,
}
