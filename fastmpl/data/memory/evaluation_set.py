"""Images to evaluate on, which are kept in memory as bytes and become a network's input one batch at a time."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from fastmpl.data.normalise import Normalisation, centre_view

BATCH = 1000  # images, or fewer if they are large:
LARGEST_BATCH = 64 << 20  # bytes of a batch as stored; a network's input has four times as many
RESIDENT = 2 << 30  # bytes that may stay on a GPU


class EvaluationSet(Protocol):
    """N images with their true labels, in memory or encoded."""

    def __len__(self) -> int: ...
    def part(self, rank: int, ranks: int) -> Self:
        """The images of `rank`, in order. The last ranks may have one image less."""
        ...

    def take(self, positions: Int[Tensor, "n"]) -> Self:
        """The images at `positions`, in that order."""
        ...

    def number(self) -> Self:
        """The same images, each with its position in this set in the place of its label."""
        ...

    def to(self, device: torch.device) -> Self:
        """The set with its images on `device`, or itself where they are too many for that."""
        ...

    def batches(
        self, device: torch.device | None = None
    ) -> Iterator[tuple[Float[Tensor, "n *image"], Int[Tensor, "n"]]]:
        """Network inputs in order, and their labels; images that cannot be read are left out."""
        ...

    def batch_count(self, images: int) -> int:
        """The largest number of batches that so many images make."""
        ...

    def dummy_image(self, device: torch.device | None = None) -> Float[Tensor, "1 *image"]:
        """A dummy image: ranks with fewer batches evaluate it to take part in the collectives of the others."""
        ...

    @property
    def images(self) -> Float[Tensor, "N *image"]:
        """All network inputs at once."""
        ...

    @property
    def labels(self) -> Int[Tensor, "N"]: ...


@dataclass(frozen=True)
class DecodedEvaluationSet:
    """N decoded images with their true labels. `pixels` are uint8, or points where `normalisation` is None."""

    pixels: Shaped[Tensor, "N *stored"]
    labels: Int[Tensor, "N"]
    size: int
    normalisation: Normalisation | None
    interpolation: str = "bilinear"

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, rank: int, ranks: int) -> Self:
        """The images of `rank`, in order. The last ranks may have one image less."""
        pixels, labels = (tensor.tensor_split(ranks)[rank] for tensor in (self.pixels, self.labels))
        return replace(self, pixels=pixels, labels=labels)

    def take(self, positions: Int[Tensor, "n"]) -> Self:
        """The images at `positions`, in that order."""
        return replace(self, pixels=self.pixels[positions], labels=self.labels[positions])

    def number(self) -> Self:
        """The same images, each with its position in this set in the place of its label."""
        return replace(self, labels=torch.arange(len(self)))

    def to(self, device: torch.device) -> Self:
        """The set with its images on `device`, or itself where they are too many for that."""
        fits = self.pixels.nbytes <= RESIDENT
        return replace(self, pixels=self.pixels.to(device), labels=self.labels.to(device)) if fits else self

    def batches(
        self, device: torch.device | None = None
    ) -> Iterator[tuple[Float[Tensor, "n *image"], Int[Tensor, "n"]]]:
        """Network inputs in order (whole images, neither shifted nor flipped), and their labels."""
        for pixels, labels in zip(
            torch.split(self.pixels, self.rows), torch.split(self.labels, self.rows), strict=True
        ):
            yield self._to_input(pixels.to(device)), labels.to(device)

    @property
    def rows(self) -> int:
        """Images of a batch."""
        image = self.pixels.element_size() * self.pixels.shape[1:].numel()
        return max(1, min(BATCH, LARGEST_BATCH // max(image, 1)))

    def batch_count(self, images: int) -> int:
        """The number of batches that so many images make."""
        return -(-images // self.rows)

    def dummy_image(self, device: torch.device | None = None) -> Float[Tensor, "1 *image"]:
        """A dummy image: ranks with fewer batches evaluate it to take part in the collectives of the others."""
        return self._to_input(self.pixels.new_zeros(1, *self.pixels.shape[1:], device=device))

    def _to_input(self, pixels: Shaped[Tensor, "n *stored"]) -> Float[Tensor, "n *image"]:
        return (
            pixels
            if self.normalisation is None
            else centre_view(pixels, self.size, self.normalisation, self.interpolation)
        )

    @property
    def images(self) -> Float[Tensor, "N *image"]:
        """All network inputs at once."""
        return torch.cat([images for images, _ in self.batches()])
