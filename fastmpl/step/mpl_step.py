"""One training step of Meta Pseudo Labels (Pham et al. 2021, CVPR): which pass runs when, and what follows from it.

The phases' mathematics is in fastmpl.methods.mpl, the networks and their optimisers in fastmpl.learners; the order of
the passes is here. `parts` are the step's batch, or its micro-batches: each phase goes through all of them before the
next begins, so that both networks still take one optimiser step. Nothing in a step reads a tensor on the host.
"""

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from fastmpl.data.batch import Batch
from fastmpl.learners.protocol import Learner
from fastmpl.methods.mpl import MetaPseudoLabels, Taught
from fastmpl.methods.targets import Labels, Lesson
from fastmpl.methods.views import Logits, by_view, images
from fastmpl.step.credit import Learnt, credit, mean, needs_gradient, validation_loss
from fastmpl.step.order import Order
from fastmpl.step.step_keys import LABEL, OBSERVER, STUDENT, TEACHER, Moment, Report


class Seen(NamedTuple):
    """The teacher's logits of one part: with a graph (unless deferred), and without."""

    graph: Logits
    observed: Logits

    def all(self) -> Logits:
        return self.graph.merge(self.observed)


def meta_step(
    method: MetaPseudoLabels,
    order: Order,
    teacher: Learner,
    student: Learner,
    parts: Sequence[Batch],
    moment: Moment,
    baseline: Float[Tensor, ""],
) -> Report:
    """One step of Meta Pseudo Labels: both networks take one optimiser step. `baseline` is updated in place."""
    seen = [_label(order, teacher, part, moment.part(i)) for i, part in enumerate(parts)]
    labels = [
        method.label(logits.all(), moment.draw(LABEL), part.unlabelled_index)
        for logits, part in zip(seen, parts, strict=True)
    ]

    before = validation_loss(method, student, parts, moment) if method.feedback.needs_losses else None
    learnt = [
        _learn(method, order, student, part, moment.part(i), label, len(parts))
        for i, (part, label) in enumerate(zip(parts, labels, strict=True))
    ]
    update = student.apply(moment.step, keep=needs_gradient(method))

    given = credit(method, order, student, parts, moment, update, learnt, before, baseline)

    taught = [
        _teach(method, order, teacher, part, moment.part(i), seen[i], learnt[i].lesson, given.credits[i], len(parts))
        for i, part in enumerate(parts)
    ]
    lesson = teacher.apply(moment.step)

    return Report(
        student_loss=mean([each.lesson.loss for each in learnt]),
        supervised_loss=mean([each.supervised for each in taught]),
        pseudo_loss=mean([each.consistency for each in taught]),
        feedback_loss=mean([each.feedback for each in taught]),
        feedback=given.progress,
        feedback_size=given.size,
        coverage=mean([each.coverage for each in taught]),
        confidence=mean([each.lesson.confidence for each in learnt]),
        student_norm=update.norm,
        teacher_norm=lesson.norm,
        student_rate=update.rate,
        teacher_rate=lesson.rate,
        skipped=2 - update.applied - lesson.applied,
    )


def _label(order: Order, teacher: Learner, part: Batch, moment: Moment) -> Seen:
    """The teacher's logits, by the same draws and batch whether its graph is built now or after the student's step."""
    part = part.for_teacher()
    look = teacher.observe if order.deferred else teacher.forward
    seen = by_view(look(images(part, order.teacher), moment.dropout(TEACHER)), part, order.teacher)
    observed = Logits()
    if order.observed:
        rows = teacher.observe(images(part, order.observed), moment.dropout(OBSERVER))
        observed = by_view(rows, part, order.observed)
    return Seen(seen, observed)


def _learn(
    method: MetaPseudoLabels,
    order: Order,
    student: Learner,
    part: Batch,
    moment: Moment,
    labels: Labels,
    parts: int,
) -> Learnt:
    """The student learns from the pseudo labels, and from nothing else."""
    logits = student.forward(images(part, order.student), moment.dropout(STUDENT))
    lesson = method.learn(by_view(logits, part, order.student), labels)
    student.accumulate(share(lesson.loss, parts))
    return Learnt(lesson._replace(loss=lesson.loss.detach()), logits.detach())


def _teach(
    method: MetaPseudoLabels,
    order: Order,
    teacher: Learner,
    part: Batch,
    moment: Moment,
    seen: Seen,
    lesson: Lesson,
    credit: Tensor | None,
    parts: int,
) -> Taught:
    """The teacher learns from supervised, consistency and feedback losses."""
    if order.deferred:
        part = part.for_teacher()
        rows = teacher.forward(images(part, order.teacher), moment.dropout(TEACHER))
        seen = seen._replace(graph=by_view(rows, part, order.teacher))
    taught = method.teach(seen.all(), part.targets, lesson, credit, moment.consistency_weight)
    teacher.accumulate(share(taught.loss, parts))
    return Taught(*(value.detach() for value in taught))


def share(loss: Float[Tensor, ""], parts: int) -> Float[Tensor, ""]:
    """A micro-batch's share of the step's loss; alone, the loss as it is, whose gradient then needs no product."""
    return loss / parts if parts > 1 else loss
