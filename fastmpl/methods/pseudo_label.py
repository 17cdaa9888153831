"""Pseudo labels and distillation: a teacher that does not learn.

A fixed teacher (another run, a zoo model) or the network itself labels the unlabelled images, with its distribution or
its arg max, above a confidence threshold. Lee, "Pseudo-Label", ICML workshop 2013.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastmpl.methods.single_network import Labeller, LossParts
from fastmpl.methods.targets import PseudoLabels, Targets, make_pseudo_labels, pseudo_label_loss
from fastmpl.methods.views import Logits, View
from fastmpl_kernels.soft_cross_entropy import soft_cross_entropy


@dataclass(frozen=True)
class PseudoLabel:
    """Cross-entropy with pseudo labels, beside the supervised loss unless its weight is 0."""

    targets: Targets
    labeller: Labeller = "self"
    label_view: View = "weak"
    temperature: float = 1.0
    threshold: float = 0.0
    label_smoothing: float = 0.0  # of the supervised loss
    supervised_weight: float = 1.0
    student_label_smoothing: float = 0.0

    @property
    def graph(self) -> tuple[View, ...]:
        return ("labelled", "strong") if self.supervised_weight > 0 else ("strong",)

    def label(self, logits: Float[Tensor, "U K"], key: Int[Tensor, ""], item: Int[Tensor, "U"]) -> PseudoLabels:
        return make_pseudo_labels(
            logits,
            targets=self.targets,
            temperature=self.temperature,
            threshold=self.threshold,
            key=key,
            item=item,
        )

    def learn(
        self,
        student: Logits,
        labels: PseudoLabels | None,
        targets: Int[Tensor, "B"],
        trusted_targets: Int[Tensor, "M"] | None,
        consistency_weight: Float[Tensor, ""],
    ) -> LossParts:
        assert labels is not None
        pseudo = pseudo_label_loss(labels, student.of("strong"), label_smoothing=self.student_label_smoothing)
        shares = pseudo.coverage, pseudo.confidence
        if self.supervised_weight == 0:
            return LossParts(pseudo.loss, torch.zeros_like(pseudo.loss), pseudo.loss, *shares)
        supervised = soft_cross_entropy(student.of("labelled"), targets, label_smoothing=self.label_smoothing)
        return LossParts(pseudo.loss + self.supervised_weight * supervised, supervised, pseudo.loss, *shares)
