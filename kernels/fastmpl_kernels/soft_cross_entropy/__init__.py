"""Cross-entropy with label smoothing against labels or distributions, fused with its gradient.

    loss = 1/N sum_i sum_c -t'_ic log softmax(logits_i)_c,    t' = (1 - label_smoothing) t + label_smoothing / K
    gradient = 1/N (softmax(logits_i) - t'_i)

Class weights and ignored labels are left out. The target gets no gradient.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastmpl_kernels import dispatch, library, ops
from fastmpl_kernels.ops import differentiable_once
from fastmpl_kernels.rows import (
    RecordedLoss,
    call_below_autograd,
    check_labels,
    check_rows,
    gradient_like,
    tangent_of_loss,
    wants_gradient,
)
from fastmpl_kernels.soft_cross_entropy import native, reference

__all__ = ["soft_cross_entropy"]

OP = "soft_cross_entropy"


def _run(backend: str, logits: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return native.run(logits, *rest) if backend == "native" else dispatch.launch(OP, logits, _launch, logits, *rest)


def _launch(*arguments: Any) -> tuple[Tensor, Tensor]:
    from fastmpl_kernels.soft_cross_entropy import triton_impl  # needs Triton: only where it was chosen

    return triton_impl.run(*arguments)


def _fake(backend: str, logits: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    return logits.new_empty((), dtype=torch.float32), gradient_like(logits, arguments[-1])


_op = ops.define(
    "soft_cross_entropy(str backend, Tensor logits, Tensor target, float label_smoothing, bool with_gradient) "
    "-> (Tensor, Tensor)",
    _run,
    _fake,
)


class _SoftCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(logits: Tensor, target: Tensor, backend: str, label_smoothing: float) -> tuple[Tensor, Tensor]:
        outputs: tuple[Tensor, Tensor] = call_below_autograd(_op, backend, logits, target, label_smoothing, True)
        return outputs

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1], inputs[0])
        ctx.save_for_forward(output[1], inputs[0])

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        gradient, logits = ctx.saved_tensors
        return *differentiable_once(OP, [gradient * upstream], [upstream, logits]), None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        gradient, _logits = ctx.saved_tensors
        return tangent_of_loss((gradient, tangent)), None


def soft_cross_entropy(
    logits: Float[Tensor, "N K"],
    target: Int[Tensor, " N"] | Float[Tensor, "N K"],
    *,
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """The mean cross-entropy of N rows with labels (int64 `[N]`) or distributions (`[N, K]`, rows that sum to one).

    The gradient flows to `logits` alone. Reductions and the loss are in float32 (in float64 for float64 logits).
    Raises ValueError for empty rows, for a target of another shape, and on CPU for a label that is no class.
    """
    check_rows("soft_cross_entropy", "logits", logits)
    if target.dim() == 1:
        check_labels("soft_cross_entropy", "target", target, logits.shape[0])
    else:
        check_rows("soft_cross_entropy", "target", target, logits)
    if torch.compiler.is_compiling():
        return reference.soft_cross_entropy(logits, target, label_smoothing)
    floating = (logits, target) if target.dim() == 2 else (logits,)
    backend = dispatch.select(OP, floating, library.available)
    if backend != "reference":
        try:
            return _with_kernels(backend, logits, target.detach() if target.requires_grad else target, label_smoothing)
        except dispatch.KernelFailure:  # recorded and said by the dispatcher
            pass
    return reference.soft_cross_entropy(logits, target, label_smoothing)


def _with_kernels(backend: dispatch.Backend, logits: Tensor, target: Tensor, label_smoothing: float) -> Tensor:
    """The loss by a kernel, in whatever torch records: nothing, a graph, tangents, or both."""
    loss: Tensor
    if ops.is_transformed():
        loss, _ = _SoftCrossEntropy.apply(logits, target, backend, label_smoothing)
        return loss
    wanted = wants_gradient(logits)
    loss, gradient = _op.call_on((logits, target), backend, logits, target, label_smoothing, wanted)
    return RecordedLoss.apply(OP, [loss], [gradient], logits) if wanted else loss
