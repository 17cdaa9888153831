"""The phases of batch_norm_act on the native library (csrc/batch_norm_act.cpp).

x, dy, residuals and the inputs' tangents are dense channels-last tensors of one type, float32 or bfloat16; parameters are
float32.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from fastmpl_kernels.batch_norm_act import phases
from fastmpl_kernels.batch_norm_act.settings import Addend, Norm, Running, Tangents
from fastmpl_kernels.library import library, pointer

DTYPES = (torch.float32, torch.bfloat16)

_P, _B, _N, _I, _F, _D = (
    ctypes.c_void_p, ctypes.c_bool, ctypes.c_int64, ctypes.c_int32, ctypes.c_float, ctypes.c_double,
)  # fmt: skip
_ARGUMENTS: dict[str, list[Any]] = {
    "sums": [_P, _P, _P, _P, _B, _N, _N, _P],
    "forward": [_P, _P, _B, _N, _N, _P, _P, _P, _D, _D, _P, _P, _I, _F, _P, _P],
    "gradient_sums": [_P, _P, _P, _B, _N, _N, _P, _P, _P, _I, _F, _P],
    "gradient": [_P, _P, _P, _P, _B, _N, _N, _P, _P, _P, _P, _P, _I, _F, _P, _P, _P, _P],
    "dual": [_P, _P, _P, _P, _B, _N, _N, _P, _P, _P, _P, _P, _D, _D, _P, _P, _I, _F, _P, _P],
    "dual_train": [_P, _P, _P, _P, _P, _P, _B, _N, _N, _P, _P, _P, _P, _D, _D, _P, _P, _I, _F, _P, _P],
    "train": [_P, _P, _P, _B, _N, _N, _P, _P, _D, _D, _P, _P, _I, _F, _P, _P],
    "backward": [_P, _P, _P, _P, _B, _N, _N, _P, _P, _P, _I, _F, _P, _P, _P, _P],
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
    """Whether x is bfloat16, its rows (pixels of all images) and its channels."""
    return x.dtype == torch.bfloat16, x.numel() // x.shape[1], x.shape[1]


def _running(running: Running) -> tuple[float, float, int | None, int | None]:
    """Eps, momentum and the addresses of the running statistics, in the C functions' order."""
    return running.eps, running.momentum, pointer(running.mean), pointer(running.var)


def _add_parts(partial: Tensor) -> Tensor:
    """The sum over parts, as one row."""
    return partial if partial.shape[0] == 1 else partial.sum(0, keepdim=True)


def sums(x: Tensor) -> Tensor:
    out = torch.empty((1, 2 * x.shape[1] + 1), dtype=torch.float64)
    _function("sums")(pointer(x), None, None, None, *_shape(x), pointer(out))
    return out


def dual_sums(x: Tensor, x_tangent: Tensor) -> Tensor:
    out = torch.empty((1, 4 * x.shape[1] + 1), dtype=torch.float64)
    _function("sums")(pointer(x), pointer(x_tangent), None, None, *_shape(x), pointer(out))
    return out


def forward(x: Tensor, partial: Tensor, norm: Norm, running: Running) -> tuple[Tensor, Tensor]:
    y, moments = torch.empty_like(x), torch.empty((4, x.shape[1]), dtype=torch.float32)
    total = partial if partial.shape[0] == 1 else torch.cat(phases.merge_parts(partial))
    _function("forward")(
        pointer(x), pointer(norm.residual), *_shape(x), pointer(total), pointer(norm.weight), pointer(norm.bias),
        *_running(running), norm.activation, norm.slope, pointer(moments), pointer(y),
    )  # fmt: skip
    return y, moments


def gradient_sums(dy: Tensor, x: Tensor, moments: Tensor, norm: Norm) -> Tensor:
    out = torch.empty((1, 2 * x.shape[1]), dtype=torch.float64)
    _function("gradient_sums")(
        pointer(dy), pointer(x), pointer(norm.residual), *_shape(x), pointer(moments), pointer(norm.weight),
        pointer(norm.bias), norm.activation, norm.slope, pointer(out),
    )  # fmt: skip
    return out


