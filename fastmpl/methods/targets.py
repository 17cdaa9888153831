"""What a network learns from: labels that a labeller's logits give, drawn in the pass that learns them.

One fused operation draws the label, masks the row, and gives the student's loss with its gradient; nothing of it is kept
but what crediting and reporting need. U unlabelled images, K classes. Losses are means over the images of this rank.
"""

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from fastmpl_kernels.student_objective import Targets, student_objective

__all__ = ["Labels", "Lesson", "Targets", "learn", "pseudo_labels"]


class Labels(NamedTuple):
    """The labels of U images, as yet undrawn: q = softmax(logits / temperature), and what becomes of it.

    `soft` learns all of q, `argmax` its likeliest class, `sampled` a class drawn by the inverse of the cumulative
    distribution at one keyed uniform number an image. An image counts where max q is at least the threshold.
    """

    logits: Float[Tensor, "U K"]  # the labeller's; no gradient flows through them
    targets: Targets
    temperature: float
    threshold: float
    key: Int[Tensor, ""]
    item: Int[Tensor, "U"]


class Lesson(NamedTuple):
    """The student's loss, and the labels it learnt."""

    loss: Float[Tensor, ""]
    drawn: Int[Tensor, "U"] | None  # the class drawn or the arg max; None where the target was all of q
    confidence: Float[Tensor, ""]  # mean of max q
    coverage: Float[Tensor, ""]  # the share of images that counted


def pseudo_labels(
    logits: Float[Tensor, "U K"],
    *,
    targets: Targets,
    temperature: float,
    threshold: float = 0.0,
    key: Int[Tensor, ""],
    item: Int[Tensor, "U"],
) -> Labels:
    """Labels from a labeller's logits."""
    return Labels(logits.detach(), targets, temperature, threshold, key, item)


def learn(labels: Labels, logits: Float[Tensor, "U K"], *, label_smoothing: float = 0.0) -> Lesson:
    """mean_i m_i CE((1 - eps) target_i + eps / K, logits_i), CE(q, z) = -sum_c q_c log softmax(z)_c.

    Masked images (m_i = 0) count in the mean: few confident labels make a small loss, not a loud one.
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
    return Lesson(taken.loss, drawn, taken.confidence, taken.coverage)
