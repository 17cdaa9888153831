"""The teacher's losses and logits gradients as one Triton kernel: a program a row, labelled rows first."""

import torch
import triton
import triton.language as tl

from fastmpl_kernels.rows import gradient_like
from fastmpl_kernels.teacher_objective.arguments import TeacherArguments, TeacherResults
from fastmpl_kernels.teacher_objective.native import KINDS
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

NONE = tl.constexpr(KINDS["none"])
EXACT = tl.constexpr(KINDS["exact"])
ON_LABEL = tl.constexpr(KINDS["scalar"])


@triton.jit
def _mean(row_ptr, tangent_ptr, top, scale, total, K: tl.constexpr, BLOCK: tl.constexpr):
    """<q, tangent> with q = softmax(x * scale)."""
    mean = tl.full((), 0.0, tl.float32)
    for start in range(0, K, BLOCK):
        column = start + tl.arange(0, BLOCK)
        weight = exponential(load_row(row_ptr, column, K, float("-inf")), top, scale)
        mean += tl.sum(weight * load_row(tangent_ptr, column, K, 0.0), axis=0)
    return mean / total


@triton.jit
def _store_parts(part_ptr, programs, loss, supervised, uda, feedback, coverage):
    """A row's share of each sum: part is [5, programs], part_ptr points to this program's column."""
    tl.store(part_ptr, loss)
    tl.store(part_ptr + programs, supervised)
    tl.store(part_ptr + 2 * programs, uda)
    tl.store(part_ptr + 3 * programs, feedback)
    tl.store(part_ptr + 4 * programs, coverage)


@triton.jit
def _store_row(row_ptr, column, values, K: tl.constexpr):
    tl.store(row_ptr + column, values.to(row_ptr.dtype.element_ty), mask=column < K)


@triton.jit
def _labelled_row(
    logits_ptr, label, gradient_ptr, part_ptr, programs, share, weight, label_smoothing,
    K: tl.constexpr, BLOCK: tl.constexpr, WITH_GRADIENT: tl.constexpr,
):  # fmt: skip
    """Cross-entropy with the smoothed label."""
    peak = maximum(logits_ptr, K, BLOCK)
    total = row_total(logits_ptr, peak, 1.0, K, BLOCK)
    agreed = tl.full((), 0.0, tl.float32)
    for start in range(0, K, BLOCK):
        column = start + tl.arange(0, BLOCK)
        logits = load_row(logits_ptr, column, K, float("-inf"))
        target = tl.where(column == label, 1.0 - label_smoothing, 0.0) + label_smoothing / K
        agreed += agreement(target, logits, peak, column, K)
        if WITH_GRADIENT:
            gradient = (exponential(logits, peak, 1.0) / total - target) * (share * weight)
            _store_row(gradient_ptr, column, gradient, K)
    supervised = share * (tl.log(total) - agreed)
    _store_parts(part_ptr, programs, weight * supervised, supervised, 0.0, 0.0, 0.0)


