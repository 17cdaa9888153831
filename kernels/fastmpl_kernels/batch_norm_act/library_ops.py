"""The phases of batch_norm_act as library ops of flat signatures.

Below the schemas the phases take the records of settings.py (Norm, Running, Tangents).
"""

from typing import Any

import torch
from torch import Tensor

from fastmpl_kernels.batch_norm_act import phases
from fastmpl_kernels.batch_norm_act.implementations import backend_of, kernels_for, parts
from fastmpl_kernels.batch_norm_act.settings import Norm, Running, Tangents
from fastmpl_kernels.ops import define


def flatten(norm: Norm, running: Running) -> tuple[Any, ...]:
    """The arguments of bn_train and bn_forward that follow x and its sums, in the schemas' order."""
    weight, bias, residual, activation, slope = norm
    mean, var, momentum, eps = running
    return weight, bias, residual, mean, var, momentum, eps, activation, slope


def flatten_dual(tangents: Tangents, norm: Norm, running: Running) -> tuple[Any, ...]:
    """The arguments of bn_dual and bn_dual_train that follow x, its tangent and their sums, in the schemas' order."""
    weight, bias, *rest = flatten(norm, running)
    return weight, bias, tangents.weight, tangents.bias, rest[0], tangents.residual, *rest[1:]


def unflatten(
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    activation: int,
    slope: float,
) -> tuple[Norm, Running]:
    norm = Norm(weight, bias, residual, activation, slope)
    return norm, Running(running_mean, running_var, momentum, eps)


def _unflatten_dual(
    x_tangent: Tensor,
    weight: Tensor,
    bias: Tensor,
    weight_tangent: Tensor,
    bias_tangent: Tensor,
    residual: Tensor | None,
    residual_tangent: Tensor | None,
    *rest: Any,
) -> tuple[Tangents, Norm, Running]:
    tangents = Tangents(x_tangent, weight_tangent, bias_tangent, residual_tangent)
    return tangents, *unflatten(weight, bias, residual, *rest)


def _sums(x: Tensor) -> Any:
    return kernels_for(x).sums(x)


def _dual_sums(x: Tensor, x_tangent: Tensor) -> Any:
    return kernels_for(x).dual_sums(x, x_tangent)


def _train(x: Tensor, *rest: Any) -> Any:
    return kernels_for(x).train(x, *unflatten(*rest))


def _forward(x: Tensor, sums: Tensor, *rest: Any) -> Any:
    return kernels_for(x).forward(x, sums, *unflatten(*rest))


def _backward(dy: Tensor, x: Tensor, moments: Tensor, *norm: Any) -> Any:
    return kernels_for(dy).backward(dy, x, moments, Norm(*norm))


def _gradient_sums(dy: Tensor, x: Tensor, moments: Tensor, *norm: Any) -> Any:
    return kernels_for(dy).gradient_sums(dy, x, moments, Norm(*norm))


def _gradient(dy: Tensor, x: Tensor, moments: Tensor, sums: Tensor, local: Tensor, *norm: Any) -> Any:
    return kernels_for(dy).gradient(dy, x, moments, sums, local, Norm(*norm))


def _tangent(
    x: Tensor,
    x_tangent: Tensor,
    moments: Tensor,
    sums: Tensor,
    weight: Tensor,
    bias: Tensor,
    weight_tangent: Tensor,
    bias_tangent: Tensor,
    residual: Tensor | None,
    residual_tangent: Tensor | None,
    activation: int,
    slope: float,
) -> Any:
    tangents = Tangents(x_tangent, weight_tangent, bias_tangent, residual_tangent)
    norm = Norm(weight, bias, residual, activation, slope)
    return kernels_for(x).tangent(x, tangents, moments, sums, norm)


def _dual(x: Tensor, x_tangent: Tensor, sums: Tensor, *rest: Any) -> Any:
    tangents, norm, running = _unflatten_dual(x_tangent, *rest)
    return kernels_for(x).dual(x, tangents, sums, norm, running)


def _dual_train(x: Tensor, x_tangent: Tensor, *rest: Any) -> Any:
    return kernels_for(x).dual_train(x, *_unflatten_dual(x_tangent, *rest))


