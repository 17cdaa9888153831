"""timm's ResNet blocks with their sum and last activation in the last norm.

    y = act(norm(x) + shortcut)

timm adds the shortcut in place and calls the activation behind it: two passes over memory in each direction, which the
fused norm takes with its own. Names, parameters and the state dict stay. Blocks with something between the norm and the
sum (attention, stochastic depth) stay as they are, and so do those with a layer in the shortcut: the norm needs the
shortcut in its backward pass. A block's input is kept for its first convolution anyway, and that layer's result is not.
"""

from jaxtyping import Float
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from fastmpl_kernels.batch_norm_act.module import BatchNormAct2d, activation_of


class FusedBasicBlock(BasicBlock):  # type: ignore[misc]
    """Two 3x3 convolutions, and the block's input as the shortcut."""

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C2 H2 W2"]:
        branch = self.conv2(self.aa(self.act1(self.drop_block(self.bn1(self.conv1(x))))))
        result: Tensor = self.bn2(branch, x)
        return result


class FusedBottleneck(Bottleneck):  # type: ignore[misc]
    """A 3x3 convolution between two of 1x1, and the block's input as the shortcut."""

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C2 H2 W2"]:
        branch = self.act1(self.bn1(self.conv1(x)))
        branch = self.conv3(self.aa(self.act2(self.drop_block(self.bn2(self.conv2(branch))))))
        result: Tensor = self.bn3(branch, x)
        return result


KINDS: dict[type[nn.Module], tuple[type[nn.Module], str, str]] = {
    BasicBlock: (FusedBasicBlock, "bn2", "act2"),
    Bottleneck: (FusedBottleneck, "bn3", "act3"),
}


def _is_nothing(module: nn.Module | None) -> bool:
    return module is None or type(module) is nn.Identity


def fuse_residual_blocks(model: nn.Module) -> int:
    """Makes timm's ResNet blocks inside `model` take their sum in their last norm, in place; returns how many.

    Their norms are fused already (`fuse_batch_norm_act`).
    """
    count = 0
    for block in model.modules():
        if type(block) not in KINDS or not all(map(_is_nothing, (block.se, block.drop_path, block.downsample))):  # type: ignore[arg-type]
            continue
        fused, norm_name, act_name = KINDS[type(block)]
        norm, known = getattr(block, norm_name), activation_of(getattr(block, act_name))
        if not isinstance(norm, BatchNormAct2d) or norm.activation != "none" or known is None:
            continue
        norm.activation, norm.slope = known
        setattr(block, act_name, nn.Identity())
        block.__class__ = fused  # what it holds stays; only `forward` is another
        count += 1
    return count
