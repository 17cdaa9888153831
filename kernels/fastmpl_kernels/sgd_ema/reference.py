"""sgd_ema, global_norm and inner_product in plain torch; any floating type, any layout."""

import torch
from torch import Tensor


def sgd_ema(
    params: list[Tensor],
    grads: list[Tensor],
    buffers: list[Tensor],
    averages: list[Tensor],
    lr: Tensor,
    clip_factor: Tensor | None,
    found_inf: Tensor | None,
    decay: Tensor,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
) -> None:
    for i, (p, g, b) in enumerate(zip(params, grads, buffers, strict=True)):
        d = g.to(p.dtype) if clip_factor is None else g.to(p.dtype) * clip_factor
        d = d + weight_decay * p
        velocity = momentum * b + d
        moved = p - lr * (d + momentum * velocity if nesterov else velocity)
        updates = [(b, velocity), (p, moved)]
        if averages:
            updates.append((averages[i], averages[i] + (1 - decay) * (moved - averages[i])))
        for old, new in updates:
            old.copy_(new if found_inf is None else torch.where(found_inf != 0, old, new))


def global_norm(grads: list[Tensor]) -> Tensor:
    squares = [g.double().square().sum() for g in grads]
    return torch.stack(squares).sum().sqrt().to(torch.promote_types(grads[0].dtype, torch.float32))


def inner_product(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """Two copies and one product, whatever the number of tensors: on a GPU their number is what costs."""
    pairs = [_in_memory_order(x, y) for x, y in zip(a, b, strict=True)]
    first, second = (torch.cat([pair[i].reshape(-1) for pair in pairs]) for i in (0, 1))
    return torch.dot(first, second)


def _in_memory_order(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both with their axes as `a` lies in memory: to flatten channels-last weights as they are would copy them twice."""
    if a.dim() == 4 and not a.is_contiguous() and a.is_contiguous(memory_format=torch.channels_last):
        return a.movedim(1, -1), b.movedim(1, -1)
    return a, b
