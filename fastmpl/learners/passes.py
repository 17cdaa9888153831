"""What every learner's passes share: duals, logits in float32, and the step of the difference form."""

from typing import Final

import torch
from torch import Tensor
from torch.autograd import forward_ad

RELATIVE_STEP: Final = (
    1e-4  # of the difference form, against the parameters' norm: cosine 0.99999 with the JVP in float32
)


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


def difference_step(direction: Tensor, parameters: Tensor) -> Tensor:
    """The step of the difference form along a direction of that norm, at parameters of that norm; both 0-D."""
    return torch.where(direction > 0, RELATIVE_STEP * parameters / direction.clamp(min=1e-30), 1.0)
