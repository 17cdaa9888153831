"""The phases of batch_norm_act on the native library (csrc/batch_norm_act.cpp).

x, dy, residuals and tangents are dense channels-last tensors of one type, float32 or bfloat16; parameters are float32.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from fastmpl_kernels.library import library, pointer

DTYPES = (torch.float32, torch.bfloat16)

_P, _B, _N, _I, _F, _D = (
    ctypes.c_void_p, ctypes.c_bool, ctypes.c_int64, ctypes.c_int32, ctypes.c_float, ctypes.c_double,
)  # fmt: skip
_ARGUMENTS: dict[str, list[Any]] = {
    "sums": [_P, _P, _B, _N, _N, _P],
    "forward": [_P, _P, _B, _N, _N, _P, _P, _P, _D, _D, _P, _P, _I, _F, _P, _P],
    "gradient_sums": [_P, _P, _P, _B, _N, _N, _P, _P, _P, _I, _F, _P],
    "gradient": [_P, _P, _P, _B, _N, _N, _P, _P, _P, _P, _P, _I, _F, _P, _P, _P, _P],
    "dual": [_P, _P, _P, _P, _B, _N, _N, _P, _P, _P, _P, _P, _D, _D, _P, _P, _I, _F, _P, _P],
    "dual_train": [_P, _P, _P, _P, _B, _N, _N, _P, _P, _P, _P, _D, _D, _P, _P, _I, _F, _P, _P],
    "train": [_P, _P, _B, _N, _N, _P, _P, _D, _D, _P, _P, _I, _F, _P, _P],
    "backward": [_P, _P, _P, _B, _N, _N, _P, _P, _P, _I, _F, _P, _P, _P, _P],
    "tangent": [_P, _P, _P, _P, _B, _N, _N, _P, _P, _P, _P, _P, _P, _I, _F, _P],
}


@cache
def _function(name: str) -> Callable[..., None]:
    native = library()
    assert native is not None, "the dispatcher asks before it chooses"
    function: Callable[..., None] = native[f"fastmpl_batch_norm_{name}"]
    function.argtypes, function.restype = _ARGUMENTS[name], None  # type: ignore[attr-defined]
    return function


def _shape(x: Tensor) -> tuple[bool, int, int]:
    """Is it bfloat16, how many rows, how many channels."""
    return x.dtype == torch.bfloat16, x.numel() // x.shape[1], x.shape[1]


def _folded(partial: Tensor) -> Tensor:
    """One row of sums, from however many parts."""
    return partial if partial.shape[0] == 1 else partial.sum(0, keepdim=True)


def sums(x: Tensor) -> Tensor:
    out = torch.empty((1, 2 * x.shape[1] + 1), dtype=torch.float64)
    _function("sums")(pointer(x), None, *_shape(x), pointer(out))
    return out


def dual_sums(x: Tensor, x_tangent: Tensor) -> Tensor:
    out = torch.empty((1, 4 * x.shape[1] + 1), dtype=torch.float64)
    _function("sums")(pointer(x), pointer(x_tangent), *_shape(x), pointer(out))
    return out


def forward(
    x: Tensor,
    partial: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    activation: int,
    slope: float,
) -> tuple[Tensor, Tensor]:
    y, moments = torch.empty_like(x), torch.empty((4, x.shape[1]), dtype=torch.float32)
    total = _folded(partial)
    _function("forward")(
        pointer(x), pointer(residual), *_shape(x), pointer(total), pointer(weight), pointer(bias), eps, momentum,
        pointer(running_mean), pointer(running_var), activation, slope, pointer(moments), pointer(y),
    )  # fmt: skip
    return y, moments


def gradient_sums(
    dy: Tensor,
    x: Tensor,
    moments: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    activation: int,
    slope: float,
) -> Tensor:
    out = torch.empty((1, 2 * x.shape[1]), dtype=torch.float64)
    _function("gradient_sums")(
        pointer(dy), pointer(x), pointer(residual), *_shape(x), pointer(moments), pointer(weight), pointer(bias),
        activation, slope, pointer(out),
    )  # fmt: skip
    return out


def gradient(
    dy: Tensor,
    x: Tensor,
    moments: Tensor,
    partial: Tensor,
    local: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    activation: int,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dx = torch.empty_like(x)
    dresidual = x.new_empty(0) if residual is None else torch.empty_like(residual)
    dweight, dbias = torch.empty_like(weight), torch.empty_like(bias)
    total, own = _folded(partial), _folded(local)
    _function("gradient")(
        pointer(dy), pointer(x), pointer(residual), *_shape(x), pointer(moments), pointer(total), pointer(own),
        pointer(weight), pointer(bias), activation, slope, pointer(dx), pointer(dresidual), pointer(dweight),
        pointer(dbias),
    )  # fmt: skip
    return dx, dresidual, dweight, dbias


def tangent(
    x: Tensor,
    x_tangent: Tensor,
    moments: Tensor,
    partial: Tensor,
    weight: Tensor,
    bias: Tensor,
    weight_tangent: Tensor,
    bias_tangent: Tensor,
    residual: Tensor | None,
    residual_tangent: Tensor | None,
    activation: int,
    slope: float,
) -> Tensor:
    out, total = torch.empty_like(x), _folded(partial)
    _function("tangent")(
        pointer(x), pointer(x_tangent), pointer(residual), pointer(residual_tangent), *_shape(x), pointer(moments),
        pointer(total), pointer(weight), pointer(bias), pointer(weight_tangent), pointer(bias_tangent), activation,
        slope, pointer(out),
    )  # fmt: skip
    return out


def dual(
    x: Tensor,
    x_tangent: Tensor,
    partial: Tensor,
    weight: Tensor,
    bias: Tensor,
    weight_tangent: Tensor,
    bias_tangent: Tensor,
    residual: Tensor | None,
    residual_tangent: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    activation: int,
    slope: float,
) -> tuple[Tensor, Tensor]:
    y, y_tangent, total = torch.empty_like(x), torch.empty_like(x), _folded(partial)
    _function("dual")(
        pointer(x), pointer(x_tangent), pointer(residual), pointer(residual_tangent), *_shape(x), pointer(total),
        pointer(weight), pointer(bias), pointer(weight_tangent), pointer(bias_tangent), eps, momentum,
        pointer(running_mean), pointer(running_var), activation, slope, pointer(y), pointer(y_tangent),
    )  # fmt: skip
    return y, y_tangent


def train(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    activation: int,
    slope: float,
) -> tuple[Tensor, Tensor]:
    y, moments = torch.empty_like(x), torch.empty((4, x.shape[1]), dtype=torch.float32)
    _function("train")(
        x.data_ptr(), pointer(residual), *_shape(x), weight.data_ptr(), bias.data_ptr(), eps, momentum,
        pointer(running_mean), pointer(running_var), activation, slope, moments.data_ptr(), y.data_ptr(),
    )  # fmt: skip
    return y, moments


def backward(
    dy: Tensor,
    x: Tensor,
    moments: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    activation: int,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dx = torch.empty_like(x)
    dresidual = x.new_empty(0) if residual is None else torch.empty_like(residual)
    dweight, dbias = torch.empty_like(weight), torch.empty_like(bias)
    _function("backward")(
        dy.data_ptr(), x.data_ptr(), pointer(residual), *_shape(x), moments.data_ptr(), weight.data_ptr(),
        bias.data_ptr(), activation, slope, dx.data_ptr(), dresidual.data_ptr(), dweight.data_ptr(), dbias.data_ptr(),
    )  # fmt: skip
    return dx, dresidual, dweight, dbias


def dual_train(
    x: Tensor,
    x_tangent: Tensor,
    weight: Tensor,
    bias: Tensor,
    weight_tangent: Tensor,
    bias_tangent: Tensor,
    residual: Tensor | None,
    residual_tangent: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    activation: int,
    slope: float,
) -> tuple[Tensor, Tensor]:
    y, y_tangent = torch.empty_like(x), torch.empty_like(x)
    _function("dual_train")(
        x.data_ptr(), x_tangent.data_ptr(), pointer(residual), pointer(residual_tangent), *_shape(x),
        weight.data_ptr(), bias.data_ptr(), weight_tangent.data_ptr(), bias_tangent.data_ptr(), eps, momentum,
        pointer(running_mean), pointer(running_var), activation, slope, y.data_ptr(), y_tangent.data_ptr(),
    )  # fmt: skip
    return y, y_tangent
