"""Images that are held back to evaluate on: kept as bytes, and made into a network's input a few at a time."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from fastmpl.data.normalise import Normalisation, centre_view

PASS = 1000  # images a pass, or fewer large ones:
LARGEST_PASS = 64 << 20  # bytes of a pass as they are stored; a network's input has four times as many
RESIDENT = 2 << 30  # bytes that may stay on a GPU


class EvaluationSet(Protocol):
    """N images with their true labels, wherever they are kept."""

    def __len__(self) -> int: ...
    def part(self, rank: int, ranks: int) -> Self:
        """This rank's share of them, in order; the last ranks may have one image less."""
        ...

    def to(self, device: torch.device) -> Self:
        """The same on that device; where they are too many for it, as they were."""
        ...

    def batches(
        self, device: torch.device | None = None
    ) -> Iterator[tuple[Float[Tensor, "n *image"], Int[Tensor, "n"]]]:
        """The images in order as they are evaluated, and their labels."""
        ...

    def batch_count(self, images: int) -> int:
        """How many batches so many images make, at most."""
        ...

    def dummy_image(self, device: torch.device | None = None) -> Float[Tensor, "1 *image"]:
        """An image of which nothing is asked."""
        ...

    @property
    def images(self) -> Float[Tensor, "N *image"]:
        """All of them at once, as `batches` gives them."""
        ...

    @property
    def labels(self) -> Int[Tensor, "N"]: ...


@dataclass(frozen=True)
class DecodedEvaluationSet:
    """N images with their true labels. `pixels` are uint8, or points, which `normalisation` None leaves as they are."""

    pixels: Shaped[Tensor, "N *stored"]
    labels: Int[Tensor, "N"]
    size: int
    normalisation: Normalisation | None

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, rank: int, ranks: int) -> Self:
        """This rank's share of them, in order; the last ranks may have one image less."""
        pixels, labels = (tensor.tensor_split(ranks)[rank] for tensor in (self.pixels, self.labels))
        return replace(self, pixels=pixels, labels=labels)

    def to(self, device: torch.device) -> Self:
        """The same on that device; where they are too many for it, as they were."""
        fits = self.pixels.nbytes <= RESIDENT
        return replace(self, pixels=self.pixels.to(device), labels=self.labels.to(device)) if fits else self

    def batches(
        self, device: torch.device | None = None
    ) -> Iterator[tuple[Float[Tensor, "n *image"], Int[Tensor, "n"]]]:
        """All images in order as they are evaluated (whole, neither shifted nor flipped), and their labels."""
        for pixels, labels in zip(
            torch.split(self.pixels, self.rows), torch.split(self.labels, self.rows), strict=True
        ):
            yield self._input(pixels.to(device)), labels.to(device)

    @property
    def rows(self) -> int:
        """Images of a pass."""
        image = self.pixels.element_size() * self.pixels.shape[1:].numel()
        return max(1, min(PASS, LARGEST_PASS // max(image, 1)))

    def batch_count(self, images: int) -> int:
        """How many passes so many images take."""
        return -(-images // self.rows)

    def dummy_image(self, device: torch.device | None = None) -> Float[Tensor, "1 *image"]:
        """An image of which nothing is asked."""
        return self._input(self.pixels.new_zeros(1, *self.pixels.shape[1:], device=device))

    def _input(self, pixels: Shaped[Tensor, "n *stored"]) -> Float[Tensor, "n *image"]:
        """What a network is given of them."""
        return pixels if self.normalisation is None else centre_view(pixels, self.size, self.normalisation)

    @property
    def images(self) -> Float[Tensor, "N *image"]:
        """All of them at once, as `batches` gives them."""
        return torch.cat([images for images, _ in self.batches()])
