"""What the row losses share: checks of their inputs, the gradient that is computed with the loss, calls of the C++ library.

A row loss reads rows of logits `[N, K]` and returns a mean over rows. Its gradient is computed with the loss, while the
rows are in registers; backward only scales it, once.
"""

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad

from fastmpl_kernels.dispatch import BackendError
from fastmpl_kernels.library import library, pointer
from fastmpl_kernels.ops import Op, refuse_second_derivative


def check_rows(op: str, name: str, logits: Tensor, like: Tensor | None = None) -> None:
    """Raises ValueError unless `logits` are floating-point rows `[N, K]`, of the shape of `like` if that is given."""
    if logits.dim() != 2 or logits.numel() == 0 or not logits.is_floating_point():
        raise ValueError(
            f"{op}: {name} must be floating-point rows [N, K] with at least one row and one class, "
            f"found {logits.dtype} {tuple(logits.shape)}."
        )
    if like is not None and logits.shape != like.shape:
        raise ValueError(f"{op}: {name} must have the shape {tuple(like.shape)}, found {tuple(logits.shape)}.")


def check_labels(op: str, name: str, labels: Tensor, rows: int) -> None:
    """Raises ValueError unless `labels` are int64 `[rows]`."""
    if labels.dtype != torch.int64 or labels.shape != (rows,):
        raise ValueError(f"{op}: {name} must be int64 [{rows}], found {labels.dtype} {tuple(labels.shape)}.")


def wants_gradient(*logits: Tensor | None) -> bool:
    """Whether a caller may ask for a gradient or a tangent of a loss of these logits."""
    if forward_ad._current_level >= 0:
        return True
    if torch.is_grad_enabled():
        for x in logits:  # not any() of a generator, which takes longer than the rest
            if x is not None and x.requires_grad:
                return True
    return False


def widen(logits: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """float64 stays, every other type becomes float32: the precision of every row reduction."""
    return logits if logits.dtype == torch.float64 else logits.float()


def expected(target: Float[Tensor, "N K"], log_p: Float[Tensor, "N K"]) -> Float[Tensor, "N"]:
    """sum_c target_c log_p_c of each row. A class of probability 0 adds 0 even where its logit is -inf: it is masked."""
    return (target * log_p.masked_fill(target == 0, 0.0)).sum(-1)


def gradient_like(logits: Tensor, wanted: bool) -> Tensor:
    """Contiguous memory for the gradient of `logits`, not yet written; an empty tensor where none is wanted."""
    if wanted and logits.is_contiguous():
        return torch.empty_like(logits)  # takes half as long as with shape, type and device
    return torch.empty(logits.shape if wanted else (0,), dtype=logits.dtype, device=logits.device)


def call_below_autograd(op: Op, *arguments: Any) -> Any:
    """Calls a low-level op from an autograd.Function's forward, where no derivative can be lost: the guard is skipped."""
    with torch._C._AutoDispatchBelowAutograd():
        return op(*arguments)


@cache
def _constant(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full((), value, dtype=dtype, device=device)


def constant(value: float, like: Tensor) -> Float[Tensor, ""]:
    """A number as a 0-D tensor of the type and device of `like`. It is made once, not in every step. Never write to it."""
    if _is_watched(like):
        return torch.full((), value, dtype=like.dtype, device=like.device)
    return _constant(value, like.dtype, like.device)


def _is_watched(like: Tensor) -> bool:
    """Whether `like` is fake or a dispatch mode is active: a constant that is made then must not be kept."""
    return type(like) is not Tensor or torch._C._len_torch_dispatch_stack() > 0


def unit(loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """The gradient 1 of a loss by itself, always the same tensor. `loss.backward(unit(loss))` saves the fill that
    `loss.backward()` launches and, where `loss` is a row loss itself, the product with it."""
    return constant(1.0, loss)


def scale_gradient(gradient: Tensor, upstream: Tensor) -> Tensor | None:
    """Multiplies the saved gradient by `upstream`, in place, because a copy would be as large as the logits.

    Autograd then refuses a second backward through the same graph: it sees that a saved tensor has changed. Returns None
    for an empty gradient, of an input that the loss does not depend on.
    """
    if not gradient.numel():
        return None
    is_unit = not _is_watched(upstream) and upstream is _constant(1.0, upstream.dtype, upstream.device)
    return gradient if is_unit else gradient.mul_(upstream)


class RecordedLoss(torch.autograd.Function):
    """(op, [loss], its gradient by each of the logits, logits...) -> the loss, for a graph that autograd alone records.

    The loss is passed in a list: of a tensor that is an input and an output, autograd makes a view, which costs an op.
    """

    @staticmethod
    def forward(
        ctx: Any, op: str, loss: Sequence[Tensor], gradients: Sequence[Tensor], *logits: Tensor | None
    ) -> Tensor:
        ctx.op = op
        ctx.save_for_backward(*gradients)
        return loss[0]

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative(ctx.op)
        return None, None, None, *[scale_gradient(gradient, upstream) for gradient in ctx.saved_tensors]


def tangent_of_loss(*pairs: tuple[Tensor, Tensor | None]) -> Tensor:
    """The tangent of the loss: the sum of <gradient, tangent> over the inputs that have both."""
    total = torch.zeros((), device=pairs[0][0].device)
    for gradient, tangent in pairs:
        if tangent is not None and gradient.numel():
            total = total + (widen(gradient) * widen(tangent)).sum()
    return total


def as_native(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """`logits` as contiguous rows of `dtype`, which the native kernels read; no copy if they are that already."""
    return logits if logits.dtype == dtype and logits.is_contiguous() else logits.to(dtype).contiguous()


def as_type(gradient: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient in its logits' type. The test is there because a conversion without effect costs a microsecond."""
    return gradient if gradient.dtype == dtype else gradient.to(dtype)


def native_dtype(*logits: Tensor | None) -> torch.dtype:
    """bfloat16 where all logits are bfloat16, else float32: the two types that the native kernels are compiled for."""
    for x in logits:
        if x is not None and x.dtype != torch.bfloat16:
            return torch.float32
    return torch.bfloat16


@cache
def _function(name: str) -> Callable[..., int]:
    native = library()
    if native is None:
        raise BackendError(f"{name}: the native library was not built.")
    function = getattr(native, name)
    function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_int32), ctypes.c_int64
    return cast(Callable[..., int], function)


def call_native(function: str, arguments: ctypes.Structure, dtype: torch.dtype) -> int:
    """Calls a row loss of the native library; returns 0, or 1 + the first row whose label is no class."""
    return int(_function(function)(ctypes.byref(arguments), dtype == torch.bfloat16))


def address(tensor: Tensor | None) -> int | None:
    """The address of a tensor; a null pointer for no tensor and for an empty one, which a kernel must not write."""
    return None if tensor is None or tensor.numel() == 0 else pointer(tensor)
