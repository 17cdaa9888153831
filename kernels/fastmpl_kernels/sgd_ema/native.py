"""sgd_ema, global_norm and inner_product on the native library (csrc/sgd_ema.cpp): one call over lists of float32."""

import ctypes
from array import array
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from fastmpl_kernels.library import library, pointer
from fastmpl_kernels.sgd_ema.arguments import SgdArguments

_P, _N, _F, _B = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_bool
_ARGUMENTS: dict[str, list[Any]] = {
    "sgd_ema": [_N, _P, _P, _P, _P, _P, _P, _P, _P, _P, _F, _F, _B],
    "global_norm": [_N, _P, _P, _P],
    "inner_product": [_N, _P, _P, _P, _P],
}


@cache
def _function(name: str) -> Callable[..., None]:
    native = library()
    assert native is not None, "the dispatcher asks before it chooses"
    function: Callable[..., None] = native[f"fastmpl_{name}"]
    function.argtypes, function.restype = _ARGUMENTS[name], None  # type: ignore[attr-defined]
    return function


def _addresses(tensors: Sequence[Tensor]) -> "array[int]":
    return array("Q", [t.data_ptr() for t in tensors])  # several times faster to fill than a ctypes array


def _sizes(tensors: Sequence[Tensor]) -> "array[int]":
    return array("q", [t.numel() for t in tensors])


def _at(values: "array[int]") -> int:
    return values.buffer_info()[0]


def sgd_ema(step: SgdArguments) -> None:
    addresses = [_addresses(tensors) for tensors in step[:4]]  # held until the call is over
    sizes = _sizes(step.params)
    p, g, b, a = map(_at, addresses)
    _function("sgd_ema")(
        len(step.params), _at(sizes), p, g, b, a if step.averages else None, pointer(step.lr),
        pointer(step.clip_factor), pointer(step.found_inf), pointer(step.decay), step.momentum, step.weight_decay,
        step.nesterov,
    )  # fmt: skip


def global_norm(grads: list[Tensor]) -> Tensor:
    out = torch.empty((), dtype=torch.float32)
    addresses, sizes = _addresses(grads), _sizes(grads)
    _function("global_norm")(len(grads), _at(sizes), _at(addresses), pointer(out))
    return out


def inner_product(a: list[Tensor], b: list[Tensor]) -> Tensor:
    first, second, sizes = _addresses(a), _addresses(b), _sizes(a)
    out = torch.empty((), dtype=torch.float32)
    _function("inner_product")(len(a), _at(sizes), _at(first), _at(second), pointer(out))
    return out
