"""The derivative of each optimiser's update by its gradient, as exact feedback asks for it.

With theta' = theta - F(g), the credit of the labels is -dV/dg = F'(g)^T grad V(theta'). So a rule here is D v = F'(g)^T v.
For SGD and Adam F' is diagonal and its own transpose. LAMB scales Adam's direction u of each parameter by its trust
ratio |theta| / |u|, which depends on the whole of u:

    F(g) = lr (|theta| / |u|) u            u = m / (c1 s) + w theta,   s = sqrt(v / c2) + eps
    dF   = lr (|theta| / |u|) (I - n n^T) A dg         n = u / |u|,    A = du/dg, diagonal
    D v  = lr (|theta| / |u|) A (v - n <n, v>)

one rank-one term a parameter, applied before A, since the transpose turns the order round. Where the ratio is a
constant (no decay, a norm of 0, LAMBC's clip at 1) so is its derivative, and D is lr times that constant times A.

Decoupled weight decay does not enter, but in u. The clip by global norm is the optimiser's (`Optimiser.derivative`).
A rule reads the state as the step left it; each parameter may be a slice of one where the rule is element-wise.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Stepped(NamedTuple):
    """One parameter that an optimiser has stepped: all that the derivative of its update depends on."""

    group: Mapping[str, Any]  # the optimiser's settings for it
    state: Mapping[str, Tensor]  # after the step
    old: Tensor  # its value before
    gradient: Tensor  # as the optimiser saw it, clipped


def of_sgd(stepped: Sequence[Stepped], vectors: Sequence[Tensor]) -> list[Tensor]:
    """lr v, or lr (1 + momentum) v with Nesterov's; one rate and one momentum for all parameters."""
    if not stepped:
        return []
    group = stepped[0].group
    moved = torch._foreach_mul(list(vectors), group["lr"])
    return list(torch._foreach_mul(moved, 1 + group["momentum"]) if group["nesterov"] else moved)


def of_adamw(stepped: Sequence[Stepped], vectors: Sequence[Tensor]) -> list[Tensor]:
    """lr A v; 0 where the second moment is 0."""
    return [_by_gradient(each, v) * each.group["lr"] for each, v in zip(stepped, vectors, strict=True)]


def of_lamb(stepped: Sequence[Stepped], vectors: Sequence[Tensor]) -> list[Tensor]:
    """lr ratio A (v - n <n, v>) where the trust ratio is active, lr A v where it is 1."""
    return [_of_one_lamb(each, v) * each.group["lr"] for each, v in zip(stepped, vectors, strict=True)]


def _of_one_lamb(each: Stepped, v: Tensor) -> Tensor:
    decay = each.group["weight_decay"]
    if decay == 0:  # LAMB adapts only what it decays
        return _by_gradient(each, v)
    adam = _moments(each)
    u = adam.first / adam.s + decay * each.old
    length, size = u.norm(), each.old.norm()
    ratio = size / length.clamp(min=1e-30)
    adapts = (length > 0) & (size > 0)
    if each.group.get("trust_clip", False):
        adapts = adapts & (ratio < 1)
    n = u / length.clamp(min=1e-30)
    projected = v - n * (n * v).sum()
    return _by_gradient(each, torch.where(adapts, ratio * projected, v))


class _Moments(NamedTuple):
    """Adam's moments of one parameter, corrected for their start at 0."""

    first: Tensor  # m / c1
    root: Tensor  # sqrt(v)
    s: Tensor  # sqrt(v / c2) + eps
    c1: Float[Tensor, ""]
    root_c2: Float[Tensor, ""]


def _moments(each: Stepped) -> _Moments:
    """After the step. Its count is kept by the parameter (torch, LAMB) or by the group (apex)."""
    (beta1, beta2), root = each.group["betas"], each.state["exp_avg_sq"].sqrt()
    count = each.state["step"] if "step" in each.state else each.group["step"]
    step = count.reshape(()).to(torch.float64)
    c1, root_c2 = (1 - beta1**step).to(root.dtype), (1 - beta2**step).sqrt().to(root.dtype)
    return _Moments(each.state["exp_avg"] / c1, root, root / root_c2 + each.group["eps"], c1, root_c2)


def _by_gradient(each: Stepped, v: Tensor) -> Tensor:
    """A v, with A the derivative of m / (c1 s) by g: the quotient rule; 0 where the second moment is 0."""
    (beta1, beta2), adam = each.group["betas"], _moments(each)
    by_first = (1 - beta1) / (adam.c1 * adam.s)
    by_second = adam.first / adam.s**2 * (1 - beta2) * each.gradient / (adam.root * adam.root_c2)
    return torch.where(adam.root > 0, v * (by_first - by_second), 0.0)
