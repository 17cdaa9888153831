"""Encoded images that are held back to evaluate on: decoded anew in each pass, so that no set is too large for memory.

The standard centre crop: the shorter side is resized to size / centre_crop, and the middle square is taken. An image
that cannot be read is left out, on whatever rank it lies.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Final, Self

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastmpl.data.dali import Node, fn, normalise, pipeline_def, tensor, types
from fastmpl.data.dataset import select_images
from fastmpl.data.files.encoded import Bytes, Encoded
from fastmpl.data.files.portable import BadImage, Picture, make_portable
from fastmpl.data.normalise import Normalisation
from fastmpl.data.streaming.encoded_pipeline import Machine, decode
from fastmpl.data.streaming.windows import CentreCrop

PASS: Final = 128  # images a pass
READERS: Final = 4  # threads that read files, at least


@dataclass(frozen=True)
class EncodedEvaluationSet:
    """N encoded images with their true labels."""

    encoded: Encoded
    labels: Int[Tensor, "N"]
    size: int
    centre_crop: float
    normalisation: Normalisation
    where: Machine

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, rank: int, ranks: int) -> Self:
        """This rank's share of them, in order; the last ranks may have one image less."""
        index = torch.arange(len(self)).tensor_split(ranks)[rank]
        encoded = select_images(self.encoded, index.numpy())
        assert not isinstance(encoded, np.ndarray)
        return replace(self, encoded=encoded, labels=self.labels[index])

    def to(self, device: torch.device) -> Self:
        """The same: images come to the device as they are made."""
        return self

    def batches(
        self, device: torch.device | None = None
    ) -> Iterator[tuple[Float[Tensor, "n *image"], Int[Tensor, "n"]]]:
        """All images that can be read, in order and as they are evaluated, and their labels."""
        read: deque[list[int]] = deque()  # the images that DALI was given and has not given back
        pipeline = pipeline_def(self._define, exec_dynamic=True)(
            read, batch_size=PASS, num_threads=self.where.threads, device_id=self.where.device, seed=0
        )
        pipeline.build()
        while True:
            try:
                (made,) = pipeline.run()
            except StopIteration:
                return
            images = tensor(made, channels_last=True).to(device)
            if images.is_cuda:  # DALI uses its memory again when the device may still be reading
                images = images.clone(memory_format=torch.channels_last)
            yield images, self.labels[read.popleft()].to(device)

    def batch_count(self, images: int) -> int:
        """How many batches so many images make, at most."""
        return -(-images // PASS)

    def dummy_image(self, device: torch.device | None = None) -> Float[Tensor, "1 3 size size"]:
        """An image of which nothing is asked."""
        return torch.zeros(1, 3, self.size, self.size, device=device)

    @property
    def images(self) -> Float[Tensor, "N *image"]:
        """All of them at once, as `batches` gives them."""
        made = [images for images, _ in self.batches()]
        return torch.cat(made) if made else torch.empty(0, 3, self.size, self.size)

    def _picture(self, index: int) -> Picture | None:
        try:
            return make_portable(self.encoded.read(index))
        except (BadImage, OSError):
            return None

    def _passes(self, read: deque[list[int]]) -> Iterator[list[Bytes]]:
        """The files' bytes, and in `read` the images that they are of."""
        with ThreadPoolExecutor(max(READERS, self.where.threads)) as readers:
            for first in range(0, len(self), PASS):
                asked = range(first, min(first + PASS, len(self)))
                pictures = dict(zip(asked, readers.map(self._picture, asked), strict=True))
                contents = {index: picture.content for index, picture in pictures.items() if picture is not None}
                if contents:
                    read.append(list(contents))
                    yield list(contents.values())

    def _define(self, read: deque[list[int]]) -> Node:
        content = fn.external_source(source=self._passes(read), batch=True, dtype=types.UINT8)
        image, shorter = decode(content, self.where), round(self.size / self.centre_crop)
        if self.where.device is None:
            function = CentreCrop(self.size, shorter, self.where.threads)
            image = fn.python_function(image, function=function, batch_processing=True, output_layouts="HWC")
        else:
            image = fn.resize(image, resize_shorter=shorter, interp_type=types.INTERP_LINEAR, antialias=True)
            image = fn.crop(image, crop=(self.size, self.size))
        return normalise(image, 0, self.normalisation, channels_last=True)
