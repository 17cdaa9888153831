"""Wide residual networks WRN-D-k (Zagoruyko and Komodakis, "Wide Residual Networks", 2016), as semi-supervised work
uses them: pre-activation blocks, leaky ReLU of slope 0.1, dropout before the classifier alone (the paper's dropout
inside blocks is left out). Strides 1, 2, 2 and a global average: any image of 8 to 64 pixels.
"""

from typing import Final

from jaxtyping import Float
from torch import Tensor, nn

from fastmpl.models.errors import ModelError
from fastmpl.models.norms import Norm, PendingSum, norm_act, norm_of_sum
from fastmpl.models.stochastic import KeyedDropout

SLOPE = 0.1


def _norm(channels: int, norm: Norm) -> nn.Module:
    return norm_act(channels, norm, slope=SLOPE, eps=1e-3, momentum=0.01)


class Block(nn.Module):
    """norm, act, 3x3, norm, act, 3x3, beside the identity; where the shape changes, beside a 1x1 of the activation."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.norm1 = _norm(inputs, norm)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm2 = _norm(outputs, norm)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        reshapes = inputs != outputs or stride != 1
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if reshapes else None

    def forward(self, x: Tensor | PendingSum) -> Tensor | PendingSum:
        """[N, C, H, W] -> [N, C2, H2, W2]; in training the next norm takes the block's sum."""
        x, activated = norm_of_sum(self.norm1, x)
        branch: Tensor = self.conv2(self.norm2(self.conv1(activated)))
        pending = PendingSum(branch, x if self.shortcut is None else self.shortcut(activated))
        return pending if self.training else pending.take()


class WideResNet(nn.Module):
    """WRN-`depth`-`factor`: a stem of 16 channels and three groups of (depth - 4) / 6 blocks, 16k, 32k, 64k wide."""

    norms_read_convolutions: Final = True  # alone, or in a sum: see fastmpl.learners.kept_inputs

    def __init__(self, depth: int, factor: int, classes: int, channels: int, dropout: float, norm: Norm) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6 or factor < 1:
            raise ModelError(
                f'model = "wrn_{depth}_{factor}": the depth must be 10, 16, 22, 28, ... (6n + 4) and the factor at '
                f'least 1, as in "wrn_28_2".'
            )
        self.stem = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        blocks: list[nn.Module] = []
        inputs = 16
        for width, stride in ((16 * factor, 1), (32 * factor, 2), (64 * factor, 2)):
            for i in range((depth - 4) // 6):
                blocks.append(Block(inputs, width, stride if i == 0 else 1, norm))
                inputs = width
        self.blocks = nn.Sequential(*blocks)
        self.norm = _norm(inputs, norm)
        self.dropout = KeyedDropout(dropout)
        self.classifier = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=SLOPE, mode="fan_out", nonlinearity="leaky_relu")
        nn.init.xavier_normal_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Float[Tensor, "N C H W"]) -> Float[Tensor, "N K"]:
        _, activated = norm_of_sum(self.norm, self.blocks(self.stem(images)))
        features = activated.mean((2, 3))
        logits: Tensor = self.classifier(self.dropout(features))
        return logits
