"""The loaders that are compared: ours, and the two that people write with torchvision. All give the same views.

A sample is two views of one JPEG at 224 pixels: a random resized crop and a flip each, normalised; the second with
RandAugment where asked, and with cutout. Augmentation is the same in kind and strength; each draws its own numbers.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.io import decode_jpeg, read_file
from torchvision.transforms import v2

from fastmpl.data import sampler
from fastmpl.data.draws import StreamName
from fastmpl.data.files.encoded import Files, Names
from fastmpl.data.normalise import IMAGENET
from fastmpl.data.streaming.crops import Crops
from fastmpl.data.streaming.encoded_pipeline import EncodedStream, Machine
from fastmpl.data.streaming.reading import Reader

SIZE, MAGNITUDE, CUT = 224, 17, 112
Next = Callable[[], object]


class Cutout:
    """Erases a square whose centre is uniform over the image."""

    def __call__(self, image: Tensor) -> Tensor:
        y, x = torch.randint(SIZE, (2,)).tolist()
        image[:, max(y - CUT // 2, 0) : y + CUT // 2, max(x - CUT // 2, 0) : x + CUT // 2] = 0
        return image


def _view(operations: int, *, strong: bool, tensors: bool) -> v2.Compose:
    steps: list[Callable[..., object]] = [v2.RandomResizedCrop(SIZE, antialias=True), v2.RandomHorizontalFlip()]
    if strong and operations:
        steps.append(v2.RandAugment(operations, MAGNITUDE, fill=128))
    mean, std = ([value / 255 for value in values] for values in IMAGENET)
    steps += [] if tensors else [v2.ToImage()]
    steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    return v2.Compose([*steps, *([Cutout()] if strong else [])])


class TwoViews(Dataset[tuple[Tensor, Tensor, int]]):
    """Two views of JPEG files, by PIL or as tensors from the file on."""

    def __init__(self, files: list[Path], operations: int, *, tensors: bool) -> None:
        self._files, self._tensors = files, tensors
        self._weak = _view(operations, strong=False, tensors=tensors)
        self._strong = _view(operations, strong=True, tensors=tensors)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        image: Tensor | Image.Image
        if self._tensors:
            image = decode_jpeg(read_file(str(self._files[index])))
        else:
            image = Image.open(self._files[index]).convert("RGB")
        return self._weak(image), self._strong(image), index


class Endless(Sampler[int]):
    """All indices, in a new order each epoch, without end."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng(0)
        while True:
            yield from generator.permutation(self._count).tolist()


class Workers:
    """torch's DataLoader over TwoViews, and the CPU time that its processes have taken."""

    def __init__(self, files: list[Path], operations: int, batch: int, workers: int, *, tensors: bool) -> None:
        images = TwoViews(files, operations, tensors=tensors)
        loader = DataLoader(images, batch, sampler=Endless(len(images)), num_workers=workers, drop_last=True)
        self._batches = iter(loader)

    def next(self) -> object:
        return next(self._batches)

    def cpu(self) -> float:
        """CPU seconds of the worker processes so far."""
        processes = getattr(self._batches, "_workers", [])
        return sum(_cpu_of(process.pid) for process in processes)


def _cpu_of(pid: int) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


class Ours:
    """fastmpl's stream of encoded images with that many threads."""

    def __init__(self, files: list[Path], operations: int, batch: int, threads: int) -> None:
        images = Files(files[0].parent, Names(file.name for file in files))
        members = np.arange(len(files))
        how = Crops(SIZE, (0.08, 1.0), (3 / 4, 4 / 3), True, operations, MAGNITUDE, CUT)
        self._stream = EncodedStream(
            Reader(images, members, 0),
            sampler.Sampler(members, batch, StreamName.UNLABELLED, 0),
            how,
            IMAGENET,
            Machine(threads=threads),
            two_views=True,
        )

    def next(self) -> object:
        return self._stream.next()

    def cpu(self) -> float:
        """It has no processes of its own."""
        return 0.0
