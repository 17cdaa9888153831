"""sgd_ema and global_norm in Triton: one launch over a table of blocks (tables.py), whatever the number of tensors."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmpl_kernels.sgd_ema.arguments import SgdArguments
from fastmpl_kernels.sgd_ema.tables import BLOCK, table_of


@triton.jit
def _base(addresses, tensor, ALIGNED: tl.constexpr):
    """A pointer to the first element of a tensor."""
    base = tl.load(addresses + tensor).to(tl.pointer_type(tl.float32))
    if ALIGNED:
        base = tl.multiple_of(base, 16)
    return base


@triton.jit
def _step(
    p_at, g_at, b_at, a_at, mask, lr, clip, rest, momentum, weight_decay, NESTEROV: tl.constexpr, AVERAGE: tl.constexpr
):  # fmt: skip
    p = tl.load(p_at, mask=mask)
    d = clip * tl.load(g_at, mask=mask) + weight_decay * p
    velocity = momentum * tl.load(b_at, mask=mask) + d
    tl.store(b_at, velocity, mask=mask)
    step = velocity
    if NESTEROV:
        step = d + momentum * velocity
    moved = p - lr * step
    tl.store(p_at, moved, mask=mask)
    if AVERAGE:
        a = tl.load(a_at, mask=mask)
        tl.store(a_at, a + rest * (moved - a), mask=mask)


@triton.jit
def _sgd_ema_kernel(
    addresses, sizes, tensors, blocks, count, lr_at, clip_factor, found_inf, decay,
    momentum, weight_decay,
    NESTEROV: tl.constexpr, AVERAGE: tl.constexpr, CLIP: tl.constexpr, SKIP: tl.constexpr, ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    tensor = tl.load(tensors + program).to(tl.int64)
    first = tl.load(blocks + program).to(tl.int64) * BLOCK
    size = tl.load(sizes + tensor)
    offsets = first + tl.arange(0, BLOCK)
    p_at = _base(addresses, tensor, ALIGNED) + offsets
    g_at = _base(addresses + count, tensor, ALIGNED) + offsets
    b_at = _base(addresses + 2 * count, tensor, ALIGNED) + offsets
    a_at = p_at
    rest = 0.0
    if AVERAGE:
        a_at = _base(addresses + 3 * count, tensor, ALIGNED) + offsets
        rest = 1.0 - tl.load(decay)
    clip = 1.0
    if CLIP:
        clip = tl.load(clip_factor)
    lr = tl.load(lr_at)
    live = True
    if SKIP:
        live = tl.load(found_inf) == 0
    if live:  # else nothing is read or written: everything stays
        if first + BLOCK <= size:  # without a mask loads are 128 bits wide
            _step(p_at, g_at, b_at, a_at, None, lr, clip, rest, momentum, weight_decay, NESTEROV, AVERAGE)
        else:
            _step(p_at, g_at, b_at, a_at, offsets < size, lr, clip, rest, momentum, weight_decay, NESTEROV, AVERAGE)


@triton.jit
def _squares_kernel(addresses, sizes, tensors, blocks, out, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    tensor = tl.load(tensors + program).to(tl.int64)
    first = tl.load(blocks + program).to(tl.int64) * BLOCK
    size = tl.load(sizes + tensor)
    offsets = first + tl.arange(0, BLOCK)
    at = _base(addresses, tensor, ALIGNED) + offsets
    if first + BLOCK <= size:
        g = tl.load(at).to(tl.float64)
        tl.store(out + program, tl.sum(g * g, axis=0))
    else:
        g = tl.load(at, mask=offsets < size, other=0.0).to(tl.float64)
        tl.store(out + program, tl.sum(g * g, axis=0))


def sgd_ema(step: SgdArguments) -> None:
    table = table_of(step.lists())
    if table.tensor.numel() == 0:
        return
    lr, clip_factor, found_inf = step.lr, step.clip_factor, step.found_inf
    _sgd_ema_kernel[(table.tensor.numel(),)](
        table.addresses, table.sizes, table.tensor, table.block, len(step.params),
        lr, lr if clip_factor is None else clip_factor, lr if found_inf is None else found_inf, step.decay,
        step.momentum, step.weight_decay,
        NESTEROV=step.nesterov, AVERAGE=bool(step.averages), CLIP=clip_factor is not None, SKIP=found_inf is not None,
        ALIGNED=table.aligned, BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip


def global_norm(grads: list[Tensor]) -> Tensor:
    table = table_of([grads])
    squares = torch.empty(table.tensor.numel(), dtype=torch.float64, device=grads[0].device)
    if squares.numel():
        _squares_kernel[(squares.numel(),)](
            table.addresses, table.sizes, table.tensor, table.block, squares,
            ALIGNED=table.aligned, BLOCK=BLOCK, num_warps=4,
        )  # fmt: skip
    return squares.sum().sqrt().float()
