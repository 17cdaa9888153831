"""Adds synthetic label noise for experiments.

Of the n labels of each class, `rate * n` are changed (rounded up or down by the seed). Noise is for labelled images
only: trusted, validation and test labels stay clean.
"""

import numpy as np
from numpy.typing import NDArray

from fastmpl.data import draws
from fastmpl.data.errors import DataError

KINDS = ("none", "pair", "symmetric", "brightness")


def _by_brightness(images: NDArray[np.uint8], rate: float) -> NDArray[np.float64]:
    """For each image [n] a probability that grows linearly with the rank of its brightness; the mean is `rate`."""
    brightness = images.reshape(len(images), -1).mean(axis=1)
    rank = (np.argsort(np.argsort(brightness, kind="stable"), kind="stable") + 0.5) / len(images)
    return np.asarray(2 * rate * rank if rate <= 0.5 else 1 - 2 * (1 - rate) * (1 - rank))


def _choose(probability: NDArray[np.float64], key: draws.UInt) -> NDArray[np.bool_]:
    """Systematic sampling in a random order: item i with exactly `probability[i]`, the count fixed to rounding."""
    n = len(probability)
    order = draws.permutation(draws.extend(key, 0), n)
    start = float(draws.uniform(draws.extend(key, 1), np.zeros(1, np.int64), 1)[0, 0])
    steps = np.floor(np.concatenate([[0.0], np.cumsum(probability[order])]) + start)
    chosen = np.zeros(n, dtype=bool)
    chosen[order] = np.diff(steps) > 0
    return chosen


def add_noise(
    labels: NDArray[np.int64],
    index: NDArray[np.int64],
    images: NDArray[np.uint8] | NDArray[np.float32],
    classes: int,
    *,
    kind: str,
    rate: float,
    seed: int,
) -> NDArray[np.int64]:
    """Returns a noisy copy of `labels` [n], those of `images` [n, H, W, C], which are images `index` [n] of the data set.

    `kind`: "pair" changes a label to the next class; "symmetric" to any other class, uniformly; "brightness" to the
    next class, and more often the brighter an image is within its class. Raises DataError for another kind.
    """
    if kind not in KINDS:
        raise DataError(f"data.noise = {kind!r} is not known: choose one of {', '.join(KINDS)}.")
    if kind == "brightness" and (images.ndim != 4 or images.dtype != np.uint8):
        raise DataError("data.noise = 'brightness' needs images, and this source has points: use pair or symmetric.")
    key = draws.key(seed, draws.Purpose.NOISE)
    shift = np.ones_like(labels)
    if kind == "symmetric":
        u = draws.uniform(draws.extend(key, classes), index, 1)[:, 0].astype(np.float64)
        shift = 1 + np.floor(u * (classes - 1)).astype(np.int64)
    noisy = labels.copy()
    for c in range(classes if kind != "none" and rate > 0 else 0):
        members = np.flatnonzero(labels == c)
        if members.size:
            uniform_rate = np.full(len(members), float(rate))
            probability = (
                _by_brightness(np.asarray(images[members], np.uint8), rate) if kind == "brightness" else uniform_rate
            )
            moved = members[_choose(probability, draws.extend(key, c))]
            noisy[moved] = (c + shift[moved]) % classes
    return noisy
