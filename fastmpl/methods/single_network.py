"""The protocol of the methods that train one network: all that Meta Pseudo Labels is compared with."""

from typing import Literal, NamedTuple, Protocol

from jaxtyping import Float, Int
from torch import Tensor

from fastmpl.methods.targets import PseudoLabels
from fastmpl.methods.views import Logits, View

Labeller = Literal["none", "self", "fixed"]


class LossParts(NamedTuple):
    """The network's loss and its parts, each 0-D."""

    loss: Float[Tensor, ""]
    supervised: Float[Tensor, ""]
    pseudo: Float[Tensor, ""]  # on the labels that no person gave: consistency, pseudo-label or distillation loss
    coverage: Float[Tensor, ""]
    confidence: Float[Tensor, ""]  # mean largest probability of those labels


class SingleNetworkMethod(Protocol):
    """A method for one network. `labeller` says whose logits of `label_view` become labels."""

    @property
    def labeller(self) -> Labeller: ...
    @property
    def label_view(self) -> View: ...
    @property
    def graph(self) -> tuple[View, ...]: ...  # the views whose logits `learn` needs

    def label(self, logits: Float[Tensor, "U K"], key: Int[Tensor, ""], item: Int[Tensor, "U"]) -> PseudoLabels:
        """Labels from the labeller's logits."""
        ...

    def learn(
        self,
        student: Logits,
        labels: PseudoLabels | None,
        targets: Int[Tensor, "B"],
        trusted_targets: Int[Tensor, "M"] | None,
        consistency_weight: Float[Tensor, ""],
    ) -> LossParts:
        """The loss of the network's logits, by the labels, the targets of the labelled images and those of trusted ones."""
        ...
