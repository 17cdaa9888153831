"""Calls the C++ form of the student's loss (csrc/student_objective.cpp)."""

import ctypes

import torch
from torch import Tensor

from fastmpl_kernels.rows import address, as_type, call_native, gradient_like, native_dtype, native_form

TARGETS = {"soft": 0, "sampled": 1, "argmax": 2}


class _Arguments(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "columns")),
        *((name, ctypes.c_void_p) for name in ("label_logits", "student_logits", "key", "index")),
        *((name, ctypes.c_void_p) for name in ("parts", "label", "mask", "gradient")),
        ("targets", ctypes.c_int32),
        *((name, ctypes.c_float) for name in ("temperature", "label_smoothing", "threshold")),
    )


def run(
    label_logits: Tensor,
    student_logits: Tensor,
    key: Tensor | None,
    index: Tensor | None,
    targets: str,
    temperature: float,
    label_smoothing: float,
    threshold: float,
    with_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Parts (loss, confidence, coverage), label, mask, gradient (empty unless asked for)."""
    dtype = native_dtype(label_logits, student_logits)
    rows, columns = student_logits.shape
    labels, students = native_form(label_logits, dtype), native_form(student_logits, dtype)
    index = None if index is None else index.contiguous()
    parts, label, mask = torch.empty(3), torch.empty(rows, dtype=torch.int64), torch.empty(rows, dtype=torch.bool)
    gradient = gradient_like(students, with_gradient)
    arguments = _Arguments(
        rows, columns, labels.data_ptr(), students.data_ptr(), address(key), address(index),
        parts.data_ptr(), label.data_ptr(), mask.data_ptr(), address(gradient),
        TARGETS[targets], temperature, label_smoothing, threshold,
    )  # fmt: skip
    call_native("fastmpl_student_objective", arguments, dtype)
    return parts, label, mask, as_type(gradient, student_logits.dtype)
