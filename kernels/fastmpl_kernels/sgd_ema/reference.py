"""sgd_ema, global_norm and inner_product in plain torch; any floating type, any layout."""

import torch
from torch import Tensor

from fastmpl_kernels.sgd_ema.arguments import SgdArguments


def sgd_ema(step: SgdArguments) -> None:
    for i, (p, g, b) in enumerate(zip(step.params, step.grads, step.buffers, strict=True)):
        d = g.to(p.dtype) if step.clip_factor is None else g.to(p.dtype) * step.clip_factor
        d = d + step.weight_decay * p
        velocity = step.momentum * b + d
        moved = p - step.lr * (d + step.momentum * velocity if step.nesterov else velocity)
        updates = [(b, velocity), (p, moved)]
        if step.averages:
            average = step.averages[i]
            updates.append((average, average + (1 - step.decay) * (moved - average)))
        for old, new in updates:
            old.copy_(new if step.found_inf is None else torch.where(step.found_inf != 0, old, new))


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
