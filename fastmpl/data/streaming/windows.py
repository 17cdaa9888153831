"""Resizes parts of decoded pictures to one size on a CPU: the one operation of the pipelines that DALI does not do.

torch's resize of bytes (antialiased as PIL's, with vector instructions) takes a third of the time of DALI's on a CPU,
where resizing was the larger part of the time. On a GPU the pipelines use DALI's own resize, which differs by rounding.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

# torch warns that a tensor could write to DALI's pictures; no code does
warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)

Image = NDArray[np.uint8]
Window = NDArray[np.int32]  # y, x, height, width


def resize_image(image: Image, height: int, width: int, interpolation: str = "bilinear") -> Image:
    """Resizes `image` [H, W, 3], whatever its ratio of sides. interpolation: "bilinear" or "bicubic"."""
    planes = torch.from_numpy(image).permute(2, 0, 1)[None]
    made = torch.nn.functional.interpolate(planes, (height, width), mode=interpolation, antialias=True)
    return np.asarray(made[0].permute(1, 2, 0).numpy())


class _ThreadMap:
    """Applies a function to many arguments in several threads."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def map(self, one: Callable[..., Image], *arguments: Iterable[Any]) -> list[Image]:
        return list(self._pool.map(one, *arguments) if self._pool else map(one, *arguments))


class Resizer:
    """Resizes one or more windows of each image of a batch."""

    def __init__(self, size: int, threads: int) -> None:
        self._size, self._threads = size, _ThreadMap(threads)

    def __call__(self, images: Sequence[Image], *windows: Sequence[Window]) -> tuple[list[Image], ...] | list[Image]:
        """The resized images of each sequence of windows; one list where there is one sequence, as DALI expects."""
        every = [window for chosen in windows for window in chosen]
        made = self._threads.map(self._resize_one, list(images) * len(windows), every)
        parts = tuple(made[first : first + len(images)] for first in range(0, len(made), len(images)))
        return parts if len(parts) > 1 else parts[0]

    def _resize_one(self, image: Image, window: Window) -> Image:
        y, x, height, width = window.tolist()
        return resize_image(image[y : y + height, x : x + width], self._size, self._size)


class CentreCrop:
    """Takes the middle square of images after resizing their shorter side: the usual evaluation on ImageNet."""

    def __init__(self, size: int, shorter: int, threads: int, interpolation: str = "bilinear") -> None:
        self._size, self._shorter, self._threads = size, shorter, _ThreadMap(threads)
        self._interpolation = interpolation

    def __call__(self, images: Sequence[Image]) -> list[Image]:
        return self._threads.map(self._crop_one, images)

    def _crop_one(self, image: Image) -> Image:
        least = min(image.shape[:2])
        height, width = (int(self._shorter * side / least) for side in image.shape[:2])
        y, x = (round((side - self._size) / 2) for side in (height, width))
        resized = resize_image(image, height, width, self._interpolation)
        return np.ascontiguousarray(resized[y : y + self._size, x : x + self._size])
