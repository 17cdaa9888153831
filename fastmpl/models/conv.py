"""A small convolutional network for images of 8 to 28 pixels: a step of it takes milliseconds on one core.

It stands where a test, a demonstration or an ablation over many seeds needs convolutions and batch statistics, and not
accuracy. Strides instead of pooling: fewer operations, and smooth enough for forward mode.
"""

from typing import Final

from jaxtyping import Float
from torch import Tensor, nn

from fastmpl.models.norms import Norm, norm_act
from fastmpl.models.stochastic import KeyedDropout


class ConvNet(nn.Module):
    """Three of (3x3 convolution, norm, leaky ReLU): width/4, width/2, width channels, strides 1, 2, 2; mean; linear."""

    norms_read_convolutions: Final = True  # see fastmpl.learners.kept_inputs

    def __init__(self, width: int, classes: int, channels: int, dropout: float, norm: Norm) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = channels
        for outputs, stride in ((max(4, width // 4), 1), (max(4, width // 2), 2), (width, 2)):
            convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
            nn.init.kaiming_normal_(convolution.weight, a=0.1, mode="fan_out", nonlinearity="leaky_relu")
            layers.append(nn.Sequential(convolution, norm_act(outputs, norm)))
            inputs = outputs
        self.blocks = nn.Sequential(*layers)
        self.dropout = KeyedDropout(dropout)
        self.classifier = nn.Linear(width, classes)

    def forward(self, images: Float[Tensor, "N C H W"]) -> Float[Tensor, "N K"]:
        logits: Tensor = self.classifier(self.dropout(self.blocks(images).mean((2, 3))))
        return logits
