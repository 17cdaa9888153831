"""Nesterov SGD and the moving average of the weights in one pass over memory (fastmpl_kernels.sgd_ema), as an optimiser.

It reads each parameter once for both. The owner of the average (fastmpl.learners.average) lends its tensors for a step.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fastmpl_kernels.sgd_ema import sgd_ema


class SgdEma(torch.optim.Optimizer):
    """torch.optim.SGD's update. `found_inf` is set before a step, and the averages are lent."""

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, momentum: float) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": 0.0, "nesterov": momentum > 0})
        self.found_inf: Float[Tensor, ""] | None = None
        self._averages: Mapping[Tensor, Tensor] | None = None
        self._decay: float | Float[Tensor, ""] = 0.0

    def lend_averages(self, averages: Mapping[Tensor, Tensor], decay: Float[Tensor, ""]) -> None:
        """The next step also updates these: the moving average of each parameter."""
        self._averages, self._decay = averages, decay

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            parameters: list[Tensor] = group["params"]
            sgd_ema(
                parameters,
                [p.grad for p in parameters if p.grad is not None],
                [self.state[p]["momentum_buffer"] for p in parameters],
                None if self._averages is None else [self._averages[p] for p in parameters],
                lr=group["lr"],
                momentum=group["momentum"],
                weight_decay=group["weight_decay"],
                nesterov=group["nesterov"],
                found_inf=self.found_inf,
                decay=self._decay,
            )
        self._averages, self._decay = None, 0.0