def gradient(
    dy: Tensor, x: Tensor, moments: Tensor, partial: Tensor, local: Tensor, norm: Norm
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dx = torch.empty_like(x)
    dresidual = x.new_empty(0) if norm.residual is None else torch.empty_like(norm.residual)
    dweight, dbias = torch.empty_like(norm.weight), torch.empty_like(norm.bias)
    total, own = _add_parts(partial), _add_parts(local)
    _function("gradient")(
        pointer(dy), None, pointer(x), pointer(norm.residual), *_shape(x), pointer(moments), pointer(total),
        pointer(own), pointer(norm.weight), pointer(norm.bias), norm.activation, norm.slope, pointer(dx),
        pointer(dresidual), pointer(dweight), pointer(dbias),
    )  # fmt: skip
    return dx, dresidual, dweight, dbias


def tangent(x: Tensor, tangents: Tangents, moments: Tensor, partial: Tensor, norm: Norm) -> Tensor:
    out, total = torch.empty_like(x), _add_parts(partial)
    _function("tangent")(
        pointer(x), pointer(tangents.x), pointer(norm.residual), pointer(tangents.residual), *_shape(x), pointer(moments),
        pointer(total), pointer(norm.weight), pointer(norm.bias), pointer(tangents.weight), pointer(tangents.bias),
        norm.activation, norm.slope, pointer(out),
    )  # fmt: skip
    return out


def dual(x: Tensor, tangents: Tangents, partial: Tensor, norm: Norm, running: Running) -> tuple[Tensor, Tensor]:
    assert partial.shape[0] == 1, "dual_sums makes one part"
    y, y_tangent = torch.empty_like(x), torch.empty_like(x)
    _function("dual")(
        pointer(x), pointer(tangents.x), pointer(norm.residual), pointer(tangents.residual), *_shape(x), pointer(partial),
        pointer(norm.weight), pointer(norm.bias), pointer(tangents.weight), pointer(tangents.bias),
        *_running(running), norm.activation, norm.slope, pointer(y), pointer(y_tangent),
    )  # fmt: skip
    return y, y_tangent


def train(x: Tensor, norm: Norm, running: Running, addend: Tensor | None = None) -> tuple[Tensor, Tensor]:
    y, moments = torch.empty_like(x), torch.empty((4, x.shape[1]), dtype=torch.float32)
    _function("train")(
        x.data_ptr(), pointer(addend), pointer(norm.residual), *_shape(x), norm.weight.data_ptr(), norm.bias.data_ptr(),
        *_running(running), norm.activation, norm.slope, moments.data_ptr(), y.data_ptr(),
    )  # fmt: skip
    return y, moments


def backward(
    dy: Tensor, x: Tensor, moments: Tensor, norm: Norm, elsewhere: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dx = torch.empty_like(x)
    dresidual = x.new_empty(0) if norm.residual is None else torch.empty_like(norm.residual)
    dweight, dbias = torch.empty_like(norm.weight), torch.empty_like(norm.bias)
    _function("backward")(
        dy.data_ptr(), pointer(elsewhere), x.data_ptr(), pointer(norm.residual), *_shape(x), moments.data_ptr(),
        norm.weight.data_ptr(), norm.bias.data_ptr(), norm.activation, norm.slope, dx.data_ptr(), dresidual.data_ptr(),
        dweight.data_ptr(), dbias.data_ptr(),
    )  # fmt: skip
    return dx, dresidual, dweight, dbias


def dual_train(
    x: Tensor, tangents: Tangents, norm: Norm, running: Running, addend: Addend | None = None
) -> tuple[Tensor, Tensor]:
    y, y_tangent = torch.empty_like(x), torch.empty_like(x)
    _function("dual_train")(
        x.data_ptr(), tangents.x.data_ptr(), pointer(addend and addend.value), pointer(addend and addend.tangent),
        pointer(norm.residual), pointer(tangents.residual), *_shape(x),
        norm.weight.data_ptr(), norm.bias.data_ptr(), tangents.weight.data_ptr(), tangents.bias.data_ptr(),
        *_running(running), norm.activation, norm.slope, y.data_ptr(), y_tangent.data_ptr(),
    )  # fmt: skip
    return y, y_tangent
