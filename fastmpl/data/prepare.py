"""From the [data] section to arrays with a split, labels to learn from and normalisation constants.

The same on every rank; nothing of views, batches or devices is here.
"""

import hashlib
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from fastmpl.data.arrays import UNKNOWN, Arrays, Pixels
from fastmpl.data.noise import add_noise
from fastmpl.data.normalise import Normalisation, measure
from fastmpl.data.settings import DataSettings
from fastmpl.data.sources import load
from fastmpl.data.split import Split, split

Word = int | float | str | list[int]


class Prepared(NamedTuple):
    """A data set ready to be streamed. `normalisation` is None for points, which stay as they are."""

    arrays: Arrays
    split: Split
    targets: NDArray[np.int64]  # [N], the label to learn from of every training image, or UNKNOWN
    normalisation: Normalisation | None

    def test(self) -> tuple[Pixels, NDArray[np.int64]]:
        """Test images and labels; of a transductive source the training images that are no one's labelled ones."""
        arrays = self.arrays
        if not arrays.transductive:
            return arrays.test_images, arrays.test_labels
        rest = np.ones(len(arrays.train_labels), dtype=bool)
        rest[np.concatenate([self.split.labelled, self.split.trusted, self.split.validation])] = False
        return arrays.train_images[rest], arrays.train_labels[rest]


def prepare(settings: DataSettings, seed: int) -> Prepared:
    """Loads, splits and (where asked) adds label noise. Raises DataError where the data cannot be used as asked."""
    arrays = load(settings)
    parts = parts_of(arrays, settings, seed)
    points = arrays.train_images.ndim == 2
    normalisation = None if points else measure(cast(NDArray[np.uint8], arrays.train_images), settings.channels)
    return Prepared(arrays, parts, _targets(arrays, parts, settings, seed), normalisation)


def fingerprint(prepared: Prepared, settings: DataSettings, seed: int) -> dict[str, Word]:
    """Everything that decides which images a step sees, and how; hashes of what is too large to write down."""
    arrays, parts = prepared.arrays, prepared.split
    return {
        "source": settings.source,
        "images": digest(arrays.train_images, arrays.train_labels),
        "labelled": len(parts.labelled),
        "trusted": len(parts.trusted),
        "unlabelled": len(parts.unlabelled),
        "split": digest(*parts, prepared.targets),
        "seed": seed,
        "batch_labelled": settings.batch_labelled,
        "batch_unlabelled": settings.batch_unlabelled,
        "batch_trusted": settings.batch_trusted,
        "image_size": settings.image_size,
        "channels": settings.channels,
        "flip": settings.flip,
        "rand_augment": list(settings.rand_augment),
        "cutout": settings.cutout,
        "shift": settings.shift,
    }


def parts_of(arrays: Arrays, settings: DataSettings, seed: int) -> Split:
    """Who gets a label, and who is held back, as `settings` ask. Raises DataError where there are too few images."""
    return split(
        arrays.train_labels,
        arrays.classes,
        labelled=settings.labels,
        trusted=settings.trusted,
        unlabelled=settings.unlabelled,
        validation=settings.validation,
        seed=seed,
        set_aside=arrays.trusted,
    )


def _targets(arrays: Arrays, parts: Split, settings: DataSettings, seed: int) -> NDArray[np.int64]:
    kind, rate = settings.noise
    true, chosen = arrays.train_labels, parts.labelled
    images = arrays.train_images[chosen if kind == "brightness" else chosen[:0]]  # a large part of the data set
    classes = len(arrays.classes)
    targets = np.full(len(true), UNKNOWN, dtype=np.int64)
    targets[parts.trusted] = true[parts.trusted]
    targets[chosen] = add_noise(true[chosen], chosen, images, classes, kind=kind, rate=rate, seed=seed)
    return targets


def digest(*arrays: NDArray[np.generic]) -> str:
    """Sixteen digits that tell these arrays from others."""
    digest = hashlib.blake2b(digest_size=8)
    for array in arrays:
        digest.update(f"{array.shape}{array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
