"""Pseudo labels and the loss of the network that learns them.

One fused operation draws the labels, masks the rows, and returns the loss with its gradient; only what credit and
metrics need is kept. U unlabelled images, K classes. Losses are means over the images of this rank.
"""

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from fastmpl_kernels.student_objective import Targets, student_objective

__all__ = ["PseudoLabelLoss", "PseudoLabels", "Targets", "make_pseudo_labels", "pseudo_label_loss"]


class PseudoLabels(NamedTuple):
    """The distributions q = softmax(logits / temperature) of U images, and how labels come from them.

    `soft`: the label is q. `argmax`: its likeliest class. `sampled`: a class drawn from q, by the inverse of the
    cumulative distribution at one keyed uniform number an image; it is drawn in `pseudo_label_loss`. An image counts
    where max q is at least the threshold.
    """

    logits: Float[Tensor, "U K"]  # of the network that labels; no gradient flows through them
    targets: Targets
    temperature: float
    threshold: float
    key: Int[Tensor, ""]
    item: Int[Tensor, "U"]


class PseudoLabelLoss(NamedTuple):
    """The loss on pseudo labels, and the labels as they were drawn."""

    loss: Float[Tensor, ""]
    drawn: Int[Tensor, "U"] | None  # the class drawn or the arg max; None where the target was all of q
    confidence: Float[Tensor, ""]  # mean of max q
    coverage: Float[Tensor, ""]  # the share of images that counted


def make_pseudo_labels(
    logits: Float[Tensor, "U K"],
    *,
    targets: Targets,
    temperature: float,
    threshold: float = 0.0,
    key: Int[Tensor, ""],
    item: Int[Tensor, "U"],
) -> PseudoLabels:
    """Labels from the logits of the network that labels."""
    return PseudoLabels(logits.detach(), targets, temperature, threshold, key, item)


def pseudo_label_loss(
    labels: PseudoLabels, logits: Float[Tensor, "U K"], *, label_smoothing: float = 0.0
) -> PseudoLabelLoss:
    """mean_i m_i CE((1 - eps) target_i + eps / K, logits_i), CE(q, z) = -sum_c q_c log softmax(z)_c.

    Masked images (m_i = 0) stay in the denominator of the mean: few confident labels make a small loss.
    """
    taken = student_objective(
        labels.logits,
        logits,
        targets=labels.targets,
        temperature=labels.temperature,
        label_smoothing=label_smoothing,
        threshold=labels.threshold,
        key=labels.key,
        index=labels.item,
    )
    drawn = None if labels.targets == "soft" else taken.label
    return PseudoLabelLoss(taken.loss, drawn, taken.confidence, taken.coverage)
