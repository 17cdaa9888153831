"""The passes of batch_norm_act that sum, in Triton: one row of partial sums for each part of the rows.

A GPU hides the latency of memory by loads in flight. So a pass copies the next STAGES - 1 tiles to shared memory while it
adds one up. Whole tiles go without a mask of rows; the rest of a part, if there is one, is a tile with it. There are no
atomics, so every run has the same bits.
"""

import triton
import triton.language as tl

from fastmpl_kernels.batch_norm_act.triton_tiles import load_tile, places, times_derivative

STAGES = tl.constexpr(4)  # tiles of a summing pass, of which one is in use: 16 kB of shared memory for each tensor


@triton.jit
def _add_moments(x, rows, shift, s1, s2, SOME: tl.constexpr):
    d = x - shift[None, :]
    if SOME:
        d = tl.where(rows[:, None], d, 0.0)
    return s1 + d, s2 + d * d


@triton.jit
def _load_sum(
    x_at, addend_at, start, last, SOME: tl.constexpr, ADD: tl.constexpr, C: tl.constexpr, R: tl.constexpr, K: tl.constexpr
):  # fmt: skip
    """A tile of x; with ADD of x + addend, as its type rounds it."""
    x = load_tile(x_at, start, last, SOME, C, R, K)
    if ADD:
        x = (x + load_tile(addend_at, start, last, SOME, C, R, K)).to(x_at.dtype.element_ty).to(tl.float32)
    return x


@triton.jit
def _store_sum(x_at, x, start, last, ADD: tl.constexpr, C: tl.constexpr, R: tl.constexpr, K: tl.constexpr):
    if ADD:
        at, mask = places(start, last, C, R, K)
        tl.store(x_at + at, x.to(x_at.dtype.element_ty), mask=mask)


@triton.jit
def sums_kernel(
    x_at, addend_at, out, M, rows_per_part, ADD: tl.constexpr, C: tl.constexpr, R: tl.constexpr, K: tl.constexpr
):  # fmt: skip
    """out [parts, 2 C + 1]: sum, sum of squares about the part's own mean, and rows of each part. With ADD x becomes
    x + addend first."""
    part = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * K + tl.arange(0, K)
    first = part * rows_per_part
    last = tl.minimum(first + rows_per_part, M)
    # float32 sums are taken around the mean of the part's first tile, so that a large mean does not cancel the variance.
    x = _load_sum(x_at, addend_at, first, last, True, ADD, C, R, K)
    shift = tl.sum(x, axis=0) / tl.minimum(last - first, R).to(tl.float32)
    s1 = tl.zeros([R, K], tl.float32)
    s2 = tl.zeros([R, K], tl.float32)
    whole = first + (last - first) // R * R
    for start in tl.range(first, whole, R, num_stages=STAGES):
        x = _load_sum(x_at, addend_at, start, last, False, ADD, C, R, K)
        _store_sum(x_at, x, start, last, ADD, C, R, K)
        s1, s2 = _add_moments(x, None, shift, s1, s2, False)
    if whole < last:
        x = _load_sum(x_at, addend_at, whole, last, True, ADD, C, R, K)
        _store_sum(x_at, x, whole, last, ADD, C, R, K)
        s1, s2 = _add_moments(x, whole + tl.arange(0, R) < last, shift, s1, s2, True)
    n = (last - first).to(tl.float64)
    t1 = tl.sum(s1.to(tl.float64), axis=0)
    t2 = tl.sum(s2.to(tl.float64), axis=0)
    row = out + part * (2 * C + 1)
    inside = columns < C
    tl.store(row + columns, t1 + n * shift.to(tl.float64), mask=inside)
    tl.store(row + C + columns, t2 - t1 * (t1 / n), mask=inside)
    if tl.program_id(1) == 0:
        tl.store(row + 2 * C, n)


@triton.jit
def _load_gradient(
    dy_at, x_at, residual_at, start, last, mean,
    SOME: tl.constexpr, RESIDUAL: tl.constexpr, C: tl.constexpr, R: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """A tile of dy, of x - mean, and of the residual (x where there is none)."""
    dy = load_tile(dy_at, start, last, SOME, C, R, K)
    x = load_tile(x_at, start, last, SOME, C, R, K)
    residual = x
    if RESIDUAL:
        residual = load_tile(residual_at, start, last, SOME, C, R, K)
    return dy, x - mean[None, :], residual


@triton.jit
def _add_gradient(
    dy, centred, residual, rows, scale, offset, slope, s1, s2,
    SOME: tl.constexpr, ACT: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    z = centred * scale[None, :] + offset[None, :]
    if RESIDUAL:
        z += residual
    dz = times_derivative(dy, z, slope, ACT)
    if SOME:
        dz = tl.where(rows[:, None], dz, 0.0)
    return s1 + dz, s2 + dz * centred


@triton.jit
def gradient_sums_kernel(
    dy_at, x_at, residual_at, moments, weight, bias, out, M, rows_per_part, slope,
    ACT: tl.constexpr, RESIDUAL: tl.constexpr, C: tl.constexpr, R: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """out [parts, 2 C]: the sums of dz and of dz (x - mean) of each part."""
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
    whole = first + (last - first) // R * R
    for start in tl.range(first, whole, R, num_stages=STAGES):
        dy, c, r = _load_gradient(dy_at, x_at, residual_at, start, last, mean, False, RESIDUAL, C, R, K)
        s1, s2 = _add_gradient(dy, c, r, None, scale, offset, slope, s1, s2, False, ACT, RESIDUAL)
    if whole < last:
        dy, c, r = _load_gradient(dy_at, x_at, residual_at, whole, last, mean, True, RESIDUAL, C, R, K)
        rows = whole + tl.arange(0, R) < last
        s1, s2 = _add_gradient(dy, c, r, rows, scale, offset, slope, s1, s2, True, ACT, RESIDUAL)
    t1 = tl.sum(s1.to(tl.float64), axis=0)
    t2 = tl.sum(s2.to(tl.float64), axis=0)
    tl.store(out + part * 2 * C + columns, t1, mask=inside)
    tl.store(out + part * 2 * C + C + columns, t2 - low.to(tl.float64) * t1, mask=inside)
