"""The sum of two branches and the batch norm with activation that reads it, as one op.

    s = x + addend,    y = act(batch_norm(s))

A residual network takes such a sum before every block and reads it twice: in the norm and as the next identity. Here one
pass writes the sum and takes its statistics, and the backward pass adds the gradient that the sum has from the identity to
its own, so that neither addition is a pass over memory of its own.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fastmpl_kernels.batch_norm_act import batch_norm_act, check, convert
from fastmpl_kernels.batch_norm_act.function import (
    as_dense,
    backward,
    is_dense,
    make_records,
    unpack_duals,
    wants_graph,
)
from fastmpl_kernels.batch_norm_act.implementations import OP, Kernels, backend_of, kernels_for
from fastmpl_kernels.batch_norm_act.settings import (
    NUMBER,
    Activation,
    Norm,
    Reduce,
    Running,
    Settings,
)
from fastmpl_kernels.batch_norm_act.sum_ops import bn_add_backward, bn_add_dual_train, bn_add_train
from fastmpl_kernels.ops import (
    is_functorch_active,
    is_plain,
    is_transformed,
    make_dual,
    refuse_second_derivative,
)


def add_in_place(x: Tensor, addend: Tensor) -> Tensor:
    """x + addend in x's memory: no backward needs a convolution's result, and a sum beside it is a third more traffic.

    Elsewhere where x is a view, which a hook of an engine may have made of it and autograd then refuses to write into.
    """
    # a compiler cannot ask, and decides by itself what is in place
    if not torch.compiler.is_compiling() and x._is_view():
        return x + addend
    return x.add_(addend)


def add_batch_norm_act(
    x: Float[Tensor, "N C *pixels"],
    addend: Float[Tensor, "N C *pixels"],
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
    reduce: Reduce | None = None,
) -> tuple[Float[Tensor, "N C *pixels"], Float[Tensor, "N C *pixels"]]:
    """The sum s = x + addend, and act(batch_norm(s)) with the statistics of the batch; x becomes the sum, in place.

    The other arguments are batch_norm_act's, and so is what it raises. The kernels serve two channels-last tensors of one
    type, float32 or bfloat16, on one rank; all else is the sum followed by batch_norm_act.
    """
    named: dict[str, Any] = {"running_mean": running_mean, "running_var": running_var, "update_running": update_running}
    named |= {"momentum": momentum, "eps": eps, "activation": activation, "slope": slope, "reduce": reduce}
    if reduce is None and _has_kernels(x, addend):
        check(x, activation, None, None)
        w = x.new_ones(x.shape[1], dtype=torch.float32) if weight is None else convert(weight, torch.float32)
        b = x.new_zeros(x.shape[1], dtype=torch.float32) if bias is None else convert(bias, torch.float32)
        running = (running_mean, running_var) if update_running else (None, None)
        found = _with_kernels(x, addend, w, b, *running, Settings(momentum, eps, NUMBER[activation], slope, None))
        if found is not None:
            return found
    total = add_in_place(x, addend)
    return total, batch_norm_act(total, weight, bias, **named)


def _has_kernels(x: Tensor, addend: Tensor) -> bool:
    """Whether the two can be added by the kernels. float64 and float16 take the reference, which has every derivative."""
    if torch.compiler.is_compiling() or is_functorch_active() or x._is_view():
        return False
    alike = x.dtype == addend.dtype and x.shape == addend.shape
    return alike and is_dense(x) and is_dense(addend) and backend_of(x) != "reference"


def _with_kernels(
    x: Tensor,
    addend: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    settings: Settings,
) -> tuple[Tensor, Tensor] | None:
    """The sum and y by the kernels; None where they do not serve what forward mode asks."""
    tensors = (x, addend, weight, bias)
    if is_transformed():
        return _with_tangents(tensors, running_mean, running_var, settings)
    kernels = kernels_for(x) if is_plain(*tensors) else None
    if wants_graph(*tensors):
        recorded: tuple[Tensor, Tensor] = RecordedSum.apply(kernels, *tensors, running_mean, running_var, settings)
        return recorded
    norm, running = make_records(weight, bias, None, running_mean, running_var, settings)
    return x, _train(kernels, x, addend, norm, running)[0]


def _train(kernels: Kernels | None, x: Tensor, addend: Tensor, norm: Norm, running: Running) -> tuple[Tensor, Tensor]:
    """y and moments; x becomes the sum. `kernels` as in function.train."""
    found: tuple[Tensor, Tensor]
    if kernels is not None:
        found = kernels.train(x, norm, running, addend)
    else:
        mean, var, momentum, eps = running
        found = bn_add_train(x, addend, norm.weight, norm.bias, mean, var, momentum, eps, norm.activation, norm.slope)
    return found


class RecordedSum(torch.autograd.Function):
    """(kernels, x, addend, weight, bias, running_mean, running_var, settings) -> (sum, y), for a graph that autograd alone
    records. It saves the sum, which the next block adds to, the parameters and the moments. A second derivative raises."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        ctx.kernels, x, addend, weight, bias, running_mean, running_var, ctx.settings = arguments
        norm, running = make_records(weight, bias, None, running_mean, running_var, ctx.settings)
        y, moments = _train(ctx.kernels, x, addend, norm, running)
        ctx.mark_dirty(x)
        ctx.set_materialize_grads(False)  # nobody may read the sum, and zeros would be a pass over memory
        ctx.save_for_backward(x, weight, bias, moments)
        return x, y

    @staticmethod
    def backward(ctx: Any, of_sum: Tensor | None, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_second_derivative(OP)
        if dy is None:
            return None, of_sum, of_sum, *(None,) * 5
        x, weight, bias, moments = ctx.saved_tensors
        norm = Norm(weight, bias, None, ctx.settings.activation, ctx.settings.slope)
        dx, dweight, dbias = _backward(ctx.kernels, dy, of_sum, x, moments, norm)
        return None, dx, dx, dweight, dbias, None, None, None


def _backward(
    kernels: Kernels | None, dy: Tensor, of_sum: Tensor | None, x: Tensor, moments: Tensor, norm: Norm
) -> tuple[Tensor | None, ...]:
    """The gradients of the sum, weight and bias; by `kernels` directly unless a mode or a transform watches by now."""
    if of_sum is None:
        return backward(kernels, dy, x, moments, norm, None)[:3]
    dy, of_sum = as_dense(dy), as_dense(of_sum)
    if kernels is None or not is_plain(dy, of_sum) or is_transformed():
        found: tuple[Tensor, ...] = bn_add_backward(
            dy, of_sum, x, moments, norm.weight, norm.bias, norm.activation, norm.slope
        )
        return found
    dx, _, dweight, dbias = kernels.backward(dy, x, moments, norm, of_sum)
    return dx, dweight, dbias


def _with_tangents(
    tensors: tuple[Tensor, ...], running_mean: Tensor | None, running_var: Tensor | None, settings: Settings
) -> tuple[Tensor, Tensor] | None:
    """The sum and y as dual tensors; None where a branch has no tangent, or nothing computes both at once."""
    duals = unpack_duals(*tensors)
    if duals is None:
        return None
    (x, of_x), (addend, of_addend), *parameters = duals
    if of_x is None or of_addend is None:
        return None
    (weight, of_weight), (bias, of_bias) = (
        (value, torch.zeros_like(value) if tangent is None and value is not None else tangent)
        for value, tangent in parameters
    )
    assert x is not None and addend is not None and weight is not None and bias is not None
    assert of_weight is not None and of_bias is not None  # zeros where there was none
    of_x = as_dense(of_x)
    y, of_y = bn_add_dual_train.call_on_parts(
        x, of_x, addend, as_dense(of_addend), weight, bias, of_weight, of_bias, running_mean, running_var,
        settings.momentum, settings.eps, settings.activation, settings.slope,
    )  # fmt: skip
    return make_dual(x, of_x), make_dual(y, of_y)
