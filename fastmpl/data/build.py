"""Builds all the data of a run as one value, for a trainer, an evaluation and a report."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from fastmpl.data.dataset import digest, select_images
from fastmpl.data.device_stream import upload
from fastmpl.data.draws import StreamName
from fastmpl.data.inventory import Problem, count_left_out
from fastmpl.data.loader import LabelledImages, LabelledStream, Loader
from fastmpl.data.memory.evaluation_set import EvaluationSet
from fastmpl.data.normalise import Normalisation
from fastmpl.data.open_streams import StreamOpener
from fastmpl.data.prefetch import Prefetcher
from fastmpl.data.prepare import Prepared, fingerprint, prepare
from fastmpl.data.remarks import account_of, split_remarks
from fastmpl.data.sampler import Sampler
from fastmpl.data.settings import DataSettings
from fastmpl.data.split import Split
from fastmpl.data.stores.store import Store, open_store
from fastmpl.data.view_stream import Replacement, ViewStream


@dataclass(frozen=True)
class Data:
    """All the data of a run; made by `build`."""

    train: Loader
    validation: EvaluationSet | None
    test: EvaluationSet | None
    classes: tuple[str, ...]
    image_shape: tuple[int, ...]  # (3 or 1, size, size), (2,) for points, or (F,) for stored features
    split: Split
    truth: Int[Tensor, "N"]  # true labels of the training images, -1 where unknown; for reports alone
    _streams: StreamOpener
    _store: Store | None = None

    @property
    def normalisation(self) -> Normalisation | None:
        """The constants that the networks' inputs are normalised with; None for points."""
        return self._streams.prepared.normalisation

    @property
    def may_lack_images(self) -> bool:
        """Whether images are read at every step, so that some may be missing by then."""
        return not isinstance(self._streams.prepared.arrays.train_images, np.ndarray)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """The files that were left out, and files that were read though something about them is odd."""
        return self._streams.prepared.arrays.problems

    def remarks(self) -> list[str]:
        """Remarks on the data, for a user who is about to train."""
        arrays = self._streams.prepared.arrays
        account = [f"{line}; `fastmpl check` names them" for line in account_of(arrays)]
        remarks = (account if count_left_out(arrays.problems) else []) + split_remarks(arrays, self.split)
        if self._store is not None and self._store.order is not None:
            remarks.append("the classes of data.store are in another order than the data's: they are matched by name")
        return remarks

    @property
    def is_transductive(self) -> bool:
        """Whether the test images are training images whose labels are not used."""
        return self._streams.prepared.arrays.transductive

    @property
    def labelled_count(self) -> int:
        return len(self.split.labelled)

    @property
    def trusted_count(self) -> int:
        return len(self.split.trusted)

    @property
    def unlabelled_count(self) -> int:
        return len(self.split.unlabelled)

    def examples(self, index: NDArray[np.int64]) -> EvaluationSet:
        """An evaluation set of the training images `index`, with their true labels."""
        arrays = self._streams.prepared.arrays
        return self._streams.evaluation_set(select_images(arrays.train_images, index), arrays.train_labels[index])

    @property
    def names(self) -> Sequence[str]:
        """The name of each training image in files: its path below the data's folder, or its position."""
        return self._streams.prepared.arrays.names or [str(number) for number in range(len(self.truth))]

    def training_names(self, index: NDArray[np.int64]) -> list[str]:
        """Names by which a user knows the training images `index`: paths below the data's folder, where it has files."""
        arrays = self._streams.prepared.arrays
        return [self._below_root(arrays.train_name(int(number))) for number in index]

    def evaluated_names(self, split: Literal["validation", "test"]) -> list[str]:
        """The name of each validation or test image in files, in the order of its set."""
        prepared = self._streams.prepared
        arrays = prepared.arrays
        if split == "validation":
            return self.training_names(prepared.split.validation)
        if arrays.transductive:
            return self.training_names(prepared.tested())
        return [self._below_root(arrays.test_name(number)) for number in range(len(arrays.test_labels))]

    def _below_root(self, name: str) -> str:
        root = self._streams.settings.root
        return os.path.relpath(name, root) if root and name.startswith(root.rstrip(os.sep) + os.sep) else name

    @property
    def left_out(self) -> list[str]:
        """The names, below the data's folder, of files that cannot be used."""
        root = Path(self._streams.settings.root)
        files = [Path(problem.file) for problem in self.problems if not problem.used]
        return [str(file.relative_to(root)) if file.is_relative_to(root) else str(file) for file in files]

    @property
    def images_digest(self) -> str:
        """Tells the training images from those of other data; labels do not count."""
        return self._streams.prepared.images_digest

    def weak_views(self, members: NDArray[np.int64], batch: int) -> ViewStream:
        """Weak views of the training images `members`: each image once an epoch, its view drawn by image and epoch."""
        streams = self._streams
        sampler = Sampler(members, batch, StreamName.DISTIL, streams.seed)
        return streams.open(sampler, 0, StreamName.DISTIL)

    def view_pairs(self, members: NDArray[np.int64], batch: int) -> ViewStream:
        """As `weak_views`, with a strong view of each image beside it."""
        streams = self._streams
        sampler = Sampler(members, batch, StreamName.DISTIL, streams.seed)
        return streams.open(sampler, 0, StreamName.DISTIL, two_views=True)

    def stored_probabilities(self, index: NDArray[np.int64]) -> Float[Tensor, "n K"] | None:
        """The stored distributions of the training images `index`; None where the run has no store."""
        return None if self._store is None else torch.from_numpy(self._store.probabilities(index))

    def finetune(self, images: Literal["labelled", "trusted"], batch: int, step: int = 0) -> Prefetcher[LabelledImages]:
        """This rank's part of the global batches of fine-tuning, from `step` on; labels may have been made noisy."""
        streams = self._streams
        sampler = streams.sampler(
            StreamName.FINETUNE, self.split.labelled if images == "labelled" else self.split.trusted, batch
        )
        labelled = LabelledStream(streams.open(sampler, step, StreamName.FINETUNE), streams.targets())
        return Prefetcher(labelled.next, streams.ahead, streams.torch_device)


