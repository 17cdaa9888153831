"""Reads the sources whose images are decoded at every step: a folder, lists of files, WebDataset tars, TFRecord files.

Each has the parts that a user's folder has: labelled, and (optional) trusted, unlabelled and test.

    folder       labelled/<class>/**        and so on, as fastmpl.data.readers.tree says
    file_list    labelled.txt               lines of a path and a class, as fastmpl.data.readers.file_list says
    webdataset   labelled/*.tar             samples of an image and .cls
    tfrecord     labelled/*                 records of tf.train.Example

How words and numbers become classes is said in fastmpl.data.readers.class_words.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from fastmpl.data.dataset import UNKNOWN, Arrays
from fastmpl.data.errors import DataError, printable
from fastmpl.data.files.encoded import Encoded, Files, Names
from fastmpl.data.files.listing import why_hidden
from fastmpl.data.files.paths import find_folder
from fastmpl.data.inventory import Inventory, Problem, add_inventories, fold_problems
from fastmpl.data.readers.class_words import CLASSES, PACK_PLAN, LabelledParts, PartWords, label_parts
from fastmpl.data.readers.file_list import EMPTY, FileList, read_list
from fastmpl.data.readers.parts import PARTS, PartFolders, find_lists, find_parts, name_entries
from fastmpl.data.readers.shards import ReadShard, ShardFiles, index_shards, join_shards
from fastmpl.data.readers.shared_paths import describe_shared_paths
from fastmpl.data.readers.tar_index import scan_tar
from fastmpl.data.readers.tfrecord_index import scan_tfrecord
from fastmpl.data.readers.tree import NOTHING, read_tree, require_images

TRAINING: Final = ("labelled", "trusted", "unlabelled")
KNOWN: Final = (CLASSES, PACK_PLAN, "manifest.json")  # files of a root beside its parts
_NOTES: Final = (".idx", ".json")  # what DALI's tools and `fastmpl pack` write beside a shard
_COMPRESSED: Final = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")
_TEXTS: Final = (".json", ".txt", ".md", ".csv", ".tsv", ".pbtxt", ".yaml", ".xml", ".log")  # beside TFRecord files


class _Account(NamedTuple):
    """What a root holds besides its images."""

    problems: tuple[Problem, ...]
    inventory: Inventory


def _make_arrays(found: LabelledParts, unlabelled: int, training: Encoded, test: Encoded, account: _Account) -> Arrays:
    """The images of a source with their labels. `training` has the parts of TRAINING, in that order."""
    labelled, trusted, tested = (found.labels[part] for part in ("labelled", "trusted", "test"))
    return Arrays(
        training,
        np.concatenate([labelled, trusted, np.full(unlabelled, UNKNOWN, np.int64)]),
        test,
        tested,
        found.classes,
        trusted=np.arange(len(labelled), len(labelled) + len(trusted)) if len(trusted) else None,
        problems=account.problems,
        names=training.names,
        inventory=account.inventory,
        remarks=found.remarks,
    )


def _add_accounts(parts: PartFolders, inventories: Iterable[Inventory], problems: Iterable[Problem]) -> _Account:
    inventory = add_inventories([Inventory(parts.entries, parts.helpers), *inventories])
    return _Account(fold_problems((*parts.problems, *problems)), inventory)


def _list_words(part: str, file: Path, found: FileList) -> PartWords:
    return PartWords(found.words, None, lambda position: f"{file}, line {found.lines[position]}")


def read_file_list(folder: str) -> Arrays:
    """Reads the lists labelled.txt, trusted.txt, unlabelled.txt and test.txt of a folder. Raises DataError."""
    root = find_folder(folder, "data.root", "labelled.txt")
    parts = find_lists(root)
    if "labelled" not in parts.names:
        raise DataError(
            f"{printable(root)} has no labelled.txt or train.txt (or .csv, .tsv, .lst), whose lines have a path and a "
            f"class; it holds {name_entries(root)}."
        )
    lists = dict.fromkeys(PARTS, EMPTY) | {
        part: read_list(root, root / name, with_class=part != "unlabelled") for part, name in parts.names.items()
    }
    words = {part: _list_words(part, root / parts.names.get(part, part), found) for part, found in lists.items()}
    found = label_parts(root, words, "a path and a class")
    found = found._replace(remarks=(*found.remarks, *describe_shared_paths(lists)))
    training = Files(root, Names.join([lists[part].names for part in TRAINING]))
    lines = lists.values()
    account = _add_accounts(parts, (one.inventory for one in lines), (one for part in lines for one in part.problems))
    return _make_arrays(found, len(lists["unlabelled"].names), training, Files(root, lists["test"].names), account)


class _PartShards(NamedTuple):
    """The shards of a part, and the other entries of its folder."""

    shards: ShardFiles
    problems: tuple[Problem, ...]
    inventory: Inventory


class ShardFormat(NamedTuple):
    """How the shards of a source are known among the files of a part, and read."""

    read: ReadShard
    is_shard: Callable[[str], bool]
    expected: str  # in a part
    hint: str  # what an image without a class lacks


def _is_tar(name: str) -> bool:
    return name.lower().endswith(".tar")


def _is_record(name: str) -> bool:
    return not name.lower().endswith((*_NOTES, *_TEXTS))


WEBDATASET: Final = ShardFormat(scan_tar, _is_tar, "*.tar", "a file KEY.cls beside KEY.jpg in the tar")
TFRECORD: Final = ShardFormat(
    scan_tfrecord, _is_record, "TFRecord files", "a feature image/class/synset, .../text, .../label, or label"
)


def _refuse_compressed(folder: Path, name: str) -> None:
    if name.lower().endswith(_COMPRESSED):
        raise DataError(
            f"{printable(folder / name)} is compressed, and a compressed tar has no places to read at. Decompress it: "
            "images are compressed already."
        )


def _why_no_shard(path: Path, shard_format: ShardFormat) -> str:
    if reason := why_hidden(path.name):
        return reason
    if path.is_dir():
        return "it is a folder beside the shards, which is not looked into"
    if not path.is_file():
        return "it is no regular file, or a link to nothing"
    return "" if shard_format.is_shard(path.name) else f"it is no shard ({shard_format.expected})"


def _read_part(root: Path, name: str, shard_format: ShardFormat) -> _PartShards:
    """The shards of the part in the folder `name`; none where there is no such folder."""
    folder, shards, notes, problems = root / name, [], 0, []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        _refuse_compressed(folder, path.name)
        reason = _why_no_shard(path, shard_format)
        if not reason:
            shards.append(f"{name}/{path.name}")
        elif path.suffix in _NOTES and path.is_file():
            notes += 1
        else:
            problems.append(Problem(str(path), reason))
    read = index_shards(root, shards, shard_format.read)
    files = Inventory(len(shards) + notes + len(problems), len(shards) + notes)
    problems += read.problems
    return _PartShards(read, tuple(problems), add_inventories([files, read.inventory]))


def _require_images(folder: Path, part: _PartShards, shard_format: ShardFormat) -> None:
    if not len(part.shards.images):
        first = part.problems[0] if part.problems else None
        found = f"found {printable(first.file)}: {first.reason}" if first else "it has none"
        raise DataError(
            f"no images in {printable(folder)}. Expected {printable(folder)}/{shard_format.expected}; {found}."
        )


def _read_shards(folder: str, shard_format: ShardFormat) -> Arrays:
    root = find_folder(folder, "data.root", f"labelled/{shard_format.expected}")
    try:
        found = find_parts(root, known=KNOWN)
        parts = {part: _read_part(root, found.names.get(part, part), shard_format) for part in PARTS}
    except OSError as error:
        raise DataError(f"{printable(str(error.filename or root))} cannot be read: {error.strerror}.") from error
    _require_images(found.folder(root, "labelled"), parts["labelled"], shard_format)
    shards: Mapping[str, ShardFiles] = {part: read.shards for part, read in parts.items()}
    words = {part: PartWords(read.words, read.numbered, read.name_image) for part, read in shards.items()}
    labelled = label_parts(root, words, shard_format.hint)
    account = _add_accounts(
        found, (part.inventory for part in parts.values()), (one for part in parts.values() for one in part.problems)
    )
    training, test = join_shards([shards[part] for part in TRAINING]), shards["test"].images
    return _make_arrays(labelled, len(shards["unlabelled"].words), training, test, account)


def read_webdataset(folder: str) -> Arrays:
    """Reads the images of a folder of WebDataset tars. Raises DataError."""
    return _read_shards(folder, WEBDATASET)


def read_tfrecord(folder: str) -> Arrays:
    """Reads the images of a folder of TFRecord files, whatever their extension. Raises DataError."""
    return _read_shards(folder, TFRECORD)


def read_files(folder: str) -> Arrays:
    """Lists the images of a user's folder (fastmpl.data.readers.tree), which are not opened here. Raises DataError."""
    tree = read_tree(folder)
    require_images(tree, tree.labelled.labels)
    trusted = tree.trusted or NOTHING
    training = [tree.labelled, trusted, tree.unlabelled]
    images, test = Files(tree.root, Names.join([part.names for part in training])), Files(tree.root, tree.test.names)
    first = len(tree.labelled.names)
    return Arrays(
        images,
        np.concatenate([part.labels for part in training]),
        test,
        tree.test.labels,
        tree.classes,
        trusted=None if tree.trusted is None else np.arange(first, first + len(trusted.names)),
        problems=tree.problems,
        names=images.names,
        inventory=tree.inventory,
        remarks=tree.remarks,
    )


READERS: dict[str, Callable[[str], Arrays]] = {
    "folder": read_files,
    "file_list": read_file_list,
    "webdataset": read_webdataset,
    "tfrecord": read_tfrecord,
}
