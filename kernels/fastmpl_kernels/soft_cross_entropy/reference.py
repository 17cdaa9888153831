"""Cross-entropy with label smoothing in plain torch, in any floating type. Compiled steps run it."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastmpl_kernels.rows import expected, widen


def soft_cross_entropy(
    logits: Float[Tensor, "N K"], target: Int[Tensor, " N"] | Float[Tensor, "N K"], label_smoothing: float
) -> Float[Tensor, ""]:
    """See `fastmpl_kernels.soft_cross_entropy`."""
    log_p = torch.log_softmax(widen(logits), -1)
    if target.dim() == 1:
        of_target = log_p.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    else:
        of_target = expected(widen(target.detach()), log_p)
    if label_smoothing == 0:  # a class masked by -inf would be 0 times infinity
        return -of_target.mean()
    return -((1 - label_smoothing) * of_target + label_smoothing * log_p.mean(-1)).mean()
