"""Optimisers as rows: torch's fused kernels, and the derivative of each one's update by its gradient.

The exact feedback needs D = -d theta' / d g, where theta' are the parameters after the step and g is the gradient. For
the rows here D is diagonal (weight decay does not enter), times the Jacobian of the clip by global norm where one is
active. Rates, norms, clip factors and skips stay on the device.
"""

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastmpl.config import NetworkConfig
from fastmpl.learners.average import Average
from fastmpl.learners.protocol import Gradient, Update
from fastmpl.learners.rates import rate
from fastmpl.learners.sgd_ema import SgdEma
from fastmpl_kernels.sgd_ema import global_norm

Tensors = list[Tensor]
Total = Callable[[Float[Tensor, ""]], Float[Tensor, ""]]
Derivative = Callable[[torch.optim.Optimizer, Tensors, Tensors, Tensors], Tensors]


class Row(NamedTuple):
    """How an optimiser is built, what its state starts from, and D v for one parameter."""

    build: Callable[..., torch.optim.Optimizer]
    state: tuple[str, ...]  # tensors of the parameter's shape, starting at 0
    derivative: Derivative  # (optimiser, parameters, their gradients, v) -> D v


def _sgd_derivative(optimiser: torch.optim.Optimizer, parameters: Tensors, gradients: Tensors, v: Tensors) -> Tensors:
    group = optimiser.param_groups[0]
    moved = torch._foreach_mul(v, group["lr"])
    return list(torch._foreach_mul(moved, 1 + group["momentum"])) if group["nesterov"] else list(moved)


def _adamw_derivative(optimiser: torch.optim.Optimizer, parameters: Tensors, gradients: Tensors, v: Tensors) -> Tensors:
    return [_adamw_rule(optimiser, *each) for each in zip(parameters, gradients, v, strict=True)]


def _adamw_rule(optimiser: torch.optim.Optimizer, parameter: Tensor, gradient: Tensor, v: Tensor) -> Tensor:
    """theta' = theta - lr m / (c1 s), s = sqrt(v' / c2) + eps: the quotient rule in g; 0 where v' is 0."""
    group, state = optimiser.param_groups[0], optimiser.state[parameter]
    (beta1, beta2), step = group["betas"], state["step"].to(torch.float64)
    c1, root_c2 = (1 - beta1**step).to(v.dtype), (1 - beta2**step).sqrt().to(v.dtype)
    root = state["exp_avg_sq"].sqrt()
    s = root / root_c2 + group["eps"]
    by_first = (1 - beta1) / s
    by_second = state["exp_avg"] / s**2 * (1 - beta2) * gradient / (root * root_c2)
    return torch.where(root > 0, v * group["lr"] * (by_first - by_second) / c1, 0.0)


def _sgd(groups: list[dict[str, object]], config: NetworkConfig) -> torch.optim.Optimizer:
    nesterov = config.optimiser == "nesterov"
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov, fused=True)


def _sgd_ema(groups: list[dict[str, object]], config: NetworkConfig) -> torch.optim.Optimizer:
    return SgdEma(groups, lr=config.lr, momentum=config.momentum)


def _adamw(groups: list[dict[str, object]], config: NetworkConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.momentum, 0.999), fused=True)


ROWS: Mapping[str, Row] = {
    "sgd": Row(_sgd, ("momentum_buffer",), _sgd_derivative),
    "nesterov": Row(_sgd, ("momentum_buffer",), _sgd_derivative),
    "fastmpl:sgd_ema": Row(_sgd_ema, ("momentum_buffer",), _sgd_derivative),
    "adamw": Row(_adamw, ("exp_avg", "exp_avg_sq"), _adamw_derivative),
}


