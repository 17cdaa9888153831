"""The phases of batch_norm_act put together: without a graph, in autograd's graph, and in forward mode."""

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import FunctionCtx

from fastmpl_kernels.batch_norm_act import phases
from fastmpl_kernels.batch_norm_act.implementations import OP, Kernels, backend_of
from fastmpl_kernels.batch_norm_act.library_ops import (
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
    flatten,
    flatten_dual,
)
from fastmpl_kernels.batch_norm_act.reference import reference
from fastmpl_kernels.batch_norm_act.settings import NAMES, NUMBER, Norm, Reduce, Running, Settings, Tangents
from fastmpl_kernels.ops import differentiable_once, is_plain, is_transformed, make_dual, refuse_second_derivative


def is_dense(x: Tensor) -> bool:
    """Whether pixels are rows and channels columns of contiguous memory (channels-last, or `[N, C]`)."""
    if x.dim() == 4:
        return x.is_contiguous(memory_format=torch.channels_last)
    return x.movedim(1, -1).is_contiguous()


def as_dense(x: Tensor) -> Tensor:
    """x in that layout; x itself where it has the layout already."""
    return x if is_dense(x) else x.movedim(1, -1).contiguous().movedim(-1, 1)


def _sum_over_ranks(partial: Tensor, reduce: Reduce | None) -> Tensor:
    """The gradient sums of all ranks as one part; the parts of this rank where there is no other."""
    return partial if reduce is None else reduce(partial.sum(0)).unsqueeze(0)


def _moments_over_ranks(partial: Tensor, reduce: Reduce | None) -> Tensor:
    """The sums of x (phases.sums) of all ranks as one part; the parts of this rank where there is no other.

    The hook can only add, so between ranks squares are about 0: their variance is exact to 1e-16 (mean / deviation)^2.
    """
    if reduce is None:
        return partial
    total, squares, count = phases.merge_parts(partial)
    vector = reduce(torch.cat([total, squares + total.square() / count, count]))
    (total, squares), count = vector[:-1].chunk(2), vector[-1:]
    return torch.cat([total, (squares - total.square() / count).clamp_min(0), count]).unsqueeze(0)


def _dual_moments_over_ranks(partial: Tensor, reduce: Reduce) -> Tensor:
    """The same for the sums of x and of its tangent (phases.dual_sums)."""
    (total, squares, of_tangent, product), count = partial[0, :-1].chunk(4), partial[0, -1:]
    about_0 = [total, squares + total.square() / count, of_tangent, product + of_tangent * total / count, count]
    vector = reduce(torch.cat(about_0))
    (total, squares, of_tangent, product), count = vector[:-1].chunk(4), vector[-1:]
    centred = [(squares - total.square() / count).clamp_min(0), of_tangent, product - of_tangent * total / count]
    return torch.cat([total, *centred, count]).unsqueeze(0)


def make_records(
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    s: Settings,
) -> tuple[Norm, Running]:
    """The arguments of an autograd.Function, which must be flat, as the phases take them."""
    return Norm(weight, bias, residual, s.activation, s.slope), Running(running_mean, running_var, s.momentum, s.eps)


def train(
    kernels: Kernels | None, x: Tensor, norm: Norm, running: Running, reduce: Reduce | None
) -> tuple[Tensor, Tensor]:
    """y and moments, without a graph: by `kernels` directly, or by the library ops where that is None."""
    outputs: tuple[Tensor, Tensor]
    if kernels is not None:
        outputs = kernels.train(x, norm, running)
    elif reduce is None:
        outputs = bn_train(x, *flatten(norm, running))
    else:
        outputs = bn_forward(x, _moments_over_ranks(bn_sums(x), reduce), *flatten(norm, running))
    return outputs


def backward(
    kernels: Kernels | None, dy: Tensor, x: Tensor, moments: Tensor, norm: Norm, reduce: Reduce | None
) -> tuple[Tensor | None, ...]:
    """The gradients of x, weight, bias and residual; by `kernels` directly unless a mode or a transform watches by now."""
    dy = as_dense(dy)
    if kernels is not None and is_plain(dy) and not is_transformed():
        dx, dresidual, dweight, dbias = kernels.backward(dy, x, moments, norm)
    elif reduce is None:
        dx, dresidual, dweight, dbias = bn_backward(dy, x, moments, *norm)
    else:
        local = bn_gradient_sums(dy, x, moments, *norm)
        dx, dresidual, dweight, dbias = bn_gradient(dy, x, moments, _sum_over_ranks(local, reduce), local, *norm)
    return dx, dweight, dbias, None if norm.residual is None else dresidual


def _differentiable_gradients(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, s: Settings
) -> tuple[Tensor | None, ...]:
    """The gradients of x, weight, bias and residual as functions that torch can differentiate, by the plain formula."""
    y, _, _ = reference(x, weight, bias, eps=s.eps, activation=NAMES[s.activation], slope=s.slope, residual=residual)
    inputs = [t for t in (x, weight, bias, residual) if t is not None]
    needed = [t for t in inputs if t.requires_grad]
    found = iter(torch.autograd.grad(y, needed, dy, create_graph=True))
    gradients = [next(found) if t.requires_grad else None for t in inputs]
    return *gradients, *[None] * (4 - len(inputs))


