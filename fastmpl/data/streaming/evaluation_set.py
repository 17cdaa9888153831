"""Encoded images to evaluate on, which are decoded again at every evaluation, so that no set is too large for memory.

The crop is the usual one: the shorter side is resized to size / centre_crop, and the middle square is taken. An image
that cannot be read is left out.
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
from fastmpl.data.device_stream import KeepAlive
from fastmpl.data.files.encoded import Bytes, Encoded
from fastmpl.data.files.portable import BadImage, Picture, make_portable
from fastmpl.data.normalise import Normalisation
from fastmpl.data.streaming.encoded_pipeline import Machine, decode
from fastmpl.data.streaming.windows import CentreCrop

BATCH: Final = 128  # images
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
    interpolation: str = "bilinear"

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, rank: int, ranks: int) -> Self:
        """The images of `rank`, in order. The last ranks may have one image less."""
        return self.take(torch.arange(len(self)).tensor_split(ranks)[rank])

    def take(self, positions: Int[Tensor, "n"]) -> Self:
        """The images at `positions`, in that order."""
        encoded = select_images(self.encoded, positions.numpy())
        assert not isinstance(encoded, np.ndarray)
        return replace(self, encoded=encoded, labels=self.labels[positions])

    def number(self) -> Self:
        """The same images, each with its position in this set in the place of its label."""
        return replace(self, labels=torch.arange(len(self)))

    def to(self, device: torch.device) -> Self:
        """The same set: its images are decoded on the device of its pipeline."""
        return self

    def batches(
        self, device: torch.device | None = None
    ) -> Iterator[tuple[Float[Tensor, "n *image"], Int[Tensor, "n"]]]:
        """Network inputs in order, and their labels; images that cannot be read are left out."""
        read: deque[list[int]] = deque()  # the images of each batch that DALI has and has not returned yet
        kept = KeepAlive(self.where.torch_device)
        pipeline = pipeline_def(self._define, exec_dynamic=True)(
            read, batch_size=BATCH, num_threads=self.where.threads, device_id=self.where.device, seed=0
        )
        pipeline.build()
        while True:
            try:
                (made,) = pipeline.run()
            except StopIteration:
                return
            decoded = tensor(made, channels_last=True).to(device)
            images = decoded
            if decoded.is_cuda:  # the caller gets a copy, and DALI gets its memory back once the GPU has made the copy
                images = decoded.clone(memory_format=torch.channels_last)
                kept.keep(decoded)
            yield images, self.labels[read.popleft()].to(device)

    def batch_count(self, images: int) -> int:
        """The largest number of batches that so many images make."""
        return -(-images // BATCH)

    def dummy_image(self, device: torch.device | None = None) -> Float[Tensor, "1 3 size size"]:
        """A dummy image: ranks with fewer batches evaluate it to take part in the collectives of the others."""
        return torch.zeros(1, 3, self.size, self.size, device=device)

    @property
    def images(self) -> Float[Tensor, "N *image"]:
        """All network inputs at once."""
        made = [images for images, _ in self.batches()]
        return torch.cat(made) if made else torch.empty(0, 3, self.size, self.size)

    def _read_picture(self, index: int) -> Picture | None:
        try:
            return make_portable(self.encoded.read(index))
        except (BadImage, OSError):
            return None

    def _read_batches(self, read: deque[list[int]]) -> Iterator[list[Bytes]]:
        """The bytes of the files of each batch; appends the numbers of its images to `read`."""
        with ThreadPoolExecutor(max(READERS, self.where.threads)) as readers:
            for first in range(0, len(self), BATCH):
                asked = range(first, min(first + BATCH, len(self)))
                pictures = dict(zip(asked, readers.map(self._read_picture, asked), strict=True))
                contents = {index: picture.content for index, picture in pictures.items() if picture is not None}
                if contents:
                    read.append(list(contents))
                    yield list(contents.values())

    def _define(self, read: deque[list[int]]) -> Node:
        content = fn.external_source(source=self._read_batches(read), batch=True, dtype=types.UINT8)
        image, shorter = decode(content, self.where), round(self.size / self.centre_crop)
        if self.where.device is None:
            function = CentreCrop(self.size, shorter, self.where.threads, self.interpolation)
            image = fn.python_function(image, function=function, batch_processing=True, output_layouts="HWC")
        else:
            kind = types.INTERP_CUBIC if self.interpolation == "bicubic" else types.INTERP_LINEAR
            image = fn.resize(image, resize_shorter=shorter, interp_type=kind, antialias=True)
            image = fn.crop(image, crop=(self.size, self.size))
        return normalise(image, 0, self.normalisation, channels_last=True)
