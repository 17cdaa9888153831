"""Windows of decoded pictures, resized to one size on a CPU: the one operation of the pipeline that DALI does not do.

torch's resize of bytes (antialiased, as PIL's, with its vector instructions) takes a third of the time of DALI's on a
CPU, of which resizing was the larger part. On a GPU the pipeline uses DALI's own, which differs by rounding.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Window = NDArray[np.int32]  # y, x, height, width


def resized(image: Image, window: Window, size: int) -> Image:
    """The window of `image` [H, W, 3], `size` pixels square, whatever its shape."""
    y, x, height, width = window.tolist()
    part = torch.from_numpy(image)[y : y + height, x : x + width].permute(2, 0, 1)[None]
    made = torch.nn.functional.interpolate(part, (size, size), mode="bilinear", antialias=True)
    return np.asarray(made[0].permute(1, 2, 0).numpy())


class Resizer:
    """Resizes one or more windows of each image of a batch, with as many threads as asked."""

    def __init__(self, size: int, threads: int) -> None:
        self._size = size
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def __call__(self, images: Sequence[Image], *windows: Sequence[Window]) -> tuple[list[Image], ...] | list[Image]:
        """For each sequence of windows the resized images; a list where there is one sequence, as DALI wants it."""
        every = [(image, window) for chosen in windows for image, window in zip(images, chosen, strict=True)]
        one = partial(resized, size=self._size)
        made = list(self._pool.map(one, *zip(*every, strict=True)) if self._pool else (one(*pair) for pair in every))
        parts = tuple(made[first : first + len(images)] for first in range(0, len(made), len(images)))
        return parts if len(parts) > 1 else parts[0]
