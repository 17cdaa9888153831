"""Unsupervised data augmentation: supervised learning plus consistency between two views of unlabelled images.

Xie, Dai, Hovy, Luong and Le, "Unsupervised Data Augmentation for Consistency Training", NeurIPS 2020. It is also the
teacher of Meta Pseudo Labels without its feedback.
"""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from fastmpl.methods.single_network import Labeller, LossParts
from fastmpl.methods.targets import PseudoLabels, make_pseudo_labels, pseudo_label_loss
from fastmpl.methods.views import Logits, View
from fastmpl_kernels.soft_cross_entropy import soft_cross_entropy


@dataclass(frozen=True)
class Consistency:
    """The sharpened and masked prediction on the weak view, as the target of the strong view."""

    temperature: float = 0.7
    threshold: float = 0.6

    def label(self, weak: Float[Tensor, "U K"], key: Int[Tensor, ""], item: Int[Tensor, "U"]) -> PseudoLabels:
        """softmax(T(u_w) / tau_u), where it is confident."""
        return make_pseudo_labels(
            weak, targets="soft", temperature=self.temperature, threshold=self.threshold, key=key, item=item
        )


@dataclass(frozen=True)
class Uda:
    """One network that learns from true labels and from its own predictions on weak views."""

    consistency: Consistency
    label_smoothing: float = 0.0
    supervised_weight: float = 1.0
    labeller: Labeller = "self"
    label_view: View = "weak"
    graph: tuple[View, ...] = ("labelled", "strong")

    def label(self, logits: Float[Tensor, "U K"], key: Int[Tensor, ""], item: Int[Tensor, "U"]) -> PseudoLabels:
        return self.consistency.label(logits, key, item)

    def learn(
        self,
        student: Logits,
        labels: PseudoLabels | None,
        targets: Int[Tensor, "B"],
        trusted_targets: Int[Tensor, "M"] | None,
        consistency_weight: Float[Tensor, ""],
    ) -> LossParts:
        assert labels is not None
        supervised = soft_cross_entropy(student.of("labelled"), targets, label_smoothing=self.label_smoothing)
        pseudo = pseudo_label_loss(labels, student.of("strong"))
        loss = self.supervised_weight * supervised + consistency_weight * pseudo.loss
        return LossParts(loss, supervised, pseudo.loss, pseudo.coverage, pseudo.confidence)
