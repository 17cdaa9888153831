"""What one training step needs from the data, and nothing else.

B labelled, M trusted and U unlabelled images of this rank; C channels, H x W pixels; K classes. Shapes do not change
during a run, so that a step can be captured as one CUDA graph on fixed buffers.
"""

from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

IMAGES: Final = ("labelled", "weak", "strong", "trusted")  # the parts of a batch that are pictures


def _chunk(count: int, place: int, part: Tensor) -> Tensor:
    return part.chunk(count)[place]


class Batch(NamedTuple):
    """Images are normalised floats. An index is the position of an image in the whole data set: random draws use it."""

    labelled: Float[Tensor, "B *image"]  # weak view
    targets: Int[Tensor, "B"]
    labelled_index: Int[Tensor, "B"]
    weak: Float[Tensor, "U *image"]
    strong: Float[Tensor, "U *image"]
    unlabelled_index: Int[Tensor, "U"]
    trusted: Float[Tensor, "M *image"] | None = None  # clean labelled images for the feedback alone, weak view
    trusted_targets: Int[Tensor, "M"] | None = None
    stored_labelled: Float[Tensor, "B K"] | None = None  # a large teacher's stored probabilities of these images
    stored_unlabelled: Float[Tensor, "U K"] | None = None

    def map(self, f: Callable[[Tensor], Tensor]) -> Self:
        """The batch with `f` applied to each tensor; absent parts stay absent."""
        return type(self)(*(None if part is None else f(part) for part in self))  # type: ignore[arg-type]

    def for_teacher(self) -> Self:
        """The batch with stored probabilities in the place of the images, where it has any: a teacher's input then."""
        if self.stored_labelled is None or self.stored_unlabelled is None:
            return self
        rows = self.stored_unlabelled
        return self._replace(labelled=self.stored_labelled, weak=rows, strong=rows)

    def parts(self, count: int) -> list[Self]:
        """The batch as `count` micro-batches of equal sizes; itself for 1."""
        if count == 1:
            return [self]
        return [self.map(partial(_chunk, count, place)) for place in range(count)]

    def to(self, device: torch.device) -> Self:
        """The batch on `device`. The host does not wait for copies from pinned memory."""
        return self.map(lambda part: part.to(device, non_blocking=True))
