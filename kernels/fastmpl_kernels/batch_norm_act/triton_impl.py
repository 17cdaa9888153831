"""The phases of batch_norm_act in Triton, on channels-last tensors seen as [M rows, C columns].

A pass that sums splits the rows into `parts`, one row of partial sums each; a small kernel adds them in float64 and makes
a float32 table of constants per channel; a pass that writes reads that table. So forward is three launches, and so are
backward and tangent; no atomics, hence the same bits on every run. C is constexpr: rows are aligned where C allows it,
and loads are then 128 bits wide.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmpl_kernels.batch_norm_act.library_ops import parts
from fastmpl_kernels.batch_norm_act.settings import NUMBER, Norm, Running, Tangents

RELU = tl.constexpr(NUMBER["relu"])
LEAKY_RELU = tl.constexpr(NUMBER["leaky_relu"])
SILU = tl.constexpr(NUMBER["silu"])
TILE_BYTES = 4096  # of x: two 128-bit loads a thread of four warps


def tile(channels: int, element_size: int) -> tuple[int, int]:
    """Rows and columns of a tile."""
    columns = min(128, triton.next_power_of_2(channels))
    return TILE_BYTES // element_size // columns, columns


@triton.jit
def _value(z, slope, ACT: tl.constexpr):
    if ACT == RELU:
        z = tl.where(z <= 0, 0.0, z)  # a NaN stays one
    elif ACT == LEAKY_RELU:
        z = tl.where(z > 0, z, z * slope)
    elif ACT == SILU:
        z = z / (1.0 + tl.exp(-z))
    return z


@triton.jit
def _times_derivative(d, z, slope, ACT: tl.constexpr):
    if ACT == RELU:
        d = tl.where(z <= 0, 0.0, d)
    elif ACT == LEAKY_RELU:
        d = tl.where(z > 0, d, d * slope)
    elif ACT == SILU:
        s = 1.0 / (1.0 + tl.exp(-z))
        d = d * (s * (1.0 + z * (1.0 - s)))
    return d


@triton.jit
def _places(start, M, C: tl.constexpr, R: tl.constexpr, K: tl.constexpr):
    """64-bit offsets and mask of the tile whose first row is `start`, in this program's columns."""
    rows = start + tl.arange(0, R).to(tl.int64)
    columns = tl.program_id(1) * K + tl.arange(0, K)
    return rows[:, None] * C + columns[None, :], (rows < M)[:, None] & (columns < C)[None, :]


@triton.jit
def _sums_kernel(x_at, out, M, rows_per_part, C: tl.constexpr, R: tl.constexpr, K: tl.constexpr):
    part = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * K + tl.arange(0, K)
    inside = columns < C
    first = part * rows_per_part
    last = tl.minimum(first + rows_per_part, M)
    # Sums are taken around the part's first row, so that a large mean does not cancel the variance.
    shift = tl.load(x_at + first * C + columns, mask=inside, other=0.0).to(tl.float32)
    s1 = tl.zeros([R, K], tl.float32)
    s2 = tl.zeros([R, K], tl.float32)
    for start in range(first, last, R):
        at, mask = _places(start, last, C, R, K)
        x = tl.load(x_at + at, mask=mask, other=0.0).to(tl.float32)
        d = tl.where(mask, x - shift[None, :], 0.0)
        s1 += d
        s2 += d * d
    n = (last - first).to(tl.float64)
    k = shift.to(tl.float64)
    t1 = tl.sum(s1.to(tl.float64), axis=0)
    t2 = tl.sum(s2.to(tl.float64), axis=0)
    row = out + part * (2 * C + 1)
    tl.store(row + columns, t1 + n * k, mask=inside)
    tl.store(row + C + columns, t2 + k * (2.0 * t1 + n * k), mask=inside)
    if tl.program_id(1) == 0:
        tl.store(row + 2 * C, n)


@triton.jit
def _total(sums, columns, inside, P, STRIDE: tl.constexpr):
    """The sum over parts of columns of the partial sums."""
    total = tl.zeros_like(columns).to(tl.float64)
    for p in range(P):
        total += tl.load(sums + p * STRIDE + columns, mask=inside, other=0.0)
    return total


