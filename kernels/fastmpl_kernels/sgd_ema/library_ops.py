"""sgd_ema, global_norm and inner_product as library ops, each on the backend that suits its tensors."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from fastmpl_kernels import dispatch
from fastmpl_kernels.library import available
from fastmpl_kernels.ops import define
from fastmpl_kernels.sgd_ema import native, reference
from fastmpl_kernels.sgd_ema.arguments import SgdArguments


def _backend(op: str, *lists: Sequence[Tensor]) -> dispatch.Backend:
    """The backend for these lists. Kernels walk memory: they need float32, and one layout for the four tensors of a
    parameter."""
    flat = {t.dtype for t in chain(*lists)} == {torch.float32} and _same_layouts(*lists)
    if not flat and not dispatch.is_forced():
        dispatch.record_backend(op, "reference")
        return "reference"
    if not flat and not any(t.dtype == torch.float64 for t in lists[0]):
        raise dispatch.BackendError(f"{op}: the kernels need dense float32 tensors, of one layout for each parameter.")
    return dispatch.select(op, tuple(tensors[0] for tensors in lists), available)


def _launch(op: str, *arguments: Any) -> Any:
    from fastmpl_kernels.sgd_ema import triton_impl  # needs Triton: only where it was chosen

    return getattr(triton_impl, op)(*arguments)


def _compute(op: str, lists: Sequence[Sequence[Tensor]], *arguments: Any) -> Any:
    """Calls the implementation of `op` for these lists; the reference where Triton cannot run its kernel."""
    backend = _backend(op, *lists)
    if backend == "triton":
        try:
            return dispatch.launch(op, lists[0][0], _launch, op, *arguments)
        except dispatch.KernelFailure:
            backend = "reference"
    return getattr(native if backend == "native" else reference, op)(*arguments)


def _same_layouts(*lists: Sequence[Tensor]) -> bool:
    """Whether element i in memory is the same element of a parameter, its gradient, its buffer and its average."""
    if False not in {t.is_contiguous() for t in chain(*lists)}:  # the common case, at 50 ns a tensor
        return True
    return all(_has_one_layout(*tensors) for tensors in zip(*lists, strict=True))


def _has_one_layout(*tensors: Tensor) -> bool:
    if all(t.is_contiguous() for t in tensors):
        return True
    return tensors[0].dim() == 4 and all(t.is_contiguous(memory_format=torch.channels_last) for t in tensors)


def _sgd_ema(*arguments: Any) -> None:
    step = SgdArguments(*arguments)
    _compute("sgd_ema", step.lists(), step)


def _global_norm(grads: list[Tensor]) -> Tensor:
    norm: Tensor = _compute("global_norm", [grads], grads)
    return norm


def _inner_product(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """Has no Triton kernel: that would need a table of addresses, and those of a step's temporaries change."""
    kernel = a[0].is_cpu and _backend("inner_product", a, b) == "native"
    if not kernel:
        dispatch.record_backend("inner_product", "reference")
    return native.inner_product(a, b) if kernel else reference.inner_product(a, b)


def _norm_like(grads: list[Tensor]) -> Tensor:
    return grads[0].new_empty((), dtype=torch.promote_types(grads[0].dtype, torch.float32))


sgd_ema_ = define(
    "sgd_ema_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] buffers, Tensor(c!)[] averages, Tensor lr, "
    "Tensor? clip_factor, Tensor? found_inf, Tensor decay, float momentum, float weight_decay, bool nesterov) -> ()",
    _sgd_ema,
    lambda *_: None,
)
global_norm_ = define("global_norm(Tensor[] grads) -> Tensor", _global_norm, _norm_like)
inner_product_ = define(
    "inner_product(Tensor[] a, Tensor[] b) -> Tensor",
    _inner_product,
    lambda a, _: a[0].new_empty(()),
)
