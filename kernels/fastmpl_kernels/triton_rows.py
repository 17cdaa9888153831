"""What the Triton kernels of the row losses share: launch shapes, and the parts of a softmax over one row.

A program takes one row, in blocks of at most 4096 columns, and walks it several times: for the maximum, the sum, the draw,
the gradient. The class count and the row stride are constants of the compiled kernel. Up to 4096 classes each walk has one
step, and the compiler merges the walks' loads into one, which is 128 bits wide where the row's start allows it. More than 8
columns a thread would spill, so each walk reads a longer row again, from the cache.
"""

from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

LONGEST_BLOCK = 4096


class LaunchShape(NamedTuple):
    """The columns that a program holds at once, and the warps that hold them: 8 columns a thread, 16 bytes of bfloat16.

    `registers` is a ceiling for the assembler where a row has several blocks; without it the assembler stops at 64 and
    spills.
    """

    block: int
    warps: int
    registers: int | None


def launch_shape(columns: int) -> LaunchShape:
    """The launch shape for rows of `columns` classes."""
    block = min(LONGEST_BLOCK, max(16, triton.next_power_of_2(columns)))
    return LaunchShape(block, min(max(block // 256, 1), 16), 128 if columns > LONGEST_BLOCK else None)


def rows_of(logits: Tensor) -> Tensor:
    """`logits` with neighbouring columns next to each other in memory, and any row stride."""
    return logits if logits.stride(-1) == 1 and logits.stride(0) >= logits.shape[1] else logits.contiguous()


def on_device(tensor: Tensor) -> torch.cuda.device_of:
    """Makes the tensor's device the current one, because Triton launches on the current device."""
    return torch.cuda.device_of(tensor)


@cache
def _arrivals(device: torch.device, stream: int) -> Tensor:
    return torch.zeros(1, dtype=torch.int32, device=device)


def arrivals(tensor: Tensor) -> Tensor:
    """The counter of finished programs, for launches of one stream, which run one after another. It starts at 0, and the
    last program of each launch sets it back to 0, so that no launch has to clear it."""
    stream = torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0
    return _arrivals(tensor.device, stream)


@triton.jit
def add_up_parts(part_ptr, out_ptr, arrivals_ptr, programs, KINDS: tl.constexpr):
    """Counts this program. The last one adds up part [KINDS, programs] into out [KINDS], in an order that does not depend
    on which program is the last. The barrier orders this program's parts before its arrival, the arrival before the sum."""
    tl.debug_barrier()
    if tl.atomic_add(arrivals_ptr, 1, sem="acq_rel") == programs - 1:
        for kind in range(KINDS):
            total = tl.full((256,), 0.0, tl.float32)
            for start in range(0, programs, 256):
                row = start + tl.arange(0, 256)
                total += tl.load(part_ptr + kind * programs + row, mask=row < programs, other=0.0, cache_modifier=".cg")
            tl.store(out_ptr + kind, tl.sum(total, axis=0))
        tl.store(arrivals_ptr, 0)


@triton.jit
def load_row(row_ptr, column, K: tl.constexpr, padding: tl.constexpr):
    """Loads columns of a row as float32, `padding` past its end."""
    return tl.load(row_ptr + column, mask=column < K, other=padding).to(tl.float32)


@triton.jit
def exponential(x, top, scale):
    """e^((x - top) * scale); 0 where x is the padding, -inf."""
    return tl.exp((x - top) * scale)


@triton.jit
def maximum(row_ptr, K: tl.constexpr, BLOCK: tl.constexpr):
    """The row's maximum."""
    top = tl.full((), float("-inf"), tl.float32)
    for start in range(0, K, BLOCK):
        column = start + tl.arange(0, BLOCK)
        top = tl.maximum(top, tl.max(load_row(row_ptr, column, K, float("-inf")), axis=0))
    return top


@triton.jit
def row_total(row_ptr, top, scale, K: tl.constexpr, BLOCK: tl.constexpr):
    """The sum of e^((x - top) * scale) over the row."""
    total = tl.full((), 0.0, tl.float32)
    for start in range(0, K, BLOCK):
        column = start + tl.arange(0, BLOCK)
        total += tl.sum(exponential(load_row(row_ptr, column, K, float("-inf")), top, scale), axis=0)
    return total


@triton.jit
def agreement(target, logits, top, column, K: tl.constexpr):
    """sum_c target_c (logit_c - top). The padding, and a class of probability 0 whose logit may be -inf, are masked before
    the product: -inf * 0 is NaN."""
    return tl.sum(target * tl.where((column < K) & (target != 0.0), logits - top, 0.0), axis=0)


@triton.jit
def splitmix64(x):
    """fastmpl_kernels.keyed.splitmix64 on unsigned 64-bit integers."""
    x = x + 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)
