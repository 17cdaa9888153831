"""Calls the C++ kernel of the student's loss (csrc/student_objective.cpp)."""

import ctypes

import torch

from fastmpl_kernels.rows import address, as_native, as_type, call_native, gradient_like, native_dtype
from fastmpl_kernels.student_objective.arguments import StudentArguments, StudentResults

TARGETS = {"soft": 0, "sampled": 1, "argmax": 2}


class _StudentStruct(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "columns")),
        *((name, ctypes.c_void_p) for name in ("label_logits", "student_logits", "key", "index")),
        *((name, ctypes.c_void_p) for name in ("parts", "label", "mask", "gradient")),
        ("targets", ctypes.c_int32),
        *((name, ctypes.c_float) for name in ("temperature", "label_smoothing", "threshold")),
    )


def run(a: StudentArguments) -> StudentResults:
    """The loss, labels and gradient of one call."""
    dtype = native_dtype(a.label_logits, a.student_logits)
    rows, columns = a.student_logits.shape
    labels, students = as_native(a.label_logits, dtype), as_native(a.student_logits, dtype)
    index = None if a.image is None else a.image.contiguous()
    parts, label, mask = torch.empty(3), torch.empty(rows, dtype=torch.int64), torch.empty(rows, dtype=torch.bool)
    gradient = gradient_like(students, a.with_gradient)
    struct = _StudentStruct(
        rows, columns, labels.data_ptr(), students.data_ptr(), address(a.key), address(index),
        parts.data_ptr(), label.data_ptr(), mask.data_ptr(), address(gradient),
        TARGETS[a.targets], a.temperature, a.label_smoothing, a.threshold,
    )  # fmt: skip
    call_native("fastmpl_student_objective", struct, dtype)
    return StudentResults(parts, label, mask, as_type(gradient, a.student_logits.dtype))
