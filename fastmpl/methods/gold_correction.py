"""Gold loss correction: labels of which many are wrong, and a few trusted ones that tell how they are confused.

Hendrycks, Mazeika, Wilson and Gimpel, "Using Trusted Data to Train Deep Networks on Labels Corrupted by Severe Noise",
NeurIPS 2018. C_kj, the share of class k that is labelled j, is the mean prediction of a network trained on the noisy
labels over the trusted images of class k. A second network learns the noisy labels through C, and the trusted ones
directly:

    mean_noisy -log (softmax(z) C)_label  +  weight * mean_trusted CE(label, z)

With C the identity this is training on both sets of labels. B noisy and M trusted images, K classes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastmpl.methods.single_network import Labeller, LossParts
from fastmpl.methods.targets import PseudoLabels
from fastmpl.methods.views import Logits, View
from fastmpl_kernels.rows import widen
from fastmpl_kernels.soft_cross_entropy import soft_cross_entropy


class CorruptionEstimate(NamedTuple):
    """How labels are confused, and how many images say so."""

    matrix: Float[Tensor, "K K"]  # float32; row k is a distribution over the labels of class k
    images: Int[Tensor, "K"]  # trusted images of each class


def estimate_corruption(
    judged: Iterable[tuple[Float[Tensor, "M K"], Int[Tensor, "M"]]], classes: int
) -> CorruptionEstimate:
    """C from batches of logits of the network trained on noisy labels, and the trusted labels of the same images.

    A class without an image gets the identity's row: its labels are taken as they are. An estimated share is never 0, so
    that each label has a finite loss. Sums are in float64 and on the host, in the order of the batches.
    """
    sums, images = torch.zeros(classes, classes, dtype=torch.float64), torch.zeros(classes, dtype=torch.int64)
    for logits, labels in judged:
        sums.index_add_(0, labels.cpu(), torch.softmax(logits.detach().cpu().double(), -1))
        images += torch.bincount(labels.cpu(), minlength=classes)
    counts = images.unsqueeze(1)
    means = (sums / counts.clamp(min=1)).float().clamp(min=torch.finfo(torch.float32).tiny)
    return CorruptionEstimate(torch.where(counts > 0, means, torch.eye(classes)), images)


def corrected_cross_entropy(
    logits: Float[Tensor, "B K"], labels: Int[Tensor, "B"], corruption: Float[Tensor, "K K"]
) -> Float[Tensor, ""]:
    """mean -log (softmax(z) C)_label, from logarithms alone: no small probability is rounded to 0 before its logarithm."""
    log_p = torch.log_softmax(widen(logits), -1)
    return -(log_p + corruption.index_select(1, labels).T.log()).logsumexp(-1).mean()


@dataclass(frozen=True, eq=False)  # tensors are not compared by ==
class GoldCorrection:
    """Cross-entropy with the noisy labels through the corruption C, and with the trusted labels as they are."""

    corruption: Float[Tensor, "K K"]
    trusted_weight: float = 1.0
    label_smoothing: float = 0.0  # of the trusted labels: C says how sure the noisy ones are
    labeller: Labeller = "none"
    label_view: View = "labelled"
    graph: tuple[View, ...] = ("labelled", "trusted")

    def label(self, logits: Float[Tensor, "U K"], key: Int[Tensor, ""], item: Int[Tensor, "U"]) -> PseudoLabels:
        raise AssertionError("gold loss correction has no labeller")

    def learn(
        self,
        student: Logits,
        labels: PseudoLabels | None,
        targets: Int[Tensor, "B"],
        trusted_targets: Int[Tensor, "M"] | None,
        consistency_weight: Float[Tensor, ""],
    ) -> LossParts:
        assert trusted_targets is not None, "the data has no trusted images"
        noisy = corrected_cross_entropy(student.of("labelled"), targets, self.corruption)
        trusted = soft_cross_entropy(student.of("trusted"), trusted_targets, label_smoothing=self.label_smoothing)
        nothing = torch.zeros_like(trusted)
        return LossParts(noisy + self.trusted_weight * trusted, trusted, nothing, nothing, nothing)
