"""What every learner's passes share: duals, logits in float32, and the step of the difference form."""

from collections.abc import Iterable, Sequence
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad

# The step of the difference form, of a length along its direction. Longer steps bend, shorter ones drown in rounding: at
# these the cosine with the forward-mode tangent is 0.9994 and more in float32 over short trainings of WRN-28-2, WRN-10-1
# and a small ConvNet, by SGD and AdamW, from the first step to rates near 0 (python -m benchmarks.bench_difference).
SHARE_OF_UPDATE: Final = 3e-3  # of |theta - theta'|, over which the network is nearly linear
SHORTEST: Final = 3e-6  # of |theta|
LONGEST: Final = 1e-5  # of |theta|


def dual(value: Tensor, tangent: Tensor | None) -> Tensor:
    """The value with its tangent; without one it is a constant."""
    if tangent is None:
        return value
    made: Tensor = forward_ad.make_dual(value, tangent)  # type: ignore[no-untyped-call]
    return made


def tangent_of(value: Tensor) -> Tensor:
    """The tangent that a pass has carried to its end."""
    tangent: Tensor | None = forward_ad.unpack_dual(value).tangent  # type: ignore[no-untyped-call]
    assert tangent is not None, "an operator of this network lost the tangent"
    return tangent


def to_float32(logits: Tensor) -> Tensor:
    """bf16 logits as float32: losses and labels are computed in full precision."""
    return logits.float() if logits.dtype == torch.bfloat16 else logits


def mean_gradient(passes: Iterable[Sequence[Tensor]]) -> list[Tensor]:
    """The mean of the passes' gradients; no more of them are there at once than the sum and the latest."""
    total: list[Tensor] = []
    count = 0
    for gradients in passes:
        total = list(torch._foreach_add(total, list(gradients))) if count else list(gradients)
        count += 1
    if count > 1:
        torch._foreach_div_(total, count)
    return total


def difference_step(
    direction: Float[Tensor, ""], parameters: Float[Tensor, ""], update: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """How far the difference form goes, in units of its direction; 1 for a direction of norm 0.

    Takes the norms of the direction, of the parameters that it moves, and of their last update.
    """
    length = torch.clamp(SHARE_OF_UPDATE * update, SHORTEST * parameters, LONGEST * parameters)
    return torch.where(direction > 0, length / direction.clamp(min=1e-30), 1.0)