@triton.jit
def _moments_kernel(
    sums, moments, weight, bias, table, running_mean, running_var, P, momentum, eps,
    RUNNING: tl.constexpr, C: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(0) * K + tl.arange(0, K)
    inside = columns < C
    count = _total(sums, columns * 0 + 2 * C, inside, P, 2 * C + 1)
    count = tl.where(inside, count, 2.0)  # lanes without a channel must not divide by 0
    mean = _total(sums, columns, inside, P, 2 * C + 1) / count
    var = _total(sums, columns + C, inside, P, 2 * C + 1) / count - mean * mean
    var = tl.where(var < 0, 0.0, var)
    rstd = (1.0 / tl.sqrt(tl.where(inside, var + eps, 1.0))).to(tl.float32)
    high = mean.to(tl.float32)
    low = (mean - high.to(tl.float64)).to(tl.float32)
    tl.store(moments + columns, high, mask=inside)
    tl.store(moments + C + columns, low, mask=inside)
    tl.store(moments + 2 * C + columns, rstd, mask=inside)
    tl.store(moments + 3 * C + columns, (1.0 / count).to(tl.float32), mask=inside)
    if RUNNING:
        old = tl.load(running_mean + columns, mask=inside, other=0.0)
        tl.store(running_mean + columns, old + (momentum * (mean - old)).to(tl.float32), mask=inside)
        old = tl.load(running_var + columns, mask=inside, other=0.0)
        unbiased = var * (count / (count - 1.0))
        tl.store(running_var + columns, old + (momentum * (unbiased - old)).to(tl.float32), mask=inside)
    scale = tl.load(weight + columns, mask=inside, other=0.0) * rstd
    tl.store(table + columns, scale, mask=inside)
    tl.store(table + C + columns, tl.load(bias + columns, mask=inside, other=0.0) - low * scale, mask=inside)


@triton.jit
def _forward_kernel(
    x_at, residual_at, y_at, moments, table, M, slope,
    ACT: tl.constexpr, RESIDUAL: tl.constexpr, C: tl.constexpr, R: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    at, mask = _places(tl.program_id(0).to(tl.int64) * R, M, C, R, K)
    columns = tl.program_id(1) * K + tl.arange(0, K)
    inside = columns < C
    mean = tl.load(moments + columns, mask=inside, other=0.0)
    scale = tl.load(table + columns, mask=inside, other=0.0)
    offset = tl.load(table + C + columns, mask=inside, other=0.0)
    z = (tl.load(x_at + at, mask=mask, other=0.0).to(tl.float32) - mean[None, :]) * scale[None, :] + offset[None, :]
    if RESIDUAL:
        z += tl.load(residual_at + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(y_at + at, _value(z, slope, ACT).to(y_at.dtype.element_ty), mask=mask)


@triton.jit
def _gradient_sums_kernel(
    dy_at, x_at, residual_at, moments, weight, bias, out, M, rows_per_part, slope,
    ACT: tl.constexpr, RESIDUAL: tl.constexpr, C: tl.constexpr, R: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * K + tl.arange(0, K)
    inside = columns < C
    mean = tl.load(moments + columns, mask=inside, other=0.0)
    low = tl.load(moments + C + columns, mask=inside, other=0.0)
    scale = tl.load(weight + columns, mask=inside, other=0.0) * tl.load(
        moments + 2 * C + columns, mask=inside, other=0.0
    )
    offset = tl.load(bias + columns, mask=inside, other=0.0) - low * scale
    first = part * rows_per_part
    last = tl.minimum(first + rows_per_part, M)
    s1 = tl.zeros([R, K], tl.float32)
    s2 = tl.zeros([R, K], tl.float32)
    for start in range(first, last, R):
        at, mask = _places(start, last, C, R, K)
        centred = tl.load(x_at + at, mask=mask, other=0.0).to(tl.float32) - mean[None, :]
        z = centred * scale[None, :] + offset[None, :]
        if RESIDUAL:
            z += tl.load(residual_at + at, mask=mask, other=0.0).to(tl.float32)
        dy = tl.load(dy_at + at, mask=mask, other=0.0).to(tl.float32)
        dz = tl.where(mask, _times_derivative(dy, z, slope, ACT), 0.0)
        s1 += dz
        s2 += tl.where(mask, dz * centred, 0.0)
    t1 = tl.sum(s1.to(tl.float64), axis=0)
    t2 = tl.sum(s2.to(tl.float64), axis=0)
    tl.store(out + part * 2 * C + columns, t1, mask=inside)
    tl.store(out + part * 2 * C + C + columns, t2 - low.to(tl.float64) * t1, mask=inside)


@triton.jit
def _constants_kernel(
    moments, sums, weight, bias, weight_tangent, bias_tangent, local, dweight, dbias, table, P, Q,
    TANGENT: tl.constexpr, C: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """table [4, C]: scale, offset, slant, level of the writing passes of backward (TANGENT False) and forward mode."""
    columns = tl.program_id(0) * K + tl.arange(0, K)
    inside = columns < C
    low = tl.load(moments + C + columns, mask=inside, other=0.0)
    rstd = tl.load(moments + 2 * C + columns, mask=inside, other=0.0)
    inverse_count = tl.load(moments + 3 * C + columns, mask=inside, other=0.0)
    scale = tl.load(weight + columns, mask=inside, other=0.0) * rstd
    offset = tl.load(bias + columns, mask=inside, other=0.0) - low * scale
    total = _total(sums, columns, inside, P, 2 * C)
    product = _total(sums, columns + C, inside, P, 2 * C)
    slant = -scale.to(tl.float64) * rstd * rstd * product * inverse_count
    level = -scale.to(tl.float64) * total * inverse_count
    if TANGENT:
        slant += tl.load(weight_tangent + columns, mask=inside, other=0.0) * rstd
        level += tl.load(bias_tangent + columns, mask=inside, other=0.0)
    else:
        tl.store(dbias + columns, _total(local, columns, inside, Q, 2 * C).to(tl.float32), mask=inside)
        of_weight = _total(local, columns + C, inside, Q, 2 * C) * rstd
        tl.store(dweight + columns, of_weight.to(tl.float32), mask=inside)
    tl.store(table + columns, scale, mask=inside)
    tl.store(table + C + columns, offset, mask=inside)
    tl.store(table + 2 * C + columns, slant.to(tl.float32), mask=inside)
    tl.store(table + 3 * C + columns, (level - slant * low).to(tl.float32), mask=inside)


@triton.jit
def _derivative_kernel(
    in_at, x_at, residual_at, residual_in_at, out_at, residual_out_at, moments, table, M, slope,
    TANGENT: tl.constexpr, ACT: tl.constexpr, RESIDUAL: tl.constexpr, C: tl.constexpr, R: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """dx (and the residual's gradient) from dy, or with TANGENT the tangent of y from that of x (and the residual's)."""
    at, mask = _places(tl.program_id(0).to(tl.int64) * R, M, C, R, K)
    columns = tl.program_id(1) * K + tl.arange(0, K)
    inside = columns < C
    mean = tl.load(moments + columns, mask=inside, other=0.0)
    scale = tl.load(table + columns, mask=inside, other=0.0)
    offset = tl.load(table + C + columns, mask=inside, other=0.0)
    slant = tl.load(table + 2 * C + columns, mask=inside, other=0.0)
    level = tl.load(table + 3 * C + columns, mask=inside, other=0.0)
    centred = tl.load(x_at + at, mask=mask, other=0.0).to(tl.float32) - mean[None, :]
    z = centred * scale[None, :] + offset[None, :]
    if RESIDUAL:
        z += tl.load(residual_at + at, mask=mask, other=0.0).to(tl.float32)
    d = tl.load(in_at + at, mask=mask, other=0.0).to(tl.float32)
    if TANGENT:
        out = d * scale[None, :] + (centred * slant[None, :] + level[None, :])
        if RESIDUAL:
            out += tl.load(residual_in_at + at, mask=mask, other=0.0).to(tl.float32)
        out = _times_derivative(out, z, slope, ACT)
    else:
        dz = _times_derivative(d, z, slope, ACT)
        if RESIDUAL:
            tl.store(residual_out_at + at, dz.to(residual_out_at.dtype.element_ty), mask=mask)
        out = dz * scale[None, :] + (centred * slant[None, :] + level[None, :])
    tl.store(out_at + at, out.to(out_at.dtype.element_ty), mask=mask)


def _shape(x: Tensor) -> tuple[int, int, int, int, int, int]:
    """M, C, parts, rows of a part, and the rows and columns of a tile."""
    rows, channels = x.numel() // x.shape[1], x.shape[1]
    tile_rows, columns = tile(channels, x.element_size())
    per_part = triton.cdiv(rows, parts(rows, channels))
    return rows, channels, triton.cdiv(rows, per_part), per_part, tile_rows, columns


def _partial(x: Tensor, width: int) -> Tensor:
    """Room for every part; those that hold no rows stay 0 and are not launched."""
    return torch.zeros((parts(x.numel() // x.shape[1], x.shape[1]), width), dtype=torch.float64, device=x.device)


def sums(x: Tensor) -> Tensor:
    M, C, P, per_part, R, K = _shape(x)
    out = _partial(x, 2 * C + 1)
    _sums_kernel[(P, triton.cdiv(C, K))](x, out, M, per_part, C=C, R=R, K=K)
    return out


def forward(x: Tensor, partial: Tensor, norm: Norm, running: Running) -> tuple[Tensor, Tensor]:
    M, C, _, _, R, K = _shape(x)
    y = torch.empty_like(x)
    moments, table = (torch.empty((n, C), dtype=torch.float32, device=x.device) for n in (4, 2))
    moves = running.mean is not None and running.var is not None
    _moments_kernel[(triton.cdiv(C, K),)](
        partial, moments, norm.weight, norm.bias, table, running.mean if moves else norm.weight,
        running.var if moves else norm.weight, partial.shape[0], running.momentum, running.eps, RUNNING=moves, C=C, K=K,
    )  # fmt: skip
    _forward_kernel[(triton.cdiv(M, R), triton.cdiv(C, K))](
        x, x if norm.residual is None else norm.residual, y, moments, table, M, norm.slope,
        ACT=norm.activation, RESIDUAL=norm.residual is not None, C=C, R=R, K=K,
    )  # fmt: skip
    return y, moments


def gradient_sums(dy: Tensor, x: Tensor, moments: Tensor, norm: Norm) -> Tensor:
    M, C, P, per_part, R, K = _shape(x)
    out = _partial(x, 2 * C)
    _gradient_sums_kernel[(P, triton.cdiv(C, K))](
        dy, x, x if norm.residual is None else norm.residual, moments, norm.weight, norm.bias, out, M, per_part, norm.slope,
        ACT=norm.activation, RESIDUAL=norm.residual is not None, C=C, R=R, K=K,
    )  # fmt: skip
    return out


def gradient(
    dy: Tensor, x: Tensor, moments: Tensor, partial: Tensor, local: Tensor, norm: Norm
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    M, C, _, _, R, K = _shape(x)
    dx = torch.empty_like(x)
    dresidual = x.new_empty(0) if norm.residual is None else torch.empty_like(norm.residual)
    dweight, dbias = torch.empty_like(norm.weight), torch.empty_like(norm.bias)
    table = torch.empty_like(moments)
    _constants_kernel[(triton.cdiv(C, K),)](
        moments, partial, norm.weight, norm.bias, norm.weight, norm.bias, local, dweight, dbias, table,
        partial.shape[0], local.shape[0],
        TANGENT=False, C=C, K=K,
    )  # fmt: skip
    _derivative_kernel[(triton.cdiv(M, R), triton.cdiv(C, K))](
        dy, x, x if norm.residual is None else norm.residual, x, dx, x if norm.residual is None else dresidual,
        moments, table, M, norm.slope, TANGENT=False, ACT=norm.activation,
        RESIDUAL=norm.residual is not None, C=C, R=R, K=K,
    )  # fmt: skip
    return dx, dresidual, dweight, dbias


def tangent(x: Tensor, tangents: Tangents, moments: Tensor, partial: Tensor, norm: Norm) -> Tensor:
    M, C, _, _, R, K = _shape(x)
    out, table = torch.empty_like(x), torch.empty_like(moments)
    _constants_kernel[(triton.cdiv(C, K),)](
        moments, partial, norm.weight, norm.bias, tangents.weight, tangents.bias, partial, table, table, table,
        partial.shape[0], 0,
        TANGENT=True, C=C, K=K,
    )  # fmt: skip
    _derivative_kernel[(triton.cdiv(M, R), triton.cdiv(C, K))](
        tangents.x, x, x if norm.residual is None else norm.residual,
        x if tangents.residual is None else tangents.residual, out, out, moments, table, M, norm.slope, TANGENT=True,
        ACT=norm.activation, RESIDUAL=norm.residual is not None, C=C, R=R, K=K,
    )  # fmt: skip
    return out


def train(x: Tensor, norm: Norm, running: Running) -> tuple[Tensor, Tensor]:
    return forward(x, sums(x), norm, running)


def backward(dy: Tensor, x: Tensor, moments: Tensor, norm: Norm) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    total = gradient_sums(dy, x, moments, norm)
    return gradient(dy, x, moments, total, total, norm)
