"""Draws the random numbers of the weak and the strong view of images in memory, a batch at a time.

Weak view: an optional horizontal flip, and a shift by at most some share of the side. Strong view: a flip and a shift of
its own, then RandAugment (Cubuk et al. 2020), then cutout (DeVries and Taylor 2017: a square whose centre is uniform
over the image, clipped at the border). Each number has its own column of the draws, whether it is used or not, so that
switching one augmentation off does not change the others. The pipeline moves the pixels.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmpl.data.settings import DataSettings, Interpolation, interpolation_of

OPERATIONS = 14  # in DALI's RandAugment suite; the pipeline asserts it
MAGNITUDES = 31  # RandAugment's magnitudes are 0 to 30
_WEAK_COLUMNS, _CUT_COLUMNS = 3, 2  # flip, y, x; then the same for strong; then y, x


class Augmentation(NamedTuple):
    """The settings of the views, in pixels of the network's input."""

    size: int
    flip: bool
    operations: int  # of RandAugment; 0: off
    magnitude: int
    cut: int  # side of cutout's square; 0: off
    shift: int  # largest, in either direction; 0: off
    interpolation: Interpolation = "bilinear"  # of images of another size

    @property
    def columns(self) -> int:
        return 2 * _WEAK_COLUMNS + _CUT_COLUMNS + 2 * self.operations


class WeakNumbers(NamedTuple):
    """Where the window of a view starts ([n, 2]: y, x in pixels; outside the image is black), and whether it is flipped."""

    start: NDArray[np.int32]
    mirror: NDArray[np.int32]


class StrongNumbers(NamedTuple):
    """The numbers of a weak view, the erased rectangle ([n, 2] each), and RandAugment's operations and signs ([k, n])."""

    start: NDArray[np.int32]
    mirror: NDArray[np.int32]
    cut_start: NDArray[np.float32]
    cut_shape: NDArray[np.float32]
    operation: NDArray[np.int32]
    sign: NDArray[np.int32]


def augmentation(settings: DataSettings) -> Augmentation:
    """The augmentation that the [data] section asks for."""
    operations, magnitude = settings.rand_augment
    cut = round(settings.cutout * settings.image_size)
    shift = int(settings.shift * settings.image_size)
    form = interpolation_of(settings)
    return Augmentation(settings.image_size, settings.flip, operations, magnitude, cut, shift, form)


def _below(u: NDArray[np.float32], n: int) -> NDArray[np.int32]:
    """Uniform integers in 0..n-1; float64, because float32 may round u * n up to n."""
    return np.floor(u.astype(np.float64) * n).astype(np.int32)


def rectangle(u: NDArray[np.float32], size: int, cut: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Start and shape [n, 2] of cutout's square of side `cut`, clipped to the image, from uniform numbers u [n, 2]."""
    centre = _below(u, size)
    start = np.clip(centre - cut // 2, 0, size)
    end = np.clip(centre - cut // 2 + cut, 0, size)
    return start.astype(np.float32), (end - start).astype(np.float32)


def draw_weak(u: NDArray[np.float32], how: Augmentation) -> WeakNumbers:
    """The numbers of the weak view, from uniform numbers u [n, 3 or more]."""
    mirror = _below(u[:, 0], 2) if how.flip else np.zeros(len(u), np.int32)
    return WeakNumbers(_below(u[:, 1:3], 2 * how.shift + 1) - how.shift, mirror)


def draw_strong(u: NDArray[np.float32], how: Augmentation) -> StrongNumbers:
    """The numbers of the strong view, from its own columns of the same uniform numbers u [n, how.columns]."""
    base = draw_weak(u[:, _WEAK_COLUMNS:], how)
    first = 2 * _WEAK_COLUMNS + _CUT_COLUMNS
    cut_start, cut_shape = rectangle(u[:, first - _CUT_COLUMNS : first], how.size, how.cut)
    # DALI takes contiguous rows only
    chosen = np.ascontiguousarray(u[:, first : first + 2 * how.operations].T)
    return StrongNumbers(
        *base,
        cut_start,
        cut_shape,
        _below(chosen[: how.operations], OPERATIONS),
        _below(chosen[how.operations :], 2),
    )
