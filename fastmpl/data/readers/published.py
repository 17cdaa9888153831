"""Reads CIFAR-10, CIFAR-100 and SVHN, with torchvision, from the files that their authors publish.

torchvision compares every file with its published checksum before reading it. So damage is found, and no pickle is
loaded but the authors' own. Nothing is downloaded unless `download` is called.
"""

from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmpl.config.paths import expand_path
from fastmpl.data.dataset import Arrays, Labels
from fastmpl.data.errors import DataError

DEFAULT: Final = "datasets"  # where data.root = "" looks and downloads go


class PublishedSet(NamedTuple):
    """A data set's title, torchvision's class for it, and the folder below data.root that its files lie in."""

    title: str
    reader: str
    folder: str


SETS: Final = {
    "cifar10": PublishedSet("CIFAR-10", "CIFAR10", "cifar-10-batches-py"),
    "cifar100": PublishedSet("CIFAR-100", "CIFAR100", "cifar-100-python"),
    "svhn": PublishedSet("SVHN", "SVHN", ""),
}


def _reader(name: str) -> Any:
    from torchvision import datasets  # takes a second to import

    return getattr(datasets, SETS[name].reader)


def _root(name: str, root: str) -> Path:
    """The folder that torchvision expects; a user may also name the folder of the files itself."""
    given = Path(expand_path(root or DEFAULT, "data.root"))
    return given.parent if SETS[name].folder and given.name == SETS[name].folder else given


def _files(name: str) -> list[tuple[str, str]]:
    """The names of the data set's files and their MD5 sums."""
    reader = _reader(name)
    if name == "svhn":
        return [(file, md5) for part, (_, file, md5) in reader.split_list.items() if part in ("train", "test")]
    listed = [(file, md5) for file, md5 in (*reader.train_list, *reader.test_list)]
    return [*listed, (reader.meta["filename"], reader.meta["md5"])]


def _refuse_what_is_not_there(name: str, root: str) -> None:
    from torchvision.datasets.utils import check_integrity

    title, folder = SETS[name].title, _root(name, root) / SETS[name].folder
    how = "or `fastmpl check CONFIG --download` to fetch it"
    for file, md5 in _files(name):
        if not (folder / file).is_file():
            raise DataError(
                f"{title}'s {file} was not found in {folder}: set data.root to the folder that holds "
                f"{SETS[name].folder or 'it'}, {how}."
            )
        if not check_integrity(folder / file, md5):
            raise DataError(
                f"{folder / file} is truncated or altered (its MD5 sum is not {title}'s): remove it and download it "
                f"again, by hand {how}."
            )


def _images_first(data: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
    return np.ascontiguousarray(data.transpose(0, 2, 3, 1) if name == "svhn" else data)  # SVHN's channels come first


def read_published(name: str, root: str) -> Arrays:
    """Reads the data set called `name`, one of SETS, from the folder `root`: uint8 colour images of 32 x 32 pixels.

    SVHN's 531,131 extra images are not used. Raises DataError where a file is missing, truncated or altered.
    """
    _refuse_what_is_not_there(name, root)
    reader, folder = _reader(name), _root(name, root)

    def part(train: bool) -> tuple[NDArray[np.uint8], Labels, tuple[str, ...]]:
        if name == "svhn":
            held = reader(folder, split="train" if train else "test")
            return _images_first(held.data, name), np.asarray(held.labels, np.int64), tuple("0123456789")
        held = reader(folder, train=train)
        return _images_first(held.data, name), np.asarray(held.targets, np.int64), tuple(held.classes)

    try:
        (train_images, train_labels, classes), (test_images, test_labels, _) = part(True), part(False)
    except OSError as error:
        raise DataError(f"{SETS[name].title} in {folder} cannot be read: {error.strerror or error}.") from error
    return Arrays(train_images, train_labels, test_images, test_labels, classes)


def download(name: str, root: str) -> str:
    """Downloads the missing files of the data set; returns where it is, as a sentence. Raises DataError."""
    if name not in SETS:
        raise DataError(f"data.source = {name!r} cannot be downloaded: only {', '.join(SETS)} can.")
    reader, folder = _reader(name), _root(name, root)
    parts = [{"split": "train"}, {"split": "test"}] if name == "svhn" else [{"train": True}]
    try:
        for part in parts:
            reader(folder, download=True, **part)
    except (OSError, RuntimeError) as error:  # no network, no such page, a checksum that does not fit, a full disk
        raise DataError(f"{SETS[name].title} could not be downloaded to {folder}: {error}.") from error
    return f"{SETS[name].title} is in {folder}"
