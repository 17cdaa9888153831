"""Multi-layer perceptrons, for images (flattened) and for points in the plane.

No normalisation: no example sees another. `depth` counts linear layers: 784-128-128-10 has depth 3 and width 128.
"""

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from fastmpl.models.stochastic import KeyedDropout

Activation = Literal["relu", "tanh"]


class Perceptron(nn.Module):
    """`depth` linear layers with ReLU, or tanh, between them; dropout before the last.

    ReLU: He initialisation. tanh: parameters uniform in (-1, 1), for networks of a few units on points in the plane.
    """

    def __init__(
        self, inputs: int, width: int, depth: int, classes: int, dropout: float, activation: Activation = "relu"
    ) -> None:
        super().__init__()
        hidden: list[nn.Module] = []
        for _ in range(depth - 1):
            hidden.append(nn.Sequential(nn.Linear(inputs, width), nn.ReLU() if activation == "relu" else nn.Tanh()))
            inputs = width
        self.blocks = nn.Sequential(*hidden)
        self.dropout = KeyedDropout(dropout)
        self.classifier = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Linear) and activation == "tanh":
                nn.init.uniform_(module.weight, -1.0, 1.0)
                nn.init.uniform_(module.bias, -1.0, 1.0)
            elif isinstance(module, nn.Linear) and module is not self.classifier:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def forward(self, inputs: Float[Tensor, "N *image"]) -> Float[Tensor, "N K"]:
        logits: Tensor = self.classifier(self.dropout(self.blocks(inputs.flatten(1))))
        return logits
