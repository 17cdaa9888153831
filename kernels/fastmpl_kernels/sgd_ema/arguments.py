"""What one step of sgd_ema takes, as its implementations pass it on."""

from typing import NamedTuple

from torch import Tensor


class SgdArguments(NamedTuple):
    """Lists of parameters, gradients, momentum buffers and averages (empty: none are kept) of equal shapes; what may change
    from step to step as 0-D tensors; what does not as numbers."""

    params: list[Tensor]
    grads: list[Tensor]
    buffers: list[Tensor]
    averages: list[Tensor]
    lr: Tensor
    clip_factor: Tensor | None
    found_inf: Tensor | None
    decay: Tensor
    momentum: float
    weight_decay: float
    nesterov: bool

    def lists(self) -> list[list[Tensor]]:
        """The lists that a kernel walks."""
        lists = [self.params, self.grads, self.buffers]
        return [*lists, self.averages] if self.averages else lists
