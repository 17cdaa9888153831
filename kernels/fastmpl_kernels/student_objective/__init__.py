"""The student's loss on pseudo labels, fused: label, mask, loss and gradient from two row loads and one row store.

With `q = softmax(label_logits / temperature)`, `t` the target (`q` itself, or one-hot at a label drawn from `q` or at
its maximum), `t' = (1 - label_smoothing) t + label_smoothing / K`, and `m = [max q >= threshold]`:

    loss = 1/U sum_i m_i sum_c -t'_ic log softmax(student_logits_i)_c
    gradient = m_i / U (softmax(student_logits_i) - t'_i)

Pham et al. 2021, "Meta Pseudo Labels" (CVPR). The network that labels gets no gradient here; `teacher_objective` has its
loss.
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
from fastmpl_kernels.student_objective import native, reference
from fastmpl_kernels.student_objective.arguments import StudentArguments, StudentResults
from fastmpl_kernels.student_objective.reference import StudentObjective, Targets

__all__ = ["StudentObjective", "Targets", "student_objective"]

OP = "student_objective"


def _run(backend: str, *arguments: Any) -> StudentResults:
    a = StudentArguments(*arguments)
    return native.run(a) if backend == "native" else dispatch.launch(OP, a.student_logits, _launch, a)


def _launch(a: StudentArguments) -> StudentResults:
    from fastmpl_kernels.student_objective import triton_impl  # needs Triton: only where it was chosen

    return triton_impl.run(a)


def _fake(backend: str, *arguments: Any) -> StudentResults:
    a = StudentArguments(*arguments)
    logits, rows = a.student_logits, a.student_logits.shape[0]
    return StudentResults(
        logits.new_empty(3, dtype=torch.float32),
        logits.new_empty(rows, dtype=torch.int64),
        logits.new_empty(rows, dtype=torch.bool),
        gradient_like(logits, a.with_gradient),
    )


_op = ops.define(
    "student_objective(str backend, Tensor label_logits, Tensor student_logits, Tensor? key, Tensor? index, "
    "str targets, float temperature, float label_smoothing, float threshold, bool with_gradient) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _run,
    _fake,
)


class _StudentObjective(torch.autograd.Function):
    @staticmethod
    def forward(student_logits: Tensor, label_logits: Tensor, backend: str, *arguments: Any) -> tuple[Tensor, ...]:
        parts, *rest = call_below_autograd(_op, backend, label_logits, student_logits, *arguments)
        return parts[0].clone(), parts[1:].clone(), *rest  # forward mode refuses views here

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, *rest = output
        gradient = output[-1]
        ctx.mark_non_differentiable(*rest)
        ctx.save_for_backward(gradient, inputs[0])
        ctx.save_for_forward(gradient, inputs[0])

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        gradient, logits = ctx.saved_tensors
        return *differentiable_once(OP, [gradient * upstream], [upstream, logits]), *[None] * 9

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        gradient, _logits = ctx.saved_tensors
        return tangent_of_loss((gradient, tangent)), None, None, None, None


def student_objective(
    label_logits: Float[Tensor, "U K"],
    student_logits: Float[Tensor, "U K"],
    *,
    targets: Targets = "soft",
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
    threshold: float = 0.0,
    key: Int[Tensor, ""] | None = None,
    index: Int[Tensor, " U"] | None = None,
) -> StudentObjective:
    """The mean loss over all U rows, the labels `int64 [U]`, the confidence mask `bool [U]`, and the means of both.

    Rows below the threshold add 0 to the loss and its gradient and count in the mean. Sampled labels depend on `key` (0-D)
    and `index` (the images' numbers) alone (fastmpl_kernels.keyed). The gradient flows to `student_logits` alone.
    Reductions and the loss are in float32 (in float64 for float64 logits).
    Raises ValueError for empty rows, shapes that differ, or sampled targets without key and index.
    """
    check_rows("student_objective", "student_logits", student_logits)
    check_rows("student_objective", "label_logits", label_logits, student_logits)
    if targets == "sampled":
        if key is None or index is None:
            raise ValueError("student_objective: sampled targets need key (0-D int64) and index (int64 [U]).")
        check_labels("student_objective", "index", index, student_logits.shape[0])
    settings = (targets, temperature, label_smoothing, threshold)
    if torch.compiler.is_compiling():
        return reference.student_objective(label_logits, student_logits, *settings, key, index)
    backend = dispatch.select(OP, (label_logits, student_logits), library.available)
    if backend != "reference":
        try:
            return _with_kernels(backend, label_logits, student_logits, key, index, *settings)
        except dispatch.KernelFailure:  # recorded and said by the dispatcher
            pass
    return reference.student_objective(label_logits, student_logits, *settings, key, index)


def _with_kernels(
    backend: dispatch.Backend, label_logits: Tensor, student_logits: Tensor, *rest: Any
) -> StudentObjective:
    """The loss by a kernel, in whatever torch records: nothing, a graph, tangents, or both."""
    if ops.is_transformed():
        outputs = _StudentObjective.apply(student_logits, label_logits.detach(), backend, *rest, True)
        loss, shares, label, mask, _ = outputs
        return StudentObjective(loss, label, mask, *shares.unbind())
    wanted = wants_gradient(student_logits)
    parts, label, mask, gradient = _op(backend, label_logits, student_logits, *rest, wanted)
    loss, confidence, coverage = parts.unbind()
    if wanted:
        loss = RecordedLoss.apply(OP, [loss], [gradient], student_logits)
    return StudentObjective(loss, label, mask, confidence, coverage)
