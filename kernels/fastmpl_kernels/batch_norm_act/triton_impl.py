"""The phases of batch_norm_act in Triton, on channels-last tensors seen as [M rows, C columns].

A pass that sums splits the rows into `parts`, one row of partial sums each. A small kernel, the finaliser, adds them in
float64 and makes a float32 table of constants per channel, which a pass that writes reads. Forward is three launches, and
so are backward and tangent. There are no atomics, so every run has the same bits. C is constexpr: rows are aligned where C
allows it, and loads are then 128 bits wide.

A GPU hides the latency of memory by loads in flight. So a summing pass copies the next STAGES - 1 tiles to shared memory
while it adds one up, and a finaliser reads PARTS parts of a few columns at once: a loop over one part at a time would wait
for each of up to 512.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmpl_kernels.batch_norm_act.implementations import parts
from fastmpl_kernels.batch_norm_act.settings import NUMBER, Norm, Running, Tangents

RELU = tl.constexpr(NUMBER["relu"])
LEAKY_RELU = tl.constexpr(NUMBER["leaky_relu"])
SILU = tl.constexpr(NUMBER["silu"])
TILE_BYTES = 4096  # of x: two 128-bit loads a thread of four warps
STAGES = tl.constexpr(4)  # tiles of a summing pass, of which one is in use: 16 kB of shared memory for each tensor
PARTS = 64  # that a finaliser reads at once
COLUMNS = 16  # of a finaliser's program: as many programs as there are, and whole cache lines of float64
FINALISER = {"PARTS": PARTS, "K": COLUMNS, "num_warps": 4}


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
def _load(at, rows, columns, SOME_ROWS: tl.constexpr, ALL_COLUMNS: tl.constexpr):
    """at[rows, columns], 0 outside of the masks. Without a mask of rows the assembler keeps several loads in flight; loads
    that a predicate may skip it issues one after another."""
    if SOME_ROWS:
        return tl.load(at, mask=rows[:, None] & columns[None, :], other=0.0)
    if ALL_COLUMNS:
        return tl.load(at)
    return tl.load(at, mask=columns[None, :], other=0.0)


@triton.jit
def _load_tile(x_at, start, last, SOME: tl.constexpr, C: tl.constexpr, R: tl.constexpr, K: tl.constexpr):
    """The tile of x whose first row is `start`, in this program's columns, in float32. With SOME it may have rows outside
    of the part; they are 0, as columns outside of x are."""
    rows = start + tl.arange(0, R).to(tl.int64)
    columns = tl.program_id(1) * K + tl.arange(0, K)
    at = x_at + rows[:, None] * C + columns[None, :]
    return _load(at, rows < last, columns < C, SOME, C % K == 0).to(tl.float32)


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
    x = _load_tile(x_at, start, last, SOME, C, R, K)
    if ADD:
        x = (x + _load_tile(addend_at, start, last, SOME, C, R, K)).to(x_at.dtype.element_ty).to(tl.float32)
    return x


@triton.jit
def _store_sum(x_at, x, start, last, ADD: tl.constexpr, C: tl.constexpr, R: tl.constexpr, K: tl.constexpr):
    if ADD:
        at, mask = _places(start, last, C, R, K)
        tl.store(x_at + at, x.to(x_at.dtype.element_ty), mask=mask)


@triton.jit
def _sums_kernel(
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
def _add_part_sums(
    sums, start, P, columns, t1, t2, SOME: tl.constexpr, C: tl.constexpr, PARTS: tl.constexpr, K: tl.constexpr
):  # fmt: skip
    part = start + tl.arange(0, PARTS)
    at = sums + part[:, None] * (2 * C) + columns[None, :]
    first = _load(at, part < P, columns < C, SOME, C % K == 0)
    second = _load(at + C, part < P, columns < C, SOME, C % K == 0)
    return t1 + first, t2 + second


@triton.jit
def _add_parts(sums, columns, P, C: tl.constexpr, PARTS: tl.constexpr, K: tl.constexpr):
    """The sums over parts of two kinds of partial sums [P, 2 C]: PARTS parts at once, and then a tree."""
    t1 = tl.zeros([PARTS, K], tl.float64)
    t2 = tl.zeros([PARTS, K], tl.float64)
    whole = P // PARTS * PARTS
    for start in range(0, whole, PARTS):
        t1, t2 = _add_part_sums(sums, start, P, columns, t1, t2, False, C, PARTS, K)
    if whole < P:
        t1, t2 = _add_part_sums(sums, whole, P, columns, t1, t2, True, C, PARTS, K)
    return tl.sum(t1, axis=0), tl.sum(t2, axis=0)


@triton.jit
def _add_part_moments(
    sums, start, P, columns, origin, count, last_count, t1, t2,
    SOME: tl.constexpr, C: tl.constexpr, PARTS: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    part = start + tl.arange(0, PARTS)
    at = sums + part[:, None] * (2 * C + 1) + columns[None, :]
    total = _load(at, part < P, columns < C, SOME, C % K == 0)
    squares = _load(at + C, part < P, columns < C, SOME, C % K == 0)
    rows = tl.where(part < P - 1, count, last_count)
    inverse = tl.where(part < P - 1, 1.0 / count, 1.0 / last_count)
    moved = total - rows[:, None] * origin[None, :]
    if SOME:
        moved = tl.where((part < P)[:, None], moved, 0.0)
    return t1 + moved, t2 + (squares + moved * moved * inverse[:, None])


@triton.jit
def _merge_moments(sums, columns, P, C: tl.constexpr, PARTS: tl.constexpr, K: tl.constexpr):
    """Count, mean and sum of squares about the mean of all parts [P, 2 C + 1], whose own squares are about their own means
    (Chan, Golub and LeVeque, 1983). All parts but the last have equally many rows. The parts' means are taken about the
    first part's, so that nothing cancels."""
    count = tl.load(sums + 2 * C)
    last_count = tl.load(sums + (P - 1) * (2 * C + 1) + 2 * C)
    origin = tl.load(sums + columns, mask=columns < C, other=0.0) / count
    t1 = tl.zeros([PARTS, K], tl.float64)
    t2 = tl.zeros([PARTS, K], tl.float64)
    whole = P // PARTS * PARTS
    for start in range(0, whole, PARTS):
        t1, t2 = _add_part_moments(
            sums, start, P, columns, origin, count, last_count, t1, t2, False, C, PARTS, K
        )  # fmt: skip
    if whole < P:
        t1, t2 = _add_part_moments(sums, whole, P, columns, origin, count, last_count, t1, t2, True, C, PARTS, K)
    n = (P - 1) * count + last_count
    moved = tl.sum(t1, axis=0)
    return n, origin + moved / n, tl.sum(t2, axis=0) - moved * (moved / n)


