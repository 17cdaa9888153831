"""One training step of Meta Pseudo Labels (Pham et al. 2021, CVPR): the order of its passes and updates.

The mathematics of the phases is in fastmpl.methods.mpl, the networks and their optimisers in fastmpl.learners. The batch
of a step may come in micro-batches, its parts: each phase goes through all of them before the next phase begins, so that
each network takes one optimiser step. Nothing in a step reads a tensor on the host.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fastmpl.data.batch import Batch
from fastmpl.learners.protocol import Learner
from fastmpl.methods.mpl import MetaPseudoLabels, TeacherLoss
from fastmpl.methods.targets import PseudoLabels
from fastmpl.methods.views import Logits, by_view, images
from fastmpl.step.context import LABEL, OBSERVER, STUDENT, TEACHER, StepContext
from fastmpl.step.credit import CreditPhase, StudentPass
from fastmpl.step.micro_batches import mean, share
from fastmpl.step.order import Order
from fastmpl.step.step_metrics import StepMetrics


class TeacherLogits(NamedTuple):
    """The teacher's logits of one part: of the views that need a graph, and of those that need none."""

    with_graph: Logits  # without it as well, until `teach`, where the order is deferred
    without_graph: Logits

    def all(self) -> Logits:
        return self.with_graph.merge(self.without_graph)


class Taught(NamedTuple):
    """The teacher's losses on one part, and the squares of `MetaPseudoLabels.gradient_squares`."""

    loss: TeacherLoss
    gradient_squares: Float[Tensor, "2"]


@dataclass(frozen=True)
class MplStep:
    """Both networks take one optimiser step."""

    method: MetaPseudoLabels
    order: Order
    teacher: Learner
    student: Learner

    def __call__(self, parts: Sequence[Batch], context: StepContext, baseline: Float[Tensor, ""]) -> StepMetrics:
        """The phases label, learn, credit, teach. `baseline`, of the scalar feedback, is updated in place."""
        contexts = [context.part(number) for number in range(len(parts))]
        phase = CreditPhase(self.method, self.order, self.student)

        logits = [self._label(*each) for each in zip(parts, contexts, strict=True)]
        labels = [
            self.method.label(found.all(), context.draw(LABEL), part.unlabelled_index)
            for found, part in zip(logits, parts, strict=True)
        ]

        before = phase.loss_before(parts, contexts)
        passes = [self._learn(*each, len(parts)) for each in zip(parts, contexts, labels, strict=True)]
        update = self.student.apply(context.step, keep=phase.needs_gradient)

        credit = phase.compute(parts, contexts, passes, update, before, baseline)
        update = update._replace(old=None, gradients=None)  # frees them for the teacher's graph

        taught = [
            self._teach(*each, len(parts))
            for each in zip(parts, contexts, logits, passes, credit.per_part, strict=True)
        ]
        losses = [each.loss for each in taught]
        squares = torch.stack([each.gradient_squares for each in taught]).mean(0)
        teacher_update = self.teacher.apply(context.step)

        return StepMetrics(
            student_loss=mean([each.loss.loss for each in passes]),
            supervised_loss=mean([each.supervised for each in losses]),
            pseudo_loss=mean([each.consistency for each in losses]),
            feedback_loss=mean([each.feedback for each in losses]),
            feedback=credit.loss_decrease,
            feedback_size=credit.size,
            feedback_ratio=(squares[0] / squares[1].clamp(min=1e-30)).sqrt(),
            coverage=mean([each.coverage for each in losses]),
            confidence=mean([each.loss.confidence for each in passes]),
            student_norm=update.norm,
            teacher_norm=teacher_update.norm,
            student_rate=update.rate,
            teacher_rate=teacher_update.rate,
            skipped=2 - update.applied - teacher_update.applied,
        )

    def _label(self, part: Batch, context: StepContext) -> TeacherLogits:
        """Passes through the teacher; a deferred graph is built later, on the same images by the same draws."""
        order, teacher, part = self.order, self.teacher, part.for_teacher()
        call = teacher.observe if order.deferred else teacher.forward
        rows = call(images(part, order.teacher), context.dropout(TEACHER))
        without_graph = Logits()
        if order.observed:
            observed = teacher.observe(images(part, order.observed), context.dropout(OBSERVER))
            without_graph = by_view(observed, part, order.observed)
        return TeacherLogits(by_view(rows, part, order.teacher), without_graph)

    def _learn(self, part: Batch, context: StepContext, labels: PseudoLabels, parts: int) -> StudentPass:
        """The student learns from the pseudo labels, and from nothing else."""
        credits = self.method.feedback.kind != "off"
        logits = self.student.forward(images(part, self.order.student), context.dropout(STUDENT), keep=credits)
        loss = self.method.learn(by_view(logits, part, self.order.student), labels)
        self.student.accumulate(share(loss.loss, parts))
        return StudentPass(loss._replace(loss=loss.loss.detach()), logits.detach())

    def _teach(
        self,
        part: Batch,
        context: StepContext,
        logits: TeacherLogits,
        student: StudentPass,
        credit: Tensor | None,
        parts: int,
    ) -> Taught:
        """The teacher learns from its supervised, consistency and feedback losses."""
        if self.order.deferred:
            part = part.for_teacher()
            rows = self.teacher.forward(images(part, self.order.teacher), context.dropout(TEACHER))
            logits = logits._replace(with_graph=by_view(rows, part, self.order.teacher))
        views = logits.all()
        loss = self.method.teach(views, part.targets, student.loss, credit, context.consistency_weight)
        self.teacher.accumulate(share(loss.loss, parts))
        squares = self.method.gradient_squares(views, part.targets, student.loss, credit)
        return Taught(TeacherLoss(*(value.detach() for value in loss)), squares)
