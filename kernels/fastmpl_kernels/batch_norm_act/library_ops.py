"""The phases of batch_norm_act as library ops of flat signatures, each on the backend that suits its first tensor.

Below the schemas the phases take the records of settings.py (Norm, Running, Tangents).
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastmpl_kernels import dispatch
from fastmpl_kernels.batch_norm_act import native, phases
from fastmpl_kernels.batch_norm_act.settings import Norm, Running, Tangents
from fastmpl_kernels.library import available
from fastmpl_kernels.ops import define

OP = "batch_norm_act"
SMALLEST_PART = 65536  # elements of x that one Triton program sums, at least
MOST_PROGRAMS = 512  # of a summing pass, each for 128 channels of a part: enough for a GPU, few to add up
CHANNELS = 128


def parts(rows: int, channels: int) -> int:
    """The number of parts of Triton's sums, all of which hold rows. It depends on the shape alone, so that results do not
    depend on the GPU."""
    most = MOST_PROGRAMS // min(MOST_PROGRAMS, -(-channels // CHANNELS))
    count = max(1, min(most, rows * channels // SMALLEST_PART, rows // 16))
    return -(-rows // -(-rows // count))


def backend_of(x: Tensor) -> dispatch.Backend:
    """The backend for tensors of x's type and device."""
    return dispatch.select(OP, (x,), available if x.dtype in native.DTYPES else None)


class TritonPhases:
    """The phases in Triton. Where it cannot run a kernel, phases.py computes that phase, and all others from then on."""

    def __init__(self) -> None:
        self._known: set[tuple[object, ...]] = set()  # what has run once, so that it compiles

    def sums(self, x: Tensor) -> Any:
        return self._call("sums", x)

    def dual_sums(self, x: Tensor, x_tangent: Tensor) -> Any:
        return phases.dual_sums(x, x_tangent)

    def forward(self, x: Tensor, partial: Tensor, norm: Norm, running: Running) -> Any:
        return self._call_that_moves("forward", x, norm, running, partial)

    def train(self, x: Tensor, norm: Norm, running: Running, addend: Tensor | None = None) -> Any:
        return self._call_that_moves("train", x, norm, running, addend=addend)

    def gradient_sums(self, dy: Tensor, *rest: Any) -> Any:
        return self._call("gradient_sums", dy, *rest)

    def gradient(self, dy: Tensor, *rest: Any) -> Any:
        return self._call("gradient", dy, *rest)

    def backward(self, dy: Tensor, *rest: Any) -> Any:
        return self._call("backward", dy, *rest)

    def tangent(self, x: Tensor, *rest: Any) -> Any:
        return self._call("tangent", x, *rest)

    def dual(self, x: Tensor, *rest: Any) -> Any:
        return phases.dual(x, *rest)

    def dual_train(self, x: Tensor, *rest: Any) -> Any:
        return phases.dual_train(x, *rest)

    def _call(self, phase: str, *arguments: Any) -> Any:
        if OP not in dispatch.fallbacks():
            try:
                return dispatch.launch(OP, arguments[0], _launch, phase, *arguments)
            except dispatch.KernelFailure:  # recorded and said by the dispatcher
                pass
        return getattr(phases, phase)(*arguments)

    def _call_that_moves(
        self, phase: str, x: Tensor, norm: Norm, running: Running, *partial: Tensor, addend: Tensor | None = None
    ) -> Any:
        """Of its kernels the first adds an addend to x, and the second moves the running statistics. If a later one then
        fails, the phase starts again, and must not do so twice; so a first call keeps copies."""
        arguments = (x, *partial, norm, running) if addend is None else (x, *partial, norm, running, addend)
        written = [t for t in (running.mean, running.var, None if addend is None else x) if t is not None]
        kind = (norm.activation, norm.residual is None, running.mean is None, addend is None)
        key = (phase, x.device, x.dtype, x.shape[1], *kind)
        if key in self._known or not written or OP in dispatch.fallbacks():
            return self._call(phase, *arguments)
        before = [t.clone() for t in written]
        try:
            results = dispatch.launch(OP, x, _launch, phase, *arguments)
        except dispatch.KernelFailure:
            for tensor, value in zip(written, before, strict=True):
                tensor.copy_(value)
            return getattr(phases, phase)(*arguments)
        self._known.add(key)
        return results


def _launch(phase: str, *arguments: Any) -> Any:
    from fastmpl_kernels.batch_norm_act import triton_impl  # needs Triton: only where it was chosen

    return getattr(triton_impl, phase)(*arguments)


TRITON = TritonPhases()
Kernels = ModuleType | TritonPhases


def kernels_for(x: Tensor) -> Kernels:
    """The implementation of every phase for tensors of x's type and device; its functions have phases.py's names."""
    backend = backend_of(x)
    if backend == "triton":
        return TRITON
    return native if backend == "native" else phases


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
