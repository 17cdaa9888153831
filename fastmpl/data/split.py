"""Splits the training images into labelled, trusted, unlabelled and validation images, by class and by a seed.

Validation images are drawn first, then trusted, then labelled ones: one seed keeps its validation images while the
number of labels varies. Test images are not split; the source has them apart.
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
    """Sorted positions in the training arrays. The sets are disjoint, unless labelled images stand in for `unlabelled`."""

    labelled: Index
    trusted: Index
    unlabelled: Index
    validation: Index


class _Pool:
    """The images that are still free, by class, each class in a drawn order."""

    def __init__(self, order: Index, labels: Index, classes: Sequence[str]) -> None:
        self._classes = classes
        by_class = np.argsort(labels[order], kind="stable")  # one pass for all classes: there may be thousands
        bounds = np.searchsorted(labels[order], np.arange(len(classes) + 1), sorter=by_class)
        self._left = [order[by_class[first:end]] for first, end in pairwise(bounds)]

    def _quota(self, count: int, what: str) -> Index:
        """The number of images of each class: equal, with one more in the first classes where `count` does not divide."""
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
        """Takes `count` images, as many of each class. Raises DataError, naming data.`what`, where too few are left."""
        quota = self._quota(count, what)
        taken = [rest[:n] for rest, n in zip(self._left, quota, strict=True)]
        self._left = [rest[n:] for rest, n in zip(self._left, quota, strict=True)]
        return np.sort(np.concatenate(taken))

    def take_all(self) -> Index:
        """Takes all free images. Raises DataError where a class has none."""
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

    All sets but `unlabelled` are class-balanced. `labelled` = 0 takes all images that validation and trusted leave.
    `unlabelled` = 0 takes all images that the other sets leave. Where none are left, the labelled images stand in for
    them, without their labels: the setting of Pham et al. 2021 with all labels of a data set.
    `set_aside`: trusted images are taken from these alone (`trusted` = 0: all), and these are used for nothing else.
    `usable`: a filter of the images that may be unlabelled ones; `unlabelled` counts those that pass.
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
