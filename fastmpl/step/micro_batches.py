"""A step's losses over its micro-batches, which are equally large."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def share(loss: Float[Tensor, ""], parts: int) -> Float[Tensor, ""]:
    """The share of one of `parts` micro-batches in the step's loss; of a single one the loss itself, without a product."""
    return loss / parts if parts > 1 else loss


def mean(values: Sequence[Float[Tensor, ""]]) -> Float[Tensor, ""]:
    """The mean over the micro-batches."""
    return torch.stack(list(values)).mean() if len(values) > 1 else values[0]
