"""Supervised learning from the labelled images alone, with label smoothing."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastmpl.methods.single_network import Labeller, LossParts
from fastmpl.methods.targets import PseudoLabels
from fastmpl.methods.views import Logits, View
from fastmpl_kernels.soft_cross_entropy import soft_cross_entropy


@dataclass(frozen=True)
class Supervised:
    """Cross-entropy with the true labels (Szegedy et al. 2016 for the smoothing)."""

    label_smoothing: float = 0.0
    labeller: Labeller = "none"
    label_view: View = "labelled"
    graph: tuple[View, ...] = ("labelled",)

    def label(self, logits: Float[Tensor, "U K"], key: Int[Tensor, ""], item: Int[Tensor, "U"]) -> PseudoLabels:
        raise AssertionError("supervised learning has no labeller")

    def learn(
        self,
        student: Logits,
        labels: PseudoLabels | None,
        targets: Int[Tensor, "B"],
        trusted_targets: Int[Tensor, "M"] | None,
        consistency_weight: Float[Tensor, ""],
    ) -> LossParts:
        loss = soft_cross_entropy(student.of("labelled"), targets, label_smoothing=self.label_smoothing)
        nothing = torch.zeros_like(loss)
        return LossParts(loss, loss, nothing, nothing, nothing)
