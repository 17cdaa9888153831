"""Optimisers as rows: torch's fused kernels, and the derivative of each one's update by its gradient.

The exact feedback needs D = -d theta' / d g, where theta' are the parameters after the step and g is the gradient. For
the rows here D is diagonal (weight decay does not enter), times the Jacobian of the clip by global norm where one is
active. Rates, norms, clip factors and skips stay on the device.
"""

from collections.abc import Callable, Mapping
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
    """theta' = theta - lr m / (c1 s), s = sqrt(v' / c2) + eps: the quotient rule in g; 0 where v' is 0."""
    group, states = optimiser.param_groups[0], [optimiser.state[p] for p in parameters]
    (beta1, beta2), step = group["betas"], states[0]["step"].to(torch.float64)  # the same for all
    c1, root_c2 = (1 - beta1**step).to(v[0].dtype), (1 - beta2**step).sqrt().to(v[0].dtype)
    root = torch._foreach_sqrt([state["exp_avg_sq"] for state in states])
    moves = torch._foreach_sign(root)  # 0 where v' is 0, else 1
    torch._foreach_clamp_min_(root, torch.finfo(v[0].dtype).tiny)
    s = torch._foreach_add(torch._foreach_div(root, root_c2), group["eps"])
    by_first = torch._foreach_mul(torch._foreach_reciprocal(s), 1 - beta1)
    by_second = torch._foreach_div(torch._foreach_div([state["exp_avg"] for state in states], s), s)
    torch._foreach_mul_(by_second, torch._foreach_div(gradients, root))
    torch._foreach_mul_(by_second, (1 - beta2) / root_c2)
    moved = torch._foreach_mul(torch._foreach_sub(by_first, by_second), v)
    torch._foreach_mul_(moved, moves)
    torch._foreach_mul_(moved, group["lr"] / c1)
    return list(moved)


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
    """Clips by global norm, skips what is not finite, steps at the scheduled rate."""

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], config: NetworkConfig, steps: int) -> None:
        self.parameters, self.config, self.steps = dict(parameters), config, steps
        self.row = ROWS[config.optimiser]
        device = next(iter(self.parameters.values())).device
        self.lr = torch.zeros((), device=device)
        # norms' weights and biases are not decayed
        decayed = [p for p in self.parameters.values() if p.ndim > 1]
        plain = [p for p in self.parameters.values() if p.ndim <= 1]
        groups = [
            {"params": some, "weight_decay": decay}
            for some, decay in ((decayed, config.weight_decay), (plain, 0.0))
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
        finite = norm.isfinite()
        if self.config.clip > 0:
            torch._foreach_mul_(listed, (self.config.clip / norm).clamp(max=1.0))
        if average is not None and isinstance(self.inner, SgdEma):
            averages: dict[Tensor, Tensor] = {p: average.tensors[name] for name, p in self.parameters.items()}
            self.inner.average(averages, average.decay_at(step).to(self.lr.dtype))
        old = dict(zip(self.parameters, self._copies(), strict=True)) if keep else None
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
        vectors = self.row.derivative(self.inner, parameters, gradients, list(direction.values()))
        moved = dict(zip(direction, vectors, strict=True))
        if self.config.clip == 0:
            return moved
        factor = (self.config.clip / update.norm).clamp(max=1.0)
        active = (factor < 1).to(factor.dtype)
        length = factor * update.norm  # of the gradients as they are kept, after the clip
        along = sum_of_products({name: update.gradients[name] for name in moved}, moved) / length.clamp(min=1e-30)
        radial = torch._foreach_mul(gradients, active * along / length.clamp(min=1e-30))
        return dict(zip(moved, torch._foreach_mul(torch._foreach_sub(vectors, radial), factor), strict=True))

    def state(self) -> dict[str, Tensor]:
        """Every tensor of the optimiser, by `parameter/name`."""
        return {
            f"{name}/{key}": value for name, p in self.parameters.items() for key, value in self.inner.state[p].items()
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        for key, value in self.state().items():
            value.copy_(state[key])

    def _copies(self) -> Tensors:
        return list(torch._foreach_clone([p.detach() for p in self.parameters.values()]))

    def _rate(self, step: Int[Tensor, ""]) -> Float[Tensor, ""]:
        c = self.config
        return rate(step, peak=c.lr, steps=self.steps, warmup=c.warmup, wait=c.wait, schedule=c.schedule)


def sum_of_products(a: Gradient, b: Gradient) -> Float[Tensor, ""]:
    """<a, b> over the parameters of `b`: two copies and one product, whatever the number of parameters."""
    pairs = [_in_memory_order(a[name], value) for name, value in b.items()]
    first, second = (torch.cat([pair[i].reshape(-1) for pair in pairs]) for i in (0, 1))
    return torch.dot(first, second)


def _in_memory_order(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both with their axes as `a` lies in memory: to flatten channels-last weights as they are would copy them twice."""
    if a.dim() == 4 and not a.is_contiguous() and a.is_contiguous(memory_format=torch.channels_last):
        return a.movedim(1, -1), b.movedim(1, -1)
    return a, b