def build(
    settings: DataSettings,
    *,
    seed: int,
    rank: int = 0,
    world: int = 1,
    channels_last: bool = True,
    threads: int = 1,
    device: int | None = None,
    dtype: torch.dtype = torch.float32,
    normalisation: Normalisation | None = None,
    unlabelled: bool = True,
    trusted: bool = True,
) -> Data:
    """Loads, splits and prepares the data of a run.

    Process `rank` of `world` gets its part of every global batch. `device`: the number of the CUDA device that makes
    views and holds batches, None for the CPU. `dtype`: of training images that are decoded at every step; other images
    are float32. `normalisation`: constants for images instead of the data's own. `unlabelled`, `trusted`: whether batches
    hold images of these parts, where there are any; supervised learning has no use for them. Raises DataError where the
    data cannot be used as asked.
    """
    prepared = prepare(settings, seed, normalisation)
    if prepared.normalisation is not None:
        import_module("fastmpl.data.memory.pipeline")  # a missing DALI is reported now, not at the first batch
    streams = StreamOpener(prepared, settings, seed, rank, world, channels_last, max(threads, 1), device, dtype)
    with_trusted = trusted and prepared.split.trusted.size > 0
    used = [StreamName.LABELLED] + [StreamName.UNLABELLED] * unlabelled + [StreamName.TRUSTED] * with_trusted
    samplers = {stream: streams.sampler(stream, *streams.members(stream)) for stream in used}  # raises DataError

    def open_stream(stream: StreamName, step: int) -> ViewStream:
        return streams.open(samplers[stream], step, stream, two_views=stream is StreamName.UNLABELLED)

    arrays, validation = prepared.arrays, prepared.split.validation
    test_images, test_labels = prepared.test()
    known = fingerprint(prepared, settings, seed)
    store = _open_store(prepared, settings.store) if settings.store else None
    if store is not None:
        known["store"] = digest(*(np.frombuffer(shard.blake2b.encode(), np.uint8) for shard in store.header.shards))

    def look_up(stream: StreamName, step: int, replaced: Sequence[Replacement]) -> Tensor:
        """Stored probabilities of the images of that step. The sampler knows them, so that no GPU is asked."""
        assert store is not None
        index = samplers[stream].samples(step).index
        index[[one.place for one in replaced]] = [one.by for one in replaced]
        return upload(store.probabilities(index), streams.torch_device)

    return Data(
        train=Loader(
            open_stream,
            streams.targets(),
            trusted=with_trusted,
            unlabelled=unlabelled,
            fingerprint=known,
            look_up=look_up if store is not None else None,
            ahead=streams.ahead,
        ),
        validation=(
            streams.evaluation_set(select_images(arrays.train_images, validation), arrays.train_labels[validation])
            if validation.size
            else None
        ),
        test=streams.evaluation_set(test_images, test_labels) if len(test_labels) else None,
        classes=arrays.classes,
        image_shape=_input_shape(prepared, settings),
        split=prepared.split,
        truth=torch.from_numpy(arrays.train_labels),
        _streams=streams,
        _store=store,
    )


def _input_shape(prepared: Prepared, settings: DataSettings) -> tuple[int, ...]:
    """The shape of an image as networks see it."""
    images = prepared.arrays.train_images
    if prepared.normalisation is None and isinstance(images, np.ndarray):
        return tuple(images.shape[1:])
    return settings.channels, settings.image_size, settings.image_size


def _open_store(prepared: Prepared, folder: str) -> Store:
    """Opens the stored distributions in `folder`. Raises DataError where they are damaged or belong to other images."""
    store = open_store(folder)
    return store.fit(images=prepared.images_digest, classes=prepared.arrays.classes)
