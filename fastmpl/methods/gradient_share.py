"""How large the feedback's gradient is beside the supervised one, at the teacher's logits, where both cost no pass.

The gradients of the two losses reach the weights through one network; their sizes at its logits are compared because the
sizes at the weights would need a backward pass each. U unlabelled and B labelled images, K classes, q = softmax(z / T):

    exact                 g_ic = weight q_ic (r_ic - sum_k q_ik r_ik) / T
    per_example, scalar   g_ic = weight credit_i (q_ic - [c = label_i]) / T
    supervised            g_ic = weight (softmax(z_i)_c - (1 - eps) [c = y_i] - eps / K) / B
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastmpl_kernels.rows import widen


def feedback_square(
    logits: Float[Tensor, "U K"],
    credit: Float[Tensor, "*shape"],
    label: Int[Tensor, "U"] | None,
    *,
    temperature: float,
    weight: float,
) -> Float[Tensor, ""]:
    """The squared norm of the feedback's gradient. credit: [U, K]; [U] or 0-D for the classes `label` that were drawn."""
    q = torch.softmax(widen(logits) / temperature, -1)
    if credit.ndim == 2:
        moved = q * (credit - (q * credit).sum(-1, keepdim=True))
    else:
        assert label is not None, "a credit of drawn labels needs the labels"
        moved = _take_off(q, label, 1.0) * credit.reshape(-1, 1)
    return moved.square().sum() * (weight / temperature) ** 2


def supervised_square(
    logits: Float[Tensor, "B K"], targets: Int[Tensor, "B"], *, label_smoothing: float, weight: float
) -> Float[Tensor, ""]:
    """The squared norm of the supervised gradient."""
    p = torch.softmax(widen(logits), -1)
    left = _take_off(p, targets, 1 - label_smoothing) - label_smoothing / p.shape[-1]
    return left.square().sum() * (weight / len(logits)) ** 2


def _take_off(rows: Float[Tensor, "N K"], label: Int[Tensor, "N"], share: float) -> Float[Tensor, "N K"]:
    """The rows less `share` at their label; `one_hot` would wait for the device."""
    there = label.unsqueeze(-1)
    return rows.scatter_add(-1, there, torch.full_like(there, -share, dtype=rows.dtype))
