"""Calls the C++ kernel of cross-entropy (csrc/soft_cross_entropy.cpp)."""

import ctypes

import torch
from torch import Tensor

from fastmpl_kernels.rows import address, as_native, as_type, call_native, gradient_like, native_dtype


class _CrossEntropyStruct(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "columns")),
        *((name, ctypes.c_void_p) for name in ("logits", "label", "distribution", "loss", "gradient")),
        ("label_smoothing", ctypes.c_float),
    )


def run(logits: Tensor, target: Tensor, label_smoothing: float, with_gradient: bool) -> tuple[Tensor, Tensor]:
    """The loss and its gradient by the logits, which is empty unless asked for."""
    hard = target.dim() == 1
    dtype = native_dtype(logits, None if hard else target)
    rows, columns = logits.shape
    inputs = as_native(logits, dtype)
    label = target.contiguous() if hard else None
    distribution = None if hard else as_native(target, dtype)
    loss = torch.empty(())
    gradient = gradient_like(inputs, with_gradient)
    struct = _CrossEntropyStruct(
        rows, columns, inputs.data_ptr(), address(label), address(distribution),
        loss.data_ptr(), address(gradient), label_smoothing,
    )  # fmt: skip
    if bad := call_native("fastmpl_soft_cross_entropy", struct, dtype):
        raise ValueError(f"soft_cross_entropy: the label of row {bad - 1} is not one of the {columns} classes.")
    return loss, as_type(gradient, logits.dtype)
