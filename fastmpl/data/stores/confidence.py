"""Selects unlabelled images by the confidence of a teacher, as is usual with large unlabelled sets.

The selection of Xie et al. 2020 (Noisy Student) and Pham et al. 2021 for images of another collection: images whose
likeliest class has at least some probability, and of each likeliest class at most some number, the most confident. Images
of rare classes are not repeated.
"""

import numpy as np
from numpy.typing import NDArray

from fastmpl.data.errors import DataError
from fastmpl.data.stores.store import Store

Index = NDArray[np.int64]


def select_confident(store: Store, index: Index, *, minimum: float, per_class: int) -> Index:
    """The images of `index` whose likeliest class has a probability of at least `minimum`, in their order.

    per_class: the most images of one likeliest class; the most confident are kept, and of equally confident ones those of
    lower number; 0: any number. Raises DataError where no image is left.
    """
    number, sure = store.top(index)
    keep = sure >= np.float32(np.float16(minimum))  # rounded as the stored probabilities are
    if per_class:
        order = np.lexsort((index, -sure, number))
        order = order[keep[order]]
        first = np.searchsorted(number[order], number[order])  # of the same class
        keep = np.zeros(len(index), dtype=bool)
        keep[order[np.arange(len(order)) - first < per_class]] = True
    if not keep.any():
        raise DataError(
            f"data.minimum_confidence = {minimum} leaves none of {len(index)} unlabelled images: the most confident has "
            f"{sure.max():.3f}. Lower it, or store distributions of another teacher."
        )
    return index[keep]
