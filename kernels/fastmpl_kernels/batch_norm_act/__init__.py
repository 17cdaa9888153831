"""Training-mode batch norm, an optional residual and an activation, as one op with a backward and a forward mode.

    z = weight (x - mean) / sqrt(var + eps) + bias + residual,    y = act(z)

with the mean and the biased variance over all dimensions but channels (Ioffe and Szegedy, 2015). The backward pass keeps x
and one row of statistics a channel, and computes z again. Arithmetic is in float32, sums in float64; y has x's type.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fastmpl_kernels import dispatch
from fastmpl_kernels.batch_norm_act.function import (
    BatchNormAct,
    RecordedBatchNorm,
    as_dense,
    compute_dual,
    is_dense,
    train,
    unpack_duals,
    wants_graph,
)
from fastmpl_kernels.batch_norm_act.implementations import OP, backend_of, kernels_for
from fastmpl_kernels.batch_norm_act.reference import activate, keep_finite, move_running, reference
from fastmpl_kernels.batch_norm_act.settings import NAMES, NUMBER, Activation, Norm, Reduce, Running, Settings
from fastmpl_kernels.ops import is_functorch_active, is_plain, is_transformed

__all__ = ["Activation", "Reduce", "batch_norm_act"]


def check(x: Tensor, activation: str, residual: Tensor | None, reduce: Reduce | None) -> None:
    """Raises ValueError for what batch_norm_act cannot do."""
    if activation not in NUMBER:
        raise ValueError(f"activation = {activation!r}: choose one of {', '.join(NUMBER)}.")
    if x.dim() < 2:
        raise ValueError(f"batch_norm_act needs [N, C, ...], found a tensor of shape {tuple(x.shape)}.")
    if x.numel() // max(x.shape[1], 1) < (2 if reduce is None else 1):
        raise ValueError(f"batch_norm_act needs more than one value per channel, found shape {tuple(x.shape)}.")
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"the residual's shape {tuple(residual.shape)} is not the input's, {tuple(x.shape)}.")


def convert(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in that type."""
    return x if x.dtype == dtype else x.to(dtype)  # a conversion that does nothing still costs a microsecond


def batch_norm_act(
    x: Float[Tensor, "N C *pixels"],
    weight: Float[Tensor, "C"] | None,
    bias: Float[Tensor, "C"] | None,
    *,
    running_mean: Float[Tensor, "C"] | None = None,
    running_var: Float[Tensor, "C"] | None = None,
    update_running: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: Activation = "leaky_relu",
    slope: float = 0.01,
    residual: Float[Tensor, "N C *pixels"] | None = None,
    reduce: Reduce | None = None,
) -> Float[Tensor, "N C *pixels"]:
    """act(batch_norm(x) + residual) with the statistics of the batch.

    x is float32 or bfloat16 (float16 and float64 take the reference) of any layout. The kernels serve channels-last and
    [N, C]; a contiguous NCHW input takes torch's own batch norm and keeps its layout. `weight` and `bias` may be None
    (1 and 0). `slope` is the leaky ReLU's. With `update_running` the call moves `running_mean` and `running_var`, where
    given, by `momentum` in place. `reduce` sums one vector over ranks (Reduce): statistics and input gradients are then
    those of the whole batch, parameter gradients those of this rank. Raises ValueError for an unknown activation, for
    one value per channel, and for a residual of another shape.
    """
    check(x, activation, residual, reduce)
    parameters = torch.float64 if x.dtype == torch.float64 else torch.float32
    w = x.new_ones(x.shape[1], dtype=parameters) if weight is None else convert(weight, parameters)
    b = x.new_zeros(x.shape[1], dtype=parameters) if bias is None else convert(bias, parameters)
    r = None if residual is None else convert(residual, x.dtype)
    running = (running_mean, running_var) if update_running else (None, None)
    number = NUMBER[activation]
    if torch.compiler.is_compiling():
        if reduce is not None:
            raise NotImplementedError(
                "batch_norm_act does not synchronise its statistics under torch.compile: run it eagerly."
            )
        return _with_formula(x, Norm(w, b, r, number, slope), Running(*running, momentum, eps))
    as_is = is_dense(x)
    if not as_is and reduce is None and not dispatch.is_forced():
        return _with_torch(x, Norm(w, b, r, number, slope), Running(*running, momentum, eps))
    if is_functorch_active() and reduce is None and backend_of(x) == "reference":
        return _with_formula(x, Norm(w, b, r, number, slope), Running(*running, momentum, eps))
    settings = Settings(momentum, eps, number, slope, reduce)
    y = _with_kernels(x if as_is else as_dense(x), w, b, None if r is None else as_dense(r), *running, settings)
    return y if as_is else y.contiguous()


def _with_kernels(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    settings: Settings,
) -> Tensor:
    """The kernels, in whatever torch records: nothing, a graph, tangents, or both."""
    arguments = (x, weight, bias, residual, running_mean, running_var, settings)
    tensors = (x, weight, bias, residual)
    if is_transformed():
        duals = unpack_duals(*tensors)
        if duals is not None:
            return compute_dual(duals, running_mean, running_var, settings)
        y: Tensor = BatchNormAct.apply(*arguments)[0]
        return y
    kernels = kernels_for(x) if settings.reduce is None and is_plain(*tensors) else None
    if wants_graph(*tensors):
        recorded: Tensor = RecordedBatchNorm.apply(kernels, *arguments)
        return recorded
    norm = Norm(weight, bias, residual, settings.activation, settings.slope)
    running = Running(running_mean, running_var, settings.momentum, settings.eps)
    return train(kernels, x, norm, running, settings.reduce)[0]


def _with_torch(x: Tensor, norm: Norm, running: Running) -> Tensor:
    """The same by torch's own functions, for a layout that the kernels do not serve."""
    dispatch.record_backend(OP, "reference")
    mean, var, momentum, eps = running
    new_mean, new_var = (None if t is None else t.clone() for t in (mean, var))
    z = F.batch_norm(x, new_mean, new_var, norm.weight, norm.bias, True, momentum, eps)
    if mean is not None and var is not None and new_mean is not None and new_var is not None:
        keep_finite(mean, var, new_mean, new_var)
    return activate(z if norm.residual is None else z + norm.residual, NAMES[norm.activation], norm.slope)


def _with_formula(x: Tensor, norm: Norm, running: Running) -> Tensor:
    """The reference, which has every derivative. torch.compile traces and fuses it; of an autograd.Function it would drop
    the tangent."""
    weight, bias, residual, activation, slope = norm
    y, mean, var = reference(
        x, weight, bias, eps=running.eps, activation=NAMES[activation], slope=slope, residual=residual
    )
    if running.mean is not None and running.var is not None:
        rows = x.numel() // x.shape[1]
        move_running(running.mean, running.var, mean, var * (rows / (rows - 1)), running.momentum)
    return y
