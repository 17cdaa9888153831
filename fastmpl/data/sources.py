"""Loads a data set by the name of its source. Every source is one function that returns `Arrays`.

A source decides which images are for training and which for testing, the same for every seed. The split decides later
which images keep their labels. To add a source, write a function and add a row to `SOURCES`.
"""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastmpl.config.meaning import decodes_always
from fastmpl.config.paths import expand_path
from fastmpl.data import draws
from fastmpl.data.checks.checked import drop_bad_images
from fastmpl.data.dataset import Arrays, Labels
from fastmpl.data.errors import DataError
from fastmpl.data.readers import published, streamed_sources
from fastmpl.data.readers.folder import read_folder
from fastmpl.data.readers.idx import read_idx
from fastmpl.data.settings import DataSettings, interpolation_of

_DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist
_CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_FIXED = 0  # the seed of test images and drawn points, which are the same for every seed of a run


def _read_digits() -> NDArray[np.float64]:
    """The table of scikit-learn's digits [1797, 65]: pixels of 0 to 16, and the label.

    It is read without its library, whose import takes as long as hundreds of steps.
    """
    library = find_spec("sklearn")
    for folder in library.submodule_search_locations or () if library else ():
        path = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if path.exists():
            return np.loadtxt(path, delimiter=",")
    from sklearn.datasets import load_digits  # a version that keeps its file elsewhere

    loaded = load_digits()
    return np.column_stack([loaded.data, loaded.target])


def digits(root: str) -> Arrays:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels; 50 of each class are the test set."""
    table = _read_digits()
    images = np.rint(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)[..., None]
    labels = table[:, -1].astype(np.int64)
    order = draws.permutation(draws.key(_FIXED, draws.Purpose.TEST), len(labels))
    test = np.sort(np.concatenate([order[labels[order] == c][:50] for c in range(10)]))
    train = np.setdiff1d(np.arange(len(labels)), test)
    return Arrays(images[train], labels[train], images[test], labels[test], tuple("0123456789"))


def _fashion_file(name: str, root: str) -> Path:
    given = Path(expand_path(root, "data.root"))
    folders = [given, given / "FashionMNIST" / "raw"] if root else [_DEBIAN]  # the second: torchvision's
    for folder in folders:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.exists():
                return path
    where = " or ".join(map(str, folders))
    raise DataError(
        f"Fashion-MNIST's {name} (or {name}.gz) was not found in {where}: "
        "set data.root to the folder with its four IDX files, or install Debian's package dataset-fashion-mnist."
    )


def fashion_mnist(root: str) -> Arrays:
    """Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017): 60,000 and 10,000 grey images of 28 x 28 pixels."""

    def part(name: str) -> tuple[NDArray[np.uint8], Labels]:
        image_file, label_file = (
            _fashion_file(f"{name}-{kind}", root) for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
        )
        images, labels = read_idx(image_file), read_idx(label_file)
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
            raise DataError(
                f"{image_file} and {label_file} do not belong together: shapes {images.shape}, {labels.shape}."
            )
        if labels.size and labels.max() >= len(_CLOTHES):
            raise DataError(f"{label_file} names class {labels.max()}; Fashion-MNIST has classes 0 to 9.")
        return images[..., None], labels.astype(np.int64)

    return Arrays(*part("train"), *part("t10k"), _CLOTHES)


def two_moons(root: str) -> Arrays:
    """Two interleaved half circles of 1,000 points each, normal noise 0.1 (the toy of Pham et al. 2021)."""
    labels = np.repeat(np.arange(2), 1000)
    point = np.arange(2000)
    key = draws.key(_FIXED, draws.Purpose.POINTS)
    angle = np.pi * draws.uniform(draws.extend(key, 0), point, 1)[:, 0]
    upper = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    points = np.where(labels[:, None] == 0, upper, np.array([1.0, 0.5]) - upper)
    points = (points + 0.1 * draws.normal(draws.extend(key, 1), point, 2)).astype(np.float32)
    return Arrays(points, labels, points, labels, ("upper", "lower"), transductive=True)


SOURCES: dict[str, Callable[[str], Arrays]] = {
    "digits": digits,
    "fashion_mnist": fashion_mnist,
    "two_moons": two_moons,
    **{name: partial(published.read_published, name) for name in published.SETS},
}


def list_images(settings: DataSettings) -> Arrays:
    """Lists the images of a source that is decoded at every step, bad ones included."""
    return streamed_sources.READERS[settings.source](settings.root)


def load(settings: DataSettings) -> Arrays:
    """Loads the data set that `settings.source` names, from `settings.root` where it is not built in."""
    if decodes_always(settings):
        return drop_bad_images(list_images(settings), settings.root)
    if settings.source == "folder":
        return read_folder(settings.root, settings.image_size, interpolation_of(settings))
    if settings.source not in SOURCES:
        names = ", ".join((*SOURCES, *streamed_sources.READERS))
        raise DataError(f"data.source = {settings.source!r} cannot be read: choose one of {names}.")
    return SOURCES[settings.source](settings.root)
