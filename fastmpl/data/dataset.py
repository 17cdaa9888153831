"""The data set that every source returns, however its images are stored."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmpl.data.files.encoded import Encoded, Subset

Pixels = NDArray[np.uint8] | NDArray[np.float32]
Images = Pixels | Encoded
Labels = NDArray[np.int64]
UNKNOWN = -1  # the label of an image that has none


class Problem(NamedTuple):
    """A file that is left out (`used` False), or one that is read though something about it is odd."""

    file: str
    reason: str
    used: bool = False


class Arrays(NamedTuple):
    """A data set: images uint8 [N, H, W, 3 or 1], in memory or mapped, or encoded, or points float32 [N, 2]; labels
    int64 [N].

    A training label may be UNKNOWN; there may be no test images (length 0). `transductive`: there is no test set apart
    from the training images (then `test_*` are those); whoever splits must leave the labelled ones out of the test.
    `trusted`: positions of the training images that the source itself sets aside as trusted, None where it has none.
    `names`: what a file of the user's calls each training image; empty where they are called by their position.
    """

    train_images: Images
    train_labels: Labels
    test_images: Images
    test_labels: Labels
    classes: tuple[str, ...]
    transductive: bool = False
    trusted: Labels | None = None
    problems: tuple[Problem, ...] = ()
    names: Sequence[str] = ()


def select_images(images: Images, index: Labels) -> Images:
    """The images at positions `index`, of arrays as of encoded images."""
    return images[index] if isinstance(images, np.ndarray) else Subset(images, index)


def name_of(test_images: Images, index: int) -> str:
    """The name by which a user knows test image `index`: its stored name, or its position."""
    return f"test image {index}" if isinstance(test_images, np.ndarray) else test_images.names[index]


def digest(*arrays: NDArray[np.generic]) -> str:
    """A hash of arrays, sixteen hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=8)
    for array in arrays:
        digest.update(f"{array.shape}{array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def digest_of(images: Images, *labels: Labels) -> str:
    """A hash of images and labels: arrays are hashed by their pixels, encoded images by their names."""
    if isinstance(images, np.ndarray):
        return digest(images, *labels)
    return digest(np.frombuffer(images.digest.encode(), np.uint8), *labels)
