"""The exponential moving average of a network, for evaluation (Tarvainen and Valpola 2017 for its use here)."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Average:
    """avg <- d avg + (1 - d) theta, with d = min(decay, (1 + t) / (10 + t)): the random start is soon forgotten.

    Running statistics are averaged with the parameters; integer buffers are copied.
    """

    def __init__(self, tensors: Mapping[str, Tensor], decay: float) -> None:
        """tensors: a state dict, or a rank's pieces of one; copied."""
        self.decay = decay
        self.tensors = {name: value.detach().clone() for name, value in tensors.items()}
        self._floating = [name for name, value in self.tensors.items() if value.is_floating_point()]
        self._rest = [name for name, value in self.tensors.items() if not value.is_floating_point()]

    def decay_at(self, step: Int[Tensor, ""]) -> Float[Tensor, ""]:
        """d of this step."""
        t = step.to(torch.float64)
        return torch.clamp((1 + t) / (10 + t), max=self.decay)

    @torch.no_grad()
    def update(
        self,
        current: Mapping[str, Tensor],
        step: Int[Tensor, ""],
        applied: Float[Tensor, ""],
        *,
        done: frozenset[str] = frozenset(),
    ) -> None:
        """After a step; `applied` = 0 leaves the average as it was. `done`: what the step itself has averaged."""
        names = [name for name in self._floating if name not in done]
        if names:
            weight = (1 - self.decay_at(step)) * applied
            mine = [self.tensors[name] for name in names]
            # one weight per tensor: a single 0-D weight would be read by the host
            kinds = [(tensor.device, tensor.dtype) for tensor in mine]
            weights = {(device, dtype): weight.to(device, dtype) for device, dtype in set(kinds)}
            torch._foreach_lerp_(mine, [current[name] for name in names], [weights[kind] for kind in kinds])
        if self._rest:
            torch._foreach_copy_([self.tensors[name] for name in self._rest], [current[name] for name in self._rest])
