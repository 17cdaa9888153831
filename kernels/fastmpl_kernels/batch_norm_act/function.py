"""batch_norm_act's phases composed: with no graph, in autograd's, and in forward mode."""

import inspect
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import FunctionCtx

from fastmpl_kernels.batch_norm_act.library_ops import (
    backend_of,
    bn_backward,
    bn_dual,
    bn_dual_sums,
    bn_dual_train,
    bn_forward,
    bn_gradient,
    bn_gradient_sums,
    bn_sums,
    bn_tangent,
    bn_train,
)
from fastmpl_kernels.batch_norm_act.settings import NUMBER, Reduce, Settings
from fastmpl_kernels.ops import dual_of, once, plain, transformed


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
    kernels: ModuleType | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    s: Settings,
) -> tuple[Tensor, Tensor]:
    """y and moments, with no graph: by `kernels` themselves, or where that is None by the library ops."""
    rest = (weight, bias, residual, running_mean, running_var, s.momentum, s.eps, s.activation, s.slope)
    outputs: tuple[Tensor, Tensor]
    if kernels is not None:
        outputs = kernels.train(x, *rest)
    elif s.reduce is None:
        outputs = bn_train(x, *rest)
    else:
        outputs = bn_forward(x, _over_ranks(bn_sums(x), s.reduce), *rest)
    return outputs


def backward(
    kernels: ModuleType | None,
    dy: Tensor,
    x: Tensor,
    moments: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    s: Settings,
) -> tuple[Tensor | None, ...]:
    """The gradients of x, weight, bias and residual; by `kernels` themselves unless something watches by now."""
    dy, rest = dense(dy), (weight, bias, residual, s.activation, s.slope)
    if kernels is not None and plain(dy) and not transformed():
        dx, dresidual, dweight, dbias = kernels.backward(dy, x, moments, *rest)
    elif s.reduce is None:
        dx, dresidual, dweight, dbias = bn_backward(dy, x, moments, *rest)
    else:
        local = bn_gradient_sums(dy, x, moments, *rest)
        dx, dresidual, dweight, dbias = bn_gradient(dy, x, moments, _over_ranks(local, s.reduce), local, *rest)
    return dx, dweight, dbias, None if residual is None else dresidual


class Recorded(torch.autograd.Function):
    """(kernels, x, weight, bias, residual, running_mean, running_var, settings) -> y, for a graph that autograd alone
    records; `kernels` as `train` and `backward` take them.

    Keeps x, the parameters and moments, and the residual where there is one (it is as a rule alive anyway, as the input
    of the block). Once differentiable: a second derivative raises.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        ctx.kernels, x, weight, bias, residual, _, _, ctx.settings = arguments
        y, moments = train(*arguments)
        ctx.save_for_backward(x, weight, bias, residual, moments)
        return y

    @staticmethod
    @once
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, residual, moments = ctx.saved_tensors
        gradients = backward(ctx.kernels, dy, x, moments, weight, bias, residual, ctx.settings)
        return None, *gradients, None, None, None


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
        return train(None, x, weight, bias, residual, running_mean, running_var, settings)

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
        return *backward(None, dy, x, moments, weight, bias, residual, ctx.settings), None, None, None

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
    if torch.is_grad_enabled():
        for t in tensors:  # not any() of a generator, which takes longer than the rest
            if t is not None and t.requires_grad:
                return True
    return False


Parted = tuple[Tensor | None, Tensor | None]


def parted(x: Tensor, *rest: Tensor | None) -> list[Parted] | None:
    """Values and their tangents; None where there is no tangent, a graph is recorded beside them, or the backend does not
    compute both at once."""
    if forward_ad._current_level < 0 or wants_graph(x, *rest):
        return None
    duals: list[Parted] = [(None, None) if t is None else torch._VF._unpack_dual(t, level=0) for t in (x, *rest)]
    if all(tangent is None for _, tangent in duals) or backend_of(x) == "triton":
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
    return dual_of(y, tangent)


# `apply` binds its arguments to forward's signature on every call; inspecting it anew costs as much as a small kernel.
BatchNormAct.forward.__signature__ = inspect.signature(BatchNormAct.forward)  # type: ignore[attr-defined]
