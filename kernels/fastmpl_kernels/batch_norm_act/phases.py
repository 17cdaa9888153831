"""The phases of batch_norm_act in plain torch: what the native and the Triton kernels compute, for any type.

    sums            of x, and of (x - mean)^2                -> the hook may add those of other ranks
    forward         y and `moments`
    gradient_sums   of dz = dy act'(z) and dz (x - mean)     -> the hook may add those of other ranks
    gradient        the gradients of x, residual, weight and bias
    tangent         the tangent of y (its sums are gradient_sums of the tangent of x, without activation)
    dual_sums, dual y and its tangent together, where autograd records no graph: half the passes over memory
    train           sums and forward in one call, where there are no other ranks
    backward        gradient_sums and gradient, the same
    dual_train      dual_sums and dual, the same

train and dual_train may begin with a sum: x becomes x + addend, in place. The gradient that the sum has from elsewhere is
then an argument of backward, which adds it to that of x before it rounds.

Sums are [parts, columns] in float64, one row a part, which the reader merges. Those of squares and products with x are
about the mean of their own part: E[x^2] - mean^2 would lose the variance of a channel with a large mean. `moments` is
[4, C]: the mean rounded to its type, the remainder of that rounding, 1 / sqrt(var + eps), 1 / count.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from fastmpl_kernels.batch_norm_act.reference import activate, move_running
from fastmpl_kernels.batch_norm_act.settings import NAMES, Addend, Norm, Running, Tangents


def as_rows(x: Tensor) -> Float[Tensor, "M C"]:
    """Pixels as rows, channels as columns; no copy for a channels-last tensor."""
    return x.movedim(1, -1).reshape(-1, x.shape[1])


def wide_dtype(x: Tensor) -> torch.dtype:
    """The type of what is computed from x: float32, or float64 for float64."""
    return torch.promote_types(x.dtype, torch.float32)


def from_rows(rows: Float[Tensor, "M C"], like: Tensor) -> Tensor:
    """Rows as a tensor of the shape, type and layout of `like`."""
    moved = like.movedim(1, -1)
    return torch.empty_like(like).copy_(rows.view(moved.shape).movedim(-1, 1))


def sums(x: Tensor) -> Float[Tensor, "1 2C_plus_1"]:
    rows = as_rows(x).double()
    total, count = rows.sum(0), rows.shape[0]
    squares = (rows - total / count).square().sum(0)
    return torch.cat([total, squares, rows.new_full((1,), count)]).unsqueeze(0)


def merge_parts(partial: Float[Tensor, "P 2C_plus_1"]) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of x, sum of squares about the mean, and count of all parts (Chan, Golub and LeVeque, 1983)."""
    counts, (totals, squares) = partial[:, -1:], partial[:, :-1].chunk(2, dim=1)
    total, count = totals.sum(0), counts.sum(0)
    apart = totals / counts - total / count
    return total, squares.sum(0) + (counts * apart.square()).sum(0), count


