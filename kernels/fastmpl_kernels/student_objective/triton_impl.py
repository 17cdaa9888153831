"""The student's loss as one Triton kernel: a program a row, two row loads, one row store."""

import torch
import triton
import triton.language as tl

from fastmpl_kernels.rows import gradient_like
from fastmpl_kernels.student_objective.arguments import StudentArguments, StudentResults
from fastmpl_kernels.student_objective.native import TARGETS
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
    splitmix64,
)

SOFT = tl.constexpr(TARGETS["soft"])
SAMPLED = tl.constexpr(TARGETS["sampled"])


@triton.jit
def _fixed_point(weight):
    return (weight * 1073741824.0 + 0.5).to(tl.int32).to(tl.int64)


@triton.jit
def _most_probable(row_ptr, top, K: tl.constexpr, BLOCK: tl.constexpr):
    """The first column that holds the maximum; the last column where none does (a row of NaN)."""
    label = tl.full((), K - 1, tl.int32)
    for start in range(0, K, BLOCK):
        column = start + tl.arange(0, BLOCK)
        hit = load_row(row_ptr, column, K, float("-inf")) == top
        label = tl.minimum(label, tl.min(tl.where(hit, column, K - 1), axis=0))
    return label


@triton.jit
def _draw(row_ptr, top, inverse_temperature, key, index, K: tl.constexpr, BLOCK: tl.constexpr):
    """The inverse of the cumulative distribution at the row's keyed uniform number (reference.draw)."""
    total = tl.full((), 0, tl.int64)
    for start in range(0, K, BLOCK):
        column = start + tl.arange(0, BLOCK)
        weight = exponential(load_row(row_ptr, column, K, float("-inf")), top, inverse_temperature)
        total += tl.sum(_fixed_point(weight), axis=0)
    bits = splitmix64(splitmix64((key + index).to(tl.uint64, bitcast=True))) >> 41
    odd = (bits * 2 + 1).to(tl.int64)
    point = odd * (total >> 24) + ((odd * (total & 0xFFFFFF)) >> 24)
    below = tl.full((), 0, tl.int64)
    label = tl.full((), 0, tl.int32)
    for start in range(0, K, BLOCK):
        column = start + tl.arange(0, BLOCK)
        weight = exponential(load_row(row_ptr, column, K, float("-inf")), top, inverse_temperature)
        cumulative = below + tl.cumsum(_fixed_point(weight), axis=0)
        label += tl.sum((cumulative <= point).to(tl.int32), axis=0)
        below += tl.sum(_fixed_point(weight), axis=0)
    return tl.minimum(label, K - 1)


@triton.jit
def student_rows(
    label_logits_ptr,
    student_logits_ptr,
    key_ptr,
    index_ptr,
    part_ptr,
    parts_ptr,
    arrivals_ptr,
    label_ptr,
    mask_ptr,
    gradient_ptr,
    inverse_temperature,
    label_smoothing,
    threshold,
    inverse_rows,
    rows,
    LABEL_STRIDE: tl.constexpr,
    STUDENT_STRIDE: tl.constexpr,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
    TARGETS: tl.constexpr,
    WITH_GRADIENT: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    label_logits_ptr += row * LABEL_STRIDE
    student_logits_ptr += row * STUDENT_STRIDE
    top = maximum(label_logits_ptr, K, BLOCK)
    total = row_total(label_logits_ptr, top, inverse_temperature, K, BLOCK)
    if TARGETS == SAMPLED:
        key, index = tl.load(key_ptr), tl.load(index_ptr + row)
        label = _draw(label_logits_ptr, top, inverse_temperature, key, index, K, BLOCK)
    else:
        label = _most_probable(label_logits_ptr, top, K, BLOCK)
    peak = maximum(student_logits_ptr, K, BLOCK)
    student_total = row_total(student_logits_ptr, peak, 1.0, K, BLOCK)
    keep = 1.0 / total >= threshold
    kept = 1.0 - label_smoothing
    agreed = tl.full((), 0.0, tl.float32)
    for start in range(0, K, BLOCK):
        column = start + tl.arange(0, BLOCK)
        student = load_row(student_logits_ptr, column, K, float("-inf"))
        if TARGETS == SOFT:
            labelling = load_row(label_logits_ptr, column, K, float("-inf"))
            target = exponential(labelling, top, inverse_temperature) * (kept / total)
        else:
            target = tl.where(column == label, kept, 0.0)
        target += label_smoothing / K
        agreed += agreement(target, student, peak, column, K)
        if WITH_GRADIENT:
            gradient = (exponential(student, peak, 1.0) / student_total - target) * inverse_rows
            gradient = tl.where(keep, gradient, 0.0).to(gradient_ptr.dtype.element_ty)
            tl.store(gradient_ptr + row * K + column, gradient, mask=column < K)

    tl.store(label_ptr + row, label.to(tl.int64))
    tl.store(mask_ptr + row, keep)
    tl.store(part_ptr + row, tl.where(keep, (tl.log(student_total) - agreed) * inverse_rows, 0.0))
    tl.store(part_ptr + rows + row, inverse_rows / total)
    tl.store(part_ptr + 2 * rows + row, tl.where(keep, inverse_rows, 0.0))
    add_up_parts(part_ptr, parts_ptr, arrivals_ptr, rows, 3)


def run(a: StudentArguments) -> StudentResults:
    """The loss, labels and gradient of one call."""
    rows, columns = a.student_logits.shape
    label_logits, student_logits = rows_of(a.label_logits), rows_of(a.student_logits)
    part = torch.empty(3 * rows, dtype=torch.float32, device=student_logits.device)
    parts = torch.empty(3, dtype=torch.float32, device=student_logits.device)
    label = torch.empty(rows, dtype=torch.int64, device=student_logits.device)
    mask = torch.empty(rows, dtype=torch.bool, device=student_logits.device)
    gradient = gradient_like(student_logits, a.with_gradient)
    block, warps, registers = launch_shape(columns)
    with on_device(student_logits):
        student_rows[(rows,)](
            label_logits,
            student_logits,
            a.key,
            None if a.image is None else a.image.contiguous(),
            part,
            parts,
            arrivals(student_logits),
            label,
            mask,
            gradient,
            1.0 / a.temperature,
            a.label_smoothing,
            a.threshold,
            1.0 / rows,
            rows,
            LABEL_STRIDE=label_logits.stride(0),
            STUDENT_STRIDE=student_logits.stride(0),
            K=columns,
            BLOCK=block,
            TARGETS=TARGETS[a.targets],
            WITH_GRADIENT=a.with_gradient,
            num_warps=warps,
            maxnreg=registers,
        )
    return StudentResults(parts, label, mask, gradient)
