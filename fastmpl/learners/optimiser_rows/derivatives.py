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


class SteppedParameter(NamedTuple):
    """A parameter after a step of its optimiser: all that the derivative of its update depends on."""

    group: Mapping[str, Any]  # the optimiser's settings for it
    state: Mapping[str, Tensor]  # after the step
    old: Tensor  # its value before
    gradient: Tensor  # as the optimiser saw it, clipped


def differentiate_sgd(stepped: Sequence[SteppedParameter], vectors: Sequence[Tensor]) -> list[Tensor]:
    """lr v, or lr (1 + momentum) v with Nesterov's; one momentum for all parameters."""
    if not stepped:
        return []
    group = stepped[0].group
    moved = _times_rate(stepped, vectors)
    return list(torch._foreach_mul(moved, 1 + group["momentum"]) if group["nesterov"] else moved)


def differentiate_adamw(stepped: Sequence[SteppedParameter], vectors: Sequence[Tensor]) -> list[Tensor]:
    """lr A v; 0 where the second moment is 0."""
    if not stepped:
        return []
    return _times_rate(stepped, _by_gradient(stepped, vectors))


def differentiate_lamb(stepped: Sequence[SteppedParameter], vectors: Sequence[Tensor]) -> list[Tensor]:
    """lr ratio A (v - n <n, v>) where the trust ratio is active, lr A v where it is 1."""
    if not stepped:
        return []
    counts = _Counts.of(stepped)
    scaled = [_by_trust(each, v, counts) for each, v in zip(stepped, vectors, strict=True)]
    return _times_rate(stepped, _by_gradient(stepped, scaled))


def _times_rate(stepped: Sequence[SteppedParameter], vectors: Sequence[Tensor]) -> list[Tensor]:
    """Each vector times the rate of its own parameter, which layers may share: one operation for each rate."""
    places: dict[int, list[int]] = {}
    for place, each in enumerate(stepped):
        places.setdefault(id(each.group["lr"]), []).append(place)  # one tensor for each rate (`Optimiser`)
    moved = list(vectors)
    for some in places.values():
        scaled = torch._foreach_mul([vectors[place] for place in some], stepped[some[0]].group["lr"])
        for place, vector in zip(some, scaled, strict=True):
            moved[place] = vector
    return moved


class _Counts(NamedTuple):
    """What corrects Adam's moments for their start at 0: c1 = 1 - beta1^t, and the root of c2 = 1 - beta2^t."""

    c1: Float[Tensor, ""]
    root_c2: Float[Tensor, ""]

    @classmethod
    def of(cls, stepped: Sequence[SteppedParameter]) -> "_Counts":
        """The same for all parameters; the steps are counted by each of them (torch, LAMB) or by the group (apex)."""
        (beta1, beta2), state = stepped[0].group["betas"], stepped[0].state
        count = state["step"] if "step" in state else stepped[0].group["step"]
        step, dtype = count.reshape(()).to(torch.float64), state["exp_avg"].dtype
        return cls((1 - beta1**step).to(dtype), (1 - beta2**step).sqrt().to(dtype))


def _by_trust(each: SteppedParameter, v: Tensor, counts: _Counts) -> Tensor:
    """ratio (v - n <n, v>), or v where the trust ratio is 1."""
    if each.group["weight_decay"] == 0:  # LAMB adapts only what it decays
        return v
    u = _direction(each, counts)
    length, size = u.norm(), each.old.norm()
    ratio = size / length.clamp(min=1e-30)
    adapts = (length > 0) & (size > 0)
    if each.group.get("trust_clip", False):
        adapts = adapts & (ratio < 1)
    n = u / length.clamp(min=1e-30)
    projected = v - n * (n * v).sum()
    return torch.where(adapts, ratio * projected, v)


def _direction(each: SteppedParameter, counts: _Counts) -> Tensor:
    """u of LAMB."""
    s = each.state["exp_avg_sq"].sqrt() / counts.root_c2 + each.group["eps"]
    u: Tensor = each.state["exp_avg"] / (counts.c1 * s) + each.group["weight_decay"] * each.old
    return u


def _by_gradient(stepped: Sequence[SteppedParameter], vectors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """A v, with A the derivative of m / (c1 s) by g: the quotient rule; 0 where the second moment is 0."""
    group, counts = stepped[0].group, _Counts.of(stepped)
    beta1, beta2 = group["betas"]
    root = torch._foreach_sqrt([each.state["exp_avg_sq"] for each in stepped])
    moves = torch._foreach_sign(root)  # 0 where the second moment is 0, else 1
    torch._foreach_clamp_min_(root, torch.finfo(root[0].dtype).tiny)
    s = torch._foreach_add(torch._foreach_div(root, counts.root_c2), group["eps"])
    by_first = torch._foreach_mul(torch._foreach_reciprocal(s), 1 - beta1)
    by_second = torch._foreach_div(torch._foreach_div([each.state["exp_avg"] for each in stepped], s), s)
    torch._foreach_mul_(by_second, torch._foreach_div([each.gradient for each in stepped], root))
    torch._foreach_mul_(by_second, (1 - beta2) / counts.root_c2)
    moved = torch._foreach_mul(torch._foreach_sub(by_first, by_second), list(vectors))
    torch._foreach_mul_(moved, moves)
    return torch._foreach_div(moved, counts.c1)
