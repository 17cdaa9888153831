"""Names for the images of a step, and the logits that a network gave them."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fastmpl.data.batch import Batch

View = Literal["labelled", "weak", "strong", "trusted"]
LabelView = Literal["weak", "strong"]  # of an unlabelled image, whose logits become its label


class Logits(NamedTuple):
    """One network's logits by view; None where that view was not passed through it."""

    labelled: Float[Tensor, "B K"] | None = None
    weak: Float[Tensor, "U K"] | None = None
    strong: Float[Tensor, "U K"] | None = None
    trusted: Float[Tensor, "M K"] | None = None

    def of(self, view: View) -> Float[Tensor, "N K"]:
        logits: Tensor | None = getattr(self, view)
        assert logits is not None, f"the schedule passed no {view} images through this network"
        return logits

    def merge(self, other: "Logits") -> "Logits":
        """The views of both; where both have one, this one's."""
        return Logits(*(mine if mine is not None else theirs for mine, theirs in zip(self, other, strict=True)))

    def detach(self) -> "Logits":
        return Logits(*(None if logits is None else logits.detach() for logits in self))


def images(batch: Batch, views: Sequence[View]) -> Float[Tensor, "N *image"]:
    """The images of several views as one batch, in the order of `views`."""
    return torch.cat([getattr(batch, view) for view in views]) if len(views) > 1 else getattr(batch, views[0])


def by_view(logits: Float[Tensor, "N K"], batch: Batch, views: Sequence[View]) -> Logits:
    """Undoes `images`: the rows of each view."""
    if len(views) == 1:
        return Logits(**{views[0]: logits})
    rows = torch.split(logits, [len(getattr(batch, view)) for view in views])
    return Logits(**dict(zip(views, rows, strict=True)))
