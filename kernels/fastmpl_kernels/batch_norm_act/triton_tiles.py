"""What the Triton kernels of batch_norm_act that go through x share: the size of a tile, its loads, the activation.

x is a channels-last tensor seen as [M rows, C columns]; a program works on tiles of R rows and K columns. C is constexpr:
rows are aligned where C allows it, and loads are then 128 bits wide.
"""

import triton
import triton.language as tl

from fastmpl_kernels.batch_norm_act.settings import NUMBER

RELU = tl.constexpr(NUMBER["relu"])
LEAKY_RELU = tl.constexpr(NUMBER["leaky_relu"])
SILU = tl.constexpr(NUMBER["silu"])
TILE_BYTES = 4096  # of x: two 128-bit loads a thread of four warps


def tile(channels: int, element_size: int) -> tuple[int, int]:
    """Rows and columns of a tile."""
    columns = min(128, triton.next_power_of_2(channels))
    return TILE_BYTES // element_size // columns, columns


@triton.jit
def value(z, slope, ACT: tl.constexpr):
    if ACT == RELU:
        z = tl.where(z <= 0, 0.0, z)  # a NaN stays one
    elif ACT == LEAKY_RELU:
        z = tl.where(z > 0, z, z * slope)
    elif ACT == SILU:
        z = z / (1.0 + tl.exp(-z))
    return z


@triton.jit
def times_derivative(d, z, slope, ACT: tl.constexpr):
    if ACT == RELU:
        d = tl.where(z <= 0, 0.0, d)
    elif ACT == LEAKY_RELU:
        d = tl.where(z > 0, d, d * slope)
    elif ACT == SILU:
        s = 1.0 / (1.0 + tl.exp(-z))
        d = d * (s * (1.0 + z * (1.0 - s)))
    return d


@triton.jit
def places(start, M, C: tl.constexpr, R: tl.constexpr, K: tl.constexpr):
    """64-bit offsets and mask of the tile whose first row is `start`, in this program's columns."""
    rows = start + tl.arange(0, R).to(tl.int64)
    columns = tl.program_id(1) * K + tl.arange(0, K)
    return rows[:, None] * C + columns[None, :], (rows < M)[:, None] & (columns < C)[None, :]


@triton.jit
def load(at, rows, columns, SOME_ROWS: tl.constexpr, ALL_COLUMNS: tl.constexpr):
    """at[rows, columns], 0 outside of the masks. Without a mask of rows the assembler keeps several loads in flight; loads
    that a predicate may skip it issues one after another."""
    if SOME_ROWS:
        return tl.load(at, mask=rows[:, None] & columns[None, :], other=0.0)
    if ALL_COLUMNS:
        return tl.load(at)
    return tl.load(at, mask=columns[None, :], other=0.0)


@triton.jit
def load_tile(x_at, start, last, SOME: tl.constexpr, C: tl.constexpr, R: tl.constexpr, K: tl.constexpr):
    """The tile of x whose first row is `start`, in this program's columns, in float32. With SOME it may have rows outside
    of the part; they are 0, as columns outside of x are."""
    rows = start + tl.arange(0, R).to(tl.int64)
    columns = tl.program_id(1) * K + tl.arange(0, K)
    at = x_at + rows[:, None] * C + columns[None, :]
    return load(at, rows < last, columns < C, SOME, C % K == 0).to(tl.float32)
