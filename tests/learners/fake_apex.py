"""A stand-in for NVIDIA apex, which needs a GPU and a compiler: its optimisers' interface, and their way with tensors.

Written from apex's published behaviour: the constructors' arguments, where state and counts are kept, what is taken as
a number (and so read from a tensor), and that FusedLAMB leaves its update in the gradients. The arithmetic is torch's.
"""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from fastmpl.learners.optimiser_rows import apex


def number(value: Any) -> float:
    """What a C++ function that takes a float is given: apex's bindings would read a tensor, which is to be seen here."""
    assert isinstance(value, float), f"a {type(value).__name__} where apex takes a number"
    return value


class FusedSGD(torch.optim.Optimizer):
    def __init__(
        self, params: Any, lr: float, momentum: float = 0.0, dampening: float = 0.0, weight_decay: float = 0.0,
        nesterov: bool = False, wd_after_momentum: bool = False, materialize_master_grads: bool = True,
        set_grad_none: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(
            params, dict(lr=lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay, nesterov=nesterov)
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                buffer = self.state[p]["momentum_buffer"]
                decayed = p.grad + group["weight_decay"] * p
                buffer.mul_(group["momentum"]).add_(decayed, alpha=1 - group["dampening"])
                p.sub_(buffer, alpha=number(group["lr"]))


class FusedAdam(torch.optim.Optimizer):
    def __init__(
        self, params: Any, lr: float = 1e-3, bias_correction: bool = True, betas: Any = (0.9, 0.999), eps: float = 1e-8,
        adam_w_mode: bool = True, weight_decay: float = 0.0, amsgrad: bool = False, set_grad_none: bool = True,
        capturable: bool = False, master_weights: bool = False,
    ) -> None:  # fmt: skip
        assert capturable and adam_w_mode
        super().__init__(params, dict(lr=torch.tensor(lr), betas=betas, eps=eps, weight_decay=weight_decay))
        self._dummy_overflow_buf = torch.zeros(1, dtype=torch.int32)

    def zero_grad(self) -> None:  # type: ignore[override]  # as apex's: without an argument
        raise AssertionError("apex's zero_grad takes no set_to_none")

    @torch.no_grad()
    def step(self, closure: None = None, grads: None = None, grad_scaler: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            assert isinstance(group["lr"], torch.Tensor) and group["step"].dtype == torch.int32
            group["step"] += (self._dummy_overflow_buf != 1).to(torch.int32)
            (b1, b2), t = group["betas"], group["step"].double().squeeze()
            for p in group["params"]:
                state = self.state[p]
                state["exp_avg"].lerp_(p.grad, 1 - b1)
                state["exp_avg_sq"].lerp_(p.grad.square(), 1 - b2)
                s = (state["exp_avg_sq"] / (1 - b2**t)).sqrt() + group["eps"]
                p.sub_(group["lr"] * (state["exp_avg"] / (1 - b1**t) / s + group["weight_decay"] * p))


class FusedLAMB(torch.optim.Optimizer):
    def __init__(
        self, params: Any, lr: float = 1e-3, bias_correction: bool = True, betas: Any = (0.9, 0.999), eps: float = 1e-6,
        weight_decay: float = 0.01, amsgrad: bool = False, adam_w_mode: bool = True, grad_averaging: bool = True,
        set_grad_none: bool = True, max_grad_norm: float = 1.0, use_nvlamb: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))
        self.defaults["max_grad_norm"] = max_grad_norm

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        every = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm, most = torch.stack([g.norm() for g in every]).norm(), number(self.defaults["max_grad_norm"])
        scale = float(norm / most) if norm > most else 1.0
        for group in self.param_groups:
            group["step"] = group["step"] + 1 if "step" in group else 1
            assert type(group["step"]) is int
            (b1, b2), decay = group["betas"], number(group["weight_decay"])
            for p in group["params"]:
                state, gradient = self.state[p], p.grad / scale
                state["exp_avg"].lerp_(gradient, 1 - b1)
                state["exp_avg_sq"].lerp_(gradient.square(), 1 - b2)
                s = (state["exp_avg_sq"] / (1 - b2 ** group["step"])).sqrt() + group["eps"]
                update = state["exp_avg"] / (1 - b1 ** group["step"]) / s + decay * p
                ratio = p.norm() / update.norm() if decay and p.norm() > 0 and update.norm() > 0 else 1.0
                p.grad.copy_(update)  # apex keeps the update where the gradient was
                p.sub_(update * ratio * number(group["lr"]))


def installed(patch: pytest.MonkeyPatch, folder: Path, *, amp_c: bool = True, optimizers: bool = True) -> None:
    """An apex to import: a folder on the path for what looks for it, modules for what imports it."""
    (folder / "apex" / ("optimizers" if optimizers else "models")).mkdir(parents=True)
    (folder / "apex/__init__.py").write_text("raise AssertionError('looking must not import')\n")
    if amp_c:
        (folder / "amp_C.py").touch()
    patch.syspath_prepend(str(folder))
    patch.setattr(apex, "_has_device", lambda: True)
    if optimizers and amp_c:
        module: Any = ModuleType("apex.optimizers")
        module.FusedSGD, module.FusedAdam, module.FusedLAMB = FusedSGD, FusedAdam, FusedLAMB
        patch.setitem(sys.modules, "apex.optimizers", module)
