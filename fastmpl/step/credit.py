"""The credit phase: what the student's update did to its validation loss, in the form that the method asks for.

scalar               V(theta) - V(theta'), two passes without a graph over the feedback's images
exact, per_example   one labelled backward at theta', one Jacobian-vector product at theta
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastmpl.data.batch import Batch
from fastmpl.learners.protocol import Gradient, Learner, Update
from fastmpl.methods.feedback import controlled
from fastmpl.methods.mpl import MetaPseudoLabels
from fastmpl.methods.targets import Lesson
from fastmpl.methods.views import by_view, images
from fastmpl.step.order import Order
from fastmpl.step.step_keys import CONTROL, STUDENT, VALIDATION, Moment


class Learnt(NamedTuple):
    """What the student learnt from one part's pseudo labels, and its logits at the old parameters."""

    lesson: Lesson  # its loss without a graph
    logits: Float[Tensor, "N K"]


class Given(NamedTuple):
    """The credit of each part's labels, and what the student's update took off its validation loss."""

    credits: list[Tensor | None]
    progress: Float[Tensor, ""]
    size: Float[Tensor, ""]  # root mean square of the credit, on the scale of one batch


def credit(
    method: MetaPseudoLabels,
    order: Order,
    student: Learner,
    parts: Sequence[Batch],
    moment: Moment,
    update: Update,
    learnt: Sequence[Learnt],
    before: Float[Tensor, ""] | None,
    baseline: Float[Tensor, ""],
) -> Given:
    """Zero where the student's update was skipped. `before` is V at the old parameters, where the form needs it."""
    settings, key = method.feedback, moment.draw(CONTROL)
    nothing = torch.zeros_like(update.norm)
    if settings.kind == "off":
        return Given([None] * len(parts), nothing, nothing)
    if before is not None:
        h = student.mean(before - validation_loss(method, student, parts, moment))
    else:
        gradient = _validation_gradient(method, student, parts, moment)
        h = student.loss_decrease(update, gradient)
    taken = update.applied > 0
    h = torch.where(taken, h, nothing)
    if settings.kind == "scalar":
        scalar = torch.where(taken, controlled(h - baseline, settings.control, key), nothing)
        if settings.baseline > 0:
            baseline.lerp_(h.to(baseline.dtype), 1 - settings.baseline)
        return Given([scalar] * len(parts), h, scalar.abs())
    rows = []
    for i, part in enumerate(parts):
        views, (lesson, logits) = images(part, order.student), learnt[i]
        tangent = student.tangent(update, views, logits, gradient, moment.part(i).dropout(STUDENT))
        mine, moved = (by_view(x, part, order.student).of("strong") for x in (logits, tangent))
        rows.append(torch.where(taken, method.credit(mine, moved, lesson), 0.0))
    every = torch.cat(rows)
    # a part's rows are scaled by its own images
    size = every.square().mean().sqrt() * (len(rows[0]) / method.unlabelled)
    if settings.control == "shuffled":  # over the images of all micro-batches and ranks
        every = student.permute(every, lambda all_rows: controlled(all_rows, "shuffled", key))
    else:
        every = controlled(every, settings.control, key)
    return Given(list(every.chunk(len(parts))), h, size)


def needs_gradient(method: MetaPseudoLabels) -> bool:
    """Whether the credit needs what the student's update was made of."""
    return method.feedback.kind != "off" and not method.feedback.needs_losses


def validation_loss(
    method: MetaPseudoLabels, student: Learner, parts: Sequence[Batch], moment: Moment
) -> Float[Tensor, ""]:
    """V at the student's present parameters: these images alone, the same draws each time, in full precision."""
    losses = []
    for i, part in enumerate(parts):
        inputs, targets = _validation_images(method, part)
        logits = student.observe(inputs, moment.part(i).dropout(VALIDATION), precise=True)
        losses.append(method.validate(logits, targets))
    return mean(losses)


def _validation_gradient(
    method: MetaPseudoLabels, student: Learner, parts: Sequence[Batch], moment: Moment
) -> Gradient:
    """grad V at the student's present parameters."""
    sums: Gradient = {}
    for i, part in enumerate(parts):
        inputs, targets = _validation_images(method, part)

        def loss(logits: Tensor, targets: Tensor = targets) -> Tensor:
            return method.validate(logits, targets)

        found = student.gradient(inputs, loss, moment.part(i).dropout(VALIDATION))
        sums = found if not sums else {name: sums[name] + value for name, value in found.items()}
    return sums if len(parts) == 1 else {name: value / len(parts) for name, value in sums.items()}


def _validation_images(method: MetaPseudoLabels, batch: Batch) -> tuple[Tensor, Int[Tensor, "M"]]:
    if method.feedback.images == "labelled":
        return batch.labelled, batch.targets
    assert batch.trusted is not None and batch.trusted_targets is not None, "the data has no trusted images"
    return batch.trusted, batch.trusted_targets


def mean(values: Sequence[Tensor]) -> Tensor:
    """Over the micro-batches, which are equally large."""
    return torch.stack(list(values)).mean() if len(values) > 1 else values[0]
