"""From the [data] section to all the data of a run: what a trainer, an evaluation and a report need."""

import hashlib
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from fastmpl.data.draws import Stream
from fastmpl.data.errors import DataError
from fastmpl.data.loader import LabelledStream, Loader, Word
from fastmpl.data.noise import add_noise
from fastmpl.data.normalise import Normalisation, centre_view, measure
from fastmpl.data.order import Order
from fastmpl.data.points import PointStream
from fastmpl.data.settings import DataSettings
from fastmpl.data.sources import Arrays, Pixels, load
from fastmpl.data.split import Split, split
from fastmpl.data.stream import ViewStream
from fastmpl.data.views import augmentation

UNKNOWN = -1  # the target of an image without a label


class Held(NamedTuple):
    """Images as they are evaluated (whole, neither shifted nor flipped), normalised, on the CPU; with true labels."""

    images: Float[Tensor, "N *image"]
    labels: Int[Tensor, "N"]


class _Machine(NamedTuple):
    """What of a process decides how, but never which, images are made."""

    rank: int
    world: int
    channels_last: bool
    threads: int
    device: int | None


@dataclass(frozen=True)
class Data:
    """All the data of a run; built by `build`."""

    train: Loader
    validation: Held | None
    test: Held
    classes: tuple[str, ...]
    image_shape: tuple[int, ...]  # (3, size, size), or (2,) for points
    split: Split
    truth: Int[Tensor, "N"]  # the true label of every training image: for reports alone, by Batch.index
    _arrays: Arrays
    _settings: DataSettings
    _seed: int
    _machine: _Machine
    _targets: Int[Tensor, "N"]
    _normalisation: Normalisation | None

    @property
    def labelled_count(self) -> int:
        return len(self.split.labelled)

    @property
    def trusted_count(self) -> int:
        return len(self.split.trusted)

    @property
    def unlabelled_count(self) -> int:
        return len(self.split.unlabelled)

    def examples(self, index: NDArray[np.int64]) -> Held:
        """The training images `index` as they are evaluated, with their true labels."""
        return _held(self._arrays.train_images[index], self._arrays.train_labels[index], self._settings, self._normalisation)

    def finetune(self, images: Literal["labelled", "trusted"], batch: int, step: int = 0) -> LabelledStream:
        """A stream of this rank's part of global batches of labelled (maybe noisy) or trusted images, from `step` on."""
        members = self.split.labelled if images == "labelled" else self.split.trusted
        order = Order(members, batch, Stream.FINETUNE, self._seed, self._machine.rank, self._machine.world)
        views = _open(order, step, self._arrays, self._settings, self._normalisation, self._machine, two_views=False)
        return LabelledStream(views, self._targets)


def _open(
    order: Order,
    step: int,
    arrays: Arrays,
    settings: DataSettings,
    normalisation: Normalisation | None,
    machine: _Machine,
    *,
    two_views: bool,
) -> ViewStream:
    if normalisation is None:
        points = cast(NDArray[np.float32], arrays.train_images)
        return PointStream(points, order, two_views=two_views, step=step, device=machine.device)
    from fastmpl.data.pipeline import ImageStream  # points need no DALI

    return ImageStream(
        cast(NDArray[np.uint8], arrays.train_images),
        order,
        augmentation(settings),
        normalisation,
        two_views=two_views,
        step=step,
        channels_last=machine.channels_last,
        threads=machine.threads,
        device=machine.device,
    )


def _held(images: Pixels, labels: NDArray[np.int64], settings: DataSettings, normalisation: Normalisation | None) -> Held:
    if normalisation is None:
        return Held(torch.from_numpy(cast(NDArray[np.float32], images)), torch.from_numpy(labels))
    pixels = cast(NDArray[np.uint8], images)
    return Held(centre_view(pixels, settings.image_size, normalisation), torch.from_numpy(labels))


def _split(arrays: Arrays, settings: DataSettings, seed: int) -> Split:
    if isinstance(settings.trusted, str):
        raise DataError(f"data.trusted names a folder, and {settings.source} has none: give the number of trusted images.")
    return split(
        arrays.train_labels,
        len(arrays.classes),
        labelled=settings.labels,
        trusted=settings.trusted,
        unlabelled=settings.unlabelled,
        validation=settings.validation,
        seed=seed,
    )


