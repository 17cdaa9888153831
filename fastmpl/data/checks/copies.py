"""The same picture in two places where it should be in one: test images that are trained on, and others like it.

Pictures are compared by hashes of their pixels; nothing is said of pictures that are merely alike.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmpl.data.split import Split

Digests = NDArray[np.uint64]
Index = NDArray[np.int64]


class Copy(NamedTuple):
    """`count` pictures, the first being image `one` (of the test images where `of_test`) and training image `other`."""

    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody needs
    one: int
    other: int
    what: str  # words for a user, which follow the number and the two names
    of_test: bool


def _shared(left: Digests, right: Digests) -> tuple[int, int, int]:
    """How many of `left` are among `right`, and the place of the first in both."""
    both = np.flatnonzero(np.isin(left, right) & (left != 0))
    if not both.size:
        return 0, -1, -1
    return len(both), int(both[0]), int(np.flatnonzero(right == left[both[0]])[0])


def _two_classes(digests: Digests, labels: Index, index: Index) -> tuple[int, int, int]:
    """How many pictures of `index` also stand under another class, and the first of them with its copy."""
    order = index[np.argsort(digests[index], kind="stable")]
    same = (digests[order[1:]] == digests[order[:-1]]) & (digests[order[1:]] != 0)
    odd = np.flatnonzero(same & (labels[order[1:]] != labels[order[:-1]]))
    return (len(odd), int(order[odd[0]]), int(order[odd[0] + 1])) if odd.size else (0, -1, -1)


def copies(train: Digests, test: Digests, labels: Index, parts: Split) -> Iterator[Copy]:
    """What a user should know: hashes of training images [N] with their labels, and of test images; 0: unknown."""
    with_label = np.concatenate([parts.labelled, parts.trusted, parts.validation])
    learned = np.concatenate([parts.labelled, parts.trusted])
    too_high = "accuracy on them says nothing"
    for part, why in (
        (learned, f"test images are also trained on with their labels: {too_high}"),
        (parts.validation, "test images are also validation images, by which a checkpoint is selected"),
        (np.setdiff1d(parts.unlabelled, with_label), "test images are also unlabelled training images"),
    ):
        count, one, other = _shared(test, train[part])
        if count:
            yield Copy(count, one, int(part[other]), why, True)
    count, one, other = _shared(train[parts.validation], train[learned])
    if count:
        what = f"validation images are also trained on with their labels: {too_high}"
        yield Copy(count, int(parts.validation[one]), int(learned[other]), what, False)
    count, one, other = _two_classes(train, labels, with_label)
    if count:
        yield Copy(count, one, other, "labelled images are of two classes at once", False)
