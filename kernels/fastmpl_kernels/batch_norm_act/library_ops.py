"""batch_norm_act's phases as library ops, each on the backend that its first tensor asks for."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastmpl_kernels import dispatch
from fastmpl_kernels.batch_norm_act import native, phases
from fastmpl_kernels.library import available
from fastmpl_kernels.ops import define

OP = "batch_norm_act"
SMALLEST_PART = 65536  # elements of x that one Triton program sums, at least
MOST_PARTS = 512


def parts(rows: int, channels: int) -> int:
    """How many parts Triton's sums come in: a function of the shape alone, so that results do not depend on the GPU."""
    return max(1, min(MOST_PARTS, rows * channels // SMALLEST_PART, rows // 16))


def backend_of(x: Tensor) -> dispatch.Backend:
    return dispatch.select(OP, (x,), available if x.dtype in native.DTYPES else None)


def kernels_for(x: Tensor) -> ModuleType:
    """The implementation of every phase for tensors like x, as functions of phases.py's names."""
    backend = backend_of(x)
    if backend == "triton":
        from fastmpl_kernels.batch_norm_act import triton_impl  # needs Triton: only where it was chosen

        return triton_impl
    return native if backend == "native" else phases


def _parts(x: Tensor) -> int:
    return parts(x.numel() // x.shape[1], x.shape[1]) if backend_of(x) == "triton" else 1


def _runner(phase: str) -> Callable[..., Any]:
    """A phase on whichever backend its first tensor asks for."""

    def run(x: Tensor, *rest: Any) -> Any:
        return getattr(kernels_for(x), phase)(x, *rest)

    return run


def _sums_like(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty((_parts(x), 2 * x.shape[1] + 1), dtype=torch.float64)


def _forward_like(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty((4, x.shape[1]), dtype=phases.wide(x))


def _gradient_sums_like(dy: Tensor, *_: Any) -> Tensor:
    return dy.new_empty((_parts(dy), 2 * dy.shape[1]), dtype=torch.float64)


def _gradient_like(dy: Tensor, x: Tensor, moments: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    residual = rest[4]
    of_residual = x.new_empty(0) if residual is None else torch.empty_like(residual)
    return torch.empty_like(x), of_residual, torch.empty_like(moments[0]), torch.empty_like(moments[0])


def _tangent_like(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


def _dual_like(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


bn_train = define(
    "bn_train(Tensor x, Tensor weight, Tensor bias, Tensor? residual, Tensor(a!)? running_mean, "
    "Tensor(b!)? running_var, float momentum, float eps, int activation, float slope) -> (Tensor, Tensor)",
    _runner("train"),
    _forward_like,
)
bn_backward = define(
    "bn_backward(Tensor dy, Tensor x, Tensor moments, Tensor weight, Tensor bias, Tensor? residual, "
    "int activation, float slope) -> (Tensor, Tensor, Tensor, Tensor)",
    _runner("backward"),
    lambda dy, x, moments, weight, bias, residual, *_: _gradient_like(dy, x, moments, dy, dy, weight, bias, residual),
)
bn_sums = define("bn_sums(Tensor x) -> Tensor", _runner("sums"), _sums_like)
bn_forward = define(
    "bn_forward(Tensor x, Tensor sums, Tensor weight, Tensor bias, Tensor? residual, Tensor(a!)? running_mean, "
    "Tensor(b!)? running_var, float momentum, float eps, int activation, float slope) -> (Tensor, Tensor)",
    _runner("forward"),
    _forward_like,
)
bn_gradient_sums = define(
    "bn_gradient_sums(Tensor dy, Tensor x, Tensor moments, Tensor weight, Tensor bias, Tensor? residual, "
    "int activation, float slope) -> Tensor",
    _runner("gradient_sums"),
    _gradient_sums_like,
)
bn_gradient = define(
    "bn_gradient(Tensor dy, Tensor x, Tensor moments, Tensor sums, Tensor local, Tensor weight, Tensor bias, "
    "Tensor? residual, int activation, float slope) -> (Tensor, Tensor, Tensor, Tensor)",
    _runner("gradient"),
    _gradient_like,
)
bn_tangent = define(
    "bn_tangent(Tensor x, Tensor x_tangent, Tensor moments, Tensor sums, Tensor weight, Tensor bias, "
    "Tensor weight_tangent, Tensor bias_tangent, Tensor? residual, Tensor? residual_tangent, int activation, "
    "float slope) -> Tensor",
    _runner("tangent"),
    _tangent_like,
)
bn_dual_sums = define(
    "bn_dual_sums(Tensor x, Tensor x_tangent) -> Tensor",
    _runner("dual_sums"),
    lambda x, _: x.new_empty((1, 4 * x.shape[1] + 1), dtype=torch.float64),
)
bn_dual = define(
    "bn_dual(Tensor x, Tensor x_tangent, Tensor sums, Tensor weight, Tensor bias, Tensor weight_tangent, "
    "Tensor bias_tangent, Tensor? residual, Tensor? residual_tangent, Tensor(a!)? running_mean, "
    "Tensor(b!)? running_var, float momentum, float eps, int activation, float slope) -> (Tensor, Tensor)",
    _runner("dual"),
    _dual_like,
)
bn_dual_train = define(
    "bn_dual_train(Tensor x, Tensor x_tangent, Tensor weight, Tensor bias, Tensor weight_tangent, Tensor bias_tangent, "
    "Tensor? residual, Tensor? residual_tangent, Tensor(a!)? running_mean, Tensor(b!)? running_var, float momentum, "
    "float eps, int activation, float slope) -> (Tensor, Tensor)",
    _runner("dual_train"),
    _dual_like,
)