def _part_count(x: Tensor) -> int:
    return parts(x.numel() // x.shape[1], x.shape[1]) if backend_of(x) == "triton" else 1


def _sums_like(x: Tensor) -> Tensor:
    return x.new_empty((_part_count(x), 2 * x.shape[1] + 1), dtype=torch.float64)


def forward_like(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty((4, x.shape[1]), dtype=phases.wide_dtype(x))


def _gradient_sums_like(dy: Tensor, *_: Any) -> Tensor:
    return dy.new_empty((_part_count(dy), 2 * dy.shape[1]), dtype=torch.float64)


def _backward_like(dy: Tensor, x: Tensor, moments: Tensor, *norm: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    residual = Norm(*norm).residual
    of_residual = x.new_empty(0) if residual is None else torch.empty_like(residual)
    return torch.empty_like(x), of_residual, torch.empty_like(moments[0]), torch.empty_like(moments[0])


def _gradient_like(dy: Tensor, x: Tensor, moments: Tensor, sums: Tensor, local: Tensor, *norm: Any) -> Any:
    return _backward_like(dy, x, moments, *norm)


def _tangent_like(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


def dual_like(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


def _dual_sums_like(x: Tensor, _: Tensor) -> Tensor:
    return x.new_empty((1, 4 * x.shape[1] + 1), dtype=torch.float64)


bn_train = define(
    "bn_train(Tensor x, Tensor weight, Tensor bias, Tensor? residual, Tensor(a!)? running_mean, "
    "Tensor(b!)? running_var, float momentum, float eps, int activation, float slope) -> (Tensor, Tensor)",
    _train,
    forward_like,
)
bn_backward = define(
    "bn_backward(Tensor dy, Tensor x, Tensor moments, Tensor weight, Tensor bias, Tensor? residual, "
    "int activation, float slope) -> (Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _backward_like,
)
bn_sums = define("bn_sums(Tensor x) -> Tensor", _sums, _sums_like)
bn_forward = define(
    "bn_forward(Tensor x, Tensor sums, Tensor weight, Tensor bias, Tensor? residual, Tensor(a!)? running_mean, "
    "Tensor(b!)? running_var, float momentum, float eps, int activation, float slope) -> (Tensor, Tensor)",
    _forward,
    forward_like,
)
bn_gradient_sums = define(
    "bn_gradient_sums(Tensor dy, Tensor x, Tensor moments, Tensor weight, Tensor bias, Tensor? residual, "
    "int activation, float slope) -> Tensor",
    _gradient_sums,
    _gradient_sums_like,
)
bn_gradient = define(
    "bn_gradient(Tensor dy, Tensor x, Tensor moments, Tensor sums, Tensor local, Tensor weight, Tensor bias, "
    "Tensor? residual, int activation, float slope) -> (Tensor, Tensor, Tensor, Tensor)",
    _gradient,
    _gradient_like,
)
bn_tangent = define(
    "bn_tangent(Tensor x, Tensor x_tangent, Tensor moments, Tensor sums, Tensor weight, Tensor bias, "
    "Tensor weight_tangent, Tensor bias_tangent, Tensor? residual, Tensor? residual_tangent, int activation, "
    "float slope) -> Tensor",
    _tangent,
    _tangent_like,
)
bn_dual_sums = define(
    "bn_dual_sums(Tensor x, Tensor x_tangent) -> Tensor",
    _dual_sums,
    _dual_sums_like,
)
bn_dual = define(
    "bn_dual(Tensor x, Tensor x_tangent, Tensor sums, Tensor weight, Tensor bias, Tensor weight_tangent, "
    "Tensor bias_tangent, Tensor? residual, Tensor? residual_tangent, Tensor(a!)? running_mean, "
    "Tensor(b!)? running_var, float momentum, float eps, int activation, float slope) -> (Tensor, Tensor)",
    _dual,
    dual_like,
)
bn_dual_train = define(
    "bn_dual_train(Tensor x, Tensor x_tangent, Tensor weight, Tensor bias, Tensor weight_tangent, Tensor bias_tangent, "
    "Tensor? residual, Tensor? residual_tangent, Tensor(a!)? running_mean, Tensor(b!)? running_var, float momentum, "
    "float eps, int activation, float slope) -> (Tensor, Tensor)",
    _dual_train,
    dual_like,
)