def _targets(arrays: Arrays, parts: Split, settings: DataSettings, seed: int) -> NDArray[np.int64]:
    """The label to learn from of every training image [N]: UNKNOWN where it has none."""
    kind, rate = settings.noise
    targets = np.full(len(arrays.train_labels), UNKNOWN, dtype=np.int64)
    targets[parts.trusted] = arrays.train_labels[parts.trusted]
    true, images = arrays.train_labels[parts.labelled], arrays.train_images[parts.labelled]
    targets[parts.labelled] = add_noise(
        true, parts.labelled, images, len(arrays.classes), kind=kind, rate=rate, seed=seed
    )
    return targets


def _digest(*arrays: NDArray[np.generic]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for array in arrays:
        digest.update(f"{array.shape}{array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _fingerprint(arrays: Arrays, parts: Split, targets: NDArray[np.int64], settings: DataSettings, seed: int) -> dict[str, Word]:
    """Everything that decides which images a step sees, and how."""
    return {
        "source": settings.source,
        "images": _digest(arrays.train_images, arrays.train_labels),
        "labelled": len(parts.labelled),
        "trusted": len(parts.trusted),
        "unlabelled": len(parts.unlabelled),
        "split": _digest(*parts, targets),
        "seed": seed,
        "batch_labelled": settings.batch_labelled,
        "batch_unlabelled": settings.batch_unlabelled,
        "batch_trusted": settings.batch_trusted,
        "image_size": settings.image_size,
        "flip": settings.flip,
        "rand_augment": list(settings.rand_augment),
        "cutout": settings.cutout,
    }


def build(
    settings: DataSettings,
    *,
    seed: int,
    rank: int = 0,
    world: int = 1,
    channels_last: bool = True,
    threads: int = 1,
    device: int | None = None,
) -> Data:
    """Loads, splits and prepares the data of a run.

    `rank` of `world` processes gets its part of every global batch. `device` is the CUDA device on which views are made
    and batches lie, None for the CPU. Raises DataError where the data cannot be used as asked.
    """
    arrays = load(settings)
    parts = _split(arrays, settings, seed)
    targets = _targets(arrays, parts, settings, seed)
    where = torch.device("cpu" if device is None else f"cuda:{device}")
    points = arrays.train_images.ndim == 2
    normalisation = None if points else measure(cast(NDArray[np.uint8], arrays.train_images))
    machine = _Machine(rank, world, channels_last and not points, max(threads, 1), device)
    labelled = (parts.labelled, settings.batch_labelled)
    trusted = (parts.trusted, settings.batch_trusted or settings.batch_labelled)
    streams = {
        Stream.LABELLED: Order(*labelled, Stream.LABELLED, seed, rank, world),
        Stream.UNLABELLED: Order(parts.unlabelled, settings.batch_unlabelled, Stream.UNLABELLED, seed, rank, world),
    }
    if parts.trusted.size:
        streams[Stream.TRUSTED] = Order(*trusted, Stream.TRUSTED, seed, rank, world)

    def open_stream(stream: Stream, step: int) -> ViewStream:
        two_views = stream is Stream.UNLABELLED
        return _open(streams[stream], step, arrays, settings, normalisation, machine, two_views=two_views)

    tested = (arrays.test_images, arrays.test_labels)
    if arrays.transductive:
        rest = np.setdiff1d(np.arange(len(arrays.train_labels)), np.concatenate([parts.labelled, parts.trusted, parts.validation]))
        tested = (arrays.train_images[rest], arrays.train_labels[rest])
    validation = (arrays.train_images[parts.validation], arrays.train_labels[parts.validation])
    target_table = torch.from_numpy(targets).to(where)
    return Data(
        train=Loader(
            open_stream,
            target_table,
            trusted=parts.trusted.size > 0,
            fingerprint=_fingerprint(arrays, parts, targets, settings, seed),
        ),
        validation=_held(*validation, settings, normalisation) if parts.validation.size else None,
        test=_held(*tested, settings, normalisation),
        classes=arrays.classes,
        image_shape=(2,) if points else (3, settings.image_size, settings.image_size),
        split=parts,
        truth=torch.from_numpy(arrays.train_labels),
        _arrays=arrays,
        _settings=settings,
        _seed=seed,
        _machine=machine,
        _targets=target_table,
        _normalisation=normalisation,
    )
