"""Calls the C++ form of the teacher's losses (csrc/teacher_objective.cpp)."""

import ctypes

import torch
from torch import Tensor

from fastmpl_kernels.rows import address, as_type, call_native, gradient_like, native_dtype, native_form

KINDS = {"none": 0, "exact": 1, "per_example": 2, "scalar": 2}


class _Arguments(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("labelled", "unlabelled", "columns")),
        *((name, ctypes.c_void_p) for name in ("labelled_logits", "strong_logits", "weak_logits", "target")),
        *((name, ctypes.c_void_p) for name in ("uda_weight", "feedback_weight", "tangent", "credit", "drawn")),
        *((name, ctypes.c_void_p) for name in ("part", "parts")),
        *((name, ctypes.c_void_p) for name in ("labelled_gradient", "strong_gradient", "weak_gradient")),
        *((name, ctypes.c_int32) for name in ("uda", "feedback", "credit_a_row", "feedback_on_weak")),
        *((name, ctypes.c_float) for name in ("temperature", "label_smoothing", "supervised_weight")),
        *((name, ctypes.c_float) for name in ("uda_temperature", "uda_threshold", "credit_sign")),
    )


def _float(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else native_form(tensor, torch.float32)


def run(
    labelled_logits: Tensor,
    targets: Tensor,
    strong_logits: Tensor,
    weak_logits: Tensor | None,
    uda_weight: Tensor | None,
    feedback_weight: Tensor | None,
    tangent: Tensor | None,
    credit: Tensor | None,
    drawn: Tensor | None,
    feedback: str,
    on_weak: bool,
    temperature: float,
    label_smoothing: float,
    supervised_weight: float,
    uda_temperature: float,
    uda_threshold: float,
    with_gradient: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Parts (loss, supervised, uda, feedback, coverage) and the gradients of labelled, strong and weak logits."""
    dtype = native_dtype(labelled_logits, strong_logits, weak_logits)
    (labelled, columns), unlabelled = labelled_logits.shape, strong_logits.shape[0]
    views = (labelled_logits, strong_logits, weak_logits)
    rows = [None if x is None else native_form(x, dtype) for x in views]
    constants = [
        None if x is None else native_form(x, torch.float32) for x in (uda_weight, feedback_weight, tangent, credit)
    ]
    target, label = targets.contiguous(), None if drawn is None else drawn.contiguous()
    part, parts = torch.empty(labelled + unlabelled, 4), torch.empty(5)
    gradients = [
        torch.empty(0, dtype=dtype) if x is None else gradient_like(x, wanted)
        for x, wanted in zip(rows, with_gradient, strict=True)
    ]
    arguments = _Arguments(
        labelled, unlabelled, columns,
        *map(address, (*rows, target, *constants, label, part, parts, *gradients)),
        uda_weight is not None, KINDS[feedback], feedback == "per_example", on_weak,
        temperature, label_smoothing, supervised_weight,
        uda_temperature, uda_threshold, -1.0 if feedback == "scalar" else 1.0,
    )  # fmt: skip
    if bad := call_native("fastmpl_teacher_objective", arguments, dtype):
        kind, row = ("unlabelled", bad - 1 - labelled) if bad > labelled else ("labelled", bad - 1)
        raise ValueError(f"teacher_objective: the label of {kind} row {row} is not one of the {columns} classes.")
    as_given = [g if x is None else as_type(g, x.dtype) for g, x in zip(gradients, views, strict=True)]
    return parts, as_given[0], as_given[1], as_given[2]