@triton.jit
def _unlabelled_row(
    strong_ptr, weak_ptr, tangent_ptr, strong_gradient_ptr, weak_gradient_ptr, part_ptr, programs,
    label, credit, share, uda_weight, weight, inverse_temperature, uda_inverse_temperature, uda_threshold,
    K: tl.constexpr, BLOCK: tl.constexpr, UDA: tl.constexpr, KIND: tl.constexpr, ON_WEAK: tl.constexpr,
    STRONG_GRADIENT: tl.constexpr, WEAK_GRADIENT: tl.constexpr,
):  # fmt: skip
    """Consistency of the strong view with the weak one, and the feedback on the view that labelled."""
    coverage = tl.full((), 0.0, tl.float32)
    if UDA:
        weak_top = maximum(weak_ptr, K, BLOCK)
        weak_total = row_total(weak_ptr, weak_top, uda_inverse_temperature, K, BLOCK)
        peak = maximum(strong_ptr, K, BLOCK)
        strong_total = row_total(strong_ptr, peak, 1.0, K, BLOCK)
        coverage = tl.where(1.0 / weak_total >= uda_threshold, share, 0.0)
    if KIND != NONE:
        view_ptr = weak_ptr if ON_WEAK else strong_ptr
        top = maximum(view_ptr, K, BLOCK)
        total = row_total(view_ptr, top, inverse_temperature, K, BLOCK)
        if KIND == EXACT:
            mean = _mean(view_ptr, tangent_ptr, top, inverse_temperature, total, K, BLOCK)

    agreed = tl.full((), 0.0, tl.float32)
    label_logit = tl.full((), 0.0, tl.float32)
    for start in range(0, K, BLOCK):
        column = start + tl.arange(0, BLOCK)
        gradient = tl.zeros((BLOCK,), tl.float32)
        if UDA:
            strong = load_row(strong_ptr, column, K, float("-inf"))
            target = exponential(load_row(weak_ptr, column, K, float("-inf")), weak_top, uda_inverse_temperature)
            target = target / weak_total
            agreed += agreement(target, strong, peak, column, K)
            slope = (exponential(strong, peak, 1.0) / strong_total - target) * (uda_weight * share)
            gradient += tl.where(coverage > 0.0, slope, 0.0)
        if KIND != NONE:
            view = load_row(view_ptr, column, K, float("-inf"))
            q = exponential(view, top, inverse_temperature) / total
            if KIND == EXACT:
                slope = q * (load_row(tangent_ptr, column, K, 0.0) - mean)
            else:
                slope = tl.where(column == label, 1.0 - q, -q)
                label_logit += tl.sum(tl.where(column == label, view - top, 0.0), axis=0)
            slope *= weight * credit * inverse_temperature
            if not ON_WEAK:
                gradient += slope
            if WEAK_GRADIENT:
                _store_row(weak_gradient_ptr, column, slope, K)
        if STRONG_GRADIENT:
            _store_row(strong_gradient_ptr, column, gradient, K)

    uda = tl.full((), 0.0, tl.float32)
    feedback = tl.full((), 0.0, tl.float32)
    loss = tl.full((), 0.0, tl.float32)
    if UDA:
        uda = tl.where(coverage > 0.0, share * (tl.log(strong_total) - agreed), 0.0)
        loss += uda_weight * uda
    if KIND != NONE:
        feedback = credit * (mean if KIND == EXACT else label_logit * inverse_temperature - tl.log(total))
        loss += weight * feedback
    _store_parts(part_ptr, programs, loss, 0.0, uda, feedback, coverage)


@triton.jit
def _read(pointer):
    """The 0-D float that `pointer` points to."""
    return tl.load(pointer).to(tl.float32)


