"""sgd_ema and global_norm, tensor by tensor in plain torch; any floating type, any layout."""

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
