"""What every source gives, however its images are stored; the seam between reading a data set and using it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8] | NDArray[np.float32]
Labels = NDArray[np.int64]
UNKNOWN = -1  # the label of an image that has none


class Problem(NamedTuple):
    """A file that is left out (`used` False), or one that is read though something about it is odd."""

    file: str
    reason: str
    used: bool = False


class Arrays(NamedTuple):
    """A data set: images uint8 [N, H, W, 3 or 1], in memory or mapped, or points float32 [N, 2]; labels int64 [N].

    A training label may be UNKNOWN; there may be no test images (length 0). `transductive`: there is no test set apart
    from the training images (then `test_*` are those); whoever splits must leave the labelled ones out of the test.
    `trusted`: positions of the training images that the source itself sets aside as trusted, None where it has none.
    `names`: what a file of the user's calls each training image; empty where they are called by their position.
    """

    train_images: Pixels
    train_labels: Labels
    test_images: Pixels
    test_labels: Labels
    classes: tuple[str, ...]
    transductive: bool = False
    trusted: Labels | None = None
    problems: tuple[Problem, ...] = ()
    names: Sequence[str] = ()
