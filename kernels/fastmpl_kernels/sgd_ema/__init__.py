"""The optimiser's step and the moving average of the weights, in one pass over memory.

    d = clip_factor * g + weight_decay * p
    b <- momentum * b + d                            heavy ball (Polyak, 1964), as torch.optim.SGD writes it
    p <- p - lr * (d + momentum * b  if nesterov  else  b)
    a <- decay * a + (1 - decay) * p

Seven reads and writes an element, against eight for torch's fused step followed by its average. What varies from step to
step is a 0-D tensor, read on the device. If `found_inf` is not 0, nothing changes. tables.py says what a CUDA graph capture
of these ops asks of its caller: tensors that keep their addresses, and `hold_tables`.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from fastmpl_kernels.sgd_ema.library_ops import global_norm_, inner_product_, sgd_ema_
from fastmpl_kernels.sgd_ema.tables import hold_tables

__all__ = ["global_norm", "hold_tables", "inner_product", "sgd_ema"]


def _check(lists: dict[str, Sequence[Tensor]], count: int) -> None:
    for name, tensors in lists.items():
        if len(tensors) != count:
            raise ValueError(f"sgd_ema got {count} parameters but {len(tensors)} {name}.")


def sgd_ema(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    averages: Sequence[Tensor] | None,
    *,
    lr: Float[Tensor, ""],
    momentum: float,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    clip_factor: Float[Tensor, ""] | None = None,
    found_inf: Float[Tensor, ""] | None = None,
    decay: float | Float[Tensor, ""] = 0.0,
) -> None:
    """Updates params, momentum_buffers and averages in place.

    The lists hold tensors of equal shapes, on one device; a momentum buffer starts as zeros. `averages` may be None.
    `clip_factor` (as from a global norm) multiplies the gradients. `found_inf` other than 0 leaves every tensor as it was.
    Kernels serve float32; other types and mixed layouts take the reference. Raises ValueError for lists of different
    lengths.
    """
    _check({"gradients": grads, "momentum buffers": momentum_buffers}, len(params))
    if averages is not None:
        _check({"averages": averages}, len(params))
    if not params:
        return
    if nesterov and momentum <= 0:
        raise ValueError(f"nesterov needs a momentum above 0, found {momentum}.")
    rate = decay if isinstance(decay, Tensor) else lr.new_full((), decay)
    with torch._C._AutoDispatchBelowAutograd():  # records no gradient, and converts the long lists once
        sgd_ema_(
            list(params), list(grads), list(momentum_buffers), list(averages or ()), lr, clip_factor, found_inf, rate,
            momentum, weight_decay, nesterov,
        )  # fmt: skip
    # Autograd must learn that the parameters changed: a graph that saved them would otherwise use the new ones.
    torch.autograd.graph.increment_version([*params, *momentum_buffers, *(averages or ())])


def global_norm(grads: Sequence[Tensor]) -> Float[Tensor, ""]:
    """The Euclidean norm of all gradients together, summed in float64; a 0-D tensor, read by no host."""
    if not grads:
        raise ValueError("global_norm needs at least one gradient.")
    with torch.no_grad():
        norm: Tensor = global_norm_(list(grads))
    return norm


def inner_product(a: Sequence[Tensor], b: Sequence[Tensor]) -> Float[Tensor, ""]:
    """<a, b> over two lists of tensors of equal shapes and one type, as a 0-D tensor; no gradient flows."""
    if not a or len(a) != len(b):
        raise ValueError(f"inner_product needs two lists of one length, at least 1: found {len(a)} and {len(b)}.")
    with torch.no_grad():
        product: Tensor = inner_product_(list(a), list(b))
    return product
