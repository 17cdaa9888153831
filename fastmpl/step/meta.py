"""One training step of Meta Pseudo Labels (Pham et al. 2021, CVPR): which pass runs when, and what follows from it.

The phases' mathematics is in fastmpl.methods.mpl, the networks and their optimisers in fastmpl.learners; the order of
the passes is here. Nothing in a step reads a tensor on the host.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastmpl.data.batch import Batch
from fastmpl.learners.protocol import Learner, Update
from fastmpl.methods.feedback import controlled
from fastmpl.methods.mpl import MetaPseudoLabels
from fastmpl.methods.targets import Labels
from fastmpl.methods.views import Logits, by_view, images
from fastmpl.step.moment import CONTROL, LABEL, OBSERVER, STUDENT, TEACHER, VALIDATION, Moment, Report
from fastmpl.step.order import Order


class Credit(NamedTuple):
    """The credit of the labels, and what the student's update took off its validation loss."""

    credit: Float[Tensor, "*shape"] | None
    progress: Float[Tensor, ""]


def meta_step(
    method: MetaPseudoLabels,
    order: Order,
    teacher: Learner,
    student: Learner,
    batch: Batch,
    moment: Moment,
    baseline: Float[Tensor, ""],
) -> Report:
    """One step of Meta Pseudo Labels: both networks take one optimiser step. `baseline` is updated in place."""
    # label: the teacher's logits, by the same draws and batch whether the graph is built now or after the student
    teacher_images = images(batch, order.teacher)
    look = teacher.observe if order.deferred else teacher.forward
    seen = by_view(look(teacher_images, moment.dropout(TEACHER)), batch, order.teacher)
    observed = Logits()
    if order.observed:
        rows = teacher.observe(images(batch, order.observed), moment.dropout(OBSERVER))
        observed = by_view(rows, batch, order.observed)
    labels = method.label(seen.merge(observed), moment.draw(LABEL), batch.unlabelled_index)

    # learn: the student takes its step on those labels, and on nothing else
    before = _validation_loss(method, student, batch, moment) if _needs_losses(method) else None
    student_images = images(batch, order.student)
    student_logits = student.forward(student_images, moment.dropout(STUDENT))
    loss = method.learn(by_view(student_logits, batch, order.student), labels)
    student.accumulate(loss)
    update = student.apply(moment.step, keep=_needs_gradient(method))

    # credit: what that did to the student's validation loss
    given = _credit(method, order, student, batch, moment, labels, update, student_logits.detach(), before, baseline)

    # teach: the teacher takes its step on supervised, consistency and feedback losses
    if order.deferred:
        seen = by_view(teacher.forward(teacher_images, moment.dropout(TEACHER)), batch, order.teacher)
    weight = moment.consistency_weight
    taught = method.teach(seen.merge(observed), batch.targets, labels, given.credit, weight)
    teacher.accumulate(taught.loss)
    lesson = teacher.apply(moment.step)

    return Report(
        student_loss=loss.detach(),
        supervised_loss=taught.supervised.detach(),
        pseudo_loss=taught.consistency.detach(),
        feedback_loss=taught.feedback.detach(),
        feedback=given.progress,
        feedback_size=_size(method, given.credit, loss),
        coverage=taught.coverage,
        confidence=labels.probabilities.amax(-1).mean(),
        student_norm=update.norm,
        teacher_norm=lesson.norm,
        student_rate=update.rate,
        teacher_rate=lesson.rate,
        skipped=2 - update.applied - lesson.applied,
    )


def _size(method: MetaPseudoLabels, credit: Float[Tensor, "*shape"] | None, like: Tensor) -> Float[Tensor, ""]:
    """The credit's root mean square, on the scale of one process: rows are scaled by the images of this rank alone."""
    if credit is None:
        return torch.zeros_like(like)
    share = len(credit) / method.unlabelled if credit.ndim else 1.0
    return credit.square().mean().sqrt() * share


def _needs_losses(method: MetaPseudoLabels) -> bool:
    return method.feedback.kind == "scalar" and not method.feedback.cosine


def _needs_gradient(method: MetaPseudoLabels) -> bool:
    return method.feedback.kind in ("exact", "per_example") or method.feedback.cosine


def _validation_images(method: MetaPseudoLabels, batch: Batch) -> tuple[Tensor, Int[Tensor, "M"]]:
    if method.feedback.images == "labelled":
        return batch.labelled, batch.targets
    assert batch.trusted is not None and batch.trusted_targets is not None, "the data has no trusted images"
    return batch.trusted, batch.trusted_targets


def _validation_loss(method: MetaPseudoLabels, student: Learner, batch: Batch, moment: Moment) -> Float[Tensor, ""]:
    """V at the student's present parameters: these images alone, the same draws each time, in full precision."""
    inputs, targets = _validation_images(method, batch)
    return method.validate(student.observe(inputs, moment.dropout(VALIDATION), precise=True), targets)


def _credit(
    method: MetaPseudoLabels,
    order: Order,
    student: Learner,
    batch: Batch,
    moment: Moment,
    labels: Labels,
    update: Update,
    logits: Float[Tensor, "N K"],
    before: Float[Tensor, ""] | None,
    baseline: Float[Tensor, ""],
) -> Credit:
    """The credit phase in the form that the method asks for; zero where the student's update was skipped."""
    settings, key = method.feedback, moment.draw(CONTROL)
    if settings.kind == "off":
        return Credit(None, torch.zeros_like(update.norm))
    if before is not None:
        h = student.mean(before - _validation_loss(method, student, batch, moment))
    else:
        inputs, targets = _validation_images(method, batch)
        draw = moment.dropout(VALIDATION)
        gradient = student.gradient(inputs, lambda logits: method.validate(logits, targets), draw)
        h = student.cosine(update, gradient) if settings.cosine else student.progress(update, gradient)
    h = torch.where(update.applied > 0, h, 0.0)
    if settings.kind == "scalar":
        credit = controlled(h - baseline, settings.control, key)
        if settings.baseline > 0:
            baseline.lerp_(h.to(baseline.dtype), 1 - settings.baseline)
        return Credit(torch.where(update.applied > 0, credit, 0.0), h)
    tangent = student.tangent(update, images(batch, order.student), logits, gradient, moment.dropout(STUDENT))
    mine = by_view(logits, batch, order.student).of("strong")
    rows = method.credit(mine, by_view(tangent, batch, order.student).of("strong"), labels)
    if settings.control == "shuffled":  # over the images of all ranks
        rows = student.permuted(rows, lambda every: controlled(every, "shuffled", key))
    else:
        rows = controlled(rows, settings.control, key)
    return Credit(torch.where(update.applied > 0, rows, 0.0), h)
