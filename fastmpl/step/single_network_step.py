"""One training step of the methods that train one network: all that Meta Pseudo Labels is compared with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fastmpl.data.batch import Batch
from fastmpl.learners.protocol import Learner
from fastmpl.methods.single_network import SingleNetworkMethod
from fastmpl.methods.targets import PseudoLabels
from fastmpl.methods.views import by_view, images
from fastmpl.step.context import LABEL, OBSERVER, STUDENT, StepContext
from fastmpl.step.micro_batches import share
from fastmpl.step.step_metrics import StepMetrics, zero_metrics


@dataclass(frozen=True)
class SingleNetworkStep:
    """The network takes one optimiser step."""

    method: SingleNetworkMethod
    student: Learner
    fixed_teacher: Callable[[Tensor], Float[Tensor, "U K"]] | None = None  # labels, where the method asks for it

    def __call__(self, parts: Sequence[Batch], context: StepContext, baseline: Tensor | None = None) -> StepMetrics:
        """One step over the parts of a batch; there is no feedback, so `baseline` is not read."""
        method, student = self.method, self.student
        sums = zero_metrics(parts[0].labelled)
        for number, part in enumerate(parts):
            here = context.part(number)
            labels = self._label(part, here)  # first: the activations of the pass below are not there yet
            rows = student.forward(images(part, method.graph), here.dropout(STUDENT))
            logits = by_view(rows, part, method.graph)
            loss = method.learn(logits, labels, part.targets, part.trusted_targets, context.consistency_weight)
            student.accumulate(share(loss.loss, len(parts)))
            sums = sums._replace(
                student_loss=sums.student_loss + loss.loss.detach(),
                supervised_loss=sums.supervised_loss + loss.supervised.detach(),
                pseudo_loss=sums.pseudo_loss + loss.pseudo.detach(),
                coverage=sums.coverage + loss.coverage,
                confidence=sums.confidence + loss.confidence,
            )
        update = student.apply(context.step)
        means = StepMetrics(*(value / len(parts) for value in sums))
        skipped = torch.ones_like(update.applied) - update.applied
        return means._replace(student_norm=update.norm, student_rate=update.rate, skipped=skipped)

    @torch.no_grad()
    def _label(self, part: Batch, context: StepContext) -> PseudoLabels | None:
        """The labels of a part's unlabelled images, by the network itself or a fixed teacher; None: the method has none."""
        method = self.method
        if method.labeller == "none":
            return None
        if method.labeller == "self":
            logits = self.student.observe(images(part, [method.label_view]), context.dropout(OBSERVER))
        else:
            assert self.fixed_teacher is not None, "the method's fixed teacher was not given"
            logits = self.fixed_teacher(getattr(part.for_teacher(), method.label_view))
        return method.label(logits, context.draw(LABEL), part.unlabelled_index)
