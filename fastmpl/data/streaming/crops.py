"""Draws the random numbers of the two views of pictures of any size, as `memory.views` does for images in memory.

Weak view: a window of random area and shape (the crop of Szegedy et al. 2015, the usual one for ImageNet), resized to the
network's input, and an optional flip. Strong view: a window and a flip of its own, then RandAugment, then cutout. A window
is drawn as by torchvision's RandomResizedCrop: at most ten trials of a size, and the middle of the picture if none fits.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmpl.data.memory import views
from fastmpl.data.sampler import Sampler, Samples
from fastmpl.data.settings import DataSettings
from fastmpl.data.streaming.rand_augment import Layer, layers

TRIALS: Final = 10
_VIEW: Final = 2 * TRIALS + 3  # columns of one view: a size each trial, then y and x, then the flip
_CUT: Final = 2

Float = NDArray[np.float32]


class Crops(NamedTuple):
    """The settings of the views; `size` and `cut` in pixels of the network's input."""

    size: int
    scale: tuple[float, float]  # smallest and largest share of the picture's area
    ratio: tuple[float, float]  # smallest and largest width / height
    flip: bool
    operations: int  # of RandAugment; 0: off
    magnitude: int
    cut: int  # side of cutout's square; 0: off

    @property
    def columns(self) -> int:
        return 2 * _VIEW + _CUT + 2 * self.operations


class CropNumbers(NamedTuple):
    """The window of a view ([n, 4]: y, x, height, width in pixels of the picture), and whether it is flipped ([n])."""

    window: NDArray[np.int32]
    mirror: NDArray[np.int32]


class StrongCropNumbers(NamedTuple):
    """The numbers of a crop, RandAugment's layers, and the erased rectangle ([n, 2] each, in pixels of the input)."""

    crop: CropNumbers
    layers: list[Layer]
    cut_start: Float
    cut_shape: Float


class ViewNumbers(NamedTuple):
    """The numbers of both views of n pictures."""

    weak: CropNumbers
    strong: StrongCropNumbers


def crops(settings: DataSettings, size: int) -> Crops:
    """The crops that the [data] section asks for, `size` pixels square."""
    operations, magnitude = settings.rand_augment
    cut = round(settings.cutout * size)
    return Crops(size, settings.crop_scale, settings.crop_ratio, settings.flip, operations, magnitude, cut)


def _middle(tall: NDArray[np.float64], wide: NDArray[np.float64], ratio: tuple[float, float]) -> NDArray[np.float64]:
    """The largest window of an allowed shape, [n, 2]: height, width."""
    low, high = ratio
    return np.stack([np.minimum(tall, np.round(wide / low)), np.minimum(wide, np.round(tall * high))], axis=1)


def windows(u: Float, height: NDArray[np.int64], width: NDArray[np.int64], how: Crops) -> NDArray[np.int32]:
    """Windows [n, 4] from uniform numbers u [n, 2 TRIALS + 2] in pictures of those sizes [n]."""
    tall, wide = height.astype(np.float64), width.astype(np.float64)
    drawn = u.astype(np.float64)
    area = (tall * wide)[:, None] * (how.scale[0] + drawn[:, :TRIALS] * (how.scale[1] - how.scale[0]))
    low, high = np.log(how.ratio)
    shape = np.exp(low + drawn[:, TRIALS : 2 * TRIALS] * (high - low))
    sizes = np.stack([np.round(np.sqrt(area / shape)), np.round(np.sqrt(area * shape))], axis=2)
    fits = np.all(sizes >= 1, axis=2) & (sizes[..., 0] <= tall[:, None]) & (sizes[..., 1] <= wide[:, None])
    first = np.take_along_axis(sizes, fits.argmax(1)[:, None, None], 1)[:, 0]
    some = fits.any(1)[:, None]
    size = np.where(some, first, _middle(tall, wide, how.ratio))
    room = np.stack([tall, wide], axis=1) - size
    start = np.where(some, np.floor(drawn[:, 2 * TRIALS : 2 * TRIALS + 2] * (room + 1)), np.floor(room / 2))
    return np.concatenate([start, size], axis=1).astype(np.int32)


def bounds(windows: Sequence[NDArray[np.int32]]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Start and shape, [n, 2] each, of the smallest rectangles around windows [n, 4] of the same pictures."""
    start = np.minimum.reduce([window[:, :2] for window in windows])
    end = np.maximum.reduce([window[:, :2] + window[:, 2:] for window in windows])
    return start, end - start


def _draw_crop(u: Float, height: NDArray[np.int64], width: NDArray[np.int64], how: Crops) -> CropNumbers:
    mirror = (u[:, _VIEW - 1] < 0.5).astype(np.int32) if how.flip else np.zeros(len(u), np.int32)
    return CropNumbers(windows(u, height, width, how), mirror)


def draw(
    sampler: Sampler, rows: Samples, height: NDArray[np.int64], width: NDArray[np.int64], how: Crops
) -> ViewNumbers:
    """Draws the views of `rows`, whose pictures have those sizes. The numbers depend on an image and its epoch."""
    u = sampler.uniform(rows, how.columns)
    start, shape = views.rectangle(u[:, 2 * _VIEW : 2 * _VIEW + _CUT], how.size, how.cut)
    chosen = layers(u[:, 2 * _VIEW + _CUT :], how.operations, how.magnitude, how.size)
    strong = StrongCropNumbers(_draw_crop(u[:, _VIEW:], height, width, how), chosen, start, shape)
    return ViewNumbers(_draw_crop(u, height, width, how), strong)
