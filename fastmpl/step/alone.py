"""One training step of the methods that train one network: all that Meta Pseudo Labels is compared with."""

import torch
from jaxtyping import Float
from torch import Tensor

from fastmpl.data.batch import Batch
from fastmpl.learners.protocol import Learner
from fastmpl.methods.alone import Alone
from fastmpl.methods.views import by_view, images
from fastmpl.step.moment import LABEL, OBSERVER, STUDENT, Moment, Report, nothing


def alone_step(
    method: Alone, student: Learner, batch: Batch, moment: Moment, given: Float[Tensor, "U K"] | None = None
) -> Report:
    """One step of one network. `given` are the logits of a fixed teacher, where the method has one."""
    seen = by_view(student.forward(images(batch, method.graph), moment.dropout(STUDENT)), batch, method.graph)
    labels = None
    if method.labeller == "self":
        given = student.observe(images(batch, [method.label_view]), moment.dropout(OBSERVER))
    if given is not None:
        labels = method.label(given, moment.draw(LABEL), batch.unlabelled_index)
    learnt = method.learn(seen, labels, batch.targets, moment.consistency_weight)
    student.accumulate(learnt.loss)
    update = student.apply(moment.step)
    return nothing(learnt.loss)._replace(
        student_loss=learnt.loss.detach(),
        supervised_loss=learnt.supervised.detach(),
        pseudo_loss=learnt.pseudo.detach(),
        coverage=learnt.coverage,
        confidence=torch.zeros_like(learnt.loss) if labels is None else labels.probabilities.amax(-1).mean(),
        student_norm=update.norm,
        student_rate=update.rate,
        skipped=1 - update.applied,
    )
