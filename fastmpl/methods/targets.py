"""What a network learns from: pseudo labels taken from a teacher's logits, and the losses on labels of every kind.

U unlabelled images, B labelled ones, K classes. Losses are means over the images of this rank.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from fastmpl_kernels import keyed

Targets = Literal["soft", "sampled", "argmax"]


class Labels(NamedTuple):
    """Pseudo labels of U images. No gradient flows through them."""

    probabilities: Float[Tensor, "U K"]  # q = softmax(logits / temperature)
    drawn: Int[Tensor, "U"] | None = None  # the class drawn or the arg max; None where the target is all of q
    mask: Float[Tensor, "U"] | None = None  # 1 where the label is confident enough to learn from; None: everywhere


def pseudo_labels(
    logits: Float[Tensor, "U K"],
    *,
    targets: Targets,
    temperature: float,
    threshold: float = 0.0,
    key: Int[Tensor, ""],
    item: Int[Tensor, "U"],
) -> Labels:
    """Labels from a teacher's logits. `sampled` inverts the cumulative distribution at one keyed uniform per image."""
    q = torch.softmax(logits.detach() / temperature, -1)
    drawn = None
    if targets == "argmax":
        drawn = q.argmax(-1)
    elif targets == "sampled":
        draw = keyed.uniform(key, item, 1).to(q.dtype)
        drawn = (q.cumsum(-1) < draw).sum(-1).clamp(max=q.shape[-1] - 1)
    mask = None if threshold == 0 else (q.amax(-1) >= threshold).to(q.dtype)
    return Labels(q, drawn, mask)


def cross_entropy(labels: Labels, logits: Float[Tensor, "U K"], *, label_smoothing: float = 0.0) -> Float[Tensor, ""]:
    """mean_i m_i CE((1 - eps) target_i + eps / K, logits_i), CE(q, z) = -sum_c q_c log softmax(z)_c.

    Masked rows (m_i = 0) count in the mean: few confident labels make a small loss, not a loud one.
    """
    target = labels.probabilities if labels.drawn is None else labels.drawn
    if labels.mask is None:
        return F.cross_entropy(logits, target, label_smoothing=label_smoothing)
    rows = F.cross_entropy(logits, target, label_smoothing=label_smoothing, reduction="none")
    return (labels.mask * rows).mean()


def coverage(labels: Labels) -> Float[Tensor, ""]:
    """The share of images whose label is confident enough to learn from."""
    if labels.mask is None:
        return labels.probabilities.new_ones(())
    return labels.mask.mean()
