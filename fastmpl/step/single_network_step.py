"""One training step of the methods that train one network: all that Meta Pseudo Labels is compared with."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from fastmpl.data.batch import Batch
from fastmpl.learners.protocol import Learner
from fastmpl.methods.single_network import Alone
from fastmpl.methods.views import by_view, images
from fastmpl.step.mpl_step import share
from fastmpl.step.step_keys import LABEL, OBSERVER, STUDENT, Moment, Report, nothing


def alone_step(
    method: Alone,
    student: Learner,
    parts: Sequence[Batch],
    moment: Moment,
    given: Sequence[Float[Tensor, "U K"]] | None = None,
) -> Report:
    """One step of one network over the parts of a batch. `given` are a fixed teacher's logits, if the method has one."""
    zero = nothing(parts[0].labelled)
    sums = zero
    for i, part in enumerate(parts):
        now = moment.part(i)
        seen = by_view(student.forward(images(part, method.graph), now.dropout(STUDENT)), part, method.graph)
        labels = None
        if method.labeller == "self":
            observed = student.observe(images(part, [method.label_view]), now.dropout(OBSERVER))
            labels = method.label(observed, moment.draw(LABEL), part.unlabelled_index)
        elif given is not None:
            labels = method.label(given[i], moment.draw(LABEL), part.unlabelled_index)
        learnt = method.learn(seen, labels, part.targets, moment.consistency_weight)
        student.accumulate(share(learnt.loss, len(parts)))
        sums = sums._replace(
            student_loss=sums.student_loss + learnt.loss.detach(),
            supervised_loss=sums.supervised_loss + learnt.supervised.detach(),
            pseudo_loss=sums.pseudo_loss + learnt.pseudo.detach(),
            coverage=sums.coverage + learnt.coverage,
            confidence=sums.confidence + learnt.confidence,
        )
    update = student.apply(moment.step)
    means = Report(*(value / len(parts) for value in sums))
    return means._replace(
        student_norm=update.norm, student_rate=update.rate, skipped=torch.ones_like(update.applied) - update.applied
    )
