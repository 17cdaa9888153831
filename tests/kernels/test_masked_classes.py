"""A class whose logit is masked by -inf has probability 0: it adds nothing to a loss, and gets no gradient."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastmpl_kernels import dispatch
from fastmpl_kernels.soft_cross_entropy import soft_cross_entropy
from fastmpl_kernels.student_objective import student_objective
from fastmpl_kernels.teacher_objective import ScalarFeedback, UdaSettings, teacher_objective
from tests.kernels.three_way import BACKEND, logits, needs_backend

pytestmark = needs_backend
ROWS, CLASSES, MASKED = 4, 21, [3, 20]
LABELS = torch.arange(ROWS)[torch.tensor([0, 1, 2, 0])]
ONE = torch.tensor(1.0)

# A loss of logits with or without the masked classes; `keep` takes the columns of its other arguments.
Keep = Callable[[Tensor], Tensor]
Loss = Callable[[Tensor, Keep], Tensor]


def labelling() -> Tensor:
    return logits(ROWS, CLASSES, torch.float32, 1).masked_fill(mask(), -torch.inf)


def mask() -> Tensor:
    return torch.zeros(CLASSES, dtype=torch.bool).index_fill(0, torch.tensor(MASKED), True)


def distribution_loss(z: Tensor, keep: Keep) -> Tensor:
    return soft_cross_entropy(z, torch.softmax(keep(labelling()).to(z.dtype), -1))


def student_loss(targets: str) -> Loss:
    return lambda z, keep: student_objective(keep(labelling()).to(z.dtype), z, targets=targets).loss  # type: ignore[arg-type]


def teacher_loss(z: Tensor, keep: Keep) -> Tensor:
    weak = keep(labelling()).to(z.dtype)
    return teacher_objective(z, LABELS, z, weak, uda=UdaSettings(ONE), feedback=ScalarFeedback(ONE, LABELS, ONE)).loss


LOSSES: dict[str, Loss] = {
    "label": lambda z, _: soft_cross_entropy(z, LABELS),
    "distribution": distribution_loss,
    "soft": student_loss("soft"),
    "argmax": student_loss("argmax"),
    "teacher": teacher_loss,
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("backend", ["reference", BACKEND])
def test_a_masked_class_changes_nothing(name: str, backend: dispatch.Choice) -> None:
    """Labels are classes 0 to 2, so their numbers stay when classes 3 and 20 are left out."""
    full = logits(ROWS, CLASSES, torch.float32, 0).masked_fill(mask(), -torch.inf).requires_grad_()
    with dispatch.use(backend):
        loss = LOSSES[name](full, lambda x: x)
        (gradient,) = torch.autograd.grad(loss, full)
    short = full.detach()[:, ~mask()].double().requires_grad_()
    exact = LOSSES[name](short, lambda x: x[:, ~mask()])
    (expected,) = torch.autograd.grad(exact, short)
    torch.testing.assert_close(loss.detach().double(), exact.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient[:, ~mask()].double(), expected, rtol=1e-4, atol=1e-6)
    assert (gradient[:, mask()] == 0).all()


@pytest.mark.parametrize("backend", ["reference", BACKEND])
def test_smoothing_asks_a_masked_class_for_probability_and_gives_an_infinite_loss(backend: dispatch.Choice) -> None:
    with dispatch.use(backend):
        loss = soft_cross_entropy(labelling(), LABELS, label_smoothing=0.1)
    assert loss == torch.inf


def test_hard_labels_are_smoothed_exactly_in_float64() -> None:
    z = logits(ROWS, CLASSES, torch.float64, 0)
    found = student_objective(z, z, targets="argmax", label_smoothing=0.1).loss
    expected = torch.nn.functional.cross_entropy(z, z.argmax(-1), label_smoothing=0.1)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)