@triton.jit
def teacher_rows(
    labelled_ptr, strong_ptr, weak_ptr, target_ptr, uda_weight_ptr, feedback_weight_ptr, tangent_ptr, credit_ptr,
    drawn_ptr, part_ptr, parts_ptr, arrivals_ptr, labelled_gradient_ptr, strong_gradient_ptr, weak_gradient_ptr,
    labelled, programs, labelled_share, unlabelled_share, supervised_weight, label_smoothing,
    inverse_temperature, uda_inverse_temperature, uda_threshold, credit_sign,
    LABELLED_STRIDE: tl.constexpr, STRONG_STRIDE: tl.constexpr, WEAK_STRIDE: tl.constexpr,
    TANGENT_STRIDE: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr,
    UDA: tl.constexpr, KIND: tl.constexpr, CREDIT_A_ROW: tl.constexpr, ON_WEAK: tl.constexpr,
    LABELLED_GRADIENT: tl.constexpr, STRONG_GRADIENT: tl.constexpr, WEAK_GRADIENT: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    every_part_ptr = part_ptr
    part_ptr += program
    if program < labelled:
        _labelled_row(
            labelled_ptr + program * LABELLED_STRIDE, tl.load(target_ptr + program),
            labelled_gradient_ptr + program * K, part_ptr, programs,
            labelled_share, supervised_weight, label_smoothing, K, BLOCK, LABELLED_GRADIENT,
        )  # fmt: skip
    else:
        row = program - labelled
        _unlabelled_row(
            strong_ptr + row * STRONG_STRIDE,
            weak_ptr + row * WEAK_STRIDE if WEAK_STRIDE > 0 else weak_ptr,
            tangent_ptr + row * TANGENT_STRIDE if KIND == EXACT else tangent_ptr,
            strong_gradient_ptr + row * K, weak_gradient_ptr + row * K, part_ptr, programs,
            tl.load(drawn_ptr + row) if KIND == ON_LABEL else -1,
            credit_sign * _read(credit_ptr + (row if CREDIT_A_ROW else 0)) if KIND != NONE else 0.0,
            unlabelled_share,
            _read(uda_weight_ptr) if UDA else 0.0,
            _read(feedback_weight_ptr) if KIND != NONE else 0.0,
            inverse_temperature, uda_inverse_temperature, uda_threshold,
            K, BLOCK, UDA, KIND, ON_WEAK, STRONG_GRADIENT, WEAK_GRADIENT,
        )  # fmt: skip
    add_up_parts(every_part_ptr, parts_ptr, arrivals_ptr, programs, 5)


def run(a: TeacherArguments) -> TeacherResults:
    """The losses of one call and the gradients by its views."""
    (labelled, columns), unlabelled = a.labelled_logits.shape, a.strong_logits.shape[0]
    labelled_logits, strong_logits = rows_of(a.labelled_logits), rows_of(a.strong_logits)
    weak_logits = None if a.weak_logits is None else rows_of(a.weak_logits)
    tangent = None if a.tangent is None else rows_of(a.tangent)
    part = torch.empty(5, labelled + unlabelled, dtype=torch.float32, device=strong_logits.device)
    parts = torch.empty(5, dtype=torch.float32, device=strong_logits.device)
    views = (labelled_logits, strong_logits, strong_logits if weak_logits is None else weak_logits)
    gradients = [gradient_like(x, wanted) for x, wanted in zip(views, a.with_gradient, strict=True)]
    block, warps, registers = launch_shape(columns)
    with on_device(strong_logits):
        teacher_rows[(labelled + unlabelled,)](
            labelled_logits,
            strong_logits,
            weak_logits,
            a.targets.contiguous(),
            a.uda_weight,
            a.feedback_weight,
            tangent,
            None if a.credit is None else a.credit.contiguous(),
            None if a.drawn is None else a.drawn.contiguous(),
            part,
            parts,
            arrivals(strong_logits),
            *gradients,
            labelled,
            labelled + unlabelled,
            1.0 / labelled,
            1.0 / unlabelled,
            a.supervised_weight,
            a.label_smoothing,
            1.0 / a.temperature,
            1.0 / a.uda_temperature,
            a.uda_threshold,
            -1.0 if a.feedback == "scalar" else 1.0,
            LABELLED_STRIDE=labelled_logits.stride(0),
            STRONG_STRIDE=strong_logits.stride(0),
            WEAK_STRIDE=0 if weak_logits is None else weak_logits.stride(0),
            TANGENT_STRIDE=0 if tangent is None else tangent.stride(0),
            K=columns,
            BLOCK=block,
            UDA=a.uda_weight is not None,
            KIND=KINDS[a.feedback],
            CREDIT_A_ROW=a.feedback == "per_example",
            ON_WEAK=a.on_weak,
            LABELLED_GRADIENT=a.with_gradient[0],
            STRONG_GRADIENT=a.with_gradient[1],
            WEAK_GRADIENT=a.with_gradient[2],
            num_warps=warps,
            maxnreg=registers,
        )
    return TeacherResults(parts, *gradients)