class RecordedBatchNorm(torch.autograd.Function):
    """(kernels, x, weight, bias, residual, running_mean, running_var, settings) -> y, for a graph that autograd alone
    records; `kernels` as in `train` and `backward`.

    It saves x, the parameters, the moments, and the residual if there is one (as a rule it is alive anyway, as the input
    of the block). A second derivative raises, but for the reference's.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        ctx.kernels, x, weight, bias, residual, running_mean, running_var, ctx.settings = arguments
        norm, running = make_records(weight, bias, residual, running_mean, running_var, ctx.settings)
        y, moments = train(ctx.kernels, x, norm, running, ctx.settings.reduce)
        ctx.save_for_backward(x, weight, bias, residual, moments)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, residual, moments = ctx.saved_tensors
        s: Settings = ctx.settings
        if ctx.kernels is phases and torch.is_grad_enabled():
            return None, *_differentiable_gradients(dy, x, weight, bias, residual, s), None, None, None
        refuse_second_derivative(OP)
        norm = Norm(weight, bias, residual, s.activation, s.slope)
        return None, *backward(ctx.kernels, dy, x, moments, norm, s.reduce), None, None, None


class BatchNormAct(torch.autograd.Function):
    """The same with a forward mode and in the form that torch.func needs; returns (y, moments). A call costs twice as
    much."""

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
        norm, running = make_records(weight, bias, residual, running_mean, running_var, settings)
        return train(None, x, norm, running, settings.reduce)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, weight, bias, residual, _, _, ctx.settings = inputs  # type: ignore[attr-defined]
        moments = output[1]
        ctx.mark_non_differentiable(moments)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, bias, residual, moments)
        ctx.save_for_forward(x, weight, bias, residual, moments)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return (None,) * 7
        x, weight, bias, residual, moments = ctx.saved_tensors
        s: Settings = ctx.settings
        norm = Norm(weight, bias, residual, s.activation, s.slope)
        gradients = backward(None, dy, x, moments, norm, s.reduce)
        return *differentiable_once(OP, gradients, [dy, x, weight, bias, residual]), None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, None]:
        x, weight, bias, residual, moments = ctx.saved_tensors
        s: Settings = ctx.settings
        of_x, of_weight, of_bias, of_residual = (
            torch.zeros_like(primal) if tangent is None and primal is not None else tangent
            for tangent, primal in zip(tangents, (x, weight, bias, residual), strict=False)
        )
        assert of_x is not None
        of_x = as_dense(of_x)
        of_residual = None if of_residual is None else as_dense(of_residual)
        local = bn_gradient_sums(of_x, x, moments, weight, bias, None, NUMBER["none"], 0.0)
        total = _sum_over_ranks(local, s.reduce)
        y = bn_tangent(
            x, of_x, moments, total, weight, bias, of_weight, of_bias, residual, of_residual, s.activation, s.slope
        )
        return y, None


def wants_graph(*tensors: Tensor | None) -> bool:
    """Whether autograd records a graph of these tensors."""
    if torch.is_grad_enabled():
        for t in tensors:  # not any() of a generator, which takes longer than the rest
            if t is not None and t.requires_grad:
                return True
    return False


Dual = tuple[Tensor | None, Tensor | None]


def unpack_duals(x: Tensor, *rest: Tensor | None) -> list[Dual] | None:
    """Values and their tangents. None where there is no tangent, where autograd records a graph as well, or where the
    backend has no kernel that computes both at once."""
    if forward_ad._current_level < 0 or wants_graph(x, *rest):
        return None
    duals: list[Dual] = [(None, None) if t is None else torch._VF._unpack_dual(t, level=0) for t in (x, *rest)]
    if all(tangent is None for _, tangent in duals) or backend_of(x) == "triton":
        return None
    return duals


def compute_dual(
    duals: list[Dual], running_mean: Tensor | None, running_var: Tensor | None, settings: Settings
) -> Tensor:
    """y as a dual tensor: the sums of x and of its tangent in one pass, y and its tangent in another."""
    (x, of_x), (weight, of_weight), (bias, of_bias), (residual, of_residual) = (
        (value, torch.zeros_like(value) if tangent is None and value is not None else tangent)
        for value, tangent in duals
    )
    assert x is not None and weight is not None and bias is not None
    assert of_x is not None and of_weight is not None and of_bias is not None  # zeros where there was none
    of_residual = None if of_residual is None else as_dense(of_residual)
    tangents = Tangents(as_dense(of_x), of_weight, of_bias, of_residual)
    norm, running = make_records(weight, bias, residual, running_mean, running_var, settings)
    rest = flatten_dual(tangents, norm, running)
    if settings.reduce is None:
        y, tangent = bn_dual_train.call_on_parts(x, tangents.x, *rest)
    else:
        total = _dual_moments_over_ranks(bn_dual_sums.call_on_parts(x, tangents.x), settings.reduce)
        y, tangent = bn_dual.call_on_parts(x, tangents.x, total, *rest)
    return make_dual(y, tangent)


# `apply` binds its arguments to forward's signature on every call; inspecting it anew costs as much as a small kernel.
BatchNormAct.forward.__signature__ = inspect.signature(BatchNormAct.forward)  # type: ignore[attr-defined]
