"""The teacher's whole loss and its logits gradients, fused: supervised, UDA consistency, feedback from the student.

With `q = softmax(view / temperature)` on the view that labelled, and `p` the softmax of the logits in question:

| term | loss | gradient of its logits |
|---|---|---|
| supervised | `mean_i CE(t', labelled_i)`, `t'` the smoothed label | `(p - t') / B` |
| UDA | `mean_i m_i CE(w_i, strong_i)` | `m_i (p - w) / U` |
| exact feedback | `sum_ic r_ic q_ic`, `r = scale * tangent` | `q (r - <q, r>) / temperature` |
| per-example feedback | `sum_i r_i log q_{i, label_i}` | `r_i (onehot - q) / temperature` |
| scalar feedback | `U h mean_i CE(label_i, view_i / temperature)` | `h (q - onehot) / temperature` |

each times its weight; `w = softmax(weak / uda.temperature)` and `m_i = [max_c w_ic >= uda.threshold]`.
Pham et al. 2021, "Meta Pseudo Labels" (CVPR); Xie et al. 2020, "Unsupervised Data Augmentation".
The caller computes the credit, and its scale beyond `ExactFeedback.scale`.
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
from fastmpl_kernels.teacher_objective import native, reference
from fastmpl_kernels.teacher_objective.arguments import TeacherArguments, TeacherResults
from fastmpl_kernels.teacher_objective.reference import (
    ExactFeedback,
    Feedback,
    PerExampleFeedback,
    ScalarFeedback,
    TeacherObjective,
    UdaSettings,
    View,
)

__all__ = [
    "ExactFeedback",
    "Feedback",
    "PerExampleFeedback",
    "ScalarFeedback",
    "TeacherObjective",
    "UdaSettings",
    "View",
    "teacher_objective",
]

OP = "teacher_objective"


def _run(backend: str, *arguments: Any) -> TeacherResults:
    a = TeacherArguments(*arguments)
    return native.run(a) if backend == "native" else dispatch.launch(OP, a.strong_logits, _launch, a)


def _launch(a: TeacherArguments) -> TeacherResults:
    from fastmpl_kernels.teacher_objective import triton_impl  # needs Triton: only where it was chosen

    return triton_impl.run(a)


def _fake(backend: str, *arguments: Any) -> TeacherResults:
    a = TeacherArguments(*arguments)
    parts = a.labelled_logits.new_empty(5, dtype=torch.float32)
    views = (a.labelled_logits, a.strong_logits, a.strong_logits if a.weak_logits is None else a.weak_logits)
    return TeacherResults(parts, *(gradient_like(x, wanted) for x, wanted in zip(views, a.with_gradient, strict=True)))


_op = ops.define(
    "teacher_objective(str backend, Tensor labelled_logits, Tensor targets, Tensor strong_logits, Tensor? weak_logits, "
    "Tensor? uda_weight, Tensor? feedback_weight, Tensor? tangent, Tensor? credit, Tensor? drawn, str feedback, "
    "bool on_weak, float temperature, float label_smoothing, float supervised_weight, float uda_temperature, "
    "float uda_threshold, bool[] with_gradient) -> (Tensor, Tensor, Tensor, Tensor)",
    _run,
    _fake,
)


class _TeacherObjective(torch.autograd.Function):
    @staticmethod
    def forward(
        labelled: Tensor, strong: Tensor, weak: Tensor | None, backend: str, targets: Tensor, *arguments: Any
    ) -> tuple[Tensor, ...]:
        parts, *gradients = call_below_autograd(_op, backend, labelled, targets, strong, weak, *arguments)
        return parts[0].clone(), parts[1:].clone(), *gradients  # forward mode refuses views here

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, terms, *gradients = output
        ctx.mark_non_differentiable(terms, *gradients)
        ctx.save_for_backward(*gradients, *inputs[:3])
        ctx.save_for_forward(*gradients, *inputs[:3])

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        gradients, views = ctx.saved_tensors[:3], ctx.saved_tensors[3:]
        scaled = [gradient * upstream if gradient.numel() else None for gradient in gradients]
        return *differentiable_once(OP, scaled, [upstream, *views]), *[None] * 15

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        pairs = zip(ctx.saved_tensors[:3], tangents[:3], strict=True)
        return tangent_of_loss(*pairs), None, None, None, None


def _flatten(feedback: Feedback | None) -> tuple[tuple[Tensor | None, ...], str]:
    """The weight, tangent, credit and label that the low-level op takes, and the kind of feedback."""
    if feedback is None:
        return (None, None, None, None), "none"
    if isinstance(feedback, ExactFeedback):
        return (feedback.weight, feedback.tangent, feedback.scale, None), "exact"
    kind = "scalar" if isinstance(feedback, ScalarFeedback) else "per_example"
    return (feedback.weight, None, feedback.credit, feedback.label), kind


def _check(
    labelled_logits: Tensor,
    targets: Tensor,
    strong_logits: Tensor,
    weak_logits: Tensor | None,
    uda: UdaSettings | None,
    feedback: Feedback | None,
    label_view: View,
) -> None:
    op = "teacher_objective"
    check_rows(op, "labelled_logits", labelled_logits)
    check_labels(op, "targets", targets, labelled_logits.shape[0])
    check_rows(op, "strong_logits", strong_logits)
    if strong_logits.shape[1] != labelled_logits.shape[1]:
        raise ValueError(
            f"{op}: labelled and strong logits must have as many classes, "
            f"found {labelled_logits.shape[1]} and {strong_logits.shape[1]}."
        )
    if weak_logits is not None:
        check_rows(op, "weak_logits", weak_logits, strong_logits)
    elif uda is not None or (feedback is not None and label_view == "weak"):
        raise ValueError(
            f"{op}: UDA and feedback to the weak view need weak_logits: give weak_logits, or leave out both."
        )
    if isinstance(feedback, ExactFeedback):
        check_rows(op, "feedback.tangent", feedback.tangent, strong_logits)
    elif feedback is not None:
        check_labels(op, "feedback.label", feedback.label, strong_logits.shape[0])
        shape = feedback.label.shape if isinstance(feedback, PerExampleFeedback) else ()
        if feedback.credit.shape != shape:
            raise ValueError(f"{op}: feedback.credit must be {list(shape)}, found {list(feedback.credit.shape)}.")


def teacher_objective(
    labelled_logits: Float[Tensor, "B K"],
    targets: Int[Tensor, " B"],
    strong_logits: Float[Tensor, "U K"],
    weak_logits: Float[Tensor, "U K"] | None = None,
    *,
    uda: UdaSettings | None = None,
    feedback: Feedback | None = None,
    label_view: View = "strong",
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
    supervised_weight: float = 1.0,
) -> TeacherObjective:
    """The teacher's loss, `supervised_weight * supervised + uda.weight * uda + feedback.weight * feedback`.

    Only `loss` carries a gradient: to `labelled_logits`, to `strong_logits` (of UDA, and of the feedback if that view
    labelled) and to `weak_logits` (of the feedback, if that view labelled). Weights and credits are 0-D tensors, which
    may change between replays of a captured graph. Reductions are in float32 (in float64 for float64 logits). If the
    views are rows of one tensor, take them with `split`: the backward of slices writes the whole tensor once per slice.
    Raises ValueError for empty rows, shapes that differ, a view that is needed and missing, and on CPU for a label that
    is no class.
    """
    _check(labelled_logits, targets, strong_logits, weak_logits, uda, feedback, label_view)
    plain = (uda, feedback, label_view, temperature, label_smoothing, supervised_weight)
    if torch.compiler.is_compiling():
        return reference.teacher_objective(labelled_logits, targets, strong_logits, weak_logits, *plain)
    views = tuple(x for x in (labelled_logits, strong_logits, weak_logits) if x is not None)
    backend = dispatch.select(OP, views, library.available)
    if backend != "reference":
        try:
            return _with_kernels(backend, labelled_logits, targets, strong_logits, weak_logits, *plain)
        except dispatch.KernelFailure:  # recorded and said by the dispatcher
            pass
    return reference.teacher_objective(labelled_logits, targets, strong_logits, weak_logits, *plain)


def _with_kernels(
    backend: dispatch.Backend,
    labelled_logits: Tensor,
    targets: Tensor,
    strong_logits: Tensor,
    weak_logits: Tensor | None,
    uda: UdaSettings | None,
    feedback: Feedback | None,
    label_view: View,
    temperature: float,
    label_smoothing: float,
    supervised_weight: float,
) -> TeacherObjective:
    """The losses by a kernel, in whatever torch records: nothing, a graph, tangents, or both."""
    on_weak = label_view == "weak"
    constants, kind = _flatten(feedback)
    wanted = wants_gradient(labelled_logits, strong_logits, weak_logits)
    arguments = (
        *(None if uda is None else uda.weight, *constants, kind, on_weak),
        *(temperature, label_smoothing, supervised_weight),
        *((1.0, 0.0) if uda is None else uda[1:]),
        [
            wanted,
            wanted and (uda is not None or (feedback is not None and not on_weak)),
            wanted and feedback is not None and on_weak,
        ],
    )
    if ops.is_transformed():
        results = _TeacherObjective.apply(labelled_logits, strong_logits, weak_logits, backend, targets, *arguments)
        return TeacherObjective(results[0], *results[1].unbind())
    parts, *gradients = _op(backend, labelled_logits, targets, strong_logits, weak_logits, *arguments)
    loss, *terms = parts.unbind()
    if wanted:
        loss = RecordedLoss.apply(OP, [loss], gradients, labelled_logits, strong_logits, weak_logits)
    return TeacherObjective(loss, *terms)
