"""LAMB (You et al., "Large Batch Optimization for Deep Learning", 2020): timm's update, with its count on the device.

timm's optimiser counts its steps on the host and has no way to skip one, so it can be neither captured nor guarded
against a gradient that is not finite. Its update function takes tensors for all that varies; here is the loop around it.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


class Lamb(torch.optim.Optimizer):
    """`found_inf` is set before a step; other than 0 it leaves parameters, moments and counts as they were.

    One parameter after another: what a skip needs is then a copy of one, and not of all. The gradient is clipped by
    whoever calls, over all parameters and ranks, so timm's own clip is off.
    """

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float]) -> None:
        from timm.optim.lamb import lamb  # with all of timm: only where LAMB is asked for

        super().__init__(groups, {"lr": lr, "betas": betas, "eps": 1e-6, "weight_decay": 0.0, "trust_clip": False})
        self._update = lamb
        self.found_inf: Float[Tensor, ""] | None = None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                self._step(p, group)

    def _step(self, p: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[p], group["betas"]
        moved = [p, state["exp_avg"], state["exp_avg_sq"], state["step"]]
        before = [tensor.clone() for tensor in moved]
        state["step"] += 1
        count = state["step"].to(torch.float64)
        self._update(
            [p],
            [p.grad],
            [state["exp_avg"]],
            [state["exp_avg_sq"]],
            clip_grad_norm=None,
            foreach=False,
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            beta3=1 - beta1,
            bias_correction1=1 - beta1**count,
            bias_correction2=1 - beta2**count,
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            decoupled_decay=False,
            max_lr=None,
            trust_clip=group["trust_clip"],
            always_adapt=False,
            caution=False,
        )
        if self.found_inf is not None:
            for tensor, old in zip(moved, before, strict=True):
                tensor.copy_(torch.where(self.found_inf > 0, old, tensor))
