"""The phases of batch_norm_act in Triton, on channels-last tensors seen as [M rows, C columns].

A pass that sums (triton_sums.py) splits the rows into `parts`, one row of partial sums each. A small kernel, the finaliser
(triton_constants.py), adds them in float64 and makes a float32 table of constants per channel, which a pass that writes
reads; those passes are here. Forward is three launches, and so are backward and tangent.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmpl_kernels.batch_norm_act.implementations import parts
from fastmpl_kernels.batch_norm_act.settings import Norm, Running, Tangents
from fastmpl_kernels.batch_norm_act.triton_constants import COLUMNS, FINALISER, constants_kernel, moments_kernel
from fastmpl_kernels.batch_norm_act.triton_sums import gradient_sums_kernel, sums_kernel
from fastmpl_kernels.batch_norm_act.triton_tiles import places, tile, times_derivative, value


@triton.jit
def forward_kernel(
    x_at, residual_at, y_at, moments, table, M, slope,
    ACT: tl.constexpr, RESIDUAL: tl.constexpr, C: tl.constexpr, R: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    at, mask = places(tl.program_id(0).to(tl.int64) * R, M, C, R, K)
    columns = tl.program_id(1) * K + tl.arange(0, K)
    inside = columns < C
    mean = tl.load(moments + columns, mask=inside, other=0.0)
    scale = tl.load(table + columns, mask=inside, other=0.0)
    offset = tl.load(table + C + columns, mask=inside, other=0.0)
    z = (tl.load(x_at + at, mask=mask, other=0.0).to(tl.float32) - mean[None, :]) * scale[None, :] + offset[None, :]
    if RESIDUAL:
        z += tl.load(residual_at + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(y_at + at, value(z, slope, ACT).to(y_at.dtype.element_ty), mask=mask)


@triton.jit
def derivative_kernel(
    in_at, x_at, residual_at, residual_in_at, out_at, residual_out_at, moments, table, M, slope,
    TANGENT: tl.constexpr, JOINED: tl.constexpr, ACT: tl.constexpr, RESIDUAL: tl.constexpr, C: tl.constexpr,
    R: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """dx (and the residual's gradient) from dy, or with TANGENT the tangent of y from that of x (and the residual's). With
    JOINED `residual_in` is a gradient of x from elsewhere, and dx is their sum."""
    at, mask = places(tl.program_id(0).to(tl.int64) * R, M, C, R, K)
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
        out = times_derivative(out, z, slope, ACT)
    else:
        dz = times_derivative(d, z, slope, ACT)
        if RESIDUAL:
            tl.store(residual_out_at + at, dz.to(residual_out_at.dtype.element_ty), mask=mask)
        out = dz * scale[None, :] + (centred * slant[None, :] + level[None, :])
        if JOINED:
            out += tl.load(residual_in_at + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_at + at, out.to(out_at.dtype.element_ty), mask=mask)


def _shape(x: Tensor) -> tuple[int, int, int, int, int, int]:
    """M, C, parts, rows of a part, and the rows and columns of a tile."""
    rows, channels = x.numel() // x.shape[1], x.shape[1]
    tile_rows, columns = tile(channels, x.element_size())
    count = parts(rows, channels)
    return rows, channels, count, triton.cdiv(rows, count), tile_rows, columns


def sums(x: Tensor, addend: Tensor | None = None) -> Tensor:
    M, C, P, per_part, R, K = _shape(x)
    out = torch.empty((P, 2 * C + 1), dtype=torch.float64, device=x.device)
    sums_kernel[(P, triton.cdiv(C, K))](
        x, x if addend is None else addend, out, M, per_part, ADD=addend is not None, C=C, R=R, K=K
    )
    return out


def forward(x: Tensor, partial: Tensor, norm: Norm, running: Running) -> tuple[Tensor, Tensor]:
    M, C, _, _, R, K = _shape(x)
    y = torch.empty_like(x)
    moments, table = (torch.empty((n, C), dtype=torch.float32, device=x.device) for n in (4, 2))
    moves = running.mean is not None and running.var is not None
    moments_kernel[(triton.cdiv(C, COLUMNS),)](
        partial, moments, norm.weight, norm.bias, table, running.mean if moves else norm.weight,
        running.var if moves else norm.weight, partial.shape[0], running.momentum, running.eps, RUNNING=moves, C=C,
        **FINALISER,
    )  # fmt: skip
    forward_kernel[(triton.cdiv(M, R), triton.cdiv(C, K))](
        x, x if norm.residual is None else norm.residual, y, moments, table, M, norm.slope,
        ACT=norm.activation, RESIDUAL=norm.residual is not None, C=C, R=R, K=K,
    )  # fmt: skip
    return y, moments


def gradient_sums(dy: Tensor, x: Tensor, moments: Tensor, norm: Norm) -> Tensor:
    M, C, P, per_part, R, K = _shape(x)
    out = torch.empty((P, 2 * C), dtype=torch.float64, device=x.device)
    gradient_sums_kernel[(P, triton.cdiv(C, K))](
        dy, x, x if norm.residual is None else norm.residual, moments, norm.weight, norm.bias, out, M, per_part, norm.slope,
        ACT=norm.activation, RESIDUAL=norm.residual is not None, C=C, R=R, K=K,
    )  # fmt: skip
    return out


def gradient(
    dy: Tensor,
    x: Tensor,
    moments: Tensor,
    partial: Tensor,
    local: Tensor,
    norm: Norm,
    elsewhere: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    M, C, _, _, R, K = _shape(x)
    dx = torch.empty_like(x)
    dresidual = x.new_empty(0) if norm.residual is None else torch.empty_like(norm.residual)
    dweight, dbias = torch.empty_like(norm.weight), torch.empty_like(norm.bias)
    table = torch.empty_like(moments)
    constants_kernel[(triton.cdiv(C, COLUMNS),)](
        moments, partial, norm.weight, norm.bias, norm.weight, norm.bias, local, dweight, dbias, table,
        partial.shape[0], local.shape[0],
        TANGENT=False, RANKS=local is not partial, C=C, **FINALISER,
    )  # fmt: skip
    derivative_kernel[(triton.cdiv(M, R), triton.cdiv(C, K))](
        dy, x, x if norm.residual is None else norm.residual, x if elsewhere is None else elsewhere, dx,
        x if norm.residual is None else dresidual, moments, table, M, norm.slope, TANGENT=False,
        JOINED=elsewhere is not None, ACT=norm.activation,
        RESIDUAL=norm.residual is not None, C=C, R=R, K=K,
    )  # fmt: skip
    return dx, dresidual, dweight, dbias


def tangent(x: Tensor, tangents: Tangents, moments: Tensor, partial: Tensor, norm: Norm) -> Tensor:
    M, C, _, _, R, K = _shape(x)
    out, table = torch.empty_like(x), torch.empty_like(moments)
    constants_kernel[(triton.cdiv(C, COLUMNS),)](
        moments, partial, norm.weight, norm.bias, tangents.weight, tangents.bias, partial, table, table, table,
        partial.shape[0], 0,
        TANGENT=True, RANKS=False, C=C, **FINALISER,
    )  # fmt: skip
    derivative_kernel[(triton.cdiv(M, R), triton.cdiv(C, K))](
        tangents.x, x, x if norm.residual is None else norm.residual,
        x if tangents.residual is None else tangents.residual, out, out, moments, table, M, norm.slope, TANGENT=True,
        JOINED=False, ACT=norm.activation, RESIDUAL=norm.residual is not None, C=C, R=R, K=K,
    )  # fmt: skip
    return out


def train(x: Tensor, norm: Norm, running: Running, addend: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return forward(x, sums(x, addend), norm, running)


def backward(
    dy: Tensor, x: Tensor, moments: Tensor, norm: Norm, elsewhere: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    total = gradient_sums(dy, x, moments, norm)
    return gradient(dy, x, moments, total, total, norm, elsewhere)
