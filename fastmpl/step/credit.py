"""The credit phase: what the student's update did to its validation loss V, in the form that the method asks for.

scalar               V(theta) - V(theta'), two passes without a graph over the feedback's images
exact, per_example   one labelled backward at theta', one Jacobian-vector product at theta
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastmpl.data.batch import Batch
from fastmpl.learners.protocol import Gradient, Learner, LossPass, TangentPass, Update
from fastmpl.methods.feedback import apply_control
from fastmpl.methods.mpl import MetaPseudoLabels
from fastmpl.methods.targets import PseudoLabelLoss
from fastmpl.methods.views import by_view, images
from fastmpl.step.context import CONTROL, STUDENT, VALIDATION, StepContext
from fastmpl.step.micro_batches import mean
from fastmpl.step.order import Order


class StudentPass(NamedTuple):
    """The student's pass over one part, at its old parameters; nothing of it has a graph any more."""

    loss: PseudoLabelLoss
    logits: Float[Tensor, "N K"]


class Credit(NamedTuple):
    """The credit of each part's labels, and the decrease of the student's validation loss by its update."""

    per_part: list[Tensor | None]
    loss_decrease: Float[Tensor, ""]
    size: Float[Tensor, ""]  # root mean square of the credit, on the scale of one batch


@dataclass(frozen=True)
class CreditPhase:
    """Credits the pseudo labels with what the student's update did."""

    method: MetaPseudoLabels
    order: Order
    student: Learner

    @property
    def needs_gradient(self) -> bool:
        """Whether the credit needs the gradient that the student's update was made of."""
        return self.method.feedback.kind != "off" and not self.method.feedback.needs_losses

    def loss_before(self, parts: Sequence[Batch], contexts: Sequence[StepContext]) -> Float[Tensor, ""] | None:
        """V at the parameters before the student's update; None where the credit does not need it."""
        return self._validation_loss(parts, contexts) if self.method.feedback.needs_losses else None

    def compute(
        self,
        parts: Sequence[Batch],
        contexts: Sequence[StepContext],
        passes: Sequence[StudentPass],
        update: Update,
        before: Float[Tensor, ""] | None,
        baseline: Float[Tensor, ""],
    ) -> Credit:
        """The credit after `update`; zero where that was skipped. `before` is what `loss_before` gave."""
        zero = torch.zeros_like(update.norm)
        if self.method.feedback.kind == "off":
            return Credit([None] * len(parts), zero, zero)
        if before is not None:
            decrease = self.student.mean(before - self._validation_loss(parts, contexts))
            return self._scalar(decrease, update, baseline, contexts)
        gradient = self._validation_gradient(parts, contexts)
        return self._rows(parts, contexts, passes, update, gradient)

    def _scalar(
        self,
        decrease: Float[Tensor, ""],
        update: Update,
        baseline: Float[Tensor, ""],
        contexts: Sequence[StepContext],
    ) -> Credit:
        """One number for all labels: the decrease of V, less its moving average.

        A step whose update was skipped, or whose V is not finite, teaches nothing and leaves the average as it was.
        """
        settings, zero = self.method.feedback, torch.zeros_like(update.norm)
        measured = (update.applied > 0) & torch.isfinite(decrease)
        decrease = torch.where(measured, decrease, zero)
        key = contexts[0].draw(CONTROL)
        scalar = torch.where(measured, apply_control(decrease - baseline, settings.control, key), zero)
        if settings.baseline > 0:
            following = baseline.lerp(decrease.to(baseline.dtype), 1 - settings.baseline)
            baseline.copy_(torch.where(measured, following, baseline))
        return Credit([scalar] * len(contexts), decrease, scalar.abs())

    def _rows(
        self,
        parts: Sequence[Batch],
        contexts: Sequence[StepContext],
        passes: Sequence[StudentPass],
        update: Update,
        gradient: Gradient,
    ) -> Credit:
        """A number for each label, from g' = grad V(theta') and one Jacobian-vector product."""
        settings, taken = self.method.feedback, update.applied > 0
        decrease = torch.where(taken, self.student.loss_decrease(update, gradient), torch.zeros_like(update.norm))
        seen = [
            TangentPass(images(part, self.order.student), each.logits, context.dropout(STUDENT))
            for part, context, each in zip(parts, contexts, passes, strict=True)
        ]
        rows = []
        tangents = self.student.tangents(update, seen, gradient)
        for part, (loss, logits), tangent in zip(parts, passes, tangents, strict=True):
            here, moved = (by_view(x, part, self.order.student).of("strong") for x in (logits, tangent))
            rows.append(torch.where(taken, self.method.credit(here, moved, loss), 0.0))
        every = torch.cat(rows)
        # a part's rows are scaled by its own images
        size = every.square().mean().sqrt() * (len(rows[0]) / self.method.unlabelled)
        key = contexts[0].draw(CONTROL)
        if settings.control == "shuffled":  # over the images of all micro-batches and ranks
            every = self.student.permute(every, lambda all_rows: apply_control(all_rows, "shuffled", key))
        else:
            every = apply_control(every, settings.control, key)
        return Credit(list(every.chunk(len(parts))), decrease, size)

    def _validation_loss(self, parts: Sequence[Batch], contexts: Sequence[StepContext]) -> Float[Tensor, ""]:
        """V at the student's present parameters: these images alone, the same draws each time, in full precision."""
        losses = []
        for part, context in zip(parts, contexts, strict=True):
            inputs, targets = self._validation_images(part)
            logits = self.student.observe(inputs, context.dropout(VALIDATION), precise=True)
            losses.append(self.method.validate(logits, targets))
        return mean(losses)

    def _validation_gradient(self, parts: Sequence[Batch], contexts: Sequence[StepContext]) -> Gradient:
        """grad V at the student's present parameters."""
        passes = []
        for part, context in zip(parts, contexts, strict=True):
            inputs, targets = self._validation_images(part)
            loss = partial(self.method.validate, targets=targets)
            passes.append(LossPass(inputs, loss, context.dropout(VALIDATION)))
        return self.student.gradient(passes)

    def _validation_images(self, batch: Batch) -> tuple[Tensor, Int[Tensor, "M"]]:
        if self.method.feedback.images == "labelled":
            return batch.labelled, batch.targets
        assert batch.trusted is not None and batch.trusted_targets is not None, "the data has no trusted images"
        return batch.trusted, batch.trusted_targets