def moments_of(partial: Float[Tensor, "P 2C_plus_1"], eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The moments, and the mean and the unbiased variance in float64."""
    total, squares, count = merge_parts(partial)
    mean, var = total / count, squares / count
    high = mean.to(dtype)
    parts = [
        high,
        (mean - high).to(dtype),
        (var + eps).rsqrt().to(dtype),
        count.reciprocal().to(dtype).expand_as(high),
    ]
    return torch.stack(parts), mean, squares / (count - 1)


def pre_activation(x: Tensor, moments: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """z and x - mean, as rows."""
    high, low, rstd, _ = moments
    centred = as_rows(x).to(moments.dtype) - high - low
    z = centred * (norm.weight * rstd) + norm.bias
    return (z if norm.residual is None else z + as_rows(norm.residual)), centred


def forward(x: Tensor, partial: Tensor, norm: Norm, running: Running) -> tuple[Tensor, Tensor]:
    moments, mean, unbiased_var = moments_of(partial, running.eps, wide_dtype(x))
    if running.mean is not None and running.var is not None:
        move_running(running.mean, running.var, mean, unbiased_var, running.momentum)
    z, _ = pre_activation(x, moments, norm)
    return from_rows(activate(z, NAMES[norm.activation], norm.slope), x), moments


def derivative(z: Tensor, activation: int, slope: float) -> Tensor:
    """act'(z), at 0 as torch defines it."""
    if NAMES[activation] == "relu":
        return (z > 0).to(z.dtype)
    if NAMES[activation] == "leaky_relu":
        return torch.full_like(z, slope).masked_fill_(z > 0, 1.0)  # two numbers in `where` would be float32
    if NAMES[activation] == "silu":
        s = z.sigmoid()
        return s * (1 + z * (1 - s))
    return torch.ones_like(z)


def gradient_sums(dy: Tensor, x: Tensor, moments: Tensor, norm: Norm) -> Float[Tensor, "1 2C"]:
    z, centred = pre_activation(x, moments, norm)
    dz = (as_rows(dy) * derivative(z, norm.activation, norm.slope)).double()
    return torch.cat([dz.sum(0), (dz * centred).sum(0)]).unsqueeze(0)


def project(d: Tensor, centred: Tensor, moments: Tensor, partial: Tensor) -> Tensor:
    """rstd (d - mean(d) - xhat mean(d xhat)): the derivative of xhat by x, applied to rows d. It is symmetric, so both the
    backward and the forward mode use it."""
    _, _, rstd, inverse_count = moments
    of_d, of_product = partial.sum(0).chunk(2)
    level = (of_d * inverse_count).to(d.dtype)
    slant = (of_product * inverse_count * rstd * rstd).to(d.dtype)
    moved: Tensor = rstd * (d - level - centred * slant)
    return moved


def gradient(
    dy: Tensor,
    x: Tensor,
    moments: Tensor,
    partial: Tensor,
    local: Tensor,
    norm: Norm,
    elsewhere: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    z, centred = pre_activation(x, moments, norm)
    dz = as_rows(dy) * derivative(z, norm.activation, norm.slope)
    dx = norm.weight * project(dz, centred, moments, partial)
    if elsewhere is not None:
        dx = dx + as_rows(elsewhere)
    dresidual = x.new_empty(0) if norm.residual is None else from_rows(dz, norm.residual)
    dbias, dweight = parameter_gradients(moments, local)
    return from_rows(dx, x), dresidual, dweight, dbias


def parameter_gradients(moments: Tensor, local: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of the bias and of the weight, from the sums of this rank alone."""
    of_dz, of_product = local.sum(0).chunk(2)
    return of_dz.to(moments.dtype), (of_product * moments[2]).to(moments.dtype)


def tangent(x: Tensor, tangents: Tangents, moments: Tensor, partial: Tensor, norm: Norm) -> Tensor:
    z, centred = pre_activation(x, moments, norm)
    moved = project(as_rows(tangents.x).to(moments.dtype), centred, moments, partial)
    z_tangent = norm.weight * moved + tangents.weight * (centred * moments[2]) + tangents.bias
    if tangents.residual is not None:
        z_tangent = z_tangent + as_rows(tangents.residual)
    return from_rows(z_tangent * derivative(z, norm.activation, norm.slope), x)


def dual_sums(x: Tensor, x_tangent: Tensor) -> Float[Tensor, "1 4C_plus_1"]:
    rows, tangents = as_rows(x).double(), as_rows(x_tangent).double()
    of_x = sums(x)[0]
    product = (tangents * (rows - of_x[: x.shape[1]] / of_x[-1])).sum(0)
    return torch.cat([of_x[:-1], tangents.sum(0), product, of_x[-1:]]).unsqueeze(0)


def dual(x: Tensor, tangents: Tangents, partial: Tensor, norm: Norm, running: Running) -> tuple[Tensor, Tensor]:
    """y and its tangent from the sums of one part."""
    channels = x.shape[1]
    y, moments = forward(x, torch.cat([partial[:, : 2 * channels], partial[:, -1:]], dim=1), norm, running)
    return y, tangent(x, tangents, moments, partial[:, 2 * channels : -1], norm)


def train(x: Tensor, norm: Norm, running: Running, addend: Tensor | None = None) -> tuple[Tensor, Tensor]:
    if addend is not None:
        x.add_(addend)
    return forward(x, sums(x), norm, running)


def backward(
    dy: Tensor, x: Tensor, moments: Tensor, norm: Norm, elsewhere: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    total = gradient_sums(dy, x, moments, norm)
    return gradient(dy, x, moments, total, total, norm, elsewhere)


def dual_train(
    x: Tensor, tangents: Tangents, norm: Norm, running: Running, addend: Addend | None = None
) -> tuple[Tensor, Tensor]:
    if addend is not None:
        assert addend.tangent is not None, "forward mode adds tangents too"
        x.add_(addend.value)
        tangents.x.add_(addend.tangent)
    return dual(x, tangents, dual_sums(x, tangents.x), norm, running)
