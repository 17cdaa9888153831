"""Autocast of the imitated GPU: C++ code casts nothing, since it does not see a CUDA tensor."""

from typing import Any

import torch
from torch import Tensor

LOWER = (
    "conv1d", "conv2d", "conv3d", "conv_transpose2d.input", "linear", "matmul", "mm", "bmm", "addmm", "baddbmm",
    "scaled_dot_product_attention",
)  # fmt: skip
FULL = (
    "softmax.int", "log_softmax.int", "layer_norm", "group_norm", "nll_loss", "cross_entropy_loss", "mse_loss",
    "pow.Tensor_Scalar", "exp", "log", "rsqrt", "softplus", "kl_div", "norm.Scalar", "cumsum", "prod",
)  # fmt: skip


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, list | tuple):
        return type(value)([_cast(item, dtype) for item in value])
    floating = isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
    return value.to(dtype) if floating and value.dtype != dtype else value


def _caster(name: str, full: bool) -> Any:
    packet, _, overload = name.partition(".")
    operator = getattr(getattr(torch.ops.aten, packet), overload or "default")
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)

    def call(*args: Any, **kwargs: Any) -> Any:
        dtype = torch.float32 if full else torch.get_autocast_dtype("cuda")
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return operator(*_cast(args, dtype), **{k: _cast(v, dtype) for k, v in kwargs.items()})

    return call


def register_autocast() -> Any:
    """Casts as the table of CUDA has it, for the operators that networks here use."""
    library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    for names, full in ((LOWER, False), (FULL, True)):
        for name in names:
            library.impl(name, _caster(name, full), "AutocastCUDA")  # type: ignore[no-untyped-call]
    return library
