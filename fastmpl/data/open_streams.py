"""Opens the streams of a run: chooses their images, and the implementation that makes their views."""

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from fastmpl.data.dataset import Images
from fastmpl.data.draws import StreamName
from fastmpl.data.evaluation import make_evaluation_set
from fastmpl.data.files.encoded import Encoded
from fastmpl.data.memory.evaluation_set import EvaluationSet
from fastmpl.data.memory.points import PointStream
from fastmpl.data.memory.stored_views import StoredViewStream
from fastmpl.data.memory.unaltered import UnalteredStream, leaves_unaltered
from fastmpl.data.memory.views import augmentation
from fastmpl.data.prepare import Prepared
from fastmpl.data.sampler import Sampler
from fastmpl.data.settings import DataSettings
from fastmpl.data.streaming.crops import crops
from fastmpl.data.streaming.growing_size import GrowingStream, Growth
from fastmpl.data.streaming.reading import Reader
from fastmpl.data.view_stream import ViewStream


@dataclass(frozen=True)
class StreamOpener:
    """Opens the streams of one process. Rank and device decide who makes which images, never which are drawn."""

    prepared: Prepared
    settings: DataSettings
    seed: int
    rank: int
    world: int
    channels_last: bool
    threads: int
    device: int | None
    dtype: torch.dtype

    def members(self, stream: StreamName) -> tuple[NDArray[np.int64], int]:
        """The images of a training stream, and its global batch size."""
        settings, parts = self.settings, self.prepared.split
        return {
            StreamName.LABELLED: (parts.labelled, settings.batch_labelled),
            StreamName.TRUSTED: (parts.trusted, settings.batch_trusted or settings.batch_labelled),
            StreamName.UNLABELLED: (parts.unlabelled, settings.batch_unlabelled),
        }[stream]

    def sampler(self, stream: StreamName, members: NDArray[np.int64], batch: int) -> Sampler:
        return Sampler(members, batch, stream, self.seed, self.rank, self.world)

    def open(self, sampler: Sampler, step: int, stream: StreamName, *, two_views: bool = False) -> ViewStream:
        images, normalisation = self.prepared.arrays.train_images, self.prepared.normalisation
        if not isinstance(images, np.ndarray):
            return self._open_encoded(images, sampler, step, stream, two_views=two_views)
        if (store := self.prepared.features) is not None:
            features = cast(NDArray[np.float32], images)
            return StoredViewStream(features, store.views, sampler, two_views=two_views, step=step, device=self.device)
        if normalisation is None:
            points = cast(NDArray[np.float32], images)
            return PointStream(points, sampler, two_views=two_views, step=step, device=self.device)
        pixels, how = cast(NDArray[np.uint8], images), augmentation(self.settings)
        if self.device is None and leaves_unaltered(how, pixels, two_views=two_views):
            return UnalteredStream(
                pixels, sampler, normalisation, two_views=two_views, step=step, channels_last=self.channels_last
            )
        from fastmpl.data.memory.pipeline import ImageStream  # here, because points need no DALI

        return ImageStream(
            pixels,
            sampler,
            how,
            normalisation,
            two_views=two_views,
            step=step,
            channels_last=self.channels_last,
            threads=self.threads,
            device=self.device,
        )

    def _open_encoded(
        self, images: Encoded, sampler: Sampler, step: int, stream: StreamName, *, two_views: bool
    ) -> ViewStream:
        from fastmpl.data.streaming.encoded_pipeline import EncodedStream, machine

        settings, normalisation = self.settings, self.prepared.normalisation
        assert normalisation is not None
        where = machine(settings, self.device, self.threads)
        classes = None if stream in (StreamName.UNLABELLED, StreamName.DISTIL) else self.prepared.targets
        reader = Reader(images, sampler.members, self.seed, classes=classes, threads=self.threads)

        def sized(size: int, first: int) -> ViewStream:
            how = crops(settings, size)
            return EncodedStream(
                reader, sampler, how, normalisation, where, two_views=two_views, step=first, dtype=self.dtype
            )

        grows = stream in (StreamName.LABELLED, StreamName.TRUSTED, StreamName.UNLABELLED)
        growth = Growth(settings.start_size if grows else 0, settings.image_size, settings.grow_steps)
        return GrowingStream(sized, growth, step)

    @property
    def torch_device(self) -> torch.device:
        return torch.device("cpu" if self.device is None else f"cuda:{self.device}")

    @property
    def ahead(self) -> int:
        """Batches that a thread makes in advance; 0 for images in memory, where DALI's own threads are enough."""
        return 0 if isinstance(self.prepared.arrays.train_images, np.ndarray) else self.settings.prefetch

    def targets(self) -> Int[Tensor, "N"]:
        return torch.from_numpy(self.prepared.targets).to(self.torch_device)

    def evaluation_set(self, images: Images, labels: NDArray[np.int64]) -> EvaluationSet:
        return make_evaluation_set(
            images, labels, self.settings, self.prepared.normalisation, self.threads, self.device
        )
