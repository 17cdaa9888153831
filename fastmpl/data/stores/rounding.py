"""Checks that rows of numbers are class distributions, and divides each by its sum.

Files hold rounded numbers, so that a sum is near 1 and not 1. What is further away than rounding explains is refused:
logits, scores of several labels at once, rows that lack a class. Percentages are recognised by their sum of 100.
"""

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fastmpl.data.errors import DataError, printable
from fastmpl.data.stores.distributions import Probabilities

SUM_WITHIN: Final = 0.01  # of 1, for any row: half precision of a thousand classes is within
LARGEST_ROUNDING: Final = 0.1  # of 1, for rows of few decimals
PERCENT: Final = 100.0


def find_scale(rows: Probabilities) -> float:
    """100 where every row [n, K] sums to about 100, else 1."""
    sums = rows.sum(1, dtype=np.float64)
    return PERCENT if len(rows) and bool(np.all(np.abs(sums / PERCENT - 1) <= LARGEST_ROUNDING)) else 1.0


def _largest_rounding(rows: Probabilities) -> NDArray[np.float64]:
    """How far the sum of each row [n, K] may be from 1 because its numbers were rounded: half a decimal for each."""
    error = np.full(len(rows), SUM_WITHIN)
    for step in (1e-3, 1e-2):
        decimal = rows.astype(np.float64) / step
        with np.errstate(invalid="ignore"):  # infinity minus infinity, which is no rounded number
            written = (np.abs(decimal - np.rint(decimal)) < 1e-3).all(1)
        error[written] = np.maximum(SUM_WITHIN, min(rows.shape[1] * step / 2, LARGEST_ROUNDING))
    return error


def normalise_rows(rows: Probabilities, scale: float, first: int, path: Path) -> Probabilities:
    """The rows [n, K] of images `first` and following, in units of `scale`, each divided by its sum.

    Raises DataError, naming the image, where a row is not a distribution.
    """
    rows = rows / np.float32(scale)
    sums = rows.sum(1, dtype=np.float64)
    suspect = np.flatnonzero(~(np.abs(sums - 1) <= SUM_WITHIN) | (rows < 0).any(1))
    if suspect.size:
        allowed = _largest_rounding(rows[suspect])
        wrong = suspect[~(np.abs(sums[suspect] - 1) <= allowed) | (rows[suspect] < 0).any(1)]
        if wrong.size:
            raise _refusal(rows[wrong[0]] * scale, first + int(wrong[0]), path)
    return np.asarray(rows / sums[:, None], np.float32)


def _refusal(row: Probabilities, image: int, path: Path) -> DataError:
    total = float(row.sum(dtype=np.float64))
    found = f"sums to {total:.4g}" if row.min() >= 0 or np.isnan(total) else "has a negative number"
    return DataError(
        f"{printable(path)}: the row of image {image} {found}. Give probabilities that sum to 1 (the softmax of logits), "
        "or percentages that sum to 100, for every image."
    )
