"""Who gets a label: a seeded, class-balanced split of the training images.

Validation is taken first, then trusted, then labelled, so that the same seed keeps the same validation images while
the number of labels varies. Test images are not here: the source keeps them apart.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmpl.data import draws
from fastmpl.data.errors import DataError

Index = NDArray[np.int64]


class Split(NamedTuple):
    """Positions in the training arrays, sorted. Disjoint, but for `unlabelled` where every image has a label."""

    labelled: Index
    trusted: Index
    unlabelled: Index
    validation: Index


def _quota(count: int, available: NDArray[np.int64], what: str) -> NDArray[np.int64]:
    """How many of each class: equal, the first classes one more where `count` does not divide."""
    classes = len(available)
    quota = count // classes + (np.arange(classes) < count % classes)
    short = np.flatnonzero(quota > available)
    if short.size:
        c = short[0]
        raise DataError(
            f"data.{what} = {count} asks for {quota[c]} images of class {c}, and {available[c]} are left: "
            "ask for fewer, or for fewer validation and trusted images."
        )
    return np.asarray(quota)


def split(
    labels: NDArray[np.int64], classes: int, *, labelled: int, trusted: int, unlabelled: int, validation: int, seed: int
) -> Split:
    """Splits N training images with `labels` [N] into four sets, class-balanced but for `unlabelled`.

    `labelled` = 0 labels all that remain after validation and trusted. `unlabelled` = 0 takes all that remain after
    labelled. Where none remain, as with all labels, the unlabelled images are the labelled ones without their labels:
    the setting of Pham et al. 2021 with all of a data set's labels.
    Raises DataError where a class, or the rest, has too few images.
    """
    order = draws.permutation(draws.key(seed, draws.Purpose.SPLIT), len(labels))
    by_class = [order[labels[order] == c] for c in range(classes)]

    def take(count: int, what: str) -> Index:
        quota = _quota(count, np.array([len(rest) for rest in by_class]), what)
        taken = [rest[:n] for rest, n in zip(by_class, quota, strict=True)]
        by_class[:] = [rest[n:] for rest, n in zip(by_class, quota, strict=True)]
        return np.sort(np.concatenate(taken))

    chosen_validation, chosen_trusted = take(validation, "validation"), take(trusted, "trusted")
    if labelled:
        chosen = take(labelled, "labels")
    else:
        chosen, by_class = np.sort(np.concatenate(by_class)), [order[:0]] * classes
    if not chosen.size:
        raise DataError("No labelled images are left: ask for fewer data.validation and data.trusted images.")
    used = np.concatenate([chosen_validation, chosen_trusted, chosen])
    rest = order[~np.isin(order, used)]  # keeps the drawn order, which is not by class
    rest = rest if rest.size else order[np.isin(order, chosen)]
    if unlabelled > len(rest):
        raise DataError(
            f"data.unlabelled = {unlabelled}, and {len(rest)} images are left: ask for fewer, or 0 for all."
        )
    return Split(chosen, chosen_trusted, np.sort(rest[: unlabelled or None]), chosen_validation)
