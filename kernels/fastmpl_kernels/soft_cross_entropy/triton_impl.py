"""Cross-entropy with label smoothing as one Triton kernel: a program a row."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmpl_kernels.rows import gradient_like
from fastmpl_kernels.triton_rows import (
    add_up_parts,
    agreement,
    arrivals,
    exponential,
    launch_shape,
    load_row,
    maximum,
    on_device,
    row_total,
    rows_of,
)


@triton.jit
def cross_entropy_rows(
    logits_ptr,
    target_ptr,
    part_ptr,
    loss_ptr,
    arrivals_ptr,
    gradient_ptr,
    label_smoothing,
    inverse_rows,
    rows,
    STRIDE: tl.constexpr,
    TARGET_STRIDE: tl.constexpr,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
    HARD: tl.constexpr,
    WITH_GRADIENT: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * STRIDE
    target_ptr += row * TARGET_STRIDE
    peak = maximum(logits_ptr, K, BLOCK)
    total = row_total(logits_ptr, peak, 1.0, K, BLOCK)
    kept = 1.0 - label_smoothing
    mass = 1.0
    if not HARD:  # a distribution that was rounded to 16 bits does not sum to one
        mass = label_smoothing
        for start in range(0, K, BLOCK):
            column = start + tl.arange(0, BLOCK)
            mass += kept * tl.sum(load_row(target_ptr, column, K, 0.0), axis=0)

    agreed = tl.full((), 0.0, tl.float32)
    for start in range(0, K, BLOCK):
        column = start + tl.arange(0, BLOCK)
        logits = load_row(logits_ptr, column, K, float("-inf"))
        if HARD:
            target = tl.where(column == tl.load(target_ptr), kept, 0.0)
        else:
            target = kept * load_row(target_ptr, column, K, 0.0)
        target += label_smoothing / K
        agreed += agreement(target, logits, peak, column, K)
        if WITH_GRADIENT:
            gradient = (exponential(logits, peak, 1.0) * (mass / total) - target) * inverse_rows
            tl.store(gradient_ptr + row * K + column, gradient.to(gradient_ptr.dtype.element_ty), mask=column < K)
    tl.store(part_ptr + row, (mass * tl.log(total) - agreed) * inverse_rows)
    add_up_parts(part_ptr, loss_ptr, arrivals_ptr, rows, 1)


def run(logits: Tensor, target: Tensor, label_smoothing: float, with_gradient: bool) -> tuple[Tensor, Tensor]:
    """The loss and its gradient by the logits, which is empty unless asked for."""
    rows, columns = logits.shape
    hard = target.dim() == 1
    logits = rows_of(logits)
    target = target.contiguous() if hard else rows_of(target)
    part = torch.empty(rows, dtype=torch.float32, device=logits.device)
    loss = torch.empty((), dtype=torch.float32, device=logits.device)
    gradient = gradient_like(logits, with_gradient)
    block, warps, registers = launch_shape(columns)
    with on_device(logits):
        cross_entropy_rows[(rows,)](
            logits,
            target,
            part,
            loss,
            arrivals(logits),
            gradient,
            label_smoothing,
            1.0 / rows,
            rows,
            STRIDE=logits.stride(0),
            TARGET_STRIDE=target.stride(0),
            K=columns,
            BLOCK=block,
            HARD=hard,
            WITH_GRADIENT=with_gradient,
            num_warps=warps,
            maxnreg=registers,
        )
    return loss, gradient
