"""Who gets a label: a seeded, class-balanced split of the training images.

Validation is taken first, then trusted, then labelled, so that the same seed keeps the same validation images while
the number of labels varies. Test images are not here: the source keeps them apart.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
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


class _Pool:
    """Images in a drawn order, by class, to be taken from."""

    def __init__(self, order: Index, labels: Index, classes: Sequence[str]) -> None:
        self._classes = classes
        by_class = np.argsort(labels[order], kind="stable")  # one pass for all classes: there may be thousands
        bounds = np.searchsorted(labels[order], np.arange(len(classes) + 1), sorter=by_class)
        self._left = [order[by_class[first:end]] for first, end in pairwise(bounds)]

    def _quota(self, count: int, what: str) -> Index:
        """How many of each class: equal, the first classes one more where `count` does not divide."""
        classes = len(self._classes)
        quota = count // classes + (np.arange(classes) < count % classes)
        for name, asked, rest in zip(self._classes, quota, self._left, strict=True):
            if asked > len(rest):
                raise DataError(
                    f"data.{what} = {count} asks for {asked} images of class {name}, and {len(rest)} are left: "
                    "ask for fewer, or for fewer validation and trusted images."
                )
        return np.asarray(quota)

    def take(self, count: int, what: str) -> Index:
        """`count` images, as many of each class. Raises DataError, naming data.`what`, where a class has too few."""
        quota = self._quota(count, what)
        taken = [rest[:n] for rest, n in zip(self._left, quota, strict=True)]
        self._left = [rest[n:] for rest, n in zip(self._left, quota, strict=True)]
        return np.sort(np.concatenate(taken))

    def take_all(self) -> Index:
        """All that are left, which must be of every class."""
        left, self._left = self._left, [rest[:0] for rest in self._left]
        without = [name for name, rest in zip(self._classes, left, strict=True) if not len(rest)]
        if len(without) == len(left):
            raise DataError("No labelled images are left: ask for fewer data.validation and data.trusted images.")
        if without:
            raise DataError(
                f"No labelled image of class {without[0]} is left to train on: "
                "ask for fewer data.validation and data.trusted images."
            )
        return np.sort(np.concatenate(left))


def split(
    labels: Index,
    classes: Sequence[str],
    *,
    labelled: int,
    trusted: int,
    unlabelled: int,
    validation: int,
    seed: int,
    set_aside: Index | None = None,
    usable: Callable[[Index], Index] | None = None,
) -> Split:
    """Splits N training images with `labels` [N], -1 where there is none, into four sets.

    All are class-balanced but `unlabelled`. `labelled` = 0 labels all that remain after validation and trusted.
    `unlabelled` = 0 takes all that remain after labelled. Where none remain, as with all labels, the unlabelled images
    are the labelled ones without their labels: the setting of Pham et al. 2021 with all of a data set's labels.
    `set_aside`: the only images from which trusted ones are taken (`trusted` = 0: all), and which are nothing else.
    `usable`: of images that could be unlabelled ones, those that may be; before any are counted off.
    Raises DataError where a class, or the rest, has too few images.
    """
    order = draws.permutation(draws.key(seed, draws.Purpose.SPLIT), len(labels))
    trusted_pool = None
    if set_aside is not None:
        is_aside = np.isin(order, set_aside)
        trusted_pool, order = _Pool(order[is_aside], labels, classes), order[~is_aside]
    pool = _Pool(order, labels, classes)
    chosen_validation = pool.take(validation, "validation")
    if set_aside is not None and not trusted:
        chosen_trusted = np.sort(set_aside)
    else:
        chosen_trusted = (trusted_pool or pool).take(trusted, "trusted")
    chosen = pool.take(labelled, "labels") if labelled else pool.take_all()
    used = np.concatenate([chosen_validation, chosen_trusted, chosen])
    rest = order[~np.isin(order, used)]  # keeps the drawn order, which is not by class
    rest = rest if rest.size else order[np.isin(order, chosen)]
    rest = rest if usable is None else usable(rest)
    if unlabelled > len(rest):
        raise DataError(
            f"data.unlabelled = {unlabelled}, and {len(rest)} images are left: ask for fewer, or 0 for all."
        )
    return Split(chosen, chosen_trusted, np.sort(rest[: unlabelled or None]), chosen_validation)
