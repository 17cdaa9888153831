"""The size of the feedback's gradient beside the supervised one is that of the losses that the teacher descends."""

from typing import Literal

import pytest
import torch

from fastmpl.methods.mpl import Feedback, MetaPseudoLabels
from fastmpl.methods.targets import PseudoLabelLoss
from fastmpl.methods.views import Logits
from tests.step.worlds import World

ZERO = torch.zeros((), dtype=torch.float64)


@pytest.mark.parametrize("kind", ["exact", "per_example", "scalar"])
def test_the_squares_are_those_of_the_gradients_at_the_logits(kind: Literal["exact", "per_example", "scalar"]) -> None:
    g = torch.Generator().manual_seed(3)
    method = MetaPseudoLabels(
        unlabelled=12, temperature=0.7, label_smoothing=0.1, supervised_weight=0.5, targets="sampled",
        feedback=Feedback(kind=kind, weight=0.3),
    )  # fmt: skip
    labelled, strong = (torch.randn(n, 5, generator=g, dtype=torch.float64).requires_grad_() for n in (4, 6))
    targets, drawn = torch.randint(5, (4,), generator=g), torch.randint(5, (6,), generator=g)
    shape = {"exact": (6, 5), "per_example": (6,), "scalar": ()}[kind]
    credit = torch.randn(shape, generator=g, dtype=torch.float64)
    student = PseudoLabelLoss(ZERO, drawn, ZERO, ZERO)
    loss = method.teach(Logits(labelled=labelled, strong=strong), targets, student, credit, ZERO).loss
    by_labelled, by_strong = torch.autograd.grad(loss, (labelled, strong))
    found = method.gradient_squares(Logits(labelled=labelled, strong=strong), targets, student, credit)
    torch.testing.assert_close(found, torch.stack([by_strong.square().sum(), by_labelled.square().sum()]))


def test_a_step_without_feedback_or_without_a_supervised_loss_has_no_ratio() -> None:
    on = World(MetaPseudoLabels(unlabelled=4)).take(0)
    assert on.feedback_ratio > 0
    off = World(MetaPseudoLabels(unlabelled=4, feedback=Feedback(kind="off"))).take(0)
    alone = World(MetaPseudoLabels(unlabelled=4, supervised_weight=0.0)).take(0)
    assert off.feedback_ratio == alone.feedback_ratio == 0
