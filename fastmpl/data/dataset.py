"""The data set that every source returns, however its images are stored."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmpl.data.files.encoded import Encoded, Subset
from fastmpl.data.inventory import Inventory, Problem

Pixels = NDArray[np.uint8] | NDArray[np.float32]
Images = Pixels | Encoded
Labels = NDArray[np.int64]
UNKNOWN = -1  # the label of an image that has none


def _name_image(images: Images, names: Sequence[str], kind: str, index: int) -> str:
    if not isinstance(images, np.ndarray):
        return images.full_name(index)
    return names[index] if names else f"{kind} image {index}"


class Arrays(NamedTuple):
    """A data set: images uint8 [N, H, W, 3 or 1], in memory or mapped, or encoded, or points float32 [N, 2]; labels
    int64 [N].

    A training label may be UNKNOWN; there may be no test images (length 0). `transductive`: there is no test set apart
    from the training images (then `test_*` are those); whoever splits must leave the labelled ones out of the test.
    `trusted`: positions of the training images that the source itself sets aside as trusted, None where it has none.
    `names`: by which a user's files know each training image; empty where they are known by their position.
    `test_names`: those of decoded test images.
    `inventory`: what the root holds; None for a built-in set. `remarks`: sentences on the set as a whole.
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
    test_names: Sequence[str] = ()
    inventory: Inventory | None = None
    remarks: tuple[str, ...] = ()

    def train_name(self, index: int) -> str:
        """The name by which a user knows training image `index`."""
        return _name_image(self.train_images, self.names, "training", index)

    def test_name(self, index: int) -> str:
        """The name by which a user knows test image `index`."""
        return _name_image(self.test_images, self.test_names, "test", index)


def select_images(images: Images, index: Labels) -> Images:
    """The images at positions `index`, of arrays as of encoded images."""
    return images[index] if isinstance(images, np.ndarray) else Subset(images, index)


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
