"""Views of images that are only normalised, where no augmentation and no resize is asked for.

No pipeline is needed then, and both views are one tensor. The result equals the pipeline's bit for bit, in a tenth of
its time for small images.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from fastmpl.data.memory.views import Augmentation
from fastmpl.data.normalise import Normalisation
from fastmpl.data.sampler import Sampler
from fastmpl.data.view_stream import Views


def leaves_unaltered(how: Augmentation, images: NDArray[np.uint8], *, two_views: bool) -> bool:
    """Whether `how` leaves `images` [N, H, W, C] as they are, so that each view is the image itself."""
    moved = how.flip or how.shift > 0 or images.shape[1:3] != (how.size, how.size)
    return not moved and not (two_views and (how.operations > 0 or how.cut > 0))


class UnalteredStream:
    """A ViewStream of `images` uint8 [N, H, W, 3 or 1] in the order of `sampler`, from `step` on, on the CPU.

    Views are float32 [n, C, H, W]. Grey images get as many channels as `normalisation` has.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        sampler: Sampler,
        normalisation: Normalisation,
        *,
        two_views: bool,
        step: int = 0,
        channels_last: bool = True,
    ) -> None:
        self._images = images
        self._sampler = sampler
        self._two_views = two_views
        self._step = step
        self._form = torch.channels_last if channels_last else torch.contiguous_format
        self._mean, std = (torch.tensor(c)[:, None, None] for c in normalisation)
        self._scale = 1 / std  # a product, as in the pipeline: a quotient would be rounded otherwise

    def next(self) -> Views:
        index = self._sampler.samples(self._step).index
        self._step += 1
        pixels = torch.from_numpy(self._images[index]).permute(0, 3, 1, 2).float()
        image = ((pixels - self._mean) * self._scale).contiguous(memory_format=self._form)
        return Views(image, image if self._two_views else None, torch.from_numpy(index))
