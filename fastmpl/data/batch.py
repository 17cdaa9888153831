"""What one training step needs from the data, and nothing else.

B labelled, M trusted and U unlabelled images of this rank; C channels, H x W pixels. Shapes are static over a run, so
that a step can be captured as one CUDA graph on fixed buffers.
"""

from typing import Final, NamedTuple, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

IMAGES: Final = ("labelled", "weak", "strong", "trusted")  # the parts of a batch that are pictures


class Batch(NamedTuple):
    """Images are normalised floats; indices are positions in the whole data set, the key of every random draw."""

    labelled: Float[Tensor, "B *image"]  # weak view
    targets: Int[Tensor, "B"]
    labelled_index: Int[Tensor, "B"]
    weak: Float[Tensor, "U *image"]
    strong: Float[Tensor, "U *image"]
    unlabelled_index: Int[Tensor, "U"]
    trusted: Float[Tensor, "M *image"] | None = None  # clean labelled images of the feedback alone, weak view
    trusted_targets: Int[Tensor, "M"] | None = None
    stored_labelled: Float[Tensor, "B K"] | None = None  # what a large teacher said of these images, where it is stored
    stored_unlabelled: Float[Tensor, "U K"] | None = None

    def for_teacher(self) -> Self:
        """The batch as a teacher is shown it: stored distributions, where there are any, in the place of the images."""
        if self.stored_labelled is None or self.stored_unlabelled is None:
            return self
        rows = self.stored_unlabelled
        return self._replace(labelled=self.stored_labelled, weak=rows, strong=rows)

    def parts(self, count: int) -> list[Self]:
        """The batch as `count` micro-batches of equal sizes; itself for 1."""
        if count == 1:
            return [self]
        cut = [None if part is None else part.chunk(count) for part in self]
        return [type(self)(*(None if part is None else part[i] for part in cut)) for i in range(count)]  # type: ignore[arg-type]

    def to(self, device: torch.device) -> Self:
        """The batch on that device, copied without waiting."""
        return type(self)(*(None if part is None else part.to(device, non_blocking=True) for part in self))  # type: ignore[arg-type]