class Optimiser:
    """Clips by global norm, skips what is not finite, steps at the scheduled rate.

    `parameters` may be a rank's pieces of a network that ranks share. Then `total` sums a tensor over the ranks, and
    `decayed` names the parameters that weight decay shrinks, which their pieces' shapes no longer tell.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        config: NetworkConfig,
        steps: int,
        *,
        total: Total | None = None,
        decayed: Collection[str] | None = None,
    ) -> None:
        self.parameters, self.config, self.steps, self.total = dict(parameters), config, steps, total
        self.row = ROWS[config.optimiser]
        device = next(iter(self.parameters.values())).device
        self.lr = torch.zeros((), device=device)
        names = matrices(self.parameters) if decayed is None else decayed
        decaying = [p for name, p in self.parameters.items() if name in names]
        plain = [p for name, p in self.parameters.items() if name not in names]
        groups = [
            {"params": some, "weight_decay": decay}
            for some, decay in ((decaying, config.weight_decay), (plain, 0.0))
            if some
        ]
        self.inner = self.row.build(groups, config)
        for group in self.inner.param_groups:  # not at construction, where torch reads the tensor
            group["lr"] = self.lr
        for p in self.parameters.values():  # present from the first step on, as a captured graph needs
            self.inner.state[p] = {name: torch.zeros_like(p) for name in self.row.state}
            if config.optimiser == "adamw":
                self.inner.state[p]["step"] = torch.zeros((), device=device)

    def step(self, gradients: Gradient, step: Int[Tensor, ""], *, keep: bool, average: Average | None = None) -> Update:
        """One step on these gradients, which it scales in place; see `Update`. Where the optimiser can, it updates
        the parameters' `average` in the same pass (`averages`).
        """
        listed = list(gradients.values())
        norm = global_norm(listed)
        if self.total is not None:
            norm = self.total(norm.square()).sqrt()
        finite = norm.isfinite()
        if self.config.clip > 0:
            torch._foreach_mul_(listed, (self.config.clip / norm).clamp(max=1.0))
        if average is not None and isinstance(self.inner, SgdEma):
            averages: dict[Tensor, Tensor] = {p: average.tensors[name] for name, p in self.parameters.items()}
            self.inner.average(averages, average.decay_at(step).to(self.lr.dtype))
        old = {name: p.detach().clone() for name, p in self.parameters.items()} if keep else None
        self.lr.copy_(self._rate(step))
        for name, p in self.parameters.items():
            p.grad = gradients[name]
        self.inner.found_inf = (~finite).to(torch.float32)  # type: ignore[attr-defined]  # read by the fused kernels
        self.inner.step()
        self.inner.zero_grad(set_to_none=True)
        return Update(norm, finite.to(norm.dtype), self.lr.clone(), old, gradients if keep else None)

    @property
    def averages(self) -> frozenset[str]:
        """The parameters whose average a step updates itself."""
        return frozenset(self.parameters) if isinstance(self.inner, SgdEma) else frozenset()

    def derivative(self, update: Update, direction: Gradient) -> Gradient:
        """D v of `update`, the last step: first the optimiser's own rule, then the clip's Jacobian.

        With f = c / |g| < 1 active, v -> f (v - ghat <ghat, v>), ghat = g / |g|: f depends on g too. Where `direction`
        holds some of the parameters, the inner product runs over those.
        """
        assert update.gradients is not None, "the update was not kept"
        parameters, gradients = ([held[name] for name in direction] for held in (self.parameters, update.gradients))
        vectors = self.row.derivative(self.inner, parameters, gradients, list(direction.values())) if direction else []
        moved = dict(zip(direction, vectors, strict=True))
        if self.config.clip == 0:
            return moved
        factor = (self.config.clip / update.norm).clamp(max=1.0)
        active = (factor < 1).to(factor.dtype)
        length = factor * update.norm  # of the gradients as they are kept, after the clip
        along = sum_of_products(update.gradients, moved)
        along = (along if self.total is None else self.total(along)) / length.clamp(min=1e-30)
        return {
            name: factor * (v - active * along / length.clamp(min=1e-30) * update.gradients[name])
            for name, v in moved.items()
        }

    def state(self) -> dict[str, Tensor]:
        """Every tensor of the optimiser, by `parameter/name`."""
        return {
            f"{name}/{key}": value for name, p in self.parameters.items() for key, value in self.inner.state[p].items()
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        for key, value in self.state().items():
            value.copy_(state[key])

    def _rate(self, step: Int[Tensor, ""]) -> Float[Tensor, ""]:
        c = self.config
        return rate(step, peak=c.lr, steps=self.steps, warmup=c.warmup, wait=c.wait, schedule=c.schedule)


def sum_of_products(a: Gradient, b: Gradient) -> Float[Tensor, ""]:
    """<a, b> over the parameters of `b`: two copies and one product, whatever the number of parameters."""
    if not b:  # a rank may hold nothing of a direction
        return next(iter(a.values())).new_zeros(())
    return torch.dot(_flat([a[name] for name in b]), _flat(list(b.values())))


def matrices(parameters: Mapping[str, Tensor]) -> set[str]:
    """The names that weight decay shrinks: norms' weights and biases are left out."""
    return {name for name, p in parameters.items() if p.ndim > 1}


def _flat(tensors: Tensors) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
