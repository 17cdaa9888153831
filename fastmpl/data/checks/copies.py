"""Finds the same image in two sets that should share none, such as a test image that is also trained on.

Images are compared by hashes of their pixels. Images that are merely similar are not found.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmpl.data.split import Split

Digests = NDArray[np.uint64]
Index = NDArray[np.int64]


class Copy(NamedTuple):
    """`count` images are in two sets: first image `one` (a test image where `of_test`) and training image `other`."""

    count: int  # type: ignore[assignment]  # hides tuple.count, which is not needed
    one: int
    other: int
    what: str  # the words of the warning that follow `count`
    of_test: bool


def _find_shared(left: Digests, right: Digests) -> tuple[int, int, int]:
    """The number of hashes of `left` that `right` has too, and the position of the first of them in both."""
    both = np.flatnonzero(np.isin(left, right) & (left != 0))
    if not both.size:
        return 0, -1, -1
    return len(both), int(both[0]), int(np.flatnonzero(right == left[both[0]])[0])


def _find_two_classes(digests: Digests, labels: Index, index: Index) -> tuple[int, int, int]:
    """The number of images of `index` with a copy of another class, and the positions of the first such pair."""
    order = index[np.argsort(digests[index], kind="stable")]
    same = (digests[order[1:]] == digests[order[:-1]]) & (digests[order[1:]] != 0)
    odd = np.flatnonzero(same & (labels[order[1:]] != labels[order[:-1]]))
    return (len(odd), int(order[odd[0]]), int(order[odd[0] + 1])) if odd.size else (0, -1, -1)


def find_copies(train: Digests, test: Digests, labels: Index, parts: Split) -> Iterator[Copy]:
    """Yields each kind of copy that spoils a result.

    `train` [N] and `test` [M] are hashes of pixels, 0 where unknown; `labels` [N] are those of the training images.
    """
    with_label = np.concatenate([parts.labelled, parts.trusted, parts.validation])
    learned = np.concatenate([parts.labelled, parts.trusted])
    unlabelled = np.setdiff1d(parts.unlabelled, with_label)
    too_high = "accuracy on them says nothing"
    for part, why in (
        (learned, f"test images are also trained on with their labels: {too_high}"),
        (parts.validation, "test images are also validation images, by which a checkpoint is selected"),
        (unlabelled, "test images are also unlabelled training images"),
    ):
        count, one, other = _find_shared(test, train[part])
        if count:
            yield Copy(count, one, int(part[other]), why, True)
    count, one, other = _find_shared(train[parts.validation], train[learned])
    if count:
        what = f"validation images are also trained on with their labels: {too_high}"
        yield Copy(count, int(parts.validation[one]), int(learned[other]), what, False)
    count, one, other = _find_shared(train[parts.validation], train[unlabelled])
    if count:
        what = "validation images are also unlabelled training images"
        yield Copy(count, int(parts.validation[one]), int(unlabelled[other]), what, False)
    count, one, other = _find_two_classes(train, labels, with_label)
    if count:
        yield Copy(count, one, other, "labelled images are of two classes at once", False)
