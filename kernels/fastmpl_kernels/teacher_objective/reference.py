"""The teacher's losses in plain torch, in any floating type, differentiable in every mode. Compiled steps run them."""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastmpl_kernels.rows import expected, widen
from fastmpl_kernels.soft_cross_entropy.reference import soft_cross_entropy

View = Literal["strong", "weak"]


class UdaSettings(NamedTuple):
    """Consistency of the strong view with the weak view, which gets no gradient (Xie et al. 2020, arXiv:1904.12848)."""

    weight: Float[Tensor, ""]
    temperature: float = 1.0
    threshold: float = 0.0


class ExactFeedback(NamedTuple):
    """`sum_ic r_ic q_ic` with `r = scale * tangent`, the validation loss's derivative by every soft label.

    `tangent` is the tangent of the student's logits or of their log-softmax. The two differ by a constant a row, which
    changes no gradient. `scale` is `(1 - label_smoothing) / U`.
    """

    tangent: Float[Tensor, "U K"]
    scale: Float[Tensor, ""]
    weight: Float[Tensor, ""]


class PerExampleFeedback(NamedTuple):
    """`sum_i credit_i log q_{i, label_i}`: the same derivative, at the label that was drawn."""

    credit: Float[Tensor, " U"]
    label: Int[Tensor, " U"]
    weight: Float[Tensor, ""]


class ScalarFeedback(NamedTuple):
    """`U * credit * mean_i CE(label_i, T / temperature)`; credit is the validation loss before less after a step."""

    credit: Float[Tensor, ""]
    label: Int[Tensor, " U"]
    weight: Float[Tensor, ""]


Feedback = ExactFeedback | PerExampleFeedback | ScalarFeedback


class TeacherObjective(NamedTuple):
    """The loss that carries the gradient, its three terms before their weights, and the share of rows UDA used."""

    loss: Float[Tensor, ""]
    supervised: Float[Tensor, ""]
    uda: Float[Tensor, ""]
    feedback: Float[Tensor, ""]
    coverage: Float[Tensor, ""]


def consistency(
    strong_logits: Float[Tensor, "U K"], weak_logits: Float[Tensor, "U K"], uda: UdaSettings
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The UDA loss, in whose mean rows below the threshold count as 0, and the share of rows above."""
    target = torch.softmax(widen(weak_logits.detach()) / uda.temperature, -1)
    mask = target.amax(-1) >= uda.threshold
    row = -expected(target, torch.log_softmax(widen(strong_logits), -1))
    return row.masked_fill(~mask, 0.0).mean(), mask.to(row.dtype).mean()


def credit_loss(logits: Float[Tensor, "U K"], feedback: Feedback, temperature: float) -> Float[Tensor, ""]:
    """The feedback loss on the logits of the view that labelled."""
    log_q = torch.log_softmax(widen(logits) / temperature, -1)
    if isinstance(feedback, ExactFeedback):
        return (feedback.scale * widen(feedback.tangent) * log_q.exp()).sum()
    log_q_label = log_q.gather(-1, feedback.label.unsqueeze(-1)).squeeze(-1)
    credit = -feedback.credit if isinstance(feedback, ScalarFeedback) else feedback.credit
    return (credit * log_q_label).sum()


def teacher_objective(
    labelled_logits: Float[Tensor, "B K"],
    targets: Int[Tensor, " B"],
    strong_logits: Float[Tensor, "U K"],
    weak_logits: Float[Tensor, "U K"] | None,
    uda: UdaSettings | None,
    feedback: Feedback | None,
    label_view: View,
    temperature: float,
    label_smoothing: float,
    supervised_weight: float,
) -> TeacherObjective:
    """See `fastmpl_kernels.teacher_objective`."""
    supervised = soft_cross_entropy(labelled_logits, targets, label_smoothing)
    zero = torch.zeros_like(supervised.detach())
    # Not a Python float times a 0-D tensor: torch 2.14 gives that product a float64 tangent.
    loss, uda_loss, coverage, feedback_loss = torch.full_like(zero, supervised_weight) * supervised, zero, zero, zero
    if uda is not None:
        assert weak_logits is not None
        uda_loss, coverage = consistency(strong_logits, weak_logits, uda)
        loss = loss + uda.weight * uda_loss
    if feedback is not None:
        view = weak_logits if label_view == "weak" else strong_logits
        assert view is not None
        feedback_loss = credit_loss(view, feedback, temperature)
        loss = loss + feedback.weight * feedback_loss
    return TeacherObjective(loss, supervised.detach(), uda_loss.detach(), feedback_loss.detach(), coverage)
