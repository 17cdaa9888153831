"""batch_norm_act's phases as library ops, and the autograd function that composes them."""

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import FunctionCtx

from fastmpl_kernels import dispatch
from fastmpl_kernels.batch_norm_act import native, phases
from fastmpl_kernels.batch_norm_act.settings import NUMBER, Reduce, Settings
from fastmpl_kernels.library import available
from fastmpl_kernels.ops import define, once

OP = "batch_norm_act"
SMALLEST_PART = 65536  # elements of x that one Triton program sums, at least
MOST_PARTS = 512


def parts(rows: int, channels: int) -> int:
    """How many parts Triton's sums come in: a function of the shape alone, so that results do not depend on the GPU."""
    return max(1, min(MOST_PARTS, rows * channels // SMALLEST_PART, rows // 16))


def _backend(x: Tensor) -> dispatch.Backend:
    return dispatch.select(OP, (x,), available if x.dtype in native.DTYPES else None)


def _module(x: Tensor) -> ModuleType:
    """The implementation of every phase for tensors like x."""
    backend = _backend(x)
    if backend == "triton":
        from fastmpl_kernels.batch_norm_act import triton_impl  # needs Triton: only where it was chosen

        return triton_impl
    return native if backend == "native" else phases


def _parts(x: Tensor) -> int:
    return parts(x.numel() // x.shape[1], x.shape[1]) if _backend(x) == "triton" else 1


def _runner(phase: str) -> Callable[..., Any]:
    """A phase on whichever backend its first tensor asks for."""

    def run(x: Tensor, *rest: Any) -> Any:
        return getattr(_module(x), phase)(x, *rest)

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
    lambda x, *_: (torch.empty_like(x), torch.empty_like(x)),
)
bn_dual_train = define(
    "bn_dual_train(Tensor x, Tensor x_tangent, Tensor weight, Tensor bias, Tensor weight_tangent, Tensor bias_tangent, "
    "Tensor? residual, Tensor? residual_tangent, Tensor(a!)? running_mean, Tensor(b!)? running_var, float momentum, "
    "float eps, int activation, float slope) -> (Tensor, Tensor)",
    _runner("dual_train"),
    lambda x, *_: (torch.empty_like(x), torch.empty_like(x)),
)


def is_dense(x: Tensor) -> bool:
    """Whether pixels are rows and channels columns of contiguous memory."""
    if x.dim() == 4:
        return x.is_contiguous(memory_format=torch.channels_last)
    return x.movedim(1, -1).is_contiguous()


def dense(x: Tensor) -> Tensor:
    """x in that layout; itself where it is so already."""
    return x if is_dense(x) else x.movedim(1, -1).contiguous().movedim(-1, 1)


def _over_ranks(partial: Tensor, reduce: Reduce | None) -> Tensor:
    return partial if reduce is None else reduce(partial.sum(0)).unsqueeze(0)


def train(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    s: Settings,
) -> tuple[Tensor, Tensor]:
    """y and moments, with no graph."""
    rest = (weight, bias, residual, running_mean, running_var, s.momentum, s.eps, s.activation, s.slope)
    outputs: tuple[Tensor, Tensor] = (
        bn_train(x, *rest) if s.reduce is None else bn_forward(x, _over_ranks(bn_sums(x), s.reduce), *rest)
    )
    return outputs


def backward(
    dy: Tensor, x: Tensor, moments: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, s: Settings
) -> tuple[Tensor | None, ...]:
    """The gradients of train's arguments."""
    dy, rest = dense(dy), (weight, bias, residual, s.activation, s.slope)
    if s.reduce is None:
        dx, dresidual, dweight, dbias = bn_backward(dy, x, moments, *rest)
    else:
        local = bn_gradient_sums(dy, x, moments, *rest)
        dx, dresidual, dweight, dbias = bn_gradient(dy, x, moments, _over_ranks(local, s.reduce), local, *rest)
    return dx, dweight, dbias, None if residual is None else dresidual, None, None, None


class Recorded(torch.autograd.Function):
    """(x, weight, bias, residual, running_mean, running_var, settings) -> y, for a graph that autograd alone records.

    Keeps x, the parameters and moments, and the residual where there is one (it is as a rule alive anyway, as the input
    of the block). Once differentiable: a second derivative raises.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        x, weight, bias, residual, _, _, ctx.settings = arguments
        y, moments = train(*arguments)
        ctx.save_for_backward(x, weight, bias, residual, moments)
        return y

    @staticmethod
    @once
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, residual, moments = ctx.saved_tensors
        return backward(dy, x, moments, weight, bias, residual, ctx.settings)


class BatchNormAct(torch.autograd.Function):
    """The same with a forward mode, and as torch.func needs it; returns (y, moments). Twice the price a call."""

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        residual: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        settings: Settings,
    ) -> tuple[Tensor, Tensor]:
        return train(x, weight, bias, residual, running_mean, running_var, settings)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, weight, bias, residual, _, _, ctx.settings = inputs  # type: ignore[attr-defined]
        moments = output[1]
        ctx.mark_non_differentiable(moments)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, bias, residual, moments)
        ctx.save_for_forward(x, weight, bias, residual, moments)

    @staticmethod
    @once
    def backward(ctx: Any, dy: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return (None,) * 7
        x, weight, bias, residual, moments = ctx.saved_tensors
        return backward(dy, x, moments, weight, bias, residual, ctx.settings)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, None]:
        x, weight, bias, residual, moments = ctx.saved_tensors
        s: Settings = ctx.settings
        of_x, of_weight, of_bias, of_residual = (
            torch.zeros_like(primal) if tangent is None and primal is not None else tangent
            for tangent, primal in zip(tangents, (x, weight, bias, residual), strict=False)
        )
        assert of_x is not None
        of_x = dense(of_x)
        of_residual = None if of_residual is None else dense(of_residual)
        total = _over_ranks(bn_gradient_sums(of_x, x, moments, weight, bias, None, NUMBER["none"], 0.0), s.reduce)
        y = bn_tangent(
            x, of_x, moments, total, weight, bias, of_weight, of_bias, residual, of_residual, s.activation, s.slope
        )
        return y, None


def wants_graph(*tensors: Tensor | None) -> bool:
    """Whether a graph is to be recorded."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


Parted = tuple[Tensor | None, Tensor | None]


def parted(x: Tensor, *rest: Tensor | None) -> list[Parted] | None:
    """Values and their tangents; None where there is no tangent, a graph is recorded beside them, or the backend does not
    compute both at once."""
    if forward_ad._current_level < 0 or wants_graph(x, *rest):
        return None
    duals: list[Parted] = [(None, None) if t is None else torch._VF._unpack_dual(t, level=0) for t in (x, *rest)]
    if all(tangent is None for _, tangent in duals) or _backend(x) == "triton":
        return None
    return duals


def dual_batch_norm_act(
    duals: list[Parted],
    running_mean: Tensor | None,
    running_var: Tensor | None,
    settings: Settings,
) -> Tensor:
    """y as a dual tensor: the sums of x and of its tangent in one pass, y and its tangent in another."""
    s = settings
    (x, of_x), (w, of_weight), (b, of_bias), (r, of_residual) = (
        (value, torch.zeros_like(value) if tangent is None and value is not None else tangent)
        for value, tangent in duals
    )
    assert of_x is not None  # x is always there, and a missing tangent is zeros by now
    of_x = dense(of_x)
    rest = (
        w, b, of_weight, of_bias, r, None if of_residual is None else dense(of_residual),
        running_mean, running_var, s.momentum, s.eps, s.activation, s.slope,
    )  # fmt: skip
    y, tangent = (
        bn_dual_train.parted(x, of_x, *rest)
        if s.reduce is None
        else bn_dual.parted(x, of_x, _over_ranks(bn_dual_sums.parted(x, of_x), s.reduce), *rest)
    )
    dual: Tensor = forward_ad.make_dual(y, tangent)  # type: ignore[no-untyped-call]
    return dual


# `apply` binds its arguments to forward's signature on every call; inspecting it anew costs as much as a small kernel.
BatchNormAct.forward.__signature__ = inspect.signature(BatchNormAct.forward)  # type: ignore[attr-defined]
