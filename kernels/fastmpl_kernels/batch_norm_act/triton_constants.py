"""The finalisers of batch_norm_act, in Triton: they add partial sums in float64 and make the constants of each channel.

A finaliser reads PARTS parts of a few columns at once: a loop over one part at a time would wait for each of up to 512.
"""

import triton
import triton.language as tl

from fastmpl_kernels.batch_norm_act.triton_tiles import load

PARTS = 64  # that a finaliser reads at once
COLUMNS = 16  # of a finaliser's program: as many programs as there are, and whole cache lines of float64
FINALISER = {"PARTS": PARTS, "K": COLUMNS, "num_warps": 4}


@triton.jit
def _add_part_sums(
    sums, start, P, columns, t1, t2, SOME: tl.constexpr, C: tl.constexpr, PARTS: tl.constexpr, K: tl.constexpr
):  # fmt: skip
    part = start + tl.arange(0, PARTS)
    at = sums + part[:, None] * (2 * C) + columns[None, :]
    first = load(at, part < P, columns < C, SOME, C % K == 0)
    second = load(at + C, part < P, columns < C, SOME, C % K == 0)
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
    total = load(at, part < P, columns < C, SOME, C % K == 0)
    squares = load(at + C, part < P, columns < C, SOME, C % K == 0)
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
def moments_kernel(
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
def constants_kernel(
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