@triton.jit
def _move(at, columns, inside, old, new, is_finite):
    """Moves a running statistic, except in channels whose new one is not finite: an average would never forget it."""
    tl.store(at + columns, tl.where(is_finite, new, old), mask=inside)


@triton.jit
def _moments_kernel(
    sums, moments, weight, bias, table, running_mean, running_var, P, momentum, eps,
    RUNNING: tl.constexpr, C: tl.constexpr, PARTS: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(0) * K + tl.arange(0, K)
    inside = columns < C
    count, mean, squares = _merge_moments(sums, columns, P, C, PARTS, K)
    var = squares / count
    var = tl.where(var < 0, 0.0, var)  # a NaN stays one
    rstd = (1.0 / tl.sqrt(tl.where(inside, var + eps, 1.0))).to(tl.float32)
    high = mean.to(tl.float32)
    low = (mean - high.to(tl.float64)).to(tl.float32)
    tl.store(moments + columns, high, mask=inside)
    tl.store(moments + C + columns, low, mask=inside)
    tl.store(moments + 2 * C + columns, rstd, mask=inside)
    inverse_count = tl.zeros([K], tl.float32) + (1.0 / count).to(tl.float32)
    tl.store(moments + 3 * C + columns, inverse_count, mask=inside)
    if RUNNING:
        old_mean = tl.load(running_mean + columns, mask=inside, other=0.0)
        old_var = tl.load(running_var + columns, mask=inside, other=0.0)
        new_mean = old_mean + (momentum * (mean - old_mean)).to(tl.float32)
        new_var = old_var + (momentum * (squares / (count - 1.0) - old_var)).to(tl.float32)
        is_finite = (new_mean - new_mean == 0.0) & (new_var - new_var == 0.0)
        _move(running_mean, columns, inside, old_mean, new_mean, is_finite)
        _move(running_var, columns, inside, old_var, new_var, is_finite)
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
def _load_gradient(
    dy_at, x_at, residual_at, start, last, mean,
    SOME: tl.constexpr, RESIDUAL: tl.constexpr, C: tl.constexpr, R: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """A tile of dy, of x - mean, and of the residual (x where there is none)."""
    dy = _load_tile(dy_at, start, last, SOME, C, R, K)
    x = _load_tile(x_at, start, last, SOME, C, R, K)
    residual = x
    if RESIDUAL:
        residual = _load_tile(residual_at, start, last, SOME, C, R, K)
    return dy, x - mean[None, :], residual


@triton.jit
def _add_gradient(
    dy, centred, residual, rows, scale, offset, slope, s1, s2,
    SOME: tl.constexpr, ACT: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    z = centred * scale[None, :] + offset[None, :]
    if RESIDUAL:
        z += residual
    dz = _times_derivative(dy, z, slope, ACT)
    if SOME:
        dz = tl.where(rows[:, None], dz, 0.0)
    return s1 + dz, s2 + dz * centred


@triton.jit
def _gradient_sums_kernel(
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


@triton.jit
def _constants_kernel(
    moments, sums, weight, bias, weight_tangent, bias_tangent, local, dweight, dbias, table, P, Q,
    TANGENT: tl.constexpr, RANKS: tl.constexpr, C: tl.constexpr, PARTS: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """table [4, C]: scale, offset, slant, level of the writing passes of backward (TANGENT False) and forward mode.
    `local` [Q, 2 C] are this rank's sums; without RANKS they are `sums`."""
    columns = tl.program_id(0) * K + tl.arange(0, K)
    inside = columns < C
    low = tl.load(moments + C + columns, mask=inside, other=0.0)
    rstd = tl.load(moments + 2 * C + columns, mask=inside, other=0.0)
    inverse_count = tl.load(moments + 3 * C + columns, mask=inside, other=0.0)
    scale = tl.load(weight + columns, mask=inside, other=0.0) * rstd
    offset = tl.load(bias + columns, mask=inside, other=0.0) - low * scale
    total, product = _add_parts(sums, columns, P, C, PARTS, K)
    slant = -scale.to(tl.float64) * rstd * rstd * product * inverse_count
    level = -scale.to(tl.float64) * total * inverse_count
    if TANGENT:
        slant += tl.load(weight_tangent + columns, mask=inside, other=0.0) * rstd
        level += tl.load(bias_tangent + columns, mask=inside, other=0.0)
    else:
        if RANKS:
            total, product = _add_parts(local, columns, Q, C, PARTS, K)
        tl.store(dbias + columns, total.to(tl.float32), mask=inside)
        tl.store(dweight + columns, (product * rstd).to(tl.float32), mask=inside)
    tl.store(table + columns, scale, mask=inside)
    tl.store(table + C + columns, offset, mask=inside)
    tl.store(table + 2 * C + columns, slant.to(tl.float32), mask=inside)
    tl.store(table + 3 * C + columns, (level - slant * low).to(tl.float32), mask=inside)


@triton.jit
def _derivative_kernel(
    in_at, x_at, residual_at, residual_in_at, out_at, residual_out_at, moments, table, M, slope,
    TANGENT: tl.constexpr, JOINED: tl.constexpr, ACT: tl.constexpr, RESIDUAL: tl.constexpr, C: tl.constexpr,
    R: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """dx (and the residual's gradient) from dy, or with TANGENT the tangent of y from that of x (and the residual's). With
    JOINED `residual_in` is a gradient of x from elsewhere, and dx is their sum."""
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
    _sums_kernel[(P, triton.cdiv(C, K))](
        x, x if addend is None else addend, out, M, per_part, ADD=addend is not None, C=C, R=R, K=K
    )
    return out


def forward(x: Tensor, partial: Tensor, norm: Norm, running: Running) -> tuple[Tensor, Tensor]:
    M, C, _, _, R, K = _shape(x)
    y = torch.empty_like(x)
    moments, table = (torch.empty((n, C), dtype=torch.float32, device=x.device) for n in (4, 2))
    moves = running.mean is not None and running.var is not None
    _moments_kernel[(triton.cdiv(C, COLUMNS),)](
        partial, moments, norm.weight, norm.bias, table, running.mean if moves else norm.weight,
        running.var if moves else norm.weight, partial.shape[0], running.momentum, running.eps, RUNNING=moves, C=C,
        **FINALISER,
    )  # fmt: skip
    _forward_kernel[(triton.cdiv(M, R), triton.cdiv(C, K))](
        x, x if norm.residual is None else norm.residual, y, moments, table, M, norm.slope,
        ACT=norm.activation, RESIDUAL=norm.residual is not None, C=C, R=R, K=K,
    )  # fmt: skip
    return y, moments


def gradient_sums(dy: Tensor, x: Tensor, moments: Tensor, norm: Norm) -> Tensor:
    M, C, P, per_part, R, K = _shape(x)
    out = torch.empty((P, 2 * C), dtype=torch.float64, device=x.device)
    _gradient_sums_kernel[(P, triton.cdiv(C, K))](
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
    _constants_kernel[(triton.cdiv(C, COLUMNS),)](
        moments, partial, norm.weight, norm.bias, norm.weight, norm.bias, local, dweight, dbias, table,
        partial.shape[0], local.shape[0],
        TANGENT=False, RANKS=local is not partial, C=C, **FINALISER,
    )  # fmt: skip
    _derivative_kernel[(triton.cdiv(M, R), triton.cdiv(C, K))](
        dy, x, x if norm.residual is None else norm.residual, x if elsewhere is None else elsewhere, dx,
        x if norm.residual is None else dresidual, moments, table, M, norm.slope, TANGENT=False,
        JOINED=elsewhere is not None, ACT=norm.activation,
        RESIDUAL=norm.residual is not None, C=C, R=R, K=K,
    )  # fmt: skip
    return dx, dresidual, dweight, dbias


def tangent(x: Tensor, tangents: Tangents, moments: Tensor, partial: Tensor, norm: Norm) -> Tensor:
    M, C, _, _, R, K = _shape(x)
    out, table = torch.empty_like(x), torch.empty_like(moments)
    _constants_kernel[(triton.cdiv(C, COLUMNS),)](
        moments, partial, norm.weight, norm.bias, tangents.weight, tangents.bias, partial, table, table, table,
        partial.shape[0], 0,
        TANGENT=True, RANKS=False, C=C, **FINALISER,
    )  # fmt: skip
    _derivative_kernel[(triton.cdiv(M, R), triton.cdiv(C, K))](
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
