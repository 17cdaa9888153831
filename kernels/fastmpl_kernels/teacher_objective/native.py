"""Calls the C++ kernel of the teacher's losses (csrc/teacher_objective.cpp)."""

import ctypes

import torch
from torch import Tensor

from fastmpl_kernels.rows import address, as_native, as_type, call_native, gradient_like, native_dtype
from fastmpl_kernels.teacher_objective.arguments import TeacherArguments, TeacherResults

KINDS = {"none": 0, "exact": 1, "per_example": 2, "scalar": 2}


class _TeacherStruct(ctypes.Structure):
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


def _as_float(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else as_native(tensor, torch.float32)


def run(a: TeacherArguments) -> TeacherResults:
    """The losses of one call and the gradients by its views."""
    views = (a.labelled_logits, a.strong_logits, a.weak_logits)
    dtype = native_dtype(*views)
    (labelled, columns), unlabelled = a.labelled_logits.shape, a.strong_logits.shape[0]
    rows = [None if x is None else as_native(x, dtype) for x in views]
    constants = map(_as_float, (a.uda_weight, a.feedback_weight, a.tangent, a.credit))
    held = [a.targets.contiguous(), *constants, None if a.drawn is None else a.drawn.contiguous()]
    part, parts = torch.empty(labelled + unlabelled, 4), torch.empty(5)
    gradients = [
        torch.empty(0, dtype=dtype) if x is None else gradient_like(x, wanted)
        for x, wanted in zip(rows, a.with_gradient, strict=True)
    ]
    struct = _TeacherStruct(
        labelled, unlabelled, columns,
        *map(address, (*rows, *held, part, parts, *gradients)),
        a.uda_weight is not None, KINDS[a.feedback], a.feedback == "per_example", a.on_weak,
        a.temperature, a.label_smoothing, a.supervised_weight,
        a.uda_temperature, a.uda_threshold, -1.0 if a.feedback == "scalar" else 1.0,
    )  # fmt: skip
    if bad := call_native("fastmpl_teacher_objective", struct, dtype):
        kind, row = ("unlabelled", bad - 1 - labelled) if bad > labelled else ("labelled", bad - 1)
        raise ValueError(f"teacher_objective: the label of {kind} row {row} is not one of the {columns} classes.")
    as_given = (g if x is None else as_type(g, x.dtype) for g, x in zip(gradients, views, strict=True))
    return TeacherResults(parts, *as_given)
