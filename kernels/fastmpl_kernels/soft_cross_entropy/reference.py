"""Cross-entropy with label smoothing in plain torch: float64-capable, and what compiled steps run."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastmpl_kernels.rows import wide


def soft_cross_entropy(
    logits: Float[Tensor, "N K"], target: Int[Tensor, " N"] | Float[Tensor, "N K"], label_smoothing: float
) -> Float[Tensor, ""]:
    """See `fastmpl_kernels.soft_cross_entropy`."""
    log_p = torch.log_softmax(wide(logits), -1)
    if target.dim() == 1:
        of_target = log_p.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    else:
        of_target = (wide(target.detach()) * log_p).sum(-1)
    return -((1 - label_smoothing) * of_target + label_smoothing * log_p.mean(-1)).mean()
